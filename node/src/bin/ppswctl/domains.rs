//! `domains list|show|set|reset|unset|fetch|check`.

use std::process::ExitCode;

use comfy_table::{Table, presets};
use ppsw_proto::control::{
    CheckDomainRequest, DomainInfo, FetchDomainRequest, HttpsDomain, ListDomainsRequest, LiveFile,
    Problem, SetHttpsRequest, UnsetHttpsRequest, fetch_domain_reply::Result as Fetched,
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    Failure,
    address::{Admin, read},
    age::rfc3339,
    args::SetDomain,
    tables,
};

pub(crate) async fn list(admin: &mut Admin, as_json: bool) -> Result<(), Failure> {
    let domains = ask(admin, "").await?;
    if as_json {
        say!("{}", Value::from_iter(domains.iter().map(info_json)));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["domain", "aliases", "managers", "fetched", "state"]);
    for info in domains {
        let aliases = if info.live { info.aliases.to_string() } else { "no live copy".to_owned() };
        let (fetched, state) = info.https.as_ref().map_or_else(
            || ("-".to_owned(), String::new()),
            |https| (time(https.fetched_ms), state(https)),
        );
        table.add_row([info.domain, aliases, info.managers.to_string(), fetched, state]);
    }
    say!("{table}");
    Ok(())
}

pub(crate) async fn show(admin: &mut Admin, domain: &str, as_json: bool) -> Result<(), Failure> {
    let domains = ask(admin, domain).await?;
    for info in domains {
        if as_json {
            say!("{}", info_json(&info));
            return Ok(());
        }
        say!("{}", info.domain);
        say!("  aliases:       {} with {} addresses", info.aliases, info.addresses);
        say!("  managers:      {}", info.managers);
        match &info.https {
            None => say!("  not fetched"),
            Some(https) => print_https(https, info.own_ca),
        }
    }
    Ok(())
}

pub(crate) async fn set(admin: &mut Admin, asked: SetDomain, as_json: bool) -> Result<(), Failure> {
    let SetDomain { domain, url, user, password_file, ca_file, .. } = asked;
    let (Some(url), Some(user), Some(password_file)) = (url, user, password_file) else {
        let files = [("aliases", asked.aliases), ("managers", asked.managers)];
        let place = format!("domains/{domain}");
        return tables::set(admin, &place, &files, asked.reason, asked.force, as_json).await;
    };
    let text = Zeroizing::new(read(&password_file)?);
    // An editor ends the line; a password does not.
    let password = text
        .strip_suffix('\n')
        .map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text))
        .to_owned();
    let ca_pem = ca_file.map(|path| read(&path)).transpose()?.unwrap_or_default();
    let request = SetHttpsRequest { domain: domain.clone(), url, user, password, ca_pem };
    let replaced = admin.set_https(request).await?.into_inner().replaced;
    if as_json {
        say!("{}", json!({ "domain": domain, "replaced": replaced }));
    } else {
        say!(
            "{domain} is fetched from there now: `ppswctl domains show {domain}` tells how it goes"
        );
    }
    Ok(())
}

pub(crate) async fn unset(admin: &mut Admin, domain: &str, as_json: bool) -> Result<(), Failure> {
    admin.unset_https(UnsetHttpsRequest { domain: domain.to_owned() }).await?;
    if as_json {
        say!("{}", json!({ "domain": domain }));
    } else {
        say!("{domain} is not fetched any more; what was fetched last stays live");
    }
    Ok(())
}

