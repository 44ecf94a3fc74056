//! As whom a program runs.

use std::path::Path;

use crate::{files, limits::PASSWD_BYTES_MAX};

/// A user of this machine.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) home: String,
    /// User and group to change to; `None`: this process is that user.
    pub(super) becomes: Option<(u32, u32)>,
}

/// One line of the user database.
struct Entry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

impl User {
    /// `NAME` or `UID:GID`, or who this process is. An error says what somebody has to mend.
    pub(super) fn of(wanted: Option<&str>) -> Result<Self, String> {
        let path = Path::new("/etc/passwd");
        // Without it there are numbers.
        let passwd = files::read(path, PASSWD_BYTES_MAX).unwrap_or_default();
        let passwd = String::from_utf8_lossy(&passwd);
        Self::choose(wanted, rustix::process::geteuid().as_raw(), &passwd)
    }

    fn choose(wanted: Option<&str>, own: u32, passwd: &str) -> Result<Self, String> {
        let find = |test: &dyn Fn(&Entry) -> bool| passwd.lines().filter_map(entry).find(test);
        let Some(wanted) = wanted else {
            if own == 0 {
                return Err(
                    "it has no user, and programs are not run as root unless user=\"root\" \
                            says so"
                        .to_owned(),
                );
            }
            let found = find(&|entry| entry.uid == own);
            let (name, home) = found.map_or_else(Default::default, |e| (e.name, e.home));
            return Ok(Self { name, home, becomes: None });
        };
        let numbers = wanted.split_once(':');
        let numbers = numbers.and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
        let found = match numbers {
            Some((uid, gid)) => {
                let known = find(&|entry| entry.uid == uid);
                let (name, home) = known.map_or_else(Default::default, |e| (e.name, e.home));
                Entry { name, uid, gid, home }
            }
            None => find(&|entry| entry.name == wanted).ok_or_else(|| {
                format!("there is no user {wanted:?} in /etc/passwd; make it, or say UID:GID")
            })?,
        };
        if found.uid != own && own != 0 {
            return Err(format!(
                "it is to run as {wanted}, which only root can do; run ppswd as root, or leave user out"
            ));
        }
        let becomes = (found.uid != own).then_some((found.uid, found.gid));
        Ok(Self { name: found.name, home: found.home, becomes })
    }
}

fn entry(line: &str) -> Option<Entry> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
    let home = fields.nth(1)?.to_owned();
    Some(Entry { name, uid, gid, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nlist:x:38:39:Lists:/var/list:/bin/false\n";

    #[test]
    fn users_are_found_and_root_is_not_taken_by_accident() {
        let user = |wanted, own| User::choose(wanted, own, PASSWD);
        let list = |becomes| User { name: "list".into(), home: "/var/list".into(), becomes };
        assert_eq!(user(Some("list"), 0), Ok(list(Some((38, 39)))));
        assert_eq!(user(Some("38:1"), 0), Ok(list(Some((38, 1)))));
        assert_eq!(user(Some("list"), 38), Ok(list(None)));
        assert_eq!(user(None, 38), Ok(list(None)));
        assert_eq!(user(Some("7:8"), 0).unwrap().becomes, Some((7, 8)));
        assert_eq!(user(Some("root"), 0).unwrap().becomes, None);
        assert!(user(None, 0).is_err() && user(Some("list"), 5).is_err());
        assert!(user(Some("nobody"), 0).unwrap_err().contains("no user \"nobody\""));
    }
}
