//! The receiving side: the gRPC service that other nodes' replicas call.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, VoteRequest,
};
use ppsw_proto::raft::{self as wire, raft_server};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Group, Groups, ProposeError, Reply,
    network::PROTOCOL_VERSION,
    types::{
        self, Snapshot, TypeConfig, log_id_from_wire, log_id_to_wire, vote_from_wire, vote_to_wire,
    },
};
use crate::limits;

/// Serves the groups of this node.
#[derive(Clone)]
pub(crate) struct Service {
    groups: Groups,
}

impl Service {
    pub(crate) fn new(groups: Groups) -> Self {
        Self { groups }
    }

    /// The replica that a request is for.
    fn replica(&self, target: Option<wire::Target>) -> Result<Group, Status> {
        let target = target.ok_or_else(|| Status::invalid_argument("no target"))?;
        if target.version != PROTOCOL_VERSION {
            return Err(Status::failed_precondition(format!(
                "protocol version {} asked, {PROTOCOL_VERSION} spoken here",
                target.version
            )));
        }
        if target.node != self.groups.node() {
            // A connection to the wrong node must never look like the right one's answer.
            return Err(Status::failed_precondition(format!(
                "this is node {}, not {}",
                self.groups.node(),
                target.node
            )));
        }
        self.groups
            .get(target.group)
            .ok_or_else(|| Status::unavailable(format!("group {} does not run here", target.group)))
    }
}

impl Service {
    /// Adds what this node's disk can take.
    fn with_space(&self, mut reply: wire::AppendReply) -> wire::AppendReply {
        reply.headroom = Some(self.groups.log().space().headroom());
        reply
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<wire::AppendReply, Status>> + Send>>;

#[tonic::async_trait]
impl raft_server::Raft for Service {
    type AppendStream = Replies;

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let mut requests = request.into_inner();
        let this = self.clone();
        // The answer to the call is given at once: the client waits for it before it looks at replies.
        let replies = async_stream(move |replies| async move {
            let Ok(Some(first)) = requests.message().await else { return };
            let target = first.target;
            let group = match this.replica(target) {
                Ok(group) => group,
                Err(status) => {
                    let _ = replies.send(Err(status)).await;
                    return;
                }
            };
            let full = Arc::new(AtomicBool::new(false));
            let (turned_away, log) = (full.clone(), this.groups.log().clone());
            let entries = futures::stream::iter([Ok(first)])
                .chain(requests)
                .take_while(move |request: &Result<wire::AppendRequest, Status>| {
                    let is_entries = request.as_ref().is_ok_and(|r| !r.entries.is_empty());
                    let refused = is_entries && !log.takes_entries();
                    turned_away.store(refused, Ordering::Relaxed);
                    futures::future::ready(!refused)
                })
                // Anything that is not understood ends the stream; the peer begins a new one.
                .map(move |request: Result<wire::AppendRequest, Status>| {
                    let request = request.ok().filter(|request| request.target == target)?;
                    append_from_wire(&request)
                        .inspect_err(
                            |error| tracing::warn!(%error, "entries that are not understood"),
                        )
                        .ok()
                })
                .take_while(|request| futures::future::ready(request.is_some()))
                .filter_map(futures::future::ready);
            let mut results = Box::pin(group.raft().stream_append(Box::pin(entries)));
            while let Some(result) = results.next().await {
                let reply = match result {
                    Ok(result) => Ok(this.with_space(reply_to_wire(result))),
                    Err(fatal) => Err(Status::unavailable(fatal.to_string())),
                };
                let ends = reply.is_err();
                if replies.send(reply).await.is_err() || ends {
                    return;
                }
            }
            if full.load(Ordering::Relaxed) {
                // The leader waits before it tries again.
                let why = "the disk is full: what is left is for votes and purges";
                let _ = replies.send(Err(Status::resource_exhausted(why))).await;
            }
        });
        Ok(Response::new(replies))
    }

    async fn heartbeat(
        &self,
        request: Request<wire::AppendRequest>,
    ) -> Result<Response<wire::AppendReply>, Status> {
        let request = request.into_inner();
        let group = self.replica(request.target)?;
        let raft = group.raft();
        let rpc = append_from_wire(&request)?;
        let previous = rpc.prev_log_id;
        let last = rpc.entries.last().map(|e| e.log_id).or(previous);
        let answer = raft.append_entries(rpc).await.map_err(unavailable)?;
        Ok(Response::new(self.with_space(match answer {
            AppendEntriesResponse::Success => reply_to_wire(Ok(last)),
            AppendEntriesResponse::PartialSuccess(matched) => reply_to_wire(Ok(matched)),
            AppendEntriesResponse::HigherVote(vote) => {
                reply_to_wire(Err(StreamAppendError::HigherVote(vote)))
            }
            AppendEntriesResponse::Conflict => match previous {
                Some(previous) => reply_to_wire(Err(StreamAppendError::Conflict(previous))),
                None => return Err(Status::internal("a conflict without a previous entry")),
            },
        })))
    }

    async fn vote(
        &self,
        request: Request<wire::VoteRequest>,
    ) -> Result<Response<wire::VoteReply>, Status> {
        let request = request.into_inner();
        let group = self.replica(request.target)?;
        let raft = group.raft();
        let vote = request.vote.as_ref().map(vote_from_wire).ok_or_else(incomplete)?;
        let mut rpc = VoteRequest::new(vote, request.last.as_ref().map(log_id_from_wire));
        rpc.leadership_transfer = request.leadership_transfer;
        if group.is_on_probation() && !rpc.leadership_transfer {
            return Err(Status::unavailable(
                "just started: a leader may still count on this replica",
            ));
        }
        let answer = if request.pre_vote { raft.pre_vote(rpc).await } else { raft.vote(rpc).await };
        let answer = answer.map_err(unavailable)?;
        Ok(Response::new(wire::VoteReply {
            vote: Some(vote_to_wire(&answer.vote)),
            granted: answer.vote_granted,
            last: answer.last_log_id.as_ref().map(log_id_to_wire),
        }))
    }

    async fn transfer(
        &self,
        request: Request<wire::TransferRequest>,
    ) -> Result<Response<wire::TransferReply>, Status> {
        let request = request.into_inner();
        let group = self.replica(request.target)?;
        let raft = group.raft();
        let from = request.from.as_ref().map(vote_from_wire).ok_or_else(incomplete)?;
        let last = request.last.as_ref().map(log_id_from_wire);
        let answer = raft
            .handle_transfer_leader(TransferLeaderRequest::new(from, request.to, last))
            .await
            .map_err(unavailable)?;
        let mut reply = wire::TransferReply::default();
        match answer {
            Ok(()) => reply.set_kind(wire::transfer_reply::Kind::Accepted),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                reply.set_kind(wire::transfer_reply::Kind::VoteChanged);
                reply.actual_vote = Some(vote_to_wire(&actual));
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                reply.set_kind(wire::transfer_reply::Kind::LogNotFlushed);
                reply.actual_log = actual.as_ref().map(log_id_to_wire);
            }
        }
        Ok(Response::new(reply))
    }

