//! What operators watch as it happens: SMTP dialogue and events, of all nodes at once.

use std::{
    future::{Future, ready},
    sync::Arc,
};

use futures::{
    Stream, StreamExt,
    future::join_all,
    stream::{self, BoxStream},
};
use ppsw_proto::control::{self as pb, node_client::NodeClient};
use tokio::time::{sleep, timeout};
use tonic::{Response, Status, Streaming, transport::Channel};

use crate::{NodeId, events, limits, plane::Shared};

/// Sessions of this node. Ends when the node stops: nobody's watching holds that up.
pub(super) fn trace_here(
    shared: &Shared,
    request: &pb::TraceRequest,
) -> Result<BoxStream<'static, pb::TracePage>, Status> {
    let node = shared.node;
    let pages = shared.hooks.trace(request).map_err(Status::failed_precondition)?;
    // An empty page says that it has begun here.
    let begun = stream::once(async { pb::TracePage::default() });
    let pages = begun.chain(pages).map(move |page| pb::TracePage { node, ..page });
    Ok(pages.take_until(shared.stop.clone().cancelled_owned()).boxed())
}

/// Sessions of several nodes.
pub(super) fn trace_everywhere(
    shared: &Arc<Shared>,
    nodes: Vec<NodeId>,
    request: &pb::TraceRequest,
) -> Result<BoxStream<'static, pb::TracePage>, Status> {
    // A mistake is one error and not one for each node; and the time that it runs is this one's.
    let own = trace_here(shared, request)?;
    let mine = nodes.contains(&shared.node);
    // One that is not wanted runs along for its end.
    let own = own.filter(move |_| ready(mine));
    let others = nodes.into_iter().filter(|node| *node != shared.node).map(|node| {
        let request = request.clone();
        let ask = move |mut client: NodeClient<Channel>, _: Option<u64>| {
            let request = request.clone();
            async move { client.trace(request).await }
        };
        follow(Arc::clone(shared), node, ask).map(Some).boxed()
    });
    // Whoever is left over when our own ends, ends, too.
    let own = own.map(Some).chain(stream::once(async { None })).boxed();
    let all = stream::select_all(others.chain([own]));
    let all = all.take_while(|page| ready(page.is_some()));
    Ok(all.filter_map(ready).boxed())
}

/// Events of this node; the first page is what has happened.
pub(super) fn events_here(
    shared: &Shared,
    request: &pb::EventsRequest,
) -> Result<BoxStream<'static, pb::EventsPage>, Status> {
    let node = shared.node;
    let pages = shared.events.watch(request)?.map(move |page| pb::EventsPage { node, ..page });
    Ok(pages.take_until(shared.stop.clone().cancelled_owned()).boxed())
}

/// Events of the whole cluster; what has happened before comes first, in order.
pub(super) async fn events_everywhere(
    shared: &Arc<Shared>,
    request: pb::EventsRequest,
) -> Result<BoxStream<'static, pb::EventsPage>, Status> {
    let time = events::time(request.for_ms)?;
    let about = request.node;
    // Each node is watched for longer than the caller watches: the end is here.
    let asked = pb::EventsRequest { node: 0, for_ms: ms_max(), ..request };
    let mut streams = vec![events_here(shared, &asked)?];
    for node in shared.state().members.keys().copied().filter(|node| *node != shared.node) {
        let ask = move |mut client: NodeClient<Channel>, newest: Option<u64>| {
            // After a break, what was missed.
            let since_ms = newest.map_or(asked.since_ms, |newest| newest + 1);
            async move { client.events(pb::EventsRequest { since_ms, ..asked }).await }
        };
        let told = follow(Arc::clone(shared), node, ask).map(|mut page: pb::EventsPage| {
            // This node sees the same.
            page.events.retain(|event| !event.everywhere);
            page
        });
        streams.push(told.boxed());
    }
    let firsts = join_all(streams.iter_mut().map(|pages| pages.next())).await;
    let mut past: Vec<pb::EventsPage> = firsts.into_iter().flatten().collect();
    let mut events: Vec<pb::Event> =
        past.iter_mut().flat_map(|page| std::mem::take(&mut page.events)).collect();
    events.retain(|event| about == 0 || event.node == about);
    events.sort_by_key(|event| event.time_ms);
    if request.since_ms == 0 {
        let last = usize::try_from(request.last).unwrap_or(usize::MAX);
        events.drain(..events.len().saturating_sub(last));
    }
    let first = pb::EventsPage { node: shared.node, events, ..pb::EventsPage::default() };
    let silent = past.into_iter().filter(|page| !page.trouble.is_empty());
    let known = stream::iter([first].into_iter().chain(silent).collect::<Vec<_>>());
    let live = stream::select_all(streams).map(move |mut page| {
        page.events.retain(|event| about == 0 || event.node == about);
        page
    });
    let live = live.take_until(sleep(time)).take_until(shared.stop.clone().cancelled_owned());
    Ok(known.chain(live).boxed())
}

