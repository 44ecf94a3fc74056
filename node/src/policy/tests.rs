use super::*;

fn errors(policy: &str, tables: &[(&str, &str)]) -> Vec<String> {
    let mut files: BTreeMap<String, Vec<u8>> =
        tables.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
    files.insert(POLICY.to_owned(), policy.as_bytes().to_vec());
    let Err(errors) = Configuration::from_files(&files) else { return Vec::new() };
    let text = |report: &miette::Report| {
        let help = report.help().map_or_else(String::new, |help| format!(" ({help})"));
        format!("{report}{help}")
    };
    errors.iter().map(text).collect()
}

#[test]
fn every_error_at_once_with_place_and_suggestion() {
    let policy = r#"domains "local" { tabel "t"; table "u"; list "loacl" }
qualify_domian "x"
acl "mx" {
    rctp { accept }
    rcpt {
        acept
        deny domans="+local"
        deny domains="+lcoal" message="{helo_name}"
        require verify="sendr"
        deny acl="chek"
        warn { set "x" }
        deny delay="fast"
    }
}
acl "check" { accept acl="check" }
routers {
    redirct "r" to="x"
    manualroute "m" route="{table:nothing:{domain}}" transport="smpt"
    accept "a"
}
transports { smtp "smtp" prot=25 }
"#;
    let found = errors(policy, &[("tables/t", "")]);
    for expected in [
        r#"policy.kdl:1:19: unknown kind of list item "tabel" (did you mean "table"?)"#,
        r#"policy.kdl:1:36: unknown table "u""#,
        r#"unknown list of domains "loacl" (did you mean "local"?)"#,
        r#"policy.kdl:2:1: unknown statement "qualify_domian" (did you mean "qualify_domain"?)"#,
        r#"policy.kdl:4:5: unknown stage "rctp""#,
        r#"policy.kdl:6:9: unknown verb "acept" (did you mean "accept"?)"#,
        r#"policy.kdl:7:14: unknown condition or modifier "domans" (did you mean "domains"?)"#,
        r#"policy.kdl:8:14: unknown list of domains "lcoal" (did you mean "local"?)"#,
        r#"policy.kdl:8:31: unknown field "helo_name""#,
        r#"policy.kdl:9:17: unknown verification "sendr" (did you mean "sender"?)"#,
        r#"policy.kdl:10:14: unknown acl "chek" (did you mean "check"?)"#,
        r#"policy.kdl:11:16: expected a line: set "NAME" "VALUE""#,
        r#"policy.kdl:12:14: expected a time like "5s" or "1m""#,
        r#"policy.kdl:15:5: this acl calls itself"#,
        r#"policy.kdl:17:5: unknown kind of router "redirct" (did you mean "redirect"?)"#,
        r#"policy.kdl:18:21: unknown table "nothing""#,
        r#"policy.kdl:18:54: unknown transport "smpt" (did you mean "smtp"?)"#,
        r#"policy.kdl:19:5: accept needs verify-only, or a transport that has hosts"#,
        r#"policy.kdl:21:26: unknown option "prot" (did you mean "port"?)"#,
    ] {
        assert!(
            found.iter().any(|error| error.contains(expected)),
            "{expected}\nis not in\n{}",
            found.join("\n")
        );
    }
}

#[test]
fn what_is_no_kdl_has_its_place() {
    let found = errors("acl \"mx\" {\n  rcpt {\n    accept\n", &[]);
    assert!(found.iter().all(|error| error.starts_with("policy.kdl:")), "{found:?}");
    assert!(!found.is_empty());
}

#[test]
fn conditions_stand_where_they_can_be_asked() {
    let found = errors(
        r#"acl "mx" { connect { deny domains="x"; deny senders="x" }
            rcpt { accept; deny endpass=#true; deny hosts="x" hosts="y" } }"#,
        &[],
    );
    for expected in [
        "\"domains\" needs a recipient",
        "\"senders\" needs a sender",
        "endpass belongs to accept",
        "\"hosts\" is given twice",
    ] {
        assert!(found.iter().any(|error| error.contains(expected)), "{expected}: {found:?}");
    }
}

#[test]
fn rules_that_are_never_tried_are_refused() {
    let found = errors(
        r#"acl "mx" { rcpt {
    deny domains="x"
    accept log="all"
    deny hosts="y"
    deny
} }
acl "a" { deny; accept }
acl "b" { require; warn; accept senders="" endpass=#true; deny }"#,
        &[],
    );
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("policy.kdl:4:5: this rule is never tried"), "{found:?}");
    assert!(found[1].starts_with("policy.kdl:7:17: this rule is never tried"), "{found:?}");
}

