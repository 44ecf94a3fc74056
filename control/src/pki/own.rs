//! Whether an operator's own files fit each other: told before a node is asked, which would only close the connection.

use std::{sync::Arc, time::Duration};

use ppsw_spool::env::UnixMs;
use rustls::{
    CertificateError, Error,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};

use super::verify::roots;

/// Checks what is in `ca.pem`, `cert.pem` and `key.pem` as a node will.
///
/// # Errors
/// What is wrong with which file.
pub(crate) fn check(ca: &str, certificate: &str, key: &str, now: UnixMs) -> Result<(), String> {
    let expected = |file: &str, what: &str, error: &dyn std::error::Error| {
        format!("{file}: expected {what} in PEM form: {error}")
    };
    let provider = Arc::new(ring::default_provider());
    let ca = CertificateDer::from_pem_slice(ca.as_bytes())
        .map_err(|error| expected("ca.pem", "a certificate", &error))?;
    let roots = roots(ca).map_err(|error| error.to_string())?;
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| expected("cert.pem", "a certificate", &error))?;
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err("cert.pem: expected a certificate in PEM form, there is none".to_owned());
    };
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|error| expected("key.pem", "a private key", &error))?;
    CertifiedKey::from_der(chain.clone(), key, &provider).map_err(|error| match error {
        Error::InconsistentKeys(_) => "key.pem is not the key of cert.pem".to_owned(),
        Error::InvalidCertificate(wrong) => format!("cert.pem: expected a certificate: {wrong}"),
        error => format!("key.pem cannot be used: {error}"),
    })?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
        .build()
        .map_err(|error| format!("ca.pem cannot be used: {error}"))?;
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
    verifier.verify_client_cert(leaf, intermediates, now).map(|_| ()).map_err(unfit)
}

fn unfit(error: Error) -> String {
    use CertificateError as Wrong;
    let Error::InvalidCertificate(wrong) = error else {
        return format!("cert.pem cannot be used: {error}");
    };
    match wrong {
        Wrong::Expired | Wrong::ExpiredContext { .. } => "cert.pem has expired".to_owned(),
        Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => {
            "cert.pem is not valid yet, by the clock of this machine".to_owned()
        }
        Wrong::UnknownIssuer | Wrong::BadSignature => {
            "cert.pem was not signed by the CA in ca.pem: they are of different clusters".to_owned()
        }
        wrong => format!("cert.pem cannot be used: {wrong}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Authority, Role};

    const GARBAGE: &str = "-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n";
    const NOW: UnixMs = UnixMs(1_790_000_000_000);

    #[test]
    fn files_that_do_not_fit_are_named() {
        let (ca, _) = Authority::found("c0ffee", NOW).unwrap();
        let (other, _) = Authority::found("dead", NOW).unwrap();
        let own = ca.operator(Role::Viewer, NOW).unwrap();
        let theirs = other.operator(Role::Admin, NOW).unwrap();
        let later = UnixMs(NOW.0 + 11 * 366 * 86_400_000);
        let of = |ca: &Authority, certificate: &str, key: &str, now| {
            check(ca.certificate(), certificate, key, now)
        };
        assert_eq!(of(&ca, &own.certificate, &own.key, NOW), Ok(()));
        for (answer, expected) in [
            (of(&other, &own.certificate, &own.key, NOW), "of different clusters"),
            (of(&ca, &theirs.certificate, &theirs.key, NOW), "of different clusters"),
            (of(&ca, &own.certificate, &theirs.key, NOW), "not the key of cert.pem"),
            (of(&ca, &own.certificate, &own.key, later), "has expired"),
            (of(&ca, &own.certificate, &own.key, UnixMs(0)), "is not valid yet"),
            (of(&ca, "garbage", &own.key, NOW), "cert.pem: expected a certificate"),
            (of(&ca, GARBAGE, &own.key, NOW), "cert.pem: expected a certificate"),
            (of(&ca, &own.certificate, "garbage", NOW), "key.pem: expected a private key"),
            (check("garbage", &own.certificate, &own.key, NOW), "ca.pem: expected"),
        ] {
            let why = answer.unwrap_err();
            assert!(why.contains(expected), "{expected}: {why}");
        }
    }
}
