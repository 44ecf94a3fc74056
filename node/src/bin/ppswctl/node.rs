//! `node remove` and `placement`: asks for it, and shows how it goes until it is done.

use std::time::Duration;

use ppsw_proto::control::{RemoveNodeRequest, SetPlacementRequest, Settings, StatusReply};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::{
    Failure,
    address::{self, Admin, Cluster},
    drain::{POLL, fresh_status},
    status,
};

/// What was asked for.
pub(crate) struct Removal {
    pub(crate) given: String,
    pub(crate) reason: String,
    pub(crate) force: bool,
}

pub(crate) async fn remove(
    cluster: &Cluster,
    asked: &Removal,
    patience: Duration,
    as_json: bool,
) -> Result<(), Failure> {
    let mut admin = address::connect(cluster).await?;
    let node = status::find_node(&status::ask(&mut admin).await?, &asked.given)?;
    let request = RemoveNodeRequest { node, reason: asked.reason.clone(), force: asked.force };
    admin.remove_node(request).await?;
    let mut shown = String::new();
    let waited = timeout(patience, async {
        loop {
            if let Some(status) = fresh_status(cluster).await {
                let Some(text) = stand(&status, node) else { return status };
                if text != shown && !as_json {
                    say!("node {node}: {text}");
                }
                shown = text;
            }
            sleep(POLL).await;
        }
    });
    let Ok(status) = waited.await else {
        return Err(Failure::TimedOut(format!(
            "node {node} has not left after {patience:?} ({shown}); the removal goes on, run this again to watch it"
        )));
    };
    let partition = status.partitions.iter().find(|partition| u64::from(partition.id) == node);
    let messages = partition.map_or(0, |partition| partition.messages);
    if as_json {
        say!("{}", json!({ "node": node, "state": "removed", "messages": messages }));
        return Ok(());
    }
    say!("node {node}: has left the cluster; its number is never used again");
    if let Some(partition) = partition {
        say!(
            "partition {node} has {messages} messages; it is led by node {} until it is empty",
            partition.leader
        );
    }
    Ok(())
}

pub(crate) async fn show_placement(admin: &mut Admin, as_json: bool) -> Result<(), Failure> {
    let status = status::ask(admin).await?;
    show(status.settings.unwrap_or_default(), as_json);
    Ok(())
}

pub(crate) async fn set_placement(
    admin: &mut Admin,
    voters: Option<u32>,
    replace_after: Option<Duration>,
    as_json: bool,
) -> Result<(), Failure> {
    if voters.is_none() && replace_after.is_none() {
        return Err(Failure::Usage("expected --voters or --replace-after".to_owned()));
    }
    let replace_after_ms =
        replace_after.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1));
    let request = SetPlacementRequest { voters: voters.unwrap_or(0), replace_after_ms };
    admin.set_placement(request).await?;
    show_placement(admin, as_json).await
}

fn show(settings: Settings, as_json: bool) {
    let Settings { voters, replace_after_ms } = settings;
    if as_json {
        say!("{}", json!({ "voters": voters, "replace_after_ms": replace_after_ms }));
    } else {
        let time = humantime::format_duration(Duration::from_millis(replace_after_ms));
        say!("voters of a partition: {voters}");
        say!("a silent node loses its votes after: {time}");
    }
}

/// What is left to be done; `None` if the node is no member any more.
fn stand(status: &StatusReply, node: u64) -> Option<String> {
    let found = status.nodes.iter().find(|n| n.member.as_ref().is_some_and(|m| m.id == node))?;
    let mut text = status::left(&found.groups);
    if let Some(progress) = found.report.as_ref().and_then(|report| report.drain.as_ref())
        && !progress.trouble.is_empty()
    {
        text.push_str(&format!("; trouble: {}", progress.trouble));
    }
    Some(text)
}