    async fn trim(
        &self,
        request: Request<wire::TrimRequest>,
    ) -> Result<Response<wire::TrimReply>, Status> {
        let request = request.into_inner();
        self.replica(request.target)?.want_trim(request.upto);
        Ok(Response::new(wire::TrimReply {}))
    }

    async fn propose(
        &self,
        request: Request<wire::ProposeRequest>,
    ) -> Result<Response<wire::ProposeReply>, Status> {
        let request = request.into_inner();
        let group = self.replica(request.target)?;
        let deadline =
            Duration::from_millis(request.deadline_ms.into()).min(limits::FORWARDED_PROPOSAL_MAX);
        let mut reply = wire::ProposeReply::default();
        match group.propose(request.payload, deadline).await {
            Ok(Reply::Done) => reply.set_kind(wire::propose_reply::Kind::Done),
            Ok(Reply::Value(value)) => {
                reply.set_kind(wire::propose_reply::Kind::Value);
                reply.value = value;
            }
            Ok(Reply::Refused(why)) => {
                reply.set_kind(wire::propose_reply::Kind::Refused);
                reply.why = why;
            }
            Err(ProposeError::NotLeader { leader }) => {
                reply.set_kind(wire::propose_reply::Kind::NotLeader);
                reply.leader = leader.unwrap_or(0);
            }
            Err(ProposeError::Timeout(_) | ProposeError::Stopped(_)) => {}
        }
        Ok(Response::new(reply))
    }

    async fn checkpoint(
        &self,
        request: Request<wire::CheckpointRequest>,
    ) -> Result<Response<wire::CheckpointReply>, Status> {
        let request = request.into_inner();
        let group = self.replica(request.target)?;
        let raft = group.raft();
        let vote = request.vote.as_ref().map(vote_from_wire).ok_or_else(incomplete)?;
        let stored = request.checkpoint.ok_or_else(incomplete)?;
        let (meta, snapshot) = types::checkpoint_from_wire(stored)
            .map_err(|e| Status::failed_precondition(e.to_string()))?;
        let answer = raft
            .install_full_snapshot(vote, Snapshot { meta, snapshot })
            .await
            .map_err(unavailable)?;
        Ok(Response::new(wire::CheckpointReply { vote: Some(vote_to_wire(&answer.vote)) }))
    }
}

/// A stream of replies that a task produces; the task ends when nobody reads any longer.
fn async_stream<F>(
    produce: impl FnOnce(tokio::sync::mpsc::Sender<Result<wire::AppendReply, Status>>) -> F,
) -> Replies
where
    F: Future<Output = ()> + Send + 'static,
{
    /// Replies are small, and the client reads them as they come.
    const REPLIES_WAITING_MAX: usize = 64;
    let (tell, replies) = tokio::sync::mpsc::channel(REPLIES_WAITING_MAX);
    tokio::spawn(produce(tell));
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(replies))
}

pub(super) fn append_from_wire(
    request: &wire::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    let vote = request.vote.as_ref().map(vote_from_wire).ok_or_else(incomplete)?;
    let entries = request
        .entries
        .iter()
        .map(|e| {
            let id = e.log_id.ok_or_else(incomplete)?;
            let position = super::Position { term: id.term, index: id.index };
            types::entry(position, &e.payload)
                .map_err(|e| Status::failed_precondition(e.to_string()))
        })
        .collect::<Result<Vec<_>, Status>>()?;
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id: request.previous.as_ref().map(log_id_from_wire),
        entries,
        leader_commit: request.leader_commit.as_ref().map(log_id_from_wire),
    })
}

fn reply_to_wire(result: StreamAppendResult<TypeConfig>) -> wire::AppendReply {
    let mut reply = wire::AppendReply::default();
    match result {
        Ok(matched) => {
            reply.set_kind(wire::append_reply::Kind::Matched);
            reply.log_id = matched.as_ref().map(log_id_to_wire);
        }
        Err(StreamAppendError::Conflict(id)) => {
            reply.set_kind(wire::append_reply::Kind::Conflict);
            reply.log_id = Some(log_id_to_wire(&id));
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            reply.set_kind(wire::append_reply::Kind::HigherVote);
            reply.vote = Some(vote_to_wire(&vote));
        }
    }
    reply
}

fn incomplete() -> Status {
    Status::invalid_argument("the request lacks a part that this version needs")
}

fn unavailable(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}
