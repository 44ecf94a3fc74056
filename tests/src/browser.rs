//! A real browser: headless Chromium, led through ChromeDriver (W3C WebDriver, and Chromium's own commands for the size of
//! a phone and for dark mode).

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{process::Guard, wait_for};

/// A page has to come within this time, and the browser itself, too.
const PATIENCE: Duration = Duration::from_secs(30);

/// What keeps it from doing anything but what it is told to. It runs as root in tests, where it can have no sandbox of its
/// own.
const ARGUMENTS: [&str; 8] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// One window. Dropping it ends the browser.
pub struct Browser {
    driver: SocketAddr,
    session: String,
    /// Ends after the session.
    _process: Guard,
    _dir: TempDir,
}

impl Browser {
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("ppswitch-browser-").tempdir().unwrap();
        let log = dir.path().join("log");
        let process = Guard::spawn(Command::new("chromedriver").arg("--port=0"), &log);
        let port = wait_for("chromedriver's port", PATIENCE, || {
            let text = std::fs::read_to_string(&log).ok()?;
            let (_, after) = text.split_once("started successfully on port ")?;
            after.split_once('.')?.0.parse::<u16>().ok()
        });
        let driver = SocketAddr::from(([127, 0, 0, 1], port));
        let profile = format!("--user-data-dir={}", dir.path().join("profile").display());
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain([profile.as_str()]).collect();
        let options = json!({ "binary": "/usr/bin/chromium", "args": arguments });
        let wanted =
            json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let made = ask(driver, "POST", "/session", &wanted);
        let session = made["sessionId"].as_str().unwrap().to_owned();
        Self { driver, session, _process: process, _dir: dir }
    }

    /// Takes the size of a screen, in CSS pixels; a phone's has two dots for each.
    pub fn resize(&self, (width, height): (u32, u32), phone: bool) {
        let scale = if phone { 2 } else { 1 };
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone });
        self.command("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// What the reader prefers.
    pub fn prefer_dark(&self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
        self.command("Emulation.setEmulatedMedia", &features);
    }

    /// Goes to a page, and waits until it is there.
    pub fn open(&self, url: &str) {
        self.ask("url", &json!({ "url": url }));
    }

    /// What a script in the page returns.
    pub fn eval(&self, script: &str) -> Value {
        self.ask("execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The whole page as PNG, also what lies below the window.
    pub fn picture(&self) -> Vec<u8> {
        let whole = json!({ "captureBeyondViewport": true });
        let picture = self.command("Page.captureScreenshot", &whole);
        BASE64_STANDARD.decode(picture["data"].as_str().unwrap()).unwrap()
    }

    fn command(&self, name: &str, parameters: &Value) -> Value {
        self.ask("goog/cdp/execute", &json!({ "cmd": name, "params": parameters }))
    }

    fn ask(&self, what: &str, body: &Value) -> Value {
        ask(self.driver, "POST", &format!("/session/{}/{what}", self.session), body)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends Chromium; the driver ends with its guard.
        let path = format!("/session/{}", self.session);
        let _ = exchange(self.driver, "DELETE", &path, "");
    }
}

/// The `value` of the driver's answer.
fn ask(driver: SocketAddr, method: &str, path: &str, body: &Value) -> Value {
    let answer = exchange(driver, method, path, &body.to_string())
        .unwrap_or_else(|error| panic!("chromedriver, {path}: {error}"));
    let mut answer: Value = serde_json::from_str(&answer).unwrap();
    let value = answer["value"].take();
    assert!(value.get("error").is_none(), "chromedriver, {path}: {value}");
    value
}

/// One request, with the body of its answer.
fn exchange(driver: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&driver, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost:{}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        driver.port(),
        body.len()
    )?;
    let mut answer = Vec::new();
    let mut length = None;
    let mut buffer = vec![0; 1 << 16];
    // The driver may keep the connection open all the same.
    loop {
        let read = stream.read(&mut buffer)?;
        answer.extend_from_slice(&buffer[..read]);
        let Some(head) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            continue;
        };
        let told = length.get_or_insert_with(|| {
            let head = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
            let line = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            line.and_then(|number| number.trim().parse::<usize>().ok())
        });
        if read == 0 || told.is_some_and(|length| answer.len() >= head + 4 + length) {
            return Ok(String::from_utf8_lossy(&answer[head + 4..]).into_owned());
        }
    }
}
