//! Connections to other nodes, and the TLS settings of both ends. Each peer gets two channels, so that entries never
//! delay heartbeats; the name that TLS checks is that of the node that is meant.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use ppsw_proto::control::node_client::NodeClient;
use ppsw_spool::{
    NodeId,
    group::{Dial, Lane},
};
use tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity, ServerTlsConfig,
};

use crate::{identity::Identity, limits, pki};

/// Opens channels to members by number.
pub(crate) struct Dialer {
    cluster: String,
    tls: ClientTlsConfig,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    addresses: BTreeMap<NodeId, String>,
    channels: HashMap<(NodeId, Lane), Channel>,
}

impl Dialer {
    /// With this node's certificate.
    #[must_use]
    pub(crate) fn new(identity: &Identity) -> Self {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&identity.ca))
            .identity(TlsIdentity::from_pem(&identity.certificate, &identity.key))
            .timeout(limits::CONNECT_PATIENCE);
        Self { cluster: identity.cluster.clone(), tls, book: Mutex::default() }
    }

    /// Takes the members' addresses; channels to addresses that changed are opened anew.
    pub(crate) fn update(&self, addresses: BTreeMap<NodeId, String>) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let Book { addresses: known, channels } = &mut *book;
        channels.retain(|(node, _), _| known.get(node) == addresses.get(node));
        *known = addresses;
    }

    /// A client of another node's `Node` service.
    #[must_use]
    pub(crate) fn node(&self, node: NodeId) -> Option<NodeClient<Channel>> {
        self.channel(node, Lane::Control).map(|channel| {
            NodeClient::new(channel)
                .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
                .max_encoding_message_size(limits::MESSAGE_BYTES_MAX)
        })
    }

    /// A client for large answers, on a connection of its own that ends with it.
    #[must_use]
    pub(crate) fn transfer(&self, node: NodeId) -> Option<NodeClient<Channel>> {
        let address = self.address(node)?;
        let channel = self.open(node, &address);
        let channel = channel
            .inspect_err(|error| tracing::warn!(node, address, %error, "cannot dial this address"));
        Some(
            NodeClient::new(channel.ok()?)
                .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
                .max_encoding_message_size(limits::MESSAGE_BYTES_MAX),
        )
    }

    fn address(&self, node: NodeId) -> Option<String> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.addresses.get(&node).cloned()
    }

    /// Numbers of all nodes with a known address.
    #[must_use]
    pub(crate) fn known(&self) -> Vec<NodeId> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.addresses.keys().copied().collect()
    }

    fn open(&self, node: NodeId, address: &str) -> Result<Channel, tonic::transport::Error> {
        let name = pki::server_name(node, &self.cluster);
        let endpoint = endpoint(address)?.tls_config(self.tls.clone().domain_name(name))?;
        Ok(endpoint.connect_lazy())
    }
}

impl Dial for Dialer {
    fn channel(&self, node: NodeId, lane: Lane) -> Option<Channel> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = book.channels.get(&(node, lane)) {
            return Some(channel.clone());
        }
        let address = book.addresses.get(&node)?;
        match self.open(node, address) {
            Ok(channel) => {
                book.channels.insert((node, lane), channel.clone());
                Some(channel)
            }
            Err(error) => {
                tracing::warn!(node, address, %error, "cannot dial this address");
                None
            }
        }
    }
}

/// The settings of every connection that this program opens.
///
/// # Errors
/// If the address is no `HOST:PORT`.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("https://{address}"))?
        .connect_timeout(limits::CONNECT_PATIENCE)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(limits::KEEP_ALIVE)
        .keep_alive_timeout(limits::KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(limits::WINDOW_BYTES)
        .initial_connection_window_size(limits::WINDOW_BYTES)
        .max_frame_size(limits::FRAME_BYTES))
}

/// TLS of the serving side: a client certificate is checked if there is one; who may do what without is decided per
/// request. The CA's certificate is sent along, for joining machines.
#[must_use]
pub(crate) fn server_tls(identity: &Identity) -> ServerTlsConfig {
    let chain = format!("{}{}", identity.certificate, identity.ca);
    ServerTlsConfig::new()
        .identity(TlsIdentity::from_pem(chain, &identity.key))
        .client_ca_root(Certificate::from_pem(&identity.ca))
        .client_auth_optional(true)
        .timeout(limits::CONNECT_PATIENCE)
}
