//! Rules that operators leave for messages to come, and the content of a message.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream, stream::BoxStream};
use ppsw_proto::control::{self as pb, command::Change};
use ppsw_spool::queue::{BodyReader, MessageId};
use prost::Message;
use tokio::time::timeout;
use tonic::Status;

use super::filter::Filter;
use crate::{NodeId, Verb, Wanted, limits, plane::Shared};

pub(super) async fn add(
    shared: &Arc<Shared>,
    by: String,
    request: pb::AddStandingRequest,
) -> Result<pb::StandingRule, Status> {
    let pb::AddStandingRequest { order, destination, reason, duration_ms, shed } = request;
    let destination = destination.trim().to_lowercase();
    let longest = u64::try_from(limits::STANDING_LIFETIME_MAX.as_millis()).unwrap_or(u64::MAX);
    if duration_ms == 0 || duration_ms > longest {
        return Err(Status::invalid_argument(format!(
            "expected a duration of up to {} days",
            limits::STANDING_LIFETIME_MAX.as_secs() / 86_400
        )));
    }
    let order = match order {
        Some(order) => Some(checked(pb::OperateRequest { by: by.clone(), ..order }, shared)?),
        None if destination.is_empty() && shed.is_none() => {
            return Err(Status::invalid_argument("expected a domain or a host to suspend"));
        }
        None => None,
    };
    if let Some(pb::Shed { personality, percent }) = &shed {
        if !(1..=100).contains(percent) {
            return Err(Status::invalid_argument("expected a share from 1% to 100%"));
        }
        let known = shared.hooks.personalities();
        if !known.contains(personality) {
            return Err(Status::invalid_argument(format!(
                "no personality `{personality}`; there are {}",
                known.join(", ")
            )));
        }
    }
    let reason = order.as_ref().map_or(reason, |order| order.reason.clone()).trim().to_owned();
    if reason.is_empty() || reason.len() > limits::REASON_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "expected a --reason of up to {} bytes, for the records",
            limits::REASON_BYTES_MAX
        )));
    }
    if reason.chars().any(char::is_control) {
        return Err(Status::invalid_argument("expected a --reason in one line"));
    }
    let since_ms = shared.now().0;
    let rule = pb::StandingRule {
        id: 0,
        order,
        destination,
        shed,
        by,
        reason,
        since_ms,
        until_ms: since_ms.saturating_add(duration_ms),
        nonce: rand::random::<[u8; 16]>().to_vec().into(),
    };
    let added =
        shared.command_heard(Change::AddStanding(pb::AddStanding { rule: Some(rule) })).await?;
    let rule = pb::StandingRule::decode(added)
        .map_err(|error| Status::internal(format!("an answer that is no rule: {error}")))?;
    tracing::info!(rule = rule.id, by = rule.by, reason = rule.reason, "a standing rule");
    Ok(rule)
}

/// An order that makes sense for messages to come.
fn checked(order: pb::OperateRequest, shared: &Shared) -> Result<pb::OperateRequest, Status> {
    Filter::new(order.filter.clone(), shared.now())?;
    let wanted = Wanted::new(&order)?;
    if matches!(wanted.verb, Verb::Retry | Verb::Release) {
        return Err(Status::invalid_argument(
            "expected hold, bounce, drop or redirect: others cannot stand",
        ));
    }
    let filter = order.filter.clone().unwrap_or_default();
    let now_only = !filter.ids.is_empty()
        || filter.node != 0
        || !filter.state.is_empty()
        || filter.older_than_ms != 0
        || filter.younger_than_ms != 0;
    if now_only {
        return Err(Status::invalid_argument(
            "expected --sender, --recipient or --domain: a rule that stands is about messages to come",
        ));
    }
    Ok(order)
}

/// Those that stand at this time.
pub(crate) fn list(shared: &Shared) -> Vec<pb::StandingRule> {
    let (state, now) = (shared.state(), shared.now().0);
    state.standing.values().filter(|rule| now < rule.until_ms).cloned().collect()
}

