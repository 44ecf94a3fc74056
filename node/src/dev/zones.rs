//! The names that `dev` knows: zone files that one can edit, and synthesised names of loopback addresses.
//!
//! Each `NAME.zone` below the directory is the zone NAME in the usual format (RFC 1035 §5; `$ORIGIN` is set to it).
//! Wildcards work (RFC 4592); a record in a file stands before a synthesised one. A file that can't be parsed makes
//! its whole zone answer SERVFAIL, as with any other server: `broken.example.org.zone` is there for that.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    str::FromStr,
};

use hickory_proto::{
    rr::{
        LowerName, Name, RData, Record, RecordSet, RecordType, RrKey,
        rdata::{A, PTR},
    },
    serialize::txt::Parser,
};

use super::files::{self, Stamp};
use crate::limits::{ZONE_FILE_BYTES_MAX, ZONE_TTL_SECONDS};

/// Where the synthesised names are: `127-10-1-1.host.example`.
const HOSTS: &str = "host.example.";
/// Where the names of addresses are looked up (RFC 1035 §3.5).
const REVERSE: &str = "in-addr.arpa.";
/// Aliases that are followed for one question.
const ALIASES_MAX: usize = 8;

/// What a question comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Records; those of an alias first.
    Records(Vec<Record>),
    /// The name exists, without such a record. With the zone's SOA, if it has one.
    NoRecord(Option<Record>),
    /// NXDOMAIN. With the zone's SOA, if it has one.
    NoName(Option<Record>),
    /// SERVFAIL: the zone's file could not be read.
    Failure,
}

/// All zones of one state of the directory.
#[derive(Debug, Default)]
pub(super) struct Zones {
    zones: BTreeMap<LowerName, Option<Zone>>,
    stamps: Vec<(PathBuf, Stamp)>,
}

#[derive(Debug, Default)]
struct Zone {
    records: BTreeMap<RrKey, RecordSet>,
    /// Every name that has records, and the names above it within the zone.
    names: BTreeSet<LowerName>,
}

impl Zones {
    /// Reads the zone files of `dir`. Gives the zones, and what is wrong with the files that could not be read.
    pub(super) fn load(dir: &Path) -> std::io::Result<(Self, Vec<String>)> {
        let stamps = files::zone_files(dir)?;
        let mut zones = BTreeMap::new();
        let mut faults = Vec::new();
        for (path, _) in &stamps {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let Ok(origin) = Name::from_str(&format!("{stem}.")) else {
                faults.push(format!("{}: its name is no domain", path.display()));
                continue;
            };
            let zone = match read_zone(path, &origin) {
                Ok(zone) => Some(zone),
                Err(fault) => {
                    faults.push(format!("{}: {fault}", path.display()));
                    None
                }
            };
            zones.insert(LowerName::new(&origin), zone);
        }
        Ok((Self { zones, stamps }, faults))
    }

    /// Whether the files of `dir` are others than those that were read.
    pub(super) fn stale(&self, dir: &Path) -> bool {
        files::zone_files(dir).is_ok_and(|stamps| stamps != self.stamps)
    }

    /// Answers a question.
    pub(super) fn answer(&self, name: &LowerName, kind: RecordType) -> Answer {
        let mut records = Vec::new();
        let mut name = name.clone();
        for _ in 0..ALIASES_MAX {
            match self.answer_once(&name, kind) {
                Answer::Records(found) => {
                    let alias = match (found.as_slice(), kind) {
                        (_, RecordType::CNAME) => None,
                        ([one], _) => match &one.data {
                            RData::CNAME(target) => Some(LowerName::new(&target.0)),
                            _ => None,
                        },
                        _ => None,
                    };
                    records.extend(found);
                    match alias {
                        Some(target) => name = target,
                        None => return Answer::Records(records),
                    }
                }
                // The alias itself is an answer, whatever its target comes to.
                _ if !records.is_empty() => return Answer::Records(records),
                other => return other,
            }
        }
        Answer::Failure
    }

