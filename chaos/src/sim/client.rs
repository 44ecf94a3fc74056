//! Clients of one node: they hand messages in through the spool as an SMTP session does.

use std::time::Duration;

use bytes::Bytes;
use ppsw_spool::{
    env::Clock as _,
    queue::{AcceptError, Envelope, Recipient},
};
use rand::Rng as _;

use super::{
    ledger::Ledger,
    node::{Process, now, pause},
};
use crate::checker::{Answer, Item, body_hash};

/// How long a client waits for its 250, and for a leader.
const COMMIT_DEADLINE: Duration = Duration::from_secs(20);
const LEADER_PATIENCE: Duration = Duration::from_secs(1);

/// The header line that a node puts in front of each message.
pub(crate) const PREPEND: &str = "Received: by a simulated node\r\n";

/// One message that is being handed in. A process that dies leaves its client without an answer.
struct Offer {
    ledger: Ledger,
    message: u64,
    recipients: u16,
    dot: bool,
    answer: Option<Answer>,
}

impl Offer {
    fn end(mut self, answer: Answer) {
        self.answer = Some(answer);
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let silent = if self.dot { Answer::Unknown } else { Answer::NotOffered };
        let answer = self.answer.unwrap_or(silent);
        for recipient in 0..self.recipients {
            let item = Item { message: self.message, recipient };
            self.ledger.answer(now(), item, answer);
        }
    }
}

/// Sends one message after the other until the faults are over.
pub(crate) async fn run(process: Process) {
    while !process.world.is_calm() {
        pause(5..160).await;
        send(&process).await;
    }
}

async fn send(process: &Process) {
    let Ok(mut writer) = process.spool.begin(LEADER_PATIENCE).await else { return };
    let ledger = process.world.ledger.clone();
    let (message, recipients, bytes) = {
        let mut rng = rand::rng();
        let recipients = if rng.random_ratio(1, 5) { rng.random_range(2..5) } else { 1_u16 };
        let bytes = match rng.random_range(0..100) {
            0..90 => rng.random_range(0..3_000),
            90..98 => rng.random_range(3_000..60_000),
            _ => rng.random_range(60_000..600_000),
        };
        (ledger.next_message(), recipients, bytes)
    };
    let body = body(message, bytes);
    for recipient in 0..recipients {
        ledger.offer(Item { message, recipient }, body_hash(&body));
    }
    let mut offer = Offer { ledger, message, recipients, dot: false, answer: None };
    for piece in body.chunks(64 * 1024) {
        if writer.write(piece).await.is_err() {
            return offer.end(Answer::NotOffered);
        }
        pause(0..3).await;
    }
    if rand::rng().random_ratio(1, 40) {
        writer.abort().await;
        return offer.end(Answer::NotOffered);
    }
    offer.dot = true;
    let accepted = writer.accept(envelope(process, recipients), COMMIT_DEADLINE).await;
    let answer = match accepted {
        Ok(_) => Answer::Acknowledged,
        // An answer that the client sees: it keeps the message.
        Err(AcceptError::NoMajority | AcceptError::Moved | AcceptError::NoSpace) => Answer::Refused,
        Err(_) => Answer::Unknown,
    };
    offer.end(answer);
}

/// `message N`, and a filling that depends on the number.
fn body(message: u64, bytes: usize) -> Vec<u8> {
    let mut body = format!("message {message}\r\n").into_bytes();
    let mut state = message.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while body.len() < bytes {
        // Marsaglia's xorshift: quick, and no two messages alike.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        body.extend_from_slice(&state.to_le_bytes());
    }
    body
}

fn envelope(process: &Process, recipients: u16) -> Envelope {
    let to =
        |number| Recipient { address: format!("r{number}@sink.example"), ..Recipient::default() };
    Envelope {
        sender: "sender@client.example".to_owned(),
        recipients: (0..recipients).map(to).collect(),
        received: process.clock.now(),
        prepend: Bytes::from_static(PREPEND.as_bytes()),
        ..Envelope::default()
    }
}
