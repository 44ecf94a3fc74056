//! Outcomes of attempts on their way to the node that leads the partition now.

use std::time::Duration;

use ppsw_spool::{
    group::ProposeError,
    queue::{Delivered, Envelope, MessageId, Origin, Recipient, Verdict},
};

use super::{NodeId, Outcome, PartitionId, Shared, UnixMs, pb, sleep};

/// Between two tries while the partition has no leader.
const RETRY: Duration = Duration::from_millis(100);

/// One try to record at one node.
const TRY: Duration = Duration::from_secs(5);

impl Shared {
    /// Tries until somebody took it; the caller sets the deadline. An outcome may be recorded twice without harm.
    pub(crate) async fn forward_outcome(&self, partition: PartitionId, outcome: &Outcome) {
        let mut hint = None;
        loop {
            let leader = hint.take().or_else(|| self.spool.get(partition)?.group().leader());
            let candidates = leader.map_or_else(|| self.carriers(partition), |leader| vec![leader]);
            for node in candidates {
                match self.record_at(node, partition, outcome).await {
                    Ok(()) => return,
                    Err(leader) => hint = leader,
                }
                if hint.is_some() {
                    break;
                }
            }
            sleep(RETRY).await;
        }
    }

    /// The other nodes that should carry a partition.
    fn carriers(&self, partition: PartitionId) -> Vec<NodeId> {
        self.state().partitions.get(&partition).cloned().unwrap_or_default()
    }

    /// `Err` with who leads instead, if that is known.
    async fn record_at(
        &self,
        node: NodeId,
        partition: PartitionId,
        outcome: &Outcome,
    ) -> Result<(), Option<NodeId>> {
        if node == self.node {
            let here = self.spool.get(partition).ok_or(None)?;
            return match here.record(outcome.clone(), TRY).await {
                Ok(()) => Ok(()),
                Err(ProposeError::NotLeader { leader }) => Err(leader.filter(|n| *n != self.node)),
                Err(_) => Err(None),
            };
        }
        let mut client = self.dialer.node(node).ok_or(None)?;
        let request = pb::RecordRequest {
            partition,
            outcome: Some(to_proto(outcome)),
            deadline_ms: u32::try_from(TRY.as_millis()).unwrap_or(u32::MAX),
        };
        match tokio::time::timeout(TRY, client.record(request)).await {
            Ok(Ok(reply)) => match reply.into_inner().result {
                Some(pb::record_reply::Result::Done(_)) => {
                    metrics::counter!("ppsw_forwarded_outcomes_total").increment(1);
                    Ok(())
                }
                Some(pb::record_reply::Result::NotLeader(leader)) => {
                    Err((leader != 0 && leader != node).then_some(leader))
                }
                _ => Err(None),
            },
            _ => Err(None),
        }
    }
}

/// Reads an outcome from the wire.
pub(crate) fn from_proto(outcome: pb::Outcome) -> Result<Outcome, String> {
    let results = outcome.results.into_iter().map(read_result).collect::<Result<_, _>>()?;
    let creates = outcome
        .creates
        .into_iter()
        .map(|created| {
            let envelope = created.envelope.ok_or("a created message without an envelope")?;
            Ok((read_id(&created.id)?, read_envelope(envelope), created.content))
        })
        .collect::<Result<_, String>>()?;
    Ok(Outcome {
        message: read_id(&outcome.message)?,
        results,
        finished: outcome.finished,
        creates,
        warned: outcome.warned,
        goes_on: outcome.goes_on,
    })
}

fn to_proto(outcome: &Outcome) -> pb::Outcome {
    pb::Outcome {
        message: outcome.message.to_string(),
        results: outcome.results.iter().map(write_result).collect(),
        finished: outcome.finished.clone(),
        creates: outcome
            .creates
            .iter()
            .map(|(id, envelope, content)| pb::CreatedMessage {
                id: id.to_string(),
                envelope: Some(write_envelope(envelope)),
                content: content.clone(),
            })
            .collect(),
        warned: outcome.warned,
        goes_on: outcome.goes_on,
    }
}

fn read_id(text: &str) -> Result<MessageId, String> {
    text.parse().map_err(|_| format!("expected a message id, not {text:?}"))
}

fn write_result(result: &Delivered) -> pb::AddressResult {
    use pb::address_result::Verdict as Wire;
    let (verdict, next_due_ms) = match result.verdict {
        Verdict::Delivered => (Wire::Delivered, 0),
        Verdict::Failed => (Wire::Failed, 0),
        Verdict::Deferred { next_due } => (Wire::Deferred, next_due.0),
    };
    pb::AddressResult {
        recipient: result.recipient,
        address: result.address.clone(),
        verdict: verdict.into(),
        next_due_ms,
        text: result.text.clone(),
    }
}

