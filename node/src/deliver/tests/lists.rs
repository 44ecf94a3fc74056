//! Lists: expansions that are recorded, and programs.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use ppsw_spool::{
    group::ProposeError,
    queue::{Expansion, RecipientState},
};

use super::{
    dialogue::destination,
    fake::{Setting, Table, deliver_to, target},
    server::{Script, Server},
};
use crate::route::{ClientOptions, Destination, Fate, Program, Protocol, Target, Tls};

fn table(routes: &[(&str, Vec<Target>)]) -> Table {
    let routes = routes.iter().map(|(a, targets)| ((*a).to_owned(), targets.clone())).collect();
    Table { routes, ..Table::default() }
}

fn expands(address: &str, into: &[&str]) -> Target {
    let into = into.iter().map(|address| (*address).to_owned()).collect();
    Target { errors_to: Some("owner@ours".into()), ..target(address, Fate::Expand(into)) }
}

#[tokio::test]
async fn an_expansion_is_recorded_first_and_its_members_have_retries_of_their_own() {
    let server =
        Server::start(Script { rcpt: vec![("slow", "450 later")], ..Script::default() }).await;
    let there = destination(&[&server], Protocol::Smtp);
    let setting = Setting::new(table(&[
        ("l@ours", vec![expands("l@ours", &["quick@y", "slow@y", "both@y", "quick@Y"])]),
        ("alias@ours", vec![expands("l@ours", &["quick@y", "slow@y", "both@y"])]),
        ("quick@y", vec![deliver_to("quick@y", &there)]),
        ("slow@y", vec![deliver_to("slow@y", &there)]),
        ("both@y", vec![deliver_to("both@y", &there)]),
    ]));
    let id = setting.put(1, "s@x", &["l@ours", "alias@ours", "both@y"]);
    setting.until("first attempt", || setting.outcomes().len() == 1).await;
    assert_eq!(setting.queue.expanded.lock().unwrap().len(), 1, "by whichever way");
    let message = setting.queue.message(id).unwrap();
    let states: Vec<_> =
        message.recipients.iter().map(|a| (a.recipient.address.as_str(), a.state)).collect();
    use RecipientState::{Deferred, Delivered};
    assert_eq!(
        states,
        [
            ("l@ours", Delivered),
            ("alias@ours", Delivered),
            ("both@y", Delivered),
            ("quick@y", Delivered),
            ("slow@y", Deferred),
        ]
    );
    assert!(message.recipients[0].done.contains(&Expansion::key("l@ours")));
    setting.later(Duration::from_secs(16 * 60));
    setting.until("second attempt", || setting.outcomes().len() == 2).await;
    assert_eq!(setting.queue.expanded.lock().unwrap().len(), 1, "once and for all");
    let commands = server.commands();
    let to = |address: &str| commands.iter().filter(|c| c.contains(address)).count();
    assert_eq!(
        (to("RCPT TO:<quick@y>"), to("RCPT TO:<both@y>"), to("RCPT TO:<slow@y>")),
        (1, 1, 2)
    );
    // Who is a recipient besides gets what was meant for him.
    assert_eq!((to("MAIL FROM:<s@x>"), to("MAIL FROM:<owner@ours>")), (1, 2));
    assert_eq!(server.complete().len(), 2);
}

#[tokio::test]
async fn nothing_is_sent_before_an_expansion_is_in_the_log() {
    let server = Server::start(Script::default()).await;
    let there = destination(&[&server], Protocol::Smtp);
    let setting = Setting::new(table(&[
        ("l@ours", vec![expands("l@ours", &["a@y"])]),
        ("a@y", vec![deliver_to("a@y", &there)]),
        ("b@y", vec![deliver_to("b@y", &there)]),
    ]));
    let moved = ProposeError::NotLeader { leader: Some(2) };
    setting.queue.troubles.lock().unwrap().extend([moved.clone(), moved]);
    let id = setting.put(1, "s@x", &["l@ours", "b@y"]);
    setting.until("delivered at last", || setting.queue.len() == 0).await;
    assert_eq!(setting.queue.expanded.lock().unwrap().len(), 1);
    assert_eq!(server.complete().len(), 2);
    assert!(setting.outcomes().iter().all(|outcome| outcome.message == id));
}

