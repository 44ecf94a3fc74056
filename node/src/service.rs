//! What the service manager of the machine is told (sd_notify(3)); without one, nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// The node takes mail.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The node ends; what runs comes to its end first.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Shows that the node's event loop goes on, as often as the service manager wants to see it, until the future is dropped.
/// A node that hangs is killed then, and others take its queue over.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        tell(&[NotifyState::Watchdog]);
        tokio::time::sleep((limit / 3).max(Duration::from_millis(10))).await;
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}
