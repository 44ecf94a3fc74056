//! Events as lines of Exim's main log, with the fields that the paper's `log_selector` asks for.

use std::{borrow::Cow, fmt::Write, net::SocketAddr, time::Duration};

use super::event::{Arrival, Attempt, Client, Delivery, Event, Operator, Rejection};
use crate::limits::LOG_FIELD_BYTES_MAX;

/// Adds a line's text, without time and end. Nothing in it can be a line end or a terminal's escape.
pub(super) fn main_line(line: &mut String, event: &Event) {
    let text = match event {
        Event::Arrival(arrival) => return arrival_line(line, arrival),
        Event::Delivery(delivery) => return delivery_line(line, delivery),
        Event::Completion { id, queue_seconds } => {
            push(line, &[id, " Completed QT="]);
            return seconds(line, *queue_seconds);
        }
        Event::Rewriting { id, old, place, new, rule } => format!(
            "{id} \"{}\" from {place} rewritten as \"{}\" by rule {rule}",
            clean(old),
            clean(new)
        ),
        Event::Failure(attempt) => {
            let host = host(attempt);
            let space = if host.is_empty() { "" } else { " " };
            let start = attempt_text("**", attempt);
            format!("{start}{space}{host}: {}", clean(&attempt.text))
        }
        Event::Deferral(attempt) => {
            let host = host(attempt);
            let colon = if host.is_empty() { "" } else { ": " };
            let start = attempt_text("==", attempt);
            format!("{start} defer (0){colon}{host}: {}", clean(&attempt.text))
        }
        Event::BounceDropped { id, age_seconds } => {
            let mut age = String::new();
            seconds(&mut age, *age_seconds);
            format!("{id} error message ignored after {age}: it could not be delivered")
        }
        Event::Operator(operator) => operator_line(operator),
        Event::OutcomeLost { id, text } => {
            format!("{id} outcome not recorded, duplicates are possible: {}", clean(text))
        }
        Event::Rejection(rejection) => rejection_line(rejection),
        Event::AuthenticationFailure { peer, mechanism, user } => format!(
            "{} authenticator failed for {}: 535 Incorrect authentication data (set_id={})",
            clean(mechanism),
            host_of(peer).trim_start_matches("H="),
            clean(user)
        ),
        Event::ProtocolError { peer, text } => {
            format!("SMTP protocol error from {}: {}", host_of(peer), clean(text))
        }
        Event::ConnectionLost { peer, text, in_transaction } => {
            let during = if *in_transaction { " while a message was received" } else { "" };
            format!("SMTP connection from {} lost{during}: {}", host_of(peer), clean(text))
        }
        Event::ConnectionRefused { client, server, text } => {
            let (client, server) = (bracketed_text(client), bracketed_text(server));
            format!("Connection from {client} I={server} refused: {}", clean(text))
        }
        Event::Note { peer, text } => format!("{} Warning: {}", host_of(peer), clean(text)),
        Event::Lost { count } => format!("{count} log lines lost: the log's disk is too slow"),
    };
    line.push_str(&text);
}

fn arrival_line(line: &mut String, arrival: &Arrival) {
    push(line, &[&arrival.id, " <= ", &path(&arrival.sender)]);
    if let Some(about) = &arrival.about {
        let _ = write!(line, " R={about}");
    }
    let peer = &arrival.peer;
    if !peer.client.is_empty() {
        line.push(' ');
        client(line, peer);
    }
    push(line, &[" P=", &clean(&peer.protocol).to_lowercase()]);
    if !peer.tls.is_empty() {
        push(line, &[" X=", &clean(&peer.tls)]);
    }
    if let Some(subject) = &arrival.certificate {
        let verified = if arrival.certificate_verified == Some(true) { "yes" } else { "no" };
        let _ = write!(line, " CV={verified} DN=\"{}\"", clean(subject).replace('"', "\\\""));
    }
    if !peer.authenticated.is_empty() {
        let mechanism = if arrival.mechanism.is_empty() { "auth" } else { &arrival.mechanism };
        let _ = write!(line, " A={}:{}", clean(mechanism), clean(&peer.authenticated));
    }
    let _ = write!(line, " S={}", arrival.size);
    if arrival.receive_seconds > 0.0 {
        line.push_str(" RT=");
        seconds(line, arrival.receive_seconds);
    }
    if !arrival.message_id.is_empty() {
        let id = arrival.message_id.trim().trim_start_matches('<').trim_end_matches('>');
        push(line, &[" id=", &clean(id)]);
    }
    push(line, &[" for ", &clean(&arrival.recipients.join(" "))]);
    if arrival.discarded {
        line.push_str(" (discarded)");
    }
}

