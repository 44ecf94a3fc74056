//! Certificates of the cluster: its CA, what it signs, and what a certificate says of a peer.
//!
//! A certificate's subject is `O=role, OU=cluster id, CN=name`. Only a node's certificate has a DNS name
//! (`node-N.CLUSTER.ppswitch.internal`) and may be used by a server, so that an operator's credential can't pose as
//! a node, and a connection to the wrong node is refused by TLS itself.

mod own;
mod verify;

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use ppsw_spool::{NodeId, env::UnixMs};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

pub(crate) use own::check as check_own;
pub use verify::{AnyNode, PinnedCa};

use crate::limits;

/// What a certificate lets its holder do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A member of the cluster.
    Node,
    /// An operator.
    Admin,
    /// An operator that only looks.
    Viewer,
}

/// Who is at the other end of a connection, by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub role: Role,
    pub cluster: String,
    /// `node-3`, `admin`, …
    pub name: String,
    /// For [`Role::Node`].
    pub node: Option<NodeId>,
}

/// Why a certificate could not be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// The library refused; the input was ours.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The peer's or the operator's input is no certificate that we know.
    #[error("{0}")]
    Unfit(String),
}

/// A key and its certificate, both PEM.
#[derive(Clone)]
pub struct Credential {
    pub certificate: String,
    pub key: String,
}

/// The CA with its key.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    cluster: String,
}

impl Role {
    /// As it stands in a certificate's subject.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Admin => "admin",
            Self::Viewer => "viewer",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Node, Self::Admin, Self::Viewer].into_iter().find(|role| role.as_str() == text)
    }
}

impl Authority {
    /// Makes a CA for a new cluster; returns it with its key, PEM.
    ///
    /// # Errors
    /// What the library says.
    pub fn found(cluster: &str, now: UnixMs) -> Result<(Self, String), PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params("ca", cluster, &format!("ppswitch cluster {cluster}"), now);
        let (year, month, day) = date(now, limits::CA_YEARS);
        params.not_after = rcgen::date_time_ymd(year, month, day);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        let text = key.serialize_pem();
        Ok((Self::load(&certificate, &text, cluster)?, text))
    }

    /// The CA as it was written by its first node.
    ///
    /// # Errors
    /// If certificate or key are no PEM, or of another kind.
    pub fn load(certificate: &str, key: &str, cluster: &str) -> Result<Self, PkiError> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        Ok(Self { certificate: certificate.to_owned(), issuer, cluster: cluster.to_owned() })
    }

    /// The CA's certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A new key with a certificate for an operator.
    ///
    /// # Errors
    /// What the library says.
    pub fn operator(&self, role: Role, now: UnixMs) -> Result<Credential, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params(role.as_str(), &self.cluster, role.as_str(), now);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Credential { certificate, key: key.serialize_pem() })
    }

    /// Signs the key of a request for a node. Nothing but the key is taken from the request.
    ///
    /// # Errors
    /// If the request is malformed, or not signed by its own key.
    pub fn sign_node(&self, csr: &str, node: NodeId, now: UnixMs) -> Result<String, PkiError> {
        let request = parse_request(csr)?;
        let name = format!("node-{node}");
        let mut params = params(Role::Node.as_str(), &self.cluster, &name, now);
        params.subject_alt_names =
            CertificateParams::new([server_name(node, &self.cluster)])?.subject_alt_names;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(&request.public_key, &self.issuer)?.pem())
    }
}

/// A new node key, PEM.
///
/// # Errors
/// What the library says.
pub fn new_key() -> Result<String, PkiError> {
    Ok(KeyPair::generate()?.serialize_pem())
}

/// A signing request for a key, both PEM.
///
/// # Errors
/// If the key is no PEM key.
pub fn request(key: &str) -> Result<String, PkiError> {
    let key = KeyPair::from_pem(key)?;
    Ok(CertificateParams::default().serialize_request(&key)?.pem()?)
}

/// SHA-256 of the public key in a signing request.
///
/// # Errors
/// If the request is malformed, or not signed by its own key.
pub fn request_key_hash(csr: &str) -> Result<Vec<u8>, PkiError> {
    Ok(Sha256::digest(parse_request(csr)?.public_key.der_bytes()).to_vec())
}

/// The name that a node's certificate is for.
#[must_use]
pub fn server_name(node: NodeId, cluster: &str) -> String {
    format!("node-{node}.{cluster}.ppswitch.internal")
}

