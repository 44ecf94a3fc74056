//! A map in little memory: all keys and values in one text, entries and an index of numbers beside it. A million entries
//! are four allocations, so that dropping or sharing them costs nothing that mail would notice.

use std::{hash::BuildHasher, net::IpAddr};

use foldhash::quality::RandomState;
use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use crate::limits;

/// No entry has this number.
const FREE: u32 = u32::MAX;

/// Keys (in lower case) with values. Immutable once it is built.
#[derive(Debug, Default)]
pub(super) struct Map {
    /// Key and value of each entry, one after the other.
    text: Box<str>,
    /// In the order of the file.
    entries: Box<[Entry]>,
    /// Numbers of entries by hash of the key: open addressing, at most half full. Its length is a power of two.
    slots: Box<[u32]>,
    /// Keys are of users, too, and nobody must be able to choose ones that collide: each map has a seed of its own.
    hasher: RandomState,
    /// Numbers of entries by network, if every key is one.
    nets: Option<Box<JointPrefixMap<IpNet, u32>>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u32,
    value_length: u32,
    line: u32,
    key_length: u16,
}

/// An entry as it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Read<'a> {
    pub(super) key: &'a str,
    pub(super) value: &'a str,
    pub(super) line: u32,
}

impl Map {
    /// For so many entries with so many bytes of keys and values.
    pub(super) fn builder(entries: usize, bytes: usize) -> Builder {
        let slots = (entries * 2).next_power_of_two();
        Builder {
            text: String::with_capacity(bytes),
            entries: Vec::with_capacity(entries),
            slots: vec![FREE; slots].into(),
            hasher: RandomState::default(),
        }
    }

    /// The entry with this key, which is in lower case.
    pub(super) fn entry(&self, key: &str) -> Option<Read<'_>> {
        if self.slots.is_empty() {
            return None;
        }
        let found = probe(&self.slots, self.hasher.hash_one(key), |number| {
            self.read(number).is_some_and(|entry| entry.key == key)
        });
        found.ok().and_then(|number| self.read(number))
    }

    /// The value of this key, which is in lower case.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.entry(key).map(|entry| entry.value)
    }

    /// The entry of the longest prefix that holds an address.
    pub(super) fn net(&self, address: IpAddr) -> Option<Read<'_>> {
        let nets = self.nets.as_ref()?;
        let (_, number) = nets.get_lpm(&IpNet::from(address.to_canonical()))?;
        self.read(*number)
    }

    pub(super) const fn is_nets(&self) -> bool {
        self.nets.is_some()
    }

    /// In the order of the file.
    pub(super) fn entries(&self) -> impl Iterator<Item = Read<'_>> {
        // Fewer than FREE.
        (0..self.entries.len() as u32).filter_map(|number| self.read(number))
    }

    pub(super) const fn len(&self) -> usize {
        self.entries.len()
    }

    /// What it takes of memory; of networks, roughly.
    pub(super) fn bytes(&self) -> usize {
        // A node of the trie: prefix, value and two children.
        let nets = if self.is_nets() { self.len() * 64 } else { 0 };
        self.text.len() + size_of_val(&*self.entries) + size_of_val(&*self.slots) + nets
    }

    fn read(&self, number: u32) -> Option<Read<'_>> {
        read(&self.text, self.entries.get(number as usize)?)
    }
}

/// A map that grows.
pub(super) struct Builder {
    text: String,
    entries: Vec<Entry>,
    slots: Box<[u32]>,
    hasher: RandomState,
}

