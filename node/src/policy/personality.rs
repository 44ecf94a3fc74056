//! Personalities: what a server address makes of us. From the table `addrparams`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use foldhash::quality::RandomState;

use super::{Options, Personality, source::parse_size};
use crate::tables::{TableError, Tables};

/// The table that gives parameters of server and client addresses.
const TABLE: &str = "addrparams";
/// What its entries may say; see the comment at its head in the paper, appendix 9.3.
const KNOWN: [&str; 6] = ["name", "acl", "domain", "msgsizelim", "benice", "mua"];

/// All entries of `addrparams`, parsed.
#[derive(Debug, Default)]
pub(crate) struct Personalities {
    entries: HashMap<IpAddr, BTreeMap<Box<str>, Box<str>>, RandomState>,
    servers: HashMap<IpAddr, Personality, RandomState>,
    /// That of an address without entry.
    local: Personality,
}

impl Personalities {
    pub(crate) fn compile(tables: &Tables, options: &Options) -> Result<Self, Vec<TableError>> {
        let mut found = Self { local: local(options), ..Self::default() };
        let mut errors = Vec::new();
        for (key, value, line) in tables.entries(TABLE) {
            if let Err(what) = found.entry(key, value, options) {
                let file = format!("tables/{TABLE}");
                errors.push(TableError { file, line, what });
            }
        }
        errors.sort_by_key(|error| error.line);
        if errors.is_empty() { Ok(found) } else { Err(errors) }
    }

    /// Names, each once.
    pub(crate) fn names(&self) -> Vec<String> {
        let all = self.servers.values().chain([&self.local]);
        let names: BTreeSet<&str> = all.map(|personality| personality.acl.as_str()).collect();
        names.into_iter().map(str::to_owned).collect()
    }

    /// The personality of a server address.
    pub(crate) fn at(&self, server: IpAddr) -> &Personality {
        self.servers.get(&server.to_canonical()).unwrap_or(&self.local)
    }

    /// Whether this is an address of a personality: one of ours.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.servers.contains_key(&address.to_canonical())
    }

    /// A parameter of an address; what says no (`no`, `0`, `false`, nothing) is still given.
    pub(crate) fn parameter(&self, address: IpAddr, name: &str) -> Option<&str> {
        self.entries.get(&address.to_canonical())?.get(name).map(|value| &**value)
    }

    /// ACLs that are named, with one of the addresses that do.
    pub(crate) fn acls(&self) -> BTreeMap<&str, IpAddr> {
        self.servers.iter().map(|(address, p)| (p.acl.as_str(), *address)).collect()
    }

    fn entry(&mut self, key: &str, value: &str, options: &Options) -> Result<(), String> {
        let address: IpAddr =
            key.parse().map_err(|_| format!("{key:?} is no IP address; expected one"))?;
        let mut parameters = BTreeMap::new();
        for word in value.split_whitespace() {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| format!("expected name=value, found {word:?}"))?;
            if !KNOWN.contains(&name) {
                let known = KNOWN.join(", ");
                return Err(format!("unknown parameter {name:?}; known are: {known}"));
            }
            if parameters.insert(name.into(), value.into()).is_some() {
                return Err(format!("{name:?} is given twice; remove one"));
            }
        }
        if let Some(personality) = personality(&parameters, options)? {
            self.servers.insert(address.to_canonical(), personality);
        }
        self.entries.insert(address.to_canonical(), parameters);
        Ok(())
    }
}

fn personality(
    parameters: &BTreeMap<Box<str>, Box<str>>,
    options: &Options,
) -> Result<Option<Personality>, String> {
    let get = |name: &str| parameters.get(name).map(|value| value.to_string());
    let Some(acl) = get("acl") else {
        return match get("name").or_else(|| get("domain")).or_else(|| get("msgsizelim")) {
            Some(_) => Err("a server address needs acl=".to_owned()),
            None => Ok(None),
        };
    };
    let size_limit = match get("msgsizelim") {
        Some(text) => parse_size(&text)
            .ok_or_else(|| format!("msgsizelim={text}: expected a size like 25M"))?,
        None => options.message_size_limit,
    };
    let submit = acl == "submit";
    Ok(Some(Personality {
        name: get("name").ok_or("a server address needs name=")?,
        domain: get("domain"),
        size_limit,
        pipelining: !submit,
        normalise_line_ends: submit,
        acl,
    }))
}

/// What an address without entry is: relays for this host only.
fn local(options: &Options) -> Personality {
    Personality {
        name: "localhost".to_owned(),
        acl: "local".to_owned(),
        domain: None,
        size_limit: options.message_size_limit,
        pipelining: true,
        normalise_line_ends: false,
    }
}
