//! AUTH PLAIN, LOGIN and EXTERNAL (RFC 4954, RFC 4616, RFC 4422 appendix A). Passwords travel in clear inside the first
//! two, so only over TLS. They are wiped from memory after use and never logged. EXTERNAL has none: it is for clients
//! that are trusted to name their users (the paper, section 3.3).

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::{
    FrontEnd, Policy,
    password::{self, BadHash},
    reply::{self, Reply},
};
use crate::limits::USER_BYTES_MAX;

/// Name of the mechanism.
pub(super) const EXTERNAL: &str = "EXTERNAL";

/// An exchange that waits for the client's next line.
#[derive(Debug)]
pub(super) enum Exchange {
    /// PLAIN without initial response.
    Plain,
    /// EXTERNAL; the user name comes next.
    External,
    /// LOGIN; the user name comes next.
    LoginUser,
    /// LOGIN; the password comes next.
    LoginPassword { user: String },
}

/// Where an exchange goes on.
#[derive(Debug)]
pub(super) enum Step {
    /// Send the reply (334) and wait for a line.
    Challenge(Exchange, Reply),
    /// Everything is there.
    Credentials(Credentials),
    /// EXTERNAL: this user, who needs no password.
    Trusted(String),
    /// It ended without credentials.
    Failed(Reply),
}

/// What the client claims.
pub(super) struct Credentials {
    pub(super) mechanism: &'static str,
    pub(super) user: String,
    password: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A user without a password takes as long to refuse as one with a wrong password. No password is known for it.
const NOBODY: &str = "$6$ppswitch$rktyceHJUV2tAhkFOyiXLUNqnokh1.pFsEavzqggWcZ1wPRxiRjJra9NGDbX/n7cVUy7PgpvyqrxF7sYAj93B/";

impl Exchange {
    /// Begins an exchange. `initial` is the response that came with the command; `trusted`: EXTERNAL may be used.
    pub(super) fn begin(mechanism: &str, initial: Option<&str>, trusted: bool) -> Step {
        let exchange = if mechanism.eq_ignore_ascii_case("PLAIN") {
            Self::Plain
        } else if mechanism.eq_ignore_ascii_case("LOGIN") {
            Self::LoginUser
        } else if trusted && mechanism.eq_ignore_ascii_case(EXTERNAL) {
            Self::External
        } else {
            let text = "Mechanism is not supported; use PLAIN or LOGIN";
            return Step::Failed(Reply::new(504, reply::BAD_PARAMETER, text));
        };
        match initial {
            // `=` is an empty initial response (RFC 4954 §4).
            Some("=") => exchange.respond(b""),
            Some(response) => exchange.respond(response.as_bytes()),
            None => {
                let challenge = exchange.challenge();
                Step::Challenge(exchange, challenge)
            }
        }
    }

    /// Takes the client's line.
    pub(super) fn respond(self, line: &[u8]) -> Step {
        if line == b"*" {
            return Step::Failed(Reply::new(501, reply::PROTOCOL, "Authentication cancelled"));
        }
        let malformed =
            || Step::Failed(Reply::new(501, reply::SYNTAX, "Response is malformed or not base64"));
        let Ok(response) = STANDARD.decode(line).map(Zeroizing::new) else { return malformed() };
        match self {
            Self::Plain => plain(&response).map_or_else(malformed, Step::Credentials),
            Self::External => user_name(&response).map_or_else(malformed, Step::Trusted),
            Self::LoginUser => match user_name(&response) {
                Some(user) => {
                    let exchange = Self::LoginPassword { user };
                    let challenge = exchange.challenge();
                    Step::Challenge(exchange, challenge)
                }
                None => malformed(),
            },
            Self::LoginPassword { user } => {
                Step::Credentials(Credentials { mechanism: "LOGIN", user, password: response })
            }
        }
    }

