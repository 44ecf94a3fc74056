//! The users of a `dev` cluster, and the certificate that they see.

use std::io;

use rand::{Rng, distr::Alphanumeric};
use sha_crypt::{CustomizedPasswordHasher, Params, ShaCrypt};

use super::plan::Account;

/// `spqr1` to `spqr9`, as in the design.
const USERS: u8 = 9;
/// Characters of a password: 20 of 62 kinds is out of reach for guessing.
const PASSWORD_LENGTH: usize = 20;

/// The name that the submission service has in its certificate.
pub(super) const SUBMISSION_NAME: &str = "smtp.hermes.cam.ac.uk";

/// Users with fresh passwords.
pub(super) fn create() -> Vec<Account> {
    (1..=USERS)
        .map(|number| Account {
            user: format!("spqr{number}"),
            password: rand::rng()
                .sample_iter(Alphanumeric)
                .take(PASSWORD_LENGTH)
                .map(char::from)
                .collect(),
        })
        .collect()
}

/// User and `$6$` hash (crypt(3), SHA-512) of each account.
pub(super) fn hashes(accounts: &[Account]) -> io::Result<Vec<(String, String)>> {
    accounts
        .iter()
        .map(|account| {
            let salt: [u8; 12] = rand::random();
            let hash = ShaCrypt::SHA512
                .hash_password_customized(
                    account.password.as_bytes(),
                    &salt,
                    None,
                    None,
                    Params::RECOMMENDED,
                )
                .map_err(|error| {
                    io::Error::other(format!("password of {}: {error}", account.user))
                })?;
            Ok((account.user.clone(), hash.as_str().to_owned()))
        })
        .collect()
}

/// A certificate for the submission service, signed by itself, and its key, both PEM.
pub(super) fn certificate() -> Result<(String, String), rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(vec![SUBMISSION_NAME.to_owned()])?;
    params.distinguished_name.push(rcgen::DnType::CommonName, SUBMISSION_NAME);
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use sha_crypt::PasswordVerifier;

    use super::*;

    #[test]
    fn hashes_are_crypt_and_verify() {
        let accounts = create();
        let hashes = hashes(&accounts[..1]).unwrap();
        assert!(hashes[0].1.starts_with("$6$"), "{hashes:?}");
        assert!(!hashes[0].1.contains([':', ' ', '#']), "{hashes:?}");
        let hash = sha_crypt::PasswordHash::new(&hashes[0].1).unwrap();
        ShaCrypt::SHA512.verify_password(accounts[0].password.as_bytes(), &hash).unwrap();
        assert!(ShaCrypt::SHA512.verify_password(b"other", &hash).is_err());
    }

    #[test]
    fn certificate_is_pem() {
        let (certificate, key) = certificate().unwrap();
        assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(key.contains("PRIVATE KEY-----"));
    }
}