/// Exit 1 if the file cannot be fetched or used.
pub(crate) async fn fetch(
    admin: &mut Admin,
    domain: &str,
    force: bool,
    as_json: bool,
) -> Result<ExitCode, Failure> {
    let request = FetchDomainRequest { domain: domain.to_owned(), force };
    let result = admin.fetch_domain(request).await?.into_inner().result;
    let (word, live, problem) = match &result {
        Some(Fetched::Live(live)) => {
            (if live.changed { "changed" } else { "unchanged" }, Some(live), None)
        }
        Some(Fetched::NotModified(_)) => ("not-modified", None, None),
        Some(Fetched::Problem(problem)) => ("problem", None, Some(problem)),
        None => return Err(Failure::Refused("an answer that this version does not know".into())),
    };
    if as_json {
        say!(
            "{}",
            json!({
                "domain": domain,
                "result": word,
                "live": live.map(live_json),
                "problem": problem.map(problem_json),
            })
        );
    } else {
        match (live, problem) {
            (_, Some(problem)) => {
                say!("{domain}: {}; the live copy stays as it is", problem.kind);
                problem.text.lines().for_each(|line| say!("  {line}"));
            }
            (Some(live), _) => {
                say!(
                    "{domain}: {word}, {} aliases with {} addresses",
                    live.aliases,
                    live.addresses
                );
                live.remarks.iter().for_each(|remark| say!("  {remark}"));
            }
            (None, None) => say!("{domain}: the server says that the file has not been modified"),
        }
    }
    Ok(if problem.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

pub(crate) async fn check(
    admin: &mut Admin,
    domain: &str,
    mail: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let request = CheckDomainRequest { domain: domain.to_owned(), mail };
    let reply = admin.check_domain(request).await?.into_inner();
    if as_json {
        let letter = (!reply.letter.is_empty()).then_some(&reply.letter);
        say!(
            "{}",
            json!({
                "domain": reply.domain,
                "aliases": reply.aliases,
                "warnings": reply.warnings,
                "incomplete": reply.incomplete,
                "problem": reply.problem.as_ref().map(problem_json),
                "letter": letter,
            })
        );
        return Ok(());
    }
    say!("{}: {} aliases, {} warnings", reply.domain, reply.aliases, reply.warnings.len());
    reply.warnings.iter().for_each(|warning| say!("  {warning}"));
    reply.incomplete.iter().for_each(|text| say!("  not all was looked at: {text}"));
    if let Some(problem) = reply.problem {
        say!("The file that is fetched cannot be used ({}):", problem.kind);
        problem.text.lines().for_each(|line| say!("  {line}"));
    }
    match (mail, reply.letter.as_str()) {
        (true, "") => say!("There is nothing to say: no letter was sent."),
        (true, id) => say!("Sent to postmaster@{} as {id}.", reply.domain),
        (false, _) => {}
    }
    Ok(())
}

async fn ask(admin: &mut Admin, domain: &str) -> Result<Vec<DomainInfo>, Failure> {
    let request = ListDomainsRequest { domain: domain.to_owned() };
    Ok(admin.list_domains(request).await?.into_inner().domains)
}

fn state(https: &HttpsDomain) -> String {
    match (&https.problem, https.succeeded_ms) {
        (Some(problem), _) => format!("{} since {}", problem.kind, time(problem.since_ms)),
        (None, 0) => "not fetched yet".to_owned(),
        (None, _) => "good".to_owned(),
    }
}

fn print_https(https: &HttpsDomain, own_ca: bool) {
    let trust = if own_ca { "authorities of its own" } else { "the authorities of the web" };
    say!("  fetched from:  {}", https.url);
    say!("  as user:       {}, by a server certified by {trust}", https.user);
    say!("  set by:        {} on {}", https.by, time(https.at_ms));
    say!("  last fetch:    {}", time(https.fetched_ms));
    say!("  last good one: {}", time(https.succeeded_ms));
    say!("  last change:   {}", time(https.changed_ms));
    say!("  next fetch:    {}", time(https.next_due_ms));
    if !https.told_fingerprint.is_empty() {
        say!("  managers told: {}", time(https.told_ms));
    }
    if let Some(problem) = &https.problem {
        say!("  problem:       {}, since {}", problem.kind, time(problem.since_ms));
        problem.text.lines().for_each(|line| say!("    {line}"));
    }
    let remarks = https.live.iter().flat_map(|live| &live.remarks);
    remarks.for_each(|remark| say!("  warning:       {remark}"));
}

fn info_json(info: &DomainInfo) -> Value {
    json!({
        "domain": info.domain,
        "live": info.live,
        "aliases": info.aliases,
        "addresses": info.addresses,
        "managers": info.managers,
        "https": info.https.as_ref().map(|https| https_json(https, info.own_ca)),
    })
}

fn https_json(https: &HttpsDomain, own_ca: bool) -> Value {
    json!({
        "url": https.url,
        "user": https.user,
        "own_ca": own_ca,
        "by": https.by,
        "set": rfc3339(https.at_ms),
        "last_fetch": rfc3339(https.fetched_ms),
        "last_success": rfc3339(https.succeeded_ms),
        "last_change": rfc3339(https.changed_ms),
        "next_fetch": rfc3339(https.next_due_ms),
        "told": if https.told_fingerprint.is_empty() { Value::Null } else { rfc3339(https.told_ms) },
        "last_report": rfc3339(https.reported_ms),
        "live": https.live.as_ref().map(live_json),
        "problem": https.problem.as_ref().map(problem_json),
    })
}

fn live_json(live: &LiveFile) -> Value {
    json!({
        "aliases": live.aliases,
        "addresses": live.addresses,
        "changed": live.changed,
        "warnings": live.remarks,
        "etag": live.etag,
        "last_modified": live.last_modified,
    })
}

fn problem_json(problem: &Problem) -> Value {
    json!({ "kind": problem.kind, "text": problem.text, "since": rfc3339(problem.since_ms) })
}

fn time(unix_ms: u64) -> String {
    rfc3339(unix_ms).as_str().unwrap_or("never").to_owned()
}
