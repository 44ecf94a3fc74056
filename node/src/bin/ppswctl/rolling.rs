//! `rolling-restart`: drain, restart and take back each node, and stop on trouble.

use std::{process::Stdio, time::Duration};

use ppsw_proto::control::{NodeStatus, StatusReply};
use serde_json::json;
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

use crate::{
    Failure,
    address::{self, Cluster},
    drain::{self, POLL, fresh_status},
    status,
};

pub(crate) struct Asked {
    /// With `{host}`, `{name}` and `{id}`.
    pub(crate) exec: String,
    /// All, if there is none.
    pub(crate) nodes: Vec<String>,
    /// For each step.
    pub(crate) patience: Duration,
}

pub(crate) async fn restart(
    cluster: &Cluster,
    asked: &Asked,
    as_json: bool,
) -> Result<(), Failure> {
    let mut admin = address::connect(cluster).await?;
    let status = status::ask(&mut admin).await?;
    let nodes: Vec<u64> = match asked.nodes.as_slice() {
        [] => status.nodes.iter().filter_map(|node| node.member.as_ref()).map(|m| m.id).collect(),
        given => given
            .iter()
            .map(|given| status::find_node(&status, given))
            .collect::<Result<_, Failure>>()?,
    };
    for (done, node) in nodes.iter().enumerate() {
        one(cluster, *node, asked, as_json).await.map_err(|failure| {
            let left: Vec<String> = nodes.iter().skip(done).map(u64::to_string).collect();
            let text = format!(
                "{failure}\nstopped at node {node}; {done} nodes are restarted. When it is well again: --nodes {}",
                left.join(",")
            );
            match failure {
                Failure::TimedOut(_) => Failure::TimedOut(text),
                Failure::Silent(_) => Failure::Silent(text),
                _ => Failure::Refused(text),
            }
        })?;
    }
    if as_json {
        say!("{}", json!({ "restarted": nodes }));
    } else {
        say!("{} nodes restarted", nodes.len());
    }
    Ok(())
}

async fn one(cluster: &Cluster, node: u64, asked: &Asked, as_json: bool) -> Result<(), Failure> {
    let tell = |text: &str| {
        if !as_json {
            say!("node {node}: {text}");
        }
    };
    healthy(cluster, asked.patience).await?;
    let status = fresh_status(cluster).await;
    let status = status.ok_or_else(|| Failure::Silent("no node answers".to_owned()))?;
    let (started, command) = {
        let found = find(&status, node)?;
        (started(found), command(&asked.exec, found))
    };
    drain::quietly(cluster, node, asked.patience, false, &mut |text| tell(text)).await?;
    tell(&command);
    let ended = Command::new("/bin/sh").args(["-c", &command]).stdin(Stdio::null()).status();
    let ended = timeout(asked.patience, ended).await.map_err(|_| {
        Failure::TimedOut(format!("the command has not ended after {:?}", asked.patience))
    })?;
    match ended {
        Ok(code) if code.success() => {}
        Ok(code) => return Err(Failure::Refused(format!("the command failed: {code}"))),
        Err(error) => return Err(Failure::Refused(format!("the command cannot be run: {error}"))),
    }
    let back = async {
        loop {
            let status = fresh_status(cluster).await;
            let found = status.as_ref().and_then(|status| find(status, node).ok());
            if found.is_some_and(|found| self::started(found) > started) {
                return;
            }
            sleep(POLL).await;
        }
    };
    timeout(asked.patience, back).await.map_err(|_| {
        Failure::TimedOut(format!(
            "it has not come back as a new process after {:?}; it is drained",
            asked.patience
        ))
    })?;
    tell("restarted");
    drain::take_back(cluster, node, asked.patience).await?;
    healthy(cluster, asked.patience).await?;
    tell("back in service");
    Ok(())
}

