//! What is wrong in `policy.kdl`: all of it at once, each with file, line, column and a suggestion.

use std::sync::Arc;

use miette::{NamedSource, SourceSpan};

use crate::limits;

/// One error of a policy.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("{file}:{line}:{column}: {what}")]
pub struct PolicyError {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub what: String,
    #[help]
    pub help: Option<String>,
    #[source_code]
    text: NamedSource<Arc<str>>,
    #[label("here")]
    span: SourceSpan,
}

/// An error of a file without KDL source: a table, or a policy that is not there.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("{0}")]
pub struct PlainError(pub String);

/// What is wrong with a configuration, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// If it is an error of the policy: its file, line and column (from 1).
    pub file: Option<String>,
    pub line: Option<usize>,
    pub column: Option<usize>,
    pub what: String,
    pub help: Option<String>,
    /// All of it, with the place in the text.
    pub report: String,
}

impl Problem {
    pub(crate) fn of_report(report: &miette::Report) -> Self {
        let known = report.downcast_ref::<PolicyError>();
        Self {
            file: known.map(|error| error.file.clone()),
            line: known.map(|error| error.line),
            column: known.map(|error| error.column),
            what: known.map_or_else(|| report.to_string(), |error| error.what.clone()),
            help: known.and_then(|error| error.help.clone()),
            report: format!("{report:?}"),
        }
    }

    pub(super) fn plain(what: String) -> Self {
        let (file, line, column, help) = (None, None, None, None);
        Self { file, line, column, report: what.clone(), what, help }
    }
}

/// Where a statement stands in the policy, and how it begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// From 1; 0 for what is built in.
    pub line: u32,
    /// The statement without its block, in one line.
    pub text: Box<str>,
}

/// Collects errors while a document is compiled.
pub(crate) struct Errors {
    file: String,
    text: Arc<str>,
    built_in: Option<&'static str>,
    found: Vec<PolicyError>,
}

impl Errors {
    pub(super) fn new(file: &str, text: &str) -> Self {
        Self { file: file.to_owned(), text: text.into(), built_in: None, found: Vec::new() }
    }

    pub(crate) fn at(&mut self, span: SourceSpan, what: impl Into<String>) {
        self.push(span, what.into(), None);
    }

    pub(super) fn help(&mut self, span: SourceSpan, what: impl Into<String>, help: &str) {
        self.push(span, what.into(), Some(help.to_owned()));
    }

    /// `word` is none of `known`.
    pub(crate) fn unknown<'a>(
        &mut self,
        span: SourceSpan,
        kind: &str,
        word: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) {
        let help = suggestion(word, known);
        self.push(span, format!("unknown {kind} {word:?}"), help);
    }

    /// The place of a statement that goes from the beginning of `span` to the byte `end`.
    pub(crate) fn place(&self, span: SourceSpan, end: usize) -> Place {
        let source = self.built_in.unwrap_or(&self.text);
        let text = source.get(span.offset()..end).unwrap_or_default();
        // A line that goes on in the next one has a backslash at its end.
        let words = text.split_whitespace().filter(|word| *word != "\\");
        let text = words.collect::<Vec<_>>().join(" ");
        let text = text.chars().take(limits::PLACE_CHARS_MAX).collect::<String>();
        let line = if self.built_in.is_some() { 0 } else { self.line_and_column(span).0 };
        Place { line: u32::try_from(line).unwrap_or(u32::MAX), text: text.into() }
    }

    /// What follows comes from this text instead of the policy.
    pub(super) fn enter_built_in(&mut self, text: &'static str) {
        self.built_in = Some(text);
    }

    pub(super) fn len(&self) -> usize {
        self.found.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn into_found(mut self) -> Vec<PolicyError> {
        self.found.sort_by_key(|error| error.span.offset());
        self.found
    }

    fn push(&mut self, span: SourceSpan, what: String, help: Option<String>) {
        if self.found.len() >= limits::CONFIGURATION_ERRORS_MAX {
            return;
        }
        let (line, column) = self.line_and_column(span);
        self.found.push(PolicyError {
            file: self.file.clone(),
            line,
            column,
            what,
            help,
            text: NamedSource::new(&self.file, Arc::clone(&self.text)),
            span,
        });
    }

    fn line_and_column(&self, span: SourceSpan) -> (usize, usize) {
        let before = self.text.get(..span.offset()).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// `did you mean …?` for the nearest known word, or all of them if they are few.
fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut known: Vec<&str> = known.into_iter().collect();
    known.sort_unstable();
    known.dedup();
    let near = known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(&word.to_ascii_lowercase(), k), *k))
        .min()
        .filter(|(distance, k)| *distance <= 1 + k.len() / 4);
    match near {
        Some((_, near)) => Some(format!("did you mean {near:?}?")),
        None if !known.is_empty() && known.len() <= 40 => {
            Some(format!("known are: {}", known.join(", ")))
        }
        None => None,
    }
}
