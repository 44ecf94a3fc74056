//! The program of a `pipe` transport.

use std::time::Duration;

use kdl::KdlNode;
use miette::SourceSpan;

use crate::{
    limits::{PIPE_OUTPUT_BYTES_MAX, PIPE_TIMEOUT, PIPE_TIMEOUT_MAX},
    policy::{
        Compiler,
        source::{Setting, duration, size},
        template::{Scope, Template},
    },
    route::router::Command,
};

/// Options of a `pipe`.
pub(super) const WORDS: [&str; 8] = [
    "command",
    "user",
    "timeout",
    "max-output",
    "return-fail-output",
    "temp-errors",
    "message-prefix",
    "message-suffix",
];

/// `EX_CANTCREAT` and `EX_TEMPFAIL` of `sysexits.h`, as in Exim.
const TEMP_ERRORS: [i32; 2] = [73, 75];

pub(super) fn compile(node: &KdlNode, compiler: &mut Compiler<'_>) -> Option<Command> {
    let mut made = Command {
        words: Vec::new(),
        user: None,
        timeout: PIPE_TIMEOUT,
        max_output: PIPE_OUTPUT_BYTES_MAX,
        return_fail_output: false,
        temp_errors: TEMP_ERRORS.to_vec(),
        prefix: String::new(),
        suffix: String::new(),
    };
    for setting in Setting::inner(node, &mut compiler.errors) {
        setting.only(&[], &mut compiler.errors);
        let text = |compiler: &mut Compiler<'_>, expected: &str| {
            setting.text(expected, &mut compiler.errors).map(str::to_owned)
        };
        match setting.name {
            "command" => {
                let source = text(compiler, "a program and its arguments")?;
                made.words = words(&source, setting.span, compiler);
            }
            "user" => made.user = text(compiler, "a user, or UID:GID"),
            "timeout" => made.timeout = time(&setting, compiler)?,
            "max-output" => {
                let entry = setting.value("a size", &mut compiler.errors)?;
                let size = size(entry, &mut compiler.errors)?;
                made.max_output = size.min(PIPE_OUTPUT_BYTES_MAX);
            }
            "return-fail-output" => made.return_fail_output = setting.flag(&mut compiler.errors),
            "temp-errors" => {
                let source = text(compiler, "exit codes")?;
                let codes = source.split_whitespace().map(str::parse::<u8>);
                match codes.collect::<Result<Vec<u8>, _>>() {
                    Ok(codes) => made.temp_errors = codes.into_iter().map(i32::from).collect(),
                    Err(_) => compiler.errors.at(setting.span, "expected exit codes, 0 to 255"),
                }
            }
            "message-prefix" => made.prefix = text(compiler, "a text")?,
            "message-suffix" => made.suffix = text(compiler, "a text")?,
            other => compiler.errors.unknown(setting.span, "option of pipe", other, WORDS),
        }
    }
    if made.words.is_empty() {
        compiler.errors.at(node.name().span(), "pipe needs command=");
        return None;
    }
    Some(made)
}

fn time(setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Option<Duration> {
    let entry = setting.value("a time", &mut compiler.errors)?;
    let time = duration(entry, &mut compiler.errors)?;
    if time.is_zero() || time > PIPE_TIMEOUT_MAX {
        let max = PIPE_TIMEOUT_MAX.as_secs() / 60;
        compiler.errors.at(entry.span(), format!("expected a time up to {max} minutes"));
    }
    Some(time)
}

/// The words of a command, separated by blanks; `"…"` and `'…'` keep blanks. No shell ever sees them.
fn words(source: &str, span: SourceSpan, compiler: &mut Compiler<'_>) -> Vec<Template> {
    let Some(words) = split(source) else {
        compiler.errors.at(span, "a quote of this command is not closed");
        return Vec::new();
    };
    if words.first().is_none_or(|program| !program.starts_with('/')) {
        compiler.errors.at(span, "expected the full path of a program: it is not searched for");
    }
    let templates = words.iter().map(|word| compiler.template(span, word, Scope::Router));
    templates.collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// `None`: a quote is not closed.
fn split(source: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    // Blanks inside of `{table:…}` belong to the field.
    let mut depth = 0_usize;
    for c in source.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() && depth == 0 => words.extend(word.take()),
            (_, c) => {
                depth = match c {
                    '{' => depth + 1,
                    '}' => depth.saturating_sub(1),
                    _ => depth,
                };
                word.get_or_insert_default().push(c);
            }
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_without_a_shell() {
        for (source, expected) in [
            ("/bin/x", Some(vec!["/bin/x"])),
            ("/bin/x  -a 'b c' \"d'e\"", Some(vec!["/bin/x", "-a", "b c", "d'e"])),
            ("/bin/x '' {local_part}", Some(vec!["/bin/x", "", "{local_part}"])),
            (
                "/bin/x {table:a b:{domain}} $HOME;",
                Some(vec!["/bin/x", "{table:a b:{domain}}", "$HOME;"]),
            ),
            ("/bin/x 'b", None),
            ("", Some(vec![])),
        ] {
            let expected = expected.map(|words| words.into_iter().map(str::to_owned).collect());
            assert_eq!(split(source), expected, "{source}");
        }
    }
}
