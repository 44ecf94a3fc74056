//! A client of the control plane for operators: `ppswctl`, and what starts a cluster.

use std::{error::Error, io, path::Path, sync::Arc, time::Duration};

use ppsw_proto::control::{
    MakeTokenRequest, StatusReply, StatusRequest, admin_client::AdminClient,
};
use ppsw_spool::env::{Clock as _, SystemClock};
use tonic::transport::{Channel, ClientTlsConfig, Identity as TlsIdentity};

use crate::{
    dial, files, limits,
    pki::{self, AnyNode},
};

mod push;

pub use push::{NewVersion, Pushed, change, push};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The operator's files.
    #[error("cannot use the credentials in {folder}: {why}")]
    Credentials { folder: String, why: String },
    /// Somebody answers there who is not of the cluster whose CA the operator has.
    #[error("{address} is no node of the cluster of these credentials: {why}")]
    Foreign { address: String, why: String },
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
    /// Reads `ca.pem`, `cert.pem` and `key.pem`, and checks them.
    ///
    /// # Errors
    /// Says which file is missing, or cannot be used.
    pub fn load(folder: &Path) -> Result<Self, ConnectError> {
        let wrong = |why| ConnectError::Credentials { folder: folder.display().to_string(), why };
        let read =
            |name: &str| files::read(&folder.join(name)).map_err(|error| wrong(error.to_string()));
        let (ca, certificate, key) = (read("ca.pem")?, read("cert.pem")?, read("key.pem")?);
        pki::check_own(&ca, &certificate, &key, SystemClock.now()).map_err(wrong)?;
        Ok(Self { ca, certificate, key })
    }
}

impl Operator {
    /// Connects to the control address `HOST:PORT` of any node of the cluster.
    ///
    /// # Errors
    /// If no node of this cluster answers there.
    pub async fn connect(address: &str, credentials: &Credentials) -> Result<Self, ConnectError> {
        let unreachable = |error: &dyn Error| ConnectError::Unreachable {
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
            .map_err(|error| match is_foreign(&error) {
                true => ConnectError::Foreign { address: address.to_owned(), why: deepest(&error) },
                false => unreachable(&error),
            })?;
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

/// Whether the other end's certificate is what was wrong.
fn is_foreign(error: &(dyn Error + 'static)) -> bool {
    let of_tls = |cause: &(dyn Error + 'static)| {
        let inner = || cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref();
        let tls = cause.downcast_ref::<rustls::Error>().or_else(inner);
        matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
    };
    let mut cause = Some(error);
    while let Some(error) = cause {
        if of_tls(error) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The cause that says most: the transport wraps it in "transport error".
#[must_use]
pub fn deepest(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
