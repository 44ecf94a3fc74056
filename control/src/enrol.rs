//! How a machine becomes a node: the first by `init`, the others by `join` with a token.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use ppsw_proto::control::{EnrolReply, EnrolRequest, join_client::JoinClient};
use ppsw_spool::{
    NodeId,
    env::{Clock, SystemClock},
};
use tokio::time::{sleep, timeout};
use tonic::{Code, transport::ClientTlsConfig};

use crate::{
    PlaneError,
    client::deepest,
    dial,
    files::{self, Access},
    identity::{self, Address, AddressBook, Identity},
    limits,
    pki::{self, Authority, Credential, PinnedCa, Role},
    token::Token,
};

/// The first node's number.
const FIRST: NodeId = 1;

/// The key of a join that has not ended.
const PENDING_KEY: &str = "joining-key.pem";

/// Between two tries while the cluster elects a leader.
const RETRY: Duration = Duration::from_millis(500);

/// `ppswd init`: makes a cluster of one node in `data`: CA, node certificate, node id 1, and an admin and a viewer
/// credential (`ca.pem`, `cert.pem`, `key.pem`) in the folders `admin` and `viewer`.
///
/// # Errors
/// If there is an identity already, or a file cannot be written.
pub async fn init(
    data: &Path,
    listen: SocketAddr,
    admin: &Path,
    viewer: &Path,
) -> Result<(), PlaneError> {
    refuse_member(data)?;
    let now = SystemClock.now();
    let cluster = pki::hex(&rand::random::<[u8; 8]>());
    let (authority, ca_key) = Authority::found(&cluster, now)?;
    let key = pki::new_key()?;
    let certificate = authority.sign_node(&pki::request(&key)?, FIRST, now)?;
    store_credential(admin, &authority, &authority.operator(Role::Admin, now)?)?;
    store_credential(viewer, &authority, &authority.operator(Role::Viewer, now)?)?;
    let identity = Identity {
        node: FIRST,
        cluster,
        founder: true,
        ca: authority.certificate().to_owned(),
        certificate,
        key,
        ca_key: Some(ca_key),
    };
    let address = Address { id: FIRST, control: listen.to_string() };
    // Last: with the identity the cluster exists.
    identity.store(data, &AddressBook::new(vec![address]))?;
    Ok(())
}

/// `ppswd join`: checks the CA against the token, gets a certificate and a node id from the cluster. Running it again
/// after a failure gives the same node id, as long as `data` is kept.
///
/// # Errors
/// If there is an identity already, the token is none or of another cluster, or nobody answers.
pub async fn join(
    data: &Path,
    listen: SocketAddr,
    token: &str,
    peer: &str,
) -> Result<NodeId, PlaneError> {
    refuse_member(data)?;
    let token = Token::parse(token).map_err(|error| PlaneError::Refused(error.to_string()))?;
    let key = pending_key(data)?;
    let request = EnrolRequest {
        secret: token.secret.clone(),
        csr: pki::request(&key)?,
        control: listen.to_string(),
    };
    let tries = enrol_with_patience(peer, &token.fingerprint, &request);
    let reply = timeout(limits::JOIN_PATIENCE, tries).await.unwrap_or_else(|_| {
        Err(PlaneError::Peer(format!(
            "{peer} has not let this machine join within {:?}: is the cluster without a majority? \
             `ppswctl status` tells; then run join again",
            limits::JOIN_PATIENCE
        )))
    })?;
    if pki::fingerprint(&reply.ca)? != token.fingerprint {
        return Err(PlaneError::Peer(format!("{peer} answered with another CA than the token's")));
    }
    let members = reply
        .members
        .into_iter()
        .map(|member| Address { id: member.id, control: member.control })
        .collect();
    let identity = Identity {
        node: reply.node,
        cluster: reply.cluster,
        founder: false,
        ca: reply.ca,
        certificate: reply.certificate,
        key,
        ca_key: Some(reply.ca_key).filter(|key| !key.is_empty()),
    };
    identity.store(data, &AddressBook::new(members))?;
    files::remove(&data.join(PENDING_KEY))?;
    Ok(reply.node)
}

fn refuse_member(data: &Path) -> Result<(), PlaneError> {
    let dir = identity::dir(data);
    if files::exists(&dir) {
        return Err(PlaneError::Refused(format!(
            "{} exists: this machine is a node already. Start it with `ppswd run`, or give it an empty data directory",
            dir.display()
        )));
    }
    Ok(())
}

fn store_credential(
    folder: &Path,
    authority: &Authority,
    credential: &Credential,
) -> io::Result<()> {
    files::make_private_dir(folder)?;
    files::write(&folder.join("ca.pem"), authority.certificate(), Access::Public)?;
    files::write(&folder.join("cert.pem"), &credential.certificate, Access::Public)?;
    files::write(&folder.join("key.pem"), &credential.key, Access::Secret)
}

/// The key that an earlier, failed join used: the cluster knows the machine by it and gives the same number.
fn pending_key(data: &Path) -> Result<String, PlaneError> {
    files::make_private_dir(data)?;
    let path = data.join(PENDING_KEY);
    if let Some(key) = files::read_optional(&path)? {
        return Ok(key);
    }
    let key = pki::new_key()?;
    files::write(&path, &key, Access::Secret)?;
    Ok(key)
}

async fn enrol_with_patience(
    peer: &str,
    fingerprint: &str,
    request: &EnrolRequest,
) -> Result<EnrolReply, PlaneError> {
    loop {
        match enrol(peer, fingerprint, request).await {
            Err(status) if status.code() == Code::Unavailable => {
                tracing::info!(peer, reason = status.message(), "join: trying again");
                sleep(RETRY).await;
            }
            Err(status) => return Err(PlaneError::Refused(status.message().to_owned())),
            Ok(reply) => return Ok(reply),
        }
    }
}

/// One try. The secret is sent only after TLS has found the token's CA at the other end.
async fn enrol(
    peer: &str,
    fingerprint: &str,
    request: &EnrolRequest,
) -> Result<EnrolReply, tonic::Status> {
    let tls = ClientTlsConfig::new()
        // Not checked: the verifier accepts every node of the token's cluster and nothing else.
        .domain_name("any-node.ppswitch.internal")
        .timeout(limits::CONNECT_PATIENCE);
    let channel = dial::endpoint(peer)
        .and_then(|e| e.tls_config_with_verifier(tls, Arc::new(PinnedCa::new(fingerprint))))
        .map_err(|error| {
            tonic::Status::invalid_argument(format!(
                "expected the peer as HOST:PORT, not `{peer}`: {}",
                deepest(&error)
            ))
        })?
        .connect()
        .await
        .map_err(|error| not_connected(peer, &error))?;
    let reply = JoinClient::new(channel).enrol(request.clone()).await?;
    Ok(reply.into_inner())
}

fn not_connected(peer: &str, error: &tonic::transport::Error) -> tonic::Status {
    let why = deepest(error);
    if is_foreign(error) {
        return tonic::Status::permission_denied(format!(
            "{peer} does not belong to the cluster of this token ({why}): the secret was not sent. \
             Check the address, and that the token is of this cluster"
        ));
    }
    tonic::Status::unavailable(format!("{peer} does not answer: {why}"))
}

/// Whether TLS refused the peer's certificate.
fn is_foreign(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return matches!(tls, rustls::Error::InvalidCertificate(_));
        }
        cause = error.source();
    }
    false
}
