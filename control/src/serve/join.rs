//! Letting new machines in. The only service without a client certificate: it reads little, and checks the token first.

use std::sync::Arc;

use bytes::Bytes;
use ppsw_proto::control::{self as pb, command::Change, join_server::Join};
use prost::Message;
use tonic::{Request, Response, Status};

use crate::{
    NodeId, access, limits, overview,
    pki::{self, Authority},
    plane::Shared,
    token,
};

pub(crate) struct Service(pub(crate) Arc<Shared>);

#[tonic::async_trait]
impl Join for Service {
    async fn enrol(
        &self,
        request: Request<pb::EnrolRequest>,
    ) -> Result<Response<pb::EnrolReply>, Status> {
        let shared = &self.0;
        let pb::EnrolRequest { secret, csr, control } = request.into_inner();
        let now_ms = shared.now().0;
        let token_hash = token::hash(&secret);
        let state = shared.state();
        if !state.known() {
            return Err(Status::unavailable("this node has not heard the control group yet"));
        }
        // The control group decides; this spares it strangers. What this node acts on may lag behind its own replica by
        // a moment.
        let newest = shared.machine.watch().borrow().clone();
        if [&state, &newest].iter().all(|state| state.token(&token_hash, now_ms).is_none()) {
            metrics::counter!("ppsw_control_refused_joins_total").increment(1);
            return Err(Status::permission_denied(
                "the token is unknown, revoked or expired: get a new one with `ppswctl token create`",
            ));
        }
        let key_hash = pki::request_key_hash(&csr).map_err(refuse)?.into();
        let admit = pb::Admit { token_hash: token_hash.into(), now_ms, key_hash, control };
        let admitted = shared.command(Change::Admit(admit)).await?;
        let reply = enrolled(shared, admitted, csr).await?;
        tracing::info!(node = reply.node, "a node joined");
        Ok(Response::new(reply))
    }
}

/// Gives a member that has lost its log a new number. Refused where the loss leaves a group without a majority: the
/// operator then has to bring other voters back first, because what they have may be the last copy.
pub(crate) async fn readmit(
    shared: &Shared,
    old: NodeId,
    csr: String,
    control: String,
) -> Result<pb::EnrolReply, Status> {
    let key_hash: Bytes = pki::request_key_hash(&csr).map_err(refuse)?.into();
    let state = shared.state();
    if !state.known() {
        return Err(Status::unavailable("this node has not heard the control group yet"));
    }
    if !state.members.values().any(|member| member.key_hash == key_hash) {
        if state.has_left(old) {
            return Err(access::has_left(old, &state));
        }
        let reports = shared.ask_all(&state).await;
        overview::loss_is_safe(old, true, &state, &reports).map_err(Status::failed_precondition)?;
    }
    let readmit = pb::Readmit { old, now_ms: shared.now().0, key_hash, control };
    let admitted = shared.command(Change::Readmit(readmit)).await?;
    let reply = enrolled(shared, admitted, csr).await?;
    tracing::warn!(old, new = reply.node, "a node has lost its log and comes back");
    Ok(reply)
}

/// What a machine needs that was admitted.
async fn enrolled(shared: &Shared, admitted: Bytes, csr: String) -> Result<pb::EnrolReply, Status> {
    let node = pb::Admitted::decode(admitted)
        .map_err(|error| Status::internal(format!("a damaged answer: {error}")))?
        .node;
    let signed = sign_somewhere(shared, node, csr).await?;
    Ok(pb::EnrolReply {
        node,
        cluster: shared.identity.cluster.clone(),
        certificate: signed.certificate,
        ca_key: signed.ca_key,
        ca: shared.identity.ca.clone(),
        members: shared.state().members.values().cloned().collect(),
    })
}

/// Here if this node has the CA's key, else on a node that has it.
async fn sign_somewhere(
    shared: &Shared,
    node: NodeId,
    csr: String,
) -> Result<pb::SignReply, Status> {
    if shared.identity.ca_key.is_some() {
        return sign(shared, node, &csr);
    }
    let state = shared.state();
    let signs = state.members.values().filter(|member| member.signs).map(|member| member.id);
    let mut troubles = Vec::new();
    for authority in std::iter::once(state.authority).chain(signs.filter(|n| *n != state.authority))
    {
        let Some(mut client) = shared.dialer.node(authority) else {
            troubles.push(format!("node {authority} is not known"));
            continue;
        };
        let asked = client.sign(pb::SignRequest { node, csr: csr.clone() });
        match tokio::time::timeout(limits::SIGN_PATIENCE, asked).await {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) => troubles.push(format!("node {authority}: {}", status.message())),
            Err(_) => troubles.push(format!("node {authority} does not answer")),
        }
    }
    Err(Status::unavailable(format!(
        "no node that has the CA's key answers ({}): start one, then join again",
        troubles.join("; ")
    )))
}

/// Signs a certificate for a member that was admitted with this key, and for nobody else. With it goes the CA's key, so
/// that no node is the only one that can let machines in: whoever dies, the others replace.
pub(crate) fn sign(shared: &Shared, node: NodeId, csr: &str) -> Result<pb::SignReply, Status> {
    let Some(key) = &shared.identity.ca_key else {
        return Err(Status::failed_precondition("this node does not have the CA's key"));
    };
    let key_hash = pki::request_key_hash(csr).map_err(refuse)?;
    // The newest state, which the view may lag behind by a moment.
    let state = shared.machine.watch().borrow().clone();
    match state.members.get(&node) {
        Some(member) if member.key_hash == key_hash => {}
        Some(_) => {
            return Err(Status::permission_denied(format!("node {node} joined with another key")));
        }
        None => {
            return Err(Status::unavailable(format!("node {node} is not known here yet")));
        }
    }
    let authority = Authority::load(&shared.identity.ca, key, &shared.identity.cluster)
        .map_err(|error| Status::internal(error.to_string()))?;
    let certificate = authority
        .sign_node(csr, node, shared.now())
        .map_err(|e| Status::internal(e.to_string()))?;
    Ok(pb::SignReply { certificate, ca_key: key.clone() })
}

fn refuse(error: pki::PkiError) -> Status {
    Status::invalid_argument(error.to_string())
}
