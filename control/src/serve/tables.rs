//! Versions of policy and tables: what operators ask for.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use ppsw_proto::control::{self as pb, activate_reply::Result as Wire, file_diff::Kind};
use tokio::task::spawn_blocking;
use tonic::{Status, Streaming};

use crate::{
    events, limits,
    plane::Shared,
    state::versions::{NOTHING_YET, not_kept},
    versions::{
        self, BlobHash, Content, Expected, NewContent, NewContents, Outcome, Push, VersionError,
    },
};

/// Which contents of an operator's files this node lacks, and what a push of them would be made for.
pub(super) async fn offer(
    shared: &Shared,
    files: Vec<pb::FileRef>,
) -> Result<pb::OfferReply, Status> {
    let manifest = versions::Manifest::new(files)
        .map_err(|lines| Status::invalid_argument(lines.join("\n")))?;
    let state = shared.state();
    if !state.known() {
        return Err(Status::unavailable(format!(
            "node {} has not heard the control group yet",
            shared.node
        )));
    }
    let active = &state.versions;
    let unchanged = active.manifest(active.active) == Some(BlobHash::of(&manifest.encode()));
    let (blobs, now) = (shared.shelf.blobs.clone(), shared.now());
    let asked = spawn_blocking(move || blobs.lacking(manifest.hashes(), now)).await;
    let lacking = asked.map_err(|error| Status::internal(error.to_string()))?;
    Ok(pb::OfferReply {
        lacking: lacking.into_iter().map(BlobHash::to_bytes).collect(),
        generation: active.generation,
        version: active.active,
        unchanged,
    })
}

pub(super) async fn upload(
    shared: &Shared,
    chunks: Streaming<pb::BlobChunk>,
) -> Result<pb::UploadReply, Status> {
    let Ok(_permit) = Arc::clone(&shared.shelf.uploads).try_acquire_owned() else {
        let max = limits::UPLOADS_MAX;
        return Err(Status::resource_exhausted(format!(
            "{max} uploads to this node are under way already: try again later"
        )));
    };
    // What tables take of the disk, the spool does not have.
    if shared.groups.log().space().headroom() == 0 {
        return Err(Status::resource_exhausted(format!("the disk of node {} is low", shared.node)));
    }
    let received = versions::receive(&shared.shelf.blobs, chunks).await;
    let received = received.map_err(Status::aborted)?;
    Ok(pb::UploadReply { blobs: received.blobs, bytes: received.bytes })
}

pub(super) async fn push(
    shared: &Arc<Shared>,
    by: String,
    request: pb::PushRequest,
) -> Result<pb::ActivateReply, Status> {
    let pb::PushRequest { files, expected, author, reason, force } = request;
    let credit = pb::Credit { by, author, reason, at_ms: shared.now().0 };
    tracing::info!(by = credit.by, reason = credit.reason, force, "push");
    let by = credit.by.clone();
    let done = versions::push(shared, Push { files, expected, credit, force }).await;
    reply(shared, ("push", by), done)
}

pub(super) async fn roll_back(
    shared: &Arc<Shared>,
    by: String,
    request: pb::RollbackRequest,
) -> Result<pb::ActivateReply, Status> {
    let pb::RollbackRequest { version, author, reason } = request;
    let credit = pb::Credit { by, author, reason, at_ms: shared.now().0 };
    tracing::info!(by = credit.by, reason = credit.reason, version, "rollback");
    let by = credit.by.clone();
    reply(shared, ("rollback", by), versions::roll_back(shared, version, credit).await)
}

pub(super) async fn change(
    shared: &Arc<Shared>,
    by: String,
    request: pb::ChangeRequest,
) -> Result<pb::ActivateReply, Status> {
    let pb::ChangeRequest { files, author, reason, force } = request;
    if files.len() > limits::CHANGE_PATHS_MAX {
        let max = limits::CHANGE_PATHS_MAX;
        return Err(Status::invalid_argument(format!("at most {max} tables at once")));
    }
    let mut new = Vec::new();
    for file in files {
        let content = match BlobHash::from_bytes(&file.sha256) {
            Some(hash) => Some(uploaded(shared, hash).await?),
            None if file.sha256.is_empty() => None,
            None => return Err(Status::invalid_argument("expected a SHA-256")),
        };
        new.push(NewContent { path: file.path, content, expected: Expected::Anything });
    }
    tracing::info!(by, reason, tables = new.len(), "change of users' tables");
    let source = pb::Source::Edit;
    let new = NewContents { files: new, by: by.clone(), author, reason, source, force };
    reply(shared, ("change", by), versions::change(shared, new).await)
}

async fn uploaded(shared: &Shared, hash: BlobHash) -> Result<Bytes, Status> {
    let blobs = shared.shelf.blobs.clone();
    let read = spawn_blocking(move || blobs.read(&hash)).await;
    let read = read.map_err(|error| Status::internal(error.to_string()))?;
    read.map(Bytes::from).map_err(|error| Status::failed_precondition(error.to_string()))
}

