//! The agent check of HAProxy: a connection gets one line, which says whether the balancer should use this node and how
//! much.
//!
//! | line | when |
//! | --- | --- |
//! | `up ready N%` | the node is ready; N falls with the load of the machine |
//! | `drain` | it is being drained, or not ready: sessions that exist may end, new ones go elsewhere |
//!
//! `ready` stands beside `up` because HAProxy remembers a `drain` until it hears `ready`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::Semaphore, time::timeout};

use crate::{
    files,
    http::Readiness,
    limits::{ACCEPT_BACK_OFF, AGENT_ANSWER_MAX, AGENT_CHECKS_MAX, AGENT_WEIGHT_MIN},
    net::{self, BindError},
};

/// Answers checks on `address` until the future is dropped.
///
/// # Errors
/// The address can't be had.
pub async fn serve(address: SocketAddr, ready: Readiness) -> Result<(), BindError> {
    let socket = net::listen(address)?;
    let places = Arc::new(Semaphore::new(AGENT_CHECKS_MAX));
    loop {
        let Ok((stream, _)) = socket.accept().await else {
            tokio::time::sleep(ACCEPT_BACK_OFF).await;
            continue;
        };
        // Too many at once: closed without a word, which changes nothing at the balancer.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let line = line(&ready(), load_per_core());
        tokio::spawn(async move {
            let _ = timeout(AGENT_ANSWER_MAX, say(stream, &line)).await;
            drop(place);
        });
    }
}

/// What the balancer is told.
fn line(reasons: &[String], load_per_core: f64) -> String {
    if reasons.is_empty() {
        format!("up ready {}%\n", weight(load_per_core))
    } else {
        "drain\n".to_owned()
    }
}

/// Full weight up to a load of 1 per core, the least from 3 on: between them it falls evenly.
fn weight(load_per_core: f64) -> u8 {
    let share = ((3.0 - load_per_core) / 2.0).clamp(0.0, 1.0);
    let least = f64::from(AGENT_WEIGHT_MIN);
    // Between 0 and 100 by the clamp.
    (least + share * (100.0 - least)).round() as u8
}

fn load_per_core() -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // Without /proc the load is unknown: full weight.
    files::load_average().unwrap_or(0.0) / cores as f64
}

async fn say(mut stream: TcpStream, line: &str) -> std::io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown().await
}

const _: () = assert!(AGENT_WEIGHT_MIN <= 100);
const _: () = assert!(AGENT_ANSWER_MAX.as_secs() < Duration::from_secs(60).as_secs());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_falls_with_the_load() {
        assert_eq!(line(&[], 0.0), "up ready 100%\n");
        assert_eq!(line(&[], 1.0), "up ready 100%\n");
        assert_eq!(line(&[], 2.0), "up ready 55%\n");
        assert_eq!(line(&[], 40.0), "up ready 10%\n");
        assert_eq!(line(&["draining".to_owned()], 0.0), "drain\n");
    }
}
