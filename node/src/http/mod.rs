//! HTTP of one node: `/livez`, `/readyz`, `/metrics` and a status page for people.
//!
//! * `/livez` answers 200 as long as the process can answer at all.
//! * `/readyz` answers 200 when the node wants new connections, else 503 with one reason per line. Balancers and
//!   the agent check follow it, so it changes with drains and with the loss of a majority.
//! * `/metrics` is the Prometheus text format; its recorder is installed by [`install_metrics`].

mod listen;
mod page;
mod process;

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use futures::future::BoxFuture;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use ppsw_control::ClusterView;

pub(crate) use self::process::describe as describe_process;
use crate::limits::{HISTOGRAM_BYTES, HISTOGRAM_SECONDS, METRICS_UPKEEP};

/// Asks the node why it should not get new connections; empty: ready.
pub type Readiness = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Asks the node what it knows of the whole cluster; `None`: it is about to end. Cheap, however often it is asked.
pub type Views = Arc<dyn Fn() -> BoxFuture<'static, Option<Arc<ClusterView>>> + Send + Sync>;

/// Makes the recorder for everything that the crates count, and installs it for this process.
///
/// Histograms are real ones: metrics that end in `_seconds` or `_bytes` get the buckets of `limits`.
///
/// # Errors
/// A recorder was installed before.
pub fn install_metrics() -> Result<PrometheusHandle, BuildError> {
    builder()?.install_recorder()
}

/// The endpoints. `handle` renders `/metrics`, `ready` answers for `/readyz`, `views` for the status page.
pub fn router(handle: PrometheusHandle, ready: Readiness, views: Views) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/", get(status_page))
        .with_state(Endpoints { handle, ready, views })
}

/// Serves until the socket fails.
///
/// # Errors
/// The address can't be bound, or its socket failed.
pub async fn serve(address: SocketAddr, router: Router) -> io::Result<()> {
    let listener = listen::bind(address).await?;
    axum::serve(listener, router).await
}

/// Moves finished samples into the histograms from time to time; without it they pile up between two scrapes.
pub async fn upkeep(handle: PrometheusHandle) {
    loop {
        tokio::time::sleep(METRICS_UPKEEP).await;
        handle.run_upkeep();
    }
}

#[derive(Clone)]
struct Endpoints {
    handle: PrometheusHandle,
    ready: Readiness,
    views: Views,
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), HISTOGRAM_SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), HISTOGRAM_BYTES)
}

async fn readyz(State(endpoints): State<Endpoints>) -> impl IntoResponse {
    let reasons = (endpoints.ready)();
    if reasons.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let mut body = reasons.join("\n");
    body.push('\n');
    (StatusCode::SERVICE_UNAVAILABLE, body)
}

async fn metrics(State(endpoints): State<Endpoints>) -> impl IntoResponse {
    process::collect();
    let text = endpoints.handle.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

async fn status_page(State(endpoints): State<Endpoints>) -> Response {
    let Some(view) = (endpoints.views)().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "this node is about to end\n").into_response();
    };
    let headers = [
        (header::CONTENT_SECURITY_POLICY, page::POLICY.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, Html(page::render(&(endpoints.ready)(), &view))).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.connect(&address.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut stream = tokio::net::TcpStream::from_std(socket.into()).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn endpoints_follow_the_node() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("ppsw_test_messages_total").increment(3);
            metrics::histogram!("ppsw_test_commit_seconds").record(0.003);
        });
        let up = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&up);
        let ready: Readiness = Arc::new(move || {
            if seen.load(Ordering::Relaxed) {
                vec![]
            } else {
                vec!["no quorum".to_owned(), "draining".to_owned()]
            }
        });
        let views: Views =
            Arc::new(|| Box::pin(async { Some(Arc::new(ClusterView::default())) }) as _);
        let listener = listen::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server =
            tokio::spawn(async move { axum::serve(listener, router(handle, ready, views)).await });

        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200 "));
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nno quorum\ndraining\n"), "{answer}");
        let answer = get(address, "/").await;
        assert!(answer.contains("no quorum; draining"), "{answer}");
        let policy = answer.lines().find(|line| line.starts_with("content-security-policy: "));
        assert!(policy.unwrap().contains("default-src 'none'; style-src 'sha256-"), "{answer}");
        up.store(true, Ordering::Relaxed);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200 "));
        let answer = get(address, "/metrics").await;
        assert!(answer.contains("ppsw_test_messages_total 3"), "{answer}");
        assert!(answer.contains("ppsw_test_commit_seconds_bucket{le=\"0.005\"} 1"), "{answer}");
        server.abort();
    }
}