fn reply(
    shared: &Shared,
    (kind, by): (&'static str, String),
    done: Result<Outcome, VersionError>,
) -> Result<pb::ActivateReply, Status> {
    let (result, answer) = match done {
        Ok(Outcome::Activated(activated)) => ("done", Ok(Wire::Activated(activated))),
        Ok(Outcome::Unchanged(active)) => ("unchanged", Ok(Wire::Unchanged(active))),
        Err(VersionError::Refused { lines, forcible }) => {
            // Not the reasons, which quote tables: viewers see events.
            let text = format!("reasons: {}", lines.len());
            let verb = kind.to_owned();
            shared.tell(pb::Event {
                verb,
                by,
                text,
                ..events::Kind::VersionRefused.of(shared.node)
            });
            ("refused", Ok(Wire::Refused(pb::Refusal { lines, forcible })))
        }
        Err(VersionError::Unable(why)) => ("failed", Err(Status::unavailable(why))),
    };
    metrics::counter!("ppsw_tables_pushes_total", "kind" => kind, "result" => result).increment(1);
    answer.map(|result| pb::ActivateReply { result: Some(result) })
}

/// What differs between two versions.
pub(super) async fn diff(
    shared: &Arc<Shared>,
    request: pb::DiffRequest,
) -> Result<pb::DiffReply, Status> {
    let limit = (request.limit as usize).min(limits::DIFF_ENTRIES_MAX);
    let before = files_of(shared, request.a).await?;
    let after = files_of(shared, request.b).await?;
    let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
    paths.sort_unstable();
    paths.dedup();
    paths.retain(|path| before.get(*path) != after.get(*path));
    let omitted = paths.len().saturating_sub(limits::DIFF_FILES_MAX);
    let mut files = Vec::new();
    for path in paths.into_iter().take(limits::DIFF_FILES_MAX) {
        let (a, b) = (before.get(path), after.get(path));
        files.push(file_diff(shared, path, a.copied(), b.copied(), limit).await?);
    }
    Ok(pb::DiffReply { files, omitted: u32::try_from(omitted).unwrap_or(u32::MAX) })
}

async fn file_diff(
    shared: &Arc<Shared>,
    path: &str,
    before: Option<BlobHash>,
    after: Option<BlobHash>,
    limit: usize,
) -> Result<pb::FileDiff, Status> {
    let a = content(shared, before).await?;
    let b = content(shared, after).await?;
    let (hooks, name) = (Arc::clone(&shared.hooks), path.to_owned());
    let compared =
        spawn_blocking(move || hooks.diff(&name, a.as_deref(), b.as_deref(), limit)).await;
    let diff = compared.map_err(|error| Status::internal(error.to_string()))?;
    let kind = match (before, after) {
        (None, _) => Kind::Added,
        (_, None) => Kind::Removed,
        _ => Kind::Changed,
    };
    Ok(pb::FileDiff { path: path.to_owned(), kind: kind.into(), ..diff })
}

async fn content(shared: &Arc<Shared>, hash: Option<BlobHash>) -> Result<Option<Bytes>, Status> {
    match hash {
        None => Ok(None),
        Some(hash) => Ok(Some(versions::read(shared, hash).await.map_err(status)?)),
    }
}

/// The files of a version; 0: of what is active.
async fn files_of(shared: &Arc<Shared>, number: u64) -> Result<BTreeMap<String, BlobHash>, Status> {
    let versions = Arc::clone(&shared.state().versions);
    if !versions.any() {
        return Err(Status::failed_precondition(NOTHING_YET));
    }
    if number == 0 {
        return versions::active_files(shared).await.map_err(status);
    }
    let manifest = versions.manifest(number);
    let manifest = manifest.ok_or_else(|| Status::not_found(not_kept(number)))?;
    let content = Content { manifest, changes: BTreeMap::new() };
    versions::files_of(shared, &content).await.map_err(status)
}

fn status(error: VersionError) -> Status {
    match error {
        VersionError::Refused { lines, .. } => Status::failed_precondition(lines.join("\n")),
        VersionError::Unable(why) => Status::unavailable(why),
    }
}

pub(super) fn get(shared: &Shared, request: &pb::GetRequest) -> Result<pb::GetReply, Status> {
    let running = shared.hooks.running();
    let running = running.ok_or_else(|| Status::unavailable("this node is starting"))?;
    let found = running.look_up(&request.table, &request.key);
    let found = found.ok_or_else(|| {
        Status::not_found(format!(
            "there is no table {:?}: tables are called special_routes, users/cyrus, domains/DOMAIN/aliases or \
             lists/NAME/members",
            request.table
        ))
    })?;
    let at = shared.shelf.running();
    Ok(pb::GetReply { generation: at.generation, version: at.version, ..found })
}

pub(super) async fn tables_status(shared: &Shared) -> pb::TablesStatusReply {
    let state = shared.state();
    let reports = shared.ask_all(&state).await;
    let nodes = state.members.values().map(|member| pb::NodeTables {
        node: member.id,
        name: member.name.clone(),
        report: reports.get(&member.id).and_then(|report| report.tables.clone()),
    });
    pb::TablesStatusReply { versions: Some(state.versions.to_proto()), nodes: nodes.collect() }
}
