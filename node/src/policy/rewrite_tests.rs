use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::policy::POLICY;

fn loaded(rules: &str) -> Result<Arc<Configuration>, String> {
    let policy = format!(
        "qualify_domain \"q.example\"\ndomains \"ours\" \"a.example\" \"b.example\"\nrewrite {{\n{rules}\n}}\n"
    );
    let users = b"old new.name\n".to_vec();
    let files = BTreeMap::from([
        (POLICY.to_owned(), policy.into_bytes()),
        ("tables/names".to_owned(), users),
    ]);
    Configuration::from_files(&files).map_err(|errors| format!("{errors:?}"))
}

const PAPER: &str = r#"address "*@cam" to="{1}@cam.ac.uk"
    address "*@*.hermes.cam.ac.uk" to="{1}@hermes.cam.ac.uk" flags="hF""#;
const RECIPIENT: AddressPlace = AddressPlace::EnvelopeRecipient;

fn rewritten(configuration: &Configuration, address: &str, place: AddressPlace) -> String {
    let rewriting = configuration.rewrite(address, place);
    rewriting.map_or_else(|| address.to_owned(), |rewriting| rewriting.new)
}

/// What rules make of a recipient.
fn to(rules: &str, address: &str) -> String {
    rewritten(&loaded(rules).unwrap(), address, RECIPIENT)
}

#[test]
fn the_rules_of_the_paper() {
    let paper = loaded(PAPER).unwrap();
    let header = AddressPlace::Header(AddressField::ReplyTo);
    for (address, place, expected) in [
        ("spqr1@cam", AddressPlace::EnvelopeSender, "spqr1@cam.ac.uk"),
        ("Spqr1@CAM", RECIPIENT, "Spqr1@cam.ac.uk"),
        ("\"a b\"@cam", header, "\"a b\"@cam.ac.uk"),
        ("x@cam.ac.uk", header, "x@cam.ac.uk"),
        ("x@scam", header, "x@scam"),
        ("x@green.Hermes.cam.ac.uk", header, "x@hermes.cam.ac.uk"),
        ("x@a.b.hermes.cam.ac.uk", AddressPlace::EnvelopeSender, "x@hermes.cam.ac.uk"),
        ("x@green.hermes.cam.ac.uk", RECIPIENT, "x@green.hermes.cam.ac.uk"),
        ("x@hermes.cam.ac.uk", header, "x@hermes.cam.ac.uk"),
        ("", RECIPIENT, ""),
        ("postmaster", RECIPIENT, "postmaster"),
    ] {
        assert_eq!(rewritten(&paper, address, place), expected);
    }
    let rewriting = paper.rewrite("x@green.hermes.cam.ac.uk", header).unwrap();
    assert_eq!((rewriting.rule, rewriting.whole), (2, false));
    assert_eq!(paper.place_of_rewrite(2).line, 5);
    assert!(paper.rewrites_headers());
}

#[test]
fn each_rule_sees_what_the_one_before_it_made() {
    let chain = r#"address "a@x" to="b@x"; address "b@x" to="c@x""#;
    assert_eq!(to(chain, "a@x"), "c@x");
    let quits = r#"address "a@x" to="b@x" flags="q"; address "b@x" to="c@x""#;
    assert_eq!(to(quits, "a@x"), "b@x");
    assert_eq!(to(quits, "b@x"), "c@x");
    let except = r#"address "root@*" to="*" flags="q"; address "*@*" to="all@{2}""#;
    assert_eq!(to(except, "root@x"), "root@x");
    assert_eq!(to(except, "joe@x"), "all@x");
    // Only the flags' places make a rule quit.
    let elsewhere = r#"address "*@*" to="*" flags="hq"; address "a@x" to="b@x""#;
    assert_eq!(to(elsewhere, "a@x"), "b@x");
}

#[test]
fn a_rule_may_repeat() {
    let shrink = r#"address "*+*@x" to="{1}{2}@x" flags="R""#;
    assert_eq!(to(shrink, "a+b+c+d@x"), "abcd@x");
    assert_eq!(to(&shrink.replace('R', "T"), "a+b+c+d@x"), "ab+c+d@x");
    let grow = r#"address "*@x" to="{1}a@x" flags="R""#;
    assert_eq!(to(grow, "b@x"), format!("b{}@x", "a".repeat(REWRITE_REPEATS_MAX)));
}

