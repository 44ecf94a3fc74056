//! Certificates: one per personality name, as in the paper (`tls_certificate = CERTS/server/NAME`). A name without one
//! has no STARTTLS and so no AUTH. Beside them, the CAs that sign certificates of clients.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    ConnectionCommon, RootCertStore, ServerConfig, ServerConnection,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::{NoServerSessionStorage, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio_rustls::TlsAcceptor;

use super::client_certificate::{Asking, Authorities, authorities};
use crate::policy::ClientCertificate;

/// The CAs whose signature makes a client's certificate believed.
const CLIENTS_FILE: &str = "clients.pem";

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
    #[error("{}: expected certificates of CAs: {what}", file.display())]
    Clients { file: PathBuf, what: String },
}

/// The certificates of this node by personality name. Clones share them.
#[derive(Clone, Default)]
pub struct Certificates {
    held: Arc<RwLock<Held>>,
}

#[derive(Default)]
struct Held {
    by_name: BTreeMap<String, Own>,
    clients: Option<Authorities>,
}

/// One certificate with its key.
struct Own {
    key: Arc<SingleCertAndKey>,
    /// For clients that are not asked for theirs: all sessions share it, so that they can be resumed.
    config: Arc<ServerConfig>,
}

/// What speaks TLS with one client.
pub(super) struct Acceptor {
    config: Arc<ServerConfig>,
    asking: Option<Arc<Asking>>,
}

/// What came of a handshake.
#[derive(Debug)]
pub(super) struct Negotiated {
    /// Version and cipher.
    pub(super) description: String,
    pub(super) certificate: Option<ClientCertificate>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(held.by_name.keys()).finish()
    }
}

impl Certificates {
    /// Loads every `NAME.pem` (chain, leaf first) that has its `NAME.key` in `dir`, and the CAs of clients in
    /// `clients.pem`, if there is one. A missing `dir` has none.
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
            if chain_file.file_name().is_some_and(|name| name == CLIENTS_FILE) {
                let cas = certificates_in(&chain_file)?;
                let bad = |what| TlsError::Clients { file: chain_file.clone(), what };
                all.trust_clients(cas).map_err(bad)?;
                continue;
            }
            let key_file = chain_file.with_extension("key");
            let name = chain_file.file_stem().and_then(|n| n.to_str()).map(str::to_owned);
            let Some(name) = name.filter(|_| chain_file.extension().is_some_and(|e| e == "pem"))
            else {
                continue;
            };
            if !key_file.exists() {
                continue;
            }
            let chain = certificates_in(&chain_file)?;
            let key = PrivateKeyDer::from_pem_file(&key_file)
                .map_err(|source| TlsError::Pem { file: key_file.clone(), source })?;
            all.add(&name, chain, key)?;
        }
        Ok(all)
    }

    /// Takes what is in `dir` now, for handshakes from now on. Of an error nothing changes.
    pub fn reload(&self, dir: &Path) -> Result<(), TlsError> {
        let new = Self::load(dir)?;
        let new = std::mem::take(&mut *new.held.write().unwrap_or_else(PoisonError::into_inner));
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = new;
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
        let key =
            CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(unusable)?;
        let key = Arc::new(SingleCertAndKey::from(key));
        let config = Arc::new(config(&key, None).map_err(unusable)?);
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.by_name.insert(name.to_ascii_lowercase(), Own { key, config });
        Ok(())
    }

    /// Sets the CAs whose signature makes a client's certificate believed.
    pub(super) fn trust_clients(&self, cas: Vec<CertificateDer<'static>>) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        for ca in cas {
            roots.add(ca).map_err(|error| error.to_string())?;
        }
        let clients = authorities(roots).map_err(|error| error.to_string())?;
        self.held.write().unwrap_or_else(PoisonError::into_inner).clients = Some(clients);
        Ok(())
    }

    /// Whether clients can be asked for certificates: there is a CA that could have signed them.
    pub fn know_clients(&self) -> bool {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clients.is_some()
    }

    /// Whether a personality has a certificate.
    pub(super) fn has(&self, name: &str) -> bool {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.by_name.contains_key(&name.to_ascii_lowercase())
    }

    /// What speaks TLS for a personality, if it has a certificate. `ask`: the client is asked for its own.
    pub(super) fn acceptor(&self, name: &str, ask: bool) -> Option<Acceptor> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let own = held.by_name.get(&name.to_ascii_lowercase())?;
        let asked = held.clients.as_ref().filter(|_| ask).and_then(|clients| {
            let asking = Arc::new(Asking::new(Arc::clone(clients)));
            // It has worked with this key before, without a verifier, which cannot make it fail.
            let mut config = config(&own.key, Some(Arc::clone(&asking) as Arc<_>)).ok()?;
            // A session that is resumed would show no certificate.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Some(Acceptor { config: Arc::new(config), asking: Some(asking) })
        });
        Some(asked.unwrap_or_else(|| Acceptor { config: Arc::clone(&own.config), asking: None }))
    }
}

