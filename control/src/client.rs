//! A client of the control plane for operators: `ppswctl`, and what starts a cluster.

use std::{path::Path, sync::Arc, time::Duration};

use ppsw_proto::control::{
    MakeTokenRequest, StatusReply, StatusRequest, admin_client::AdminClient,
};
use tonic::transport::{Channel, ClientTlsConfig, Identity as TlsIdentity};

use crate::{dial, files, limits, pki::AnyNode};

mod push;

pub use push::{NewVersion, Pushed, change, push};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The operator's files.
    #[error("cannot use the credentials in {folder}: {why}")]
    Credentials { folder: String, why: String },
    /// The address, or the node behind it.
    #[error("{address}: {why}")]
    Unreachable { address: String, why: String },
}

/// Files of a credential folder.
#[derive(Clone)]
pub struct Credentials {
    ca: String,
    certificate: String,
    key: String,
}

/// A connection to one node.
#[derive(Clone)]
pub struct Operator {
    client: AdminClient<Channel>,
}

impl Credentials {
    /// Reads `ca.pem`, `cert.pem` and `key.pem`.
    ///
    /// # Errors
    /// Says which file is missing.
    pub fn load(folder: &Path) -> Result<Self, ConnectError> {
        let read = |name: &str| {
            files::read(&folder.join(name)).map_err(|error| ConnectError::Credentials {
                folder: folder.display().to_string(),
                why: error.to_string(),
            })
        };
        Ok(Self { ca: read("ca.pem")?, certificate: read("cert.pem")?, key: read("key.pem")? })
    }
}

impl Operator {
    /// Connects to the control address `HOST:PORT` of any node of the cluster.
    ///
    /// # Errors
    /// If no node of this cluster answers there.
    pub async fn connect(address: &str, credentials: &Credentials) -> Result<Self, ConnectError> {
        let unreachable = |error: &dyn std::error::Error| ConnectError::Unreachable {
            address: address.to_owned(),
            why: deepest(error),
        };
        let verifier = AnyNode::new(&credentials.ca).map_err(|error| unreachable(&error))?;
        let tls = ClientTlsConfig::new()
            // Not checked: the verifier accepts every node of the cluster and nothing else.
            .domain_name("any-node.ppswitch.internal")
            .identity(TlsIdentity::from_pem(&credentials.certificate, &credentials.key))
            .timeout(limits::CONNECT_PATIENCE);
        let channel = dial::endpoint(address)
            .and_then(|endpoint| endpoint.tls_config_with_verifier(tls, Arc::new(verifier)))
            .map_err(|error| unreachable(&error))?
            .connect()
            .await
            .map_err(|error| unreachable(&error))?;
        let client = AdminClient::new(channel)
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        Ok(Self { client })
    }

    /// The generated client, for all calls.
    #[must_use]
    pub fn admin(&self) -> AdminClient<Channel> {
        self.client.clone()
    }

    /// A join token, good for `lifetime`.
    ///
    /// # Errors
    /// What the cluster answered.
    pub async fn create_token(&self, lifetime: Duration) -> Result<String, tonic::Status> {
        let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let reply = self.admin().make_token(MakeTokenRequest { lifetime_ms }).await?;
        Ok(reply.into_inner().token)
    }

    /// Nodes and partitions.
    ///
    /// # Errors
    /// What the cluster answered.
    pub async fn status(&self) -> Result<StatusReply, tonic::Status> {
        Ok(self.admin().status(StatusRequest {}).await?.into_inner())
    }
}

/// The cause that says most: the transport wraps it in "transport error".
pub(crate) fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
