//! News of a commit travels with entries. openraft sends a request of its own for each, as soon as a majority has what the
//! last one carried: on a busy node, every other request and answer between the nodes. A follower needs the news to apply
//! what it has, and for a queue nobody waits for that.

use futures::{Stream, StreamExt, stream};
use openraft::raft::AppendEntriesRequest;
use tokio::time::{Instant, timeout_at};

use super::types::TypeConfig;
use crate::limits::COMMIT_NEWS_MAX;

type Request = AppendEntriesRequest<TypeConfig>;

/// The requests of one stream behind its first, in their order; if `keeps`, one without entries is kept back for
/// [`COMMIT_NEWS_MAX`], and falls away when one with entries comes meanwhile, which says the same or more.
///
/// openraft takes an answer as one to all requests up to the entry that it names, so what falls away is not missed; and as
/// if all of these had been sent when they were made, for which the lease is shorter (`lease.rs`).
pub(super) fn gathered<S>(requests: S, keeps: bool) -> impl Stream<Item = Request>
where
    S: Stream<Item = Request> + Unpin,
{
    stream::unfold((requests.fuse(), None), move |(mut requests, mut kept)| async move {
        loop {
            let next = match &kept {
                None => requests.next().await,
                Some((_, until)) => timeout_at(*until, requests.next()).await.unwrap_or_default(),
            };
            match next {
                Some(news) if keeps && news.entries.is_empty() => {
                    let until = kept.map_or_else(|| Instant::now() + COMMIT_NEWS_MAX, |(_, at)| at);
                    kept = Some((news, until));
                }
                Some(entries) => return Some((entries, (requests, None))),
                // The time has passed, or there is no other.
                None => return kept.map(|(news, _)| (news, (requests, None))),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::channel::mpsc;
    use openraft::entry::RaftEntry;

    use super::*;
    use crate::group::{
        Position,
        types::{Entry, LogId, Vote, log_id},
    };

    fn id(index: u64) -> LogId {
        log_id(Position { term: 1, index })
    }

    fn request(entries: std::ops::Range<u64>, commit: u64) -> Request {
        Request {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(id(entries.start - 1)),
            entries: entries.map(|index| Entry::new_blank(id(index))).collect(),
            leader_commit: Some(id(commit)),
        }
    }

    fn seen(request: Option<Request>) -> Option<(usize, u64)> {
        request.map(|request| (request.entries.len(), request.leader_commit.unwrap().index))
    }

    #[tokio::test(start_paused = true)]
    async fn news_goes_with_entries_or_a_moment_later() {
        let (send, requests) = mpsc::unbounded();
        let mut gathered = Box::pin(gathered(requests, true));
        let begin = Instant::now();
        let say = |request| send.unbounded_send(request).unwrap();
        say(request(10..11, 8));
        say(request(11..11, 9));
        say(request(11..11, 10));
        say(request(11..13, 10));
        assert_eq!(seen(gathered.next().await), Some((1, 8)));
        assert_eq!(seen(gathered.next().await), Some((2, 10)), "the news before it says no more");
        assert_eq!(begin.elapsed(), Duration::ZERO);
        say(request(13..13, 11));
        let (later, news) = tokio::join!(
            async {
                tokio::time::sleep(COMMIT_NEWS_MAX / 2).await;
                say(request(13..13, 12));
            },
            gathered.next()
        );
        let () = later;
        assert_eq!(seen(news), Some((0, 12)), "the newest");
        assert_eq!(begin.elapsed(), COMMIT_NEWS_MAX, "counted from the first");
        say(request(13..13, 13));
        drop(send);
        assert_eq!(seen(gathered.next().await), Some((0, 13)));
        assert_eq!(seen(gathered.next().await), None);
    }

    #[tokio::test(start_paused = true)]
    async fn news_goes_at_once_where_somebody_may_wait_for_it() {
        let requests = stream::iter([request(10..11, 8), request(11..11, 9)]);
        let mut gathered = Box::pin(gathered(requests, false));
        let begin = Instant::now();
        assert_eq!(seen(gathered.next().await), Some((1, 8)));
        assert_eq!(seen(gathered.next().await), Some((0, 9)));
        assert_eq!((begin.elapsed(), seen(gathered.next().await)), (Duration::ZERO, None));
    }
}
