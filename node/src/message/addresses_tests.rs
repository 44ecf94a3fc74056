use mail_parser::MessageParser;
use proptest::prelude::*;

use super::*;

/// Every address `…@cam` gets its long form.
fn long(_: AddressField, address: &str) -> Option<Replacement> {
    let local = address.strip_suffix("@cam")?;
    Some(Replacement { address: format!("{local}@cam.ac.uk"), whole: false })
}

fn replaced(header: &str) -> String {
    let new = replace_addresses(header.as_bytes(), long);
    new.map_or_else(|| header.to_owned(), |new| String::from_utf8(new).unwrap())
}

#[test]
fn only_the_address_changes() {
    for (old, new) in [
        ("From: a@cam\r\n", "From: a@cam.ac.uk\r\n"),
        ("FROM :A Name <a@cam>(c@cam)\r\n", "FROM :A Name <a@cam.ac.uk>(c@cam)\r\n"),
        ("To: \"x, y@cam\" <a@cam>, b@cam\r\n", "To: \"x, y@cam\" <a@cam.ac.uk>, b@cam.ac.uk\r\n"),
        (
            "Cc: The Group: a@cam,\r\n\tB <b@cam>; , c@x.org\r\n",
            "Cc: The Group: a@cam.ac.uk,\r\n\tB <b@cam.ac.uk>; , c@x.org\r\n",
        ),
        (
            "To: =?utf-8?q?J=C3=B6rg?=\r\n <a@cam>\r\nX-To: a@cam\r\nResent-To: a@cam\r\n\r\n",
            "To: =?utf-8?q?J=C3=B6rg?=\r\n <a@cam.ac.uk>\r\nX-To: a@cam\r\nResent-To: a@cam.ac.uk\r\n\r\n",
        ),
        ("Sender: \"a \\\" b\"@cam\r\n", "Sender: \"a \\\" b\"@cam.ac.uk\r\n"),
        ("Bcc: a (one (two)) @ cam (three)\r\n", "Bcc: a@cam.ac.uk (one (two)) (three)\r\n"),
        ("To: <@x.org,@y.org:a.b@cam>\r\n", "To: <@x.org,@y.org:a.b@cam.ac.uk>\r\n"),
        ("Reply-To: a..b.@cam, x@[192.0.2.1]\r\n", "Reply-To: a..b.@cam.ac.uk, x@[192.0.2.1]\r\n"),
        ("To: öäü@cam\r\n", "To: öäü@cam.ac.uk\r\n"),
    ] {
        assert_eq!(replaced(old), new);
    }
}

#[test]
fn what_cannot_be_read_is_left_alone() {
    for header in [
        "To: a b@cam\r\n",
        "To: <a@cam\r\n",
        "To: a@cam>\r\n",
        "To: <a@cam> <b@cam>\r\n",
        "To: <a@cam> b\r\n",
        "To: a@b@cam\r\n",
        "To: @cam, a@, cam, @, <>, <@cam>, .@cam\r\n",
        "To: a@cam, (no end\r\n",
        "To: a@cam, \"no end\r\n",
        "To: a@cam, x@[no end\r\n",
        "To: a@cam, x\\",
        "Subject: a@cam\r\n",
        "undisclosed-recipients:;\r\n",
    ] {
        let expected =
            if header.starts_with("To: a@cam, x\\") { "To: a@cam.ac.uk, x\\" } else { header };
        assert_eq!(replaced(header), expected);
    }
    let not_utf8 = b"To: \xff@cam\r\n";
    assert_eq!(replace_addresses(not_utf8, long), None);
}

#[test]
fn the_whole_item_can_go() {
    let bare = |_: AddressField, address: &str| {
        let whole = address.starts_with('a');
        whole.then(|| Replacement { address: "x@y".into(), whole })
    };
    let header = b"To: (before) A <a@cam> (after), B <b@cam>\r\n";
    let new = replace_addresses(header, bare).unwrap();
    assert_eq!(String::from_utf8(new).unwrap(), "To: x@y, B <b@cam>\r\n");
}

#[test]
fn fields_are_told_apart() {
    let mut seen = Vec::new();
    let header =
        b"From: a@x\r\nto: b@x\r\nReply-To: c@x\r\nresent-cc: d@x\r\nBcc: e@x\r\nSender: f@x\r\n";
    replace_addresses(header, |field, address| {
        seen.push((field, address.to_owned()));
        None
    });
    let seen: Vec<_> = seen.iter().map(|(field, address)| (*field, address.as_str())).collect();
    assert_eq!(
        seen,
        [
            (AddressField::From, "a@x"),
            (AddressField::To, "b@x"),
            (AddressField::ReplyTo, "c@x"),
            (AddressField::Cc, "d@x"),
            (AddressField::Bcc, "e@x"),
            (AddressField::Sender, "f@x"),
        ]
    );
}

