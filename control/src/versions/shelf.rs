//! What a node has ready: contents, configurations that were made of them, and which one it runs.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use ppsw_spool::env::UnixMs;
use tokio::sync::{Semaphore, watch};

use super::{BlobHash, Blobs, Content, manifest::Manifest};
use crate::{Compiled, limits, state::State};

/// One node's part in versions.
pub(crate) struct Shelf {
    pub(crate) blobs: Blobs,
    /// Made, and not run yet; the newest last.
    ready: Mutex<Vec<Ready>>,
    running: watch::Sender<Running>,
    /// It is known what this node is to run: a version, or the directory of its own configuration file.
    settled: watch::Sender<bool>,
    /// The lists of files that were read last.
    manifests: Mutex<VecDeque<(BlobHash, Arc<Manifest>)>>,
    /// Of the generation that was asked about last: everybody asks every second, and there may be very many tables.
    sizes: Mutex<Option<(u64, Sizes)>>,
    /// Why this node does not run what is active.
    trouble: Mutex<Option<String>>,
    /// One configuration is made at a time: each takes memory for itself and its files.
    pub(crate) making: tokio::sync::Mutex<()>,
    /// One push, rollback or change is coordinated at a time.
    pub(crate) coordinating: tokio::sync::Mutex<()>,
    pub(crate) uploads: Arc<Semaphore>,
    pub(crate) fetches: Arc<Semaphore>,
}

struct Ready {
    content: Content,
    compiled: Arc<dyn Compiled>,
    since: Instant,
}

/// What a node runs; generation 0 is the directory of its own configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) generation: u64,
    pub(crate) version: u64,
    pub(crate) content: Option<Content>,
    pub(crate) since: UnixMs,
}

/// How much the tables are that a node runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) tables: u64,
    pub(crate) entries: u64,
    /// Memory.
    pub(crate) bytes: u64,
}

impl Sizes {
    fn of(compiled: &dyn Compiled) -> Self {
        let tables = compiled.tables();
        Self {
            tables: tables.len() as u64,
            entries: tables.iter().map(|(_, entries)| entries).sum(),
            bytes: compiled.bytes(),
        }
    }
}

impl Shelf {
    /// # Errors
    /// What the disk says.
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        Ok(Self {
            blobs: Blobs::open(data)?,
            ready: Mutex::default(),
            running: watch::Sender::default(),
            settled: watch::Sender::default(),
            manifests: Mutex::default(),
            sizes: Mutex::default(),
            trouble: Mutex::default(),
            making: tokio::sync::Mutex::default(),
            coordinating: tokio::sync::Mutex::default(),
            uploads: Arc::new(Semaphore::new(limits::UPLOADS_MAX)),
            fetches: Arc::new(Semaphore::new(limits::FETCHES_MAX)),
        })
    }

    /// A configuration that was made of this content and is not run.
    pub(crate) fn ready(&self, content: &Content) -> Option<Arc<dyn Compiled>> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.iter().find(|one| one.content == *content).map(|one| Arc::clone(&one.compiled))
    }

    /// Keeps a configuration for a while.
    pub(crate) fn put(&self, content: Content, compiled: Arc<dyn Compiled>, now: Instant) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.retain(|one| one.content != content);
        ready.push(Ready { content, compiled, since: now });
        if ready.len() > limits::READY_KEPT {
            ready.remove(0);
        }
    }

    /// Drops what waits for too long, and what is run.
    pub(crate) fn tidy(&self, now: Instant) {
        let running = self.running.borrow().content.clone();
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.retain(|one| {
            let fresh = now.saturating_duration_since(one.since) < limits::READY_TIME;
            fresh && Some(&one.content) != running.as_ref()
        });
    }

    pub(crate) fn running(&self) -> Running {
        self.running.borrow().clone()
    }

    /// A list of files that was read lately.
    pub(crate) fn manifest(&self, hash: &BlobHash) -> Option<Arc<Manifest>> {
        let known = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(name, _)| name == hash).map(|(_, manifest)| Arc::clone(manifest))
    }

    pub(crate) fn keep_manifest(&self, hash: BlobHash, manifest: Manifest) -> Arc<Manifest> {
        let manifest = Arc::new(manifest);
        let mut known = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        known.push_back((hash, Arc::clone(&manifest)));
        if known.len() > limits::MANIFESTS_KEPT {
            known.pop_front();
        }
        manifest
    }

    /// It is known what this node is to run.
    pub(crate) fn settle(&self) {
        self.settled.send_if_modified(|settled| !std::mem::replace(settled, true));
    }

    pub(crate) async fn settled(&self) {
        // The sender lives in `self`, so waiting cannot end otherwise.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }

    /// The node has switched.
    pub(crate) fn run(&self, running: Running) {
        self.running.send_replace(running);
        self.complain(None);
    }

    /// How much the tables are that run.
    pub(crate) fn sizes(&self, running: Option<&dyn Compiled>) -> Sizes {
        let generation = self.running.borrow().generation;
        let mut known = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        match *known {
            // The node's own directory may change without a generation.
            Some((of, sizes)) if of == generation && generation > 0 => sizes,
            _ => {
                let sizes = running.map(Sizes::of).unwrap_or_default();
                *known = Some((generation, sizes));
                sizes
            }
        }
    }

    /// Why this node does not run what is active, for status and readiness.
    pub(crate) fn complain(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this node runs something else than what is active, in words.
    pub(crate) fn behind(&self, state: &State) -> Option<String> {
        let active = &state.versions;
        let running = self.running.borrow();
        if !active.any() || running.generation == active.generation {
            return None;
        }
        let own = match running.generation {
            0 => "its own configuration's directory".to_owned(),
            generation => format!("version {} (generation {generation})", running.version),
        };
        let why = self.trouble().map(|why| format!(": {why}")).unwrap_or_default();
        Some(format!(
            "runs {own} of policy and tables, but version {} (generation {}) is active{why}",
            active.active, active.generation
        ))
    }
}