/// What the rules of a stage say to a client of this host.
async fn asked(rules: &str, around: &Surroundings) -> Decision {
    let policy = format!("acl \"local\" {{ rcpt {{ {rules} }} }}");
    let files = BTreeMap::from([(POLICY.to_owned(), policy.into_bytes())]);
    let configuration = Configuration::from_files(&files).unwrap();
    let (client, server) = ("192.0.2.9:4000".parse(), "127.0.0.1:25".parse());
    let mut connection = Connection::new(client.unwrap(), server.unwrap(), Service::Smtp);
    let transaction = Transaction {
        sender: "s@x.example".to_owned(),
        recipient: Some("r@y.example".to_owned()),
        ..Transaction::default()
    };
    configuration.check(Stage::Rcpt, &mut connection, &transaction, around).await
}

#[tokio::test]
async fn a_rate_is_counted_by_its_key_and_over_a_change_of_the_policy() {
    let around = golden::around(0);
    let over = |decision: Decision| match decision.verdict {
        Verdict::Accept => false,
        Verdict::Defer(text) => text == "More than 2 in 3600 s",
        other => panic!("{other:?}"),
    };
    let by_sender = "defer rate-over=\"2/1h\" per=\"{sender}\"; accept";
    for expected in [false, false, true] {
        assert_eq!(over(asked(by_sender, &around).await), expected);
    }
    // The same rate of another key, and the same key in a policy of later.
    let by_client = "defer rate-over=\"2/1h\"; accept";
    assert!(!over(asked(by_client, &around).await));
    let later = "warn log=\"new\"; defer rate-over=\"2/1h\" per=\"{sender}\"; accept";
    assert!(over(asked(later, &around).await));
    for bad in ["rate-over=\"0/1h\"", "rate-over=\"5\"", "rate-over=\"1/1h\" pre=\"x\""] {
        assert!(!errors(&format!("acl \"a\" {{ deny {bad} }}"), &[]).is_empty(), "{bad}");
    }
}

#[tokio::test]
async fn a_loaded_machine_may_say_so() {
    let around = golden::around(0);
    for (load, verdict) in [("7.4", true), ("7.5", false), ("8", false)] {
        let decision = asked(&format!("deny load-over={load}; accept"), &around).await;
        assert_eq!(decision.verdict != Verdict::Accept, verdict, "{load}");
    }
}

/// Every word of the language stands in its reference.
#[test]
fn the_reference_has_every_word() {
    let text = include_str!("../../../docs/policy.md");
    let stages = rule::STAGES.map(|(word, _)| word);
    let words = rule::words().chain(rule::verbs()).chain(stages).chain(options::NAMES);
    let words = words.chain(condition::callout_words()).chain(condition::verify_words());
    let words = words
        .chain(rewrite::WORDS)
        .chain(retry::WORDS)
        .chain(template::fields())
        .chain(crate::route::compile::words());
    let missing: Vec<&str> = words.filter(|word| !is_word_in(text, word)).collect();
    assert!(missing.is_empty(), "docs/policy.md lacks {missing:?}");
    for flag in rewrite::flag_letters() {
        assert!(text.contains(&format!("`{flag}`")), "docs/policy.md lacks the flag {flag}");
    }
    assert!(!is_word_in(text, "no-such-word"));
}

/// In code quotes, alone or with others.
fn is_word_in(text: &str, word: &str) -> bool {
    let quoted = text.split('`').skip(1).step_by(2);
    let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_');
    quoted.into_iter().any(|code| code.split(ends).any(|part| part == word))
}

#[test]
fn lists_that_name_themselves_are_refused() {
    let found = errors(r#"domains "a" { list "b" }; domains "b" { list "a" }"#, &[]);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("policy.kdl:1:9: this list names itself"));
}

#[test]
fn addrparams_is_checked() {
    let found = errors(
        "",
        &[(
            "tables/addrparams",
            "192.0.2.1 name=a acl=mx\n192.0.2.2 acl=local\n192.0.2.3 nmae=a\nx name=a acl=local\n\
             192.0.2.4 name=a acl=local msgsizelim=big\n",
        )],
    );
    for expected in [
        "tables/addrparams:2: a server address needs name=",
        "tables/addrparams:3: unknown parameter \"nmae\"",
        "tables/addrparams:4: \"x\" is no IP address",
        "tables/addrparams:5: msgsizelim=big",
    ] {
        assert!(found.iter().any(|error| error.contains(expected)), "{expected}: {found:?}");
    }
    let found = errors("", &[("tables/addrparams", "192.0.2.1 name=a acl=mx\n")]);
    assert!(found[0].contains("192.0.2.1 has acl=mx"), "{found:?}");
}

#[test]
fn an_empty_policy_relays_for_this_host_only() {
    let files = BTreeMap::from([(POLICY.to_owned(), Vec::new())]);
    let configuration = Configuration::from_files(&files).unwrap();
    let personality = configuration.personality("192.0.2.1".parse().unwrap());
    assert_eq!((personality.name.as_str(), personality.acl.as_str()), ("localhost", "local"));
    assert_eq!(personality.size_limit, 104_857_600);
}

#[test]
fn the_example_loads_as_it_stands() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cambridge");
    let configuration = Configuration::load(&dir).unwrap_or_else(|errors| panic!("{errors:?}"));
    let personality = |address: &str| configuration.personality(address.parse().unwrap());
    let mx = personality("131.111.8.140");
    assert_eq!(
        (mx.name.as_str(), mx.acl.as_str(), mx.size_limit),
        ("mx.cam.ac.uk", "mx", 100 << 20)
    );
    assert!(mx.pipelining && !mx.normalise_line_ends);
    let submit = personality("::ffff:131.111.8.156");
    assert_eq!(submit.size_limit, 25 << 20);
    assert!(!submit.pipelining && submit.normalise_line_ends);
    assert_eq!(submit.domain.as_deref(), Some("hermes.cam.ac.uk"));
    assert_eq!(personality("131.111.8.51").acl, "local");
    assert_eq!(configuration.parameter("131.111.8.51".parse().unwrap(), "mua"), Some("yes"));
    assert_eq!(configuration.options().errors_reply_to.as_deref(), Some("postmaster@cam.ac.uk"));
    assert!(configuration.is_reserve_host("131.111.1.1".parse().unwrap()));
}

