//! Fetches from web servers that are good, careless and evil.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ppsw_control::https::{Password, Url};

use super::{
    super::fetch::{Allowance, Fetch, FetchError, Fetched, HttpsFetcher, Source, Validators},
    web::{Answer, Authority, Certificate, HOST, Server, self_signed},
};
use crate::{
    deliver::connect::TcpConnector,
    dns::{DnsError, FixedDns},
    limits, net,
};

const BYTES: u64 = 64 << 10;

fn fetcher() -> HttpsFetcher {
    let dns = FixedDns::default()
        .with_address(HOST, "127.0.0.1".parse().unwrap())
        .with_address("other.example", "127.0.0.1".parse().unwrap())
        .broken("broken.example");
    let allowance =
        Allowance { connect: Duration::from_secs(2), whole: Duration::from_secs(3), bytes: BYTES };
    HttpsFetcher::new(Arc::new(dns), Arc::new(TcpConnector::default()), allowance).unwrap()
}

fn source(host: &str, address: SocketAddr, ca_pem: &str) -> Source {
    Source {
        url: Url::parse(&format!("https://{host}:{}/aliases?x=1", address.port())).unwrap(),
        user: "ppsw".to_owned(),
        password: Password::new("se:cret".to_owned()),
        ca_pem: ca_pem.to_owned(),
    }
}

fn head(status: &str, fields: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{fields}\r\n")
}

fn ok(body: &str) -> String {
    head("200 OK", &format!("Content-Length: {}\r\n", body.len())) + body
}

/// What comes of one answer of a server with a good certificate.
async fn fetched(answer: Answer) -> Result<Fetched, FetchError> {
    let ca = Authority::new("ca");
    let server = Server::start(&ca.issue(HOST, 2100), move |_| answer.clone());
    fetcher().fetch(&source(HOST, server.address, &ca.pem), None).await
}

async fn error(answer: Answer) -> (String, String) {
    let error = fetched(answer).await.unwrap_err();
    (error.kind().to_owned(), error.to_string())
}

#[tokio::test]
async fn a_file_is_asked_for_with_all_that_is_needed() {
    let ca = Authority::new("ca");
    let fields =
        "ETag: \"v1\"\r\nLast-Modified: Mon, 23 Nov 2026 20:00:00 GMT\r\nContent-Length: 5\r\n";
    let mut server = Server::start(&ca.issue(HOST, 2100), move |_| {
        Answer::Say(head("200 OK", fields) + "hello")
    });
    let source = source(HOST, server.address, &ca.pem);
    let validators = Validators {
        etag: "\"v1\"".to_owned(),
        last_modified: "Mon, 23 Nov 2026 20:00:00 GMT".to_owned(),
    };
    let fetched = fetcher().fetch(&source, None).await.unwrap();
    let expected = Fetched::File { content: b"hello".to_vec(), validators: validators.clone() };
    assert_eq!(fetched, expected);
    let asked = server.asked.recv().await.unwrap().to_ascii_lowercase();
    assert!(asked.starts_with("get /aliases?x=1 http/1.1\r\n"), "{asked}");
    assert!(asked.contains(&format!("\r\nhost: {HOST}:{}\r\n", server.address.port())), "{asked}");
    assert!(
        asked.contains("\r\naccept-encoding: identity\r\n") && !asked.contains("if-"),
        "{asked}"
    );
    // ppsw:se:cret
    assert!(
        asked.contains(&"\r\nauthorization: basic CHBzdzpzZTpjcmV0\r\n".to_ascii_lowercase()),
        "{asked}"
    );
    fetcher().fetch(&source, Some(&validators)).await.unwrap();
    let asked = server.asked.recv().await.unwrap();
    for expected in
        ["if-none-match: \"v1\"\r\n", "if-modified-since: Mon, 23 Nov 2026 20:00:00 GMT\r\n"]
    {
        assert!(asked.contains(expected), "{asked}");
    }
}

