//! Join tokens: `ppsw1-FINGERPRINT-SECRET`, one line. The fingerprint lets the joining machine know the cluster
//! before it sends the secret; the control group keeps only a hash of the secret.

use sha2::{Digest, Sha256};

use crate::pki::hex;

/// Bytes of the random secret.
const SECRET_BYTES: usize = 20;

/// A token as an operator passes it on.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Hexadecimal SHA-256 of the CA's certificate.
    pub fingerprint: String,
    /// Hexadecimal.
    pub secret: String,
}

/// The text is no token.
#[derive(Debug, thiserror::Error)]
#[error(
    "expected a token of the form ppsw1-<64 hex digits>-<40 hex digits> as `ppswctl token create` prints it: {0}"
)]
pub struct TokenError(&'static str);

impl Token {
    /// A new secret for the cluster with this CA.
    #[must_use]
    pub fn new(fingerprint: &str) -> Self {
        let secret: [u8; SECRET_BYTES] = rand::random();
        Self { fingerprint: fingerprint.to_owned(), secret: hex(&secret) }
    }

    /// Reads a token; white space around it is ignored.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('-');
        let (Some("ppsw1"), Some(fingerprint), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError("it has other parts"));
        };
        let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if fingerprint.len() != 64 || !is_hex(fingerprint) {
            return Err(TokenError("its middle part has another length, or other characters"));
        }
        if secret.len() != SECRET_BYTES * 2 || !is_hex(secret) {
            return Err(TokenError("its last part has another length, or other characters"));
        }
        Ok(Self { fingerprint: fingerprint.to_owned(), secret: secret.to_owned() })
    }

    /// The one line.
    #[must_use]
    pub fn to_line(&self) -> String {
        format!("ppsw1-{}-{}", self.fingerprint, self.secret)
    }
}

/// What the control group keeps of a secret. The secret is 160 random bits, so no slow hash is needed.
#[must_use]
pub fn hash(secret: &str) -> Vec<u8> {
    let mut digest = Sha256::new();
    digest.update(b"ppswitch join token 1\0");
    digest.update(secret.as_bytes());
    digest.finalize().to_vec()
}

/// By what name an operator speaks of a token: the beginning of its hash.
#[must_use]
pub fn id(hash: &[u8]) -> String {
    hex(hash.get(..4).unwrap_or(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back() {
        let token = Token::new(&"0f".repeat(32));
        let again = Token::parse(&format!(" {}\n", token.to_line())).unwrap();
        assert!(again == token);
        assert_ne!(hash(&token.secret), hash(&Token::new(&token.fingerprint).secret));
        assert_eq!(id(&hash(&token.secret)).len(), 8);
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let good = Token::new(&"0f".repeat(32)).to_line();
        for bad in [
            String::new(),
            "ppsw1".to_owned(),
            good.replace("ppsw1", "ppsw2"),
            format!("{good}-"),
            format!("{good}0"),
            good.replace('-', "_"),
            good.to_uppercase(),
        ] {
            assert!(Token::parse(&bad).is_err(), "{bad}");
        }
    }
}