fn delivery_line(line: &mut String, delivery: &Delivery) {
    let flag = if delivery.further { "->" } else { "=>" };
    let attempt = &delivery.attempt;
    attempt_start(line, flag, attempt);
    let _ = write!(line, " S={}", delivery.size);
    if !attempt.host.is_empty() {
        push(line, &[" ", &host(attempt)]);
    }
    if !attempt.tls.is_empty() {
        // Nobody has looked at the certificate.
        push(line, &[" X=", &clean(&attempt.tls), " CV=no"]);
    }
    // A program says nothing.
    if !attempt.text.is_empty() {
        push(line, &[" C=\"", &clean(&attempt.text).replace('"', "\\\""), "\""]);
    }
    line.push_str(" QT=");
    seconds(line, delivery.queue_seconds);
    line.push_str(" DT=");
    seconds(line, delivery.delivery_seconds);
}

fn operator_line(operator: &Operator) -> String {
    let mut line = format!("{} {} by {}", operator.id, operator.verb, clean(&operator.by));
    if !operator.addresses.is_empty() {
        let _ = write!(line, " for {}", clean(&operator.addresses.join(" ")));
    }
    if let Some(to) = &operator.to {
        let _ = write!(line, " to {}", clean(to));
    }
    if !operator.reason.is_empty() {
        let _ = write!(line, ": {}", clean(&operator.reason));
    }
    line
}

fn rejection_line(rejection: &Rejection) -> String {
    let mut line = host_of(&rejection.peer);
    if let Some(sender) = rejection.sender.as_ref().filter(|_| rejection.stage != "mail") {
        let _ = write!(line, " F={}", bracket(sender));
    }
    line.push_str(if rejection.permanent { " rejected " } else { " temporarily rejected " });
    let what = match rejection.stage {
        "connect" => "connection".to_owned(),
        "helo" => format!("EHLO or HELO {}", clean(&rejection.peer.helo)),
        "mail" => format!("MAIL {}", bracket(rejection.sender.as_deref().unwrap_or_default())),
        "rcpt" => format!("RCPT {}", bracket(rejection.recipient.as_deref().unwrap_or_default())),
        "predata" | "data" => "after DATA".to_owned(),
        other => other.to_uppercase(),
    };
    let _ = write!(line, "{what}: {}", clean(&rejection.text));
    line
}

fn attempt_text(flag: &str, attempt: &Attempt) -> String {
    let mut text = String::new();
    attempt_start(&mut text, flag, attempt);
    text
}

/// Id, flag, address with its ancestors, sender and return path, router and transport.
fn attempt_start(line: &mut String, flag: &str, attempt: &Attempt) {
    push(line, &[&attempt.id, " ", flag, " ", &clean(&attempt.address)]);
    if let Some((original, between)) = attempt.parents.split_first() {
        for parent in between.iter().rev() {
            push(line, &[" (", &clean(parent), ")"]);
        }
        push(line, &[" <", &clean(original), ">"]);
    }
    let (sender, return_path) = (clean(&attempt.sender), clean(&attempt.return_path));
    push(line, &[" F=<", &sender, "> P=<", &return_path, ">"]);
    if !attempt.router.is_empty() {
        push(line, &[" R=", &clean(&attempt.router)]);
    }
    if !attempt.transport.is_empty() {
        push(line, &[" T=", &clean(&attempt.transport)]);
    }
}

