use std::{collections::BTreeMap, sync::Arc, time::Duration};

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
    shown(&route(configuration, &names(), address).await)
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
    let targets = route(&c, &names(), "two@d.example").await;
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
    assert!(matches!(verify(&c, &names(), "a@d.example").await, Verified::Later(_)));
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
        ("x@bogus.example.org", "x@bogus.example.org ** Unrouteable address"),
        ("x@dead.example", "x@dead.example ** Unrouteable address"),
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
        "x@b.example == lowest numbered MX record points to local host"
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
        (
            "dead@d.example",
            r#"dead@d.example == no host of the route "gone.example" has an address"#,
        ),
        ("later@d.example", "later@d.example == broken.example.org: SERVFAIL"),
        ("both@d.example", "both@d.example m a.example:24"),
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
    assert_eq!(preferences(route(&with(""), &names(), "port").await), [0, 1]);
    let c = with("randomize=#true");
    assert_eq!(preferences(route(&c, &names(), "port").await), [0, 0]);
    let c = with(r#"host-find-failed="fail""#);
    assert!(routed(&c, "dead").await.contains("** no host of the route"));
    let c = with(r#"host-find-failed="decline""#);
    assert!(routed(&c, "dead").await.contains("** no route for"));
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
    let verified = verify(&c, &names(), "v@d.example").await;
    assert_eq!(verified, Verified::No("only verified".to_owned()));
    let verified = verify(&c, &names(), "n@d.example").await;
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
        async move { verify(&c, &names(), address).await }
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
    let routing = async { route(&c, &Slow(names()), "list@d.example").await };
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
    let (targets, stops) = explain(&c, &names(), "x@brief", false).await;
    assert_eq!(shown(&targets), expected);
    assert_eq!(stops[0].address, "x@brief");
    assert_eq!(stops[0].routers[0].outcome, "rewrites it to x@w.example");
    assert_eq!(stops[0].routers[0].place.line, 3);
}
