//! Reports of delivery (RFC 3464) as two other programs read them: mail-parser, and the `email` package of Python.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use mail_parser::{MessageParser, MimeHeaders};
use serde::Deserialize;

/// A report, as both have read it.
#[derive(Debug, Deserialize)]
pub struct Report {
    /// Fields about the message.
    pub message: Vec<(String, String)>,
    /// Fields about each recipient.
    pub recipients: Vec<Vec<(String, String)>>,
    /// Type of the part with the original.
    pub original: String,
    /// Whatever Python did not like.
    pub defects: Vec<String>,
}

/// Prints what `Report` has. Ends with an error if it is no report.
const SCRIPT: &str = r#"
import email, email.policy, json, sys
message = email.message_from_binary_file(sys.stdin.buffer, policy=email.policy.default)
assert message.get_content_type() == "multipart/report", message.get_content_type()
assert message.get_param("report-type") == "delivery-status", message["content-type"]
human, status, original = message.iter_parts()
assert human.get_content_type() == "text/plain" and human.get_content().strip()
assert status.get_content_type() == "message/delivery-status"
blocks = [[(name.lower(), str(value)) for name, value in block.items()] for block in status.get_payload()]
blocks = [block for block in blocks if block]
defects = [str(defect) for part in message.walk() for defect in part.defects]
defects += [str(defect) for value in message.values() for defect in getattr(value, "defects", ())]
print(json.dumps({"message": blocks[0], "recipients": blocks[1:], "original": original.get_content_type(),
                  "defects": defects}))
"#;

/// Reads a report.
///
/// # Panics
/// If one of the two finds no report in it, or a field is missing that RFC 3464 §2.2 and §2.3 require.
pub fn read(content: &[u8]) -> Report {
    let parsed = MessageParser::default().parse(content).unwrap();
    let kind = parsed.content_type().unwrap();
    assert_eq!((kind.ctype(), kind.subtype()), ("multipart", Some("report")));
    assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
    let status = parsed.parts.iter().find(|part| {
        part.content_type().is_some_and(|kind| kind.subtype() == Some("delivery-status"))
    });
    let status = String::from_utf8(status.unwrap().contents().to_vec()).unwrap();

    let mut python = Command::new("python3")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(content).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(content));
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report.defects, Vec::<String>::new());
    value(&report.message, "reporting-mta");
    assert!(!report.recipients.is_empty(), "{report:?}");
    for recipient in &report.recipients {
        let address = value(recipient, "final-recipient");
        assert!(address.starts_with("rfc822;") || address.starts_with("utf-8;"), "{address}");
        // Both have read the same.
        assert!(status.contains(&format!("Final-Recipient: {address}")), "{status}");
        let action = value(recipient, "action");
        let status = value(recipient, "status");
        let class = if action == "failed" { "5." } else { "" };
        assert!(["failed", "delayed", "relayed", "delivered", "expanded"].contains(&action));
        assert!(status.starts_with(class) && status.split('.').count() == 3, "{status}");
    }
    report
}

/// A field that must be there.
pub fn value<'a>(fields: &'a [(String, String)], name: &str) -> &'a str {
    let found = fields.iter().find(|(found, _)| found == name);
    &found.unwrap_or_else(|| panic!("no {name} in {fields:?}")).1
}
