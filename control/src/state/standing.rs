//! Rules that operators leave for messages to come.

use std::sync::Arc;

use ppsw_proto::control as pb;
use ppsw_spool::group::Reply;
use prost::Message;

use super::{State, check_text};
use crate::limits;

impl State {
    /// Answers with the rule, which has its number then.
    pub(super) fn add_standing(&mut self, add: pb::AddStanding) -> Reply {
        let Some(rule) = add.rule else {
            return Reply::Refused("a command to add a rule without a rule".to_owned());
        };
        let answer = |rule: &pb::StandingRule| Reply::Value(rule.encode_to_vec().into());
        // Asked again after a lost answer.
        if let Some(known) = self.standing.values().find(|known| known.nonce == rule.nonce) {
            return answer(known);
        }
        if let Err(why) = check(&rule) {
            return Reply::Refused(why);
        }
        let standing = Arc::make_mut(&mut self.standing);
        standing.retain(|_, known| rule.since_ms < known.until_ms);
        if standing.len() >= limits::STANDING_MAX {
            return Reply::Refused(format!(
                "{} rules stand, and no more are allowed: `ppswctl queue rules` shows them, `ppswctl queue cancel` \
                 ends them",
                limits::STANDING_MAX
            ));
        }
        self.last_standing += 1;
        let rule = pb::StandingRule { id: self.last_standing, ..rule };
        let reply = answer(&rule);
        standing.insert(rule.id, rule);
        reply
    }

    pub(super) fn cancel_standing(&mut self, cancel: &pb::CancelStanding) -> Result<(), String> {
        Arc::make_mut(&mut self.standing).retain(|id, _| !cancel.ids.contains(id));
        Ok(())
    }
}

fn check(rule: &pb::StandingRule) -> Result<(), String> {
    check_text("name", &rule.by)?;
    check_text("destination", &rule.destination)?;
    let kinds = [rule.order.is_some(), !rule.destination.is_empty(), rule.shed.is_some()];
    let one = kinds.into_iter().filter(|given| *given).count() == 1;
    if rule.until_ms <= rule.since_ms || !one {
        return Err("a rule that makes no sense: update ppswctl".to_owned());
    }
    if rule.encoded_len() > limits::STANDING_BYTES_MAX {
        return Err(format!(
            "the rule is too long: expected at most {} bytes",
            limits::STANDING_BYTES_MAX
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{command, encode_command};
    use pb::command::Change;

    fn rule(destination: &str, since_ms: u64, until_ms: u64, nonce: u8) -> pb::StandingRule {
        pb::StandingRule {
            destination: destination.to_owned(),
            since_ms,
            until_ms,
            nonce: vec![nonce].into(),
            ..pb::StandingRule::default()
        }
    }

    fn add(state: &mut State, rule: pb::StandingRule) -> Reply {
        let change = Change::AddStanding(pb::AddStanding { rule: Some(rule) });
        assert_eq!(command(change.clone()).version, 1);
        state.apply(&encode_command(change))
    }

    fn number(reply: Reply) -> u64 {
        let Reply::Value(value) = reply else { panic!("{reply:?}") };
        pb::StandingRule::decode(value).unwrap().id
    }

    #[test]
    fn rules_have_numbers_that_are_never_used_again() {
        let mut state = State::default();
        assert_eq!(number(add(&mut state, rule("a.example", 1, 100, 1))), 1);
        assert_eq!(number(add(&mut state, rule("b.example", 1, 10, 2))), 2);
        assert_eq!(number(add(&mut state, rule("a.example", 1, 100, 1))), 1, "a repetition");
        let cancel = Change::CancelStanding(pb::CancelStanding { ids: vec![1, 7] });
        assert!(matches!(state.apply(&encode_command(cancel)), Reply::Done));
        // The second one has ended.
        assert_eq!(number(add(&mut state, rule("c.example", 11, 100, 3))), 3);
        assert_eq!(state.standing.keys().copied().collect::<Vec<_>>(), [3]);
        let again = State::from_proto(state.to_proto()).unwrap();
        assert_eq!(again, state);
    }

    #[test]
    fn rules_are_bounded() {
        let mut state = State::default();
        for nonce in 0..limits::STANDING_MAX {
            let made = rule("a.example", 1, 100, u8::try_from(nonce).unwrap());
            assert!(matches!(add(&mut state, made), Reply::Value(_)));
        }
        let refused = |reply: Reply, why: &str| {
            assert!(matches!(&reply, Reply::Refused(text) if text.contains(why)), "{reply:?}");
        };
        refused(add(&mut state, rule("a.example", 1, 100, 255)), "ppswctl queue rules");
        let mut state = State::default();
        refused(add(&mut state, rule("a.example", 100, 100, 1)), "makes no sense");
        refused(add(&mut state, rule("", 1, 100, 1)), "makes no sense");
        let reason = "x".repeat(limits::STANDING_BYTES_MAX);
        refused(add(&mut state, pb::StandingRule { reason, ..rule("a", 1, 2, 1) }), "too long");
    }
}
