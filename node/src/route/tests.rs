use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::*;
use crate::{
    dns::{DnsError, FixedDns, Mx},
    policy::{
        POLICY,
        golden::{dns, shown},
    },
};

fn configuration(policy: &str, tables: &[(&str, &str)]) -> Arc<Configuration> {
    let mut files: BTreeMap<String, Vec<u8>> =
        tables.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
    files.insert(POLICY.to_owned(), policy.as_bytes().to_vec());
    Configuration::from_files(&files).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// Routers between the braces, with aliases of `d.example` and the usual transports.
fn routers(routers: &str, aliases: &str) -> Arc<Configuration> {
    let policy = format!(
        "qualify_domain \"d.example\"\ndomains \"local\" \"d.example\"\n\
         routers {{ {routers} }}\ntransports {{ smtp \"smtp\" port=26; lmtp \"lmtp\" strip-nul=#true\n\
         smtp \"relay\" hosts=\"a.example b.example\" }}"
    );
    configuration(&policy, &[("domains/d.example/aliases", aliases), ("tables/none", "")])
}

async fn routed(configuration: &Configuration, address: &str) -> String {
    shown(&route(configuration, &names(), &About::default(), address).await)
}

fn names() -> FixedDns {
    let one = "192.0.2.1".parse().unwrap();
    let two = "192.0.2.2".parse().unwrap();
    dns()
        .with_mx("w.example", 20, "b.example")
        .with_mx("w.example", 10, "a.example")
        .with_mx("short.wide.example", 10, "a.example")
        .with_mx("mixed.example", 10, "broken.example.org")
        .with_mx("mixed.example", 20, "a.example")
        .with_mx("dead.example", 10, "gone.example")
        .with_address("a.example", one)
        .with_address("b.example", two)
        .with_address("c.example", two)
}

const ALIASES: &str = r#"redirect "aliases" domains="+local" to="{table:domains/{domain}/aliases:{local_part}}" check-ancestor=#true allow-fail=#true"#;
const DNS: &str = r#"dnslookup "dns" domains="!+local" transport="smtp" widen="wide.example" mx-domains="*.mx.example" ignore-hosts="10.0.0.0/8""#;

#[tokio::test]
async fn redirect_follows_aliases() {
    let c = routers(
        &format!("{ALIASES}\n{DNS}"),
        "one: x@w.example\nmany: one, two, x@W.example, Someone <y@w.example>\ntwo one\n\
         gone: :fail: moved away\nhole :blackhole:\npipe |/bin/sh\nempty\nbad x@\n",
    );
    for (address, expected) in [
        ("one@d.example", "x@w.example dns a.example:26 b.example:26"),
        ("ONE", "x@w.example dns a.example:26 b.example:26"),
        (r#""one"@D.EXAMPLE."#, "x@w.example dns a.example:26 b.example:26"),
        (
            "many@d.example",
            "x@w.example dns a.example:26 b.example:26; y@w.example dns a.example:26 b.example:26",
        ),
        ("gone@d.example", "gone@d.example ** moved away"),
        ("hole@d.example", "hole@d.example == bad item in the data of router aliases"),
        ("pipe@d.example", "pipe@d.example == bad item in the data of router aliases"),
        ("empty@d.example", "empty@d.example ** Unrouteable address"),
        ("bad@d.example", r#"bad@d.example == "x@" in the data of router aliases"#),
        ("none@d.example", "none@d.example ** Unrouteable address"),
        ("@d.example", r#"@d.example ** "@d.example" is no address"#),
        ("", r#" ** "" is no address"#),
    ] {
        assert_eq!(routed(&c, address).await, expected, "{address}");
    }
    let targets = route(&c, &names(), &About::default(), "two@d.example").await;
    assert_eq!(targets[0].parents, ["two@d.example", "one@d.example"]);
}

#[tokio::test]
async fn fail_needs_leave() {
    let aliases = ALIASES.replace("allow-fail=#true", "");
    let c = routers(&aliases, "gone: :fail: moved away\n");
    let expected = "gone@d.example == bad item in the data of router aliases";
    assert_eq!(routed(&c, "gone@d.example").await, expected);
}

#[tokio::test]
async fn loops_end() {
    let last = r#"manualroute "store" route="a.example" transport="lmtp""#;
    let c =
        routers(&format!("{ALIASES}\n{last}"), "a: b\nb: a\nself: self\nc: c, d\nd: c@d.example\n");
    // An ancestor stands for the address itself, which the router does not redirect again.
    assert_eq!(routed(&c, "a").await, "b@d.example store a.example:24");
    assert_eq!(routed(&c, "self").await, "self@d.example store a.example:24");
    assert_eq!(
        routed(&c, "c").await,
        "c@d.example store a.example:24; d@d.example store a.example:24"
    );
    let c = routers(
        &format!("{}\n{last}", ALIASES.replace("check-ancestor=#true", "")),
        "a: b\nb: a\n",
    );
    assert_eq!(routed(&c, "a").await, "a@d.example store a.example:24");
    let growing = r#"redirect "grow" domains="+local" to="x{local_part}@d.example""#;
    let c = routers(growing, "");
    assert_eq!(
        routed(&c, "a@d.example").await,
        "a@d.example == redirected more than 30 times: probably a loop"
    );
    assert!(matches!(
        verify(&c, &names(), &About::default(), "a@d.example").await,
        Verified::Later(_)
    ));
}

#[tokio::test]
async fn expansion_is_bounded() {
    let many = (0..60).map(|n| format!("l{n}")).collect::<Vec<_>>().join(",");
    let mut aliases = format!("top: {many}\n");
    for n in 0..60 {
        let members: Vec<String> = (0..1_000).map(|m| format!("m{n}x{m}@w.example")).collect();
        aliases.push_str(&format!("l{n}: {}\n", members.join(",")));
    }
    let c = routers(&format!("{ALIASES}\nfail \"f\" message=\"no\""), &aliases);
    let text = routed(&c, "top@d.example").await;
    assert_eq!(text, "top@d.example == leads to more than 50000 addresses; shorten its lists");
}

#[tokio::test]
async fn dnslookup_finds_hosts() {
    let c = routers(DNS, "");
    for (address, expected) in [
        ("x@w.example", "x@w.example dns a.example:26 b.example:26"),
        ("x@c.example", "x@c.example dns c.example:26"),
        ("x@short", "x@short.wide.example dns a.example:26"),
        (
            "x@null.example.org",
            "x@null.example.org ** null.example.org does not accept mail (null MX)",
        ),
        ("x@nomx.example.org", "x@nomx.example.org ** Unrouteable address"),
        (
            "x@bogus.example.org",
            "x@bogus.example.org ** all relevant MX records point to non-existent hosts",
        ),
        ("x@dead.example", "x@dead.example ** all relevant MX records point to non-existent hosts"),
        ("x@nosuch.example", "x@nosuch.example ** Unrouteable address"),
        ("x@broken.example.org", "x@broken.example.org == host lookup: SERVFAIL"),
        ("x@mixed.example", "x@mixed.example dns a.example:26"),
        ("x@[192.0.2.9]", "x@[192.0.2.9] ** Unrouteable address"),
    ] {
        assert_eq!(routed(&c, address).await, expected, "{address}");
    }
    let d = configuration(
        r#"allow_domain_literals #true
        routers { dnslookup "dns" transport="smtp" mx-domains="c.example" cannot-route-message="no {domain}" no-more=#true
                  fail "never" message="never" }
        transports { smtp "smtp" }"#,
        &[],
    );
    assert_eq!(routed(&d, "x@[192.0.2.9]").await, "x@[192.0.2.9] dns [192.0.2.9]:25");
    assert_eq!(routed(&d, "x@c.example").await, "x@c.example ** no c.example");
}

#[tokio::test]
async fn a_secondary_mx_sends_only_upwards() {
    let policy = r#"hosts_treat_as_local "late.example.org"
        acl "mx" { rcpt { accept } }
        routers { dnslookup "dns" transport="smtp" }
        transports { smtp "smtp" }"#;
    let c = configuration(policy, &[("tables/addrparams", "192.0.2.2 name=us acl=mx\n")]);
    // b.example has our address.
    assert_eq!(routed(&c, "x@w.example").await, "x@w.example dns a.example:25");
    // sink (5), mx.cam.ac.uk (10), late (20), which is ours by name.
    assert_eq!(
        routed(&c, "x@chem.cam.ac.uk").await,
        "x@chem.cam.ac.uk dns sink.example.org:25 mx.cam.ac.uk:25"
    );
    assert_eq!(
        routed(&c, "x@b.example").await,
        "x@b.example == remote host address is the local host"
    );
}

#[tokio::test]
async fn manualroute_takes_hosts_and_ports() {
    let with = |line: &str| {
        let text = format!(
            r#"manualroute "m" domains="+local" route="{{table:domains/{{domain}}/aliases:{{local_part}}}}" transport="lmtp" {line}
            fail "rest" message="no route for {{address}}""#
        );
        routers(
            &text,
            "one a.example\nport a.example:2424 b.example\nip 192.0.2.7 [2001:db8::1]:99\nmx w.example/mx\n\
             dead gone.example\nlater broken.example.org\nboth broken.example.org a.example\nbad a/b\n",
        )
    };
    let c = with("");
    for (address, expected) in [
        ("one@d.example", "one@d.example m a.example:24"),
        ("port@d.example", "port@d.example m a.example:2424 b.example:24"),
        ("ip@d.example", "ip@d.example m 192.0.2.7:24 2001:db8::1:99"),
        ("mx@d.example", "mx@d.example m a.example:24 b.example:24"),
        ("dead@d.example", r#"dead@d.example == lookup of host "gone.example" failed"#),
        ("later@d.example", "later@d.example == broken.example.org: SERVFAIL"),
        ("both@d.example", "both@d.example == broken.example.org: SERVFAIL"),
        ("bad@d.example", r#"bad@d.example == "a/b" in a route is no host"#),
        ("None@d.example", "None@d.example ** no route for None@d.example"),
    ] {
        assert_eq!(routed(&c, address).await, expected, "{address}");
    }
    let preferences = |targets: Vec<Target>| match targets.into_iter().next().unwrap().fate {
        Fate::Deliver(to) => {
            assert!(to.strip_nul && to.protocol == Protocol::Lmtp && to.transport == "lmtp");
            to.hosts.iter().map(|host| host.preference).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(preferences(route(&with(""), &names(), &About::default(), "port").await), [0, 1]);
    let c = with("randomize=#true");
    assert_eq!(preferences(route(&c, &names(), &About::default(), "port").await), [0, 0]);
    let c = with(r#"host-find-failed="fail""#);
    assert!(routed(&c, "dead").await.contains("** lookup of host"));
    let c = with(r#"host-find-failed="decline""#);
    assert!(routed(&c, "dead").await.contains("** no route for"));
    let c = with(r#"host-find-failed="ignore""#);
    assert!(routed(&c, "dead").await.contains("== no host of the route"));
}

#[tokio::test]
async fn accept_uses_the_transports_hosts() {
    let c = routers(r#"accept "smarthost" transport="relay""#, "");
    assert_eq!(routed(&c, "x@any").await, "x@any smarthost a.example:25 b.example:25");
}

#[tokio::test]
async fn preconditions_and_affixes() {
    let c = routers(
        r#"fail "v" verify-only=#true local-parts="v" message="only verified"
        fail "n" no-verify=#true local-parts="n" message="only routed"
        fail "owner" local-part-prefix="owner-" message="owner of {local_part}, {prefix}"
        fail "plus" local-part-suffix="+*" affix-optional=#true local-parts="user" message="{local_part}{suffix}"
        fail "req" local-part-suffix="-request" message="request for {local_part}"
        fail "known" lookup="{table:domains/d.example/aliases:{local_part}}" message="known"
        fail "unknown" lookup="!{table:domains/d.example/aliases:{local_part}}" local-parts="u" message="unknown"
        fail "table" has-table="domains/{domain}/aliases" local-parts="t" message="table"
        fail "lines" has-lines="lists/{local_part}/members" message="lines""#,
        "known\nsaysno no\n",
    );
    for (local, expected) in [
        ("n", "only routed"),
        ("v", "Unrouteable address"),
        ("Owner-X", "owner of x, owner-"),
        ("owner-", "Unrouteable address"),
        ("user", "user"),
        ("user+a+b", "user+a+b"),
        ("x-request", "request for x"),
        ("known", "known"),
        ("saysno", "Unrouteable address"),
        ("u", "unknown"),
        ("t", "table"),
    ] {
        let address = format!("{local}@d.example");
        assert_eq!(routed(&c, &address).await, format!("{address} ** {expected}"));
    }
    let verified = verify(&c, &names(), &About::default(), "v@d.example").await;
    assert_eq!(verified, Verified::No("only verified".to_owned()));
    let verified = verify(&c, &names(), &About::default(), "n@d.example").await;
    assert_eq!(verified, Verified::No("Unrouteable address".to_owned()));
}

#[tokio::test]
async fn verification_stops_at_several_children() {
    let c = routers(
        &format!("{ALIASES}\n{DNS}"),
        "good: x@w.example\nbad: x@nosuch.example\nlater: x@broken.example.org\nmany: none1, none2\n",
    );
    let result = |address: &'static str| {
        let c = Arc::clone(&c);
        async move { verify(&c, &names(), &About::default(), address).await }
    };
    assert!(matches!(result("good").await, Verified::Yes(Some(_))));
    assert_eq!(result("many").await, Verified::Yes(None));
    assert_eq!(result("bad").await, Verified::No("Unrouteable address".to_owned()));
    assert_eq!(result("later").await, Verified::Later("host lookup: SERVFAIL".to_owned()));
}

/// A DNS whose answers take a while.
struct Slow(FixedDns);

#[async_trait::async_trait]
impl Dns for Slow {
    async fn mx(&self, domain: &str) -> Result<Vec<Mx>, DnsError> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.0.mx(domain).await
    }
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        self.0.addresses(host).await
    }
    async fn names(&self, address: IpAddr) -> Result<Vec<String>, DnsError> {
        self.0.names(address).await
    }
    async fn texts(&self, name: &str) -> Result<Vec<String>, DnsError> {
        self.0.texts(name).await
    }
}

#[tokio::test]
async fn many_addresses_are_looked_up_at_once() {
    let members: Vec<String> = (0..320).map(|n| format!("m{n}@w.example")).collect();
    let c = routers(&format!("{ALIASES}\n{DNS}"), &format!("list: {}\n", members.join(",")));
    // 320 questions of 50 ms, 32 at a time: half a second instead of 16.
    let routing = async { route(&c, &Slow(names()), &About::default(), "list@d.example").await };
    let targets = tokio::time::timeout(Duration::from_secs(8), routing).await.unwrap();
    assert_eq!(targets.len(), 320);
    assert_eq!(targets[0].address, "m0@w.example");
}

#[tokio::test]
async fn addresses_of_a_redirection_are_rewritten() {
    let rewriting = r#"rewrite { address "*@brief" to="{1}@w.example"; address "*@h" to="{1}@w.example" flags="h" }"#;
    let policy = format!(
        "qualify_domain \"d.example\"\ndomains \"local\" \"d.example\"\n{rewriting}\n\
         routers {{ {ALIASES}\n{DNS} }}\ntransports {{ smtp \"smtp\" port=26 }}"
    );
    let aliases = "one: x@brief\ntwo: x@h\n";
    let c = configuration(&policy, &[("domains/d.example/aliases", aliases)]);
    let expected = "x@w.example dns a.example:26 b.example:26";
    assert_eq!(routed(&c, "one@d.example").await, expected);
    assert_eq!(routed(&c, "two@d.example").await, "x@h ** Unrouteable address");
    // What has been taken is rewritten already; what somebody asks about is not.
    assert_eq!(routed(&c, "x@brief").await, "x@brief ** Unrouteable address");
    let (targets, stops) = explain(&c, &names(), &About::default(), "x@brief", false).await;
    assert_eq!(shown(&targets), expected);
    assert_eq!(stops[0].address, "x@brief");
    assert_eq!(stops[0].routers[0].outcome, "rewrites it to x@w.example");
    assert_eq!(stops[0].routers[0].place.line, 3);
}

#[tokio::test]
async fn the_last_router_that_is_considered_names_the_failure() {
    let c = routers(
        r#"fail "first" local-parts="f" message="x" cannot-route-message="first of {local_part}"
        redirect "second" domains="other" to="x@y" cannot-route-message="second of {local_part}{suffix}" local-part-suffix="+*" affix-optional=#true"#,
        "",
    );
    // Also one that is skipped, and no earlier one.
    assert_eq!(routed(&c, "u+v@d.example").await, "u+v@d.example ** second of u+v");
    let c = routers(
        r#"redirect "first" to="{table:none:x}" no-more=#true cannot-route-message="first"
        fail "second" message="second""#,
        "",
    );
    assert_eq!(routed(&c, "u@d.example").await, "u@d.example ** first");
    // What the DNS says of the domain is better.
    let c = routers(&format!("{DNS} no-more=#true cannot-route-message=\"bad domain\""), "");
    let why = "all relevant MX records point to non-existent hosts";
    assert_eq!(routed(&c, "u@dead.example").await, format!("u@dead.example ** {why}"));
    assert_eq!(routed(&c, "u@nosuch.example").await, "u@nosuch.example ** bad domain");
}

#[tokio::test]
async fn passing_goes_on_whatever_no_more_says() {
    let with = |line: &str| {
        let policy = format!(
            r#"acl "mx" {{ rcpt {{ accept }} }}
            routers {{
                dnslookup "dns" transport="smtp" no-more=#true {line}
                fail "next" message="next"
                fail "third" message="third"
            }}
            transports {{ smtp "smtp" }}"#
        );
        configuration(&policy, &[("tables/addrparams", "192.0.2.2 name=us acl=mx\n")])
    };
    for (line, address, expected) in [
        ("", "x@b.example", "== remote host address is the local host"),
        (r#"self="fail""#, "x@b.example", "** remote host address is the local host"),
        (r#"self="pass""#, "x@b.example", "** next"),
        (r#"self="pass" pass-router="third""#, "x@b.example", "** third"),
        (r#"pass-router="third""#, "x@broken.example.org", "== host lookup: SERVFAIL"),
        ("pass-on-timeout=#true", "x@broken.example.org", "** next"),
        ("", "x@nosuch.example", "** Unrouteable address"),
    ] {
        assert_eq!(routed(&with(line), address).await, format!("{address} {expected}"), "{line}");
    }
}

#[tokio::test]
async fn a_manual_route_ends_at_this_machine() {
    let policy = |line: &str| {
        format!(
            r#"acl "mx" {{ rcpt {{ accept }} }}
            routers {{ manualroute "m" route="{{table:routes:{{domain}}}}" transport="smtp" {line} }}
            transports {{ smtp "smtp" }}"#
        )
    };
    let routes = "last.example a.example b.example c.example\nfirst.example b.example a.example\n\
                  bad.example c.example a.example\n";
    let tables = [("tables/addrparams", "192.0.2.2 name=us acl=mx\n"), ("tables/routes", routes)];
    let c = configuration(&policy(r#"ignore-hosts="192.0.2.1""#), &tables);
    // What may not be used does not exist.
    let expected = r#"x@last.example == lookup of host "a.example" failed"#;
    assert_eq!(routed(&c, "x@last.example").await, expected);
    let c = configuration(&policy(""), &tables);
    assert_eq!(routed(&c, "x@last.example").await, "x@last.example m a.example:25");
    let expected = "x@first.example == remote host address is the local host";
    assert_eq!(routed(&c, "x@first.example").await, expected);
}

#[tokio::test]
async fn an_unseen_router_takes_a_copy_once() {
    let tap = r#"manualroute "tap" no-verify=#true unseen=#true repeat-use=#false route="tap.example" errors-to="" transport="smtp""#;
    let c = routers(&format!("{tap}\n{ALIASES}\n{DNS}"), "one: two\ntwo: x@w.example\n");
    let names = names().with_address("tap.example", "192.0.2.77".parse().unwrap());
    let targets = route(&c, &names, &About::default(), "one@d.example").await;
    assert_eq!(
        shown(&targets),
        "one@d.example tap tap.example:26 F=; x@w.example dns a.example:26 b.example:26"
    );
    let keys: Vec<String> = targets.iter().map(Target::key).collect();
    assert_eq!(keys, ["one@d.example via tap", "x@w.example"]);
    assert_eq!(targets[1].parents, ["one@d.example", "two@d.example"]);
    // The copy is nobody's business.
    let verified = verify(&c, &names, &About::default(), "one@d.example").await;
    assert!(matches!(verified, Verified::Yes(Some((address, _))) if address == "x@w.example"));
    // A tap that cannot be reached holds up nothing.
    let expected = r#"one@d.example == lookup of host "tap.example" failed F=; x@w.example dns a.example:26 b.example:26"#;
    assert_eq!(routed(&c, "one@d.example").await, expected);
    // Without `repeat-use=#false`, each address on the way is copied; one that comes back is not.
    let c = routers(
        &format!("{}\n{ALIASES}\n{DNS}", tap.replace("repeat-use=#false", "")),
        "one: two\ntwo: x@w.example\n",
    );
    let targets = route(&c, &names, &About::default(), "one@d.example").await;
    assert_eq!(targets.iter().filter(|target| target.copy.is_some()).count(), 3);
    // What an expansion in the log was made of has been copied then.
    let tapped = routers(&format!("{tap}\n{DNS}"), "");
    let asked = [Asked { address: "x@w.example", ancestors: vec!["list@d.example"] }];
    let targets = route_recipients(&tapped, &names, &About::default(), &asked).await.remove(0);
    assert!(targets.iter().all(|target| target.copy.is_none()), "{targets:?}");
}

#[tokio::test]
async fn a_fraction_of_messages_is_always_the_same() {
    let c = routers(r#"fail "tapped" fraction=4 message="tapped""#, "");
    let id = |counter| MessageId { second: 1_700_000_000, counter, node: 3 };
    let mut tapped = 0;
    for counter in 0..4_000 {
        let about = About { id: Some(id(counter)), ..About::default() };
        let once = shown(&route(&c, &names(), &about, "x@d.example").await);
        assert_eq!(once, shown(&route(&c, &names(), &about, "x@d.example").await));
        tapped += u32::from(once.contains("tapped"));
    }
    // 1000 ± 6 standard deviations.
    assert!((836..1_164).contains(&tapped), "{tapped}");
    assert_eq!(routed(&c, "x@d.example").await, "x@d.example ** Unrouteable address", "no id");
    // The sample must not change with a version: messages would be copied twice.
    let sample: Vec<u64> = (0..40).filter(|n| walk::sample(id(*n), 4)).collect();
    assert_eq!(sample, SAMPLE);
}

/// Of the first 40 ids above, those that a fraction of 4 takes.
const SAMPLE: [u64; 11] = [1, 6, 9, 16, 25, 29, 31, 33, 34, 36, 37];

#[tokio::test]
async fn routers_may_ask_about_the_message() {
    let c = routers(
        r#"fail "local" personality="local" message="from this machine"
        fail "other" personality="!mx smart" message="neither mx nor smart"
        fail "bounce" senders="" message="a bounce"
        fail "sender" senders="*@noisy.example" message="{sender_local_part} of {sender_domain}"
        fail "rest" message="rest""#,
        "",
    );
    for (sender, personality, expected) in [
        ("a@b.example", "local", "from this machine"),
        ("a@b.example", "submit", "neither mx nor smart"),
        ("", "mx", "a bounce"),
        ("a@noisy.example", "smart", "a of noisy.example"),
        ("a@b.example", "mx", "rest"),
    ] {
        let about = About { id: None, sender, personality };
        let is = shown(&route(&c, &names(), &about, "x@d.example").await);
        assert_eq!(is, format!("x@d.example ** {expected}"), "{sender} {personality}");
    }
}

#[tokio::test]
async fn affixes_are_lists_and_may_be_wild() {
    let c = routers(
        r#"fail "both" local-part-prefix="real- *=" local-part-suffix="-owner +*" message="{prefix}|{local_part}|{suffix}"
        fail "prefix" local-part-prefix="*=" message="{prefix}|{local_part}""#,
        "",
    );
    for (local, expected) in [
        ("real-x-owner", "real-|x|-owner"),
        ("REAL-X+Y+Z", "real-|x|+y+z"),
        ("a=b=x+y", "a=b=|x|+y"),
        // Neither may be all of it.
        ("a=b=", "Unrouteable address"),
        ("a=b", "a=|b"),
        ("real-+y", "Unrouteable address"),
        ("x", "Unrouteable address"),
    ] {
        let address = format!("{local}@d.example");
        assert_eq!(routed(&c, &address).await, format!("{address} ** {expected}"));
    }
}

const LIST: &str = r#"redirect "list" local-part-suffix="-out" to-lines="lists/{local_part}/members" one-time=#true check-ancestor=#true errors-to="{local_part}-owner@d.example""#;

fn listed(aliases: &str, lists: &[(&str, &str)]) -> Arc<Configuration> {
    let policy = format!(
        "qualify_domain \"d.example\"\ndomains \"local\" \"d.example\"\n\
         routers {{ {LIST}\n{ALIASES}\n{DNS} }}\ntransports {{ smtp \"smtp\" port=26 }}"
    );
    let mut tables = vec![("domains/d.example/aliases", aliases), ("tables/none", "")];
    tables.extend(lists);
    configuration(&policy, &tables)
}

#[tokio::test]
async fn one_time_stops_where_the_expansion_is_to_be_recorded() {
    let c = listed(
        "both: l-out, x@c.example\nl-owner: y@w.example\nm-owner: y@nosuch.example",
        &[
            ("lists/l/members", "a@w.example\nb@w.example\nl-out\n"),
            ("lists/m/members", "a@w.example\n"),
        ],
    );
    // To the end, for who wants to know.
    assert_eq!(
        routed(&c, "both").await,
        "x@c.example dns c.example:26; a@w.example dns a.example:26 b.example:26 F=l-owner@d.example; \
         b@w.example dns a.example:26 b.example:26 F=l-owner@d.example; l-out@d.example ** Unrouteable address F=l-owner@d.example"
    );
    let asked = |address, ancestors| [Asked { address, ancestors }];
    let go = async |asked: &[Asked<'_>]| {
        route_recipients(&c, &names(), &About::default(), asked).await.remove(0)
    };
    let targets = go(&asked("both@d.example", vec![])).await;
    assert_eq!(
        shown(&targets),
        "l-out@d.example expands to a@w.example b@w.example l-out@d.example F=l-owner@d.example; \
         x@c.example dns c.example:26"
    );
    assert_eq!(targets[0].key(), "l-out@d.example expanded");
    assert_eq!(targets[0].parents, ["both@d.example"]);
    // What was made by it does not go there again.
    let ancestors = vec!["both@d.example", "l-out@d.example"];
    let targets = go(&asked("l-out@d.example", ancestors.clone())).await;
    assert_eq!(shown(&targets), "l-out@d.example ** Unrouteable address");
    let targets = go(&asked("a@w.example", ancestors)).await;
    assert_eq!(shown(&targets), "a@w.example dns a.example:26 b.example:26");
    assert_eq!(targets[0].parents, ["both@d.example", "l-out@d.example"]);
    // An address for errors that leads nowhere is not used.
    assert_eq!(routed(&c, "m-out").await, "a@w.example dns a.example:26 b.example:26");
}

#[tokio::test]
async fn one_look_up_serves_a_domain() {
    let aliases = format!("{ALIASES}\n{DNS} same-domain-copy=#true");
    let members: Vec<String> = (0..500).map(|n| format!("m{n}@w.example")).collect();
    let c = routers(&aliases, &format!("list: {}, x@c.example\n", members.join(",")));
    let counted = Counted { dns: names(), questions: AtomicUsize::new(0) };
    let targets = route(&c, &counted, &About::default(), "list@d.example").await;
    assert_eq!(targets.len(), 501);
    // MX and two hosts, MX and one host.
    assert_eq!(counted.questions.load(Ordering::Relaxed), 5);
    let c = routers(&format!("{ALIASES}\n{DNS}"), &format!("list: {}\n", members.join(",")));
    let counted = Counted { dns: names(), questions: AtomicUsize::new(0) };
    route(&c, &counted, &About::default(), "list@d.example").await;
    assert_eq!(counted.questions.load(Ordering::Relaxed), 1_500);
}

/// A DNS that counts.
struct Counted {
    dns: FixedDns,
    questions: AtomicUsize,
}

#[async_trait::async_trait]
impl Dns for Counted {
    async fn mx(&self, domain: &str) -> Result<Vec<Mx>, DnsError> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        self.dns.mx(domain).await
    }
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        self.dns.addresses(host).await
    }
    async fn names(&self, address: IpAddr) -> Result<Vec<String>, DnsError> {
        self.dns.names(address).await
    }
    async fn texts(&self, name: &str) -> Result<Vec<String>, DnsError> {
        self.dns.texts(name).await
    }
}

#[tokio::test]
async fn recipients_of_a_message_share_their_bound() {
    let c = routers(DNS, "");
    let addresses: Vec<String> = (0..320).map(|n| format!("m@w{n}.example")).collect();
    let asked: Vec<Asked<'_>> =
        addresses.iter().map(|address| Asked { address, ancestors: vec![] }).collect();
    let busy = Busy { now: AtomicUsize::new(0), most: AtomicUsize::new(0) };
    let routing = async { route_recipients(&c, &busy, &About::default(), &asked).await };
    let targets = tokio::time::timeout(Duration::from_secs(8), routing).await.unwrap();
    assert_eq!(targets.len(), 320);
    assert_eq!(targets[7][0].address, "m@w7.example", "in their order");
    assert_eq!(busy.most.load(Ordering::Relaxed), crate::limits::ROUTE_CONCURRENT);
}

/// A DNS that knows how much it had to do at once.
struct Busy {
    now: AtomicUsize,
    most: AtomicUsize,
}

#[async_trait::async_trait]
impl Dns for Busy {
    async fn mx(&self, _: &str) -> Result<Vec<Mx>, DnsError> {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.now.fetch_sub(1, Ordering::Relaxed);
        Ok(vec![Mx { preference: 1, host: "192.0.2.1".to_owned() }])
    }
    async fn addresses(&self, _: &str) -> Result<Vec<IpAddr>, DnsError> {
        Err(DnsError::NoName)
    }
    async fn names(&self, _: IpAddr) -> Result<Vec<String>, DnsError> {
        Err(DnsError::NoName)
    }
    async fn texts(&self, _: &str) -> Result<Vec<String>, DnsError> {
        Err(DnsError::NoName)
    }
}

#[tokio::test]
async fn a_pipe_gets_its_command_and_its_address() {
    let policy = r#"routers { accept "lists" local-part-suffix="-post" affix-optional=#true transport="program" }
        transports { pipe "program" command="/bin/prog -l '{local_part} x' {domain}" user="38:38" timeout="5m" temp-errors="75 69" }"#;
    let c = configuration(policy, &[]);
    let targets = route(&c, &names(), &About::default(), "; rm -post@d.example").await;
    let Fate::Deliver(to) = &targets[0].fate else { panic!("{targets:?}") };
    let program = to.program.as_ref().unwrap();
    assert_eq!(program.words, ["/bin/prog", "-l", "; rm  x", "d.example"]);
    assert_eq!((program.user.as_deref(), program.timeout.as_secs()), (Some("38:38"), 300));
    assert_eq!(program.temp_errors, [75, 69]);
    for (name, value) in [
        ("LOCAL_PART", "; rm "),
        ("LOCAL_PART_SUFFIX", "-post"),
        ("DOMAIN", "d.example"),
        ("RECIPIENT", "; rm -post@d.example"),
    ] {
        assert!(program.environment.contains(&(name, value.to_owned())), "{name}");
    }
    assert_eq!((to.protocol, to.hosts.len()), (Protocol::Pipe, 0));
}

#[test]
fn what_a_router_cannot_be_is_an_error() {
    for (line, expected) in [
        (r#"redirect "r" to="x" one-time=#true unseen=#true"#, "exclude each other"),
        (r#"redirect "r" to="x" pass-router="q""#, "unknown router below this one"),
        (r#"redirect "r" to="x" local-part-suffix="a*b""#, "expected a text"),
        (r#"redirect "r" to="x" local-part-prefix="x-*""#, "expected a text"),
        (r#"redirect "r" to="x" fraction=0"#, "expected a number"),
        (r#"redirect "r" to="x" route="y""#, "unknown option of redirect"),
        (r#"manualroute "r" route="x" transport="t" host-find-failed="freeze""#, "unknown way"),
        (r#"accept "r" transport="t""#, "needs verify-only"),
    ] {
        let policy = format!("routers {{ {line} }}\ntransports {{ smtp \"t\" }}");
        let errors = errors_of(&policy);
        assert!(errors.contains(expected), "{line}: {errors}");
    }
    for (line, expected) in [
        (r#"pipe "p""#, "pipe needs command="),
        (r#"pipe "p" command="prog""#, "expected the full path"),
        (r#"pipe "p" command="/p 'x""#, "not closed"),
        (r#"pipe "p" command="/p" timeout="2h""#, "up to 60 minutes"),
        (r#"pipe "p" command="/p" temp-errors="256""#, "expected exit codes"),
        (r#"pipe "p" command="/p" port=25"#, "unknown option of pipe"),
    ] {
        let errors = errors_of(&format!("routers {{ }}\ntransports {{ {line} }}"));
        assert!(errors.contains(expected), "{line}: {errors}");
    }
}

fn errors_of(policy: &str) -> String {
    let files = BTreeMap::from([(POLICY.to_owned(), policy.as_bytes().to_vec())]);
    let errors = Configuration::from_files(&files).err().unwrap_or_default();
    errors.iter().map(|error| format!("{error:?}\n")).collect()
}

#[tokio::test]
async fn an_explanation_is_a_tree_with_look_ups() {
    let c = routers(&format!("{ALIASES}\n{DNS}"), "many: one, y@w.example\none: x@w.example\n");
    let (targets, stops) = explain(&c, &names(), &About::default(), "many@d.example", false).await;
    assert_eq!(targets.len(), 2);
    let tree: Vec<_> = stops.iter().map(|stop| (stop.address.as_str(), stop.parent)).collect();
    assert_eq!(
        tree,
        [
            ("many@d.example", None),
            ("one@d.example", Some(0)),
            ("y@w.example", Some(0)),
            ("x@w.example", Some(1))
        ]
    );
    assert_eq!(
        stops[0].routers[0].lookups,
        [r#"domains/d.example/aliases: many: "one, y@w.example""#]
    );
    let dns = &stops[3].routers[1];
    assert!(dns.decides && dns.outcome == "takes it for transport smtp", "{dns:?}");
    assert_eq!(
        dns.lookups,
        [
            "DNS: MX w.example: 10 a.example, 20 b.example",
            "DNS: A a.example: 192.0.2.1",
            "DNS: A b.example: 192.0.2.2"
        ]
    );
}
