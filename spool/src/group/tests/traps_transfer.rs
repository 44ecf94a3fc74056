//! A transfer that the target cannot take up is given to another within a second; and what a transfer costs.

use tokio::time::Instant;

use super::{
    disk::{Faults, FaultyDisk},
    *,
};

/// Node 1 leads, node 2 has a disk that can be slow.
async fn with_slow_disk() -> (Cluster, Arc<Faults>) {
    let mut cluster = Cluster::of_three().await;
    cluster.stop(2).await;
    let faults = Arc::new(Faults::default());
    let disk = Arc::new(FaultyDisk(faults.clone()));
    cluster.nodes[2] = Some(Node::start_on(disk, 2, cluster.dir.path(), &cluster.net).await);
    cluster.lead(1).await;
    for id in [2, 3] {
        until("it is fit", || cluster.group(1).transfer_is_possible(id)).await;
    }
    (cluster, faults)
}

/// Proposes to whoever leads until it is told to end; gives the moments of its commits.
fn talk(cluster: &Cluster, ends: &Arc<AtomicBool>) -> tokio::task::JoinHandle<Vec<Instant>> {
    let groups: Vec<Group> =
        cluster.nodes.iter().flatten().map(|node| node.group.clone()).collect();
    let ends = ends.clone();
    tokio::spawn(async move {
        let mut commits = Vec::new();
        while !ends.load(Ordering::Relaxed) {
            let Some(leader) = groups.iter().find(|group| group.leads()) else {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            if say(leader, "x").await.is_ok() {
                commits.push(Instant::now());
            } else {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        commits
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_a_slow_disk_loses_the_transfer_to_another() {
    for (load, sync_ms) in [(false, 1_000), (true, 500)] {
        let (mut cluster, faults) = with_slow_disk().await;
        faults.sync_ms.store(sync_ms, Ordering::Relaxed);
        let ends = Arc::new(AtomicBool::new(!load));
        let talkers: Vec<_> = (0..4).map(|_| talk(&cluster, &ends)).collect();
        if load {
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        let began = Instant::now();
        let moved = cluster.group(1).transfer(2, 10 * SECOND).await;
        let answered = began.elapsed();
        let mut leader = None;
        until("somebody leads", || {
            leader = cluster.holders().first().copied();
            leader.is_some_and(|id| cluster.group(id).leads())
        })
        .await;
        println!("load {load}: node {leader:?} leads {:?} later; {moved:?}", began.elapsed());
        // If it was refused at once, the lease was not given up.
        let refused = matches!(moved, Err(ChangeError::Unfit { .. })) && leader == Some(1);
        assert!(refused || answered < SECOND, "{moved:?} after {answered:?}");
        assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
        ends.store(true, Ordering::Relaxed);
        for talker in talkers {
            talker.await.unwrap();
        }
        faults.sync_ms.store(0, Ordering::Relaxed);
        let leader = cluster.leader().await;
        cluster.say(leader, "end").await.unwrap();
        cluster.until_all_have("end").await;
        cluster.stop_all().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_nobody_takes_over_one_election_ends_it() {
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    cluster.say(1, "one").await.unwrap();
    cluster.until_all_have("one").await;
    until("2 is fit", || cluster.group(1).transfer_is_possible(2)).await;
    cluster.stop(3).await;
    // The target never hears that it should take over, and there is no other.
    cluster.net.cut(1, 2);
    let began = Instant::now();
    let moved = cluster.group(1).transfer(2, 10 * SECOND).await;
    println!("{moved:?} after {:?}", began.elapsed());
    until("somebody leads", || !cluster.holders().is_empty()).await;
    let took = began.elapsed();
    println!("node {:?} leads after {took:?}", cluster.holders());
    // A lease and a random time-out, and as much again for a busy machine.
    assert!(took < 4 * SECOND, "{took:?}");
    cluster.net.mend();
    let leader = cluster.leader().await;
    cluster.say(leader, "two").await.unwrap();
    cluster.start(3).await;
    cluster.until_all_have("two").await;
    cluster.stop_all().await;
}

/// The figure of docs/reliability.md: the longest pause of commits by a leader transfer.
#[tokio::test(flavor = "multi_thread")]
async fn transfers_under_load_pause_commits_shortly() {
    const TRANSFERS: usize = 30;
    let mut cluster = Cluster::of_three().await;
    cluster.lead(1).await;
    let ends = Arc::new(AtomicBool::new(false));
    let talkers: Vec<_> = (0..8).map(|_| talk(&cluster, &ends)).collect();
    let mut moves = Vec::new();
    for _ in 0..TRANSFERS {
        let from = cluster.leader().await;
        let to = from % 3 + 1;
        until("it is fit", || cluster.group(from).transfer_is_possible(to)).await;
        let began = Instant::now();
        // On a machine that is busy with other things it may be given to the third one.
        let moved = cluster.group(from).transfer(to, 10 * SECOND).await;
        moves.extend(moved.is_ok().then_some(began));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    ends.store(true, Ordering::Relaxed);
    let mut commits = Vec::new();
    for talker in talkers {
        commits.extend(talker.await.unwrap());
    }
    commits.sort();
    let pause = |began: &Instant| {
        let after = commits.partition_point(|commit| commit <= began);
        // Up to the next transfer.
        let ends = moves.iter().find(|next| *next > began).copied().unwrap_or(*began + SECOND);
        let until = commits.partition_point(|commit| *commit <= ends);
        let around = &commits[after.saturating_sub(1)..until];
        around.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(SECOND)
    };
    let mut pauses: Vec<Duration> = moves.iter().map(pause).collect();
    pauses.sort();
    let (least, median, most) = (pauses[0], pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    println!(
        "{} of {TRANSFERS} transfers, {} commits: longest pause {least:?} min, {median:?} median, {most:?} max",
        pauses.len(),
        commits.len()
    );
    // The goal is 50 ms on a machine that does nothing else. An election takes a second and more.
    assert!(pauses.len() > TRANSFERS / 2 && median < SECOND, "{pauses:?}");
    cluster.stop_all().await;
}
