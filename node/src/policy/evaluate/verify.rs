//! Conditions that ask the DNS: verification of addresses and names, and DNS lists.

use std::net::IpAddr;

use futures::future::join_all;

use super::{
    super::{AddressPlace, condition::Verify, dns_list::DnsList, list::domain_literal},
    Evaluation, Truth,
};
use crate::{
    callout::{Answer, CalloutOptions, Question, ReversePath},
    dns::DnsError,
    limits,
    route::{self, About, Destination, Verified},
};

impl Evaluation<'_> {
    pub(super) async fn verify(
        &mut self,
        verify: Verify,
        callout: Option<&CalloutOptions>,
    ) -> Truth {
        match verify {
            Verify::Sender => {
                let sender = self.transaction.sender.clone();
                if sender.is_empty() {
                    return Truth::Yes;
                }
                let truth = self.address(&sender, callout, true).await;
                self.reason = self.reason.take().map(|reason| {
                    format!("Verification failed for <{sender}>\n{reason}\nSender verify failed")
                });
                truth
            }
            Verify::Recipient => match self.transaction.recipient.clone() {
                Some(recipient) => self.address(&recipient, callout, false).await,
                None => Truth::Later,
            },
            Verify::Helo => self.helo().await,
            Verify::ReverseHost => self.reverse_host().await,
            Verify::Certificate => {
                let verified = self.connection.verified_certificate().is_some();
                self.reason = (!verified).then(|| "No verified certificate".to_owned());
                Truth::of(verified)
            }
        }
    }

    async fn address(
        &mut self,
        address: &str,
        callout: Option<&CalloutOptions>,
        is_sender: bool,
    ) -> Truth {
        // As it would be if the message were taken.
        let place = match is_sender {
            true => AddressPlace::EnvelopeSender,
            false => AddressPlace::EnvelopeRecipient,
        };
        let rewritten = self.configuration.rewrite(address, place);
        let address = rewritten.as_ref().map_or(address, |rewriting| &rewriting.new);
        // Who verifies a sender would write to it as nobody.
        let sender = if is_sender { "" } else { self.transaction.sender.as_str() };
        let about = About { id: None, sender, personality: &self.personality.acl };
        let dns = &*self.around.dns;
        let verified = route::verify(self.configuration, dns, &about, address).await;
        let (truth, reason) = match (verified, callout) {
            (Verified::Yes(Some((address, to))), Some(options)) => {
                self.call_out(&address, &to, options, is_sender).await
            }
            (Verified::Yes(_), _) => (Truth::Yes, None),
            (Verified::No(reason), _) => (Truth::No, Some(reason)),
            (Verified::Later(reason), _) => (Truth::Later, Some(reason)),
        };
        self.reason = reason;
        truth
    }

    async fn call_out(
        &self,
        address: &str,
        destination: &Destination,
        options: &CalloutOptions,
        is_sender: bool,
    ) -> (Truth, Option<String>) {
        let reverse_path = match options.reverse_path {
            ReversePath::Null => String::new(),
            ReversePath::Sender => {
                let sender = &self.transaction.sender;
                let rewritten = self.configuration.rewrite(sender, AddressPlace::EnvelopeSender);
                rewritten.map_or_else(|| sender.clone(), |rewriting| rewriting.new)
            }
            ReversePath::Postmaster => {
                format!("postmaster@{}", self.configuration.options().qualify_domain)
            }
        };
        let reverse_path = &*reverse_path;
        let question =
            Question { address, destination, reverse_path, calls_back: is_sender, options };
        match self.around.callouts.ask(question).await {
            Answer::Yes => (Truth::Yes, None),
            Answer::No(why) => (Truth::No, Some(why)),
            Answer::Later(_) if options.defer_ok => (Truth::Yes, None),
            Answer::Later(why) => (Truth::Later, Some(why)),
        }
    }

    /// The client's own literal, its verified name, or a name with its address.
    async fn helo(&self) -> Truth {
        let client = self.connection.client.ip().to_canonical();
        let Some(helo) = self.connection.helo.clone() else { return Truth::No };
        if let Some(address) = domain_literal(&helo) {
            return Truth::of(address.to_canonical() == client);
        }
        let name = self.connection.client_name.as_deref();
        if name.is_some_and(|name| name.eq_ignore_ascii_case(&helo)) {
            return Truth::Yes;
        }
        // A name that cannot be looked up now counts as wrong: no mail is refused for that alone.
        let known = self.around.dns.addresses(&helo).await.unwrap_or_default();
        Truth::of(known.iter().any(|address| address.to_canonical() == client))
    }

    async fn reverse_host(&mut self) -> Truth {
        if self.connection.client_name.is_some() {
            return Truth::Yes;
        }
        let client = self.connection.client.ip().to_canonical();
        let names = match self.around.dns.names(client).await {
            Ok(names) => names,
            Err(DnsError::NoName | DnsError::NoRecord) => return Truth::No,
            Err(DnsError::Temporary(_)) => return Truth::Later,
        };
        let mut truth = Truth::No;
        for name in names.into_iter().take(limits::HOST_ADDRESSES_MAX) {
            match self.around.dns.addresses(&name).await {
                Ok(found) if found.iter().any(|a| a.to_canonical() == client) => {
                    self.connection.client_name = Some(name);
                    return Truth::Yes;
                }
                Err(DnsError::Temporary(_)) => truth = Truth::Later,
                Ok(_) | Err(_) => {}
            }
        }
        truth
    }

    /// Asks all lists at once; the first in the order of the text that lists the client counts. A list that does not
    /// answer lists nobody.
    pub(super) async fn dns_lists(&mut self, lists: &[DnsList]) -> Truth {
        let client = self.connection.client.ip();
        let questions: Vec<Option<String>> = lists
            .iter()
            .map(|list| match &list.subject {
                None => Some(format!("{}.{}", reversed(client), list.zone)),
                Some(subject) => subject
                    .fill(self)
                    .filter(|subject| !subject.is_empty() && !subject.starts_with('['))
                    .map(|subject| format!("{subject}.{}", list.zone)),
            })
            .collect();
        let dns = &self.around.dns;
        let answers = join_all(questions.iter().map(|question| async move {
            match question {
                Some(name) => dns.addresses(name).await.unwrap_or_default(),
                None => Vec::new(),
            }
        }))
        .await;
        for ((list, question), answers) in lists.iter().zip(questions).zip(answers) {
            // Other answers come from a wildcard of somebody who took over the domain (RFC 5782 §2.1).
            let counts = |answer: &IpAddr| match answer {
                IpAddr::V4(v4) => list.filter.counts(*v4),
                IpAddr::V6(_) => false,
            };
            let Some(name) = question.filter(|_| answers.iter().any(counts)) else { continue };
            let texts = dns.texts(&name).await.unwrap_or_default();
            let zone = list.zone.to_string();
            self.reason = Some(format!("listed at {zone}"));
            self.listed = Some((zone, texts.join(" ")));
            return Truth::Yes;
        }
        Truth::No
    }
}

/// As DNS lists want it: `2.66.200.127`, or the 32 digits of an IPv6 address (RFC 5782 §2.1, §2.4).
fn reversed(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}")
        }
        IpAddr::V6(v6) => {
            let digits = v6.octets().into_iter().rev().flat_map(|o| [o & 15, o >> 4]);
            digits.map(|digit| format!("{digit:x}")).collect::<Vec<_>>().join(".")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_reversed() {
        assert_eq!(reversed("127.200.66.1".parse().unwrap()), "1.66.200.127");
        assert_eq!(reversed("::ffff:192.0.2.1".parse().unwrap()), "1.2.0.192");
        let six = reversed("2001:db8::f1".parse().unwrap());
        assert!(six.starts_with("1.f.0.0.") && six.ends_with(".8.b.d.0.1.0.0.2"), "{six}");
        assert_eq!(six.len(), 63);
    }
}