impl Builder {
    /// Adds an entry, unless the key (in any case) is there: then gives its line.
    pub(super) fn insert(&mut self, key: &str, value: &str, line: u32) -> Result<(), u32> {
        let at = self.text.len();
        self.text.push_str(key);
        self.text[at..].make_ascii_lowercase();
        let key = &self.text[at..];
        let (text, entries) = (&self.text, &self.entries);
        let same = |number: u32| {
            let entry = entries.get(number as usize).and_then(|entry| read(text, entry));
            entry.is_some_and(|entry| entry.key == key)
        };
        match probe(&self.slots, self.hasher.hash_one(key), same) {
            Ok(number) => {
                let first = self.entries.get(number as usize).map_or(0, |entry| entry.line);
                self.text.truncate(at);
                Err(first)
            }
            Err(slot) => {
                self.text.push_str(value);
                // All in range: see the limits on a table's bytes, entries and keys below.
                self.slots[slot] = self.entries.len() as u32;
                self.entries.push(Entry {
                    at: at as u32,
                    key_length: (self.text.len() - at - value.len()) as u16,
                    value_length: value.len() as u32,
                    line,
                });
                Ok(())
            }
        }
    }

    /// The map; with its networks, if every key is one.
    pub(super) fn finish(self, net: impl Fn(&str) -> Option<IpNet>) -> Map {
        let map = Map {
            text: self.text.into(),
            entries: self.entries.into(),
            slots: self.slots,
            hasher: self.hasher,
            nets: None,
        };
        let nets: Option<Vec<IpNet>> = map.entries().map(|entry| net(entry.key)).collect();
        let Some(nets) = nets else { return map };
        let mut trie = JointPrefixMap::new();
        for (number, net) in (0_u32..).zip(nets) {
            trie.insert(net, number);
        }
        Map { nets: Some(Box::new(trie)), ..map }
    }
}

fn read<'a>(text: &'a str, entry: &Entry) -> Option<Read<'a>> {
    let (key, rest) = text.get(entry.at as usize..)?.split_at_checked(entry.key_length.into())?;
    let value = rest.get(..entry.value_length as usize)?;
    Some(Read { key, value, line: entry.line })
}

/// The number of the entry that is looked for, or the slot where it belongs. There is a free slot: at most half of them
/// are used.
fn probe(slots: &[u32], hash: u64, same: impl Fn(u32) -> bool) -> Result<u32, usize> {
    let mask = slots.len() - 1;
    let mut slot = hash as usize & mask;
    loop {
        match slots[slot] {
            FREE => return Err(slot),
            number if same(number) => return Ok(number),
            _ => slot = (slot + 1) & mask,
        }
    }
}

const _: () = assert!(limits::TABLE_BYTES_MAX < u32::MAX as u64);
const _: () = assert!(limits::TABLE_ENTRIES_MAX < FREE as usize);
const _: () = assert!(limits::TABLE_KEY_BYTES_MAX < u16::MAX as usize);

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(pairs in proptest::collection::vec(("[a-cA-C]{1,3}", "[x-zé]{0,3}"), 0..200)) {
            let bytes = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
            let mut builder = Map::builder(pairs.len(), bytes);
            let mut model: HashMap<String, (String, u32)> = HashMap::new();
            for (line, (key, value)) in (1..).zip(&pairs) {
                let first = model.get(&key.to_lowercase()).map(|(_, line)| *line);
                let inserted = builder.insert(key, value, line);
                prop_assert_eq!(inserted.err(), first);
                model.entry(key.to_lowercase()).or_insert_with(|| (value.clone(), line));
            }
            let map = builder.finish(|_| None);
            prop_assert_eq!(map.len(), model.len());
            for (key, (value, line)) in &model {
                prop_assert_eq!(map.entry(key), Some(Read { key, value, line: *line }));
            }
            for other in ["d", "", "aaaa"] {
                prop_assert_eq!(map.get(other), None);
            }
            let lines: Vec<u32> = map.entries().map(|entry| entry.line).collect();
            prop_assert!(lines.is_sorted(), "in the order of the file");
        }
    }

    #[test]
    fn a_million_entries_take_little_more_than_their_text() {
        let mut builder = Map::builder(1_000_000, 36_000_000);
        for n in 0..1_000_000 {
            let key = format!("user{n:07}");
            builder.insert(&key, &format!("{key}@store.example"), n).unwrap();
        }
        let map = builder.finish(|_| None);
        assert_eq!(map.get("user0123456"), Some("user0123456@store.example"));
        let beside = map.bytes() - map.text.len();
        assert!(beside <= 25_000_000, "{beside}");
        assert_eq!(Map::default().get("x"), None);
    }
}
