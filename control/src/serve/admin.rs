//! What operators ask: `ppswctl` calls any node, which asks the others.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, future::join_all, stream, stream::BoxStream};
use ppsw_proto::control::{
    self as pb, admin_server::Admin, command::Change, drain_progress::Phase,
};
use tonic::{Request, Response, Status};

use super::{log, queue};
use crate::{
    NodeId, limits,
    pki::{self, Peer},
    plane::{CONTROL, Shared},
    state::State,
    token::{self, Token},
};

pub(crate) struct Service(pub(crate) Arc<Shared>);

#[tonic::async_trait]
impl Admin for Service {
    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        let shared = &self.0;
        let state = shared.state();
        let reports = shared.ask_all(&state).await;
        let partitions = state
            .partitions
            .iter()
            .map(|(id, wanted)| group_status(*id, wanted, &reports))
            .collect();
        let nodes = state.members.values().map(|m| node_status(m, &state, &reports)).collect();
        Ok(Response::new(pb::StatusReply {
            cluster: shared.identity.cluster.clone(),
            asked: shared.node,
            nodes,
            partitions,
            control: Some(group_status(CONTROL, &[], &reports)),
        }))
    }

    async fn log(&self, _: Request<pb::LogRequest>) -> Result<Response<pb::LogReply>, Status> {
        Ok(Response::new(log::everywhere(&self.0).await))
    }

    type QueueStream = BoxStream<'static, Result<pb::QueuePage, Status>>;

    async fn queue(
        &self,
        request: Request<pb::QueueRequest>,
    ) -> Result<Response<Self::QueueStream>, Status> {
        let request = request.into_inner();
        // Checked here, so that a mistake is one error and not one for each node.
        queue::Filter::new(request.filter.clone(), self.0.now())?;
        let nodes = self.asked(request.filter.as_ref())?;
        let shared = Arc::clone(&self.0);
        let streams =
            nodes.into_iter().map(move |node| pages(Arc::clone(&shared), node, request.clone()));
        // One node after the other: bounded memory here, and a stable order.
        Ok(Response::new(stream::iter(streams).flatten().map(Ok).boxed()))
    }

    async fn summarise(
        &self,
        request: Request<pb::QueueRequest>,
    ) -> Result<Response<pb::QueueSummary>, Status> {
        let request = request.into_inner();
        let filter = queue::Filter::new(request.filter.clone(), self.0.now())?;
        let nodes = self.asked(request.filter.as_ref())?;
        let parts = nodes.into_iter().map(|node| summary(&self.0, node, &filter, &request));
        Ok(Response::new(queue::merge(join_all(parts).await)))
    }

    async fn drain(
        &self,
        request: Request<pb::DrainRequest>,
    ) -> Result<Response<pb::DrainReply>, Status> {
        let by = caller(&request);
        let pb::DrainRequest { node, force } = request.into_inner();
        let shared = &self.0;
        let state = shared.state();
        if !state.members.contains_key(&node) {
            return Err(unknown(node));
        }
        if !force && !state.drained(node) {
            let reports = shared.ask_all(&state).await;
            drain_is_safe(node, &state, &reports).map_err(Status::failed_precondition)?;
        }
        tracing::info!(node, by, force, "drain asked for");
        let drain = pb::StartDrain { node, by, at_ms: shared.now().0, force };
        shared.command(Change::StartDrain(drain)).await?;
        Ok(Response::new(pb::DrainReply {}))
    }

    async fn undrain(
        &self,
        request: Request<pb::UndrainRequest>,
    ) -> Result<Response<pb::UndrainReply>, Status> {
        let by = caller(&request);
        let node = request.into_inner().node;
        if !self.0.state().members.contains_key(&node) {
            return Err(unknown(node));
        }
        tracing::info!(node, by, "undrain asked for");
        self.0.command(Change::EndDrain(pb::EndDrain { node })).await?;
        Ok(Response::new(pb::UndrainReply {}))
    }

    async fn make_token(
        &self,
        request: Request<pb::MakeTokenRequest>,
    ) -> Result<Response<pb::MakeTokenReply>, Status> {
        let by = caller(&request);
        let asked = Duration::from_millis(request.into_inner().lifetime_ms);
        let lifetime = if asked.is_zero() { limits::TOKEN_LIFETIME } else { asked };
        if lifetime > limits::TOKEN_LIFETIME_MAX {
            return Err(Status::invalid_argument(format!(
                "expected a lifetime of at most {} days, so that no forgotten token stays valid",
                limits::TOKEN_LIFETIME_MAX.as_secs() / 86_400
            )));
        }
        let shared = &self.0;
        let fingerprint = pki::fingerprint(&shared.identity.ca)
            .map_err(|error| Status::internal(error.to_string()))?;
        let token = Token::new(&fingerprint);
        let hash = token::hash(&token.secret);
        let now = shared.now();
        let expires_ms = now.plus(lifetime).0;
        let create =
            pb::CreateToken { hash: hash.clone().into(), created_ms: now.0, expires_ms, by };
        shared.command(Change::CreateToken(create)).await?;
        let reply = pb::MakeTokenReply { id: token::id(&hash), token: token.to_line(), expires_ms };
        Ok(Response::new(reply))
    }

    async fn list_tokens(
        &self,
        _: Request<pb::ListTokensRequest>,
    ) -> Result<Response<pb::ListTokensReply>, Status> {
        let now_ms = self.0.now().0;
        let state = self.0.state();
        let tokens = state.tokens.iter().map(|(id, token)| pb::TokenInfo {
            id: id.clone(),
            created_ms: token.created_ms,
            expires_ms: token.expires_ms,
            by: token.by.clone(),
            expired: token.expires_ms <= now_ms,
        });
        Ok(Response::new(pb::ListTokensReply { tokens: tokens.collect() }))
    }

    async fn drop_token(
        &self,
        request: Request<pb::DropTokenRequest>,
    ) -> Result<Response<pb::DropTokenReply>, Status> {
        let id = request.into_inner().id;
        self.0.command(Change::RevokeToken(pb::RevokeToken { id })).await?;
        Ok(Response::new(pb::DropTokenReply {}))
    }
}

