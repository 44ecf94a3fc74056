//! What three replicas promise when all goes as planned, and when nodes stop.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_group_grows_and_moves_its_leader() {
    let cluster = Cluster::new().await;
    let first = cluster.group(1);
    first.initialise(&[1]).await.unwrap();
    until("1 leads", || first.has_lease()).await;
    assert_eq!(cluster.say(1, "alone").await.unwrap(), Reply::Value("1".into()));
    first.add_voter(2, 10 * SECOND).await.unwrap();
    first.add_voter(3, 10 * SECOND).await.unwrap();
    assert_eq!(first.status().voters, [1, 2, 3]);
    cluster.say(1, "three").await.unwrap();

    cluster.lead(2).await;
    assert!(!first.has_lease() && !first.leads());
    assert!(matches!(cluster.say(1, "no").await, Err(ProposeError::NotLeader { leader: Some(2) })));
    cluster.say(2, "moved").await.unwrap();
    cluster.until_all_have("moved").await;
    cluster.assert_equal(&["alone", "three", "moved"]);

    // The leader goes only after its leadership; then it is forgotten by the others and its own log.
    let second = cluster.group(2);
    assert!(matches!(
        second.remove_voter(2, SECOND).await,
        Err(ChangeError::Unfit { node: 2, .. })
    ));
    second.remove_voter(1, 5 * SECOND).await.unwrap();
    assert_eq!(second.status().voters, [2, 3]);
    assert_eq!(cluster.node(1).log.groups(), [GROUP]);
    cluster.node(1).groups.close(GROUP).await.unwrap();
    assert!(cluster.node(1).log.groups().is_empty());
    assert!(cluster.node(1).groups.get(GROUP).is_none());
    cluster.say(2, "without 1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_told_in_order_and_only_with_an_entry_of_the_term() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(2).await;
    cluster.lead(3).await;
    cluster.lead(2).await;
    let tape = cluster.node(2).tape.clone();
    cluster.stop_all().await;
    let changes = tape.changes.lock().unwrap().clone();
    let mut terms = Vec::new();
    for pair in changes.windows(2) {
        assert_ne!(pair[0], pair[1]);
        if let Leadership::Leading { term } = pair[1] {
            assert!(matches!(pair[0], Leadership::Following { .. }), "{changes:?}");
            terms.push(term);
        }
    }
    assert!(terms.len() >= 2 && terms.is_sorted(), "{changes:?}");
    assert!(matches!(changes.last(), Some(Leadership::Following { leader: None })), "{changes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_others_go_on_without_their_leader_and_it_catches_up() {
    let mut cluster = Cluster::of_three().await;
    let old = cluster.leader().await;
    cluster.say(old, "one").await.unwrap();
    cluster.stop(old).await;
    let new = cluster.leader().await;
    for text in ["two", "three", "four"] {
        cluster.say(new, text).await.unwrap();
    }
    cluster.start(old).await;
    cluster.until_all_have("four").await;
    cluster.assert_equal(&["one", "two", "three", "four"]);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_promised_and_with_it_all_goes_on() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    cluster.say(1, "one").await.unwrap();
    cluster.stop(2).await;
    cluster.stop(3).await;
    let began = tokio::time::Instant::now();
    let late = cluster.group(1).propose(Bytes::from_static(b"late"), SECOND).await;
    assert!(matches!(late, Err(ProposeError::Timeout(_))), "{late:?}");
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
    until("no lease", || !cluster.group(1).has_lease()).await;

    cluster.start(3).await;
    let leader = cluster.leader().await;
    cluster.say(leader, "two").await.unwrap();
    cluster.start(2).await;
    cluster.until_all_have("two").await;
    // Unknown means: committed once or never, and the same everywhere.
    let all = cluster.node(1).tape.entries();
    assert!(all == ["one", "two"] || all == ["one", "late", "two"], "{all:?}");
    assert_eq!(cluster.node(2).tape.entries(), all);
    assert_eq!(cluster.node(3).tape.entries(), all);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_at_once_down_and_up_again() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    for text in ["one", "two"] {
        cluster.say(leader, text).await.unwrap();
    }
    cluster.stop_all().await;
    for id in 1..=3 {
        cluster.start(id).await;
    }
    let leader = cluster.leader().await;
    cluster.say(leader, "three").await.unwrap();
    cluster.until_all_have("three").await;
    cluster.assert_equal(&["one", "two", "three"]);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_under_load_agree_with_the_log_behind_them() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let talkers = (0..8).map(|talker| {
        let group = cluster.group(leader).clone();
        tokio::spawn(async move {
            for n in 0..100 {
                say(&group, &format!("{talker}-{n}")).await.unwrap();
            }
        })
    });
    let talkers: Vec<_> = talkers.collect();
    while !talkers.iter().all(|t| t.is_finished()) {
        for id in 1..=3 {
            cluster.group(id).checkpoint().await.unwrap();
        }
    }
    for talker in talkers {
        talker.await.unwrap();
    }
    cluster.say(leader, "end").await.unwrap();
    cluster.until_all_have("end").await;
    for node in cluster.nodes.iter().flatten() {
        assert!(!node.tape.disturbed.load(Ordering::Relaxed));
    }
    let before = cluster.node(leader).tape.entries();
    assert_eq!(before.len(), 801);
    cluster.stop_all().await;
    for id in 1..=3 {
        cluster.start(id).await;
    }
    cluster.until_all_have("end").await;
    for node in cluster.nodes.iter().flatten() {
        assert!(node.tape.restored.load(Ordering::Relaxed) > 0);
        assert_eq!(node.tape.entries(), before);
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_replica_begins_at_the_checkpoint() {
    let mut cluster = Cluster::new().await;
    cluster.group(1).initialise(&[1, 2]).await.unwrap();
    let leader = cluster.leader().await;
    let group = cluster.group(leader);
    cluster.say(leader, "one").await.unwrap();
    cluster.say(leader, "two").await.unwrap();
    group.checkpoint().await.unwrap();
    // Once more, at once and with nothing new: answered all the same.
    group.checkpoint().await.unwrap();
    until("purged", || group.status().purged_index.is_some()).await;
    group.add_voter(3, 10 * SECOND).await.unwrap();
    cluster.say(leader, "three").await.unwrap();
    until("3 has all", || cluster.node(3).tape.entries() == ["one", "two", "three"]).await;
    assert_eq!(cluster.node(3).tape.restored.load(Ordering::Relaxed), 1);

    cluster.stop_all().await;
    for id in 1..=3 {
        cluster.start(id).await;
    }
    cluster.until_all_have("three").await;
    cluster.assert_equal(&["one", "two", "three"]);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_has_the_leader_propose() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    let forward = async |id, text: &'static str| {
        cluster.group(id).forward(Bytes::from_static(text.as_bytes()), 5 * SECOND).await
    };
    until("2 knows", || cluster.group(2).leader() == Some(1)).await;
    assert_eq!(forward(2, "through 1").await.unwrap(), Reply::Value("1".into()));
    assert_eq!(forward(1, "itself").await.unwrap(), Reply::Value("2".into()));
    cluster.lead(3).await;
    until("2 knows", || cluster.group(2).leader() == Some(3)).await;
    assert_eq!(forward(2, "through 3").await.unwrap(), Reply::Value("3".into()));
    // Who is asked and does not lead says so, and proposes nothing.
    let peer = cluster.group(1).peer(2).propose(Bytes::from_static(b"no"), SECOND).await;
    assert!(matches!(peer, Err(ProposeError::NotLeader { leader: Some(3) })), "{peer:?}");
    cluster.until_all_have("through 3").await;
    cluster.assert_equal(&["through 1", "itself", "through 3"]);
    cluster.net.cut_off(2);
    let late = cluster.group(2).forward(Bytes::from_static(b"?"), SECOND / 2).await;
    assert!(matches!(late, Err(ProposeError::Timeout(_))), "{late:?}");
    cluster.stop_all().await;
}
