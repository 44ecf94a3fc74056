//! SMTP dialogues as script files (`tests/dialogues/*.dialogue`), one per behaviour.
//!
//! A script is read line by line; blank lines and lines that begin with `#` are comments (the first ones say what is
//! tested, with its RFC section).
//!
//! | line | meaning |
//! | --- | --- |
//! | `! connect mx [from 127.200.1.1]` | connects to `mx`, `smart`, `submission` or `submissions` (TLS at once) |
//! | `! starttls` | begins TLS (after the server's `220`) |
//! | `! wait 200ms` | pauses |
//! | `! closed` | the server has closed the connection, and nothing more came |
//! | `-> text` | sends a line with CRLF |
//! | `=> raw "bytes"` | sends bytes; escapes `\r \n \t \0 \\ \" \xNN`; `raw "x" * 1000` repeats |
//! | `<- 250 text` | the next reply line begins so; with `*` anywhere it is a glob for the whole line |
//! | `<~ regex` | the next reply line matches |
//! | `<* 250 +SIZE -DSN` | a whole reply of any number of lines with this code; a line (without code and enhanced code) begins with `SIZE`, none with `DSN` |
//!
//! `{plain:USER}`, `{user64:USER}` and `{password64:USER}` in sent lines stand for a SASL PLAIN response and for the
//! base64 of name and password.

mod connection;
mod script;

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use regex::Regex;
use serde_json::Value;

pub use connection::Connection;
pub use script::{Script, ScriptError, Step};

/// Time that a server has for one reply: the mx personality delays some by 5 s.
const PATIENCE: Duration = Duration::from_secs(30);

/// What scripts connect to, and who they can be.
#[derive(Clone, Debug)]
pub struct Targets {
    pub mx: SocketAddr,
    pub smart: SocketAddr,
    pub submission: SocketAddr,
    pub submissions: SocketAddr,
    /// Passwords by user.
    pub accounts: BTreeMap<String, String>,
}

/// A script that did not go as written.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{script}:{line}: {what}\n{transcript}")]
pub struct Failure {
    pub script: String,
    pub line: usize,
    pub what: String,
    /// Everything that was said until then.
    pub transcript: String,
}

impl Targets {
    /// The addresses of the first node in `cluster.json`.
    pub fn from_cluster(cluster: &Value) -> Option<Self> {
        let node = cluster.get("nodes")?.get(0)?;
        let address = |name: &str| node.get(name)?.as_str()?.parse().ok();
        let text = |value: &Value, name: &str| Some(value.get(name)?.as_str()?.to_owned());
        let accounts = cluster.get("accounts")?.as_array()?;
        Some(Self {
            mx: address("mx")?,
            smart: address("smart")?,
            submission: address("submission")?,
            submissions: address("submissions")?,
            accounts: accounts
                .iter()
                .filter_map(|a| Some((text(a, "user")?, text(a, "password")?)))
                .collect(),
        })
    }

    fn address(&self, personality: &str) -> Option<SocketAddr> {
        match personality {
            "mx" => Some(self.mx),
            "smart" => Some(self.smart),
            "submission" => Some(self.submission),
            "submissions" => Some(self.submissions),
            _ => None,
        }
    }
}

/// All scripts of a directory, by name.
pub fn load(dir: &Path) -> Result<Vec<Script>, ScriptError> {
    let unreadable = |what: std::io::Error| ScriptError {
        script: dir.display().to_string(),
        line: 0,
        what: what.to_string(),
    };
    let mut scripts = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|e| e == "dialogue") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            #[allow(clippy::disallowed_methods, reason = "scripts are files of this crate")]
            let text = std::fs::read_to_string(&path).map_err(unreadable)?;
            scripts.push(Script::parse(&name, &text)?);
        }
    }
    scripts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(scripts)
}

/// Runs one script.
pub async fn run(script: &Script, targets: &Targets) -> Result<(), Failure> {
    let mut connection: Option<Connection> = None;
    for (line, step) in &script.steps {
        let result = match step {
            Step::Connect { personality, from } => match targets.address(personality) {
                Some(address) => {
                    match Connection::open(address, *from, personality == "submissions").await {
                        Ok(new) => {
                            connection = Some(new);
                            Ok(())
                        }
                        Err(error) => {
                            Err(format!("cannot connect to {personality} at {address}: {error}"))
                        }
                    }
                }
                None => Err(format!("no personality {personality}")),
            },
            step => match &mut connection {
                Some(connection) => take(step, connection, targets).await,
                None => Err("not connected yet".into()),
            },
        };
        if let Err(what) = result {
            let transcript = connection.map_or_else(String::new, |c| c.transcript());
            return Err(Failure { script: script.name.clone(), line: *line, what, transcript });
        }
    }
    Ok(())
}