fn read_result(result: pb::AddressResult) -> Result<Delivered, String> {
    use pb::address_result::Verdict as Wire;
    let verdict = match result.verdict() {
        Wire::Delivered => Verdict::Delivered,
        Wire::Failed => Verdict::Failed,
        Wire::Deferred => Verdict::Deferred { next_due: UnixMs(result.next_due_ms) },
        Wire::Unspecified => return Err("a result with a verdict of a newer version".to_owned()),
    };
    Ok(Delivered {
        recipient: result.recipient,
        address: result.address,
        verdict,
        text: result.text,
    })
}

fn write_envelope(envelope: &Envelope) -> pb::Envelope {
    let Envelope {
        sender,
        recipients,
        origin,
        received,
        prepend,
        eight_bit,
        smtputf8,
        nul_count,
        return_headers_only,
        envelope_id,
        message_id_field,
        received_count,
    } = envelope.clone();
    let recipients = recipients
        .into_iter()
        .map(|Recipient { address, notify, original }| pb::EnvelopeRecipient {
            address,
            notify,
            original,
        })
        .collect();
    pb::Envelope {
        sender,
        recipients,
        origin: Some(write_origin(origin)),
        received_ms: received.0,
        prepend,
        eight_bit,
        smtputf8,
        nul_count,
        return_headers_only,
        envelope_id,
        message_id_field,
        received_count,
    }
}

fn read_envelope(envelope: pb::Envelope) -> Envelope {
    let recipients = envelope
        .recipients
        .into_iter()
        .map(|r| Recipient { address: r.address, notify: r.notify, original: r.original })
        .collect();
    Envelope {
        sender: envelope.sender,
        recipients,
        origin: read_origin(envelope.origin.unwrap_or_default()),
        received: UnixMs(envelope.received_ms),
        prepend: envelope.prepend,
        eight_bit: envelope.eight_bit,
        smtputf8: envelope.smtputf8,
        nul_count: envelope.nul_count,
        return_headers_only: envelope.return_headers_only,
        envelope_id: envelope.envelope_id,
        message_id_field: envelope.message_id_field,
        received_count: envelope.received_count,
    }
}

/// Also for queue listings.
pub(crate) fn write_origin(origin: Origin) -> pb::Origin {
    pb::Origin {
        client: origin.client,
        client_name: origin.client_name,
        helo: origin.helo,
        server: origin.server,
        personality: origin.personality,
        protocol: origin.protocol,
        authenticated: origin.authenticated,
        auth_sender: origin.auth_sender,
        tls: origin.tls,
    }
}

fn read_origin(origin: pb::Origin) -> Origin {
    Origin {
        client: origin.client,
        client_name: origin.client_name,
        helo: origin.helo,
        server: origin.server,
        personality: origin.personality,
        protocol: origin.protocol,
        authenticated: origin.authenticated,
        auth_sender: origin.auth_sender,
        tls: origin.tls,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn an_outcome_arrives_as_it_was_sent() {
        let id = MessageId { second: 1_700_000_000, counter: 7, node: 2 };
        let result = |verdict| Delivered {
            recipient: 1,
            address: "a@example.org".to_owned(),
            verdict,
            text: "250 ok".to_owned(),
        };
        let envelope = Envelope {
            sender: "x@example.org".to_owned(),
            recipients: vec![Recipient {
                address: "y@example.org".to_owned(),
                ..Recipient::default()
            }],
            origin: Origin { personality: "local".to_owned(), ..Origin::default() },
            received: UnixMs(5),
            prepend: Bytes::from_static(b"Received: x\r\n"),
            nul_count: 3,
            ..Envelope::default()
        };
        let outcome = Outcome {
            message: id,
            results: vec![
                result(Verdict::Delivered),
                result(Verdict::Failed),
                result(Verdict::Deferred { next_due: UnixMs(99) }),
            ],
            finished: vec![0, 2],
            creates: vec![(id, envelope, Bytes::from_static(b"body"))],
            warned: true,
            goes_on: true,
        };
        assert_eq!(from_proto(to_proto(&outcome)), Ok(outcome));
    }

    #[test]
    fn a_malformed_outcome_is_refused() {
        assert!(from_proto(pb::Outcome::default()).is_err());
        let message = MessageId { second: 1, counter: 1, node: 1 }.to_string();
        let results = vec![pb::AddressResult::default()];
        assert!(from_proto(pb::Outcome { message, results, ..pb::Outcome::default() }).is_err());
    }
}
