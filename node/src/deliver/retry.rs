//! Retry rules in Exim's form: `F,2h,15m; G,16h,30m,1.5; F,5d,8h`.
//!
//! Own code: crates for retries count attempts of a call; a mail's schedule depends on the age of the message and
//! is part of the policy language.

use std::{fmt, str::FromStr, time::Duration};

use crate::limits::{RETRY_INTERVAL_MAX, RETRY_INTERVAL_MIN, RETRY_STEPS_MAX};

/// The paper's rule for everybody else's addresses (appendix 9.1, line 1099).
pub const RULE_OTHERS: &str = "F,2h,15m; G,16h,30m,1.5; F,5d,8h";
/// The paper's rule for our own domains (line 1095): long, so that problems of a local server can be mended.
pub const RULE_OURS: &str = "F,2h,15m; F,8h,30m; F,7d,60m; F,14d,2h";

/// When a message that could not be delivered is tried again, and when it is given up.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryRule {
    steps: Vec<Step>,
}

/// One step: up to an age of the message, the time between two attempts.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    /// The step holds for messages younger than this.
    until: Duration,
    interval: Duration,
    /// 1 for `F`; for `G` each interval is this much longer than the one before.
    factor: f64,
}

/// Why an address is tried again, as far as rules can tell. Names as in Exim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    pub(crate) cause: Cause,
    /// Whether the host that gave the trouble came from an MX record, if there was a host.
    pub(crate) mx: Option<bool>,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The connection was refused.
    Refused,
    /// No connection in time.
    TimeoutConnect,
    /// No reply in time.
    Timeout,
    /// The connection ended.
    LostConnection,
    /// TLS is a must, and did not come about.
    Tls,
    /// A reply of 4xx.
    Reply { to: Stage, code: u16, full: bool },
    /// Anything else.
    #[default]
    Other,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "connection refused",
            Self::TimeoutConnect => "connection timed out",
            Self::Timeout => "no reply in time",
            Self::LostConnection => "connection lost",
            Self::Tls => "no TLS",
            Self::Reply { .. } => "temporary refusal",
            Self::Other => "not reachable",
        })
    }
}

/// What a reply answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Mail,
    Rcpt,
    /// `DATA`, or the message.
    Data,
}

/// A name of errors: `refused_A`, `rcpt_45x`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TroublePattern {
    Any,
    /// With `_A` or `_MX` only for hosts that come from such records; those of a route count as `A`.
    Refused(Option<bool>),
    TimeoutConnect(Option<bool>),
    /// Of a connection, too.
    Timeout(Option<bool>),
    LostConnection,
    Tls,
    /// The mailbox is full (RFC 3463: x.2.2).
    Quota,
    /// `x` stands for any digit.
    Reply(Stage, [Option<u8>; 3]),
}

impl TroublePattern {
    /// What one may have meant.
    pub(crate) const NAMES: [&str; 16] = [
        "*",
        "refused",
        "refused_A",
        "refused_MX",
        "timeout_connect",
        "timeout_connect_A",
        "timeout_connect_MX",
        "timeout",
        "timeout_A",
        "timeout_MX",
        "lost_connection",
        "tls_required",
        "quota",
        "mail_4xx",
        "rcpt_4xx",
        "data_4xx",
    ];