impl Service {
    /// The nodes that a queue question is for.
    fn asked(&self, filter: Option<&pb::QueueFilter>) -> Result<Vec<NodeId>, Status> {
        let state = self.0.state();
        match filter.map_or(0, |filter| filter.node) {
            0 => Ok(state.members.keys().copied().collect()),
            node if state.members.contains_key(&node) => Ok(vec![node]),
            node => Err(unknown(node)),
        }
    }
}

/// One node's pages; a node that does not answer, or stops answering, is named in the last page.
fn pages(
    shared: Arc<Shared>,
    node: NodeId,
    request: pb::QueueRequest,
) -> BoxStream<'static, pb::QueuePage> {
    let silent = move || pb::QueuePage { silent: vec![node], ..pb::QueuePage::default() };
    if node == shared.node {
        return match queue::Filter::new(request.filter, shared.now()) {
            Ok(filter) => queue::pages_here(shared, filter).boxed(),
            Err(_) => stream::once(async move { silent() }).boxed(),
        };
    }
    let opened = async move {
        let mut client = shared.dialer.node(node)?;
        let asked = tokio::time::timeout(limits::QUEUE_PATIENCE, client.queue(request)).await;
        Some(asked.ok()?.ok()?.into_inner())
    };
    stream::once(opened)
        .flat_map(move |pages| match pages {
            None => stream::once(async move { silent() }).boxed(),
            Some(pages) => stream::unfold(Some(pages), move |pages| async move {
                let mut pages = pages?;
                match tokio::time::timeout(limits::QUEUE_PATIENCE, pages.message()).await {
                    Ok(Ok(Some(page))) => Some((page, Some(pages))),
                    Ok(Ok(None)) => None,
                    _ => Some((silent(), None)),
                }
            })
            .boxed(),
        })
        .boxed()
}

async fn summary(
    shared: &Shared,
    node: NodeId,
    filter: &queue::Filter,
    request: &pb::QueueRequest,
) -> pb::QueueSummary {
    if node == shared.node {
        return queue::summary_here(shared, filter);
    }
    let asked = async {
        let mut client = shared.dialer.node(node)?;
        let asked = client.summarise(request.clone());
        let answer = tokio::time::timeout(limits::QUEUE_PATIENCE, asked).await;
        Some(answer.ok()?.ok()?.into_inner())
    };
    let silent = || pb::QueueSummary { silent: vec![node], ..pb::QueueSummary::default() };
    asked.await.unwrap_or_else(silent)
}

/// Whether each partition that the node carries, and the control group, keeps a majority and a possible leader.
fn drain_is_safe(
    node: NodeId,
    state: &State,
    reports: &BTreeMap<NodeId, pb::NodeReport>,
) -> Result<(), String> {
    if !reports.contains_key(&node) {
        return Err(format!(
            "node {node} does not answer, so it cannot hand anything over; other nodes take over what it led by \
             themselves. To keep it from coming back into service, use --force"
        ));
    }
    for (partition, wanted) in &state.partitions {
        let now = group_status(*partition, wanted, reports);
        if !now.voters.contains(&node) {
            continue;
        }
        let heirs = now
            .voters
            .iter()
            .filter(|other| **other != node && reports.contains_key(*other))
            .filter(|other| !state.drained(**other));
        if heirs.count() == 0 {
            return Err(format!(
                "no other node can take partition {partition}: of its voters {:?} only node {node} is up and not \
                 drained. Start another one, or join one and wait until `ppswctl status` shows it as a voter",
                now.voters
            ));
        }
    }
    Ok(())
}

