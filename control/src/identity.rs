//! Who this node is: `data/identity/`, made by init or join and never changed, and the address book that lets it
//! find its peers before the control group answers.

use std::{
    io,
    path::{Path, PathBuf},
};

use ppsw_spool::NodeId;
use serde::{Deserialize, Serialize};

use crate::{
    files::{self, Access},
    state::State,
};

/// The format of `identity.json` and `members.json`.
const VERSION: u32 = 1;

/// A node's identity as it is on disk.
#[derive(Clone)]
pub struct Identity {
    pub node: NodeId,
    pub cluster: String,
    /// Only the founder may initialise the control group.
    pub founder: bool,
    /// PEM.
    pub ca: String,
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub key: String,
    /// PEM; only on the node that signs.
    pub ca_key: Option<String>,
}

/// Addresses of the members as last seen, and whether this node was drained.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressBook {
    version: u32,
    pub members: Vec<Address>,
    /// So that a drained node that starts again is not ready from the first moment on.
    pub drained: bool,
    /// This node has had replicas: without its log it must not come back under its number.
    pub started: bool,
    /// This node has made its home partition. It never does so again, also when others carry it meanwhile.
    #[serde(default)]
    pub home_made: bool,
    /// Of the newest control state that this node has seen: an older one is not believed.
    #[serde(default)]
    pub revision: u64,
}

/// Where a member serves the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub id: NodeId,
    pub control: String,
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    node: NodeId,
    cluster: String,
    founder: bool,
}

/// `data/identity`.
#[must_use]
pub fn dir(data: &Path) -> PathBuf {
    data.join("identity")
}

impl Identity {
    /// Reads what init or join wrote.
    ///
    /// # Errors
    /// Says which file is missing or damaged.
    pub fn load(data: &Path) -> io::Result<Self> {
        let dir = dir(data);
        let path = dir.join("identity.json");
        let Some(text) = files::read_optional(&path)? else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "{} does not exist: this machine is in no cluster yet; run `ppswd init` for a new cluster, \
                     or `ppswd join` with a token of an existing one",
                    path.display()
                ),
            ));
        };
        let record: Record = parse(&path, &text)?;
        check_version(&path, record.version)?;
        Ok(Self {
            node: record.node,
            cluster: record.cluster,
            founder: record.founder,
            ca: files::read(&dir.join("ca.pem"))?,
            certificate: files::read(&dir.join("cert.pem"))?,
            key: files::read(&dir.join("key.pem"))?,
            ca_key: files::read_optional(&dir.join("ca-key.pem"))?,
        })
    }

    /// Writes all, or nothing that counts: the directory gets its name when all is in it.
    ///
    /// # Errors
    /// If there is an identity already.
    pub fn store(&self, data: &Path, book: &AddressBook) -> io::Result<()> {
        self.store_as(&dir(data), data, book)
    }

    /// Like [`Identity::store`], under another name.
    pub(crate) fn store_as(&self, name: &Path, data: &Path, book: &AddressBook) -> io::Result<()> {
        let fresh = data.join("identity.new");
        files::make_private_dir(&fresh)?;
        let put = |name: &str, text: &str, access| files::write(&fresh.join(name), text, access);
        put("ca.pem", &self.ca, Access::Public)?;
        put("cert.pem", &self.certificate, Access::Public)?;
        put("key.pem", &self.key, Access::Secret)?;
        if let Some(ca_key) = &self.ca_key {
            put("ca-key.pem", ca_key, Access::Secret)?;
        }
        let record = Record {
            version: VERSION,
            node: self.node,
            cluster: self.cluster.clone(),
            founder: self.founder,
        };
        put("members.json", &json(book)?, Access::Public)?;
        put("identity.json", &json(&record)?, Access::Public)?;
        files::rename(&fresh, name)
    }
}

impl AddressBook {
    /// What the control group says now.
    #[must_use]
    pub fn of(state: &State, node: NodeId) -> Self {
        let members = state
            .members
            .values()
            .map(|member| Address { id: member.id, control: member.control.clone() })
            .collect();
        Self {
            drained: state.drained(node),
            started: true,
            revision: state.revision,
            ..Self::new(members)
        }
    }

    /// That of a node which has not been started yet.
    #[must_use]
    pub const fn new(members: Vec<Address>) -> Self {
        Self {
            version: VERSION,
            members,
            drained: false,
            started: false,
            home_made: false,
            revision: 0,
        }
    }

    /// Reads the copy of an earlier run; empty if there is none.
    ///
    /// # Errors
    /// If it is damaged or of a newer version.
    pub fn load(data: &Path) -> io::Result<Self> {
        let path = dir(data).join("members.json");
        let Some(text) = files::read_optional(&path)? else {
            return Ok(Self::default());
        };
        let book: Self = parse(&path, &text)?;
        check_version(&path, book.version)?;
        Ok(book)
    }

    /// Keeps a copy for the next start.
    ///
    /// # Errors
    /// What the disk says.
    pub fn store(&self, data: &Path) -> io::Result<()> {
        files::write(&dir(data).join("members.json"), &json(self)?, Access::Public)
    }
}

fn json(value: &impl Serialize) -> io::Result<String> {
    serde_json::to_string_pretty(value).map_err(io::Error::other)
}

fn parse<T: for<'a> Deserialize<'a>>(path: &Path, text: &str) -> io::Result<T> {
    serde_json::from_str(text).map_err(|error| damaged(path, &error.to_string()))
}

fn check_version(path: &Path, found: u32) -> io::Result<()> {
    if found == VERSION {
        return Ok(());
    }
    Err(damaged(path, &format!("format {found}, this program reads {VERSION}")))
}

fn damaged(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_written_once_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let said = Identity::load(&data).err().unwrap().to_string();
        assert!(said.contains("ppswd init"), "{said}");
        let identity = Identity {
            node: 4,
            cluster: "c0ffee".to_owned(),
            founder: false,
            ca: "a".to_owned(),
            certificate: "b".to_owned(),
            key: "c".to_owned(),
            ca_key: None,
        };
        let address = Address { id: 1, control: "127.0.0.1:1".to_owned() };
        let book = AddressBook { drained: true, ..AddressBook::new(vec![address]) };
        identity.store(&data, &book).unwrap();
        let again = Identity::load(&data).unwrap();
        assert_eq!((again.node, again.key.as_str(), again.ca_key), (4, "c", None));
        assert_eq!(AddressBook::load(&data).unwrap(), book);
        assert!(identity.store(&data, &book).is_err(), "an identity is never replaced");
    }
}