    fn challenge(&self) -> Reply {
        Reply::plain(
            334,
            match self {
                Self::Plain | Self::External => String::new(),
                Self::LoginUser => STANDARD.encode("Username:"),
                Self::LoginPassword { .. } => STANDARD.encode("Password:"),
            },
        )
    }
}

/// `[authzid] NUL authcid NUL password` (RFC 4616 §2). Nobody may act for somebody else.
fn plain(response: &[u8]) -> Option<Credentials> {
    let mut parts = response.split(|b| *b == 0);
    let (authorise, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || !(authorise.is_empty() || authorise == user) {
        return None;
    }
    let password = Zeroizing::new(password.to_vec());
    Some(Credentials { mechanism: "PLAIN", user: user_name(user)?, password })
}

/// A name that can stand in logs and headers.
fn user_name(bytes: &[u8]) -> Option<String> {
    let good = (1..=USER_BYTES_MAX).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"@._-+".contains(b));
    good.then(|| String::from_utf8_lossy(bytes).into_owned())
}

impl Credentials {
    /// Whether the password is the user's. Hashing takes a while, so it runs beside the event loop, a few at a time.
    pub(super) async fn verify(self, front: &FrontEnd, policy: Arc<dyn Policy>) -> bool {
        let Ok(_permit) = front.activity.hashing.acquire().await else { return false };
        let check = move || {
            let hash = policy.password_hash(&self.user);
            let right = hash.map(|hash| password::is_right(&self.password, hash));
            if let Some(Ok(right)) = right {
                return right;
            }
            if let Some(Err(error @ (BadHash::Unknown | BadHash::Damaged))) = right {
                tracing::warn!(user = self.user, %error, "users/passwd: nobody can log in as this user");
            }
            let _ = password::is_right(&self.password, NOBODY);
            false
        };
        tokio::task::spawn_blocking(check).await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(step: Step) -> (String, Vec<u8>) {
        match step {
            Step::Credentials(c) => (c.user.clone(), c.password.to_vec()),
            other => panic!("{other:?}"),
        }
    }

    fn code(step: Step) -> u16 {
        match step {
            Step::Failed(reply) | Step::Challenge(_, reply) => reply.code(),
            Step::Credentials(_) | Step::Trusted(_) => 0,
        }
    }

    #[test]
    fn plain_with_and_without_initial_response() {
        let line = STANDARD.encode("\0spqr1\0secret");
        let expected = ("spqr1".to_owned(), b"secret".to_vec());
        assert_eq!(credentials(Exchange::begin("plain", Some(&line), false)), expected);
        let Step::Challenge(exchange, reply) = Exchange::begin("PLAIN", None, false) else {
            panic!()
        };
        assert_eq!(reply, Reply::plain(334, ""));
        assert_eq!(credentials(exchange.respond(line.as_bytes())), expected);
    }

    #[test]
    fn login_asks_twice() {
        let Step::Challenge(exchange, reply) = Exchange::begin("LOGIN", None, false) else {
            panic!()
        };
        assert_eq!(reply, Reply::plain(334, "VXNlcm5hbWU6"));
        let Step::Challenge(exchange, reply) = exchange.respond(b"c3BxcjE=") else { panic!() };
        assert_eq!(reply, Reply::plain(334, "UGFzc3dvcmQ6"));
        assert_eq!(credentials(exchange.respond(b"")), ("spqr1".into(), vec![]));
    }

    #[test]
    fn external_is_for_the_trusted() {
        let line = STANDARD.encode("spqr1");
        assert_eq!(code(Exchange::begin("EXTERNAL", Some(&line), false)), 504);
        let step = Exchange::begin("external", Some(&line), true);
        assert!(matches!(step, Step::Trusted(user) if user == "spqr1"));
        let Step::Challenge(exchange, reply) = Exchange::begin("EXTERNAL", None, true) else {
            panic!()
        };
        assert_eq!(reply, Reply::plain(334, ""));
        assert!(matches!(exchange.respond(line.as_bytes()), Step::Trusted(_)));
        // RFC 4422 appendix A.1: no name means whoever the connection belongs to, and it belongs to nobody.
        assert_eq!(code(Exchange::begin("EXTERNAL", Some("="), true)), 501);
    }

    #[test]
    fn what_is_wrong_ends_the_exchange() {
        assert_eq!(code(Exchange::begin("CRAM-MD5", None, false)), 504);
        assert_eq!(code(Exchange::begin("PLAIN", Some("="), false)), 501);
        assert_eq!(code(Exchange::Plain.respond(b"*")), 501);
        assert_eq!(code(Exchange::Plain.respond(b"not base64!")), 501);
        for bad in ["\0user", "other\0user\0pw", "\0user\0pw\0", "\0us er\0pw", "\0\0pw"] {
            assert_eq!(
                code(Exchange::Plain.respond(STANDARD.encode(bad).as_bytes())),
                501,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn the_hash_of_nobody_is_a_real_one() {
        assert_eq!(password::is_right(b"x", NOBODY), Ok(false));
    }
}
