//! Letting new machines in. The only service without a client certificate: it reads little, and checks the token first.

use std::sync::Arc;

use ppsw_proto::control::{self as pb, command::Change, join_server::Join};
use prost::Message;
use tonic::{Request, Response, Status};

use crate::{
    NodeId, limits,
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
        // The control group decides; this spares it strangers.
        if state.token(&token_hash, now_ms).is_none() {
            metrics::counter!("ppsw_control_refused_joins_total").increment(1);
            return Err(Status::permission_denied(
                "the token is unknown, revoked or expired: get a new one with `ppswctl token create`",
            ));
        }
        let key_hash = pki::request_key_hash(&csr).map_err(refuse)?.into();
        let admit = pb::Admit { token_hash: token_hash.into(), now_ms, key_hash, control };
        let admitted = shared.command(Change::Admit(admit)).await?;
        let node = pb::Admitted::decode(admitted)
            .map_err(|error| Status::internal(format!("a damaged answer: {error}")))?
            .node;
        let certificate = sign_somewhere(shared, node, csr).await?;
        tracing::info!(node, "a node joined");
        Ok(Response::new(pb::EnrolReply {
            node,
            cluster: shared.identity.cluster.clone(),
            certificate,
            ca: shared.identity.ca.clone(),
            members: shared.state().members.values().cloned().collect(),
        }))
    }
}

/// Here if this node has the CA's key, else on the node that has it.
async fn sign_somewhere(shared: &Shared, node: NodeId, csr: String) -> Result<String, Status> {
    if shared.identity.ca_key.is_some() {
        return sign(shared, node, &csr);
    }
    let authority = shared.state().authority;
    let unavailable = |why: &str| {
        Status::unavailable(format!(
            "node {authority}, which has the CA's key, cannot sign ({why}): start it, then join again"
        ))
    };
    let mut client =
        shared.dialer.node(authority).ok_or_else(|| unavailable("its address is not known"))?;
    let asked = client.sign(pb::SignRequest { node, csr });
    match tokio::time::timeout(limits::COMMAND_DEADLINE, asked).await {
        Ok(Ok(reply)) => Ok(reply.into_inner().certificate),
        Ok(Err(status)) => Err(unavailable(status.message())),
        Err(_) => Err(unavailable("it does not answer")),
    }
}

/// Signs a certificate for a member that was admitted with this key, and for nobody else.
pub(crate) fn sign(shared: &Shared, node: NodeId, csr: &str) -> Result<String, Status> {
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
    authority.sign_node(csr, node, shared.now()).map_err(|e| Status::internal(e.to_string()))
}

fn refuse(error: pki::PkiError) -> Status {
    Status::invalid_argument(error.to_string())
}
