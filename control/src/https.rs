//! Managed mail domains whose aliases are fetched from a web server: what an administrator may set, and how the password
//! is kept.

use std::fmt;

use ppsw_proto::control as pb;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
    rand::{SecureRandom, SystemRandom},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use zeroize::Zeroizing;

use crate::limits;

/// Version of the form of a sealed password: this byte, the nonce, and what AES-256-GCM gives.
const SEALED_VERSION: u8 = 1;

/// A password. It is in no log, and its memory is wiped.
pub struct Password(Zeroizing<String>);

/// `https://…`, without user and password in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Url(url::Url);

/// Seals passwords for the control group's state, with a key that every member can derive from the CA's key.
pub(crate) struct Vault {
    key: LessSafeKey,
}

impl Password {
    /// Takes a password as it was given.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The password itself, for who has to send it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// # Errors
    /// If it fits into no HTTP header.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.0.is_empty() || self.0.len() > limits::PASSWORD_BYTES_MAX {
            let max = limits::PASSWORD_BYTES_MAX;
            return Err(format!("expected a password of 1 to {max} bytes, saw {}", self.0.len()));
        }
        // RFC 7617 §2.
        if self.0.chars().any(char::is_control) {
            return Err("the password has a control character in it".to_owned());
        }
        Ok(())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Url {
    /// Reads the URL of a file.
    ///
    /// # Errors
    /// What is wrong with it. The text never has a password in it that stands in the URL.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > limits::URL_BYTES_MAX {
            return Err(format!("a URL has at most {} bytes", limits::URL_BYTES_MAX));
        }
        let mut url = url::Url::parse(text).map_err(|error| {
            format!("this is no URL ({error}); expected one like https://www.example.org/aliases")
        })?;
        if url.scheme() != "https" {
            return Err(format!(
                "expected a URL that begins with https://, not {}: the password must not travel in clear",
                url.scheme()
            ));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a user or password stands in the URL: give them with --user and \
                        --password-file, where they are kept secret"
                .to_owned());
        }
        if url.host().is_none() {
            return Err("the URL has no host".to_owned());
        }
        url.set_fragment(None);
        Ok(Self(url))
    }

    /// As the library has it.
    #[must_use]
    pub const fn as_url(&self) -> &url::Url {
        &self.0
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Vault {
    /// The vault of a cluster.
    ///
    /// # Errors
    /// If this is no key.
    pub(crate) fn new(ca_key: &str, cluster: &str) -> Result<Self, String> {
        let unusable = || "the CA's key cannot be used to seal passwords".to_owned();
        let secret = PrivateKeyDer::from_pem_slice(ca_key.as_bytes()).map_err(|_| unusable())?;
        let salt = Salt::new(HKDF_SHA256, b"ppswitch vault 1");
        let info = [b"https domain passwords of cluster ".as_slice(), cluster.as_bytes()];
        let key = salt.extract(secret.secret_der());
        let key = key.expand(&info, &AES_256_GCM).map_err(|_| unusable())?;
        Ok(Self { key: LessSafeKey::new(UnboundKey::from(key)) })
    }

    /// The password of a domain as it may be stored.
    ///
    /// # Errors
    /// If the machine gives no random bytes.
    pub(crate) fn seal(&self, domain: &str, password: &Password) -> Result<Vec<u8>, String> {
        let unsealed = || "the password cannot be sealed".to_owned();
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| unsealed())?;
        let plain = password.expose().as_bytes();
        // Room for the tag: the password is sealed in its place, and no copy of it stays behind.
        let mut secret = Vec::with_capacity(plain.len() + AES_256_GCM.tag_len());
        secret.extend_from_slice(plain);
        let nonce_used = Nonce::assume_unique_for_key(nonce);
        self.key
            .seal_in_place_append_tag(nonce_used, aad(domain), &mut secret)
            .map_err(|_| unsealed())?;
        Ok([&[SEALED_VERSION], nonce.as_slice(), &secret].concat())
    }

    /// The reverse of [`Vault::seal`].
    ///
    /// # Errors
    /// If it was sealed for another domain or cluster, or by a newer version.
    pub(crate) fn open(&self, domain: &str, sealed: &[u8]) -> Result<Password, String> {
        let wrong = |why: &str| {
            format!(
                "the password of {domain} cannot be read ({why}): set it again with `ppswctl domains set`"
            )
        };
        let (version, rest) = sealed.split_first().ok_or_else(|| wrong("there is none"))?;
        if *version != SEALED_VERSION {
            return Err(wrong(&format!("form {version}, this program reads {SEALED_VERSION}")));
        }
        let (nonce, secret) = rest.split_at_checked(NONCE_LEN).ok_or_else(|| wrong("cut short"))?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong("cut short"))?;
        let mut secret = Zeroizing::new(secret.to_vec());
        let opened = self
            .key
            .open_in_place(nonce, aad(domain), &mut secret)
            .map_err(|_| wrong("it was sealed with another key or for another domain"))?;
        let text = std::str::from_utf8(opened).map_err(|_| wrong("it is no text"))?;
        Ok(Password::new(text.to_owned()))
    }
}

