//! Which sessions an operator wants to see.

use std::net::IpAddr;

use ipnet::IpNet;
use ppsw_control::Pattern;
use ppsw_proto::control as pb;

use super::tap::Direction;
use crate::limits::TRACE_PATTERN_BYTES_MAX;

/// A checked filter: all that is given must fit.
#[derive(Debug)]
pub(super) struct Filter {
    incoming: bool,
    outgoing: bool,
    client: Option<IpNet>,
    host: Option<Pattern>,
    sender: Option<Pattern>,
    recipient: Option<Pattern>,
}

/// What is known of a session at one of its lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) direction: Direction,
    pub(super) peer: IpAddr,
    /// Names of the other end.
    pub(super) names: [Option<&'a str>; 2],
    /// Of the transaction.
    pub(super) sender: Option<&'a str>,
    /// That this line names.
    pub(super) recipient: Option<&'a str>,
}

impl Filter {
    /// # Errors
    /// What was expected.
    pub(super) fn new(request: &pb::TraceRequest) -> Result<Self, String> {
        let client = (!request.client.is_empty()).then(|| network(&request.client)).transpose()?;
        let pattern = |option: &str, text: &str| {
            if text.len() > TRACE_PATTERN_BYTES_MAX {
                return Err(format!(
                    "expected --{option} of at most {TRACE_PATTERN_BYTES_MAX} bytes"
                ));
            }
            Ok((!text.is_empty()).then(|| Pattern::new(text)))
        };
        let both = request.incoming == request.outgoing;
        let outgoing = both || request.outgoing;
        if client.is_some() && request.outgoing && !request.incoming {
            return Err("--client is about sessions in: expected no --out with it".to_owned());
        }
        Ok(Self {
            incoming: both || request.incoming,
            // A session with a next hop has no client.
            outgoing: outgoing && client.is_none(),
            client,
            host: pattern("host", &request.host)?,
            sender: pattern("sender", &request.sender)?,
            recipient: pattern("recipient", &request.recipient)?,
        })
    }

    /// The session begins to fit, or not, with each transaction anew.
    pub(super) fn is_of_transactions(&self) -> bool {
        self.sender.is_some() || self.recipient.is_some()
    }

    pub(super) fn fits(&self, facts: &Facts<'_>) -> bool {
        let wanted = match facts.direction {
            Direction::In => self.incoming,
            Direction::Out => self.outgoing,
        };
        let fits = |pattern: &Option<Pattern>, text: Option<&str>| {
            pattern.as_ref().is_none_or(|p| text.is_some_and(|text| p.matches(text)))
        };
        wanted
            && self.client.is_none_or(|net| net.contains(&facts.peer))
            && self.host.as_ref().is_none_or(|host| {
                let named = |name: &&str| host.matches(name.trim_end_matches('.'));
                facts.names.iter().flatten().any(named) || host.matches(&facts.peer.to_string())
            })
            && fits(&self.sender, facts.sender)
            && fits(&self.recipient, facts.recipient)
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
    address.or_else(|_| text.parse::<IpNet>()).map_err(|_| {
        format!("expected --client with an address or a network like 192.0.2.0/24, not `{text}`")
    })
}
