//! A conversation with the cluster: the nodes are tried in turn until one answers.

use std::{future::Future, time::Duration};

use ppsw_control::client::{ConnectError, Credentials, Operator};
use ppsw_proto::control::{NodeStatus, StatusReply, StatusRequest, admin_client::AdminClient};
use tokio::time::timeout;
use tonic::{Code, Status, transport::Channel};

use crate::target::Target;

/// One call: longer than a node's own patience with the control group.
const CALL: Duration = Duration::from_secs(20);

/// Why the program ends without success, with its exit code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Usage(String),
    #[error("no node answered: {0}")]
    NoNode(String),
    #[error("{0}")]
    TimedOut(String),
}

impl Failure {
    pub(crate) const fn code(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            Self::NoNode(_) => 3,
            Self::TimedOut(_) => 4,
        }
    }
}

pub(crate) struct Session {
    addresses: Vec<String>,
    credentials: Credentials,
    /// The connection that worked last, and the number of its address.
    current: Option<(usize, Operator)>,
}

impl Session {
    pub(crate) fn new(target: Target) -> Result<Self, Failure> {
        let credentials = Credentials::load(&target.credentials)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        Ok(Self { addresses: target.addresses, credentials, current: None })
    }

    /// Makes a call at the first node that answers, beginning with the one that answered before.
    pub(crate) async fn call<T, F, R>(&mut self, call: F) -> Result<T, Failure>
    where
        F: Fn(AdminClient<Channel>) -> R,
        R: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let first = self.current.as_ref().map_or(0, |(number, _)| *number);
        let (mut silent, mut refusal) = (Vec::new(), None);
        for turn in 0..self.addresses.len() {
            let number = (first + turn) % self.addresses.len();
            let operator = match self.connect(number).await {
                Ok(operator) => operator,
                Err(error @ ConnectError::Credentials { .. }) => {
                    return Err(Failure::Usage(error.to_string()));
                }
                Err(error) => {
                    silent.push(error.to_string());
                    continue;
                }
            };
            match timeout(CALL, call(operator.admin())).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) if is_passing(&status) => {
                    self.current = None;
                    refusal = Some(format!("{}: {}", self.addresses[number], status.message()));
                }
                Ok(Err(status)) => return Err(Failure::Refused(text(&status))),
                Err(_) => {
                    self.current = None;
                    silent.push(format!("{}: no answer within {CALL:?}", self.addresses[number]));
                }
            }
        }
        Err(refusal.map_or_else(|| Failure::NoNode(silent.join("; ")), Failure::Refused))
    }

    pub(crate) async fn status(&mut self) -> Result<StatusReply, Failure> {
        self.call(async |mut client: AdminClient<Channel>| client.status(StatusRequest {}).await)
            .await
    }

    /// The node that the operator means.
    pub(crate) async fn find(&mut self, name: &str) -> Result<NodeStatus, Failure> {
        let nodes = self.status().await?.nodes;
        let found = nodes.into_iter().find(|node| {
            node.member.as_ref().is_some_and(|member| {
                name.parse() == Ok(member.id) || member.name.eq_ignore_ascii_case(name)
            })
        });
        found.ok_or_else(|| {
            Failure::Refused(format!("there is no node `{name}`: `ppswctl node list` shows all"))
        })
    }

    async fn connect(&mut self, number: usize) -> Result<Operator, ConnectError> {
        if let Some((current, operator)) = &self.current
            && *current == number
        {
            return Ok(operator.clone());
        }
        let operator = Operator::connect(&self.addresses[number], &self.credentials).await?;
        self.current = Some((number, operator.clone()));
        Ok(operator)
    }
}

/// Another node may do better.
fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown)
}

fn text(status: &Status) -> String {
    if status.message().is_empty() {
        return format!("the node answered: {}", status.code().description());
    }
    status.message().to_owned()
}
