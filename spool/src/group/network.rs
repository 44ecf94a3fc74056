//! The sending side: one [`Peer`] per group, target and purpose.
//!
//! Entries go through a bidirectional stream on the bulk connection; heartbeats, votes and transfers are single calls
//! on the control connection, which entries cannot delay.

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use openraft::{
    AnyError, OptionalSend,
    base::{BoxFuture, BoxStream},
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
        StreamAppendResult, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use ppsw_proto::raft::{self as wire, raft_client::RaftClient};
use tokio::time::timeout;
use tonic::transport::Channel;

use super::{
    Dial, GroupId, Lane, ProposeError, Reply, news,
    pace::{Pace, Piece},
    space::Neighbours,
    types::{
        self, Snapshot, TypeConfig, Vote, log_id_from_wire, log_id_to_wire, vote_from_wire,
        vote_to_wire,
    },
};
use crate::{
    NodeId,
    env::Clock,
    faults::{self, Fault},
    limits,
};

/// Version of the protocol between nodes.
pub(super) const PROTOCOL_VERSION: u32 = 1;

/// Makes [`Peer`]s.
#[derive(Clone)]
pub(crate) struct Factory {
    pub(super) dial: Arc<dyn Dial>,
    pub(super) group: GroupId,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) neighbours: Arc<Neighbours>,
    pub(super) pace: Arc<Pace>,
    /// News of commits may wait for entries.
    pub(super) keeps_news: bool,
}

impl Factory {
    /// The way to a node's replica.
    pub(super) fn peer(&self, node: NodeId, heartbeats: bool) -> Peer {
        Peer { of: self.clone(), node, heartbeats }
    }

    /// Keeps what an answer says of its node's disk.
    fn note(&self, node: NodeId, reply: &wire::AppendReply) {
        self.neighbours.note(node, reply.headroom, self.clock.instant());
    }
}

/// The way to one node's replica of one group.
pub(crate) struct Peer {
    of: Factory,
    node: NodeId,
    /// Heartbeats are sent one by one: a stream for each would be made and thrown away.
    heartbeats: bool,
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, _: &openraft::EmptyNode) -> Peer {
        self.peer(target, false)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, _: &openraft::EmptyNode) -> Peer {
        self.peer(target, true)
    }
}

type Answer<T> = Result<T, RPCError<TypeConfig>>;

impl Peer {
    fn client(&self, lane: Lane) -> Answer<RaftClient<Channel>> {
        let channel = self
            .of
            .dial
            .channel(self.node, lane)
            .ok_or_else(|| unreachable(format!("node {} has no known address", self.node)))?;
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(limits::RPC_BYTES_MAX)
            .max_encoding_message_size(limits::RPC_BYTES_MAX))
    }

    fn target(&self) -> Option<wire::Target> {
        Some(wire::Target { version: PROTOCOL_VERSION, node: self.node, group: self.of.group })
    }

    /// Waits for an answer, not for ever.
    async fn answer<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Answer<T> {
        match timeout(limits::RPC_ANSWER_MAX, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(refused(&status)),
            Err(_) => Err(unreachable(format!("node {} does not answer", self.node))),
        }
    }

    async fn ask_for_vote(
        &self,
        rpc: VoteRequest<TypeConfig>,
        pre_vote: bool,
    ) -> Answer<VoteResponse<TypeConfig>> {
        let request = wire::VoteRequest {
            target: self.target(),
            vote: Some(vote_to_wire(&rpc.vote)),
            last: rpc.last_log_id.as_ref().map(log_id_to_wire),
            leadership_transfer: rpc.leadership_transfer,
            pre_vote,
        };
        let mut client = self.client(Lane::Control)?;
        let reply = self.answer(client.vote(request)).await?;
        let vote = reply.vote.as_ref().map(vote_from_wire).ok_or_else(nonsense)?;
        Ok(VoteResponse::new(vote, reply.last.as_ref().map(log_id_from_wire), reply.granted))
    }

    /// Asks this peer to propose an entry as the leader.
    pub(super) async fn propose(
        &self,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Reply, ProposeError> {
        let request = wire::ProposeRequest {
            target: self.target(),
            payload,
            deadline_ms: u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX),
        };
        // It may have arrived: whatever goes wrong from here on leaves it open.
        let open = || ProposeError::Timeout(deadline);
        let mut client = self.client(Lane::Control).map_err(|_| open())?;
        let reply = client.propose(request).await.map_err(|_| open())?.into_inner();
        match reply.kind() {
            wire::propose_reply::Kind::Done => Ok(Reply::Done),
            wire::propose_reply::Kind::Value => Ok(Reply::Value(reply.value)),
            wire::propose_reply::Kind::Refused => Ok(Reply::Refused(reply.why)),
            wire::propose_reply::Kind::NotLeader => Err(ProposeError::NotLeader {
                leader: Some(reply.leader).filter(|node| *node != 0),
            }),
            wire::propose_reply::Kind::Unknown => Err(open()),
        }
    }

    async fn stream<'s, S>(
        &'s self,
        mut input: S,
    ) -> Answer<BoxStream<'s, Answer<StreamAppendResult<TypeConfig>>>>
    where
        S: futures::Stream<Item = AppendEntriesRequest<TypeConfig>>
            + OptionalSend
            + Unpin
            + 'static,
    {
        // The input waits out openraft's back-off: a connection made before asking it for the first request would be
        // tried again at once when it fails, for ever.
        let Some(first) = input.next().await else { return Ok(Box::pin(stream::empty())) };
        if faults::active(Fault::OneVoterMajority) && !first.entries.is_empty() {
            return Ok(self.believe(first));
        }
        let sent = Arc::new(AtomicU64::new(0));
        let (sending, target) = (sent.clone(), self.target());
        let (pace, follower) = (self.of.pace.clone(), Arc::new(Mutex::default()));
        let input = news::gathered(input, self.of.keeps_news);
        let requests = stream::iter([first]).chain(input).then(move |request| {
            let (pace, follower, sending) = (pace.clone(), Arc::clone(&follower), sending.clone());
            async move {
                pace.admit(&follower, piece(&request)).await;
                sending.fetch_add(1, Ordering::Relaxed);
                append_to_wire(target, request)
            }
        });
        let mut client = self.client(Lane::Bulk)?;
        let replies = self.answer(client.append(requests)).await?;
        let exchange =
            Exchange { of: self.of.clone(), node: self.node, replies, sent, answered: 0 };
        let answers = stream::unfold(Some(exchange), |exchange| async {
            let mut exchange = exchange?;
            let answer = exchange.next().await?;
            // After an error, a conflict or a higher vote the rest is worth nothing.
            let goes_on = matches!(answer, Ok(Ok(_)));
            Some((answer, goes_on.then_some(exchange)))
        });
        Ok(Box::pin(answers))
    }
}