/// Waits until all nodes are up and ready, and all partitions have leaders and all their voters.
async fn healthy(cluster: &Cluster, patience: Duration) -> Result<(), Failure> {
    let mut last = "no node answers".to_owned();
    let well = async {
        loop {
            match fresh_status(cluster).await.map(|status| trouble(&status)) {
                Some(None) => return,
                Some(Some(trouble)) => last = trouble,
                None => {}
            }
            sleep(POLL).await;
        }
    };
    let waited = timeout(patience, well).await;
    waited.map_err(|_| Failure::TimedOut(format!("the cluster is not well: {last}")))
}

/// What is wrong with a cluster, if anything is.
fn trouble(status: &StatusReply) -> Option<String> {
    let of_node = |node: &NodeStatus| {
        let id = node.member.as_ref().map_or(0, |member| member.id);
        match &node.report {
            None => Some(format!("node {id} does not answer")),
            Some(report) if !report.not_ready.is_empty() => {
                Some(format!("node {id} is not ready: {}", report.not_ready.join("; ")))
            }
            Some(_) if node.state != "up" => Some(format!("node {id} is {}", node.state)),
            Some(_) => None,
        }
    };
    let groups = status.partitions.iter().chain(&status.control);
    status.nodes.iter().find_map(of_node).or_else(|| {
        groups
            .filter(|group| group.leader == 0)
            .map(|group| match group.id {
                0 => "nobody leads the control group".to_owned(),
                id => format!("nobody leads partition {id}"),
            })
            .next()
    })
}

fn find(status: &StatusReply, node: u64) -> Result<&NodeStatus, Failure> {
    let found = status.nodes.iter().find(|n| n.member.as_ref().is_some_and(|m| m.id == node));
    found.ok_or_else(|| Failure::Refused(format!("node {node} has left the cluster")))
}

fn started(node: &NodeStatus) -> u64 {
    node.report.as_ref().map_or(0, |report| report.started_ms)
}

fn command(exec: &str, node: &NodeStatus) -> String {
    let member = node.member.clone().unwrap_or_default();
    let host = member.control.rsplit_once(':').map_or(member.control.as_str(), |(host, _)| host);
    exec.replace("{host}", host)
        .replace("{name}", &member.name)
        .replace("{id}", &member.id.to_string())
}

#[cfg(test)]
mod tests {
    use ppsw_proto::control::{GroupStatus, Member, NodeReport};

    use super::*;

    fn node(id: u64) -> NodeStatus {
        let control = format!("192.0.2.{id}:3590");
        let member = Member { id, name: format!("node-{id}"), control, ..Member::default() };
        NodeStatus {
            member: Some(member),
            report: Some(NodeReport { started_ms: 1, ..NodeReport::default() }),
            state: "up".to_owned(),
            ..NodeStatus::default()
        }
    }

    #[test]
    fn a_command_names_its_node() {
        let text = command("ssh {host} restart {name} ({id})", &node(7));
        assert_eq!(text, "ssh 192.0.2.7 restart node-7 (7)");
    }

    #[test]
    fn trouble_is_found_wherever_it_is() {
        let group = |id, leader| GroupStatus { id, leader, ..GroupStatus::default() };
        let well = StatusReply {
            nodes: vec![node(1), node(2)],
            partitions: vec![group(1, 1), group(2, 2)],
            control: Some(group(0, 1)),
            ..StatusReply::default()
        };
        assert_eq!(trouble(&well), None);
        let mut silent = well.clone();
        silent.nodes[1].report = None;
        assert_eq!(trouble(&silent).unwrap(), "node 2 does not answer");
        let mut unready = well.clone();
        unready.nodes[0].report.as_mut().unwrap().not_ready = vec!["disk low".to_owned()];
        assert_eq!(trouble(&unready).unwrap(), "node 1 is not ready: disk low");
        let mut drained = well.clone();
        drained.nodes[0].state = "drained".to_owned();
        assert_eq!(trouble(&drained).unwrap(), "node 1 is drained");
        let mut orphan = well;
        orphan.partitions[1].leader = 0;
        assert_eq!(trouble(&orphan).unwrap(), "nobody leads partition 2");
    }
}
