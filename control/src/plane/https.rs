//! Fetched domains, for the part of the node that fetches them.

use std::sync::Arc;

use super::{Plane, PlaneError, Shared, pb};
use crate::{
    https::{Password, Vault},
    state::State,
};

impl Plane {
    /// All fetched domains. On the leader of the control group with everything that was recorded before this call.
    #[must_use]
    pub fn https_domains(&self) -> Vec<Arc<pb::HttpsDomain>> {
        self.shared.newest_state().https_domains.values().cloned().collect()
    }

    /// The password of a fetched domain.
    ///
    /// # Errors
    /// If this node has no key for it, or it was sealed by another cluster.
    pub fn https_password(&self, domain: &pb::HttpsDomain) -> Result<Password, PlaneError> {
        let opened = self
            .shared
            .vault()
            .and_then(|vault| vault.open(&domain.domain, &domain.sealed_password));
        opened.map_err(PlaneError::Refused)
    }
}

impl Shared {
    /// What seals passwords.
    pub(crate) fn vault(&self) -> Result<Vault, String> {
        let key = self.identity.ca_key.as_deref().ok_or_else(|| {
            format!(
                "node {} has no CA key (data/identity/ca-key.pem), and so cannot seal or read passwords",
                self.node
            )
        })?;
        Vault::new(key, &self.identity.cluster)
    }

    /// The state with every entry that this replica has applied, if it leads: what others act on is a moment older.
    fn newest_state(&self) -> Arc<State> {
        if self.control.leads() { self.machine.watch().borrow().clone() } else { self.state() }
    }
}
