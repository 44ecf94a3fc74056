//! A made-up session: a real session on one end of a pipe, an operator's lines on the other.

use std::{
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use metrics::NoopRecorder;
use ppsw_control::Rehearsal;
use ppsw_proto::control as pb;
use ppsw_spool::queue::{AcceptError, Envelope, MessageId};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, ReadBuf},
    sync::OwnedSemaphorePermit,
    task::JoinSet,
};

use super::wire;
use crate::{
    callout::{Answer, Callouts, Question},
    limits::{REHEARSAL_CHUNK_BYTES_MAX, REHEARSAL_LINE_BYTES_MAX},
    policy::{
        AddressPlace, Configuration, Connection, Decision, Options, Personality, Rewriting, Stage,
        Surroundings, Transaction,
    },
    rate::Rates,
    smtp::{
        Activity, Arrival, Events, FrontEnd, Incoming, Intake, Peer, Policy, Rejection, Rules,
        Transport, chunk_size, reply::Reply, serve_from,
    },
    trace::Tracer,
};

/// Bytes on the way in each direction: the longest reply fits.
const PIPE_BYTES: usize = 64 * 1024;

/// Begins a session of `connection` by the rules of `configuration`; the rest is as in `front`.
pub(super) fn begin(
    front: &FrontEnd,
    configuration: Arc<Configuration>,
    connection: Connection,
    callouts: bool,
    place: OwnedSemaphorePermit,
) -> Dialogue {
    let explained = Arc::new(Explained { configuration, stages: Mutex::default() });
    let around = Surroundings {
        dns: Arc::clone(&front.around.dns),
        facts: Arc::clone(&front.around.facts),
        callouts: if callouts { Arc::clone(&front.around.callouts) } else { Arc::new(NotAsked) },
        // What is made up does not count.
        rates: Rates::default(),
    };
    let made_up = Arc::new(FrontEnd {
        host_name: front.host_name.clone(),
        rules: Arc::new(ExplainedRules(Arc::clone(&explained))),
        around,
        intake: Arc::new(Nowhere),
        events: Arc::new(Silence),
        certificates: front.certificates.clone(),
        clock: Arc::clone(&front.clock),
        activity: Activity::default(),
        // Nobody's: what is made up is not shown to those who watch.
        tracer: Tracer::default(),
    });
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let mut session = JoinSet::new();
    session.spawn(unmetered(serve_from(made_up, Box::new(MadeUp(theirs)), connection)));
    Dialogue {
        pipe: BufReader::new(ours),
        explained,
        in_message: false,
        chunk_left: 0,
        _session: session,
        _place: place,
    }
}

/// Runs a future so that nothing it does is counted.
fn unmetered<F: Future + Send>(work: F) -> impl Future<Output = F::Output> + Send {
    let mut work = Box::pin(work);
    poll_fn(move |context| {
        metrics::with_local_recorder(&NoopRecorder, || work.as_mut().poll(context))
    })
}

/// The operator's end.
pub(super) struct Dialogue {
    pipe: BufReader<DuplexStream>,
    explained: Arc<Explained>,
    /// `354` was said, and the final dot was not.
    in_message: bool,
    /// Bytes of a BDAT chunk that have not been given.
    chunk_left: u64,
    /// Ends with this.
    _session: JoinSet<()>,
    _place: OwnedSemaphorePermit,
}

#[async_trait]
impl Rehearsal for Dialogue {
    async fn banner(&mut self) -> pb::SessionStep {
        self.reply(String::new()).await
    }

    async fn line(&mut self, line: String) -> Result<pb::SessionStep, String> {
        if line.len() > REHEARSAL_LINE_BYTES_MAX || line.contains(['\r', '\n']) {
            let max = REHEARSAL_LINE_BYTES_MAX;
            return Err(format!("expected one line of at most {max} bytes"));
        }
        if self.chunk_left > 0 {
            return self.line_of_chunk(line).await;
        }
        let chunk = (!self.in_message).then(|| chunk_size(line.as_bytes())).flatten().unwrap_or(0);
        if chunk > REHEARSAL_CHUNK_BYTES_MAX {
            let max = REHEARSAL_CHUNK_BYTES_MAX;
            return Err(format!("a chunk of a made-up session has at most {max} bytes"));
        }
        self.write(format!("{line}\r\n").as_bytes()).await;
        self.chunk_left = chunk;
        if chunk > 0 || (self.in_message && line != ".") {
            return Ok(pb::SessionStep { command: line, ..pb::SessionStep::default() });
        }
        Ok(self.reply(line).await)
    }
}

/// The session's end: whatever begins TLS on it has it.
struct MadeUp(DuplexStream);

impl Transport for MadeUp {
    fn assumes_tls(&self) -> bool {
        true
    }
}

impl AsyncRead for MadeUp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for MadeUp {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl Dialogue {
    /// A line inside a BDAT chunk. The line end behind the chunk's last byte is only that of the terminal.
    async fn line_of_chunk(&mut self, line: String) -> Result<pb::SessionStep, String> {
        if line.len() as u64 > self.chunk_left {
            let left = self.chunk_left;
            return Err(format!("the chunk ends inside this line: it has {left} more bytes"));
        }
        let mut bytes = format!("{line}\r\n").into_bytes();
        bytes.truncate(usize::try_from(self.chunk_left).unwrap_or(usize::MAX));
        self.write(&bytes).await;
        self.chunk_left -= bytes.len() as u64;
        if self.chunk_left > 0 {
            return Ok(pb::SessionStep { command: line, ..pb::SessionStep::default() });
        }
        Ok(self.reply(line).await)
    }

