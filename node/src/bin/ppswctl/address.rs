//! Where the cluster is, and a connection to any node of it.

use std::path::{Path, PathBuf};

use ppsw_control::client::{ConnectError, Credentials, Operator};
use ppsw_proto::control::admin_client::AdminClient;
use serde::Deserialize;
use tonic::transport::Channel;

use crate::{Failure, args::Args};

/// A connection to some node.
pub(crate) type Admin = AdminClient<Channel>;

/// Nodes to try, and who we are.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    addresses: Vec<String>,
    credentials: PathBuf,
}

/// What of a development cluster's file matters here.
#[derive(Deserialize)]
struct ClusterFile {
    nodes: Vec<ClusterNode>,
    credentials: PathBuf,
    viewer: Option<PathBuf>,
}

#[derive(Deserialize)]
struct ClusterNode {
    control: String,
}

/// `~/.config/ppswctl.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnFile {
    address: Vec<String>,
    credentials: PathBuf,
}

/// Finds out from the command line, or the user's own file, which cluster is meant.
pub(crate) fn find(args: &Args) -> Result<Cluster, Failure> {
    if let Some(path) = &args.cluster {
        let file: ClusterFile = serde_json::from_str(&read(path)?).map_err(|e| {
            Failure::Usage(format!(
                "{}: {e}; expected the cluster.json of a cluster",
                path.display()
            ))
        })?;
        let own = if args.viewer {
            file.viewer.ok_or_else(|| Failure::Usage("the file names no viewer".to_owned()))?
        } else {
            file.credentials
        };
        return Ok(Cluster {
            addresses: file.nodes.into_iter().map(|node| node.control).collect(),
            credentials: args.credentials.clone().unwrap_or_else(|| beside(path, own)),
        });
    }
    if !args.address.is_empty() {
        let credentials = args.credentials.clone().ok_or_else(|| {
            Failure::Usage(
                "--address needs --credentials DIR (ca.pem, cert.pem, key.pem)".to_owned(),
            )
        })?;
        return Ok(Cluster { addresses: args.address.clone(), credentials });
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let path = home.join(".config/ppswctl.toml");
    let text = read(&path).map_err(|_| {
        Failure::Usage(format!(
            "which cluster? give --cluster FILE, or --address HOST:PORT and --credentials DIR, or write {}",
            path.display()
        ))
    })?;
    let file: OwnFile =
        toml::from_str(&text).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))?;
    let credentials = args.credentials.clone().unwrap_or(file.credentials);
    Ok(Cluster { addresses: file.address, credentials })
}

/// A folder that a cluster file names: as it is, or beside the file.
fn beside(file: &Path, name: PathBuf) -> PathBuf {
    match file.parent() {
        Some(dir) if name.is_relative() && !name.exists() => dir.join(name),
        _ => name,
    }
}

/// Connects to the first node that answers.
pub(crate) async fn connect(cluster: &Cluster) -> Result<Admin, Failure> {
    let credentials = Credentials::load(&cluster.credentials)
        .map_err(|error| Failure::Usage(format!("{error}; give others with --credentials DIR")))?;
    let (mut reasons, mut foreign) = (Vec::new(), false);
    for address in &cluster.addresses {
        match Operator::connect(address, &credentials).await {
            Ok(operator) => return Ok(operator.admin()),
            Err(error) => {
                foreign |= matches!(error, ConnectError::Foreign { .. });
                reasons.push(error.to_string());
            }
        }
    }
    let reasons = reasons.join("; ");
    Err(if foreign {
        Failure::Refused(format!("{reasons}; give those of this cluster with --credentials DIR"))
    } else {
        Failure::Silent(format!("no node answered: {reasons}"))
    })
}

/// A small file that the user names.
#[allow(clippy::disallowed_methods, reason = "the program's own small files, read once")]
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|e| Failure::Usage(format!("cannot read {}: {e}", path.display())))
}