#[test]
fn lines_do_not_become_too_long() {
    let all = vec!["somebody@cam"; 70].join(",");
    let header = format!("To: {all}\r\nCc: {all}\r\n");
    assert!(header.lines().all(|line| line.len() <= HEADER_LINE_BYTES_MAX));
    let new = replaced(&header);
    assert!(new.lines().all(|line| line.len() <= LINE_BYTES), "{new}");
    assert_eq!(new.matches("somebody@cam.ac.uk").count(), 140);
    assert_eq!(new.lines().filter(|line| !line.starts_with('\t')).count(), 2);
}

#[test]
fn their_number_is_bounded() {
    let half = vec!["a@cam"; HEADER_ADDRESSES_MAX / 2 + 1].join(",\r\n ");
    let new = replaced(&format!("To: {half}\r\nCc: {half}\r\n"));
    assert_eq!(new.matches("a@cam.ac.uk").count(), HEADER_ADDRESSES_MAX / 2 + 1);
}

/// The pieces that a list of addresses, good or bad, is made of.
fn pieces() -> impl Strategy<Value = String> {
    let piece = proptest::sample::select(vec![
        "a",
        "b.c",
        "@",
        "cam",
        "cam.ac.uk",
        "<",
        ">",
        ",",
        ";",
        ":",
        "(",
        ")",
        "\"",
        "\\",
        "[",
        "]",
        " ",
        "\r\n ",
        ".",
        "=?utf-8?q?x?=",
        "ö",
        "To: ",
        "\r\n",
        "a@cam",
        "N <a@cam>",
        "\0",
    ]);
    proptest::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

fn mailbox() -> impl Strategy<Value = (String, String)> {
    let local = proptest::sample::select(vec!["a", "b.c", "\"d e\"", "f+g", "\"h\\\"@cam\""]);
    let domain = proptest::sample::select(vec!["cam", "x.org", "[192.0.2.1]", "cam.ac.uk"]);
    let around = proptest::sample::select(vec![
        ("", ""),
        ("<", ">"),
        ("A Name <", ">"),
        ("\"N, <x@cam>\" <", ">"),
        ("=?utf-8?q?J=C3=B6rg?=\r\n <", ">"),
        ("(a@cam) ", ""),
        ("", " (a, (b@cam))"),
    ]);
    (local, domain, around).prop_map(|(local, domain, (before, after))| {
        let new = if domain == "cam" { "cam.ac.uk" } else { domain };
        (format!("{before}{local}@{domain}{after}"), format!("{before}{local}@{new}{after}"))
    })
}

proptest! {
    #[test]
    fn garbage_survives(value in pieces()) {
        let header = format!("To: {value}\r\n");
        let new = replaced(&header);
        // Nothing but addresses has changed: taken back, it is the same, save for blanks inside addresses.
        let bare = |text: &str| text.replace("@cam.ac.uk", "@cam").replace([' ', '\r', '\n', '\t'], "");
        let comments = header.contains('(');
        prop_assert!(comments || bare(&new) == bare(&header), "{header:?} {new:?}");
    }

    #[test]
    fn any_bytes_survive(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let header = [b"To: ".as_slice(), &bytes].concat();
        let all = |_: AddressField, _: &str| Some(Replacement { address: "x@y".into(), whole: true });
        replace_addresses(&header, all);
        replace_addresses(&header, |_, _| None);
        replace_addresses(&bytes, long);
    }

    #[test]
    fn good_lists_are_read(list in proptest::collection::vec(mailbox(), 1..8), comma in "(,|, |,\r\n\t)") {
        let join = |side: fn(&(String, String)) -> &str| {
            let all: Vec<&str> = list.iter().map(side).collect();
            format!("Cc: {}\r\n\r\n", all.join(&comma))
        };
        let (old, new) = (join(|pair| &pair.0), join(|pair| &pair.1));
        prop_assert_eq!(&replaced(&old), &new);
        // Others read it in the same way.
        let count = |text: &str| {
            let message = MessageParser::new().parse_headers(text.as_bytes());
            message.and_then(|m| m.cc().map(|cc| cc.iter().count()))
        };
        prop_assert_eq!(count(&new), count(&old));
    }
}
