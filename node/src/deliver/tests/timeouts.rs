//! A server that says nothing any more: after which time we go (RFC 5321 §4.5.3.2), by a clock that stands still while there is
//! something to do.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use ppsw_spool::{env::SystemClock, log::LogError, queue::Turn};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    time::Instant,
};

use super::dialogue::destination;
use crate::{
    deliver::{
        connect::{Connector, Stream},
        lanes::Lanes,
        retry::RULE_OTHERS,
        seams::BodySource,
        transaction::{Answer, Mail, Rcpt},
        transmit::{Transmission, Transmitter},
    },
    explode::NoFence,
    route::{Destination, Host, Protocol},
};

/// A server that gives so many replies, and then no more.
struct Tired(usize);

#[async_trait]
impl Connector for Tired {
    async fn connect(
        &self,
        _: Option<IpAddr>,
        _: SocketAddr,
        _: Duration,
    ) -> io::Result<Box<dyn Stream>> {
        let (ours, theirs) = tokio::io::duplex(4_096);
        let replies = self.0;
        tokio::spawn(async move {
            let mut lines = BufReader::new(theirs);
            for reply in ["220 x", "250 x", "250 x", "250 x", "354 x"].into_iter().take(replies) {
                lines.write_all(format!("{reply}\r\n").as_bytes()).await.unwrap();
                lines.read_line(&mut String::new()).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        Ok(Box::new(ours))
    }
}

struct Once(Option<Bytes>);

#[async_trait]
impl BodySource for Once {
    async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        Ok(self.0.take())
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_left_in_time() {
    for (replies, stage, minutes) in [
        (0, "initial connection", 5),
        (1, "EHLO", 5),
        (2, "MAIL", 5),
        (3, "RCPT", 5),
        (4, "DATA", 2),
        (5, "end of data", 10),
    ] {
        let us = Transmitter::new(
            Arc::new(Tired(replies)),
            Arc::new(SystemClock),
            "us.example".into(),
            Vec::new(),
        );
        let hosts = vec![Host {
            name: "tired".into(),
            addresses: vec![[192, 0, 2, 1].into()],
            port: 25,
            preference: 1,
            mx: true,
        }];
        let there = Destination { hosts, ..destination(&[], Protocol::Smtp) };
        let lanes = Lanes::new();
        let gate = lanes.gate(Turn::First);
        let what = Transmission {
            destination: &there,
            gate,
            personality: "mx",
            retry: &|_| RULE_OTHERS.parse().unwrap(),
            mail: &Mail::default(),
            recipients: &[Rcpt { address: "a@y".into(), ..Rcpt::default() }],
            body: &|| Box::new(Once(Some(Bytes::from_static(b"Subject: x\r\n\r\n")))),
            fence: &NoFence,
        };
        let begun = Instant::now();
        let sent = us.transmit(&what, us.hosts(&there, gate).await).await;
        let waited = begun.elapsed();
        let Answer::Deferred { text, elsewhere, .. } = &sent[0].answer else {
            panic!("{:?}", sent[0].answer)
        };
        assert!(
            text.contains(&format!("no answer from remote mail server after {stage}")),
            "{text}"
        );
        assert_eq!(waited.as_secs().div_ceil(60), minutes, "{stage}: {waited:?}");
        // Behind the final dot it may have the message.
        assert_eq!(*elsewhere, stage != "end of data", "{stage}");
    }
}
