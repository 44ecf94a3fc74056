//! `ppswd rejoin`: a member whose log is damaged or gone comes back under a new number (docs/membership.md).
//!
//! With its old log it cannot go on, and with an empty one it could vote twice in one election. So it asks the cluster, with
//! the certificate that it has, for a new number; the old one is removed. What is in the data directory is moved aside,
//! never deleted. Each step may be cut off and is found again:
//!
//! 1. a new key is kept in `rejoining-key.pem`, so that asking again gives the same number;
//! 2. `identity.next` holds the new identity, complete: from here on the node is the new one;
//! 3. `log`, then `sled`, then `identity` get names that end in `.aside-N` (N is the old number);
//! 4. `identity.next` becomes `identity`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ppsw_proto::control::{EnrolReply, RejoinRequest};
use ppsw_spool::NodeId;
use tokio::time::{sleep, timeout};
use tonic::Code;

use crate::{
    PlaneError, access,
    dial::Dialer,
    files::{self, Access},
    identity::{self, Address, AddressBook, Identity},
    limits, pki,
};

/// The new key, until the new identity is complete.
const KEY: &str = "rejoining-key.pem";

/// The new identity, until everything else is aside.
const NEXT: &str = "identity.next";

/// What a name of something that was moved aside has behind its own.
const ASIDE: &str = ".aside-";

/// What a rejoin moves aside, in this order: the identity last, because the others belong to it.
const MOVED: [&str; 3] = ["log", "sled", "identity"];

/// What an earlier rejoin has moved aside in a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside(pub Vec<PathBuf>);

/// Logs that were moved aside by earlier rejoins.
///
/// # Errors
/// If the directory cannot be read.
pub fn set_aside(data: &Path) -> Result<Aside, PlaneError> {
    let names = files::names(data, &format!("log{ASIDE}"))?;
    Ok(Aside(names.into_iter().map(|name| data.join(name)).collect()))
}

/// Gets a new number for the node in `data`, and makes the data directory that of the new node.
///
/// # Errors
/// `Refused` if the cluster does not let this node come back, with the reason; `Peer` if no node answers. Nothing
/// has been moved then.
pub async fn rejoin(data: &Path, listen: SocketAddr) -> Result<NodeId, PlaneError> {
    if let Some(node) = finish_rejoin(data)? {
        return Ok(node);
    }
    let old = Identity::load(data)?;
    let book = AddressBook::load(data)?;
    let key = kept_key(data)?;
    let request = RejoinRequest { csr: pki::request(&key)?, control: listen.to_string() };
    let reply = timeout(limits::JOIN_PATIENCE, ask(&old, &book, &request)).await.map_err(|_| {
        PlaneError::Peer(format!(
            "no node has answered within {:?}: is the cluster without a majority? Then run rejoin again later",
            limits::JOIN_PATIENCE
        ))
    })??;
    if reply.ca != old.ca {
        return Err(PlaneError::Peer("the cluster answered with another CA".to_owned()));
    }
    let members = reply
        .members
        .into_iter()
        .filter(|member| member.id != old.node)
        .map(|member| Address { id: member.id, control: member.control })
        .collect();
    let identity = Identity {
        node: reply.node,
        cluster: reply.cluster,
        founder: false,
        ca: reply.ca,
        certificate: reply.certificate,
        key,
        ca_key: old.ca_key.or(Some(reply.ca_key)).filter(|key| !key.is_empty()),
    };
    identity.store_as(&data.join(NEXT), data, &AddressBook::new(members))?;
    finish_rejoin(data)?;
    Ok(reply.node)
}

/// Finishes a rejoin that was cut off after the cluster had given a new number; the number, if there was one.
///
/// # Errors
/// What the disk says.
pub fn finish_rejoin(data: &Path) -> Result<Option<NodeId>, PlaneError> {
    let next = data.join(NEXT);
    if !files::exists(&next) {
        return Ok(None);
    }
    if files::exists(&identity::dir(data)) {
        let old = Identity::load(data)?.node;
        for name in MOVED {
            let path = data.join(name);
            if files::exists(&path) {
                files::rename(&path, &data.join(format!("{name}{ASIDE}{old}")))?;
            }
        }
    }
    files::rename(&next, &identity::dir(data))?;
    files::remove(&data.join(KEY))?;
    Ok(Some(Identity::load(data)?.node))
}

fn kept_key(data: &Path) -> Result<String, PlaneError> {
    let path = data.join(KEY);
    if let Some(key) = files::read_optional(&path)? {
        return Ok(key);
    }
    let key = pki::new_key()?;
    files::write(&path, &key, Access::Secret)?;
    Ok(key)
}

/// Asks one member after the other, until one has an answer.
async fn ask(
    old: &Identity,
    book: &AddressBook,
    request: &RejoinRequest,
) -> Result<EnrolReply, PlaneError> {
    let dialer = Dialer::new(old);
    dialer.update(book.members.iter().map(|m| (m.id, m.control.clone())).collect());
    loop {
        for node in dialer.known().into_iter().filter(|node| *node != old.node) {
            let Some(mut client) = dialer.node(node) else { continue };
            match timeout(limits::COMMAND_DEADLINE, client.rejoin(request.clone())).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) => {
                    if let Some(why) = access::removed(&status) {
                        return Err(PlaneError::Refused(format!(
                            "{why}. To make this machine a node again, give it an empty data directory and join with \
                             a token"
                        )));
                    }
                    if !matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) {
                        return Err(PlaneError::Refused(status.message().to_owned()));
                    }
                    tracing::info!(node, reason = status.message(), "rejoin: trying again");
                }
                Err(_) => tracing::info!(node, "rejoin: no answer, trying again"),
            }
        }
        sleep(limits::REJOIN_RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(node: NodeId) -> Identity {
        Identity {
            node,
            cluster: "c0ffee".to_owned(),
            founder: node == 1,
            ca: "a".to_owned(),
            certificate: "b".to_owned(),
            key: format!("key {node}"),
            ca_key: None,
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test")]
    fn a_rejoin_that_was_cut_off_anywhere_is_finished() {
        let book = AddressBook::new(Vec::new());
        for done in 0..=MOVED.len() {
            let dir = tempfile::tempdir().unwrap();
            let data = dir.path();
            identity(1).store(data, &book).unwrap();
            for name in ["log", "sled"] {
                std::fs::create_dir(data.join(name)).unwrap();
                std::fs::write(data.join(name).join("old"), "x").unwrap();
            }
            assert_eq!(finish_rejoin(data).unwrap(), None, "nothing was begun");
            identity(4).store_as(&data.join(NEXT), data, &book).unwrap();
            for name in &MOVED[..done] {
                files::rename(&data.join(name), &data.join(format!("{name}.aside-1"))).unwrap();
            }
            assert_eq!(finish_rejoin(data).unwrap(), Some(4), "after {done} moves");
            assert_eq!(finish_rejoin(data).unwrap(), None);
            let now = Identity::load(data).unwrap();
            assert_eq!((now.node, now.key.as_str()), (4, "key 4"));
            assert!(!data.join("log").exists() && !data.join("sled").exists());
            assert_eq!(set_aside(data).unwrap().0, [data.join("log.aside-1")]);
            assert!(data.join("log.aside-1/old").exists());
            assert!(data.join("identity.aside-1/key.pem").exists());
        }
    }
}
