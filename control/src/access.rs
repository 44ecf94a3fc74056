//! Who may call what: checked on every request, by the certificate of the connection.

use std::sync::Arc;

use axum::{
    extract::{Request, State as Shared},
    middleware::Next,
    response::Response,
};
use tokio::sync::watch;
use tonic::{
    Status,
    metadata::MetadataValue,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};

use crate::{
    NodeId,
    pki::{self, Peer, Role},
    state::State,
};

/// Marks the answer to a node that was removed.
const REMOVED: &str = "ppsw-removed";

/// What a viewer may call: nothing that changes anything, and nothing that shows what tables hold (passwords' hashes).
const VIEWERS: [&str; 12] = [
    "Status",
    "Queue",
    "Summarise",
    "Log",
    "ListStanding",
    "Route",
    "Session",
    "ListVersions",
    "TablesStatus",
    "ListDomains",
    "CheckDomain",
    "Events",
];

/// What the check needs to know.
pub(crate) struct Guard {
    pub(crate) cluster: String,
    pub(crate) state: watch::Receiver<Arc<State>>,
}

/// Lets a request through, with its [`Peer`] (if any) in the extensions, or answers why not.
pub(crate) async fn check(
    Shared(guard): Shared<Arc<Guard>>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = caller(&request);
    let mut path = request.uri().path().trim_start_matches('/').split('/');
    let (service, method) = (path.next().unwrap_or_default(), path.next().unwrap_or_default());
    let admitted = caller.and_then(|caller| {
        guard.admit(service, method, caller.as_ref())?;
        Ok(caller)
    });
    match admitted {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
        Err(status) => {
            metrics::counter!("ppsw_control_refused_requests_total").increment(1);
            tracing::warn!(service, method, reason = status.message(), "request refused");
            status.into_http()
        }
    }
}

impl Guard {
    fn admit(&self, service: &str, method: &str, caller: Option<&Peer>) -> Result<(), Status> {
        if service == "ppsw.control.v1.Join" {
            return Ok(());
        }
        let Some(caller) = caller else {
            return Err(Status::unauthenticated(
                "this call needs a client certificate of the cluster: use --credentials",
            ));
        };
        if caller.cluster != self.cluster {
            return Err(Status::permission_denied(format!(
                "the certificate is of cluster {}, this is cluster {}",
                caller.cluster, self.cluster
            )));
        }
        let fits = match (service, caller.role) {
            ("ppsw.control.v1.Admin", Role::Admin) => true,
            ("ppsw.control.v1.Admin", Role::Viewer) => VIEWERS.contains(&method),
            ("ppsw.control.v1.Admin", Role::Node) => false,
            // Nodes talk to nodes: control, and every Raft group.
            (_, role) => role == Role::Node,
        };
        if !fits {
            return Err(Status::permission_denied(format!(
                "{service}/{method} is not for role {}: use other credentials",
                caller.role.as_str()
            )));
        }
        if method == "Rejoin" {
            // Asked again after a lost answer, when the old number may have left: the key decides.
            return Ok(());
        }
        self.still_member(caller)
    }

    /// A node that was removed keeps a valid certificate, but nobody listens to it any more.
    fn still_member(&self, caller: &Peer) -> Result<(), Status> {
        let state = self.state.borrow();
        // Numbers only grow: one above all that we know belongs to a node that has joined since.
        match caller.node.filter(|node| state.has_left(*node)) {
            Some(node) => Err(has_left(node, &state)),
            None => Ok(()),
        }
    }
}

/// The answer to a node that was removed.
pub(crate) fn has_left(node: NodeId, state: &State) -> Status {
    let why = state.removed.get(&node).map_or_else(
        || format!("node {node} is no member any more"),
        |removal| {
            let (by, reason) = (&removal.by, &removal.reason);
            format!("node {node} was removed from the cluster by {by}: {reason}")
        },
    );
    let mut status = Status::permission_denied(why);
    status.metadata_mut().insert(REMOVED, MetadataValue::from_static("1"));
    status
}

