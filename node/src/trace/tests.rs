use std::net::IpAddr;

use futures::FutureExt;

use super::{
    line::{Step, command, step},
    *,
};
use crate::limits::{TRACE_KEPT_LINES, TRACE_LINE_BYTES_MAX};

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const NAMES: Names<'static> = [Some("c1.example.net"), Some("friend")];

fn request(change: impl FnOnce(&mut pb::TraceRequest)) -> pb::TraceRequest {
    let mut request = pb::TraceRequest::default();
    change(&mut request);
    request
}

fn of_sender(sender: &str) -> pb::TraceRequest {
    request(|it| it.sender = sender.to_owned())
}

fn of_recipient(recipient: &str) -> pb::TraceRequest {
    request(|it| it.recipient = recipient.to_owned())
}

type Pages = BoxStream<'static, pb::TracePage>;

/// What waits, as it is shown; `!N` for N lines that were lost.
fn shown(pages: &mut Pages) -> Vec<String> {
    let mut out = Vec::new();
    while let Some(Some(page)) = pages.next().now_or_never() {
        let lost = |lost: u64| (lost > 0).then(|| format!("!{lost}"));
        for line in page.lines {
            out.extend(lost(line.lost));
            out.push(line.text);
        }
        out.extend(lost(page.lost));
    }
    out
}

fn incoming(tracer: &Tracer) -> Tap {
    Tap::new(tracer.clone(), Direction::In, CLIENT)
}

fn hear(tap: &mut Tap, commands: &[&str]) {
    for command in commands {
        if tap.is_on() {
            tap.heard(NAMES, command.as_bytes());
        }
    }
}

#[tokio::test]
async fn who_watches_all_sees_all_as_it_happens() {
    let tracer = Tracer::default();
    let mut tap = incoming(&tracer);
    hear(&mut tap, &["EHLO friend"]);
    let mut pages = tracer.watch(&request(|_| ())).unwrap();
    hear(&mut tap, &["MAIL FROM:<a@b>"]);
    assert_eq!(shown(&mut pages), ["the session began before the trace", "MAIL FROM:<a@b>"]);
    hear(&mut tap, &["RCPT TO:<c@d>"]);
    assert_eq!(shown(&mut pages), ["RCPT TO:<c@d>"]);
    tap.replied(NAMES, b"250-one\r\n250 two\r\n");
    assert_eq!(shown(&mut pages), ["250-one", "250 two"]);
}

#[tokio::test]
async fn a_session_is_shown_from_its_beginning_when_its_message_fits() {
    let tracer = Tracer::default();
    let mut sender = tracer.watch(&of_sender("anna@*")).unwrap();
    let mut recipient = tracer.watch(&of_recipient("cy@d")).unwrap();
    let mut both = tracer
        .watch(&request(|it| (it.sender, it.recipient) = ("x".into(), "cy@d".into())))
        .unwrap();
    let mut tap = incoming(&tracer);
    let greeting = ["EHLO friend"];
    hear(&mut tap, &greeting);
    assert!(shown(&mut sender).is_empty());
    hear(&mut tap, &["mail from: <Anna@Example.org> SIZE=5"]);
    assert_eq!(shown(&mut sender), ["EHLO friend", "mail from: <Anna@Example.org> SIZE=5"]);
    hear(&mut tap, &["RCPT TO:<bo@d>"]);
    assert!(shown(&mut recipient).is_empty());
    hear(&mut tap, &["RCPT TO:<@relay.example:cy@d>"]);
    assert_eq!(shown(&mut recipient).len(), 4);
    // The next message is another's: it is not shown, and neither is what came with the one before.
    hear(&mut tap, &["DATA", "MAIL FROM:<>", "RCPT TO:<eve@d>"]);
    assert_eq!(shown(&mut sender), ["RCPT TO:<bo@d>", "RCPT TO:<@relay.example:cy@d>", "DATA"]);
    assert_eq!(shown(&mut recipient), ["DATA"]);
    hear(&mut tap, &["MAIL FROM:<eve@x>", "RCPT TO:<cy@d>"]);
    assert_eq!(shown(&mut recipient), ["MAIL FROM:<eve@x>", "RCPT TO:<cy@d>"]);
    assert!(shown(&mut both).is_empty(), "both must fit");
    let mut null = tracer.watch(&of_sender("<>")).unwrap();
    hear(&mut tap, &["MAIL FROM:<>"]);
    assert_eq!(shown(&mut null), ["EHLO friend", "MAIL FROM:<>"]);
}

