//! Cut wires, nodes that stop in the middle, disks that fail, and requests that nobody should send.

use ppsw_proto::raft::{self as wire, raft_client::RaftClient};

use super::{
    disk::{Faults, FaultyDisk},
    *,
};
use crate::log::SpaceLimits;

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_loses_its_lease_before_another_has_one() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    cluster.say(1, "one").await.unwrap();
    cluster.net.cut_off(1);
    let began = tokio::time::Instant::now();
    let mut lost = None;
    until("another leads", || {
        let holders = cluster.holders();
        assert!(holders.len() <= 1, "{holders:?}");
        if holders.is_empty() {
            lost.get_or_insert_with(|| began.elapsed());
        }
        holders.first().is_some_and(|holder| *holder != 1)
    })
    .await;
    assert!(lost.unwrap() <= Timing::default().election_max, "{lost:?}");
    // It may still believe that it leads; that is worth nothing.
    let unheard = cluster.group(1).propose(Bytes::from_static(b"unheard"), SECOND).await;
    assert!(unheard.is_err(), "{unheard:?}");
    let leader = cluster.leader().await;
    cluster.say(leader, "two").await.unwrap();
    cluster.net.mend();
    cluster.until_all_have("two").await;
    until("1 follows", || cluster.group(1).leader() == Some(leader)).await;
    cluster.assert_equal(&["one", "two"]);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_knows_when_fewer_than_a_majority_have_space() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    let group = cluster.group(1).clone();
    let low = SpaceLimits { bytes: u64::MAX, inodes: 0 };
    until("space is known", || group.headroom() > 0).await;
    cluster.node(2).log.limit_space(low);
    // One low disk is no reason, whoever has it; and it is heard of although nothing is proposed.
    tokio::time::sleep(SECOND).await;
    assert!(group.headroom() > 0);
    cluster.node(1).log.limit_space(low);
    until("two are low", || group.headroom() == 0).await;
    // What frees space still gets through.
    cluster.say(1, "an outcome").await.unwrap();
    cluster.node(2).log.limit_space(SpaceLimits::default());
    until("only one is low", || group.headroom() > 0).await;
    // Nor is a node that says nothing one that has space.
    cluster.stop(3).await;
    until("one is low, one is down", || group.headroom() == 0).await;
    cluster.node(1).log.limit_space(SpaceLimits::default());
    until("one is down", || group.headroom() > 0).await;
    drop(group);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_heard_and_hears_nobody_is_replaced() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    cluster.say(1, "one").await.unwrap();
    // Its heartbeats arrive and nobody's answers reach it; for the others it would lead for ever.
    cluster.net.deafen(1);
    until("another leads", || cluster.holders().iter().any(|holder| *holder != 1)).await;
    let leader = cluster.leader().await;
    cluster.say(leader, "two").await.unwrap();
    cluster.net.mend();
    cluster.until_all_have("two").await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_runs_takes_the_checkpoint_of_a_later_time() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    cluster.say(1, "one").await.unwrap();
    cluster.until_all_have("one").await;
    cluster.net.cut_off(3);
    for n in 0..50 {
        cluster.say(1, &format!("while away {n}")).await.unwrap();
    }
    // A leader keeps what it is sending until an attempt has failed; a follower purges at once.
    cluster.group(2).checkpoint().await.unwrap();
    until("2 has purged", || cluster.group(2).status().purged_index.is_some()).await;
    cluster.lead(2).await;
    cluster.say(2, "after").await.unwrap();
    assert!(!cluster.node(3).tape.has("while away 0"));
    cluster.net.mend();
    cluster.until_all_have("after").await;
    assert_eq!(cluster.node(3).tape.restored.load(Ordering::Relaxed), 1);
    assert_eq!(cluster.node(3).tape.entries(), cluster.node(2).tape.entries());
    cluster.say(2, "end").await.unwrap();
    cluster.until_all_have("end").await;

    // And it starts from there again.
    cluster.stop(3).await;
    cluster.start(3).await;
    cluster.until_all_have("end").await;
    assert_eq!(cluster.node(3).tape.entries(), cluster.node(2).tape.entries());
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_to_one_who_has_just_died_is_aborted() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    cluster.say(1, "one").await.unwrap();
    cluster.until_all_have("one").await;
    until("2 is fit", || cluster.group(1).transfer_is_possible(2)).await;
    until("3 is fit", || cluster.group(1).transfer_is_possible(3)).await;
    cluster.net.cut_off(2);
    let began = tokio::time::Instant::now();
    let moved = cluster.group(1).transfer(2, 10 * SECOND).await;
    assert!(matches!(moved, Err(ChangeError::Unfit { node: 2, .. })), "{moved:?}");
    assert!(began.elapsed() < 2 * limits::TRANSFER_STUCK, "{:?}", began.elapsed());
    assert!(!cluster.group(1).has_lease());
    until("3 leads", || cluster.group(3).has_lease()).await;
    cluster.say(3, "two").await.unwrap();

    // One who has been silent for a while is not even asked, and the lease stays.
    let asked = cluster.group(3).transfer(2, SECOND).await;
    assert!(matches!(asked, Err(ChangeError::Unfit { node: 2, .. })), "{asked:?}");
    assert!(cluster.group(3).has_lease());
    assert_eq!(cluster.group(3).best_successor(), Some(1));
    cluster.net.mend();
    cluster.until_all_have("two").await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_fails_does_not_give_the_lease_back() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    for id in [2, 3] {
        until("it is fit", || cluster.group(1).transfer_is_possible(id)).await;
    }
    // Both: nobody can take over within the deadline, and this leader is still in its term.
    cluster.net.cut_off(1);
    let term = cluster.group(1).status().term;
    let moved = cluster.group(1).transfer(2, Duration::from_millis(100)).await;
    assert!(matches!(moved, Err(ChangeError::NotNow(_))), "{moved:?}");
    assert_eq!(cluster.group(1).status().term, term);
    assert!(cluster.group(1).status().quorum_age_ms.unwrap() < 900);
    assert!(!cluster.group(1).has_lease());
    cluster.net.mend();
    let leader = cluster.leader().await;
    assert!(cluster.group(leader).status().term > term);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_cannot_hold_is_refused_and_harms_nobody() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let group = cluster.group(leader);
    let longest = Bytes::from(vec![b'x'; limits::PROPOSAL_BYTES_MAX]);
    let too_long = Bytes::from(vec![b'x'; limits::PROPOSAL_BYTES_MAX + 1]);
    assert!(matches!(group.propose(too_long, 5 * SECOND).await, Ok(Reply::Refused(_))));
    assert!(matches!(group.propose(longest.clone(), 20 * SECOND).await, Ok(Reply::Value(_))));
    // The status follows what is applied a moment later.
    let mut found = None;
    for _ in 0..500 {
        let at = group.status().applied_index.unwrap();
        found = group.read(at).await.ok().filter(|entry| *entry == longest);
        if found.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(found.is_some(), "the longest proposal reads back");
    assert!(matches!(group.propose(longest, 20 * SECOND).await, Ok(Reply::Value(_))));
    // Nor is its state short enough for a checkpoint: the log stays as it is.
    cluster.say(leader, "more").await.unwrap();
    group.checkpoint().await.unwrap();
    assert_eq!(group.status().purged_index, None);
    cluster.until_all_have("more").await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_others_are_refused_and_who_has_just_started_does_not_vote() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    cluster.stop(3).await;
    cluster.start(3).await;
    let address = format!("http://{}", cluster.node(3).address);
    let mut client = RaftClient::connect(address).await.unwrap();
    let mut ask = async |target: wire::Target| {
        let vote = wire::Ballot { term: 1_000, node: 2, committed: false };
        let request = wire::VoteRequest {
            target: Some(target),
            vote: Some(vote),
            last: Some(wire::LogId { term: 999, index: 1_000 }),
            leadership_transfer: false,
            pre_vote: true,
        };
        client.vote(request).await.map(|reply| reply.into_inner().granted)
    };
    let right = wire::Target { version: 1, node: 3, group: GROUP };
    let code = |answer: Result<bool, tonic::Status>| answer.unwrap_err().code();
    assert_eq!(code(ask(right).await), tonic::Code::Unavailable);
    let wrong_node = wire::Target { node: 2, ..right };
    assert_eq!(code(ask(wrong_node).await), tonic::Code::FailedPrecondition);
    let wrong_version = wire::Target { version: 2, ..right };
    assert_eq!(code(ask(wrong_version).await), tonic::Code::FailedPrecondition);
    let no_group = wire::Target { group: GROUP + 1, ..right };
    assert_eq!(code(ask(no_group).await), tonic::Code::Unavailable);

    // Later it answers; and says no, because it hears its leader.
    tokio::time::sleep(Timing::default().election_max).await;
    assert!(!ask(right).await.unwrap());
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_ends_the_node_and_not_the_group() {
    let mut cluster = Cluster::of_three().await;
    cluster.stop(1).await;
    let faults = Arc::new(Faults::default());
    let disk = Arc::new(FaultyDisk(faults.clone()));
    cluster.nodes[1] = Some(Node::start_on(disk, 1, cluster.dir.path(), &cluster.net).await);
    cluster.lead(1).await;
    cluster.say(1, "one").await.unwrap();
    faults.dead.store(true, Ordering::Relaxed);
    // Its followers may commit it without the leader's disk; the leader will not live to hear of it.
    let _ = cluster.say(1, "two").await;
    let why = tokio::time::timeout(5 * SECOND, cluster.node(1).groups.failed()).await.unwrap();
    assert!(why.contains("the medium is gone"), "{why}");
    until("no lease", || !cluster.group(1).has_lease()).await;
    until("another leads", || cluster.holders().iter().any(|id| *id != 1)).await;
    let leader = cluster.leader().await;
    cluster.say(leader, "three").await.unwrap();
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_down_does_not_pin_the_leaders_log() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    cluster.say(1, "one").await.unwrap();
    cluster.until_all_have("one").await;
    for quiet in [false, true] {
        // Once refused connections, once a wire that swallows everything: only time-outs tell.
        if quiet {
            cluster.net.cut_off(3);
        } else {
            cluster.stop(3).await;
        }
        let leader = cluster.group(1);
        for round in 0..5 {
            for n in 0..50 {
                cluster.say(1, &format!("{quiet} {round} {n}")).await.unwrap();
            }
            leader.checkpoint().await.unwrap();
            let upto = leader.status().checkpoint_index.unwrap();
            until("the leader has purged", || leader.status().purged_index >= Some(upto)).await;
        }
        until("the leader misses it", || leader.status().heard_ms[&3].is_none_or(|ms| ms > 500))
            .await;
        assert!(leader.status().heard_ms[&2].is_some_and(|ms| ms < 5_000));
        let last = format!("{quiet} 4 49");
        if quiet {
            cluster.net.mend();
        } else {
            cluster.start(3).await;
        }
        cluster.until_all_have(&last).await;
        assert_eq!(cluster.node(3).tape.entries(), cluster.node(1).tape.entries());
    }
    cluster.stop_all().await;
}
