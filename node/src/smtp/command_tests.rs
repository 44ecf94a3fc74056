//! Tests of [`super`].

use super::*;

fn code(line: &[u8]) -> u16 {
    parse(line).map_or_else(|e| e.reply().code(), |_| 0)
}

#[test]
fn commands_are_read_whatever_their_case() {
    assert_eq!(parse(b"noop whatever"), Ok(Command::Noop));
    assert_eq!(parse(b"Quit "), Ok(Command::Quit));
    assert_eq!(parse(b"EHLO [127.0.0.1]"), Ok(Command::Ehlo("[127.0.0.1]")));
    assert_eq!(parse(b"helo bad..name_"), Ok(Command::Helo("bad..name_")));
    assert_eq!(parse(b"BDAT 86 last"), Ok(Command::Bdat { size: 86, last: true }));
    assert_eq!(
        parse(b"BDAT 99999999999999999999"),
        Ok(Command::Bdat { size: u64::MAX, last: false })
    );
    assert_eq!(
        parse(b"AUTH plain AGEAYg=="),
        Ok(Command::Auth { mechanism: "plain", initial: Some("AGEAYg==") })
    );
}

#[test]
fn mail_and_rcpt_carry_their_parameters() {
    let line = b"MAIL FROM: <a@b.org> SIZE=100 body=8bitmime SMTPUTF8 AUTH=<> RET=HDRS ENVID=x+2By";
    let Ok(Command::Mail { sender, parameters }) = parse(line) else { panic!() };
    assert_eq!(sender, Path::Mailbox("a@b.org".into()));
    assert_eq!(
        parameters,
        MailParameters {
            size: Some(100),
            eight_bit: Some(true),
            smtputf8: true,
            auth: Some("<>".into()),
            return_headers_only: Some(true),
            envelope_id: Some("x+2By".into()),
        }
    );
    let line = b"RCPT TO:<Postmaster> NOTIFY=success,FAILURE ORCPT=rfc822;a+2Bb@c.org";
    let Ok(Command::Rcpt { recipient, parameters }) = parse(line) else { panic!() };
    assert_eq!(recipient, Path::Postmaster);
    assert_eq!(parameters.notify.as_deref(), Some("SUCCESS,FAILURE"));
    assert_eq!(parameters.original.as_deref(), Some("rfc822;a+2Bb@c.org"));
}

#[test]
fn each_error_has_its_code() {
    for (line, expected) in [
        (b"".as_slice(), 500),
        (b"FOO", 500),
        (b"NOOP\0", 500),
        (b"NOOP \xff", 500),
        (b"GET / HTTP/1.1", 500),
        (b"EXPN staff", 502),
        (b"DATA now", 501),
        (b"EHLO", 501),
        (b"EHLO a(b", 501),
        (b"EHLO a b", 501),
        (b"MAIL", 501),
        (b"MAIL FROM", 501),
        (b"MAIL FROM:a@b", 501),
        (b"MAIL FROM:<postmaster>", 501),
        (b"MAIL FROM:<a@b>SIZE=1", 501),
        (b"MAIL FROM:<a@b> SIZE=x", 501),
        (b"MAIL FROM:<a@b> SIZE=1 SIZE=2", 501),
        (b"MAIL FROM:<a@b> BODY=BINARYMIME", 501),
        (b"MAIL FROM:<a@b> ENVID=a+zz", 501),
        (b"MAIL FROM:<a@b> XFOO=1", 555),
        (b"RCPT TO:<>", 501),
        (b"RCPT TO:<fred>", 501),
        (b"RCPT TO:<a@b> NOTIFY=NEVER,DELAY", 501),
        (b"RCPT TO:<a@b> SIZE=1", 555),
        (b"VRFY", 501),
        (b"BDAT", 501),
        (b"BDAT -1", 501),
        (b"BDAT 1 MORE", 501),
        (b"AUTH", 501),
    ] {
        assert_eq!(code(line), expected, "{}", String::from_utf8_lossy(line));
    }
    assert!(parse(b"POST / HTTP/1.1").unwrap_err().reply().closes());
}

#[test]
fn labels_are_a_closed_set() {
    assert_eq!(verb(b"mail FROM:<>"), "MAIL");
    assert_eq!(verb(b"XYZZY"), "other");
    assert_eq!(verb(b""), "other");
}

proptest::proptest! {
    #[test]
    fn any_line_is_answered(line in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80)) {
        let _ = parse(&line);
    }

    #[test]
    fn any_path_is_answered(text in "[MRmr](AIL|CPT) (FROM|TO):<?[a-z@\\[\\].,:\"\\\\é]{0,40}>?[ A-Z=0-9]{0,10}") {
        let _ = parse(text.as_bytes());
    }
}
