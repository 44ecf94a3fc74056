//! An operator's verbs on messages that wait: whoever leads a message's partition does it.

use std::sync::Arc;

use futures::{Stream, StreamExt, stream, stream::BoxStream};
use ppsw_proto::control as pb;
use ppsw_spool::queue::{Partition, QueuedMessage};

use super::{filter::Filter, pages};
use crate::{NodeId, Wanted, limits, operate::Verb, plane::Shared};

/// Asks the nodes, one after the other; a node that does not answer, or stops answering, is named in its last page.
pub(super) fn everywhere(
    shared: &Arc<Shared>,
    nodes: Vec<NodeId>,
    request: pb::OperateRequest,
) -> BoxStream<'static, pb::OperatePage> {
    let shared = Arc::clone(shared);
    let parts = nodes.into_iter().map(move |node| at(Arc::clone(&shared), node, request.clone()));
    stream::iter(parts).flatten().boxed()
}

fn at(
    shared: Arc<Shared>,
    node: NodeId,
    request: pb::OperateRequest,
) -> BoxStream<'static, pb::OperatePage> {
    let silent = pb::OperatePage { silent: vec![node], ..pb::OperatePage::default() };
    if node == shared.node {
        let filter = Filter::new(request.filter.clone(), shared.now());
        return match (filter, Wanted::new(&request)) {
            (Ok(filter), Ok(wanted)) => here(shared, filter, wanted).boxed(),
            _ => stream::once(async move { silent }).boxed(),
        };
    }
    let client = shared.dialer.node(node);
    pages::of_node(client.map(|mut client| async move { client.operate(request).await }), silent)
}

/// Does it with the matching messages of the partitions that this node leads.
pub(super) fn here(
    shared: Arc<Shared>,
    filter: Filter,
    wanted: Wanted,
) -> impl Stream<Item = pb::OperatePage> + Send + 'static {
    let Wanted { verb, by, reason } = &wanted;
    tracing::info!(?verb, by, reason, "an operator's verb");
    if matches!(verb, Verb::Retry | Verb::Release) {
        shared.hooks.forget_hosts();
    }
    let matching = shared
        .led()
        .into_iter()
        .flat_map(|partition| {
            let messages = partition.messages();
            messages.map(move |message| (partition.clone(), message))
        })
        .filter_map(move |(partition, message)| {
            let recipients = filter.open_recipients(&message)?;
            Some((partition, message, recipients))
        });
    let wanted = Arc::new(wanted);
    stream::iter(matching)
        .map(move |(partition, message, recipients)| {
            let (shared, wanted) = (Arc::clone(&shared), Arc::clone(&wanted));
            // Comes to its end, and into the log, also if nobody listens any more.
            tokio::spawn(one(shared, partition, message, recipients, wanted))
        })
        .buffered(limits::OPERATED_AT_ONCE)
        // A panic ends the process.
        .filter_map(async |done| done.ok())
        .ready_chunks(limits::OPERATED_PAGE)
        .map(|items| pb::OperatePage { items, silent: Vec::new() })
}

async fn one(
    shared: Arc<Shared>,
    partition: Partition,
    message: Arc<QueuedMessage>,
    recipients: Vec<u32>,
    wanted: Arc<Wanted>,
) -> pb::Operated {
    let done = shared.hooks.operate(partition, message.id, &recipients, &wanted).await;
    pb::Operated {
        id: message.id.to_string(),
        node: shared.node,
        recipients: u32::try_from(recipients.len()).unwrap_or(u32::MAX),
        refused: done.err().unwrap_or_default(),
    }
}