#[tokio::test]
async fn clients_hosts_and_directions_are_told_apart() {
    let tracer = Tracer::default();
    let fits = |change: fn(&mut pb::TraceRequest), direction| {
        let mut pages = tracer.watch(&request(change)).unwrap();
        let mut tap = Tap::new(tracer.clone(), direction, CLIENT);
        tap.note(NAMES, "a line");
        shown(&mut pages).len() == 1
    };
    use Direction::{In, Out};
    assert!(fits(|it| it.client = "192.0.2.0/24".into(), In));
    assert!(fits(|it| it.client = "192.0.2.1".into(), In));
    assert!(!fits(|it| it.client = "192.0.2.2".into(), In));
    assert!(!fits(|it| it.client = "192.0.2.1".into(), Out), "a next hop is no client");
    assert!(fits(|it| it.host = "*.EXAMPLE.net".into(), Out));
    assert!(fits(|it| it.host = "friend".into(), In));
    assert!(fits(|it| it.host = "192.0.2.*".into(), Out));
    assert!(!fits(|it| it.host = "example.net".into(), In));
    assert!(fits(|it| it.incoming = true, In) && !fits(|it| it.incoming = true, Out));
    assert!(fits(|it| it.outgoing = true, Out) && !fits(|it| it.outgoing = true, In));
    for bad in ["example.org", "192.0.2.0/40"] {
        let error = tracer.watch(&request(|it| it.client = bad.into())).err().unwrap();
        assert!(error.contains("expected --client"), "{error}");
    }
    let long = "a".repeat(TRACE_PATTERN_LONG);
    assert!(tracer.watch(&of_sender(&long)).is_err());
}

const TRACE_PATTERN_LONG: usize = crate::limits::TRACE_PATTERN_BYTES_MAX + 1;

#[tokio::test]
async fn a_slow_watcher_loses_lines_and_is_told() {
    let tracer = Tracer::default();
    let mut pages = tracer.watch(&request(|_| ())).unwrap();
    let mut tap = incoming(&tracer);
    let noops = vec!["NOOP"; TRACE_LINES_WAITING + 5];
    hear(&mut tap, &noops);
    let first = pages.next().await.unwrap();
    assert_eq!(first.lines.len(), TRACE_PAGE_LINES);
    hear(&mut tap, &["RSET"]);
    let all = shown(&mut pages);
    assert_eq!(all[all.len() - 2..], ["!5", "RSET"]);
    hear(&mut tap, &noops);
    let all = shown(&mut pages);
    assert_eq!(all.last().map(String::as_str), Some("!5"), "nothing came behind them");
}

#[tokio::test]
async fn what_a_session_keeps_is_bounded_and_what_is_gone_is_told() {
    let tracer = Tracer::default();
    let mut pages = tracer.watch(&of_recipient("last@d")).unwrap();
    let mut everything = tracer.watch(&request(|_| ())).unwrap();
    let mut tap = incoming(&tracer);
    hear(&mut tap, &["EHLO friend", "MAIL FROM:<a@b>", "NOOP"]);
    let many: Vec<String> = (0..500).map(|number| format!("RCPT TO:<{number}@d>")).collect();
    hear(&mut tap, &many.iter().map(String::as_str).collect::<Vec<_>>());
    hear(&mut tap, &["RCPT TO:<last@d>"]);
    let all = shown(&mut pages);
    let gone = 504 - TRACE_KEPT_LINES;
    assert_eq!(all[..4], ["EHLO friend", "MAIL FROM:<a@b>", "NOOP", &format!("!{gone}")]);
    assert_eq!(all.len(), TRACE_KEPT_LINES + 1);
    let all = shown(&mut everything);
    assert!(all.len() == 504 && all.iter().all(|line| !line.starts_with('!')), "{}", all.len());
    // A client that never begins a transaction.
    let mut idle = incoming(&tracer);
    hear(&mut idle, &vec!["NOOP"; 1_000]);
    hear(&mut idle, &["MAIL FROM:<a@b>", "RCPT TO:<last@d>"]);
    let all = shown(&mut pages);
    assert_eq!(all[0], format!("!{}", 1_000 - TRACE_KEPT_LINES / 2));
    assert_eq!(all.len(), TRACE_KEPT_LINES / 2 + 3);
}