    fn answer_once(&self, name: &LowerName, kind: RecordType) -> Answer {
        let mut origin = name.clone();
        while !origin.is_root() {
            match self.zones.get(&origin) {
                Some(Some(zone)) => match zone.answer(&origin, name, kind) {
                    Answer::NoName(soa) => {
                        return synthesised(name, kind).unwrap_or(Answer::NoName(soa));
                    }
                    answer => return answer,
                },
                Some(None) => return Answer::Failure,
                None => origin = origin.base_name(),
            }
        }
        synthesised(name, kind).unwrap_or(Answer::NoName(None))
    }
}

impl Zone {
    fn answer(&self, origin: &LowerName, name: &LowerName, kind: RecordType) -> Answer {
        if self.names.contains(name) {
            return self
                .records_of(name, name, kind)
                .unwrap_or_else(|| Answer::NoRecord(self.soa(origin)));
        }
        // The closest name that exists decides whether a wildcard applies (RFC 4592 §3.3.1).
        let mut encloser = name.base_name();
        while !self.names.contains(&encloser) && origin.zone_of(&encloser) && encloser != *origin {
            encloser = encloser.base_name();
        }
        let Ok(wildcard) =
            Name::from_str("*").and_then(|star| star.append_domain(&Name::from(encloser)))
        else {
            return Answer::NoName(self.soa(origin));
        };
        let wildcard = LowerName::new(&wildcard);
        if !self.names.contains(&wildcard) {
            return Answer::NoName(self.soa(origin));
        }
        self.records_of(&wildcard, name, kind).unwrap_or_else(|| Answer::NoRecord(self.soa(origin)))
    }

    /// Records of `owner`, given out under `name`.
    fn records_of(&self, owner: &LowerName, name: &LowerName, kind: RecordType) -> Option<Answer> {
        let set = [kind, RecordType::CNAME]
            .into_iter()
            .find_map(|kind| self.records.get(&RrKey::new(owner.clone(), kind)))?;
        let records = set.records_without_rrsigs().cloned().map(|mut record| {
            record.name = Name::from(name.clone());
            record
        });
        Some(Answer::Records(records.collect()))
    }

    fn soa(&self, origin: &LowerName) -> Option<Record> {
        let set = self.records.get(&RrKey::new(origin.clone(), RecordType::SOA))?;
        set.records_without_rrsigs().next().cloned()
    }
}

fn read_zone(path: &Path, origin: &Name) -> Result<Zone, String> {
    let text = files::read_text(path, ZONE_FILE_BYTES_MAX).map_err(|error| error.to_string())?;
    let (_, records) =
        Parser::new(text, None, Some(origin.clone())).parse().map_err(|error| error.to_string())?;
    let mut names = BTreeSet::from([LowerName::new(origin)]);
    for key in records.keys() {
        let mut name = key.name().clone();
        while LowerName::new(origin).zone_of(&name) && names.insert(name.clone()) {
            name = name.base_name();
        }
    }
    Ok(Zone { records, names })
}

/// Names of loopback addresses, both ways.
fn synthesised(name: &LowerName, kind: RecordType) -> Option<Answer> {
    let text = name.to_string();
    if let Some(labels) = text.strip_suffix(HOSTS).and_then(|rest| rest.strip_suffix('.')) {
        let address = parse_address(labels, '-').filter(|&address| has_name(address))?;
        return Some(one(name, kind, RData::A(A(address))));
    }
    let labels = text.strip_suffix(REVERSE)?.strip_suffix('.')?;
    let [a, b, c, d] = parse_address(labels, '.')?.octets();
    if !has_name(Ipv4Addr::new(d, c, b, a)) {
        return None;
    }
    let host = Name::from_str(&format!("{d}-{c}-{b}-{a}.{HOSTS}")).ok()?;
    Some(one(name, kind, RData::PTR(PTR(host))))
}

fn one(name: &LowerName, kind: RecordType, data: RData) -> Answer {
    if data.record_type() != kind {
        return Answer::NoRecord(None);
    }
    Answer::Records(vec![Record::from_rdata(Name::from(name.clone()), ZONE_TTL_SECONDS, data)])
}

