//! Proposals that come together.

use futures::{future::join_all, poll};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn proposals_that_come_together_go_together() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let (group, before) = (cluster.group(leader), cluster.group(leader).batches());
    let texts: Vec<String> = (0..500).map(|number| format!("text {number}")).collect();
    let replies = join_all(texts.iter().map(|text| say(group, text))).await;
    let places: BTreeSet<Bytes> = replies
        .into_iter()
        .map(|reply| match reply {
            Ok(Reply::Value(place)) => place,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(places.len(), texts.len(), "each was applied once");
    let batches = group.batches() - before;
    println!("{} proposals in {batches} batches", texts.len());
    assert!(batches < 100, "{batches}");
    cluster.until_all_have("text 499").await;
    for node in cluster.nodes.iter().flatten() {
        assert_eq!(node.tape.entries().len(), texts.len());
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_before_it_goes_takes_it_back() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader);
    // Nothing is answered meanwhile.
    cluster.net.cut_off(leader);
    let mut first = Box::pin(say(group, "first"));
    assert!(poll!(&mut first).is_pending());
    let mut given_up = Box::pin(say(group, "given up"));
    assert!(poll!(&mut given_up).is_pending());
    drop(given_up);
    let second = say(group, "second");
    cluster.net.mend();
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    cluster.until_all_have("second").await;
    cluster.assert_equal(&["first", "second"]);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_without_an_answer_holds_nobody_up() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader);
    let (batches, last) = (group.batches(), group.status().last_index.unwrap());
    cluster.net.cut_off(leader);
    let mut first = Box::pin(say(group, "first"));
    assert!(poll!(&mut first).is_pending());
    let mut second = Box::pin(say(group, "second"));
    assert!(poll!(&mut second).is_pending());
    assert_eq!(group.batches(), batches + 1, "the second waits for the first");
    // A body does not, and what waits goes before it.
    let body = Bytes::from(vec![b'x'; limits::BATCH_BYTES_MAX]);
    let mut body = Box::pin(group.propose(body, 5 * SECOND));
    assert!(poll!(&mut body).is_pending());
    assert_eq!(group.batches(), batches + 3);
    // Nobody waits for ever.
    let all = async { tokio::join!(first, second, body) };
    let gone =
        until("all are in the leader's log", || group.status().last_index.unwrap() == last + 3);
    let mut all = Box::pin(all);
    tokio::select! {
        answered = &mut all => panic!("without a majority: {answered:?}"),
        () = gone => {}
    }
    cluster.net.mend();
    let (first, second, body) = all.await;
    assert!(first.is_ok() && second.is_ok() && body.is_ok(), "{first:?} {second:?} {body:?}");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_when_the_group_stops_is_told() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader).clone();
    let last = group.status().last_index.unwrap();
    cluster.net.cut_off(leader);
    let texts = ["first", "second", "third", "fourth"];
    let mut all = Box::pin(join_all(texts.map(|text| say(&group, text))));
    let gone =
        until("all are in the leader's log", || group.status().last_index.unwrap() == last + 4);
    tokio::select! {
        answered = &mut all => panic!("without a majority: {answered:?}"),
        () = gone => {}
    }
    cluster.stop(leader).await;
    for answer in all.await {
        // By the group, not because who follows the batch has panicked.
        let Err(ProposeError::Stopped(why)) = &answer else { panic!("{answer:?}") };
        assert!(!why.contains("before it was proposed"), "{why}");
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_patience_goes_with_the_next_or_when_it_ends() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader);
    let say_within = |text: &'static str, patience| {
        group.propose_within(Bytes::from_static(text.as_bytes()), patience, 5 * SECOND)
    };
    let before = group.batches();
    let mut patient = Box::pin(say_within("patient", 3600 * SECOND));
    assert!(poll!(&mut patient).is_pending());
    assert_eq!(group.batches(), before, "it waits for company");
    let (patient, other) = tokio::join!(patient, say(group, "in a hurry"));
    assert!(patient.is_ok() && other.is_ok(), "{patient:?} {other:?}");
    assert_eq!(group.batches(), before + 1, "both in one");
    cluster.until_all_have("in a hurry").await;
    cluster.assert_equal(&["patient", "in a hurry"]);
    // The first to lose it takes the others along.
    let before = group.batches();
    let (long, short) =
        (say_within("long", 3600 * SECOND), say_within("short", Duration::from_millis(10)));
    let (long, short) = tokio::join!(long, short);
    assert!(long.is_ok() && short.is_ok(), "{long:?} {short:?}");
    assert_eq!(group.batches(), before + 1);
    cluster.stop_all().await;
}