/// Every list answers with the last number of its name, after a while.
struct Slow;

#[async_trait::async_trait]
impl Dns for Slow {
    async fn mx(&self, _: &str) -> Result<Vec<crate::dns::Mx>, crate::dns::DnsError> {
        Err(crate::dns::DnsError::NoName)
    }
    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, crate::dns::DnsError> {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let last = name.rsplit('.').next().and_then(|word| word.strip_prefix('l'));
        let answer = last.and_then(|number| format!("127.0.0.{number}").parse().ok());
        answer.map(|answer| vec![answer]).ok_or(crate::dns::DnsError::NoName)
    }
    async fn names(&self, _: IpAddr) -> Result<Vec<String>, crate::dns::DnsError> {
        Err(crate::dns::DnsError::NoName)
    }
    async fn texts(&self, name: &str) -> Result<Vec<String>, crate::dns::DnsError> {
        Ok(vec![format!("text of {name}")])
    }
}

#[tokio::test(start_paused = true)]
async fn dns_lists_are_asked_at_once_and_answers_are_filtered() {
    let around = Surroundings { dns: Arc::new(Slow), ..golden::around(0) };
    for (lists, listed) in [
        ("none x.l4", "x.l4"),
        ("none1 none2 none3 none4 none5 none6", ""),
        ("x.l4=127.0.0.2,127.0.0.3 y.l3=127.0.0.2,127.0.0.3", "y.l3"),
        ("x.l4!=127.0.0.4 y.l4!=127.0.0.3", "y.l4"),
        ("x.l4&0.0.0.1 y.l5&0.0.0.2,0.0.0.1", "y.l5"),
        ("x.l4&0.0.0.5 y.l7&0.0.0.5/{sender_domain}", "y.l7"),
        ("l.l999", ""),
    ] {
        let begun = tokio::time::Instant::now();
        let rules = format!("deny dnslists=\"{lists}\" message=\"{{dnslist}} {{text}}\"; accept");
        let decision = asked(&rules, &around).await;
        let said = match &decision.verdict {
            Verdict::Deny(text) => text.split(' ').next().unwrap().to_owned(),
            _ => String::new(),
        };
        assert_eq!(said, listed, "{lists}");
        assert_eq!(begun.elapsed().as_secs(), 10, "{lists}");
    }
    let by_name = asked("deny dnslists=\"x.l4/{sender_domain}\" message=\"{text}\"", &around).await;
    assert_eq!(by_name.verdict, Verdict::Deny("text of x.example.x.l4".to_owned()));
    for bad in ["x=", "x=1.2.3", "x!1.2.3.4", "x&"] {
        assert!(
            !errors(&format!("acl \"a\" {{ deny dnslists=\"{bad}\" }}"), &[]).is_empty(),
            "{bad}"
        );
    }
}

#[tokio::test]
async fn the_length_of_the_queue_is_asked_once_in_a_session() {
    let files = BTreeMap::from([(
        POLICY.to_owned(),
        br#"acl "local" { rcpt { defer queue-over=300; accept } }"#.to_vec(),
    )]);
    let configuration = Configuration::from_files(&files).unwrap();
    let (client, server) = ("192.0.2.9:4000".parse().unwrap(), "127.0.0.1:25".parse().unwrap());
    for (first, then, accepted) in [(300, 301, true), (301, 0, false)] {
        let mut connection = Connection::new(client, server, Service::Smtp);
        for waiting in [first, then] {
            let around = golden::around(waiting);
            let transaction =
                Transaction { recipient: Some("a@x".to_owned()), ..Transaction::default() };
            let decision =
                configuration.check(Stage::Rcpt, &mut connection, &transaction, &around).await;
            assert_eq!(decision.verdict == Verdict::Accept, accepted, "{waiting}");
        }
    }
}