impl Peer {
    /// The deliberate fault: the entries count as replicated, whatever becomes of them.
    fn believe(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> BoxStream<'static, Answer<StreamAppendResult<TypeConfig>>> {
        let last = request.entries.last().map(|e| e.log_id);
        if let Ok(mut client) = self.client(Lane::Control) {
            let request = append_to_wire(self.target(), request);
            tokio::spawn(async move { client.heartbeat(request).await });
        }
        Box::pin(stream::iter([Ok(Ok(last))]))
    }
}

/// One stream of append requests, as its replies are read.
struct Exchange {
    of: Factory,
    node: NodeId,
    replies: tonic::Streaming<wire::AppendReply>,
    sent: Arc<AtomicU64>,
    answered: u64,
}

impl Exchange {
    /// The next reply; an error if a request has waited for one for too long. `None`: the peer has ended the stream.
    async fn next(&mut self) -> Option<Answer<StreamAppendResult<TypeConfig>>> {
        loop {
            let sent_before = self.sent.load(Ordering::Relaxed);
            match timeout(limits::APPEND_IDLE_MAX, self.replies.message()).await {
                Ok(Ok(Some(reply))) => {
                    self.answered += 1;
                    self.of.note(self.node, &reply);
                    return Some(reply_from_wire(&reply));
                }
                Ok(Ok(None)) => return None,
                Ok(Err(status)) => return Some(Err(refused(&status))),
                // What was sent during the wait has not waited so long.
                Err(_) if sent_before <= self.answered => {}
                Err(_) => {
                    return Some(Err(unreachable(format!("node {} does not answer", self.node))));
                }
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Answer<AppendEntriesResponse<TypeConfig>> {
        let last = rpc.entries.last().map(|e| e.log_id).or(rpc.prev_log_id);
        let mut client = self.client(Lane::Control)?;
        let request = append_to_wire(self.target(), rpc);
        let reply = self.answer(client.heartbeat(request)).await?;
        self.of.note(self.node, &reply);
        Ok(match reply_from_wire(&reply)? {
            Ok(matched) if matched == last => AppendEntriesResponse::Success,
            Ok(matched) => AppendEntriesResponse::PartialSuccess(matched),
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Answer<BoxStream<'s, Answer<StreamAppendResult<TypeConfig>>>>>
    where
        S: futures::Stream<Item = AppendEntriesRequest<TypeConfig>>
            + OptionalSend
            + Unpin
            + 'static,
    {
        if self.heartbeats {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(self.stream(input))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Answer<VoteResponse<TypeConfig>> {
        self.ask_for_vote(rpc, false).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Answer<VoteResponse<TypeConfig>> {
        self.ask_for_vote(rpc, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let request = wire::CheckpointRequest {
            target: self.target(),
            vote: Some(vote_to_wire(&vote)),
            checkpoint: Some(types::checkpoint_to_wire(&snapshot.meta, snapshot.snapshot)),
        };
        let sent = async {
            let mut client = self.client(Lane::Bulk)?;
            self.answer(client.checkpoint(request)).await
        };
        let reply = sent.await?;
        let vote = reply.vote.as_ref().map(vote_from_wire);
        Ok(SnapshotResponse::new(vote.ok_or_else(nonsense)?))
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        _: RPCOption,
    ) -> Answer<TransferLeaderResponse<TypeConfig>> {
        let request = wire::TransferRequest {
            target: self.target(),
            from: Some(vote_to_wire(req.from_leader())),
            to: *req.to_node_id(),
            last: req.last_log_id().map(log_id_to_wire),
        };
        let mut client = self.client(Lane::Control)?;
        let reply = self.answer(client.transfer(request)).await?;
        Ok(match reply.kind() {
            wire::transfer_reply::Kind::Accepted => Ok(()),
            wire::transfer_reply::Kind::VoteChanged => Err(TransferLeaderError::VoteChanged {
                expected: *req.from_leader(),
                actual: reply.actual_vote.as_ref().map(vote_from_wire).ok_or_else(nonsense)?,
            }),
            wire::transfer_reply::Kind::LogNotFlushed => Err(TransferLeaderError::LogNotFlushed {
                expected: req.last_log_id().cloned(),
                actual: reply.actual_log.as_ref().map(log_id_from_wire),
            }),
            wire::transfer_reply::Kind::Unknown => return Err(nonsense()),
        })
    }
}

/// Asks a group's leader to make the log up to `upto` dispensable.
pub(super) async fn ask_trim(
    dial: &dyn Dial,
    leader: NodeId,
    group: GroupId,
    upto: u64,
) -> Result<(), String> {
    let channel = dial.channel(leader, Lane::Control);
    let channel = channel.ok_or_else(|| format!("node {leader} has no known address"))?;
    let target = Some(wire::Target { version: PROTOCOL_VERSION, node: leader, group });
    let mut client = RaftClient::new(channel);
    let asked = client.trim(wire::TrimRequest { target, upto });
    match timeout(limits::RPC_ANSWER_MAX, asked).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(format!("{}: {}", status.code(), status.message())),
        Err(_) => Err(format!("node {leader} does not answer")),
    }
}

/// What decides on how fast a request is sent.
fn piece(request: &AppendEntriesRequest<TypeConfig>) -> Piece {
    Piece {
        bytes: request.entries.iter().map(|e| types::encode_payload(&e.payload).len()).sum(),
        last: request.entries.last().map(|e| e.log_id.index),
        commit: request.leader_commit.as_ref().map(|id| id.index),
    }
}

fn append_to_wire(
    target: Option<wire::Target>,
    request: AppendEntriesRequest<TypeConfig>,
) -> wire::AppendRequest {
    wire::AppendRequest {
        target,
        vote: Some(vote_to_wire(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_to_wire),
        entries: request
            .entries
            .iter()
            .map(|e| wire::Entry {
                log_id: Some(log_id_to_wire(&e.log_id)),
                payload: types::encode_payload(&e.payload),
            })
            .collect(),
        leader_commit: request.leader_commit.as_ref().map(log_id_to_wire),
    }
}

fn reply_from_wire(reply: &wire::AppendReply) -> Answer<StreamAppendResult<TypeConfig>> {
    let log_id = reply.log_id.as_ref().map(log_id_from_wire);
    match reply.kind() {
        wire::append_reply::Kind::Matched => Ok(Ok(log_id)),
        wire::append_reply::Kind::Conflict => {
            Ok(Err(StreamAppendError::Conflict(log_id.ok_or_else(nonsense)?)))
        }
        wire::append_reply::Kind::HigherVote => {
            let vote = reply.vote.as_ref().map(vote_from_wire).ok_or_else(nonsense)?;
            Ok(Err(StreamAppendError::HigherVote(vote)))
        }
        wire::append_reply::Kind::Unknown => Err(nonsense()),
    }
}

const NONSENSE: &str = "the answer lacks a part that this version needs";

/// Like a silent peer: a reason to wait, as it will not talk otherwise at once.
fn nonsense() -> RPCError<TypeConfig> {
    unreachable(NONSENSE.to_owned())
}

fn unreachable(why: String) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(&AnyError::error(why)))
}

/// Any refusal is a reason to wait before trying again.
fn refused(status: &tonic::Status) -> RPCError<TypeConfig> {
    unreachable(format!("{}: {}", status.code(), status.message()))
}
