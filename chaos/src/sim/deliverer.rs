//! The deliverer of one node: as in ppswd it asks for the lease before each attempt and before each final dot, and
//! records what came of it, with this leader or the next.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use ppsw_spool::{
    NodeId, PartitionId,
    env::{Clock as _, UnixMs},
    group::ProposeError,
    log::LogError,
    queue::{
        Attempt, Delivered, Envelope, Outcome, Partition, QueuedMessage, Recipient, Turn, Verdict,
    },
};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};
use turmoil::net::TcpStream;

use super::{
    client::PREPEND,
    network::{host, listen},
    node::{Process, now, pause},
};
use crate::checker::{Delivery, Item, body_hash};

const OUTCOME_PORT: u16 = 2591;
/// As in ppswd: between two looks at the queue, attempts at once, one try to record, tries to forward.
const LOOK: Duration = Duration::from_millis(10);
const ATTEMPTS_MAX: usize = 20;
const RECORD_DEADLINE: Duration = Duration::from_secs(5);
const RECORD_PAUSE: Duration = Duration::from_millis(100);
const FORWARD_TRIES_MAX: u32 = 20;

/// What a sink says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Reply {
    /// 250 after the final dot.
    Taken,
    /// 451: try again then, in milliseconds.
    Later(u64),
    /// 550.
    Refused,
    /// The dot was taken, but the connection was cut before the answer: try again then, in milliseconds.
    Cut(u64),
}

/// What came of one attempt, in the form in which one node tells another.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Account {
    partition: PartitionId,
    message: String,
    replies: Vec<(u32, Reply)>,
    /// Id and text of each bounce.
    bounces: Vec<(String, String)>,
}

impl Account {
    fn finished(&self) -> Vec<u32> {
        let ends = |reply: &Reply| matches!(reply, Reply::Taken | Reply::Refused);
        self.replies.iter().filter(|(_, reply)| ends(reply)).map(|(number, _)| *number).collect()
    }

    fn outcome(&self) -> Option<Outcome> {
        let result = |(recipient, reply): &(u32, Reply)| {
            let verdict = match reply {
                Reply::Taken => Verdict::Delivered,
                Reply::Refused => Verdict::Failed,
                Reply::Later(at) | Reply::Cut(at) => Verdict::Deferred { next_due: UnixMs(*at) },
            };
            let address = format!("r{recipient}@sink.example");
            Delivered { recipient: *recipient, address, verdict, text: "simulated".to_owned() }
        };
        let bounce = |(id, text): &(String, String)| {
            let sender =
                Recipient { address: "sender@client.example".to_owned(), ..Recipient::default() };
            let envelope = Envelope { recipients: vec![sender], ..Envelope::default() };
            Some((id.parse().ok()?, envelope, Bytes::from(text.clone())))
        };
        Some(Outcome {
            message: self.message.parse().ok()?,
            results: self.replies.iter().map(result).collect(),
            finished: self.finished(),
            creates: self.bounces.iter().map(bounce).collect::<Option<_>>()?,
            warned: false,
            goes_on: false,
        })
    }
}

/// Delivers what is due, for as long as the process lives.
pub(crate) async fn run(process: Process) {
    loop {
        sleep(LOOK).await;
        for partition in process.spool.partitions() {
            if !partition.may_deliver() {
                continue;
            }
            let free = ATTEMPTS_MAX.saturating_sub(process.in_flight().len());
            let id = partition.id();
            let in_flight = process.in_flight().clone();
            let of = |turn| {
                let skip = |message| in_flight.contains(&(id, message));
                partition.due(process.clock.now(), turn, free, &skip)
            };
            let due = [Turn::First, Turn::Again].into_iter().flat_map(of);
            for message in due {
                process.in_flight().insert((id, message.id));
                let (process, partition) = (process.clone(), partition.clone());
                tokio::spawn(async move {
                    let id = (partition.id(), message.id);
                    attempt(&process, &partition, &message).await;
                    process.in_flight().remove(&id);
                });
            }
        }
    }
}

/// One attempt, from the connection to the recorded outcome.
async fn attempt(process: &Process, partition: &Partition, message: &Arc<QueuedMessage>) {
    pause(1..20).await;
    if !partition.may_deliver() {
        return;
    }
    let bytes = match read(partition, message).await {
        Ok(bytes) => bytes,
        Err(error) => {
            let there = partition.get(message.id).is_some() && partition.may_deliver();
            if there && !matches!(error, LogError::Disk(_)) {
                let text = format!("message {} cannot be read: {error}", message.id);
                process.world.ledger.violation(now(), &text);
            }
            return;
        }
    };
    // The mark of the attempt, the dialogue, then the lease: as ppswd does.
    if !partition.begin(message.id).await {
        return;
    }
    pause(if rand::rng().random_ratio(1, 50) { 200..1500 } else { 1..30 }).await;
    // Nor what a former leader has recorded meanwhile: in ppswd that ends the transaction, and the next attempt is for
    // the rest.
    let open = |message: &QueuedMessage| {
        message.recipients.iter().map(Attempt::is_open).collect::<Vec<_>>()
    };
    let unchanged = partition.get(message.id).is_some_and(|now| open(&now) == open(message));
    if !unchanged || !partition.may_deliver() {
        return;
    }
    let Some(account) = dot(process, partition, message, &bytes) else { return };
    pause(1..15).await;
    record(process, partition, &account).await;
}

