//! A unit of systemd as the package has installed it, and the command lines that follow from it.

use std::path::Path;

/// Directives of a unit's file, in their order.
pub(crate) struct Unit(Vec<(String, String)>);

impl Unit {
    pub(crate) fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', '[']));
        let directives = lines.filter_map(|line| line.split_once('='));
        Self(directives.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// The last value of a directive, which must be there.
    pub(crate) fn get(&self, name: &str) -> &str {
        let found = self.0.iter().rev().find(|(found, _)| found == name);
        &found.unwrap_or_else(|| panic!("the unit has no {name}=")).1
    }

    /// Words of a command; whether its failure counts.
    pub(crate) fn command(&self, name: &str) -> (Vec<String>, bool) {
        let line = self.get(name);
        let words = line.trim_start_matches('-').split_whitespace().map(str::to_owned);
        (words.collect(), !line.starts_with('-'))
    }

    /// A directory that the service manager makes before the start: below what, its name, its mode.
    pub(crate) fn directories(&self) -> Vec<(String, String)> {
        let places = [("State", "/var/lib"), ("Logs", "/var/log"), ("Runtime", "/run")];
        let of = |(kind, below): (&str, &str)| {
            let name = self.get(&format!("{kind}Directory"));
            let mode = self.get(&format!("{kind}DirectoryMode"));
            (format!("{below}/{name}"), mode.to_owned())
        };
        places.map(of).into()
    }

    /// What comes before a command so that it runs as the service manager would run it: its user, its group, the capabilities, no
    /// new privileges, umask, number of files, environment, directory. What it sees of the machine (`Protect…`) is not made here.
    pub(crate) fn wrapper(&self, notify: &str) -> Vec<String> {
        let capability = |name: &str| {
            let set = self.get(name).to_lowercase();
            set.split_whitespace().fold("-all".to_owned(), |all, one| {
                format!("{all},+{}", one.trim_start_matches("cap_"))
            })
        };
        assert_eq!(self.get("NoNewPrivileges"), "yes");
        let ambient = capability("AmbientCapabilities");
        let watchdog = self.get("WatchdogSec").trim_end_matches('s');
        let (umask, dir) = (self.get("UMask"), self.get("WorkingDirectory"));
        // More than this machine lets anybody have is not had here.
        let files = self.get("LimitNOFILE");
        let words = [
            "setpriv".to_owned(),
            format!("--reuid={}", self.get("User")),
            format!("--regid={}", self.get("Group")),
            "--init-groups".to_owned(),
            format!("--inh-caps={ambient}"),
            format!("--ambient-caps={ambient}"),
            format!("--bounding-set={}", capability("CapabilityBoundingSet")),
            "--no-new-privs".to_owned(),
            "env".to_owned(),
            "-i".to_owned(),
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin".to_owned(),
            format!("NOTIFY_SOCKET={notify}"),
            format!("WATCHDOG_USEC={watchdog}000000"),
            "sh".to_owned(),
            "-c".to_owned(),
            format!("ulimit -n {files} || :; umask {umask} && cd {dir} && exec \"$@\""),
            "sh".to_owned(),
        ];
        words.into()
    }
}
