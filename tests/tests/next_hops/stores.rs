//! Cyrus and Dovecot as message stores: recipients have answers of their own.

use std::net::SocketAddr;

use ppsw_tests::{
    client::Client,
    cluster::Cluster,
    hops::{self, Dovecot, Tap, Waiting, address, retry, wait_for_queue},
    stores::Cyrus,
};

use crate::{client, expect, expect_failure, message, odd_messages, send};

/// Bytes in a mailbox that is full with anything.
const NOTHING: u64 = 1;

/// Users and the last numbers of their stores' addresses.
const USERS: [(&str, u8); 9] = [
    ("spqr1", 4),
    ("spqr2", 4),
    // Full.
    ("spqr3", 4),
    ("spqr4", 5),
    ("spqr5", 5),
    // Full.
    ("spqr6", 5),
    // Nobody there knows of.
    ("spqr7", 5),
    // Full for good.
    ("spqr8", 6),
    ("spqr9", 6),
];

struct Stores {
    cyrus: Cyrus,
    dovecot: Dovecot,
    cyrus_tap: Tap,
    dovecot_tap: Tap,
    strict_tap: Tap,
}

impl Stores {
    fn start(port: u16) -> Self {
        let tap = |number| Tap::start(address(0, number, port), address(0, number, port + 1));
        let behind = |number| address(0, number, port + 1);
        let cyrus = Cyrus::start(behind(4));
        cyrus.administer("CREATE user/spqr2/detail@hermes.cam.ac.uk");
        cyrus.administer("SETACL user/spqr2/detail@hermes.cam.ac.uk anyone p");
        cyrus.administer("SETQUOTA user/spqr3@hermes.cam.ac.uk (STORAGE 1)");
        let mut client = Client::connect(behind(4)).unwrap();
        client.command("LHLO test").unwrap();
        let reply = client.send("", &["spqr3@hermes.cam.ac.uk"], &message("ballast", 50)).unwrap();
        assert_eq!(reply.code, 250, "{reply:?}");
        client.quit();
        let dovecot = Dovecot::start(behind(5), behind(6).ip());
        set_quota(&dovecot, NOTHING);
        Self { cyrus, dovecot, cyrus_tap: tap(4), dovecot_tap: tap(5), strict_tap: tap(6) }
    }

    fn mail(&self, user: &str, folder: &str) -> Vec<Vec<u8>> {
        let cyrus = USERS.iter().any(|(name, number)| *name == user && *number == 4);
        match folder {
            "" if cyrus => self.cyrus.mail(user, "INBOX"),
            _ if cyrus => self.cyrus.mail(user, folder),
            _ => self.dovecot.mail(user, folder),
        }
    }
}

/// The size of the mailbox of `spqr6`.
fn set_quota(dovecot: &Dovecot, bytes: u64) {
    dovecot.set_users(&[
        ("spqr4", 0),
        ("spqr5", 0),
        ("spqr6", bytes),
        ("spqr8", NOTHING),
        ("spqr9", 0),
    ]);
}

fn start() -> (Cluster, Stores) {
    let cluster = Cluster::start(5_200);
    let port = cluster.file.sink.lmtp.port();
    let store = |number: &u8| -> SocketAddr { address(0, *number, port) };
    let table: String =
        USERS.iter().map(|(user, number)| format!("{user} {}\n", store(number))).collect();
    std::fs::write(cluster.dir().join("config/users/cyrus"), table).unwrap();
    // What is full is asked less often than what is out of order.
    let rules = "\nretry {";
    let quota = "\nretry {\n    rule \"F,5d,3h\" errors=\"quota\"";
    hops::change_policy(&cluster, &[(rules, quota)]);
    (cluster, Stores::start(port))
}

#[test]
fn stores_answer_for_each_recipient() {
    let (cluster, stores) = start();
    let mut client = client(&cluster);
    a_full_mailbox_waits_alone(&cluster, &mut client, &stores);
    bytes_are_kept(&mut client, &stores);
    wait_for_queue(&cluster, &[]);
    client.quit();
}

