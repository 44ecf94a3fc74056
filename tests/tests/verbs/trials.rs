//! Each verb once, as it is called when it cannot be carried out: by a viewer, and when most of the nodes are gone.

use ppsw_tests::{client::Client, cluster::PATIENCE, wait_for};

use crate::stage::Stage;

/// Who may call a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum May {
    /// It asks no cluster.
    Anybody,
    Viewer,
    Administrator,
}

/// What becomes of a verb on one node of three.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Alone {
    /// It ends well, and has this in its output.
    Shows(&'static str),
    /// It ends with this code, and says so.
    Fails(i32, &'static str),
}

/// `{config}`, `{other}`, `{man}`, `{aliases}`, `{id}` and `{rule}` stand for what [`prepare`] has made.
pub(crate) struct Trial {
    verb: &'static str,
    rest: &'static str,
    pub(crate) may: May,
    pub(crate) alone: Alone,
}

/// What the control group is told when it has no majority.
const NO_MAJORITY: Alone = Alone::Fails(3, "are most of its nodes down?");
/// ... and who makes versions.
const UNPREPARED: Alone =
    Alone::Fails(3, "1 of 3 members are prepared, and 2 have to be; nothing has changed");
/// What verbs on messages say when partitions have no leader who answers. Node 1 goes on leading its own.
const MISSING: &str = "no answer from node 2, 3: messages of partition 2, 3 may be missing";
const NOT_ALL_DONE: Alone = Alone::Fails(1, MISSING);

const fn trial(verb: &'static str, rest: &'static str, may: May, alone: Alone) -> Trial {
    Trial { verb, rest, may, alone }
}

/// All verbs. One that is added to `ppswctl` gets its line here.
pub(crate) const TRIALS: &[Trial] = {
    use Alone::{Fails, Shows};
    use May::{Administrator, Anybody, Viewer};
    &[
        trial("completions", "bash", Anybody, Shows("_ppswctl")),
        trial("man", "{man}", Anybody, Shows("pages written")),
        trial("policy check", "{config}", Anybody, Shows("good")),
        trial("status", "", Viewer, Shows("down")),
        trial("node list", "", Viewer, Shows("down")),
        trial("node remove", "3 --reason x", Administrator, Fails(1, "node 3 does not answer")),
        trial("placement show", "", Viewer, Shows("voters of a partition: 3")),
        trial("placement set", "--voters 5", Administrator, NO_MAJORITY),
        trial("drain", "1", Administrator, Fails(1, "no other node can take partition 1")),
        trial("undrain", "1", Administrator, NO_MAJORITY),
        trial(
            "rolling-restart",
            "--exec true --timeout 2s",
            Administrator,
            Fails(4, "the cluster is not well"),
        ),
        trial("token create", "", Administrator, NO_MAJORITY),
        trial("token list", "", Administrator, Shows("expires")),
        trial("token revoke", "{token}", Administrator, NO_MAJORITY),
        trial("top", "--count 1", Viewer, Shows("messages in the queue")),
        trial("events", "--since 1h --for 1s", Viewer, Shows("leader")),
        trial("trace", "--for 1s", Administrator, Shows("")),
        trial("queue summary", "", Viewer, Shows(MISSING)),
        trial("queue list", "", Viewer, Shows(MISSING)),
        trial("queue show", "{id}", Viewer, Shows("sender@example.org")),
        trial("queue cat", "{id}", Administrator, Shows("Received: ")),
        trial("queue rules", "", Viewer, Shows("suspend")),
        trial("queue cancel", "{rule}", Administrator, NO_MAJORITY),
        trial("queue retry", "{id}", Administrator, NOT_ALL_DONE),
        trial("queue hold", "{id}", Administrator, NOT_ALL_DONE),
        trial("queue release", "{id}", Administrator, NOT_ALL_DONE),
        trial("queue bounce", "{id} --reason x", Administrator, NOT_ALL_DONE),
        trial("queue drop", "{id} --reason x", Administrator, NOT_ALL_DONE),
        trial("queue redirect", "{id} --to b@example.org --reason x", Administrator, NOT_ALL_DONE),
        trial("suspend", "other.example --reason x", Administrator, NO_MAJORITY),
        trial("resume", "suspended.example", Administrator, NO_MAJORITY),
        trial("shed set", "mx 10% --reason x", Administrator, NO_MAJORITY),
        trial("shed list", "", Viewer, Shows("smart 1%")),
        trial("shed clear", "smart", Administrator, NO_MAJORITY),
        trial("domains list", "", Viewer, Shows("botolph.cam.ac.uk")),
        trial("domains show", "botolph.cam.ac.uk", Viewer, Shows("botolph.cam.ac.uk")),
        trial(
            "domains set",
            "lists.cam.ac.uk --aliases {aliases} --force",
            Administrator,
            UNPREPARED,
        ),
        trial("domains reset", "lists.cam.ac.uk", Administrator, UNPREPARED),
        trial("domains unset", "botolph.cam.ac.uk", Administrator, NO_MAJORITY),
        trial(
            "domains fetch",
            "botolph.cam.ac.uk",
            Administrator,
            Fails(1, "are most of its nodes down?"),
        ),
        trial("domains check", "botolph.cam.ac.uk", Viewer, Shows("botolph.cam.ac.uk")),
        trial("route", "a@example.org", Viewer, Shows("=> a@example.org")),
        trial(
            "session",
            "--client 127.0.0.1 --server 127.10.1.2",
            Viewer,
            Shows("Nothing was accepted or sent."),
        ),
        trial("tables push", "{other} --reason x", Administrator, UNPREPARED),
        trial("tables versions", "", Viewer, Shows("active")),
        trial("tables diff", "1 active", Administrator, Shows("")),
        trial("tables rollback", "1 --reason x", Administrator, UNPREPARED),
        trial("tables get", "domainlist cam.ac.uk", Administrator, Shows("cam.ac.uk")),
        trial("tables status", "", Viewer, Shows("does not answer")),
        trial("lists set", "punting --members {members} --force", Administrator, UNPREPARED),
        trial("lists reset", "punting", Administrator, UNPREPARED),
    ]
};

impl Trial {
    /// As `queue-hold`.
    pub(crate) fn name(&self) -> String {
        self.verb.replace(' ', "-")
    }

    pub(crate) fn arguments(&self, stage: &Stage) -> Vec<String> {
        let words = self.verb.split(' ').chain(self.rest.split_whitespace());
        words
            .map(|word| match word.strip_prefix('{').and_then(|word| word.strip_suffix('}')) {
                Some(name) => stage.names[name].clone(),
                None => word.to_owned(),
            })
            .collect()
    }
}

/// Makes what the verbs above are about.
pub(crate) fn prepare(stage: &mut Stage) {
    stage.cluster.kill_sink();
    let mut client = Client::connect(stage.cluster.node(1).smart).unwrap();
    client.ehlo().unwrap();
    let reply = client.send("sender@example.org", &["a@example.org"], b"Subject: x\r\n\r\nx\r\n");
    assert_eq!(reply.unwrap().code, 250);
    client.quit();
    let id = wait_for("a message in the queue", PATIENCE, || {
        let list = stage.cluster.ctl_json(&["queue", "list"]);
        Some(list[0]["id"].as_str()?.to_owned())
    });
    let suspend = ["suspend", "suspended.example", "--reason", "a trial"];
    let rule = stage.cluster.ctl_json(&suspend)[0]["id"].to_string();
    stage.cluster.ctl_json(&["shed", "set", "smart", "1%", "--reason", "a trial"]);
    let token = stage.cluster.ctl_json(&["token", "create"])["id"].as_str().unwrap().to_owned();
    let password = stage.file("password", "secret\n");
    // Nobody listens there.
    let url = "https://127.0.0.1:1/aliases";
    let fetched = ["--url", url, "--user", "u", "--password-file", &password];
    stage.cluster.ctl_json(&[&["domains", "set", "botolph.cam.ac.uk"], &fetched[..]].concat());
    // Something to take back.
    let second = stage.changed_config("second");
    stage.cluster.ctl_json(&["tables", "push", &second, "--reason", "a trial"]);
    let few = stage.file("few", "a@example.org\nb@example.org\n");
    stage.cluster.ctl_json(&["lists", "set", "punting", "--members", &few]);
    let few = stage.file("few-aliases", "one: a@example.org\ntwo: b@example.org\n");
    stage.cluster.ctl_json(&["domains", "set", "lists.cam.ac.uk", "--aliases", &few]);
    for (name, value) in [
        ("id", id),
        ("rule", rule),
        ("token", token),
        ("config", stage.config()),
        ("other", stage.changed_config("other")),
        ("man", stage.path("man").display().to_string()),
        ("members", stage.file("members", "c@example.org\nd@example.org\n")),
        ("aliases", stage.file("aliases", "someone: a@example.org\n")),
    ] {
        stage.names.insert(name, value);
    }
}
