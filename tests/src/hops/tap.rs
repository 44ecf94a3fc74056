//! A tap: hands everything on between a client and a server, and remembers who said what.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

/// What one side said until the other one spoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Said by the client, else by the server.
    pub client: bool,
    pub bytes: Vec<u8>,
}

impl Turn {
    /// Its bytes as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

type Connections = Arc<Mutex<Vec<Vec<Turn>>>>;

/// A tap that listens until it is dropped.
pub struct Tap {
    address: SocketAddr,
    connections: Connections,
    ending: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl Tap {
    /// Listens on `address` for connections to `server`.
    pub fn start(address: SocketAddr, server: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let connections = Connections::default();
        let ending = Arc::new(AtomicBool::new(false));
        let (kept, end) = (Arc::clone(&connections), Arc::clone(&ending));
        let listening = std::thread::spawn(move || {
            for client in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let client = client.unwrap();
                // Without a server the client's connection is closed: it is as if there were none.
                if let Ok(server) = TcpStream::connect(server) {
                    hand_on(client, server, &kept);
                }
            }
        });
        Self { address, connections, ending, listening: Some(listening) }
    }

    /// What was said on each connection, in the order of their beginnings.
    pub fn connections(&self) -> Vec<Vec<Turn>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The transactions with `word` in them, each from its MAIL to the reply to what ended it.
    pub fn transactions(&self, word: &str) -> Vec<Vec<Turn>> {
        let mut found = Vec::new();
        for connection in self.connections() {
            let mut transaction: Vec<Turn> = Vec::new();
            for turn in connection {
                if turn.client && turn.bytes.starts_with(b"MAIL ") {
                    found.push(std::mem::take(&mut transaction));
                }
                transaction.push(turn);
            }
            found.push(transaction);
        }
        let has =
            |turns: &Vec<Turn>| turns.iter().any(|turn| turn.client && turn.text().contains(word));
        found.retain(|turns| {
            turns.first().is_some_and(|turn| turn.bytes.starts_with(b"MAIL ")) && has(turns)
        });
        found
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

fn hand_on(client: TcpStream, server: TcpStream, connections: &Connections) {
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let number = {
        let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.push(Vec::new());
        connections.len() - 1
    };
    for (from_client, from, to) in
        [(true, client.try_clone().unwrap(), server.try_clone().unwrap()), (false, server, client)]
    {
        let kept = Arc::clone(connections);
        std::thread::spawn(move || copy(from_client, from, to, &kept, number));
    }
}

/// One direction, until its end.
fn copy(
    from_client: bool,
    mut from: TcpStream,
    mut to: TcpStream,
    kept: &Connections,
    number: usize,
) {
    let mut piece = [0; 16 * 1024];
    while let Ok(length) = from.read(&mut piece) {
        if length == 0 {
            break;
        }
        {
            // Remembered before it is handed on: an answer to it comes behind it.
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            let turns = &mut kept[number];
            match turns.last_mut() {
                Some(last) if last.client == from_client => {
                    last.bytes.extend_from_slice(&piece[..length]);
                }
                _ => turns.push(Turn { client: from_client, bytes: piece[..length].to_vec() }),
            }
        }
        if to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
