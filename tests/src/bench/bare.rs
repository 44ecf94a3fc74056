//! What the machine allows: `bare`, nodes that do nothing with mail but have it on the disks of a majority.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Server, Syncs, listens};
use crate::process::{Guard, program};

/// As many nodes as ppswitch has. Each run has logs of its own.
pub struct Bare {
    dir: PathBuf,
    /// Where each takes mail, and where it hears the others.
    addresses: Vec<(SocketAddr, SocketAddr)>,
    syncs: Syncs,
    nodes: Vec<Guard>,
    runs: usize,
}

impl Bare {
    /// Below `dir`.
    pub fn new(dir: &Path, addresses: Vec<(SocketAddr, SocketAddr)>, syncs: &Syncs) -> Self {
        let dir = dir.join("bare");
        fs::create_dir(&dir).unwrap();
        Self { dir, addresses, syncs: syncs.clone(), nodes: Vec::new(), runs: 0 }
    }
}

impl Server for Bare {
    fn name(&self) -> String {
        match self.addresses.len() {
            1 => "bare log".to_owned(),
            count => format!("bare logs, {count} nodes"),
        }
    }

    fn begin(&mut self, _hold: bool) {
        self.runs += 1;
        let links: Vec<String> = self.addresses.iter().map(|(_, link)| link.to_string()).collect();
        for (number, (smtp, _)) in self.addresses.iter().enumerate() {
            let dir = self.dir.join(format!("run-{}-{number}", self.runs));
            fs::create_dir(&dir).unwrap();
            let mut command = Command::new(program("bare"));
            command.arg("--number").arg(number.to_string()).arg("--dir").arg(&dir);
            command.arg("--smtp").arg(smtp.to_string()).arg("--links").arg(links.join(","));
            command.envs(self.syncs.environment());
            self.nodes.push(Guard::spawn(&mut command, &self.dir.join("bare.log")));
        }
        for (smtp, _) in &self.addresses {
            listens(*smtp);
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.iter().map(|(smtp, _)| *smtp).collect()
    }

    /// It has none.
    fn is_empty(&self) -> bool {
        true
    }

    fn only_takes(&self) -> bool {
        true
    }

    fn logs(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn processes(&self) -> Vec<u32> {
        self.nodes.iter().map(Guard::pid).collect()
    }

    fn end(&mut self) {
        self.nodes.iter_mut().for_each(Guard::stop);
        self.nodes.clear();
        let _ = fs::remove_dir_all(&self.dir);
        fs::create_dir(&self.dir).unwrap();
    }
}