async fn take(step: &Step, connection: &mut Connection, targets: &Targets) -> Result<(), String> {
    match step {
        Step::Connect { .. } => Ok(()),
        Step::StartTls => connection.start_tls().await,
        Step::Wait(time) => {
            tokio::time::sleep(*time).await;
            Ok(())
        }
        Step::Closed => connection.expect_closed(PATIENCE).await,
        Step::Send(text) => {
            let text = substitute(text, &targets.accounts)?;
            connection.send(format!("{text}\r\n").as_bytes()).await
        }
        Step::Raw(bytes) => connection.send(bytes).await,
        Step::Line(pattern) => {
            let line = connection.line(PATIENCE).await?;
            let good = match pattern.contains('*') {
                true => glob(pattern, &line),
                false => line.starts_with(pattern.as_str()),
            };
            if good { Ok(()) } else { Err(format!("expected {pattern:?}, got {line:?}")) }
        }
        Step::Match(regex) => {
            let line = connection.line(PATIENCE).await?;
            if regex.is_match(&line) {
                Ok(())
            } else {
                Err(format!("expected /{regex}/, got {line:?}"))
            }
        }
        Step::Reply { code, with, without } => reply(connection, code, with, without).await,
    }
}

/// A whole reply, and what its lines say.
async fn reply(
    connection: &mut Connection,
    code: &str,
    with: &[String],
    without: &[String],
) -> Result<(), String> {
    let mut texts = Vec::new();
    loop {
        let line = connection.line(PATIENCE).await?;
        let Some(rest) = line.strip_prefix(code) else {
            return Err(format!("expected {code}, got {line:?}"));
        };
        let last = !rest.starts_with('-');
        texts.push(rest.get(1..).unwrap_or_default().to_owned());
        if last {
            break;
        }
    }
    let enhanced = Regex::new(r"^[245]\.\d{1,3}\.\d{1,3} ").map_err(|e| e.to_string())?;
    let says =
        |word: &String| texts.iter().any(|t| enhanced.replace(t, "").starts_with(word.as_str()));
    if let Some(word) = with.iter().find(|w| !says(w)) {
        return Err(format!("no line {word:?} in {texts:?}"));
    }
    match without.iter().find(|w| says(w)) {
        Some(word) => Err(format!("a line {word:?} in {texts:?}")),
        None => Ok(()),
    }
}

/// `*` stands for anything.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

/// Fills credentials in.
fn substitute(text: &str, accounts: &BTreeMap<String, String>) -> Result<String, String> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        let inner = &rest[at + 1..];
        let Some((name, after)) = inner.split_once('}') else { break };
        let Some((kind, user)) = name.split_once(':') else {
            return Err(format!("unknown {{{name}}}"));
        };
        let password = accounts.get(user).map(String::as_str);
        let secret = || password.ok_or_else(|| format!("no account {user}"));
        out.push_str(&match kind {
            "plain" => STANDARD.encode(format!("\0{user}\0{}", secret()?)),
            "user64" => STANDARD.encode(user),
            "password64" => STANDARD.encode(secret()?),
            _ => return Err(format!("unknown {{{name}}}")),
        });
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_scripts_can_be_read() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("dialogues");
        let scripts = load(&dir).unwrap();
        assert!(scripts.len() > 50);
        for script in scripts {
            assert!(
                matches!(script.steps.first(), Some((_, Step::Connect { .. }))),
                "{}",
                script.name
            );
            assert!(
                script.about.contains("RFC") || script.about.contains("paper"),
                "{}",
                script.name
            );
        }
    }

    #[test]
    fn globs_match_whole_lines() {
        assert!(glob("250 2.0.0 OK id=*", "250 2.0.0 OK id=abc"));
        assert!(glob("2*OK*c", "250 OK abc"));
        assert!(!glob("2*OK", "250 OK abc"));
        assert!(!glob("5*", "250"));
    }

    #[test]
    fn credentials_are_filled_in() {
        let accounts = BTreeMap::from([("u".to_owned(), "p".to_owned())]);
        assert_eq!(
            substitute("AUTH PLAIN {plain:u} x", &accounts).unwrap(),
            "AUTH PLAIN AHUAcA== x"
        );
        assert_eq!(substitute("{user64:u}{password64:u}", &accounts).unwrap(), "dQ==cA==");
        assert!(substitute("{plain:nobody}", &accounts).is_err());
    }

    #[tokio::test]
    async fn a_script_runs_and_tells_where_it_fails() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        #[allow(clippy::disallowed_methods, reason = "a test is a server")]
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let serve = tokio::spawn(async move {
            for _ in 0..2 {
                let (mut stream, _) = server.accept().await.unwrap();
                stream.write_all(b"220 hello\r\n").await.unwrap();
                let mut line = [0; 7];
                stream.read_exact(&mut line).await.unwrap();
                assert_eq!(&line, b"EHLO\0\r\n");
                stream.write_all(b"250-me\r\n250-SIZE 1\r\n250 HELP\r\n").await.unwrap();
            }
        });
        let targets = Targets {
            mx: address,
            smart: address,
            submission: address,
            submissions: address,
            accounts: BTreeMap::new(),
        };
        let text = "# x\n! connect mx from 127.200.1.1\n<- 220\n=> raw \"EHLO\\0\\r\\n\"\n";
        let good = Script::parse("good", &format!("{text}<* 250 +SIZE -DSN\n! closed\n")).unwrap();
        run(&good, &targets).await.unwrap();
        let bad = Script::parse("bad", &format!("{text}<- 250 nobody\n")).unwrap();
        let failure = run(&bad, &targets).await.unwrap_err();
        assert_eq!(failure.line, 5);
        assert!(failure.transcript.contains("<- 220 hello"), "{failure}");
        serve.await.unwrap();
    }
}