/// `H=name [address]:port` of the next hop, or nothing.
fn host(attempt: &Attempt) -> String {
    if attempt.host.is_empty() {
        return String::new();
    }
    let mut text = ["H=", &clean(&attempt.host), " "].concat();
    bracketed(&mut text, &attempt.host_address);
    text
}

fn host_of(peer: &Client) -> String {
    let mut text = String::new();
    client(&mut text, peer);
    text
}

/// `H=name (helo) [address]:port I=[address]:port` of a client.
fn client(line: &mut String, peer: &Client) {
    line.push_str("H=");
    if !peer.client_name.is_empty() {
        push(line, &[&clean(&peer.client_name), " "]);
    }
    if !peer.helo.is_empty() && !peer.helo.eq_ignore_ascii_case(&peer.client_name) {
        push(line, &["(", &clean(&peer.helo), ") "]);
    }
    bracketed(line, &peer.client);
    if !peer.server.is_empty() {
        line.push_str(" I=");
        bracketed(line, &peer.server);
    }
}

fn bracketed_text(address: &str) -> String {
    let mut text = String::new();
    bracketed(&mut text, address);
    text
}

/// `[192.0.2.1]:25`
fn bracketed(line: &mut String, text: &str) {
    match (text.parse::<SocketAddr>(), text.rsplit_once(':')) {
        // It has passed as an address: nothing in it needs cleaning.
        (Ok(SocketAddr::V4(_)), Some((ip, port))) => push(line, &["[", ip, "]:", port]),
        (Ok(address), _) => {
            let _ = write!(line, "[{}]:{}", address.ip(), address.port());
        }
        (Err(_), _) => push(line, &["[", &clean(text), "]"]),
    }
}

/// An address as Exim logs an envelope sender of an arrival: bare, `<>` if empty.
fn path(address: &str) -> Cow<'_, str> {
    if address.is_empty() { Cow::Borrowed("<>") } else { clean(address) }
}

fn bracket(address: &str) -> String {
    format!("<{}>", clean(address))
}

/// Exim's times in log lines: whole seconds in long units, milliseconds below a minute.
fn seconds(line: &mut String, value: f64) {
    let time = Duration::try_from_secs_f64(value).unwrap_or_default();
    if value < 60.0 {
        let ms = (time.as_micros() + 500) / 1000;
        let _ = write!(line, "{}.{:03}s", ms / 1000, ms % 1000);
    } else {
        line.push_str(&crate::deliver::retry::exim_time(time));
    }
}

/// What is written for each message goes without the formatting machinery.
fn push(line: &mut String, pieces: &[&str]) {
    pieces.iter().for_each(|piece| line.push_str(piece));
}

