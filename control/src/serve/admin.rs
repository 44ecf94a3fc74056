//! What operators ask: `ppswctl` calls any node, which asks the others.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream, stream::BoxStream};
use ppsw_proto::control::{self as pb, admin_server::Admin, command::Change};
use tonic::{Request, Response, Status, Streaming};

use super::{
    domains, explain, filter::Filter, log, operate, pages, queue, standing, tables, watch,
};
use crate::{
    NodeId, Wanted, limits,
    overview::{drain_is_safe, removal_is_safe},
    pki::{self, Peer},
    plane::Shared,
    token::{self, Token},
    view,
};

pub(crate) struct Service(pub(crate) Arc<Shared>);

#[tonic::async_trait]
impl Admin for Service {
    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        Ok(Response::new(view::status(&self.0).await))
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
        Filter::new(request.filter.clone(), self.0.now())?;
        let nodes = self.asked(request.filter.as_ref())?;
        let shared = Arc::clone(&self.0);
        let streams =
            nodes.into_iter().map(move |node| queue_of(Arc::clone(&shared), node, request.clone()));
        // One node after the other: bounded memory here, and a stable order.
        Ok(Response::new(stream::iter(streams).flatten().map(Ok).boxed()))
    }

    async fn summarise(
        &self,
        request: Request<pb::QueueRequest>,
    ) -> Result<Response<pb::QueueSummary>, Status> {
        let request = request.into_inner();
        let filter = Filter::new(request.filter.clone(), self.0.now())?;
        let nodes = self.asked(request.filter.as_ref())?;
        let patience = limits::QUEUE_PATIENCE;
        let sum = queue::summary_of(&self.0, &nodes, &filter, &request, patience);
        Ok(Response::new(sum.await.0))
    }

    type OperateStream = BoxStream<'static, Result<pb::OperatePage, Status>>;

    async fn operate(
        &self,
        request: Request<pb::OperateRequest>,
    ) -> Result<Response<Self::OperateStream>, Status> {
        let by = caller(&request);
        let request = pb::OperateRequest { by, ..request.into_inner() };
        // Checked here, so that a mistake is one error and not one for each node.
        Filter::new(request.filter.clone(), self.0.now())?;
        Wanted::new(&request)?;
        let nodes = self.asked(request.filter.as_ref())?;
        let pages = operate::everywhere(&self.0, nodes, request);
        Ok(Response::new(pages.map(Ok).boxed()))
    }

    type CatStream = BoxStream<'static, Result<pb::CatChunk, Status>>;

    async fn cat(
        &self,
        request: Request<pb::CatRequest>,
    ) -> Result<Response<Self::CatStream>, Status> {
        let (by, id) = (caller(&request), request.into_inner().id);
        // Somebody reads others' mail.
        tracing::info!(by, id, "the content of a message is shown");
        standing::cat_anywhere(&self.0, &id).await.map(Response::new)
    }

    async fn add_standing(
        &self,
        request: Request<pb::AddStandingRequest>,
    ) -> Result<Response<pb::StandingRule>, Status> {
        let by = caller(&request);
        standing::add(&self.0, by, request.into_inner()).await.map(Response::new)
    }

    async fn list_standing(
        &self,
        _: Request<pb::ListStandingRequest>,
    ) -> Result<Response<pb::ListStandingReply>, Status> {
        Ok(Response::new(pb::ListStandingReply { rules: standing::list(&self.0) }))
    }

    async fn cancel_standing(
        &self,
        request: Request<pb::CancelStandingRequest>,
    ) -> Result<Response<pb::CancelStandingReply>, Status> {
        let by = caller(&request);
        let rules = standing::cancel(&self.0, &by, request.into_inner()).await?;
        Ok(Response::new(pb::CancelStandingReply { rules }))
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
        shared.command_heard(Change::StartDrain(drain)).await?;
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
        self.0.command_heard(Change::EndDrain(pb::EndDrain { node })).await?;
        Ok(Response::new(pb::UndrainReply {}))
    }

    async fn remove_node(
        &self,
        request: Request<pb::RemoveNodeRequest>,
    ) -> Result<Response<pb::RemoveNodeReply>, Status> {
        let by = caller(&request);
        let pb::RemoveNodeRequest { node, reason, force } = request.into_inner();
        let shared = &self.0;
        let state = shared.state();
        if !state.members.contains_key(&node) {
            return Err(unknown(node));
        }
        if reason.trim().is_empty() {
            return Err(Status::invalid_argument("expected a --reason, for the records"));
        }
        if !state.removals.contains_key(&node) {
            let reports = shared.ask_all(&state).await;
            removal_is_safe(node, force, &state, &reports).map_err(Status::failed_precondition)?;
        }
        tracing::warn!(node, by, force, reason, "removal asked for");
        let removal = pb::StartRemoval { node, by, reason, at_ms: shared.now().0, forced: force };
        shared.command_heard(Change::StartRemoval(removal)).await?;
        Ok(Response::new(pb::RemoveNodeReply {}))
    }

    async fn set_placement(
        &self,
        request: Request<pb::SetPlacementRequest>,
    ) -> Result<Response<pb::SetPlacementReply>, Status> {
        let by = caller(&request);
        let pb::SetPlacementRequest { voters, replace_after_ms } = request.into_inner();
        tracing::info!(voters, replace_after_ms, by, "placement settings");
        self.0.command_heard(Change::Configure(pb::Configure { voters, replace_after_ms })).await?;
        let settings = pb::Settings { voters, replace_after_ms };
        Ok(Response::new(pb::SetPlacementReply { settings: Some(settings) }))
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
        shared.command_heard(Change::CreateToken(create)).await?;
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

    async fn route(
        &self,
        request: Request<pb::RouteRequest>,
    ) -> Result<Response<pb::RouteReply>, Status> {
        explain::route(&self.0, request.into_inner()).await.map(Response::new)
    }

    type SessionStream = BoxStream<'static, Result<pb::SessionStep, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::SessionInput>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let role = request.extensions().get::<Peer>().map(|peer| peer.role);
        explain::session(&self.0, role, request.into_inner()).await.map(Response::new)
    }

    async fn list_domains(
        &self,
        request: Request<pb::ListDomainsRequest>,
    ) -> Result<Response<pb::ListDomainsReply>, Status> {
        domains::list(&self.0, request.get_ref()).map(Response::new)
    }

    async fn set_https(
        &self,
        request: Request<pb::SetHttpsRequest>,
    ) -> Result<Response<pb::SetHttpsReply>, Status> {
        let by = caller(&request);
        domains::set(&self.0, request.into_inner(), by).await.map(Response::new)
    }

    async fn unset_https(
        &self,
        request: Request<pb::UnsetHttpsRequest>,
    ) -> Result<Response<pb::UnsetHttpsReply>, Status> {
        let by = caller(&request);
        domains::unset(&self.0, request.into_inner().domain, &by).await?;
        Ok(Response::new(pb::UnsetHttpsReply {}))
    }

    async fn fetch_domain(
        &self,
        request: Request<pb::FetchDomainRequest>,
    ) -> Result<Response<pb::FetchDomainReply>, Status> {
        let by = caller(&request);
        let pb::FetchDomainRequest { domain, force } = request.into_inner();
        tracing::info!(domain, by, force, "fetch asked for");
        let fetched = self.0.hooks.fetch_domain(&domain, force).await;
        fetched.map(Response::new).map_err(Status::failed_precondition)
    }

    async fn check_domain(
        &self,
        request: Request<pb::CheckDomainRequest>,
    ) -> Result<Response<pb::CheckDomainReply>, Status> {
        let role = request.extensions().get::<Peer>().map(|peer| peer.role);
        let pb::CheckDomainRequest { domain, mail } = request.into_inner();
        if mail && role != Some(pki::Role::Admin) {
            return Err(Status::permission_denied("letters are only for role admin to send"));
        }
        let checked = self.0.hooks.check_domain(&domain, mail).await;
        checked.map(Response::new).map_err(Status::failed_precondition)
    }

    async fn offer(
        &self,
        request: Request<pb::OfferRequest>,
    ) -> Result<Response<pb::OfferReply>, Status> {
        tables::offer(&self.0, request.into_inner().files).await.map(Response::new)
    }

    async fn upload(
        &self,
        request: Request<Streaming<pb::BlobChunk>>,
    ) -> Result<Response<pb::UploadReply>, Status> {
        tables::upload(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn push(
        &self,
        request: Request<pb::PushRequest>,
    ) -> Result<Response<pb::ActivateReply>, Status> {
        let by = caller(&request);
        tables::push(&self.0, by, request.into_inner()).await.map(Response::new)
    }

    async fn rollback(
        &self,
        request: Request<pb::RollbackRequest>,
    ) -> Result<Response<pb::ActivateReply>, Status> {
        let by = caller(&request);
        tables::roll_back(&self.0, by, request.into_inner()).await.map(Response::new)
    }

    async fn change(
        &self,
        request: Request<pb::ChangeRequest>,
    ) -> Result<Response<pb::ActivateReply>, Status> {
        let by = caller(&request);
        tables::change(&self.0, by, request.into_inner()).await.map(Response::new)
    }

    async fn list_versions(
        &self,
        _: Request<pb::ListVersionsRequest>,
    ) -> Result<Response<pb::ListVersionsReply>, Status> {
        let versions = Some(self.0.state().versions.to_proto());
        Ok(Response::new(pb::ListVersionsReply { versions }))
    }

    async fn diff(
        &self,
        request: Request<pb::DiffRequest>,
    ) -> Result<Response<pb::DiffReply>, Status> {
        tables::diff(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn get(
        &self,
        request: Request<pb::GetRequest>,
    ) -> Result<Response<pb::GetReply>, Status> {
        tables::get(&self.0, request.get_ref()).map(Response::new)
    }

    async fn tables_status(
        &self,
        _: Request<pb::TablesStatusRequest>,
    ) -> Result<Response<pb::TablesStatusReply>, Status> {
        Ok(Response::new(tables::tables_status(&self.0).await))
    }

    type TraceStream = BoxStream<'static, Result<pb::TracePage, Status>>;

    async fn trace(
        &self,
        request: Request<pb::TraceRequest>,
    ) -> Result<Response<Self::TraceStream>, Status> {
        let (by, request) = (caller(&request), request.into_inner());
        let nodes = self.nodes(request.node)?;
        // Somebody looks at who writes to whom.
        tracing::info!(
            by,
            client = request.client,
            sender = request.sender,
            recipient = request.recipient,
            host = request.host,
            "a trace begins"
        );
        let pages = watch::trace_everywhere(&self.0, nodes, &request)?;
        Ok(Response::new(pages.map(Ok).boxed()))
    }

    type EventsStream = BoxStream<'static, Result<pb::EventsPage, Status>>;

    async fn events(
        &self,
        request: Request<pb::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let request = request.into_inner();
        self.nodes(request.node)?;
        let pages = watch::events_everywhere(&self.0, request).await?;
        Ok(Response::new(pages.map(Ok).boxed()))
    }

    async fn drop_token(
        &self,
        request: Request<pb::DropTokenRequest>,
    ) -> Result<Response<pb::DropTokenReply>, Status> {
        let id = request.into_inner().id;
        self.0.command_heard(Change::RevokeToken(pb::RevokeToken { id })).await?;
        Ok(Response::new(pb::DropTokenReply {}))
    }
}

impl Service {
    /// The nodes that a queue question is for.
    fn asked(&self, filter: Option<&pb::QueueFilter>) -> Result<Vec<NodeId>, Status> {
        self.nodes(filter.map_or(0, |filter| filter.node))
    }

    /// One node, or all; 0 is all.
    fn nodes(&self, only: NodeId) -> Result<Vec<NodeId>, Status> {
        let state = self.0.state();
        match only {
            0 => Ok(state.members.keys().copied().collect()),
            node if state.members.contains_key(&node) => Ok(vec![node]),
            node => Err(unknown(node)),
        }
    }
}

/// One node's pages; a node that does not answer, or stops answering, is named in the last page.
fn queue_of(
    shared: Arc<Shared>,
    node: NodeId,
    request: pb::QueueRequest,
) -> BoxStream<'static, pb::QueuePage> {
    let silent = pb::QueuePage { silent: vec![node], ..pb::QueuePage::default() };
    if node == shared.node {
        return match Filter::new(request.filter, shared.now()) {
            Ok(filter) => queue::pages_here(shared, filter).boxed(),
            Err(_) => stream::once(async move { silent }).boxed(),
        };
    }
    let client = shared.dialer.node(node);
    pages::of_node(client.map(|mut client| async move { client.queue(request).await }), silent)
}

fn caller<T>(request: &Request<T>) -> String {
    request.extensions().get::<Peer>().map(|peer| peer.name.clone()).unwrap_or_default()
}

fn unknown(node: NodeId) -> Status {
    Status::not_found(format!("there is no node {node}: `ppswctl node list` shows all"))
}