/// Why the caller is no member any more, if that is what a node has answered. Only a member of the cluster can have said
/// it, and nobody says it of a node that has joined later than it knows.
pub(crate) fn removed(status: &Status) -> Option<String> {
    status.metadata().contains_key(REMOVED).then(|| status.message().to_owned())
}

/// The certificate of the request's connection; `None` without one.
fn caller(request: &Request) -> Result<Option<Peer>, Status> {
    let certificates = request
        .extensions()
        .get::<TlsConnectInfo<TcpConnectInfo>>()
        .and_then(TlsConnectInfo::peer_certs);
    certificates
        .and_then(|chain| chain.first().map(|leaf| pki::peer(leaf)))
        .transpose()
        .map_err(|error| Status::permission_denied(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::cluster;

    const ADMIN: &str = "ppsw.control.v1.Admin";
    const NODE: &str = "ppsw.control.v1.Node";

    fn peer(role: Role, node: Option<u64>) -> Peer {
        Peer { role, cluster: "c0ffee".to_owned(), name: String::new(), node }
    }

    fn guard() -> Guard {
        let (_, state) = watch::channel(Arc::new(cluster(3)));
        Guard { cluster: "c0ffee".to_owned(), state }
    }

    #[test]
    fn each_role_gets_its_calls_only() {
        let guard = guard();
        let node = peer(Role::Node, Some(2));
        let (admin, viewer) = (peer(Role::Admin, None), peer(Role::Viewer, None));
        let ok = |service, method, peer| guard.admit(service, method, Some(peer)).is_ok();
        assert!(ok(NODE, "Propose", &node) && ok("ppsw.raft.v1.Raft", "Append", &node));
        assert!(!ok(ADMIN, "Drain", &node));
        assert!(ok(ADMIN, "Drain", &admin) && !ok(NODE, "Propose", &admin));
        assert!(ok(ADMIN, "Status", &viewer) && !ok(ADMIN, "Drain", &viewer));
        assert!(ok(ADMIN, "ListDomains", &viewer) && !ok(ADMIN, "SetHttps", &viewer));
        assert!(ok(ADMIN, "TablesStatus", &viewer) && !ok(ADMIN, "Get", &viewer));
        // Dialogue has addresses, events have none.
        assert!(ok(ADMIN, "Events", &viewer) && !ok(ADMIN, "Trace", &viewer));
        assert!(
            ok(ADMIN, "Trace", &admin) && ok(NODE, "Trace", &node) && !ok(NODE, "Trace", &admin)
        );
        assert!(!ok(ADMIN, "Push", &viewer) && !ok(NODE, "Fetch", &admin));
        assert!(!ok("ppsw.raft.v1.Raft", "Append", &viewer));
        assert!(guard.admit("ppsw.control.v1.Join", "Enrol", None).is_ok());
        assert!(guard.admit(ADMIN, "Status", None).is_err());
    }

    #[test]
    fn another_cluster_and_a_removed_node_are_refused() {
        let mut guard = guard();
        let mut stranger = peer(Role::Admin, None);
        stranger.cluster = "dead".to_owned();
        assert!(guard.admit(ADMIN, "Status", Some(&stranger)).is_err());
        let mut state = cluster(3);
        state.members.remove(&2);
        state.members.remove(&3);
        guard.state = watch::channel(Arc::new(state)).1;
        assert!(guard.admit(NODE, "Report", Some(&peer(Role::Node, Some(2)))).is_err());
        let refused = guard.admit("ppsw.raft.v1.Raft", "Append", Some(&peer(Role::Node, Some(3))));
        let refused = refused.expect_err("the newest number is refused like any other");
        assert!(removed(&refused).is_some_and(|why| why.contains("node 3")));
        assert!(
            guard.admit(NODE, "Report", Some(&peer(Role::Node, Some(9)))).is_ok(),
            "just joined"
        );
    }
}
