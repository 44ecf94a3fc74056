//! Options of a transport that say how it talks to hosts.

use std::path::PathBuf;

use kdl::KdlNode;

use crate::{
    limits::MESSAGES_PER_CONNECTION_MAX,
    policy::{
        Compiler,
        source::{Setting, number},
    },
    route::{Auth, ClientOptions, Tls},
};

pub(super) const WORDS: [&str; 7] = [
    "auth",
    "auth-user",
    "auth-password-file",
    "chunking",
    "connection-max-messages",
    "eight-bit",
    "tls-ca-file",
];

/// What a transport says, before it is known to agree.
#[derive(Debug, Default)]
pub(super) struct Said {
    options: ClientOptions,
    mechanism: Option<String>,
    user: Option<String>,
    password_file: Option<PathBuf>,
}

impl Said {
    /// Takes one of [`WORDS`]. `None`: there is an error about it.
    pub(super) fn set(&mut self, setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Option<()> {
        let errors = &mut compiler.errors;
        match setting.name {
            "connection-max-messages" => {
                let entry = setting.value("a number", errors)?;
                let most = number(entry, u64::from(MESSAGES_PER_CONNECTION_MAX), errors)?;
                if most == 0 {
                    errors.at(setting.span, "expected a number from 1 on");
                    return None;
                }
                self.options.connection_max_messages = u32::try_from(most).ok()?;
            }
            "chunking" => self.options.chunking = setting.flag(errors),
            "eight-bit" => match setting.text("send or bounce", errors)? {
                "send" => self.options.eight_bit_strict = false,
                "bounce" => self.options.eight_bit_strict = true,
                other => errors.unknown(setting.span, "eight-bit", other, ["send", "bounce"]),
            },
            "auth" => match setting.text("external or plain", errors)? {
                known @ ("external" | "plain") => self.mechanism = Some(known.to_owned()),
                other => errors.unknown(setting.span, "auth", other, ["external", "plain"]),
            },
            "auth-user" => {
                let user = setting.text("a name", errors)?;
                if user.contains('\0') || user.len() > USER_BYTES_MAX {
                    let what = format!("expected a name of at most {USER_BYTES_MAX} bytes");
                    errors.at(setting.span, what);
                    return None;
                }
                self.user = Some(user.to_owned());
            }
            "auth-password-file" => self.password_file = Some(path(setting, compiler)?),
            "tls-ca-file" => self.options.tls_ca_file = Some(path(setting, compiler)?),
            _ => {}
        }
        Some(())
    }

    /// All together. `None`: there is an error about it.
    pub(super) fn options(
        self,
        node: &KdlNode,
        tls: Tls,
        compiler: &mut Compiler<'_>,
    ) -> Option<ClientOptions> {
        let mut options = self.options;
        let encrypted = matches!(tls, Tls::Must | Tls::Verify);
        let mut wrong = |what: &str| {
            compiler.errors.at(node.name().span(), what);
            None
        };
        options.auth = match (self.mechanism.as_deref(), self.user, self.password_file) {
            (Some("plain"), Some(user), Some(password_file)) if encrypted => {
                Some(Auth::Plain { user, password_file })
            }
            (Some("plain"), Some(_), Some(_)) => {
                return wrong(
                    "auth=\"plain\" needs tls=\"must\" or tls=\"verify\": a password is not sent in plain",
                );
            }
            (Some("plain"), ..) => {
                return wrong("auth=\"plain\" needs auth-user and auth-password-file");
            }
            (Some(_), user, None) => Some(Auth::External { identity: user.unwrap_or_default() }),
            (Some(_), _, Some(_)) => {
                return wrong("auth-password-file is for auth=\"plain\"");
            }
            (None, None, None) => None,
            (None, ..) => return wrong("auth-user and auth-password-file need auth"),
        };
        if options.tls_ca_file.is_some() && tls != Tls::Verify {
            return wrong("tls-ca-file is for tls=\"verify\"");
        }
        Some(options)
    }
}

/// Longer names fit no command line (RFC 4954 §4.3: 12,288 bytes of base64).
const USER_BYTES_MAX: usize = 1_000;

fn path(setting: &Setting<'_>, compiler: &mut Compiler<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(setting.text("a full path", &mut compiler.errors)?);
    if !path.is_absolute() {
        compiler.errors.at(setting.span, "expected a full path: it is a file of each node");
        return None;
    }
    Some(path)
}
