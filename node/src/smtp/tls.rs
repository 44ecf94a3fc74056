//! Certificates: one per personality name, as in the paper (`tls_certificate = CERTS/server/NAME`). A name without one
//! has no STARTTLS and so no AUTH.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    ServerConfig, ServerConnection,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;

/// A certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error("cannot list certificates in {}: {source}", dir.display())]
    Directory { dir: PathBuf, source: io::Error },
    #[error("{}: {source}; expected PEM", file.display())]
    Pem { file: PathBuf, source: pem::Error },
    #[error("{}: no certificate in it", file.display())]
    Empty { file: PathBuf },
    #[error("{name}: certificate and key don't work together: {source}")]
    Unusable { name: String, source: rustls::Error },
}

/// The certificates of this node by personality name. Clones share them.
#[derive(Clone, Default)]
pub struct Certificates {
    by_name: Arc<RwLock<ByName>>,
}

type ByName = BTreeMap<String, Arc<ServerConfig>>;

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set()
            .entries(
                self.by_name
                    .read()
                    .iter()
                    .flat_map(|known| known.keys().cloned().collect::<Vec<_>>()),
            )
            .finish()
    }
}

impl Certificates {
    /// Loads every `NAME.pem` (chain, leaf first) that has its `NAME.key` in `dir`. A missing `dir` has none.
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        let all = Self::default();
        let failed = |source| TlsError::Directory { dir: dir.to_owned(), source };
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let chain_file = entry.map_err(failed)?.path();
            let key_file = chain_file.with_extension("key");
            let name = chain_file.file_stem().and_then(|n| n.to_str()).map(str::to_owned);
            let Some(name) = name.filter(|_| chain_file.extension().is_some_and(|e| e == "pem"))
            else {
                continue;
            };
            if !key_file.exists() {
                continue;
            }
            let pem = |file: &Path, source| TlsError::Pem { file: file.to_owned(), source };
            let chain = CertificateDer::pem_file_iter(&chain_file)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|e| pem(&chain_file, e))?;
            if chain.is_empty() {
                return Err(TlsError::Empty { file: chain_file });
            }
            let key = PrivateKeyDer::from_pem_file(&key_file).map_err(|e| pem(&key_file, e))?;
            all.add(&name, chain, key)?;
        }
        Ok(all)
    }

    /// Takes what is in `dir` now, for handshakes from now on. Of an error nothing changes.
    pub fn reload(&self, dir: &Path) -> Result<(), TlsError> {
        let new = Self::load(dir)?;
        let new = std::mem::take(&mut *new.by_name.write().unwrap_or_else(PoisonError::into_inner));
        *self.by_name.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Adds one certificate (chain, leaf first) with its key.
    pub fn add(
        &self,
        name: &str,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        let unusable = |source| TlsError::Unusable { name: name.to_owned(), source };
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            // Client certificates confuse mail programs (the paper, configuration line 229).
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        let mut known = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(name.to_ascii_lowercase(), Arc::new(config));
        Ok(())
    }

    /// What speaks TLS for a personality, if it has a certificate.
    pub(super) fn acceptor(&self, name: &str) -> Option<TlsAcceptor> {
        let known = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&name.to_ascii_lowercase()).map(|config| TlsAcceptor::from(Arc::clone(config)))
    }
}

/// Version and cipher, for logs and `Received`: `TLS1.3:TLS_AES_256_GCM_SHA384`.
pub(super) fn description(connection: &ServerConnection) -> String {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLS1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS1.2",
        _ => "TLS",
    };
    let cipher = connection.negotiated_cipher_suite().map(|s| format!("{:?}", s.suite()));
    let cipher = cipher.unwrap_or_default().replacen("TLS13_", "TLS_", 1);
    format!("{version}:{cipher}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["smtp.example.org".to_owned()]).unwrap();
        let file = |name: &str| dir.path().join(name);
        write(&file("Smtp.example.org.pem"), &made.cert.pem());
        write(&file("Smtp.example.org.key"), &made.signing_key.serialize_pem());
        write(&file("lonely.pem"), &made.cert.pem());
        let all = Certificates::load(dir.path()).unwrap();
        assert!(all.acceptor("smtp.EXAMPLE.org").is_some());
        assert!(all.acceptor("lonely").is_none());
        let none = Certificates::load(&file("nowhere")).unwrap();
        assert!(none.by_name.read().unwrap().is_empty());
        write(&file("lonely.key"), "rubbish");
        assert!(Certificates::load(dir.path()).is_err());
    }

    #[test]
    fn certificates_are_replaced_and_stay_if_the_new_ones_are_bad() {
        let dir = tempfile::tempdir().unwrap();
        let renew = |name: &str| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            write(&dir.path().join(format!("{name}.pem")), &made.cert.pem());
            write(&dir.path().join(format!("{name}.key")), &made.signing_key.serialize_pem());
        };
        renew("a.example");
        let all = Certificates::load(dir.path()).unwrap();
        let shared = all.clone();
        let config = || Arc::clone(shared.acceptor("a.example").unwrap().config());
        let before = config();
        renew("a.example");
        renew("b.example");
        assert!(Arc::ptr_eq(&before, &config()), "nobody has asked for it yet");
        all.reload(dir.path()).unwrap();
        let after = config();
        assert!(!Arc::ptr_eq(&before, &after) && shared.acceptor("b.example").is_some());
        write(&dir.path().join("a.example.key"), "rubbish");
        assert!(all.reload(dir.path()).is_err());
        assert!(Arc::ptr_eq(&after, &config()));
    }

    #[allow(clippy::disallowed_methods, reason = "a test makes its files")]
    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
    }
}
