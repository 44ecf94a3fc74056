//! Letters to the managers of a domain. They go to its postmaster: an alias of the live copy, or the managers.

use std::fmt::Write as _;

use bytes::Bytes;
use ppsw_proto::control as pb;
use ppsw_spool::{
    env::UnixMs,
    queue::{Envelope, MessageId, Origin, Recipient},
};

use super::audit::Audit;
use crate::{
    message::{
        bounce::{plain, wrap},
        rfc5322_date,
    },
    policy::Options,
};

/// What managers are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) domain: String,
    pub(crate) subject: String,
    pub(crate) body: String,
}

/// Who writes, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer<'a> {
    pub(crate) options: &'a Options,
    /// This machine's name.
    pub(crate) host_name: &'a str,
    pub(crate) id: MessageId,
    pub(crate) now: UnixMs,
}

impl Letter {
    /// The file of a domain cannot be fetched or used.
    pub(crate) fn of_problem(domain: &pb::HttpsDomain, problem: &pb::Problem) -> Self {
        let name = &domain.domain;
        let mut body = format!(
            "The aliases of the mail domain {name} are fetched from\r\n\r\n    {}\r\n\r\n\
             The last try, on {},\r\ngave nothing that can be used:\r\n\r\n",
            plain(&domain.url),
            rfc5322_date(UnixMs(domain.fetched_ms)),
        );
        body.push_str(&indented(&problem.text));
        let live = match domain.succeeded_ms {
            0 => "No file has been fetched from there yet.".to_owned(),
            succeeded => format!(
                "The last fetch without a problem was on {}.",
                rfc5322_date(UnixMs(succeeded))
            ),
        };
        let rest = format!(
            "The live copy of the domain is as it was before: mail goes where it went until now. {live}"
        );
        let next = format!(
            "The next fetch is on {}. If this problem lasts you are told again in a day, if there is another one at \
             once; when the file is good again it becomes live without another letter.",
            rfc5322_date(UnixMs(domain.next_due_ms))
        );
        let _ = write!(body, "\r\n{}\r\n{}", wrap(&rest, "", ""), wrap(&next, "", ""));
        Self {
            domain: name.clone(),
            subject: format!(
                "Mail domain {name}: the aliases file cannot be used ({})",
                problem.kind
            ),
            body,
        }
    }

    /// The detailed check of a domain; `None` if there is nothing to say.
    pub(crate) fn of_report(
        name: &str,
        audit: &Audit,
        https: Option<&pb::HttpsDomain>,
    ) -> Option<Self> {
        let problem = https.and_then(|domain| domain.problem.as_ref());
        let remarks = https.and_then(|domain| domain.live.as_ref()).map(|live| &live.remarks[..]);
        let remarks = remarks.unwrap_or_default();
        if audit.warnings.is_empty() && remarks.is_empty() && problem.is_none() {
            return None;
        }
        let mut body = format!(
            "This is a detailed check of the mail domain {name}, which has {} aliases.\r\n",
            audit.aliases
        );
        if let (Some(problem), Some(domain)) = (problem, https) {
            let _ = write!(
                body,
                "\r\nThe file at {} cannot be used:\r\n\r\n{}",
                plain(&domain.url),
                indented(&problem.text)
            );
        }
        if !audit.warnings.is_empty() {
            body.push_str("\r\nOf the live copy:\r\n\r\n");
            body.push_str(&indented(&audit.warnings.join("\n")));
        }
        if !remarks.is_empty() {
            body.push_str("\r\nOf the file that it was made of:\r\n\r\n");
            body.push_str(&indented(&remarks.join("\n")));
        }
        if !audit.incomplete.is_empty() {
            body.push_str("\r\nNot all was looked at:\r\n\r\n");
            body.push_str(&indented(&audit.incomplete.join("\n")));
        }
        let why = "Mail is delivered all the same where that is possible. A report like this comes once a month to the \
                   managers of a domain that is fetched, unless there is nothing to say.";
        let _ = write!(body, "\r\n{}", wrap(why, "", ""));
        Some(Self { domain: name.to_owned(), subject: format!("Mail domain {name}: report"), body })
    }

