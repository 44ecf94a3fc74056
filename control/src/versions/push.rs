//! Pushes, rollbacks and changes of users' tables, from the node that was asked: checks, preparation on the members, and
//! the one entry that makes it active.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use ppsw_proto::control::{self as pb, activate::Version as Which, command::Change};
use prost::Message;
use rand::Rng;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    BlobHash, Content, NewContents, Outcome, VersionError, checks, manifest::Manifest, members,
    prepare,
};
use crate::{
    Compiled, limits,
    plane::{CommandError, Shared},
    state::{State, versions},
};

/// What a push brings.
pub(crate) struct Push {
    pub(crate) files: Vec<pb::FileRef>,
    /// Active when it began.
    pub(crate) expected: u64,
    pub(crate) credit: pb::Credit,
    pub(crate) force: bool,
}

/// Makes the files a version, and active. Their contents lie on this node.
pub(crate) async fn push(shared: &Arc<Shared>, push: Push) -> Result<Outcome, VersionError> {
    versions::check_credit(&push.credit).map_err(VersionError::refused)?;
    let _one_at_a_time = shared.shelf.coordinating.lock().await;
    let state = current(shared).await?;
    state.versions.still(push.expected).map_err(VersionError::refused)?;
    let manifest = Manifest::new(push.files)
        .map_err(|lines| VersionError::Refused { lines, forcible: false })?;
    let encoded = manifest.encode();
    let hash = BlobHash::of(&encoded);
    if state.versions.manifest(state.versions.active) == Some(hash) {
        return Ok(unchanged(&state));
    }
    keep(shared, vec![encoded]).await?;
    let content = Content { manifest: hash, changes: changes_of(&state) };
    let compiled = prepare_here(shared, &content).await?;
    if !push.force {
        let mut lines = shrunk(shared, compiled.as_ref(), None);
        lines.extend(compiled.objections().await);
        if !lines.is_empty() {
            lines.truncate(limits::REFUSAL_LINES_MAX);
            return Err(VersionError::Refused { lines, forcible: true });
        }
    }
    let kept = differing(&state, &manifest);
    let version = pb::NewVersion {
        manifest: hash.to_bytes(),
        // At most VERSION_FILES_MAX.
        files: u32::try_from(manifest.len()).unwrap_or(u32::MAX),
        bytes: manifest.bytes(),
        entries: compiled.entries(),
        forced: push.force,
    };
    let activate = pb::Activate {
        id: command_id(),
        expected: push.expected,
        credit: Some(push.credit),
        version: Some(Which::Push(version)),
    };
    let entries = compiled.entries();
    let done = everywhere(shared, &state, &content, Change::Activate(activate)).await?;
    Ok(Outcome::Activated(pb::ActivatedEverywhere { kept, entries, ..done }))
}

/// Makes a kept version active again.
pub(crate) async fn roll_back(
    shared: &Arc<Shared>,
    version: u64,
    credit: pb::Credit,
) -> Result<Outcome, VersionError> {
    versions::check_credit(&credit).map_err(VersionError::refused)?;
    let _one_at_a_time = shared.shelf.coordinating.lock().await;
    let state = current(shared).await?;
    if !state.versions.any() {
        return Err(VersionError::refused(versions::NOTHING_YET));
    }
    let manifest = state.versions.manifest(version);
    let manifest = manifest.ok_or_else(|| VersionError::refused(versions::not_kept(version)))?;
    if version == state.versions.active {
        return Ok(unchanged(&state));
    }
    let content = Content { manifest, changes: changes_of(&state) };
    // Neither shrinking nor an open relay is asked about: it was, when the version was pushed.
    let compiled = prepare_here(shared, &content).await?;
    let listed = prepare::manifest(shared, manifest, None).await?.0;
    let kept = differing(&state, &listed);
    let activate = pb::Activate {
        id: command_id(),
        expected: state.versions.generation,
        credit: Some(credit),
        version: Some(Which::Rollback(version)),
    };
    let entries = compiled.entries();
    let done = everywhere(shared, &state, &content, Change::Activate(activate)).await?;
    Ok(Outcome::Activated(pb::ActivatedEverywhere { kept, entries, ..done }))
}

