//! Tests of the queue as a whole; those of its parts stand with them.

mod cluster;
mod fake;
mod golden;
mod kept;
mod kept_replay;
mod leading;
mod replay;
mod retention;
mod revise;
mod writing;

use super::*;
use crate::env::UnixMs;

fn id(counter: u64) -> MessageId {
    MessageId { second: 1_000, counter, node: 1 }
}

fn envelope(recipients: usize) -> Envelope {
    let to = |n| Recipient { address: format!("r{n}@example.org"), ..Recipient::default() };
    Envelope {
        sender: "s@example.org".into(),
        recipients: (0..recipients).map(to).collect(),
        received: UnixMs(1_000_000),
        prepend: bytes::Bytes::from_static(b"Received: here\r\n"),
        ..Envelope::default()
    }
}

fn outcome(message: MessageId, recipient: u32, verdict: Verdict, finish: bool) -> Outcome {
    Outcome {
        message,
        results: vec![Delivered {
            recipient,
            address: format!("r{recipient}@example.org"),
            verdict,
            text: "451 4.2.2 later".into(),
        }],
        finished: finish.then_some(recipient).into_iter().collect(),
        creates: Vec::new(),
        warned: false,
        goes_on: false,
    }
}
