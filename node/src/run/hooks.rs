//! What the control plane asks of the node that it runs in.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use ppsw_control::{CompileError, Compiled, NodeHooks, Rehearsal, Wanted, versions::Files};
use ppsw_proto::control as pb;
use ppsw_spool::{
    PartitionId,
    queue::{MessageId, Partition},
};
use tokio::sync::watch;

use super::live::{self, Live};
use crate::{
    deliver::Deliverer, domains::Domains, explain::Explainer, policy::Configuration,
    smtp::FrontEnd, trace::Tracer,
};

/// What the control plane may ask of this node; until everything is put together, the answers of a node that does
/// nothing yet.
#[derive(Default)]
pub(super) struct Hooks {
    draining: AtomicBool,
    parts: OnceLock<(Arc<FrontEnd>, Deliverer)>,
    explainer: OnceLock<Explainer>,
    domains: OnceLock<Domains>,
    pub(super) live: Live,
    pub(super) tracer: Tracer,
}

impl Hooks {
    pub(super) fn attach(
        &self,
        front: Arc<FrontEnd>,
        deliverer: Deliverer,
        domains: Domains,
        configuration: watch::Receiver<Arc<Configuration>>,
    ) {
        let draining = self.draining.load(Ordering::Acquire);
        front.activity.drain(draining);
        let _ = self.explainer.set(Explainer::new(front.clone(), configuration));
        let _ = self.domains.set(domains);
        // Called once, from `node`.
        let _ = self.parts.set((front, deliverer));
    }
}

#[async_trait]
impl NodeHooks for Hooks {
    fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Release);
        if let Some((front, _)) = self.parts.get() {
            front.activity.drain(draining);
        }
    }

    fn open_transactions(&self) -> usize {
        self.parts.get().map_or(0, |(front, _)| front.activity.open_transactions())
    }

    fn shedding(&self) -> Option<pb::Shedding> {
        self.parts.get().and_then(|(front, _)| front.shedding())
    }

    fn delivered(&self) -> pb::Totals {
        crate::deliver::totals()
    }

    fn attempts_in_flight(&self, partition: PartitionId) -> usize {
        self.parts.get().map_or(0, |(_, deliverer)| deliverer.attempts_in_flight(partition))
    }

    async fn operate(
        &self,
        partition: Partition,
        message: MessageId,
        recipients: &[u32],
        wanted: &Wanted,
    ) -> Result<(), String> {
        let (_, deliverer) = self.parts.get().ok_or(STARTING)?;
        deliverer.operate(&partition, message, recipients, wanted).await
    }

    fn personalities(&self) -> Vec<String> {
        self.live.running().map(|running| running.personality_names()).unwrap_or_default()
    }

    fn trace(
        &self,
        request: &pb::TraceRequest,
    ) -> Result<BoxStream<'static, pb::TracePage>, String> {
        self.tracer.watch(request)
    }

    fn forget_hosts(&self) {
        if let Some((_, deliverer)) = self.parts.get() {
            deliverer.forget_hosts();
        }
    }

    async fn route(&self, request: pb::RouteRequest) -> Result<pb::RouteReply, String> {
        let explainer = self.explainer.get().ok_or(STARTING)?;
        Ok(explainer.route(&request).await)
    }

    fn rehearse(&self, open: pb::SessionOpen) -> Result<Box<dyn Rehearsal>, String> {
        self.explainer.get().ok_or(STARTING)?.rehearse(&open)
    }

    fn domains(&self, only: &str) -> Result<Vec<pb::DomainInfo>, String> {
        Ok(self.domains.get().ok_or(STARTING)?.list(only))
    }

    async fn fetch_domain(
        &self,
        domain: &str,
        force: bool,
    ) -> Result<pb::FetchDomainReply, String> {
        self.domains.get().ok_or(STARTING)?.fetch(domain, force).await
    }

    async fn check_domain(&self, domain: &str, mail: bool) -> Result<pb::CheckDomainReply, String> {
        self.domains.get().ok_or(STARTING)?.check(domain, mail).await
    }

    async fn compile(&self, files: Files) -> Result<Arc<dyn Compiled>, CompileError> {
        self.live.compile(files).await
    }

    fn running(&self) -> Option<Arc<dyn Compiled>> {
        self.live.compiled()
    }

    fn diff(
        &self,
        path: &str,
        before: Option<&[u8]>,
        after: Option<&[u8]>,
        limit: usize,
    ) -> pb::FileDiff {
        live::diff(path, before, after, limit)
    }
}

/// What an operator hears who asks too early.
const STARTING: &str = "this node is starting: try again in a second";