/// Lays contents over the active version. If something else becomes active meanwhile, it is made anew, as long as what
/// lies at its paths is what it was to replace.
pub(crate) async fn change(
    shared: &Arc<Shared>,
    new: NewContents,
) -> Result<Outcome, VersionError> {
    let credit = pb::Credit {
        by: new.by.clone(),
        author: new.author.clone(),
        reason: new.reason.clone(),
        at_ms: shared.now().0,
    };
    versions::check_credit(&credit).map_err(VersionError::refused)?;
    if new.files.is_empty() || new.files.len() > limits::CHANGE_PATHS_MAX {
        let max = limits::CHANGE_PATHS_MAX;
        return Err(VersionError::refused(format!("expected 1 to {max} tables")));
    }
    if let Some(file) = new.files.iter().find(|file| !super::is_users_path(&file.path)) {
        return Err(VersionError::refused(format!(
            "{} cannot be changed without a push: expected domains/DOMAIN/aliases, domains/DOMAIN/managers or \
             lists/NAME/members, moderators, managers",
            file.path
        )));
    }
    let _one_at_a_time = shared.shelf.coordinating.lock().await;
    let contents = new.files.iter().filter_map(|file| file.content.clone()).collect();
    keep(shared, contents).await?;
    // One id for all tries: whichever is applied first counts.
    let id = command_id();
    let mut seen = None;
    for _ in 0..limits::CHANGE_TRIES {
        let state = current(shared).await?;
        let generation = state.versions.generation;
        let tried = try_change(shared, &state, &new, &credit, &id, &mut seen).await;
        let overtaken = matches!(&tried, Err(VersionError::Refused { forcible: false, .. }))
            && moved_on(shared, generation).await;
        if !overtaken {
            return tried;
        }
    }
    Err(VersionError::Unable(format!(
        "something else became active {} times meanwhile: try again",
        limits::CHANGE_TRIES
    )))
}

/// What lay at the paths when a change was tried first.
type Seen = Option<BTreeMap<String, Option<BlobHash>>>;

async fn try_change(
    shared: &Arc<Shared>,
    state: &State,
    new: &NewContents,
    credit: &pb::Credit,
    id: &Bytes,
    seen: &mut Seen,
) -> Result<Outcome, VersionError> {
    let Some(mut content) = state.versions.content() else {
        return Err(VersionError::refused(versions::NOTHING_YET));
    };
    let manifest = prepare::manifest(shared, content.manifest, None).await?.0;
    let here = |path: &str| content.changes.get(path).copied().or_else(|| manifest.get(path));
    let now: BTreeMap<_, _> = new.files.iter().map(|f| (f.path.clone(), here(&f.path))).collect();
    checks::as_expected(&new.files, &now, seen.as_ref(), state)?;
    seen.get_or_insert(now);
    let mut paths = Vec::new();
    for file in &new.files {
        let hash = file.content.as_ref().map(|content| BlobHash::of(content));
        let before = match hash {
            Some(hash) => content.changes.insert(file.path.clone(), hash),
            None => content.changes.remove(&file.path),
        };
        if before != hash {
            paths.push((file, hash));
        }
    }
    if paths.is_empty() {
        return Ok(unchanged(state));
    }
    let compiled = prepare_here(shared, &content).await?;
    let names: Vec<&str> = paths.iter().map(|(file, _)| file.path.as_str()).collect();
    let lines = if new.force { vec![] } else { shrunk(shared, compiled.as_ref(), Some(&names)) };
    if !lines.is_empty() {
        return Err(VersionError::Refused { lines, forcible: true });
    }
    let tables: BTreeMap<String, u64> = compiled.tables().into_iter().collect();
    let paths = paths.into_iter().map(|(file, hash)| pb::PathChange {
        path: file.path.clone(),
        sha256: hash.map(BlobHash::to_bytes).unwrap_or_default(),
        bytes: file.content.as_ref().map_or(0, |content| content.len() as u64),
        entries: tables.get(&file.path).copied().unwrap_or(0),
    });
    let change = pb::ChangePaths {
        id: id.clone(),
        expected: state.versions.generation,
        credit: Some(credit.clone()),
        source: new.source.into(),
        paths: paths.collect(),
    };
    let entries = compiled.entries();
    let done = everywhere(shared, state, &content, Change::ChangePaths(change)).await?;
    Ok(Outcome::Activated(pb::ActivatedEverywhere { entries, ..done }))
}

/// Whether another generation than this one became active; it may take a moment until this node hears it.
async fn moved_on(shared: &Shared, generation: u64) -> bool {
    let mut view = shared.view.subscribe();
    let moved = view.wait_for(|state| state.versions.generation > generation);
    timeout(limits::HEARSAY_PATIENCE, moved).await.is_ok()
}

