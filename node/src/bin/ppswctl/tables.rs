//! `tables push|versions|diff|rollback|get|status`, and changes of users' tables.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use bytes::Bytes;
use comfy_table::{Table, presets};
use ppsw_control::client;
use ppsw_node::files;
use ppsw_proto::control::{
    self as pb, activate_reply::Result as Done, activation::Kind, file_diff::Kind as FileKind,
};
use serde_json::{Value, json};

use crate::{Failure, address::Admin, age::rfc3339};

/// Who wants it, why, and how much.
pub(crate) struct Asked {
    pub(crate) author: String,
    pub(crate) reason: String,
    pub(crate) force: bool,
}

pub(crate) async fn push(
    admin: &mut Admin,
    dir: &Path,
    asked: Asked,
    as_json: bool,
) -> Result<(), Failure> {
    let read = files::read_tree(dir).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Failure::Usage(lines.join("\n"))
    })?;
    let Asked { author, reason, force } = asked;
    let files = read.into_iter().map(|(path, content)| (path, Bytes::from(content))).collect();
    let version = client::NewVersion { files, author, reason, force };
    let pushed = client::push(admin, version).await?;
    let sent = json!({ "files": pushed.sent_files, "bytes": pushed.sent_bytes });
    if !as_json && pushed.sent_files > 0 {
        say!("sent {} files, {} bytes", pushed.sent_files, pushed.sent_bytes);
    }
    report(pushed.done, Some(sent), as_json)
}

pub(crate) async fn roll_back(
    admin: &mut Admin,
    version: u64,
    asked: Asked,
    as_json: bool,
) -> Result<(), Failure> {
    let Asked { author, reason, .. } = asked;
    let reply = admin.rollback(pb::RollbackRequest { version, author, reason }).await?.into_inner();
    let done = reply.result.ok_or_else(|| Failure::Refused("an empty answer".to_owned()))?;
    report(done, None, as_json)
}

/// Replaces the tables of a domain or a list for which a file is given.
pub(crate) async fn set(
    admin: &mut Admin,
    place: &str,
    files: &[(&str, Option<PathBuf>)],
    reason: Option<String>,
    force: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let mut contents = Vec::new();
    for (table, file) in files {
        let Some(file) = file else { continue };
        let content = files::read(file, ppsw_node::limits::TABLE_BYTES_MAX)
            .map_err(|e| Failure::Usage(format!("cannot read {}: {e}", file.display())))?;
        contents.push((format!("{place}/{table}"), Some(Bytes::from(content))));
    }
    if contents.is_empty() {
        let names: Vec<String> = files.iter().map(|(table, _)| format!("--{table} FILE")).collect();
        return Err(Failure::Usage(format!("expected {}", names.join(" or "))));
    }
    let reason = reason.unwrap_or_else(|| format!("{place} set"));
    report(client::change(admin, contents, String::new(), reason, force).await?, None, as_json)
}

/// Gives the tables of a domain or a list back to the versions.
pub(crate) async fn reset(
    admin: &mut Admin,
    place: &str,
    tables: &[&str],
    reason: Option<String>,
    as_json: bool,
) -> Result<(), Failure> {
    let paths = tables.iter().map(|table| (format!("{place}/{table}"), None)).collect();
    let reason = reason.unwrap_or_else(|| format!("{place} reset"));
    report(client::change(admin, paths, String::new(), reason, true).await?, None, as_json)
}

/// What came of a push, a rollback or a change. Nodes that do not run it yet are told, and no failure: they will.
fn report(done: Done, sent: Option<Value>, as_json: bool) -> Result<(), Failure> {
    let done = match done {
        Done::Refused(pb::Refusal { lines, forcible }) => {
            let more = if forcible { "\nIf it is meant so, say --force" } else { "" };
            return Err(Failure::Refused(format!("{}{more}", lines.join("\n"))));
        }
        Done::Unchanged(pb::Activated { generation, version }) => {
            if as_json {
                say!(
                    "{}",
                    json!({ "changed": false, "version": version, "generation": generation })
                );
            } else {
                say!("nothing to do: version {version} is active, and the same");
            }
            return Ok(());
        }
        Done::Activated(done) => done,
    };
    let behind = done.behind.iter().map(|left| json!({ "node": left.node, "why": left.why }));
    if as_json {
        let mut all = json!({
            "changed": true,
            "version": done.version,
            "generation": done.generation,
            "nodes": done.running,
            "behind": Value::from_iter(behind),
            "kept": done.kept,
            "entries": done.entries,
            "prepared_ms": done.prepared_ms,
            "took_ms": done.took_ms,
        });
        if let Some(sent) = sent {
            all["sent"] = sent;
        }
        say!("{all}");
        return Ok(());
    }
    let nodes: Vec<String> = done.running.iter().map(ToString::to_string).collect();
    say!(
        "version {} (generation {}) runs on nodes {}: {} entries, {} ms to prepare, {} ms in all",
        done.version,
        done.generation,
        nodes.join(", "),
        done.entries,
        done.prepared_ms,
        done.took_ms
    );
    for path in &done.kept {
        say!("{path} stays as it was set alone");
    }
    for left in &done.behind {
        say!("node {} does not run it yet: {}", left.node, left.why);
    }
    Ok(())
}