    async fn write(&mut self, bytes: &[u8]) {
        // A session that is over reads no more; the reply says so.
        let _ = self.pipe.write_all(bytes).await;
    }

    /// What was said to a command, and why.
    async fn reply(&mut self, command: String) -> pb::SessionStep {
        let mut reply: Vec<String> = Vec::new();
        let closed = loop {
            let mut line = String::new();
            match self.pipe.read_line(&mut line).await {
                Ok(0) | Err(_) => break true,
                Ok(_) => reply.push(line.trim_end().to_owned()),
            }
            let last = reply.last().map_or("", String::as_str);
            if last.as_bytes().get(3) != Some(&b'-') {
                break last.starts_with("421") || last.starts_with("221");
            }
        };
        self.in_message = reply.last().is_some_and(|line| line.starts_with("354"));
        let mut stages = self.explained.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let stages = std::mem::take(&mut *stages);
        pb::SessionStep { command, reply, stages, closed }
    }
}

/// The configuration, and how its rules decided since somebody looked.
struct Explained {
    configuration: Arc<Configuration>,
    stages: Mutex<Vec<pb::ExplainedStage>>,
}

struct ExplainedRules(Arc<Explained>);

impl Rules for ExplainedRules {
    fn current(&self) -> Arc<dyn Policy> {
        Arc::clone(&self.0) as Arc<dyn Policy>
    }
}

#[async_trait]
impl Policy for Explained {
    fn personality(&self, server: IpAddr) -> Personality {
        Policy::personality(&*self.configuration, server)
    }

    async fn check(
        &self,
        stage: Stage,
        connection: &mut Connection,
        transaction: &Transaction,
        around: &Surroundings,
    ) -> Decision {
        let explained = self.configuration.explain(stage, connection, transaction, around).await;
        let (mut decision, explanation) = explained;
        let stage = wire::stage(explanation, &decision);
        self.stages.lock().unwrap_or_else(PoisonError::into_inner).push(stage);
        // Shown instead: nobody is to be slowed down here.
        decision.delay = Duration::ZERO;
        decision
    }

    fn password_hash(&self, user: &str) -> Option<&str> {
        Policy::password_hash(&*self.configuration, user)
    }

    fn options(&self) -> &Options {
        Policy::options(&*self.configuration)
    }

    fn is_mua(&self, client: IpAddr) -> bool {
        Policy::is_mua(&*self.configuration, client)
    }

    fn asks_certificate(&self, client: IpAddr, name: Option<&str>) -> bool {
        Policy::asks_certificate(&*self.configuration, client, name)
    }

    fn rewrite(&self, address: &str, place: AddressPlace) -> Option<Rewriting> {
        Policy::rewrite(&*self.configuration, address, place)
    }

    fn rewrites_headers(&self) -> bool {
        Policy::rewrites_headers(&*self.configuration)
    }

    fn rewrite_header(&self, header: &[u8]) -> Option<(Vec<u8>, Vec<Rewriting>)> {
        Policy::rewrite_header(&*self.configuration, header)
    }

    fn is_relay_host(&self, client: IpAddr) -> bool {
        Policy::is_relay_host(&*self.configuration, client)
    }
}

/// Nobody is called: every address counts as taken.
struct NotAsked;

#[async_trait]
impl Callouts for NotAsked {
    async fn ask(&self, _: Question<'_>) -> Answer {
        Answer::Yes
    }
}

/// Where made-up messages go.
struct Nowhere;

#[async_trait]
impl Intake for Nowhere {
    async fn begin(&self) -> Result<Box<dyn Incoming>, AcceptError> {
        Ok(Box::new(Self))
    }
}

#[async_trait]
impl Incoming for Nowhere {
    fn id(&self) -> MessageId {
        MessageId { second: 0, counter: 0, node: 0 }
    }

    async fn write(&mut self, _: &[u8]) -> Result<(), AcceptError> {
        Ok(())
    }

    async fn accept(self: Box<Self>, _: Envelope, _: Duration) -> Result<MessageId, AcceptError> {
        Ok(self.id())
    }

    async fn abort(self: Box<Self>) {}
}

/// What is made up is in no log.
struct Silence;

impl Events for Silence {
    fn arrival(&self, _: &Peer<'_>, _: &Arrival<'_>) {}
    fn rejected(&self, _: &Peer<'_>, _: &Rejection<'_>) {}
    fn authentication_failed(&self, _: &Peer<'_>, _: &str, _: &str) {}
    fn protocol_error(&self, _: &Peer<'_>, _: &Reply) {}
    fn connection_lost(&self, _: &Peer<'_>, _: &str, _: bool) {}
    fn connection_refused(&self, _: SocketAddr, _: SocketAddr, _: &str) {}
    fn note(&self, _: &Peer<'_>, _: &str) {}
}
