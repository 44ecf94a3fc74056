//! What another node streams, a page at a time.

use std::future::Future;

use futures::{StreamExt, stream, stream::BoxStream};
use tokio::time::timeout;
use tonic::{Response, Status, Streaming};

use crate::limits;

/// The pages that a node sends. If it does not answer, or stops answering, the last one is `silent`, which names it.
pub(super) fn of_node<Page, Asked>(asked: Option<Asked>, silent: Page) -> BoxStream<'static, Page>
where
    Page: Clone + Send + 'static,
    Asked: Future<Output = Result<Response<Streaming<Page>>, Status>> + Send + 'static,
{
    let opened = async move {
        let answer = timeout(limits::QUEUE_PATIENCE, asked?).await;
        Some(answer.ok()?.ok()?.into_inner())
    };
    let pages = stream::once(opened).flat_map(move |pages| {
        let silent = silent.clone();
        stream::unfold(Some(pages), move |pages| {
            let silent = silent.clone();
            async move {
                // No stream, as after a break of it: it is silent, and that is all.
                let Some(mut pages) = pages? else { return Some((silent, None)) };
                match timeout(limits::QUEUE_PATIENCE, pages.message()).await {
                    Ok(Ok(Some(page))) => Some((page, Some(Some(pages)))),
                    Ok(Ok(None)) => None,
                    _ => Some((silent, None)),
                }
            }
        })
    });
    pages.boxed()
}
