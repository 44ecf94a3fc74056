//! A cluster, and what was asked of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::Mutex,
};

use ppsw_tests::{cluster::Cluster, process::program};
use regex::Regex;
use serde_json::Value;
use tempfile::TempDir;

/// For whom an output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    Human,
    Json,
}

pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    /// What there is, as `queue-hold`.
    pub(crate) verbs: BTreeSet<String>,
    /// What later calls need: ids of messages, tokens and rules.
    pub(crate) names: BTreeMap<&'static str, String>,
    /// For files.
    dir: TempDir,
    called: Mutex<BTreeSet<(String, Form)>>,
}

impl Stage {
    pub(crate) fn new(cluster: Cluster) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let called = Mutex::default();
        Self { cluster, verbs: verbs(), names: BTreeMap::new(), dir, called }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file for a verb, and gives its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    /// A copy of the directory that the cluster runs, with another entry in a table.
    pub(crate) fn changed_config(&self, name: &str) -> String {
        let copy = self.path(name);
        let mut cp = Command::new("cp");
        cp.arg("-r").arg(self.cluster.dir().join("config")).arg(&copy);
        assert!(cp.status().unwrap().success());
        let table = copy.join("tables/nocallout");
        let text = fs::read_to_string(&table).unwrap();
        fs::write(table, format!("{text}{name}.example.org\n")).unwrap();
        copy.display().to_string()
    }

    pub(crate) fn config(&self) -> String {
        self.cluster.dir().join("config").display().to_string()
    }

    /// Runs `ppswctl`, with nothing on standard input.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, "")
    }

    /// Starts `ppswctl` and does not wait.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        Command::new(program("ppswctl"))
            .arg("--cluster")
            .arg(self.cluster.dir().join("cluster.json"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run_with(&self, arguments: &[&str], input: &str) -> Output {
        let mut process = self.start(arguments);
        // It may have ended without reading.
        let _ = process.stdin.take().unwrap().write_all(input.as_bytes());
        process.wait_with_output().unwrap()
    }

    /// What a verb tells people, with all of `expected` in it.
    pub(crate) fn human(&self, code: i32, arguments: &[&str], expected: &[&str]) -> String {
        self.human_with(code, arguments, "", expected)
    }

    pub(crate) fn human_with(
        &self,
        code: i32,
        arguments: &[&str],
        input: &str,
        expected: &[&str],
    ) -> String {
        let output = self.run_with(arguments, input);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        for expected in expected {
            assert!(text.contains(expected), "{arguments:?}: no {expected:?} in {text}");
        }
        assert_readable(&text);
        self.note(arguments, Form::Human);
        text
    }

    /// What a verb tells scripts; each object of it has all of `fields`.
    pub(crate) fn json(&self, code: i32, arguments: &[&str], fields: &[&str]) -> Value {
        self.json_with(code, arguments, "", fields)
    }

    pub(crate) fn json_with(
        &self,
        code: i32,
        arguments: &[&str],
        input: &str,
        fields: &[&str],
    ) -> Value {
        let output = self.run_with(&[arguments, &["--json"]].concat(), input);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        let value: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"));
        let objects = match &value {
            Value::Array(all) => all.iter().collect(),
            one => vec![one],
        };
        for object in objects {
            for field in fields {
                assert!(object.get(field).is_some(), "{arguments:?}: no {field:?} in {value}");
            }
        }
        self.note(arguments, Form::Json);
        value
    }

    /// The reason that a script gets, beside the code.
    pub(crate) fn failure(&self, code: i32, arguments: &[&str]) -> String {
        let error = self.json(code, arguments, &["error", "code"]);
        assert_eq!(error["code"], code, "{arguments:?}: {error}");
        error["error"].as_str().unwrap().to_owned()
    }

    /// Notes a call: for verbs that go on until they are stopped, and are run by their cases themselves.
    pub(crate) fn note(&self, arguments: &[&str], form: Form) {
        let longest = (1..=arguments.len()).rev().map(|end| arguments[..end].join("-"));
        let verb = longest.into_iter().find(|verb| self.verbs.contains(verb));
        let verb = verb.unwrap_or_else(|| panic!("{arguments:?} is no verb"));
        self.called.lock().unwrap().insert((verb, form));
    }

    pub(crate) fn was_called(&self, verb: &str, form: Form) -> bool {
        self.called.lock().unwrap().contains(&(verb.to_owned(), form))
    }
}

/// All verbs of the program that have no others below them, by its man pages.
pub(crate) fn verbs() -> BTreeSet<String> {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new(program("ppswctl")).arg("man").arg(dir.path()).output().unwrap();
    assert!(made.status.success(), "{}", said(&made));
    let pages = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let names: BTreeSet<String> = pages
        .filter_map(|page| {
            Some(page.to_str()?.strip_prefix("ppswctl-")?.strip_suffix(".1")?.to_owned())
        })
        .collect();
    let has_others = |verb: &String| {
        let below = format!("{verb}-");
        names.iter().any(|other| other.starts_with(&below))
    };
    names.iter().filter(|verb| !has_others(verb)).cloned().collect()
}

/// The verbs that docs/operations.md gives to viewers.
pub(crate) fn documented_for_viewers() -> BTreeSet<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    let page = fs::read_to_string(page).unwrap();
    let row = page.lines().find(|line| line.starts_with("| `viewer` |")).unwrap();
    let row = row.rsplit_once("of `init` |").unwrap().1.replace("\\|", "/");
    let mut verbs = BTreeSet::new();
    for code in row.split('`').skip(1).step_by(2) {
        let words: Vec<&str> = code.split(' ').take_while(|word| !word.starts_with("--")).collect();
        match words[..] {
            [verb] => drop(verbs.insert(verb.to_owned())),
            [verb, rest] => verbs.extend(rest.split('/').map(|below| format!("{verb}-{below}"))),
            _ => panic!("{code}"),
        }
    }
    verbs
}

/// Nothing that is for programmers, and no colours in a pipe.
pub(crate) fn assert_readable(text: &str) {
    let debug =
        Regex::new(r"\b(Some|Ok|Err)\(|\bNone\b|[A-Z][A-Za-z]+ \{ |\x1b\[|status: \w+, message:")
            .unwrap();
    assert!(!debug.is_match(text), "this is for no operator: {text}");
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}