fn parse_address(text: &str, separator: char) -> Option<Ipv4Addr> {
    let octets: Vec<u8> = text.split(separator).map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?))
}

/// 127.0.0.0/9 (the machines of the organisation) and 127.200.0.0/17 (foreigners with a name).
fn has_name(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [127, 0..=127, _, _] | [127, 200, 0..=127, _])
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test\'s own files")]
mod tests {
    use std::fs;

    use super::*;

    fn ask(zones: &Zones, name: &str, kind: RecordType) -> Result<Vec<String>, &'static str> {
        match zones.answer(&LowerName::new(&Name::from_str(name).unwrap()), kind) {
            Answer::Records(records) => {
                Ok(records.iter().map(|record| record.data.to_string()).collect())
            }
            Answer::NoRecord(_) => Err("no record"),
            Answer::NoName(_) => Err("no name"),
            Answer::Failure => Err("failure"),
        }
    }

    #[test]
    fn files_wildcards_aliases_and_faults() {
        let dir = tempfile::tempdir().unwrap();
        let zone = "$TTL 5\n@ SOA ns host 1 2 3 4 5\n@ MX 10 sink\nsink A 127.10.0.1\na.b TXT \"x y\"\n\
                    www CNAME sink\n*.w A 127.10.0.2\nloop CNAME loop\n";
        fs::write(dir.path().join("example.org.zone"), zone).unwrap();
        fs::write(dir.path().join("broken.example.org.zone"), "$TTL 5\n@ NONSENSE\n").unwrap();
        let (zones, faults) = Zones::load(dir.path()).unwrap();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(ask(&zones, "EXAMPLE.org.", RecordType::MX).unwrap(), ["10 sink.example.org."]);
        assert_eq!(
            ask(&zones, "www.example.org.", RecordType::A).unwrap(),
            ["sink.example.org.", "127.10.0.1"]
        );
        assert_eq!(ask(&zones, "q.r.w.example.org.", RecordType::A).unwrap(), ["127.10.0.2"]);
        assert_eq!(ask(&zones, "q.w.example.org.", RecordType::MX), Err("no record"));
        assert_eq!(ask(&zones, "b.example.org.", RecordType::A), Err("no record"));
        assert_eq!(ask(&zones, "c.b.example.org.", RecordType::A), Err("no name"));
        assert_eq!(ask(&zones, "loop.example.org.", RecordType::A), Err("failure"));
        assert_eq!(ask(&zones, "x.broken.example.org.", RecordType::A), Err("failure"));
        assert_eq!(ask(&zones, "example.net.", RecordType::A), Err("no name"));

        assert!(!zones.stale(dir.path()));
        fs::write(dir.path().join("example.net.zone"), "$TTL 5\n@ A 127.10.0.3\n").unwrap();
        assert!(zones.stale(dir.path()));
        let (zones, _) = Zones::load(dir.path()).unwrap();
        assert_eq!(ask(&zones, "example.net.", RecordType::A).unwrap(), ["127.10.0.3"]);
    }

    #[test]
    fn loopback_addresses_have_names_both_ways() {
        let zones = Zones::default();
        for (reverse, host, address) in [
            ("1.1.10.127.in-addr.arpa.", "127-10-1-1.host.example.", "127.10.1.1"),
            ("255.127.200.127.in-addr.arpa.", "127-200-127-255.host.example.", "127.200.127.255"),
        ] {
            assert_eq!(ask(&zones, reverse, RecordType::PTR).unwrap(), [host]);
            assert_eq!(ask(&zones, host, RecordType::A).unwrap(), [address]);
            assert_eq!(ask(&zones, host, RecordType::MX), Err("no record"));
        }
        assert_eq!(ask(&zones, "0.128.200.127.in-addr.arpa.", RecordType::PTR), Err("no name"));
        assert_eq!(ask(&zones, "127-200-128-0.host.example.", RecordType::A), Err("no name"));
        assert_eq!(ask(&zones, "1.0.0.10.in-addr.arpa.", RecordType::PTR), Err("no name"));
    }
}