#[tokio::test]
async fn a_list_of_very_many_is_one_message_and_is_not_looked_at_again_and_again() {
    let server = Server::start(Script::default()).await;
    let there = destination(&[&server], Protocol::Smtp);
    let members: Vec<String> = (0..3_000).map(|n| format!("m{n}@y")).collect();
    let mut routes: Vec<(&str, Vec<Target>)> =
        members.iter().map(|member| (member.as_str(), vec![deliver_to(member, &there)])).collect();
    let names: Vec<&str> = members.iter().map(String::as_str).collect();
    routes.push(("l@ours", vec![expands("l@ours", &names)]));
    let setting = Setting::new(table(&routes));
    setting.put(1, "s@x", &["l@ours"]);
    setting.until("delivered", || setting.queue.len() == 0).await;
    let taken = server.complete();
    let recipients: usize = taken.iter().map(|message| message.rcpts.len()).sum();
    assert_eq!((taken.len(), recipients), (30, 3_000));
    assert!(setting.outcomes().len() <= 10, "{} outcomes", setting.outcomes().len());
}

#[tokio::test]
async fn errors_that_nobody_wants_are_told_nobody() {
    let failing = Target {
        errors_to: Some(String::new()),
        copy: Some("tap".into()),
        ..target("a@y", Fate::Fail("5.1.1 no such user".into()))
    };
    let server = Server::start(Script::default()).await;
    let there = destination(&[&server], Protocol::Smtp);
    let setting = Setting::new(table(&[("a@y", vec![failing, deliver_to("a@y", &there)])]));
    setting.put(1, "s@x", &["a@y"]);
    setting.until("done", || setting.queue.len() == 0).await;
    assert_eq!(server.complete().len(), 1, "the copy failed, the message did not");
    let outcomes = setting.outcomes();
    assert!(outcomes.len() == 1 && outcomes[0].creates.is_empty(), "{outcomes:?}");
    let keys: Vec<_> = outcomes[0].results.iter().map(|result| result.address.as_str()).collect();
    assert_eq!(keys, ["a@y via tap", "a@y"]);
}

/// A script of the shell; only here is there one.
fn program(script: &str) -> Destination {
    let own = rustix::process::geteuid().as_raw();
    Destination {
        router: "lists".into(),
        transport: "list_pipe".into(),
        protocol: Protocol::Pipe,
        hosts: vec![],
        strip_nul: false,
        client: ClientOptions::default(),
        tls: Tls::May,
        program: Some(Program {
            words: ["/bin/sh", "-c", script, "sh", "$HOME; x"].map(str::to_owned).into(),
            user: Some(format!("{own}:{own}")),
            timeout: Duration::from_secs(60),
            max_output: 64,
            return_fail_output: true,
            temp_errors: vec![73, 75],
            prefix: "<<".into(),
            suffix: ">>".into(),
            environment: vec![("LOCAL_PART", "punting".into()), ("DOMAIN", "lists".into())],
        }),
    }
}

/// What became of one message to `a@y` that goes to a program.
async fn piped(to: &Destination, check: impl AsyncFn(&Setting)) {
    let setting = Setting::new(table(&[("a@y", vec![deliver_to("a@y", to)])]));
    setting.put(1, "s@x", &["a@y"]);
    setting.until("an outcome", || !setting.outcomes().is_empty()).await;
    check(&setting).await;
}

#[tokio::test]
async fn a_program_gets_the_whole_message_and_a_clean_environment() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let script = format!("{{ cat; echo; echo \"$0|$1\"; env | sort; pwd; }} > {}", out.display());
    piped(&program(&script), async |setting| {
        assert_eq!(setting.queue.len(), 0);
        let text = std::fs::read_to_string(&out).unwrap();
        let (message, rest) = text.split_once("\nsh|").unwrap();
        assert_eq!(message, "<<Subject: hello\n\nbody\n>>");
        let id = &setting.outcomes()[0].message;
        for expected in [
            "$HOME; x\n",
            "\nLOCAL_PART=punting\n",
            "\nDOMAIN=lists\n",
            "\nSENDER=s@x\n",
            &format!("\nMESSAGE_ID={id}\n"),
            "\nPATH=/bin:/usr/bin\n",
            "\nHOST=us.example\n",
        ] {
            assert!(rest.contains(expected), "{expected:?} in {rest}");
        }
        assert!(!rest.contains("CARGO") && rest.ends_with("\n/\n"), "{rest}");
        setting.until("logged", || setting.mainlog().contains("Completed")).await;
        let log = setting.mainlog();
        assert!(log.contains(" => a@y F=<s@x> P=<s@x> R=lists T=list_pipe S="), "{log}");
        assert!(!log.contains("C=\"\""), "{log}");
    })
    .await;
}