fn a_full_mailbox_waits_alone(cluster: &Cluster, client: &mut Client, stores: &Stores) {
    let at = |user: &str| format!("{user}@hermes.cam.ac.uk");
    let users = [
        "spqr1",
        "spqr2+detail",
        "spqr3",
        "spqr4",
        "spqr5+detail",
        "spqr6",
        "spqr7",
        "spqr8",
        "spqr9",
    ];
    let recipients = users.map(at);
    let sent = message("to-nine", 5);
    send(client, &recipients.each_ref().map(String::as_str), &sent);

    let kept = |user: &'static str, folder: &'static str| {
        expect(&format!("{user}+{folder}"), || stores.mail(user, folder), "to-nine", &sent);
    };
    for (user, folder) in
        [("spqr1", ""), ("spqr2", "detail"), ("spqr4", ""), ("spqr5", "detail"), ("spqr9", "")]
    {
        kept(user, folder);
    }
    expect_failure(
        cluster,
        &at("spqr7"),
        "5.1.1",
        "550 5.1.1 <spqr7@hermes.cam.ac.uk> User doesn't exist",
    );
    expect_failure(
        cluster,
        &at("spqr8"),
        "5.2.2",
        "552 5.2.2 <spqr8@hermes.cam.ac.uk> Quota exceeded",
    );
    let waiting = wait_for_queue(cluster, &[at("spqr3"), at("spqr6")]);
    for (waiting, why) in
        waiting.iter().zip(["452 4.2.2 Over quota", "452 4.2.2 <spqr6@hermes.cam.ac.uk> Quota"])
    {
        println!("{} waits: {}", waiting.address, waiting.last_error);
        assert!(waiting.last_error.contains(why), "{waiting:?}");
        // By the rule for what is full.
        let wait = until_retry(waiting);
        assert!((10_700..=10_900).contains(&wait), "{wait} s: {waiting:?}");
    }
    // They had it, or not, in one transaction with the others.
    for (tap, recipients) in
        [(&stores.cyrus_tap, 3), (&stores.dovecot_tap, 4), (&stores.strict_tap, 2)]
    {
        let transactions = tap.transactions("to-nine");
        assert_eq!(transactions.len(), 1, "{transactions:?}");
        let begin = transactions[0][0].text();
        assert_eq!(begin.matches("RCPT TO:").count(), recipients, "{begin}");
    }

    stores.cyrus.administer("SETQUOTA user/spqr3@hermes.cam.ac.uk (STORAGE 1000)");
    set_quota(&stores.dovecot, 1_000_000);
    retry(cluster);
    kept("spqr3", "");
    kept("spqr6", "");
    wait_for_queue(cluster, &[]);
    // Nobody has it a second time.
    for (user, folder) in
        [("spqr1", ""), ("spqr2", "detail"), ("spqr4", ""), ("spqr5", "detail"), ("spqr9", "")]
    {
        kept(user, folder);
    }
}

/// Seconds between the last attempt, which was at the arrival, and the next.
fn until_retry(waiting: &Waiting) -> i64 {
    // The time of day is enough for less than a day.
    let seconds = |time: &str| -> i64 {
        let clock = time.split('T').nth(1).unwrap();
        let part = |from: usize| -> i64 { clock[from..from + 2].parse().unwrap() };
        part(0) * 3_600 + part(3) * 60 + part(6)
    };
    (seconds(&waiting.next_retry) - seconds(&waiting.received)).rem_euclid(86_400)
}

/// NULs are left out, which Cyrus refuses and Dovecot would keep; everything else is as it was.
fn bytes_are_kept(client: &mut Client, stores: &Stores) {
    let mut odd = odd_messages();
    let nuls = [&message("nuls", 0)[..], b"a\0b\r\n\0\r\n.\0.\r\n\0.\r\n\0\0\0end\r\n"].concat();
    odd.push(("nuls".to_owned(), nuls));
    for (_, content) in &odd {
        send(client, &["spqr1@hermes.cam.ac.uk", "spqr4@hermes.cam.ac.uk"], content);
    }
    for user in ["spqr1", "spqr4"] {
        for (id, content) in &odd {
            let without = Cyrus::keeps(content);
            assert_eq!(without.len() == content.len(), id != "nuls");
            expect(user, || stores.mail(user, ""), id, &without);
        }
        println!("{user} has {} odd messages, without NULs", odd.len());
    }
}