/// The state to work on, once this node runs what is active: only then it can compare.
async fn current(shared: &Arc<Shared>) -> Result<Arc<State>, VersionError> {
    let begun = shared.clock.instant();
    loop {
        let state = shared.state();
        let why = if state.known() {
            match shared.shelf.behind(&state) {
                None => return Ok(state),
                Some(behind) => behind,
            }
        } else {
            "has not heard the control group yet".to_owned()
        };
        if shared.clock.instant().saturating_duration_since(begun) > limits::RUNNING_PATIENCE {
            return Err(VersionError::Unable(format!(
                "node {} {why}: ask another node, or try again later",
                shared.node
            )));
        }
        sleep(limits::RUNNING_POLL).await;
    }
}

/// Prepares the members, proposes, and waits until those that can run it.
async fn everywhere(
    shared: &Arc<Shared>,
    state: &State,
    content: &Content,
    change: Change,
) -> Result<pb::ActivatedEverywhere, VersionError> {
    let begun = shared.clock.instant();
    let elapsed_ms = || {
        let elapsed = shared.clock.instant().saturating_duration_since(begun);
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    };
    let prepared = members::prepare(shared, state, content).await?;
    let prepared_ms = elapsed_ms();
    let value = match shared.command(change).await {
        Ok(value) => value,
        Err(CommandError::Refused(why)) => return Err(VersionError::refused(why)),
        Err(error) => {
            return Err(VersionError::Unable(format!(
                "{error}. It is not known whether it became active: `ppswctl tables versions` tells, and asking for the \
                 same again is safe"
            )));
        }
    };
    let done = pb::Activated::decode(value).map_err(|error| {
        VersionError::Unable(format!("the control group's answer cannot be read: {error}"))
    })?;
    let (running, mut behind) = members::running(shared, prepared.ready, done.generation).await;
    behind.extend(prepared.behind);
    behind.sort_by_key(|left| left.node);
    Ok(pb::ActivatedEverywhere {
        generation: done.generation,
        version: done.version,
        running,
        behind,
        prepared_ms,
        took_ms: elapsed_ms(),
        ..pb::ActivatedEverywhere::default()
    })
}

async fn prepare_here(
    shared: &Arc<Shared>,
    content: &Content,
) -> Result<Arc<dyn Compiled>, VersionError> {
    let begun = shared.clock.instant();
    let prepared = prepare::prepare(shared, content, None).await?;
    let took = shared.clock.instant().saturating_duration_since(begun);
    metrics::histogram!("ppsw_tables_prepare_seconds").record(took.as_secs_f64());
    Ok(prepared.compiled)
}

/// Keeps contents on this node's disk.
async fn keep(shared: &Shared, contents: Vec<Bytes>) -> Result<(), VersionError> {
    let (blobs, now) = (shared.shelf.blobs.clone(), shared.now());
    let kept = spawn_blocking(move || {
        for content in contents {
            let hash = blobs.put(&content)?;
            blobs.lacking([hash], now);
        }
        blobs.sync()
    });
    let kept = kept.await.map_err(|error| VersionError::Unable(error.to_string()))?;
    kept.map_err(|error| VersionError::Unable(error.to_string()))
}

/// Tables (of all, or of these) that have shrunk too much since the running configuration.
fn shrunk(shared: &Shared, new: &dyn Compiled, only: Option<&[&str]>) -> Vec<String> {
    let Some(running) = shared.hooks.running() else { return Vec::new() };
    let mut before = running.tables();
    before.retain(|(table, _)| only.is_none_or(|only| only.contains(&table.as_str())));
    checks::shrunk(&before, &new.tables())
}

fn changes_of(state: &State) -> BTreeMap<String, BlobHash> {
    state.versions.content().map(|content| content.changes).unwrap_or_default()
}

/// Tables that were changed alone and for which a version has something else.
fn differing(state: &State, manifest: &Manifest) -> Vec<String> {
    let changes = changes_of(state).into_iter();
    changes.filter(|(path, hash)| manifest.get(path) != Some(*hash)).map(|(path, _)| path).collect()
}

fn unchanged(state: &State) -> Outcome {
    let (generation, version) = (state.versions.generation, state.versions.active);
    Outcome::Unchanged(pb::Activated { generation, version })
}

fn command_id() -> Bytes {
    let id: [u8; limits::COMMAND_ID_BYTES] = rand::rng().random();
    Bytes::copy_from_slice(&id)
}