impl Acceptor {
    pub(super) fn tls(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// What came of a handshake.
    pub(super) fn negotiated(&self, connection: &ServerConnection) -> Negotiated {
        Negotiated {
            description: description(connection),
            certificate: self.asking.as_ref().and_then(|asking| asking.shown()),
        }
    }
}

fn config(
    key: &Arc<SingleCertAndKey>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        // To be asked for one confuses mail programs (the paper, configuration line 229).
        None => builder.with_no_client_auth(),
    };
    Ok(builder.with_cert_resolver(Arc::clone(key) as Arc<_>))
}

fn certificates_in(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| TlsError::Pem { file: file.to_owned(), source })?;
    if all.is_empty() { Err(TlsError::Empty { file: file.to_owned() }) } else { Ok(all) }
}

/// Version of a connection's protocol: a closed set.
pub(super) fn version<Side>(connection: &ConnectionCommon<Side>) -> &'static str {
    match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLS1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS1.2",
        _ => "TLS",
    }
}

/// Version and cipher, for logs and `Received`: `TLS1.3:TLS_AES_256_GCM_SHA384`.
pub(crate) fn description<Side>(connection: &ConnectionCommon<Side>) -> String {
    let version = version(connection);
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
        assert!(all.has("smtp.EXAMPLE.org"));
        assert!(!all.has("lonely"));
        let none = Certificates::load(&file("nowhere")).unwrap();
        assert!(none.held.read().unwrap().by_name.is_empty());
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
        let config = || shared.acceptor("a.example", true).unwrap().config;
        let before = config();
        renew("a.example");
        renew("b.example");
        assert!(Arc::ptr_eq(&before, &config()), "nobody has asked for it yet");
        all.reload(dir.path()).unwrap();
        let after = config();
        assert!(!Arc::ptr_eq(&before, &after) && shared.has("b.example"));
        write(&dir.path().join("a.example.key"), "rubbish");
        assert!(all.reload(dir.path()).is_err());
        assert!(Arc::ptr_eq(&after, &config()));
        // The CAs of clients, too.
        renew("a.example");
        let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
        write(&dir.path().join("clients.pem"), &ca.cert.pem());
        assert!(!shared.know_clients());
        all.reload(dir.path()).unwrap();
        assert!(shared.know_clients() && !shared.has("clients"));
        for bad in ["", "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n"] {
            write(&dir.path().join("clients.pem"), bad);
            let error = all.reload(dir.path()).unwrap_err().to_string();
            assert!(error.contains("clients.pem") && shared.know_clients(), "{error}");
        }
        std::fs::remove_file(dir.path().join("clients.pem")).unwrap();
        all.reload(dir.path()).unwrap();
        assert!(!shared.know_clients());
    }

    #[allow(clippy::disallowed_methods, reason = "a test makes its files")]
    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
    }
}