    /// `None`: there is no such error.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        let (name, mx) = match (word.strip_suffix("_A"), word.strip_suffix("_MX")) {
            (Some(name), _) => (name, Some(false)),
            (_, Some(name)) => (name, Some(true)),
            _ => (word, None),
        };
        match (name, mx) {
            ("refused", mx) => return Some(Self::Refused(mx)),
            ("timeout_connect", mx) => return Some(Self::TimeoutConnect(mx)),
            ("timeout", mx) => return Some(Self::Timeout(mx)),
            ("*", None) => return Some(Self::Any),
            ("lost_connection", None) => return Some(Self::LostConnection),
            ("tls_required", None) => return Some(Self::Tls),
            ("quota", None) => return Some(Self::Quota),
            _ => {}
        }
        let (stage, code) = word.split_once('_')?;
        let stage = match stage {
            "mail" => Stage::Mail,
            "rcpt" => Stage::Rcpt,
            "data" => Stage::Data,
            _ => return None,
        };
        let mut digits = [None; 3];
        let characters: Vec<char> = code.chars().collect();
        if characters.len() != digits.len() || characters.first() != Some(&'4') {
            return None;
        }
        for (slot, character) in digits.iter_mut().zip(characters) {
            *slot = match character {
                'x' => None,
                digit => Some(u8::try_from(digit.to_digit(10)?).ok()?),
            };
        }
        Some(Self::Reply(stage, digits))
    }

    pub(crate) fn matches(&self, trouble: &Trouble) -> bool {
        let from = |mx: &Option<bool>| mx.is_none() || *mx == trouble.mx;
        match (self, trouble.cause) {
            (Self::Any, _)
            | (Self::LostConnection, Cause::LostConnection)
            | (Self::Tls, Cause::Tls)
            | (Self::Quota, Cause::Reply { full: true, .. }) => true,
            (Self::Refused(mx), Cause::Refused)
            | (Self::TimeoutConnect(mx), Cause::TimeoutConnect)
            | (Self::Timeout(mx), Cause::Timeout | Cause::TimeoutConnect) => from(mx),
            (Self::Reply(stage, digits), Cause::Reply { to, code, .. }) => {
                let of_code = [code / 100, code / 10 % 10, code % 10];
                *stage == to
                    && digits
                        .iter()
                        .zip(of_code)
                        .all(|(wanted, digit)| wanted.is_none_or(|w| u16::from(w) == digit))
            }
            _ => false,
        }
    }
}

/// A text that is no retry rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "retry rule {step:?}: {what}; expected steps like F,2h,15m or G,16h,30m,1.5 separated by ';'"
)]
pub struct BadRetryRule {
    step: String,
    what: String,
}

impl RetryRule {
    /// How long to wait after an attempt that failed when the message was `age` old; `None`: give up.
    /// Never waits beyond the end of the rule, so that a message is given up on time.
    #[must_use]
    pub fn next(&self, age: Duration) -> Option<Duration> {
        let end = self.expires_after();
        if age >= end {
            return None;
        }
        let mut start = Duration::ZERO;
        for step in &self.steps {
            if age < step.until {
                let interval = step.interval_at(age.saturating_sub(start));
                return Some(interval.min(end.saturating_sub(age)).max(RETRY_INTERVAL_MIN));
            }
            start = step.until;
        }
        None
    }

    /// Age at which a message is given up.
    #[must_use]
    pub fn expires_after(&self) -> Duration {
        self.steps.last().map_or(Duration::ZERO, |step| step.until)
    }
}

impl Step {
    /// The interval in which a time `within` the step lies.
    fn interval_at(&self, within: Duration) -> Duration {
        let mut interval = self.interval;
        let mut begin = Duration::ZERO;
        if self.factor <= 1.0 {
            return interval;
        }
        // Ends: intervals grow up to RETRY_INTERVAL_MAX, which is checked first.
        while interval < RETRY_INTERVAL_MAX && begin.saturating_add(interval) <= within {
            begin = begin.saturating_add(interval);
            interval = Duration::try_from_secs_f64(interval.as_secs_f64() * self.factor)
                .unwrap_or(RETRY_INTERVAL_MAX);
        }
        interval.min(RETRY_INTERVAL_MAX)
    }
}