pub(crate) async fn versions(admin: &mut Admin, as_json: bool) -> Result<(), Failure> {
    let reply = admin.list_versions(pb::ListVersionsRequest {}).await?.into_inner();
    let versions = reply.versions.unwrap_or_default();
    if as_json {
        say!("{}", versions_json(&versions));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["version", "pushed", "by", "files", "entries", "reason"]);
    for version in versions.kept.iter().rev() {
        let credit = version.credit.clone().unwrap_or_default();
        let content = version.content.clone().unwrap_or_default();
        let mark = if version.number == versions.active { " active" } else { "" };
        table.add_row([
            format!("{}{mark}", version.number),
            time(credit.at_ms),
            who(&credit),
            content.files.to_string(),
            content.entries.to_string(),
            credit.reason,
        ]);
    }
    say!("{table}");
    for change in &versions.changes {
        let credit = change.credit.clone().unwrap_or_default();
        say!("set alone: {} by {} at {}", change.path, who(&credit), time(credit.at_ms));
    }
    Ok(())
}

fn versions_json(versions: &pb::Versions) -> Value {
    let credit = |credit: &Option<pb::Credit>| {
        let credit = credit.clone().unwrap_or_default();
        json!({
            "by": credit.by, "author": credit.author, "reason": credit.reason,
            "at": rfc3339(credit.at_ms),
        })
    };
    let kept = versions.kept.iter().rev().map(|version| {
        let content = version.content.clone().unwrap_or_default();
        let mut one = json!({
            "version": version.number,
            "active": version.number == versions.active,
            "files": content.files, "bytes": content.bytes, "entries": content.entries,
            "forced": content.forced,
        });
        merge(&mut one, credit(&version.credit));
        one
    });
    let changes = versions.changes.iter().map(|change| {
        let mut one = json!({
            "path": change.path, "entries": change.entries, "bytes": change.bytes,
            "source": if change.source() == pb::Source::Https { "https" } else { "edit" },
            "generation": change.generation,
        });
        merge(&mut one, credit(&change.credit));
        one
    });
    let history = versions.history.iter().rev().map(|activation| {
        let kind = match activation.kind() {
            Kind::Push => "push",
            Kind::Rollback => "rollback",
            Kind::Change | Kind::Unspecified => "change",
        };
        let mut one = json!({
            "generation": activation.generation, "version": activation.version, "kind": kind,
            "paths": activation.paths,
        });
        merge(&mut one, credit(&activation.credit));
        one
    });
    json!({
        "active": versions.active,
        "generation": versions.generation,
        "versions": Value::from_iter(kept),
        "changes": Value::from_iter(changes),
        "history": Value::from_iter(history),
    })
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

pub(crate) async fn diff(
    admin: &mut Admin,
    a: &str,
    b: &str,
    limit: u32,
    as_json: bool,
) -> Result<(), Failure> {
    let (a, b) = (number(a)?, number(b)?);
    let reply = admin.diff(pb::DiffRequest { a, b, limit }).await?.into_inner();
    if as_json {
        let files = reply.files.iter().map(|file| {
            let shown = file.shown.iter().map(
                |entry| json!({ "key": entry.key, "before": entry.before, "after": entry.after }),
            );
            json!({
                "path": file.path, "kind": kind(file), "added": file.added,
                "removed": file.removed, "changed": file.changed,
                "shown": Value::from_iter(shown),
            })
        });
        say!("{}", json!({ "files": Value::from_iter(files), "omitted": reply.omitted }));
        return Ok(());
    }
    for file in &reply.files {
        say!(
            "{} {}: {} added, {} removed, {} changed",
            kind(file),
            file.path,
            file.added,
            file.removed,
            file.changed
        );
        for entry in &file.shown {
            for (sign, value) in [('-', &entry.before), ('+', &entry.after)] {
                if let Some(value) = value {
                    say!("  {sign} {}", format!("{} {value}", entry.key).trim());
                }
            }
        }
        let all = file.added + file.removed + file.changed;
        if all > file.shown.len() as u64 {
            say!("  … and {} more", all - file.shown.len() as u64);
        }
    }
    if reply.omitted > 0 {
        say!("… and {} more files", reply.omitted);
    }
    Ok(())
}

fn kind(file: &pb::FileDiff) -> &'static str {
    match file.kind() {
        FileKind::Added => "added",
        FileKind::Removed => "removed",
        FileKind::Changed | FileKind::Unspecified => "changed",
    }
}

