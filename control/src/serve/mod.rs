//! The gRPC services of a node, on one address: Raft groups, nodes, operators, joining machines.

mod admin;
mod domains;
mod explain;
pub(crate) mod filter;
mod join;
mod log;
mod node;
mod operate;
mod pages;
pub(crate) mod queue;
pub(crate) mod standing;
mod tables;
mod watch;

use std::{future::Future, net::SocketAddr, sync::Arc};

use axum::middleware;
use ppsw_proto::control::{
    admin_server::AdminServer, join_server::JoinServer, node_server::NodeServer,
};
use tonic::{
    service::Routes,
    transport::server::{Server, TcpIncoming},
};

use crate::{
    PlaneError,
    access::{self, Guard},
    dial, limits,
    plane::Shared,
};

/// Takes the address.
pub(crate) fn listen(address: SocketAddr) -> Result<TcpIncoming, PlaneError> {
    TcpIncoming::bind(address)
        .map(|incoming| incoming.with_nodelay(Some(true)))
        .map_err(|error| PlaneError::Listen { address, why: error.to_string() })
}

/// The server; ends when `shared.closed` says so, after the answers that are under way.
pub(crate) fn run(
    shared: Arc<Shared>,
    listener: TcpIncoming,
) -> Result<impl Future<Output = ()> + Send + 'static, PlaneError> {
    let address = shared.options.listen;
    let failed = |error: &dyn std::error::Error| PlaneError::Listen {
        address,
        why: crate::client::deepest(error),
    };
    let router = Server::builder()
        .tls_config(dial::server_tls(&shared.identity))
        .map_err(|error| failed(&error))?
        .initial_stream_window_size(limits::WINDOW_BYTES)
        .initial_connection_window_size(limits::WINDOW_BYTES)
        .max_frame_size(limits::FRAME_BYTES)
        .http2_keepalive_interval(Some(limits::KEEP_ALIVE))
        .http2_keepalive_timeout(Some(limits::KEEP_ALIVE))
        .add_routes(routes(&shared));
    let closed = shared.closed.clone().cancelled_owned();
    Ok(async move {
        if let Err(error) = router.serve_with_incoming_shutdown(listener, closed).await {
            tracing::error!(
                error = crate::client::deepest(&error),
                "the control plane's server ended"
            );
        }
    })
}

fn routes(shared: &Arc<Shared>) -> Routes {
    let guard = Guard { cluster: shared.identity.cluster.clone(), state: shared.view.subscribe() };
    let limit = limits::MESSAGE_BYTES_MAX;
    let nodes = NodeServer::new(node::Service(Arc::clone(shared)))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let admin = AdminServer::new(admin::Service(Arc::clone(shared)))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let join = JoinServer::new(join::Service(Arc::clone(shared)))
        .max_decoding_message_size(2 * limits::CSR_BYTES_MAX);
    let own = Routes::new(nodes).add_service(admin).add_service(join).into_axum_router();
    // Only one of two routers that are merged may have an answer to unknown paths.
    let groups = shared.groups.service().into_axum_router().reset_fallback();
    own.merge(groups).layer(middleware::from_fn_with_state(Arc::new(guard), access::check)).into()
}