async fn read(partition: &Partition, message: &QueuedMessage) -> Result<Vec<u8>, LogError> {
    let mut reader = partition.body(message);
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Sends the final dot to the sink, in no time.
fn dot(
    process: &Process,
    partition: &Partition,
    message: &QueuedMessage,
    bytes: &[u8],
) -> Option<Account> {
    let ledger = &process.world.ledger;
    let open: Vec<u32> = (0..)
        .zip(&message.recipients)
        .filter(|(_, attempt)| attempt.is_open())
        .map(|(number, _)| number)
        .collect();
    let status = partition.group().status();
    let claims = (status.leader == Some(process.node)).then_some(status.term);
    ledger.dot(now(), process.node, partition.id(), message.id, &open, claims);
    let mut account = Account {
        partition: partition.id(),
        message: message.id.to_string(),
        replies: Vec::new(),
        bounces: Vec::new(),
    };
    let Some(body) = bytes.strip_prefix(if message.envelope.sender.is_empty() {
        &b""[..]
    } else {
        PREPEND.as_bytes()
    }) else {
        ledger.stranger(format!("{} without its added header", message.id));
        return None;
    };
    let content = Content::parse(body);
    for number in open {
        let reply = match content {
            // Bounces are taken at once.
            Some(Content::Bounce(item)) => {
                ledger.bounced(now(), item);
                Reply::Taken
            }
            Some(Content::Message(message)) => {
                let recipient = u16::try_from(number).unwrap_or(u16::MAX);
                sink(process, Item { message, recipient }, body)
            }
            None => {
                ledger.stranger(format!("{} has content that nobody sent", message.id));
                Reply::Taken
            }
        };
        if let (Reply::Refused, Some(Content::Message(text))) = (reply, content) {
            let id = process.spool.new_id()?;
            account.bounces.push((id.to_string(), format!("bounce {text} {number}\r\n")));
        }
        account.replies.push((number, reply));
    }
    Some(account)
}

/// What the sink does with one recipient.
fn sink(process: &Process, item: Item, body: &[u8]) -> Reply {
    let wait = rand::rng().random_range(500..15_000);
    let later = process.clock.now().plus(Duration::from_millis(wait)).0;
    let reply = match rand::rng().random_range(0..100) {
        _ if process.world.is_calm() => Reply::Taken,
        0..12 => Reply::Later(later),
        12..14 => Reply::Refused,
        14..16 => Reply::Cut(later),
        _ => Reply::Taken,
    };
    if matches!(reply, Reply::Taken | Reply::Cut(_)) {
        let answered = (reply == Reply::Taken).then(now);
        let delivery = Delivery { body: body_hash(body), dot: now(), answered };
        process.world.ledger.delivered(now(), item, delivery);
    }
    reply
}

/// What a sink finds in a message.
#[derive(Clone, Copy, Debug)]
enum Content {
    Message(u64),
    Bounce(Item),
}

impl Content {
    fn parse(body: &[u8]) -> Option<Self> {
        let end = body.iter().position(|byte| *byte == b'\r')?;
        let line = std::str::from_utf8(body.get(..end)?).ok()?;
        let mut words = line.split(' ');
        match words.next()? {
            "message" => Some(Self::Message(words.next()?.parse().ok()?)),
            "bounce" => {
                let message = words.next()?.parse().ok()?;
                let recipient = words.next()?.parse().ok()?;
                Some(Self::Bounce(Item { message, recipient }))
            }
            _ => None,
        }
    }
}

/// Records what came of an attempt, here or at the node that leads by now.
async fn record(process: &Process, partition: &Partition, account: &Account) {
    let (Some(outcome), ledger) = (account.outcome(), &process.world.ledger) else { return };
    let mut forwards = 0;
    loop {
        match partition.record(outcome.clone(), RECORD_DEADLINE).await {
            Ok(()) => return ledger.recorded(now(), outcome.message, &account.finished()),
            Err(ProposeError::Timeout(_)) => {}
            Err(ProposeError::NotLeader { leader }) => {
                let leader = leader.filter(|leader| *leader != process.node);
                if let Some(leader) = leader
                    && matches!(timeout(RECORD_DEADLINE, tell(leader, account)).await, Ok(Ok(true)))
                {
                    ledger.forwarded();
                    return ledger.recorded(now(), outcome.message, &account.finished());
                }
                forwards += 1;
                if forwards == FORWARD_TRIES_MAX {
                    return;
                }
            }
            Err(_) => return,
        }
        sleep(RECORD_PAUSE).await;
    }
}

/// Asks another node to record an outcome; whether it did.
async fn tell(node: NodeId, account: &Account) -> io::Result<bool> {
    let mut stream = TcpStream::connect((host(node), OUTCOME_PORT)).await?;
    let bytes = serde_json::to_vec(account)?;
    stream.write_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX)).await?;
    stream.write_all(&bytes).await?;
    Ok(stream.read_u8().await? == 1)
}

/// Takes outcomes from other nodes.
pub(crate) async fn serve(process: Process) {
    let Ok(listener) = listen(OUTCOME_PORT).await else { return };
    while let Ok((stream, _)) = listener.accept().await {
        let process = process.clone();
        tokio::spawn(async move {
            // The other side tries again, or gives up.
            let _ = take(&process, stream).await;
        });
    }
}

async fn take(process: &Process, mut stream: TcpStream) -> io::Result<()> {
    let length = stream.read_u32().await?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    stream.read_exact(&mut bytes).await?;
    let account: Account = serde_json::from_slice(&bytes)?;
    let done = match (process.spool.get(account.partition), account.outcome()) {
        (Some(partition), Some(outcome)) => {
            partition.record(outcome, RECORD_DEADLINE).await.is_ok()
        }
        _ => false,
    };
    stream.write_u8(u8::from(done)).await
}