#[test]
fn patterns_and_replacements() {
    for (rule, address, expected) in [
        (r#"address "*@+ours" to="{1}@c.example""#, "x@B.example", "x@c.example"),
        (r#"address "*@+ours" to="{1}@c.example""#, "x@c.example", "x@c.example"),
        (r##"address #"^(\w+)\.(\w+)@x$"# to="{2}.{1}@x""##, "Ann.Lee@X", "Lee.Ann@x"),
        (r#"address "*-*@x" to="{2}_{1}@x""#, "a-b-c@x", "b-c_a@x"),
        (
            r#"address "*@old" to="{table:names:{local_part}}@{qualify_domain}""#,
            "OLD@old",
            "new.name@q.example",
        ),
        (r#"address "*@old" to="{table:names:{local_part}}@q""#, "other@old", "other@old"),
        (r#"address "*@x" to="{0}.example""#, "a@x", "a@x.example"),
        // No address would come of it.
        (r#"address "*@x" to="{1} {1}@x""#, "a@x", "a@x"),
        (
            r#"address "*@x" to="{1}{1}@x""#,
            &format!("{}@x", "a".repeat(40)),
            &format!("{}@x", "a".repeat(40)),
        ),
        (r#"address "*@x" to="ö{1}@x""#, "a@x", "a@x"),
        (r#"address "*@x" to="ö{1}@x""#, "ü@x", "öü@x"),
        (r#"address "*ü*@x" to="{2}@x""#, "aüb@x", "b@x"),
    ] {
        assert_eq!(to(rule, address), expected, "{rule}");
    }
}

#[test]
fn headers_are_rewritten_by_their_flags() {
    let configuration = loaded(
        r#"address "*@cam" to="{1}@cam.ac.uk" flags="fr"
           address "secret@*" to="hidden@{domain}" flags="tw""#,
    );
    let header =
        b"From: A <a@cam>\r\nTo: B <b@cam>, The Boss <secret@cam> (x)\r\nReply-To: c@cam\r\n";
    let (new, done) = configuration.unwrap().rewrite_header(header).unwrap();
    let expected =
        "From: A <a@cam.ac.uk>\r\nTo: B <b@cam>, hidden@cam\r\nReply-To: c@cam.ac.uk\r\n";
    assert_eq!(String::from_utf8(new).unwrap(), expected);
    let done: Vec<_> = done.iter().map(|r| format!("{} {} {}", r.place, r.new, r.rule)).collect();
    assert_eq!(done, ["from a@cam.ac.uk 1", "to hidden@cam 2", "reply-to c@cam.ac.uk 1"]);
}

#[test]
fn mistakes_are_found() {
    for (rules, expected) in [
        ("", "expected rewrite"),
        (r#"adress "*@x" to="a@x""#, "did you mean \"address\""),
        (r#"address "*@x""#, "what stands instead"),
        (r#"address "*@x" to="a@x" flags="hX""#, "unknown flag 'X'"),
        (r#"address "*@x" too="a@x""#, "unknown option \"too\""),
        (r#"address "x" to="a@x""#, "expected an address"),
        (r#"address "^(@x" to="a@x""#, "no regular expression"),
        (r#"address "*@x" to="{2}@x""#, "{2}: the pattern remembers only 1"),
        (r#"address "*@x" to="{sender}@x""#, "unknown field \"sender\""),
        (r#"address "*@x" to="{table:nmaes:{1}}@x""#, "did you mean \"names\""),
        (r#"address "*@x" to="nobody""#, "\"nobody\" is no address"),
        (r#"address "*@+our" to="a@x""#, "did you mean \"ours\""),
        ("}\nrewrite { address \"*@x\" to=\"a@x\"", "stands here twice"),
    ] {
        let error = loaded(rules).unwrap_err();
        assert!(error.contains(expected), "{rules}: {expected}: {error}");
    }
    let many = "address \"*@x\" to=\"a@x\"\n".repeat(REWRITE_RULES_MAX + 1);
    assert!(loaded(&many).unwrap_err().contains("at most"));
}

proptest! {
    #[test]
    fn wildcards_remember_what_they_stand_for(
        pattern in "[a*ö.]{1,6}",
        text in "[aAbö.]{0,12}",
    ) {
        let wild = Wild::new(&pattern);
        let mut found = Vec::new();
        let matches = wild.matches(&text, Some(&mut found));
        prop_assert_eq!(matches, wild.matches(&text, None));
        let glob = crate::policy::list::Glob::new(&pattern);
        prop_assert_eq!(matches, glob.matches(&text.to_ascii_lowercase()));
        if matches {
            let mut parts = pattern.split('*');
            let mut whole = parts.next().unwrap().to_owned();
            for (part, text) in parts.zip(&found) {
                whole = whole + text + part;
            }
            prop_assert!(whole.eq_ignore_ascii_case(&text));
        }
    }

    #[test]
    fn any_address_survives(address in any::<String>()) {
        let paper = loaded(PAPER).unwrap();
        paper.rewrite(&address, RECIPIENT);
    }
}