pub(super) async fn cancel(
    shared: &Arc<Shared>,
    by: &str,
    request: pb::CancelStandingRequest,
) -> Result<Vec<pb::StandingRule>, Status> {
    let destination = request.destination.trim().to_lowercase();
    let meant = |rule: &pb::StandingRule| {
        let sheds = rule.shed.as_ref().is_some_and(|shed| {
            request.personality == "*" || request.personality == shed.personality
        });
        let suspends = !destination.is_empty() && rule.destination == destination;
        request.ids.contains(&rule.id) || suspends || sheds
    };
    let mut rules = list(shared);
    rules.retain(meant);
    let stands = |id: &&u64| !rules.iter().any(|rule| rule.id == **id);
    if let Some(missing) = request.ids.iter().find(stands) {
        return Err(Status::not_found(format!(
            "no rule {missing} stands: `ppswctl queue rules` shows those that do"
        )));
    }
    if rules.is_empty() && !request.personality.is_empty() {
        return Err(Status::not_found("nothing of it is shed: `ppswctl shed list` shows what is"));
    }
    if rules.is_empty() {
        return Err(Status::not_found(format!(
            "{destination} is not suspended: `ppswctl queue rules` shows what is"
        )));
    }
    let ids: Vec<u64> = rules.iter().map(|rule| rule.id).collect();
    tracing::info!(?ids, by, "standing rules cancelled");
    shared.command_heard(Change::CancelStanding(pb::CancelStanding { ids })).await?;
    Ok(rules)
}

type Chunks = BoxStream<'static, Result<pb::CatChunk, Status>>;

/// The content of a message of a partition that this node leads.
pub(super) fn cat_here(shared: &Shared, id: &str) -> Result<Chunks, Status> {
    let id: MessageId = id.parse().map_err(|_| {
        Status::invalid_argument(format!("expected a message id like 1vN3kq-000001-02, not `{id}`"))
    })?;
    let found = shared.led().into_iter().find_map(|partition| {
        let message = partition.get(id)?;
        Some(partition.body(&message))
    });
    let body = found.ok_or_else(|| Status::not_found(format!("no message {id} in the queue")))?;
    Ok(pieces(body).boxed())
}

/// The content of a message, wherever it is.
pub(super) async fn cat_anywhere(shared: &Arc<Shared>, id: &str) -> Result<Chunks, Status> {
    let mut answer = match cat_here(shared, id) {
        Err(status) if status.code() == tonic::Code::NotFound => status,
        answer => return answer,
    };
    let mut silent = Vec::new();
    for node in shared.state().members.keys().copied().filter(|node| *node != shared.node) {
        let Some(mut client) = shared.dialer.node(node) else { continue };
        let asked = client.cat(pb::CatRequest { id: id.to_owned() });
        match timeout(limits::QUEUE_PATIENCE, asked).await {
            Ok(Ok(stream)) => return Ok(patient(stream.into_inner()).boxed()),
            Ok(Err(status)) if status.code() == tonic::Code::NotFound => answer = status,
            _ => silent.push(node),
        }
    }
    if silent.is_empty() {
        return Err(answer);
    }
    let silent: Vec<String> = silent.iter().map(NodeId::to_string).collect();
    Err(Status::unavailable(format!(
        "{}, as far as is known: nodes {} do not answer",
        answer.message(),
        silent.join(", ")
    )))
}

fn pieces(body: BodyReader) -> impl Stream<Item = Result<pb::CatChunk, Status>> + Send {
    stream::try_unfold((body, Bytes::new()), |(mut body, mut left)| async move {
        while left.is_empty() {
            match body.next().await {
                Ok(Some(bytes)) => left = bytes,
                Ok(None) => return Ok(None),
                Err(error) => {
                    return Err(Status::internal(format!("it cannot be read: {error}")));
                }
            }
        }
        let content = left.split_to(left.len().min(limits::CAT_CHUNK_BYTES));
        Ok(Some((pb::CatChunk { content }, (body, left))))
    })
}

/// What another node sends, as long as it does.
fn patient(
    chunks: tonic::Streaming<pb::CatChunk>,
) -> impl Stream<Item = Result<pb::CatChunk, Status>> + Send {
    const PATIENCE: Duration = limits::QUEUE_PATIENCE;
    stream::try_unfold(chunks, |mut chunks| async move {
        match timeout(PATIENCE, chunks.message()).await {
            Ok(Ok(Some(chunk))) => Ok(Some((chunk, chunks))),
            Ok(Ok(None)) => Ok(None),
            Ok(Err(status)) => Err(status),
            Err(_) => Err(Status::unavailable("its node does not answer any more")),
        }
    })
}
