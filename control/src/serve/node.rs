//! What nodes ask of each other.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use ppsw_proto::control::{self as pb, node_server::Node};
use ppsw_spool::{group::ProposeError, queue::Outcome};
use tonic::{Request, Response, Status};

use super::{filter::Filter, join, log, operate, queue, standing, watch};
use crate::{
    Wanted, limits,
    pki::Peer,
    plane::{Shared, outcome_from_proto},
    versions::{self, BlobHash},
};

pub(crate) struct Service(pub(crate) Arc<Shared>);

#[tonic::async_trait]
impl Node for Service {
    async fn propose(
        &self,
        request: Request<pb::ProposeRequest>,
    ) -> Result<Response<pb::ProposeReply>, Status> {
        let request = request.into_inner();
        let command = request.command.ok_or_else(|| Status::invalid_argument("no command"))?;
        let deadline = deadline(request.deadline_ms);
        Ok(Response::new(self.0.propose_if_leader(command, deadline).await))
    }

    async fn record(
        &self,
        request: Request<pb::RecordRequest>,
    ) -> Result<Response<pb::RecordReply>, Status> {
        use pb::record_reply::Result as Wire;
        let request = request.into_inner();
        let outcome = request.outcome.ok_or_else(|| Status::invalid_argument("no outcome"))?;
        let outcome: Outcome = outcome_from_proto(outcome).map_err(Status::invalid_argument)?;
        let result = match self.0.spool.get(request.partition) {
            None => Wire::NotLeader(0),
            Some(partition) => {
                match partition.record(outcome, deadline(request.deadline_ms)).await {
                    Ok(()) => Wire::Done(true),
                    Err(ProposeError::NotLeader { leader }) => Wire::NotLeader(leader.unwrap_or(0)),
                    Err(error) => Wire::Unknown(error.to_string()),
                }
            }
        };
        Ok(Response::new(pb::RecordReply { result: Some(result) }))
    }

    async fn report(
        &self,
        _: Request<pb::ReportRequest>,
    ) -> Result<Response<pb::NodeReport>, Status> {
        Ok(Response::new(self.0.report()))
    }

    type QueueStream = BoxStream<'static, Result<pb::QueuePage, Status>>;

    async fn queue(
        &self,
        request: Request<pb::QueueRequest>,
    ) -> Result<Response<Self::QueueStream>, Status> {
        let filter = Filter::new(request.into_inner().filter, self.0.now())?;
        let pages = queue::pages_here(Arc::clone(&self.0), filter);
        Ok(Response::new(pages.map(Ok).boxed()))
    }

    async fn summarise(
        &self,
        request: Request<pb::QueueRequest>,
    ) -> Result<Response<pb::QueueSummary>, Status> {
        let filter = Filter::new(request.into_inner().filter, self.0.now())?;
        Ok(Response::new(queue::summary_here(&self.0, &filter)))
    }

    type OperateStream = BoxStream<'static, Result<pb::OperatePage, Status>>;

    async fn operate(
        &self,
        request: Request<pb::OperateRequest>,
    ) -> Result<Response<Self::OperateStream>, Status> {
        let request = request.into_inner();
        let filter = Filter::new(request.filter.clone(), self.0.now())?;
        let pages = operate::here(Arc::clone(&self.0), filter, Wanted::new(&request)?);
        Ok(Response::new(pages.map(Ok).boxed()))
    }

    type CatStream = BoxStream<'static, Result<pb::CatChunk, Status>>;

    async fn cat(
        &self,
        request: Request<pb::CatRequest>,
    ) -> Result<Response<Self::CatStream>, Status> {
        standing::cat_here(&self.0, &request.get_ref().id).map(Response::new)
    }

    async fn sign(
        &self,
        request: Request<pb::SignRequest>,
    ) -> Result<Response<pb::SignReply>, Status> {
        let pb::SignRequest { node, csr } = request.into_inner();
        Ok(Response::new(join::sign(&self.0, node, &csr)?))
    }

    async fn rejoin(
        &self,
        request: Request<pb::RejoinRequest>,
    ) -> Result<Response<pb::EnrolReply>, Status> {
        let caller = request.extensions().get::<Peer>().and_then(|peer| peer.node);
        let old = caller.ok_or_else(|| Status::unauthenticated("only a node can rejoin"))?;
        let pb::RejoinRequest { csr, control } = request.into_inner();
        join::readmit(&self.0, old, csr, control).await.map(Response::new)
    }

    async fn state(
        &self,
        _: Request<pb::StateRequest>,
    ) -> Result<Response<pb::StateReply>, Status> {
        Ok(Response::new(pb::StateReply { state: Some(self.0.state().to_proto()) }))
    }

    async fn prepare(
        &self,
        request: Request<pb::PrepareRequest>,
    ) -> Result<Response<pb::PrepareReply>, Status> {
        let result = Some(versions::prepare_for(&self.0, request.into_inner()).await);
        Ok(Response::new(pb::PrepareReply { result }))
    }

    type FetchStream = BoxStream<'static, Result<pb::BlobChunk, Status>>;

    async fn fetch(
        &self,
        request: Request<pb::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let shelf = &self.0.shelf;
        let wait = Arc::clone(&shelf.fetches).acquire_owned();
        let permit = tokio::time::timeout(limits::CHUNK_PATIENCE, wait).await;
        let Ok(Ok(permit)) = permit else {
            return Err(Status::resource_exhausted("too many nodes fetch from this one"));
        };
        let hashes = request.into_inner().sha256;
        let hashes = hashes.iter().filter_map(|hash| BlobHash::from_bytes(hash));
        Ok(Response::new(versions::send(shelf.blobs.pieces(hashes), permit)))
    }

    type TraceStream = BoxStream<'static, Result<pb::TracePage, Status>>;

    async fn trace(
        &self,
        request: Request<pb::TraceRequest>,
    ) -> Result<Response<Self::TraceStream>, Status> {
        let pages = watch::trace_here(&self.0, request.get_ref())?;
        Ok(Response::new(pages.map(Ok).boxed()))
    }

    type EventsStream = BoxStream<'static, Result<pb::EventsPage, Status>>;

    async fn events(
        &self,
        request: Request<pb::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let pages = watch::events_here(&self.0, request.get_ref())?;
        Ok(Response::new(pages.map(Ok).boxed()))
    }

    async fn log(&self, _: Request<pb::LogRequest>) -> Result<Response<pb::NodeLog>, Status> {
        Ok(Response::new(log::here(&self.0)))
    }
}

fn deadline(asked_ms: u32) -> Duration {
    Duration::from_millis(u64::from(asked_ms)).min(limits::COMMAND_DEADLINE)
}