#[tokio::test]
async fn bodies_of_every_form_are_read_whole() {
    let content = |fetched| match fetched {
        Ok(Fetched::File { content, .. }) => String::from_utf8(content).unwrap(),
        other => panic!("{other:?}"),
    };
    let chunked = head("200 OK", "Transfer-Encoding: chunked\r\n");
    let text = format!("{chunked}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert_eq!(content(fetched(Answer::Say(text)).await), "abcde");
    let text = "HTTP/1.0 200 OK\r\n\r\nabcde".to_owned();
    assert_eq!(content(fetched(Answer::Say(text)).await), "abcde");
    assert_eq!(content(fetched(Answer::Say(ok(""))).await), "");
    // The end is known before the connection breaks.
    assert_eq!(content(fetched(Answer::Break(ok("abc"))).await), "abc");
}

#[tokio::test]
async fn what_is_cut_off_is_no_file() {
    let chunked = head("200 OK", "Transfer-Encoding: chunked\r\n");
    let short = head("200 OK", "Content-Length: 99\r\n") + "abc";
    for (answer, bytes) in [
        (Answer::Say(short.clone()), 3),
        (Answer::Break(short), 3),
        (Answer::Say(format!("{chunked}3\r\nabc\r\n")), 3),
        (Answer::Break(format!("{chunked}3\r\nabc\r\n5\r\nde")), 5),
        (Answer::Say(format!("{chunked}xyz\r\n")), 0),
        // Without a length, only TLS can say that this is all.
        (Answer::Break("HTTP/1.0 200 OK\r\n\r\nabcde".to_owned()), 5),
    ] {
        let shown = format!("{answer:?}");
        let (kind, text) = error(answer).await;
        assert_eq!(kind, "truncated", "{shown}: {text}");
        assert!(text.starts_with(&format!("the answer broke off after {bytes} bytes")), "{text}");
    }
}

#[tokio::test]
async fn what_has_no_end_is_cut_off() {
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let chunked = head("200 OK", "Transfer-Encoding: chunked\r\n");
    for text in [
        head("200 OK", &format!("Content-Length: {}\r\n", BYTES + 1)),
        chunked + &chunk.repeat(65),
        head("200 OK", "") + &"x".repeat(usize::try_from(BYTES).unwrap() + 1),
    ] {
        let (kind, text) = error(Answer::Hang(text)).await;
        assert_eq!(kind, "size", "{text}");
        assert!(text.contains("more than 65536 bytes"), "{text}");
    }
    let (kind, text) = error(Answer::Endless(head("200 OK", "") + &chunk)).await;
    assert_eq!(kind, "size", "{text}");
    // Heads, too.
    let (kind, text) = error(Answer::Endless("X-Header: x\r\n".repeat(50))).await;
    assert_eq!(kind, "protocol", "{text}");
    let (kind, text) =
        error(Answer::Endless(format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(4_096)))).await;
    assert_eq!(kind, "protocol", "{text}");
}

#[tokio::test]
async fn nobody_is_waited_for_too_long() {
    let slow = head("200 OK", "Content-Length: 9\r\n") + "abc";
    let (kind, text) = error(Answer::Hang(slow)).await;
    assert_eq!(
        (kind.as_str(), text.as_str()),
        ("timeout", "no end of the file (3 bytes had come) within 3 s")
    );
    let (kind, text) = error(Answer::Hang(String::new())).await;
    assert_eq!((kind.as_str(), text.as_str()), ("timeout", "no answer within 3 s"));
    // A port that says nothing to a TLS handshake.
    let silent = net::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let source = source(HOST, silent.local_addr().unwrap(), "");
    let error = fetcher().fetch(&source, None).await.unwrap_err();
    assert_eq!(error.to_string(), "no TLS handshake within 2 s");
}

#[tokio::test]
async fn statuses_are_told() {
    let told = async |status: &str| error(Answer::Say(head(status, "Content-Length: 0\r\n"))).await;
    for (status, kind, expected) in [
        ("500 Internal Server Error", "status", "the server answered 500 Internal Server Error"),
        ("404 Not Found", "status", "404"),
        ("204 No Content", "status", "204"),
        ("206 Partial Content", "status", "206"),
        ("401 Unauthorized", "password", "does not take the user name and password"),
        ("403 Forbidden", "password", "403"),
        // Nobody has asked whether it was modified.
        ("304 Not Modified", "status", "304"),
    ] {
        let (is, text) = told(status).await;
        assert!(is == kind && text.contains(expected), "{status}: {is}: {text}");
    }
    let (kind, _) = error(Answer::Say("220 mail.example ESMTP\r\n".to_owned())).await;
    assert_eq!(kind, "protocol");
    let gzip = head("200 OK", "Content-Encoding: gzip\r\nContent-Length: 3\r\n") + "abc";
    let (kind, text) = error(Answer::Say(gzip)).await;
    assert!(kind == "protocol" && text.contains("gzip"), "{text}");

    let ca = Authority::new("ca");
    let server = Server::start(&ca.issue(HOST, 2100), |_| {
        Answer::Say(head("304 Not Modified", "ETag: \"v1\"\r\n"))
    });
    let known = Validators { etag: "\"v1\"".to_owned(), ..Validators::default() };
    let source = source(HOST, server.address, &ca.pem);
    assert_eq!(fetcher().fetch(&source, Some(&known)).await, Ok(Fetched::NotModified));
}