/// A version's number; 0 is what is active.
fn number(text: &str) -> Result<u64, Failure> {
    match text {
        "active" => Ok(0),
        _ => text.parse().ok().filter(|number| *number > 0).ok_or_else(|| {
            Failure::Usage(format!("{text:?}: expected a version's number, or `active`"))
        }),
    }
}

/// Exit 1 if there is no such entry.
pub(crate) async fn get(
    admin: &mut Admin,
    table: &str,
    key: &str,
    as_json: bool,
) -> Result<ExitCode, Failure> {
    let request = pb::GetRequest { table: table.to_owned(), key: key.to_owned() };
    let reply = admin.get(request).await?.into_inner();
    if as_json {
        let found = reply
            .found
            .iter()
            .map(|m| json!({ "how": m.how, "key": m.key, "value": m.value, "line": m.line }));
        say!(
            "{}",
            json!({
                "version": reply.version, "generation": reply.generation,
                "entries": reply.entries, "found": Value::from_iter(found),
            })
        );
    } else {
        for found in &reply.found {
            say!("{} {}: {}", found.how, found.key, found.value);
        }
    }
    if !reply.found.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "ppswctl: there is no {key:?} in {table}, which has {} entries in version {}",
        reply.entries, reply.version
    );
    Ok(ExitCode::FAILURE)
}

pub(crate) async fn status(admin: &mut Admin, as_json: bool) -> Result<(), Failure> {
    let reply = admin.tables_status(pb::TablesStatusRequest {}).await?.into_inner();
    let active = reply.versions.unwrap_or_default();
    if as_json {
        let rows = reply.nodes.iter().map(|node| match &node.report {
            Some(report) => json!({
                "node": node.node, "name": node.name, "version": report.version,
                "generation": report.generation, "since": rfc3339(report.since_ms),
                "tables": report.tables, "entries": report.entries, "bytes": report.bytes,
                "current": report.generation == active.generation,
                "trouble": report.trouble,
            }),
            None => json!({
                "node": node.node, "name": node.name, "version": null, "generation": null,
                "since": null, "tables": null, "entries": null, "bytes": null,
                "current": false, "trouble": "does not answer",
            }),
        });
        say!("{}", Value::from_iter(rows));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["node", "version", "generation", "since", "entries", "memory", "notes"]);
    for node in reply.nodes {
        let Some(report) = node.report else {
            let mut row = vec![node.node.to_string()];
            row.extend(["-"; 5].map(str::to_owned));
            row.push("does not answer".to_owned());
            table.add_row(row);
            continue;
        };
        let behind = report.generation != active.generation;
        let notes = match (behind, report.trouble) {
            (false, _) => String::new(),
            (true, why) if why.is_empty() => "is behind".to_owned(),
            (true, why) => format!("is behind: {why}"),
        };
        let version = match report.version {
            0 => "its own directory".to_owned(),
            version => version.to_string(),
        };
        table.add_row([
            node.node.to_string(),
            version,
            report.generation.to_string(),
            time(report.since_ms),
            report.entries.to_string(),
            format!("{:.1} MiB", report.bytes as f64 / 1_048_576.0),
            notes,
        ]);
    }
    say!("{table}");
    say!("active: version {}, generation {}", active.active, active.generation);
    Ok(())
}

fn time(unix_ms: u64) -> String {
    rfc3339(unix_ms).as_str().unwrap_or("-").to_owned()
}

fn who(credit: &pb::Credit) -> String {
    match credit.author.as_str() {
        "" => credit.by.clone(),
        author => format!("{author} ({})", credit.by),
    }
}
