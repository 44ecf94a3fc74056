//! What operators do with messages that wait.

use ppsw_proto::control as pb;
use tonic::Status;

use crate::limits;

/// A verb of `ppswctl queue` that changes something, and the records of who wanted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub verb: Verb,
    /// Name of the operator's certificate.
    pub by: String,
    /// Why; empty if not given.
    pub reason: String,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The whole message is due now. One on hold stays there.
    Retry,
    /// The whole message waits until it is released.
    Hold,
    /// The whole message waits no more, and is due now.
    Release,
    /// Recipients are given up; the sender is told.
    Bounce,
    /// Recipients are given up; nobody is told.
    Drop,
    /// Recipients become another address, which is due when they were.
    Redirect { to: String },
}

impl Wanted {
    /// Checks what an operator asks for.
    ///
    /// # Errors
    /// What was expected.
    pub(crate) fn new(request: &pb::OperateRequest) -> Result<Self, Status> {
        let pb::OperateRequest { filter, reason, to, by, all, .. } = request;
        let verb = match request.verb() {
            pb::QueueVerb::Retry => Verb::Retry,
            pb::QueueVerb::Hold => Verb::Hold,
            pb::QueueVerb::Release => Verb::Release,
            pb::QueueVerb::Bounce => Verb::Bounce,
            pb::QueueVerb::Drop => Verb::Drop,
            pb::QueueVerb::Redirect => Verb::Redirect { to: address(to)? },
            pb::QueueVerb::Unspecified => {
                return Err(Status::invalid_argument("expected a verb that this node knows"));
            }
        };
        // What is about recipients cannot be undone.
        if verb.is_about_recipients() && reason.trim().is_empty() {
            return Err(Status::invalid_argument("expected a --reason, for the records"));
        }
        if reason.len() > limits::REASON_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "expected a --reason of at most {} bytes",
                limits::REASON_BYTES_MAX
            )));
        }
        let anything = filter.as_ref().is_none_or(|filter| *filter == pb::QueueFilter::default());
        if anything && !all {
            return Err(Status::invalid_argument(
                "expected ids or conditions; for every message in the queue, --all",
            ));
        }
        Ok(Self { verb, by: by.clone(), reason: reason.trim().to_owned() })
    }
}

impl Verb {
    /// As the log has it.
    #[must_use]
    pub const fn past(&self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Hold => "held",
            Self::Release => "released",
            Self::Bounce => "bounced",
            Self::Drop => "dropped",
            Self::Redirect { .. } => "redirected",
        }
    }

    /// On the wire, with the new address of a redirection.
    #[must_use]
    pub fn to_proto(&self) -> (pb::QueueVerb, String) {
        let verb = match self {
            Self::Retry => pb::QueueVerb::Retry,
            Self::Hold => pb::QueueVerb::Hold,
            Self::Release => pb::QueueVerb::Release,
            Self::Bounce => pb::QueueVerb::Bounce,
            Self::Drop => pb::QueueVerb::Drop,
            Self::Redirect { to } => return (pb::QueueVerb::Redirect, to.clone()),
        };
        (verb, String::new())
    }

    /// It is about recipients; otherwise, about messages.
    #[must_use]
    pub const fn is_about_recipients(&self) -> bool {
        matches!(self, Self::Bounce | Self::Drop | Self::Redirect { .. })
    }
}

/// An address that can be a recipient.
fn address(text: &str) -> Result<String, Status> {
    let parts = text.rsplit_once('@').filter(|(local, domain)| {
        !local.is_empty()
            && !domain.is_empty()
            && text.len() <= limits::REDIRECT_BYTES_MAX
            && !text.chars().any(|c| c.is_control() || c.is_whitespace() || "<>,".contains(c))
    });
    match parts {
        Some(_) => Ok(text.to_owned()),
        None => Err(Status::invalid_argument(format!(
            "expected --to with an address like someone@example.org, not `{}`",
            text.chars().take(80).collect::<String>()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(verb: pb::QueueVerb) -> pb::OperateRequest {
        let filter = pb::QueueFilter { sender: "a@b".to_owned(), ..Default::default() };
        pb::OperateRequest {
            filter: Some(filter),
            verb: verb.into(),
            reason: " spam ".to_owned(),
            to: "x@y.example".to_owned(),
            by: "anna".to_owned(),
            all: false,
        }
    }

    #[test]
    fn what_cannot_be_undone_needs_a_reason() {
        use pb::QueueVerb as V;
        for verb in [V::Retry, V::Hold, V::Release, V::Bounce, V::Drop, V::Redirect] {
            let wanted = Wanted::new(&request(verb)).unwrap();
            assert_eq!((wanted.by.as_str(), wanted.reason.as_str()), ("anna", "spam"));
            let without = pb::OperateRequest { reason: " ".to_owned(), ..request(verb) };
            assert_eq!(Wanted::new(&without).is_err(), wanted.verb.is_about_recipients());
        }
        let long = pb::OperateRequest { reason: "x".repeat(501), ..request(V::Hold) };
        assert!(Wanted::new(&long).is_err());
        assert!(Wanted::new(&request(V::Unspecified)).is_err());
    }

    #[test]
    fn every_message_is_meant_only_if_somebody_says_so() {
        let all = |all| pb::OperateRequest {
            filter: Some(pb::QueueFilter::default()),
            all,
            ..request(pb::QueueVerb::Hold)
        };
        assert!(Wanted::new(&all(true)).is_ok());
        assert!(Wanted::new(&all(false)).unwrap_err().message().contains("--all"));
    }

    #[test]
    fn a_redirection_leads_to_an_address() {
        let to = |to: &str| {
            let request = request(pb::QueueVerb::Redirect);
            Wanted::new(&pb::OperateRequest { to: to.to_owned(), ..request })
        };
        let verb = Verb::Redirect { to: "a@b.example".to_owned() };
        assert_eq!(to("a@b.example").unwrap().verb, verb);
        for bad in ["", "a", "@b", "a@", "a b@c", "a@b\r\n", "<a@b>", &"a@b".repeat(200)] {
            assert!(to(bad).unwrap_err().message().contains("expected --to"), "{bad}");
        }
    }
}
