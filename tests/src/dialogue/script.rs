//! Reading scripts.

use std::{net::IpAddr, time::Duration};

use regex::Regex;

/// One script.
#[derive(Clone, Debug)]
pub struct Script {
    pub name: String,
    /// The comment at its beginning.
    pub about: String,
    /// Steps with their line numbers.
    pub steps: Vec<(usize, Step)>,
}

/// One step of a script.
#[derive(Clone, Debug)]
pub enum Step {
    Connect { personality: String, from: Option<IpAddr> },
    StartTls,
    Wait(Duration),
    Closed,
    Send(String),
    Raw(Vec<u8>),
    Line(String),
    Match(Regex),
    Reply { code: String, with: Vec<String>, without: Vec<String> },
}

/// A script that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{script}:{line}: {what}")]
pub struct ScriptError {
    pub script: String,
    pub line: usize,
    pub what: String,
}

impl Script {
    /// Reads a script.
    pub fn parse(name: &str, text: &str) -> Result<Self, ScriptError> {
        let mut script = Self { name: name.to_owned(), about: String::new(), steps: Vec::new() };
        for (n, line) in text.lines().enumerate() {
            if let Some(comment) = line.strip_prefix('#') {
                if script.steps.is_empty() {
                    script.about.push_str(comment.trim());
                    script.about.push('\n');
                }
            } else if !line.trim().is_empty() {
                let step = parse_step(line).map_err(|what| ScriptError {
                    script: name.to_owned(),
                    line: n + 1,
                    what,
                })?;
                script.steps.push((n + 1, step));
            }
        }
        Ok(script)
    }
}

fn parse_step(line: &str) -> Result<Step, String> {
    let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
    match mark {
        "!" => parse_action(rest),
        "->" => Ok(Step::Send(rest.to_owned())),
        "=>" => parse_raw(rest).map(Step::Raw),
        "<-" => Ok(Step::Line(rest.to_owned())),
        "<~" => Regex::new(rest).map(Step::Match).map_err(|e| e.to_string()),
        "<*" => {
            let mut words = rest.split_whitespace();
            let code = words.next().ok_or("expected <* CODE [+WORD] [-WORD]")?.to_owned();
            let (with, without): (Vec<&str>, Vec<&str>) = words.partition(|w| w.starts_with('+'));
            let tail = |words: Vec<&str>| words.iter().map(|w| w[1..].to_owned()).collect();
            if without.iter().any(|w| !w.starts_with('-')) {
                return Err("expected <* CODE [+WORD] [-WORD]".into());
            }
            Ok(Step::Reply { code, with: tail(with), without: tail(without) })
        }
        _ => Err(format!("unknown {mark:?}; expected ! -> => <- <~ <* or #")),
    }
}

fn parse_action(text: &str) -> Result<Step, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        ["connect", personality] => {
            Ok(Step::Connect { personality: (*personality).to_owned(), from: None })
        }
        ["connect", personality, "from", address] => {
            let from = address.parse().map_err(|_| format!("{address:?} is no IP address"))?;
            Ok(Step::Connect { personality: (*personality).to_owned(), from: Some(from) })
        }
        ["starttls"] => Ok(Step::StartTls),
        ["closed"] => Ok(Step::Closed),
        ["wait", time] => {
            let milliseconds = time.strip_suffix("ms").and_then(|t| t.parse().ok());
            milliseconds
                .map(|ms| Step::Wait(Duration::from_millis(ms)))
                .ok_or_else(|| format!("{time:?} is no time like 200ms"))
        }
        _ => Err(format!("unknown action {text:?}")),
    }
}

/// `raw "bytes"` or `raw "bytes" * 100`.
fn parse_raw(text: &str) -> Result<Vec<u8>, String> {
    let form = "expected raw \"bytes\" or raw \"bytes\" * COUNT";
    let quoted = text.strip_prefix("raw \"").ok_or(form)?;
    let mut bytes = Vec::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next().ok_or("the quoted string has no end")? {
            '"' => break,
            '\\' => bytes.push(parse_escape(&mut characters)?),
            c => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    match characters.as_str().trim() {
        "" => Ok(bytes),
        rest => {
            let count = rest.strip_prefix('*').and_then(|n| n.trim().parse().ok()).ok_or(form)?;
            Ok(bytes.repeat(count))
        }
    }
}

fn parse_escape(characters: &mut std::str::Chars<'_>) -> Result<u8, String> {
    match characters.next() {
        Some('r') => Ok(b'\r'),
        Some('n') => Ok(b'\n'),
        Some('t') => Ok(b'\t'),
        Some('0') => Ok(0),
        Some('\\') => Ok(b'\\'),
        Some('"') => Ok(b'"'),
        Some('x') => {
            let digits: String = characters.take(2).collect();
            u8::from_str_radix(&digits, 16).map_err(|_| format!("\\x{digits} is no byte"))
        }
        other => Err(format!("unknown escape {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_bytes_and_repetition() {
        assert_eq!(parse_raw(r#"raw "a\r\n.\x00\"\\""#).unwrap(), b"a\r\n.\0\"\\");
        assert_eq!(parse_raw(r#"raw "ab" * 3"#).unwrap(), b"ababab");
        assert!(parse_raw(r#"raw "ab"#).is_err() && parse_raw("ab").is_err());
        assert!(parse_raw(r#"raw "\q""#).is_err() && parse_raw(r#"raw "a" 3"#).is_err());
    }

    #[test]
    fn errors_name_the_line() {
        let error = Script::parse("s", "# about\n\n-> QUIT\n?? what\n").unwrap_err();
        assert_eq!((error.script.as_str(), error.line), ("s", 4));
        assert!(Script::parse("s", "! connect mx from nowhere").is_err());
        assert!(Script::parse("s", "<~ (").is_err());
        assert!(Script::parse("s", "<* 250 SIZE").is_err());
    }
}