#[tokio::test]
async fn certificates_are_verified() {
    let (ca, stranger) = (Authority::new("ca"), Authority::new("stranger"));
    let with = async |certificate: &Certificate, ca_pem: &str| {
        let server = Server::start(certificate, |_| Answer::Say(ok("x")));
        let source = source(HOST, server.address, ca_pem);
        fetcher().fetch(&source, None).await.map_err(|error| error.to_string())
    };
    assert!(with(&ca.issue(HOST, 2100), &ca.pem).await.is_ok());
    for (certificate, trusted, expected) in [
        (ca.issue(HOST, 2021), ca.pem.as_str(), "the certificate of www.d.example has expired"),
        (ca.issue("other.example", 2100), &ca.pem, "is for another name"),
        (self_signed(HOST), &ca.pem, "is signed by nobody whom we trust, or by itself"),
        (stranger.issue(HOST, 2100), &ca.pem, "is signed by nobody whom we trust"),
        // Not by the authorities of the web either.
        (ca.issue(HOST, 2100), "", "is signed by nobody whom we trust"),
        (self_signed(HOST), "", "is signed by nobody whom we trust"),
    ] {
        let why = with(&certificate, trusted).await.unwrap_err();
        assert!(why.contains(expected), "{why}");
    }
    // Who wants to trust one certificate alone can.
    let own = self_signed(HOST);
    assert!(with(&own, own.pem()).await.is_ok());
}

#[tokio::test]
async fn the_password_goes_to_no_other_server() {
    let ca = Authority::new("ca");
    let certificate = ca.issue(HOST, 2100);
    let to = async |location: &str| {
        let location = location.to_owned();
        let server = Server::start(&certificate, move |line| {
            if line.contains("/there") {
                return Answer::Say(ok("there"));
            }
            Answer::Say(head(
                "302 Found",
                &format!("Location: {location}\r\nContent-Length: 0\r\n"),
            ))
        });
        let source = source(HOST, server.address, &ca.pem);
        let result = fetcher().fetch(&source, None).await;
        drop(server.asked);
        result.map_err(|error| (error.kind(), error.to_string()))
    };
    assert!(matches!(to("/there").await, Ok(Fetched::File { content, .. }) if content == b"there"));
    assert!(to("there?x").await.is_ok());
    for away in [
        "https://other.example/there".to_owned(),
        format!("https://{HOST}/there"),
        format!("http://{HOST}/there"),
        "//other.example/there".to_owned(),
        format!("https://user:pw@{HOST}:1/there"),
        "file:///there".to_owned(),
        "https://[".to_owned(),
    ] {
        let (kind, text) = to(&away).await.unwrap_err();
        assert!(kind == "redirection" && text.contains("same server"), "{away}: {text}");
    }
    let (kind, text) = to("/again").await.unwrap_err();
    let often = format!("the server redirects more than {} times", limits::FETCH_REDIRECTIONS_MAX);
    assert_eq!((kind, text), ("redirection", often));

    // And not before the certificate was verified.
    let mut server = Server::start(&self_signed(HOST), |_| Answer::Say(ok("x")));
    fetcher().fetch(&source(HOST, server.address, &ca.pem), None).await.unwrap_err();
    assert!(server.asked.try_recv().is_err());
}

#[tokio::test]
async fn hosts_that_are_not_there_are_told() {
    let nobody = net::listen("127.0.0.1:0".parse().unwrap()).unwrap().local_addr().unwrap();
    let told = async |host: &str| {
        let error = fetcher().fetch(&source(host, nobody, ""), None).await.unwrap_err();
        let known = ["se:cret", "c2U6", "ppsw"].iter().any(|word| error.to_string().contains(word));
        assert!(!known, "{error}");
        error
    };
    let gone = told("gone.example").await;
    assert_eq!(gone, FetchError::NoAddress { host: "gone.example".into(), why: DnsError::NoName });
    assert_eq!(told("broken.example").await.kind(), "dns");
    let refused = told(HOST).await;
    assert_eq!(refused.kind(), "connection");
    assert!(
        refused.to_string().contains("cannot connect to www.d.example: 127.0.0.1 port"),
        "{refused}"
    );
    assert_eq!(told("127.0.0.1").await.kind(), "connection");
    assert_eq!(told("[::1]").await.kind(), "connection");
}