fn node_status(
    member: &pb::Member,
    state: &State,
    reports: &BTreeMap<NodeId, pb::NodeReport>,
) -> pb::NodeStatus {
    let report = reports.get(&member.id).cloned();
    let drain = state.drains.get(&member.id).cloned();
    let phase = report.as_ref().and_then(|r| r.drain.as_ref()).map(pb::DrainProgress::phase);
    let word = match (&report, &drain) {
        (None, _) => "down",
        (Some(_), None) => "up",
        (Some(_), Some(_)) if phase == Some(Phase::Safe) => "drained",
        (Some(_), Some(_)) => "draining",
    };
    pb::NodeStatus { member: Some(member.clone()), state: word.to_owned(), drain, report }
}

/// A group as its leader of the highest term tells, else as its most advanced replica does.
fn group_status(
    id: u32,
    wanted: &[NodeId],
    reports: &BTreeMap<NodeId, pb::NodeReport>,
) -> pb::GroupStatus {
    let told = reports.iter().flat_map(|(node, report)| {
        report.groups.iter().filter(move |group| group.id == id).map(move |group| (*node, group))
    });
    let best = told.max_by_key(|(_, group)| (group.leads, group.term, group.applied_index));
    let Some((node, group)) = best else {
        return pb::GroupStatus { id, wanted: wanted.to_vec(), ..pb::GroupStatus::default() };
    };
    pb::GroupStatus {
        id,
        // A follower's belief may be old: only a node that says itself that it leads counts.
        leader: if group.leads { node } else { 0 },
        voters: group.voters.clone(),
        learners: group.learners.clone(),
        wanted: wanted.to_vec(),
        term: group.term,
        messages: group.messages,
    }
}

fn caller<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map(|peer| peer.name.clone()).unwrap_or_default()
}

fn unknown(node: NodeId) -> Status {
    Status::not_found(format!("there is no node {node}: `ppswctl node list` shows all"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::cluster;

    fn report(node: NodeId, leads: &[u32], term: u64) -> (NodeId, pb::NodeReport) {
        let groups = (0..4)
            .map(|id| pb::GroupReport {
                id,
                term,
                leads: leads.contains(&id),
                voters: vec![1, 2, 3],
                ..pb::GroupReport::default()
            })
            .collect();
        (node, pb::NodeReport { node, groups, ..pb::NodeReport::default() })
    }

    fn placed() -> State {
        let mut state = cluster(3);
        state.partitions = (1..=3).map(|id| (id, vec![1, 2, 3])).collect();
        state
    }

    #[test]
    fn the_leader_of_the_highest_term_counts() {
        let reports = [report(1, &[1], 4), report(2, &[1, 2], 5), report(3, &[], 5)].into();
        assert_eq!(group_status(1, &[], &reports).leader, 2);
        assert_eq!(group_status(3, &[], &reports).leader, 0, "nobody says that it leads");
    }

    #[test]
    fn a_drain_needs_an_heir_that_is_up_and_not_drained() {
        let mut state = placed();
        let all = [report(1, &[1], 1), report(2, &[2], 1), report(3, &[3], 1)].into();
        assert_eq!(drain_is_safe(1, &state, &all), Ok(()));
        let alone: BTreeMap<_, _> = [report(1, &[1], 1)].into();
        assert!(drain_is_safe(1, &state, &alone).is_err());
        assert!(drain_is_safe(2, &state, &alone).unwrap_err().contains("does not answer"));
        for other in [2, 3] {
            state.drains.insert(other, pb::Drain::default());
        }
        assert!(drain_is_safe(1, &state, &all).is_err());
    }

    #[test]
    fn a_node_is_up_down_draining_or_drained() {
        let mut state = placed();
        let mut reports: BTreeMap<_, _> = [report(1, &[], 1), report(2, &[], 1)].into();
        let word = |state: &State, reports: &BTreeMap<_, _>, node: NodeId| {
            node_status(&state.members[&node], state, reports).state
        };
        assert_eq!(word(&state, &reports, 1), "up");
        assert_eq!(word(&state, &reports, 3), "down");
        state.drains.insert(2, pb::Drain::default());
        assert_eq!(word(&state, &reports, 2), "draining");
        let safe = pb::DrainProgress { phase: Phase::Safe.into(), ..pb::DrainProgress::default() };
        reports.get_mut(&2).unwrap().drain = Some(safe);
        assert_eq!(word(&state, &reports, 2), "drained");
    }
}