impl FromStr for RetryRule {
    type Err = BadRetryRule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut steps: Vec<Step> = Vec::new();
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let bad = |what: &str| BadRetryRule {
                step: part.chars().take(80).collect(),
                what: what.to_owned(),
            };
            let step = parse_step(part).map_err(|what| bad(&what))?;
            if steps.last().is_some_and(|before| before.until >= step.until) {
                return Err(bad("must end later than the step before it"));
            }
            if steps.len() == RETRY_STEPS_MAX {
                return Err(bad("too many steps"));
            }
            steps.push(step);
        }
        if steps.is_empty() {
            return Err(BadRetryRule { step: String::new(), what: "has no step".to_owned() });
        }
        Ok(Self { steps })
    }
}

impl fmt::Display for RetryRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.steps.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            let (until, interval) = (exim_time(step.until), exim_time(step.interval));
            if step.factor > 1.0 {
                write!(f, "{separator}G,{until},{interval},{}", step.factor)?;
            } else {
                write!(f, "{separator}F,{until},{interval}")?;
            }
        }
        Ok(())
    }
}

fn parse_step(text: &str) -> Result<Step, String> {
    let fields: Vec<&str> = text.split(',').map(str::trim).collect();
    let (letter, until, interval, factor) = match fields.as_slice() {
        [letter @ ("F" | "f"), until, interval] => (letter, until, interval, None),
        [letter @ ("G" | "g"), until, interval, factor] => (letter, until, interval, Some(factor)),
        _ => return Err("has not the right number of fields".to_owned()),
    };
    let until = parse_exim_time(until).ok_or_else(|| format!("{until:?} is no time"))?;
    let interval = parse_exim_time(interval).ok_or_else(|| format!("{interval:?} is no time"))?;
    if !(RETRY_INTERVAL_MIN..=RETRY_INTERVAL_MAX).contains(&interval) {
        return Err("the interval must be between 1s and 1d".to_owned());
    }
    let factor = match factor {
        None => 1.0,
        Some(text) => text
            .parse()
            .ok()
            .filter(|f: &f64| (1.0..=100.0).contains(f))
            .ok_or_else(|| format!("factor {text:?} of {letter} is not between 1 and 100"))?,
    };
    Ok(Step { until, interval, factor })
}

/// Exim's time: `1w2d3h4m5s`, each part optional, in any order, at least one.
pub(crate) fn parse_exim_time(text: &str) -> Option<Duration> {
    let mut total = 0_u64;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        let unit = rest.as_bytes().get(digits)?;
        let seconds = match unit {
            b'w' => 7 * 86_400,
            b'd' => 86_400,
            b'h' => 3_600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(seconds)?)?;
        rest = rest.get(digits + 1..)?;
    }
    Some(Duration::from_secs(total))
}