#[tokio::test(start_paused = true)]
async fn traces_end_and_have_bounds() {
    let tracer = Tracer::default();
    assert_eq!(tracer.watching(), 0);
    let begin = tokio::time::Instant::now();
    let mut forgotten = tracer.watch(&request(|_| ())).unwrap();
    assert_eq!(forgotten.next().await, None);
    assert!(begin.elapsed() >= TRACE_TIME && begin.elapsed() < 2 * TRACE_TIME);
    drop(forgotten);
    assert_eq!(tracer.watching(), 0);
    let long = request(|it| it.for_ms = TRACE_TIME_MAX.as_millis() as u64 + 1);
    let error = tracer.watch(&long).err().unwrap();
    assert!(error.contains("at most 4h"), "{error}");
    let all: Vec<Pages> =
        (0..TRACES_MAX).map(|_| tracer.watch(&request(|_| ())).unwrap()).collect();
    assert!(tracer.watch(&request(|_| ())).is_err_and(|error| error.contains("already")));
    // Nobody watches any more: what a session has kept goes with its next line.
    let mut tap = incoming(&tracer);
    hear(&mut tap, &["NOOP"]);
    drop(all);
    assert!(!tap.is_on() && format!("{tap:?}").contains("kept: None"));
    // Who comes later gets nothing that was kept for others.
    let mut later = tracer.watch(&request(|_| ())).unwrap();
    hear(&mut tap, &["RSET"]);
    assert_eq!(shown(&mut later), ["the session began before the trace", "RSET"]);
}

#[test]
fn secrets_are_not_shown() {
    let mut auth = false;
    let mut said = |line: &str| command(line.as_bytes(), &mut auth);
    assert_eq!(said("XYZZY c2VjcmV0"), "XYZZY c2VjcmV0");
    assert_eq!(said("AUTH PLAIN AHNwcXIxAHNlY3JldA=="), "AUTH PLAIN (secret)");
    for secret in ["auth  plain\tAHNwcXIxAHNlY3JldA==", "AUTH LOGIN x", " AUTH PLAIN c2VjcmV0 more"]
    {
        let shown = said(secret);
        assert!(shown.starts_with("AUTH ") && shown.ends_with(" (secret)"), "{shown}");
    }
    assert_eq!(said("AUTH c2VjcmV0"), "AUTH (secret)");
    assert_eq!(said("AUTH LOGIN"), "AUTH LOGIN");
    // A client that goes on although it was refused.
    assert_eq!(said("c2VjcmV0"), "(secret)");
    assert_eq!(said("MAIL FROM:<a@b> AUTH=<>"), "MAIL FROM:<a@b> AUTH=<>");
}

#[test]
fn lines_are_harmless_and_short() {
    let mut auth = false;
    assert_eq!(command(b"NOOP \x1b[2J\xff", &mut auth), "NOOP \\033[2J\u{fffd}");
    let long = command(&b"x".repeat(9_999), &mut auth);
    assert!(long.len() <= TRACE_LINE_BYTES_MAX + 4 && long.ends_with(" ..."));
    let odd = command("é".repeat(600).as_bytes(), &mut auth);
    assert!(odd.len() <= TRACE_LINE_BYTES_MAX + 4);
}

#[test]
fn addresses_are_found_in_commands() {
    assert_eq!(step("MAIL FROM:<a@b> SIZE=1"), Step::Mail("a@b"));
    assert_eq!(step("Mail From:<>"), Step::Mail(""));
    assert_eq!(step("RCPT TO:<\"x>y\"@b> NOTIFY=NEVER"), Step::Rcpt("\"x>y\"@b"));
    assert_eq!(step("RCPT TO:<@one,@two:a@b>"), Step::Rcpt("a@b"));
    assert_eq!(step("RCPT TO:<a@b"), Step::Rcpt("a@b"));
    assert_eq!(step("RCPT TO: a@b x"), Step::Rcpt("a@b"));
    for other in ["RCPT", "é", "MAIL FROM", "DATA"] {
        assert_eq!(step(other), Step::Other);
    }
}

#[tokio::test]
async fn of_contents_only_the_length_is_shown() {
    let tracer = Tracer::default();
    let mut pages = tracer.watch(&request(|_| ())).unwrap();
    let mut tap = Tap::new(tracer, Direction::Out, CLIENT);
    tap.count(1_000);
    tap.count(234);
    tap.end_of_content(NAMES);
    tap.end_of_content(NAMES);
    assert_eq!(shown(&mut pages), ["1234 octets of data"]);
}