#[tokio::test]
async fn the_exit_code_says_what_becomes_of_it() {
    for (script, deferred, expected) in [
        ("exit 0", false, ""),
        (
            "echo not now; exit 75",
            true,
            "returned 75 (could mean temporary error) (command: /bin/sh): not now",
        ),
        ("exit 73", true, "returned 73"),
        (
            "echo '  '; echo no such list >&2; exit 69",
            false,
            "returned 69 (could mean service or program unavailable) (command: /bin/sh): no such list",
        ),
        ("kill -9 $$", true, "was ended by signal 9"),
        ("exec /no/such/program", false, "returned 127 (could mean command not found)"),
    ] {
        piped(&program(script), async |setting| {
            let outcome = setting.outcomes().remove(0);
            let text = &outcome.results[0].text;
            assert!(text.contains(expected), "{script}: {text}");
            assert_eq!(outcome.finished.is_empty(), deferred, "{script}");
            assert_eq!(outcome.creates.is_empty(), deferred || expected.is_empty(), "{script}");
        })
        .await;
    }
}

#[tokio::test]
async fn output_of_a_failure_is_returned_within_bounds() {
    let script = "echo The list is closed.; yes | head -c 1000000; exit 70";
    piped(&program(script), async |setting| {
        let outcome = setting.outcomes().remove(0);
        let bounce = String::from_utf8_lossy(&outcome.creates[0].2).into_owned();
        assert!(bounce.contains("The program wrote:\r\n      The list is closed.\r\n"), "{bounce}");
        assert!(bounce.matches("      y\r\n").count() < 64, "{bounce}");
    })
    .await;
    let mut quiet = program(script);
    quiet.program.as_mut().unwrap().return_fail_output = false;
    piped(&quiet, async |setting| {
        let outcome = setting.outcomes().remove(0);
        let bounce = String::from_utf8_lossy(&outcome.creates[0].2).into_owned();
        assert!(!bounce.contains("The program wrote") && bounce.contains("returned 70"));
    })
    .await;
}

#[tokio::test]
async fn a_program_that_takes_too_long_is_ended_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let pid = dir.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
    let mut to = program(&script);
    to.program.as_mut().unwrap().timeout = Duration::from_secs(1);
    piped(&to, async |setting| {
        let outcome = setting.outcomes().remove(0);
        assert!(outcome.results[0].text.contains("timed out after 1s"), "{outcome:?}");
        assert!(outcome.finished.is_empty());
        let child = std::fs::read_to_string(&pid).unwrap();
        let there = std::path::Path::new("/proc").join(child.trim()).join("cmdline");
        let gone = || std::fs::read(&there).map_or(true, |line| line.is_empty());
        setting.until("its child is gone", gone).await;
    })
    .await;
    // Output that somebody keeps open is not waited for.
    piped(&program("sleep 5 & exit 0"), async |setting| assert_eq!(setting.queue.len(), 0)).await;
}

#[tokio::test]
async fn what_cannot_be_run_is_tried_again() {
    let mut nothing = program("exit 0");
    nothing.program.as_mut().unwrap().words[0] = "/no/such/program".into();
    let mut nobody = program("exit 0");
    nobody.program.as_mut().unwrap().user = Some("no-such-user".into());
    for (to, expected) in [(nothing, "cannot be run"), (nobody, "no user \"no-such-user\"")] {
        piped(&to, async |setting| {
            let outcome = setting.outcomes().remove(0);
            assert!(outcome.results[0].text.contains(expected), "{outcome:?}");
            assert!(outcome.finished.is_empty());
        })
        .await;
    }
}

#[tokio::test]
async fn a_deposed_leader_starts_no_program_and_ends_those_that_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let to = program(&format!("echo x >> {}", out.display()));
    let setting = Setting::new(table(&[
        ("a@y", vec![deliver_to("a@y", &to)]),
        ("b@y", vec![deliver_to("b@y", &to)]),
    ]));
    setting.queue.marks.forget_permits(100_000);
    setting.put(1, "s@x", &["a@y"]);
    setting.until("in flight", || setting.deliverer.attempts_in_flight(1) == 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!out.exists(), "not before it is in the log");
    setting.queue.leading.store(false, Ordering::SeqCst);
    setting.queue.marks.add_permits(1);
    setting.until("ended", || setting.deliverer.attempts_in_flight(1) == 0).await;
    assert!(!out.exists() && setting.outcomes().is_empty());
    setting.queue.marks.add_permits(10);
    setting.queue.leading.store(true, Ordering::SeqCst);
    // One process for each address.
    setting.put(2, "s@x", &["a@y", "b@y"]);
    setting.until("delivered", || setting.queue.len() == 0).await;
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "x\nx\nx\n");
    drop(Arc::new(setting));
}
