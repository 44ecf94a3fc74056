//! Where the cluster is, and by which credentials: from the command line, a `cluster.json`, or the user's
//! configuration file.
#![allow(clippy::disallowed_methods, reason = "this is the module that reads the program's files")]

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, de::DeserializeOwned};

/// Options of every verb.
#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// The `cluster.json` that `ppswd dev` writes.
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "address")]
    pub(crate) cluster: Option<PathBuf>,
    /// Control address of a node; may be given several times.
    #[arg(long, global = true, value_name = "HOST:PORT")]
    address: Vec<String>,
    /// Folder with ca.pem, cert.pem and key.pem.
    #[arg(long, global = true, value_name = "DIR")]
    credentials: Option<PathBuf>,
    /// Use the viewer's credentials of the cluster file: looking only.
    #[arg(long, global = true)]
    viewer: bool,
}

/// Where to go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Tried in this order.
    pub(crate) addresses: Vec<String>,
    pub(crate) credentials: PathBuf,
}

#[derive(Deserialize)]
struct ClusterFile {
    nodes: Vec<ClusterNode>,
    credentials: Option<PathBuf>,
    viewer: Option<PathBuf>,
}

#[derive(Deserialize)]
struct ClusterNode {
    control: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserFile {
    cluster: Option<PathBuf>,
    #[serde(default)]
    addresses: Vec<String>,
    credentials: Option<PathBuf>,
}

impl TargetArgs {
    /// # Errors
    /// Says what is missing and where it may be given.
    pub(crate) fn resolve(self) -> Result<Target, String> {
        if let Some(file) = &self.cluster {
            return self.from_cluster_file(file);
        }
        let path = std::env::home_dir().unwrap_or_default().join(".config/ppswctl.toml");
        let user = match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str::<UserFile>(&text)
                .map_err(|error| format!("{}: {}", path.display(), error.message()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => UserFile::default(),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        if let (Some(file), true) = (&user.cluster, self.address.is_empty()) {
            return self.from_cluster_file(file);
        }
        let addresses = if self.address.is_empty() { user.addresses } else { self.address };
        let credentials = self.credentials.or(user.credentials);
        match (addresses.is_empty(), credentials) {
            (false, Some(credentials)) => Ok(Target { addresses, credentials }),
            (true, _) => Err(format!(
                "expected --cluster FILE, or --address HOST:PORT, or `addresses` in {}",
                path.display()
            )),
            (false, None) => {
                Err(format!("expected --credentials DIR, or `credentials` in {}", path.display()))
            }
        }
    }

    fn from_cluster_file(&self, path: &Path) -> Result<Target, String> {
        let file: ClusterFile = read_json(path)?;
        let addresses: Vec<String> = file.nodes.into_iter().map(|node| node.control).collect();
        if addresses.is_empty() {
            return Err(format!("{}: expected at least one node", path.display()));
        }
        let (field, named) =
            if self.viewer { ("viewer", file.viewer) } else { ("credentials", file.credentials) };
        let given = self.credentials.clone().or_else(|| named.map(|name| beside(path, name)));
        let credentials = given.ok_or_else(|| {
            format!("{}: expected a field `{field}`, or --credentials DIR", path.display())
        })?;
        Ok(Target { addresses, credentials })
    }
}

/// A name in a cluster file: as it is, or beside the file.
fn beside(file: &Path, name: PathBuf) -> PathBuf {
    if name.is_absolute() || name.exists() {
        return name;
    }
    file.parent().map_or_else(|| name.clone(), |dir| dir.join(&name))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{}: {error}: is the cluster ready?", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(cluster: &Path, viewer: bool) -> TargetArgs {
        TargetArgs {
            cluster: Some(cluster.to_owned()),
            address: Vec::new(),
            credentials: None,
            viewer,
        }
    }

    #[test]
    fn a_cluster_file_names_nodes_and_credentials() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.json");
        let text = r#"{ "nodes": [ { "id": 1, "control": "127.10.1.9:2590", "mx": "x" } ],
            "credentials": "admin", "viewer": "/abs/viewer", "sink": {} }"#;
        std::fs::write(&path, text).unwrap();
        let target = args(&path, false).resolve().unwrap();
        assert_eq!(target.addresses, ["127.10.1.9:2590"]);
        assert_eq!(target.credentials, dir.path().join("admin"));
        let viewer = args(&path, true).resolve().unwrap();
        assert_eq!(viewer.credentials, Path::new("/abs/viewer"));
        let missing = args(&dir.path().join("no.json"), false).resolve().unwrap_err();
        assert!(missing.contains("no.json"), "{missing}");
    }
}