fn ms_max() -> u64 {
    u64::try_from(limits::EVENTS_TIME_MAX.as_millis()).unwrap_or(u64::MAX)
}

/// What another node streams, page after page.
trait Page: Send + 'static {
    /// Says why nothing comes.
    fn trouble(node: NodeId, why: String) -> Self;
    /// The time of the newest thing in it.
    fn newest(&self) -> Option<u64>;
}

impl Page for pb::TracePage {
    fn trouble(node: NodeId, why: String) -> Self {
        Self { node, trouble: why, ..Self::default() }
    }

    fn newest(&self) -> Option<u64> {
        None
    }
}

impl Page for pb::EventsPage {
    fn trouble(node: NodeId, why: String) -> Self {
        Self { node, trouble: why, ..Self::default() }
    }

    fn newest(&self) -> Option<u64> {
        self.events.iter().map(|event| event.time_ms).max()
    }
}

/// Where one is with another node.
struct Following<P, Ask> {
    shared: Arc<Shared>,
    node: NodeId,
    ask: Ask,
    /// With the connection that they come by: what a slow watcher leaves lying must not fill the windows of the one that
    /// consensus uses.
    pages: Option<(Streaming<P>, NodeClient<Channel>)>,
    /// It was told that nothing comes.
    told: bool,
    newest: Option<u64>,
}

/// The pages of another node, again and again until the stream is dropped: when it does not answer, that is told once.
fn follow<P, Ask, Asked>(
    shared: Arc<Shared>,
    node: NodeId,
    ask: Ask,
) -> impl Stream<Item = P> + Send + 'static
where
    P: Page,
    Ask: Fn(NodeClient<Channel>, Option<u64>) -> Asked + Send + 'static,
    Asked: Future<Output = Result<Response<Streaming<P>>, Status>> + Send + 'static,
{
    let begin = Following { shared, node, ask, pages: None, told: false, newest: None };
    stream::unfold(begin, |mut following| async move {
        loop {
            match following.next().await {
                Ok(page) => return Some((page, following)),
                Err(_) if following.told => sleep(limits::WATCH_RETRY).await,
                Err(why) => {
                    following.told = true;
                    let page = P::trouble(following.node, why);
                    return Some((page, following));
                }
            }
        }
    })
}

impl<P, Ask, Asked> Following<P, Ask>
where
    P: Page,
    Ask: Fn(NodeClient<Channel>, Option<u64>) -> Asked,
    Asked: Future<Output = Result<Response<Streaming<P>>, Status>> + Send + 'static,
{
    /// # Errors
    /// Why nothing comes.
    async fn next(&mut self) -> Result<P, String> {
        let (mut pages, client) = match self.pages.take() {
            Some(open) => open,
            None => {
                let (asked, client) = self.begin()?;
                (answer(asked).await?, client)
            }
        };
        match pages.message().await {
            Ok(Some(page)) => {
                self.pages = Some((pages, client));
                self.told = false;
                self.newest = page.newest().max(self.newest);
                Ok(page)
            }
            Ok(None) => Err("it has stopped".to_owned()),
            Err(_) => Err("it does not answer any more".to_owned()),
        }
    }

    /// Asks.
    fn begin(&self) -> Result<(Asked, NodeClient<Channel>), String> {
        let client = self.shared.dialer.transfer(self.node);
        let client = client.ok_or("its address is not known")?;
        let newest = self.newest.or_else(|| self.told.then(|| self.shared.now().0));
        Ok(((self.ask)(client.clone(), newest), client))
    }
}

async fn answer<P>(
    asked: impl Future<Output = Result<Response<Streaming<P>>, Status>>,
) -> Result<Streaming<P>, String> {
    match timeout(limits::REPORT_PATIENCE, asked).await {
        Ok(Ok(pages)) => Ok(pages.into_inner()),
        Ok(Err(status)) if status.code() != tonic::Code::Unavailable => {
            Err(status.message().to_owned())
        }
        _ => Err("it does not answer".to_owned()),
    }
}
