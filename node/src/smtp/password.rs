//! Passwords against the crypt(3) hashes of `users/passwd`, by the prefix that says how they were made.

use sha_crypt::{PasswordVerifier, ShaCrypt};

/// A hash that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadHash {
    /// `*` or `!`: as in /etc/shadow, on purpose.
    #[error("the user is locked")]
    Locked,
    #[error("the hash begins with none of $y$, $6$, $5$, $2b$ and $argon2id$")]
    Unknown,
    /// Without the hash: it is a secret, too.
    #[error("the hash is damaged")]
    Damaged,
}

/// Whether a password is the one that was hashed. Takes a while; compares in constant time.
///
/// # Errors
/// The hash is of no known kind, damaged, or says that nobody may.
pub(super) fn is_right(password: &[u8], hash: &str) -> Result<bool, BadHash> {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| hash.starts_with(prefix));
    if starts(&["$5$", "$6$"]) {
        judged(ShaCrypt::default().verify_password(password, hash))
    } else if starts(&["$y$"]) {
        judged(yescrypt::Yescrypt::default().verify_password(password, hash))
    } else if starts(&["$argon2id$"]) {
        judged(argon2::Argon2::default().verify_password(password, hash))
    } else if starts(&["$2a$", "$2b$", "$2y$"]) {
        bcrypt::verify(password, hash).map_err(|_| BadHash::Damaged)
    } else if starts(&["*", "!"]) {
        Err(BadHash::Locked)
    } else {
        Err(BadHash::Unknown)
    }
}

fn judged(result: Result<(), sha_crypt::password_hash::Error>) -> Result<bool, BadHash> {
    match result {
        Ok(()) => Ok(true),
        Err(sha_crypt::password_hash::Error::PasswordInvalid) => Ok(false),
        Err(_) => Err(BadHash::Damaged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by crypt(3) of libxcrypt; the last one is from the tests of Argon2's reference implementation.
    const HASHES: [(&str, &str); 5] = [
        ("secret", "$y$j9T$saltsaltsaltsalt$.Zt5W26jjocuW0wIHGgB6AJelofw6GEpOypHGyow2y5"),
        (
            "secret",
            "$6$saltstring$AIsRs/Ee56G/tC8MEHhvReZTfx8u3rXXMl6eYrjCG9ibix19DxoMBLogdTET5Ukw9Sf7eZTITsuk0Ry5qulYz.",
        ),
        ("secret", "$5$saltstring$C3o4O1TC6aRHF4FI.QSZMXtHbaj2gSXr4sUc/3NcUi."),
        ("secret", "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"),
        (
            "password",
            "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        ),
    ];

    #[test]
    fn every_kind_of_hash_knows_its_password() {
        for (password, hash) in HASHES {
            assert_eq!(is_right(password.as_bytes(), hash), Ok(true), "{hash}");
            for wrong in ["", "Secret", "secret "] {
                assert_eq!(is_right(wrong.as_bytes(), hash), Ok(false), "{hash} {wrong:?}");
            }
            let half = &hash[..hash.len() / 2];
            assert_ne!(is_right(password.as_bytes(), half), Ok(true), "{half}");
        }
    }

    #[test]
    fn what_is_no_hash_lets_nobody_in() {
        for hash in ["", "x", "secret", "$1$abc$def", "$7$", "$argon2i$v=19$m=8,t=1,p=1$YQ$YQ"] {
            assert_eq!(is_right(b"secret", hash), Err(BadHash::Unknown), "{hash:?}");
        }
        for hash in ["*", "!", "!$5$saltstring$C3o4O1TC6aRHF4FI.QSZMXtHbaj2gSXr4sUc/3NcUi."] {
            assert_eq!(is_right(b"secret", hash), Err(BadHash::Locked), "{hash:?}");
        }
    }
}
