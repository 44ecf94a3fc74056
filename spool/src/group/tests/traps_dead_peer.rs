//! A peer that is dead costs the others nothing: not their rate, and not, once it has been removed, their disks.

use tokio::time::Instant;

use super::*;

/// Commits in a second of eight proposers, about.
async fn rate(cluster: &Cluster) -> f64 {
    let group = cluster.group(1);
    let ends = Instant::now() + Duration::from_millis(400);
    let talkers = (0..8).map(|_| {
        let group = group.clone();
        tokio::spawn(async move {
            let mut commits = 0;
            while Instant::now() < ends {
                say(&group, "a line of some length, as in a letter").await.unwrap();
                commits += 1;
            }
            commits
        })
    });
    let mut commits = 0;
    for talker in talkers.collect::<Vec<_>>() {
        commits += talker.await.unwrap();
    }
    f64::from(commits) / 0.4
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_peer_is_dialled_seldom_and_costs_no_rate() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    let (mut ratios, mut dials, mut dead_for) = (Vec::new(), [0, 0], Duration::ZERO);
    for _ in 0..5 {
        let alive = rate(&cluster).await;
        cluster.stop(3).await;
        let since = Instant::now();
        cluster.net.dialled.lock().unwrap().clear();
        let dead = rate(&cluster).await;
        {
            let dialled = cluster.net.dialled.lock().unwrap();
            for (bulk, dials) in [false, true].into_iter().zip(&mut dials) {
                *dials += dialled.get(&(1, 3, bulk)).copied().unwrap_or(0);
            }
        }
        dead_for += since.elapsed();
        ratios.push(dead / alive);
        cluster.start(3).await;
        until("3 is fit", || cluster.group(1).transfer_is_possible(3)).await;
    }
    let dialled = dials.map(|dials| dials as f64 / dead_for.as_secs_f64());
    println!(
        "rate with a dead peer against without, 5 blocks: {ratios:.2?}, median {:.2}; \
         dialled {:.1} times a second for heartbeats, {:.1} for entries",
        median(ratios.clone()),
        dialled[0],
        dialled[1]
    );
    // A heartbeat each 150 ms; entries by openraft's back-off. A hot loop would be tens of thousands.
    assert!(dialled[0] < 20.0 && dialled[1] < 20.0, "{dialled:?}");
    // The goal is 0.9. It is not asserted: rates of one machine that does other things differ by a factor of two
    // between two moments. The hot loop cost nine tenths.
    assert!(median(ratios) > 0.4);
    cluster.stop_all().await;
}

/// The leader may keep its log for a follower that is down; when that one is no member any longer, it goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_down_pins_the_log_only_as_long_as_it_is_a_member() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    cluster.say(1, "one").await.unwrap();
    cluster.until_all_have("one").await;
    cluster.stop(3).await;
    for n in 0..300 {
        cluster.say(1, &n.to_string()).await.unwrap();
    }
    until("2 has all", || cluster.node(2).tape.has("299")).await;
    let target = cluster.group(1).status().applied_index;
    for id in [1, 2] {
        cluster.group(id).checkpoint().await.unwrap();
    }
    // A follower sends nothing to anybody, so it purges at once.
    until("2 has purged", || cluster.group(2).status().purged_index >= target).await;
    tokio::time::sleep(SECOND).await;
    let pinned = cluster.group(1).status().purged_index;
    println!("a dead follower: the leader has purged {pinned:?} of {target:?}");

    cluster.group(1).remove_voter(3, 10 * SECOND).await.unwrap();
    for n in 300..310 {
        cluster.say(1, &n.to_string()).await.unwrap();
    }
    let target = cluster.group(1).status().applied_index;
    cluster.group(1).checkpoint().await.unwrap();
    until("1 has purged", || cluster.group(1).status().purged_index >= target).await;
    let first = cluster.node(1).log.state(GROUP).first;
    assert!(first.is_none_or(|first| Some(first) > target), "{first:?} {target:?}");
    cluster.stop_all().await;
}
