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

/// Collects errors while a document is compiled.
pub(crate) struct Errors {
    file: String,
    text: Arc<str>,
    found: Vec<PolicyError>,
}

impl Errors {
    pub(super) fn new(file: &str, text: &str) -> Self {
        Self { file: file.to_owned(), text: text.into(), found: Vec::new() }
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
        let before = self.text.get(..span.offset()).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        self.found.push(PolicyError {
            file: self.file.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            what,
            help,
            text: NamedSource::new(&self.file, Arc::clone(&self.text)),
            span,
        });
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
