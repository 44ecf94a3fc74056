//! `top`: the cluster as it works, on a screen that renews itself each second; in a pipe, plain snapshots.

mod screen;
mod snapshot;

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use ppsw_proto::control::{QueueRequest, QueueSummary, StatusRequest};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use self::{
    screen::Screen,
    snapshot::{Snapshot, View},
};
use crate::{
    Failure,
    address::{self, Admin, Cluster},
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// The queue is summed up again when so many times as long as that took have gone by: it costs a long queue's owner little.
const QUEUE_REST: u32 = 20;

/// Keys that are not yet looked at: more are a cat on the keyboard.
const KEYS_MAX: usize = 16;

pub(crate) async fn top(
    cluster: &Cluster,
    count: Option<u32>,
    as_json: bool,
) -> Result<(), Failure> {
    let mut eye = Eye::new(address::connect(cluster).await?);
    if as_json || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return print(&mut eye, count.unwrap_or(1), as_json).await;
    }
    // Before the terminal changes, so that a refusal is read.
    let view = eye.look().await?;
    let mut terminal = ratatui::try_init()
        .map_err(|error| Failure::Usage(format!("this terminal cannot be used: {error}")))?;
    let ended = show(&mut eye, view, &mut terminal, count).await;
    ratatui::restore();
    ended
}

/// Asks the cluster, and remembers what rates follow from.
struct Eye {
    admin: Admin,
    last: Option<Snapshot>,
    queue: QueueSummary,
    queue_due: Instant,
}

impl Eye {
    fn new(admin: Admin) -> Self {
        Self { admin, last: None, queue: QueueSummary::default(), queue_due: Instant::now() }
    }

    async fn look(&mut self) -> Result<View, Failure> {
        let status = self.admin.status(StatusRequest {}).await?.into_inner();
        let start = Instant::now();
        if start >= self.queue_due {
            let queue = self.admin.summarise(QueueRequest::default()).await?;
            self.queue = queue.into_inner();
            self.queue_due = Instant::now() + QUEUE_REST * start.elapsed();
        }
        let now = Snapshot::new(start.into_std(), crate::queue::now_ms(), status);
        let view = View::new(self.last.as_ref(), &now, self.queue.clone());
        self.last = Some(now);
        Ok(view)
    }
}

/// One snapshot after another. The first one of rates needs two looks.
async fn print(eye: &mut Eye, count: u32, as_json: bool) -> Result<(), Failure> {
    eye.look().await?;
    let mut next = Instant::now();
    for _ in 0..count {
        next += INTERVAL;
        sleep_until(next).await;
        let view = eye.look().await?;
        if as_json {
            say!("{}", view.to_json());
        } else {
            say!("{}", view.to_text());
        }
    }
    Ok(())
}

async fn show(
    eye: &mut Eye,
    view: View,
    terminal: &mut ratatui::DefaultTerminal,
    count: Option<u32>,
) -> Result<(), Failure> {
    let broken = |error: io::Error| Failure::Usage(format!("this terminal has gone: {error}"));
    let mut keys = keys();
    let mut screen = Screen::new(view);
    let mut left = count;
    let mut next = Instant::now() + INTERVAL;
    loop {
        terminal.draw(|frame| screen.draw(frame)).map_err(broken)?;
        tokio::select! {
            key = keys.recv() => match key {
                Some(Key::Other(code)) => screen.press(code),
                Some(Key::Redraw) => {}
                Some(Key::Quit) | None => return Ok(()),
            },
            () = sleep_until(next) => {
                match left.as_mut() {
                    Some(0 | 1) => return Ok(()),
                    Some(left) => *left -= 1,
                    None => {}
                }
                // A node that went away is no end: the next look may reach it again, or says why not.
                match eye.look().await {
                    Ok(view) => screen.take(view),
                    Err(failure) => screen.trouble(failure.to_string()),
                }
                next = Instant::now() + INTERVAL;
            }
        }
    }
}

enum Key {
    Quit,
    Redraw,
    Other(KeyCode),
}

/// What is pressed, read by a thread of its own; the end of the program is its end, too.
fn keys() -> mpsc::Receiver<Key> {
    let (sender, receiver) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        loop {
            let key = match event::read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Release => continue,
                Ok(Event::Key(key)) => match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                        Key::Quit
                    }
                    code => Key::Other(code),
                },
                Ok(_) => Key::Redraw,
                // Nothing can be pressed any more.
                Err(_) => Key::Quit,
            };
            if sender.blocking_send(key).is_err() {
                return;
            }
        }
    });
    receiver
}