/// SHA-256 of a certificate (PEM), hexadecimal: what a token pins.
///
/// # Errors
/// If the text is no PEM certificate.
pub fn fingerprint(pem: &str) -> Result<String, PkiError> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
        .map_err(|_| PkiError::Unfit("expected a PEM certificate".to_owned()))?;
    Ok(fingerprint_der(&pem.contents))
}

/// Reads a peer's certificate. Its signature has been checked by TLS already.
///
/// # Errors
/// If the subject has another form than our CA writes.
pub fn peer(der: &[u8]) -> Result<Peer, PkiError> {
    let unfit = |what: &str| PkiError::Unfit(format!("the peer's certificate {what}"));
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| unfit("cannot be parsed"))?;
    let subject = certificate.subject();
    let first = |attribute: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
        attribute.and_then(|a| a.as_str().ok()).map(str::to_owned)
    };
    let role = first(subject.iter_organization().next())
        .and_then(|text| Role::parse(&text))
        .ok_or_else(|| unfit("has no role (O=node, O=admin or O=viewer)"))?;
    let cluster = first(subject.iter_organizational_unit().next())
        .ok_or_else(|| unfit("names no cluster (OU)"))?;
    let name = first(subject.iter_common_name().next()).ok_or_else(|| unfit("has no name (CN)"))?;
    let node = match role {
        Role::Node => Some(
            name.strip_prefix("node-")
                .and_then(|number| number.parse().ok())
                .ok_or_else(|| unfit("has role node but no node number"))?,
        ),
        Role::Admin | Role::Viewer => None,
    };
    Ok(Peer { role, cluster, name, node })
}

fn fingerprint_der(der: &[u8]) -> String {
    hex(&Sha256::digest(der))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn parse_request(csr: &str) -> Result<CertificateSigningRequestParams, PkiError> {
    if csr.len() > limits::CSR_BYTES_MAX {
        return Err(PkiError::Unfit(format!(
            "the certificate request has {} bytes, at most {} are read",
            csr.len(),
            limits::CSR_BYTES_MAX
        )));
    }
    CertificateSigningRequestParams::from_pem(csr).map_err(|error| {
        PkiError::Unfit(format!("expected a certificate request signed by its own key: {error}"))
    })
}

fn params(role: &str, cluster: &str, name: &str, now: UnixMs) -> CertificateParams {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, role);
    subject.push(DnType::OrganizationalUnitName, cluster);
    subject.push(DnType::CommonName, name);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let backdate = u64::try_from(limits::CERTIFICATE_BACKDATE.as_millis()).unwrap_or(0);
    let (year, month, day) = date(UnixMs(now.0.saturating_sub(backdate)), 0);
    params.not_before = rcgen::date_time_ymd(year, month, day);
    let (year, month, day) = date(now, limits::CERTIFICATE_YEARS);
    params.not_after = rcgen::date_time_ymd(year, month, day);
    params
}

/// Year, month and day (UTC) of the day that lies some years after `now`.
fn date(now: UnixMs, years: i16) -> (i32, u8, u8) {
    let at = i64::try_from(now.0)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_zoned(TimeZone::UTC);
    let later = at.checked_add(i64::from(years).years()).unwrap_or(at);
    // jiff's months and days are positive and small.
    (i32::from(later.year()), later.month().unsigned_abs(), later.day().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_790_000_000_000);

    fn der(pem: &str) -> Vec<u8> {
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
    }

    #[test]
    fn certificates_say_role_cluster_and_node() {
        let (ca, key) = Authority::found("c0ffee", NOW).unwrap();
        let again = Authority::load(ca.certificate(), &key, "c0ffee").unwrap();
        let request = request(&new_key().unwrap()).unwrap();
        let node = peer(&der(&again.sign_node(&request, 3, NOW).unwrap())).unwrap();
        assert_eq!(
            node,
            Peer {
                role: Role::Node,
                cluster: "c0ffee".to_owned(),
                name: "node-3".to_owned(),
                node: Some(3)
            }
        );
        let viewer = peer(&der(&ca.operator(Role::Viewer, NOW).unwrap().certificate)).unwrap();
        assert_eq!((viewer.role, viewer.node), (Role::Viewer, None));
        assert!(peer(&der(ca.certificate())).is_err(), "a CA is no peer");
    }

    #[test]
    fn a_request_must_be_signed_by_its_own_key() {
        let csr = request(&new_key().unwrap()).unwrap();
        assert_eq!(request_key_hash(&csr).unwrap().len(), 32);
        assert!(request_key_hash("-----BEGIN NONSENSE-----").is_err());
        assert!(request_key_hash(&"x".repeat(limits::CSR_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn dates_move_by_years() {
        assert_eq!(date(UnixMs(0), 10), (1980, 1, 1));
    }
}