/// Text from outside, made harmless: no control characters, no odd white space, of bounded length.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    // Nearly all that is logged is harmless as it came.
    let harmless = |byte: &u8| matches!(byte, b' '..=b'~') && *byte != b'\\';
    if text.len() <= LOG_FIELD_BYTES_MAX && text.as_bytes().iter().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            // Line and paragraph separator, and marks that turn the direction of what follows.
            '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' => {
                let _ = write!(out, "\\x{{{:x}}}", u32::from(character));
            }
            _ if character.is_control() => {
                let _ = write!(out, "\\{:03o}", u32::from(character));
            }
            _ => out.push(character),
        }
        if out.len() > LOG_FIELD_BYTES_MAX {
            out.push_str(" ...");
            break;
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attempt() -> Attempt {
        Attempt {
            id: "1abcDE-000001-02".into(),
            address: "spqr1@hermes.example".into(),
            parents: vec!["fellows@botolph.example".into(), "all@botolph.example".into()],
            sender: "a@example.org".into(),
            return_path: "a@example.org".into(),
            router: "hermes_lmtp".into(),
            transport: "hermes_lmtp".into(),
            host: "cyrus-1".into(),
            host_address: "192.0.2.1:24".into(),
            tls: String::new(),
            text: "250 \"ok\"".into(),
            next_due: None,
        }
    }

    fn line(event: Event) -> String {
        let mut line = String::new();
        main_line(&mut line, &event);
        line
    }

    #[test]
    fn attempts_look_like_exims() {
        let start = "1abcDE-000001-02";
        let middle = "spqr1@hermes.example (all@botolph.example) <fellows@botolph.example> \
                      F=<a@example.org> P=<a@example.org> R=hermes_lmtp T=hermes_lmtp";
        let host = "H=cyrus-1 [192.0.2.1]:24";
        let delivery = Delivery {
            attempt: attempt(),
            further: false,
            size: 1234,
            queue_seconds: 7261.0,
            delivery_seconds: 0.25,
        };
        assert_eq!(
            line(Event::Delivery(delivery)),
            format!("{start} => {middle} S=1234 {host} C=\"250 \\\"ok\\\"\" QT=2h1m1s DT=0.250s")
        );
        let failed = Attempt { text: "550 no".into(), ..attempt() };
        assert_eq!(line(Event::Failure(failed)), format!("{start} ** {middle} {host}: 550 no"));
        let local = Attempt { text: "no such domain".into(), host: String::new(), ..attempt() };
        assert_eq!(line(Event::Failure(local)), format!("{start} ** {middle}: no such domain"));
        let deferred = Attempt { text: "450 later".into(), ..attempt() };
        assert_eq!(
            line(Event::Deferral(deferred)),
            format!("{start} == {middle} defer (0): {host}: 450 later")
        );
    }

    #[test]
    fn arrivals_and_rejections_look_like_exims() {
        let peer = Client {
            client: "192.0.2.7:4321".into(),
            client_name: "mail.example.org".into(),
            helo: "friend".into(),
            server: "192.0.2.1:25".into(),
            protocol: "ESMTPS".into(),
            tls: "TLS1.3:X".into(),
            ..Client::default()
        };
        let arrival = Arrival {
            id: "1abcDE-000001-02".into(),
            sender: String::new(),
            recipients: vec!["x@y".into(), "z@y".into()],
            size: 99,
            peer: peer.clone(),
            mechanism: String::new(),
            certificate: Some("CN=\"friend\",C=GB".into()),
            certificate_verified: Some(true),
            message_id: "<m@id>".into(),
            about: None,
            receive_seconds: 0.0,
            discarded: false,
        };
        assert!(line(Event::Arrival(arrival)).ends_with(
            "1abcDE-000001-02 <= <> H=mail.example.org (friend) [192.0.2.7]:4321 \
             I=[192.0.2.1]:25 P=esmtps X=TLS1.3:X CV=yes DN=\"CN=\\\"friend\\\",C=GB\" S=99 id=m@id for x@y z@y"
        ));
        let rejection = Rejection {
            peer,
            stage: "rcpt",
            sender: Some("a@b".into()),
            recipient: Some("x@y\n2026 forged".into()),
            text: "550 no".into(),
            permanent: true,
        };
        assert!(
            line(Event::Rejection(rejection))
                .ends_with("F=<a@b> rejected RCPT <x@y\\n2026 forged>: 550 no")
        );
    }

    proptest! {
        #[test]
        fn nothing_breaks_a_line(text in any::<String>(), address in any::<String>()) {
            let attempt = Attempt { text, address, ..attempt() };
            let line = line(Event::Failure(attempt));
            let broken = line.chars().any(|c| c.is_control() || c == '\u{2028}');
            prop_assert!(!broken);
        }
    }
}