/// Ties a sealed password to its domain.
fn aad(domain: &str) -> Aad<Vec<u8>> {
    Aad::from(format!("https password\0{domain}").into_bytes())
}

/// What an operator wants to set, checked; all but the password as it is stored.
///
/// # Errors
/// The first thing that is wrong, for people.
pub(crate) fn check(request: &pb::SetHttpsRequest) -> Result<Url, String> {
    check_domain(&request.domain)?;
    let url = Url::parse(&request.url)?;
    let user = &request.user;
    // RFC 7617 §2: the first colon ends the name.
    if user.is_empty()
        || user.len() > limits::NAME_BYTES_MAX
        || user.chars().any(|c| c == ':' || c.is_control())
    {
        return Err(format!(
            "expected a user name of 1 to {} bytes without `:`, not {user:?}",
            limits::NAME_BYTES_MAX
        ));
    }
    if request.ca_pem.len() > limits::CA_PEM_BYTES_MAX {
        return Err(format!("a CA file has at most {} bytes", limits::CA_PEM_BYTES_MAX));
    }
    if !request.ca_pem.is_empty() {
        let certificates = CertificateDer::pem_slice_iter(request.ca_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("the CA file is no PEM file: {error}"))?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in &certificates {
            roots
                .add(certificate.clone())
                .map_err(|error| format!("a certificate of the CA file cannot be used: {error}"))?;
        }
        if certificates.is_empty() {
            return Err("the CA file has no certificate in it; expected PEM".to_owned());
        }
    }
    Ok(url)
}

