//! The verified reverse name of a client: a PTR name that has the client's address (the paper's `host_lookup = *`).

use std::net::IpAddr;

use tokio::time::timeout;

use crate::{
    dns::Dns,
    limits::{CLIENT_NAME_DEADLINE, CLIENT_NAMES_MAX},
};

/// The name, in lower case; `None` if there is none, it does not lead back, or the DNS is too slow.
pub(super) async fn verified_name(dns: &dyn Dns, client: IpAddr) -> Option<String> {
    let client = client.to_canonical();
    let search = async {
        for name in dns.names(client).await.ok()?.into_iter().take(CLIENT_NAMES_MAX) {
            let back = dns.addresses(&name).await.unwrap_or_default();
            if back.iter().any(|a| a.to_canonical() == client) {
                return Some(name.trim_end_matches('.').to_ascii_lowercase());
            }
        }
        None
    };
    timeout(CLIENT_NAME_DEADLINE, search).await.ok().flatten()
}
