//! What a node asks of its control plane about versions of policy and tables.

use std::{collections::BTreeMap, sync::Arc};

use ppsw_proto::control as pb;
use tokio::sync::watch;

use super::{Bytes, Change, CommandError, Plane, Shared};
use crate::{
    PlaneError,
    state::{State, Versions},
    versions::{self, BlobHash, File, NewContents, Outcome, VersionError},
};

impl Plane {
    /// Whether this node leads the control group: it has the newest state, and nobody else does what only the leader does.
    #[must_use]
    pub fn leads_control(&self) -> bool {
        self.shared.control.leads() && self.shared.control.has_lease()
    }

    /// The control group's state as this node knows it.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.shared.state()
    }

    /// The same, with a wake-up for each change.
    #[must_use]
    pub fn watch_state(&self) -> watch::Receiver<Arc<State>> {
        self.shared.view.subscribe()
    }

    /// What the control group knows of versions: which one is active, what is laid over it, and how it came to be so.
    #[must_use]
    pub fn versions(&self) -> Arc<Versions> {
        Arc::clone(&self.shared.state().versions)
    }

    /// Carries out a change of the control group's state; the value is what applying it gave.
    ///
    /// # Errors
    /// `Refused` with the state machine's reason; `Peer` if there was no leader or no majority in time: it may still be
    /// applied.
    pub async fn command(&self, change: Change) -> Result<Bytes, PlaneError> {
        self.shared.command(change).await.map_err(|error| match error {
            CommandError::Refused(why) => PlaneError::Refused(why),
            error @ CommandError::NoMajority(_) => PlaneError::Peer(error.to_string()),
        })
    }

    /// Resolves when it is known what this node is to run: true if it runs a version, false if there is none and the
    /// directory of its own configuration file counts.
    pub async fn settled(&self) -> bool {
        self.shared.shelf.settled().await;
        self.runs_version()
    }

    /// Whether this node runs a version.
    #[must_use]
    pub fn runs_version(&self) -> bool {
        self.shared.shelf.running().generation > 0
    }

    /// Whether this node has run a version, or knows that the cluster has one: then its own directory does not count any
    /// more.
    #[must_use]
    pub fn has_version(&self) -> bool {
        self.shared.state().versions.any() || self.shared.has_run_version
    }

    /// All paths of what is active, with the names of their contents; empty before the first push.
    ///
    /// # Errors
    /// If the list is to be had from no node.
    pub async fn active_files(&self) -> Result<BTreeMap<String, BlobHash>, VersionError> {
        versions::active_files(&self.shared).await
    }

    /// A file of what is active; `None` if there is none at this path.
    ///
    /// # Errors
    /// If its content is to be had from no node.
    pub async fn file(&self, path: &str) -> Result<Option<File>, VersionError> {
        versions::file(&self.shared, path).await
    }

    /// Lays new contents over the active version: checked, prepared on a majority of the members, then made active by one
    /// entry of the control group (docs/decisions/022-versions.md). May be called on any node.
    ///
    /// # Errors
    /// `Refused`: nothing has changed, and the lines say why. `Unable`: it cannot be done at the moment.
    pub async fn change(&self, new: NewContents) -> Result<Outcome, VersionError> {
        versions::change(&self.shared, new).await
    }
}

impl Shared {
    /// What this node runs, for others.
    pub(crate) fn tables_report(&self) -> pb::TablesReport {
        let running = self.shelf.running();
        let compiled = self.hooks.running();
        let sizes = self.shelf.sizes(compiled.as_deref());
        pb::TablesReport {
            version: running.version,
            generation: running.generation,
            since_ms: running.since.0,
            tables: sizes.tables,
            entries: sizes.entries,
            bytes: sizes.bytes,
            trouble: self.shelf.trouble().unwrap_or_default(),
        }
    }
}