/// Writes a time as Exim does in its logs and settings: `2h15m`, `0s`.
pub(crate) fn exim_time(time: Duration) -> String {
    let mut seconds = time.as_secs();
    let mut out = String::new();
    for (unit, name) in [(7 * 86_400, 'w'), (86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')] {
        if seconds >= unit {
            out.push_str(&(seconds / unit).to_string());
            out.push(name);
            seconds %= unit;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);

    fn rule(text: &str) -> RetryRule {
        text.parse().unwrap()
    }

    #[test]
    fn the_papers_rules_give_the_papers_times() {
        let others = rule(RULE_OTHERS);
        assert_eq!(others.next(Duration::ZERO), Some(15 * MINUTE));
        assert_eq!(others.next(2 * HOUR - MINUTE), Some(15 * MINUTE));
        assert_eq!(others.next(2 * HOUR), Some(30 * MINUTE));
        assert_eq!(others.next(2 * HOUR + 30 * MINUTE), Some(45 * MINUTE));
        assert_eq!(others.next(17 * HOUR), Some(8 * HOUR));
        assert_eq!(others.next(119 * HOUR), Some(HOUR));
        assert_eq!(others.next(120 * HOUR), None);
        assert_eq!(rule(RULE_OURS).next(10 * 24 * HOUR), Some(2 * HOUR));
        assert_eq!(rule("F,5d,5m").expires_after(), 120 * HOUR);
    }

    #[test]
    fn a_bad_rule_says_which_step_and_why() {
        for (text, what) in [
            ("", "has no step"),
            ("F,2h", "number of fields"),
            ("G,2h,15m", "number of fields"),
            ("F,2h,15x", "no time"),
            ("F,2h,15m; F,1h,5m", "later than"),
            ("F,2h,0s", "between 1s and 1d"),
            ("G,2h,15m,0.5", "not between 1 and 100"),
            ("G,2h,15m,nan", "not between 1 and 100"),
            ("F,99999999999999999999w,15m", "no time"),
        ] {
            let error = text.parse::<RetryRule>().unwrap_err().to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
    }

    prop_compose! {
        fn any_rule()(parts in prop::collection::vec((1_u64..500_000, 1_u64..=86_400, 10_u32..40), 1..6)) -> RetryRule {
            let mut until = Duration::ZERO;
            let steps = parts.into_iter().map(|(more, interval, factor)| {
                until += Duration::from_secs(more);
                let factor = f64::from(factor) / 10.0;
                Step { until, interval: Duration::from_secs(interval), factor }
            }).collect();
            RetryRule { steps }
        }
    }

    proptest! {
        #[test]
        fn a_rule_reads_back(rule in any_rule()) {
            prop_assert_eq!(rule.to_string().parse::<RetryRule>().unwrap(), rule);
        }

        /// Whatever the rule: attempts end, at the rule's end and not before, and never run hot.
        #[test]
        fn attempts_end_on_time(rule in any_rule()) {
            let (mut age, mut attempts) = (Duration::ZERO, 0_u64);
            while let Some(wait) = rule.next(age) {
                prop_assert!(wait >= RETRY_INTERVAL_MIN && wait <= RETRY_INTERVAL_MAX);
                age += wait;
                attempts += 1;
                if attempts > 20_000 { return Ok(()); }
            }
            let end = rule.expires_after();
            prop_assert!(age >= end && age < end + Duration::from_secs(2));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,80}") {
            let _ = text.parse::<RetryRule>();
        }
    }

    #[test]
    fn errors_have_the_names_of_exim() {
        let parsed = |word| TroublePattern::parse(word);
        for name in TroublePattern::NAMES {
            assert!(parsed(name).is_some(), "{name}");
        }
        for bad in ["", "refused_B", "rcpt_5xx", "rcpt_4", "rcpt_4xxx", "quota_A", "helo_4xx"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
        let trouble = |cause, mx| Trouble { cause, mx };
        let reply = |to, code, full| trouble(Cause::Reply { to, code, full }, Some(true));
        for (trouble, names) in [
            (trouble(Cause::Refused, Some(false)), &["*", "refused", "refused_A"][..]),
            (trouble(Cause::Refused, Some(true)), &["*", "refused", "refused_MX"]),
            (
                trouble(Cause::TimeoutConnect, Some(false)),
                &["*", "timeout_connect", "timeout_connect_A", "timeout", "timeout_A"],
            ),
            (trouble(Cause::Timeout, None), &["*", "timeout"]),
            (reply(Stage::Rcpt, 452, true), &["*", "quota", "rcpt_4xx", "rcpt_45x", "rcpt_452"]),
            (reply(Stage::Data, 451, false), &["*", "data_4xx", "data_45x"]),
            (trouble(Cause::Other, None), &["*"]),
        ] {
            let all = TroublePattern::NAMES.into_iter();
            let all = all.chain(["rcpt_45x", "rcpt_452", "data_45x", "data_452"]);
            let found: Vec<&str> =
                all.filter(|name| parsed(name).unwrap().matches(&trouble)).collect();
            let mut names = names.to_vec();
            let mut found_sorted = found.clone();
            names.sort_unstable();
            found_sorted.sort_unstable();
            assert_eq!(found_sorted, names, "{trouble:?}");
        }
    }
}