/// # Errors
/// If a managed domain cannot have this name.
pub(crate) fn check_domain(domain: &str) -> Result<(), String> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
    };
    if domain.len() <= limits::NAME_BYTES_MAX && domain.split('.').all(label) {
        return Ok(());
    }
    Err(format!("expected a domain of a-z, 0-9, `-`, `_` and dots, not {domain:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki;

    fn vault(key: &str) -> Vault {
        Vault::new(key, "c0ffee").unwrap()
    }

    #[test]
    fn a_password_is_sealed_for_its_domain_and_cluster() {
        let key = pki::new_key().unwrap();
        let password = Password::new("pass:wörd".to_owned());
        let sealed = vault(&key).seal("d.example", &password).unwrap();
        assert!(!sealed.windows(4).any(|window| window == b"pass"));
        assert_eq!(vault(&key).open("d.example", &sealed).unwrap().expose(), "pass:wörd");
        // On a member that joined, the key's file ends otherwise.
        assert!(vault(&format!("{}\n\n", key.trim())).open("d.example", &sealed).is_ok());
        let again = vault(&key).seal("d.example", &password).unwrap();
        assert_ne!(sealed, again, "two seals of one password have nothing in common");
        let refused = |vault: &Vault, domain: &str, sealed: &[u8]| {
            let why = vault.open(domain, sealed).err().unwrap();
            assert!(why.contains("set it again") && !why.contains("wörd"), "{why}");
        };
        refused(&vault(&key), "e.example", &sealed);
        refused(&vault(&pki::new_key().unwrap()), "d.example", &sealed);
        refused(&Vault::new(&key, "dead").unwrap(), "d.example", &sealed);
        for cut in 0..sealed.len() {
            refused(&vault(&key), "d.example", &sealed[..cut]);
        }
        for byte in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[byte] ^= 1;
            refused(&vault(&key), "d.example", &changed);
        }
        assert!(Vault::new("no key", "c0ffee").is_err());
    }

    #[test]
    fn passwords_are_shown_nowhere() {
        let password = Password::new("hunter2".to_owned());
        assert_eq!(format!("{password:?}"), "Password(…)");
        let request = pb::SetHttpsRequest { password: "hunter2".into(), ..Default::default() };
        let shown = format!("{request:?}");
        assert!(shown.contains("domain") && !shown.contains("hunter2"), "{shown}");
        assert!(password.check().is_ok());
        for bad in [String::new(), "a\nb".to_owned(), "x".repeat(limits::PASSWORD_BYTES_MAX + 1)] {
            assert!(Password::new(bad).check().is_err());
        }
    }

    fn request(url: &str) -> pb::SetHttpsRequest {
        pb::SetHttpsRequest {
            domain: "d.example".into(),
            url: url.into(),
            user: "ppsw".into(),
            password: "x".into(),
            ca_pem: String::new(),
        }
    }

    #[test]
    fn only_https_without_a_password_in_the_url() {
        let told = |url: &str| check(&request(url)).map(|url| url.to_string());
        assert_eq!(told("https://www.x.example/a?b#c").unwrap(), "https://www.x.example/a?b");
        assert_eq!(told("https://[2001:db8::1]:8443").unwrap(), "https://[2001:db8::1]:8443/");
        assert_eq!(told("HTTPS://BÜCHER.example/").unwrap(), "https://xn--bcher-kva.example/");
        for (url, expected) in [
            ("http://www.x.example/", "begins with https://"),
            ("file:///etc/passwd", "begins with https://"),
            ("https://u@www.x.example/", "--user"),
            ("https://u:hunter2@www.x.example/", "--user"),
            ("https://:hunter2@www.x.example/", "--user"),
            ("www.x.example/a", "no URL"),
            ("https://", "no URL"),
        ] {
            let why = told(url).unwrap_err();
            assert!(why.contains(expected) && !why.contains("hunter2"), "{url}: {why}");
        }
        assert!(told(&format!("https://x.example/{}", "a".repeat(limits::URL_BYTES_MAX))).is_err());
    }

    #[test]
    fn what_is_wrong_with_the_rest_is_said() {
        let good = request("https://x.example/");
        let with = |change: &dyn Fn(&mut pb::SetHttpsRequest)| {
            let mut request = good.clone();
            change(&mut request);
            check(&request).err()
        };
        assert_eq!(with(&|_| {}), None);
        for domain in ["", "D.example", "../x", "a..b", ".a", "a b", "a/b"] {
            let why = with(&|r| r.domain = domain.to_owned()).unwrap();
            assert!(why.contains("expected a domain"), "{why}");
        }
        assert!(with(&|r| r.user = "a:b".to_owned()).unwrap().contains("user name"));
        assert!(with(&|r| r.user.clear()).unwrap().contains("user name"));
        let ca = pki::Authority::found("c0ffee", ppsw_spool::env::UnixMs(1_790_000_000_000));
        let ca = ca.unwrap().0.certificate().to_owned();
        assert_eq!(with(&|r| r.ca_pem.clone_from(&ca)), None);
        assert!(with(&|r| r.ca_pem = "x".to_owned()).unwrap().contains("no certificate"));
        let broken = ca.replace('A', "B");
        assert!(with(&|r| r.ca_pem.clone_from(&broken)).is_some());
    }
}