    /// Envelope and bytes.
    ///
    /// If it cannot be delivered, who answers for this system hears of it; a bounce of that bounce goes to nobody, so
    /// nothing loops.
    pub(crate) fn to_message(&self, writer: &Writer<'_>) -> (Envelope, Bytes) {
        let Writer { options, host_name, id, now } = *writer;
        let own = format!("postmaster@{}", options.qualify_domain);
        let from = plain(options.errors_reply_to.as_ref().unwrap_or(&own));
        let to = format!("postmaster@{}", self.domain);
        let message_id = format!("<E{id}@{}>", plain(host_name));
        let mut text = String::new();
        let _ = write!(text, "Date: {}\r\n", rfc5322_date(now));
        let _ = write!(text, "From: Managed mail domains <{from}>\r\nTo: <{}>\r\n", plain(&to));
        let _ = write!(text, "Subject: {}\r\nMessage-ID: {message_id}\r\n", plain(&self.subject));
        // RFC 3834 §5: nothing answers this by itself.
        text.push_str("Auto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n");
        text.push_str(
            "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n",
        );
        text.push_str(&self.body);
        let envelope = Envelope {
            sender: options.errors_reply_to.clone().unwrap_or_default(),
            recipients: vec![Recipient { address: to, ..Recipient::default() }],
            origin: Origin {
                personality: "local".into(),
                protocol: "local".into(),
                helo: host_name.to_owned(),
                ..Origin::default()
            },
            received: now,
            eight_bit: !text.is_ascii(),
            message_id_field: message_id,
            ..Envelope::default()
        };
        (envelope, Bytes::from(text))
    }
}

/// Lines of a text, each of them wrapped by itself.
fn indented(text: &str) -> String {
    text.lines().map(|line| wrap(&plain(line), "    ", "      ")).collect()
}

#[cfg(test)]
mod tests {
    use mail_parser::MessageParser;

    use super::*;
    use crate::{dev::configuration::tests::loaded, domains::review::problem};

    fn https() -> pb::HttpsDomain {
        pb::HttpsDomain {
            domain: "botolph.cam.ac.uk".to_owned(),
            url: "https://www.botolph.cam.ac.uk/aliases".to_owned(),
            user: "ppsw".to_owned(),
            sealed_password: b"sealed".as_slice().into(),
            fetched_ms: 1_795_464_000_000,
            next_due_ms: 1_795_467_600_000,
            ..pb::HttpsDomain::default()
        }
    }

    fn written(letter: &Letter) -> (Envelope, String) {
        let configuration = loaded();
        let writer = Writer {
            options: configuration.options(),
            host_name: "node-1",
            id: MessageId { second: 1_795_464_000, counter: 2, node: 1 },
            now: UnixMs(1_795_464_000_000),
        };
        let (envelope, bytes) = letter.to_message(&writer);
        (envelope, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn a_problem_is_told_with_its_details() {
        let long = format!("line 9: {}\u{1b}[2J\r\nBcc: x@example.org", "é".repeat(1_500));
        let problem = problem("unparsable", "", format!("line 3: expected alias:address\n{long}"));
        let letter = Letter::of_problem(&https(), &problem);
        let (envelope, text) = written(&letter);
        println!("{text}");
        assert_eq!(envelope.recipients[0].address, "postmaster@botolph.cam.ac.uk");
        assert_eq!(envelope.sender, "postmaster@cam.ac.uk");
        assert!(envelope.eight_bit);
        let message = MessageParser::default().parse(text.as_bytes()).unwrap();
        assert_eq!(message.header_raw("Auto-Submitted").unwrap().trim(), "auto-generated");
        assert_eq!(message.bcc(), None);
        let subject = message.subject().unwrap();
        assert_eq!(
            subject,
            "Mail domain botolph.cam.ac.uk: the aliases file cannot be used (unparsable)"
        );
        let body = message.body_text(0).unwrap();
        for expected in [
            "https://www.botolph.cam.ac.uk/aliases",
            "line 3: expected alias:address",
            "No file has been fetched",
            "The live copy of the domain is as it was",
        ] {
            assert!(body.contains(expected), "{expected}: {body}");
        }
        assert!(!text.contains('\u{1b}') && !text.contains("sealed"));
        assert!(text.split("\r\n").all(|line| line.len() < 998 && !line.contains(['\r', '\n'])));
    }

    #[test]
    fn a_report_says_all_or_nothing() {
        let name = "botolph.cam.ac.uk";
        let mut audit = Audit { aliases: 4, ..Audit::default() };
        let mut domain = https();
        assert_eq!(Letter::of_report(name, &audit, Some(&domain)), None);
        audit.incomplete.push("DNS gave no answer".to_owned());
        assert_eq!(Letter::of_report(name, &audit, None), None, "nothing that managers can do");
        audit.warnings.push("x: loops (a → b)".to_owned());
        domain.problem = Some(problem("status", "", "the server answered 500".to_owned()));
        let remarks = vec!["line 7: x is in line 1 already".to_owned()];
        domain.live = Some(pb::LiveFile { remarks, ..pb::LiveFile::default() });
        let letter = Letter::of_report(name, &audit, Some(&domain)).unwrap();
        let (_, text) = written(&letter);
        println!("{text}");
        for expected in [
            "Subject: Mail domain botolph.cam.ac.uk: report\r\n",
            "which has 4 aliases",
            "    the server answered 500\r\n",
            "    x: loops (a → b)\r\n",
            "    line 7: x is in line 1 already\r\n",
            "    DNS gave no answer\r\n",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        domain.problem = None;
        audit.warnings.clear();
        assert!(Letter::of_report(name, &audit, Some(&domain)).is_some(), "duplicates alone");
    }
}
