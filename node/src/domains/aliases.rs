//! The aliases file of a managed mail domain, as its managers keep it: a line `alias:address[,address…]` each.
//!
//! Stricter than the table that it becomes: managers hear of every line that is not an alias, with its number, before
//! anything of it is live.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt::Write as _,
};

use crate::{limits, smtp::mailbox_fault, tables::Tables};

/// Aliases without which a file is refused: somebody has to hear of trouble with the domain.
pub(crate) const REQUIRED: [&str; 3] = ["postmaster", "webmaster", "abuse"];

/// A file whose every line was understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Aliases {
    /// By local part in lower case.
    entries: BTreeMap<String, Alias>,
    /// Lines whose alias was there before.
    pub(crate) duplicates: Vec<Duplicate>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Alias {
    addresses: Vec<String>,
    line: usize,
    /// Of the line that it will be in the table.
    bytes: usize,
}

/// An alias that stands in two lines. Mail for it goes to the addresses of both.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {line}: {alias} is in line {first} already; mail for it goes to the addresses of both lines"
)]
pub(crate) struct Duplicate {
    pub(crate) alias: String,
    pub(crate) line: usize,
    pub(crate) first: usize,
}

/// A line that is no alias.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub(crate) struct LineError {
    pub(crate) line: usize,
    pub(crate) what: String,
}

/// How much there is in a file, or in the live copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) aliases: usize,
    /// Of all aliases together.
    pub(crate) addresses: usize,
}

impl Aliases {
    /// Reads a file. All errors at once, as far as anybody reads on.
    ///
    /// # Errors
    /// The lines that are no aliases.
    pub(crate) fn parse(content: &[u8]) -> Result<Self, Vec<LineError>> {
        let text = std::str::from_utf8(content).map_err(|error| {
            let line = content[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            vec![LineError { line, what: "not UTF-8; save the file in that encoding".to_owned() }]
        })?;
        // Some editors begin a file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut aliases = Self::default();
        let mut errors = Vec::new();
        for (line, text) in text.lines().enumerate().map(|(index, text)| (index + 1, text)) {
            if let Err(what) = aliases.line(line, text) {
                errors.push(LineError { line, what });
                if errors.len() == limits::CONFIGURATION_ERRORS_MAX {
                    break;
                }
            }
        }
        if errors.is_empty() { Ok(aliases) } else { Err(errors) }
    }

    /// Those of [`REQUIRED`] that are not there.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        REQUIRED.into_iter().filter(|alias| !self.entries.contains_key(*alias)).collect()
    }

    pub(crate) fn size(&self) -> Size {
        let addresses = self.entries.values().map(|alias| alias.addresses.len()).sum();
        Size { aliases: self.entries.len(), addresses }
    }

    /// The same as a table `domains/DOMAIN/aliases` (docs/policy.md), sorted: files that say the same give the same text.
    pub(crate) fn to_table(&self) -> String {
        let mut text = String::new();
        for (alias, entry) in &self.entries {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{alias}: {}", entry.addresses.join(", "));
        }
        text
    }

    fn line(&mut self, line: usize, text: &str) -> Result<(), String> {
        let text = without_comment(text).trim();
        if text.is_empty() {
            return Ok(());
        }
        if let Some(odd) = text.chars().find(|c| c.is_control() && *c != '\t') {
            return Err(format!("holds the control character {:?}; remove it", odd.to_string()));
        }
        let Some((alias, list)) = text.split_once(':') else {
            return Err(format!(
                "expected alias:address, saw {}; an alias is one line",
                shown(text)
            ));
        };
        let alias = local_part(alias.trim())?;
        let mut addresses = Vec::new();
        for item in list.split(',') {
            addresses.push(address(item.trim())?);
        }
        self.add(alias, addresses, line)
    }

    fn add(&mut self, alias: String, addresses: Vec<String>, line: usize) -> Result<(), String> {
        if self.entries.len() >= limits::DOMAIN_ALIASES_MAX {
            return Err(format!("a domain has at most {} aliases", limits::DOMAIN_ALIASES_MAX));
        }
        let entry = match self.entries.entry(alias) {
            Entry::Occupied(known) => {
                let first = known.get().line;
                self.duplicates.push(Duplicate { alias: known.key().clone(), line, first });
                known.into_mut()
            }
            Entry::Vacant(free) => {
                let bytes = free.key().len() + ": ".len();
                free.insert(Alias { addresses: Vec::new(), line, bytes })
            }
        };
        for address in addresses {
            if entry.addresses.contains(&address) {
                continue;
            }
            entry.bytes += address.len() + ", ".len();
            if entry.bytes > limits::DOMAIN_ALIAS_BYTES_MAX {
                return Err(format!(
                    "an alias has at most {} bytes of addresses; use a mailing list",
                    limits::DOMAIN_ALIAS_BYTES_MAX
                ));
            }
            entry.addresses.push(address);
        }
        Ok(())
    }
}

impl Size {
    /// Of the live copy of a domain; `None` if it has none.
    pub(crate) fn live(tables: &Tables, domain: &str) -> Option<Self> {
        let table = table_name(domain);
        if !tables.has(&table) {
            return None;
        }
        let mut size = Self::default();
        for (_, value, _) in tables.entries(&table) {
            size.aliases += 1;
            size.addresses += addresses_of(value).count();
        }
        Some(size)
    }

    /// Whether less than three quarters of something would be left of it.
    pub(crate) fn would_shrink_to(self, new: Self) -> bool {
        let less = |old: usize, new: usize| new.saturating_mul(4) < old.saturating_mul(3);
        less(self.aliases, new.aliases) || less(self.addresses, new.addresses)
    }
}

/// Name of the table that holds a domain's aliases; its file has the same path.
pub(crate) fn table_name(domain: &str) -> String {
    format!("domains/{domain}/aliases")
}

/// The addresses in the value of an alias.
pub(crate) fn addresses_of(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|address| !address.is_empty())
}

/// A text of others on one line, and not too long.
pub(crate) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(limits::DOMAIN_TEXT_SHOWN).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{more}")
}

/// A comment begins at a `#` that stands first, or after a blank.
fn without_comment(line: &str) -> &str {
    let begins = |(at, _): &(usize, &str)| *at == 0 || line[..*at].ends_with([' ', '\t']);
    line.match_indices('#').find(begins).map_or(line, |(at, _)| &line[..at])
}

/// What stands before the colon, in lower case.
fn local_part(text: &str) -> Result<String, String> {
    let odd = |why: &str| Err(format!("{} cannot be an alias: {why}", shown(text)));
    if text.is_empty() {
        return Err("expected an alias before the colon".to_owned());
    }
    if text.contains('@') {
        return odd("write it without @ and domain");
    }
    if text.starts_with('*') {
        return odd("there are no wildcards; each address has its own line");
    }
    match mailbox_fault(&format!("{text}@alias.invalid")) {
        _ if text.contains('"') => odd("quotes are not possible here"),
        Some(fault) => odd(&fault),
        None => Ok(text.to_ascii_lowercase()),
    }
}

fn address(text: &str) -> Result<String, String> {
    let odd = |why: &str| Err(format!("{} cannot be an address: {why}", shown(text)));
    if text.is_empty() {
        return Err("expected an address after the colon and after each comma".to_owned());
    }
    // What other mail systems would run, write, or read.
    if text.starts_with(['|', '/', ':', '.']) {
        return odd("only addresses are possible here");
    }
    if text.starts_with('#') {
        return odd("a comment has a blank before its #");
    }
    if !text.contains('@') {
        return odd("write it with @ and its domain");
    }
    match mailbox_fault(text) {
        _ if text.contains('"') => odd("quotes are not possible here"),
        Some(fault) => odd(&fault),
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::Configuration;

    fn good(text: &str) -> Aliases {
        Aliases::parse(text.as_bytes()).unwrap_or_else(|errors| panic!("{errors:?}"))
    }

    fn tables(text: String) -> Tables {
        let files = [(table_name("d.example"), text.into_bytes())].into();
        Tables::from_files(&files).unwrap_or_else(|errors| panic!("{errors:?}"))
    }

    #[test]
    fn a_file_is_read_with_blanks_and_comments() {
        let aliases = good(
            "\u{feff}# Saint Botolph's\r\n\r\nwebmaster:xyz789@cam.ac.uk\r\n  Postmaster : a@x.example ,b@y.example # both\n\
             \t\nabuse:1@x.example,a#b@x.example #x\n#gone:c@x.example\n",
        );
        assert_eq!(
            aliases.to_table(),
            "abuse: 1@x.example, a#b@x.example\npostmaster: a@x.example, b@y.example\n\
             webmaster: xyz789@cam.ac.uk\n"
        );
        assert_eq!(aliases.size(), Size { aliases: 3, addresses: 5 });
        assert!(aliases.missing().is_empty() && aliases.duplicates.is_empty());
        assert_eq!(good("x:y@z.example").missing(), REQUIRED);
    }

    #[test]
    fn every_bad_line_is_told_with_its_number() {
        let lines = [
            ("fred", "expected alias:address, saw \"fred\""),
            (" ,more@x.example", "expected alias:address"),
            (":a@x.example", "expected an alias before the colon"),
            ("a:", "expected an address after the colon"),
            ("a:b@x.example,,c@x.example", "after each comma"),
            ("a:b@x.example,", "after each comma"),
            ("a:fred", "with @ and its domain"),
            ("a@d.example:b@x.example", "without @ and domain"),
            ("*:b@x.example", "no wildcards"),
            ("two words:b@x.example", "malformed local part"),
            ("\"a\":b@x.example", "quotes"),
            ("a:\"b c\"@x.example", "quotes"),
            ("a:b@x..example", "malformed domain"),
            ("a:b@c@x.example", "malformed domain"),
            ("a:b c@x.example", "malformed local part"),
            ("a:#b@x.example", "a comment has a blank"),
            ("a: #b@x.example", "an address after the colon"),
            ("a:c@x.example, #b@x.example", "after each comma"),
            ("a:|/bin/sh", "only addresses"),
            ("a:/etc/passwd@x", "only addresses"),
            ("a::include:/etc/passwd", "only addresses"),
            ("a::fail: gone", "only addresses"),
            ("a:A Person <b@x.example>", "malformed"),
            ("a:b@x.example\u{0}", "control character \"\\0\""),
            ("a:b@x.example\u{1b}[2J", "control character"),
            ("a:@r.example:b@x.example", "malformed"),
        ];
        let text: Vec<&str> = lines.iter().map(|(line, _)| *line).collect();
        let errors = Aliases::parse(text.join("\n").as_bytes()).unwrap_err();
        assert_eq!(errors.len(), lines.len(), "{errors:#?}");
        for (number, (error, (line, expected))) in errors.iter().zip(lines).enumerate() {
            assert_eq!(error.line, number + 1, "{line}: {error}");
            assert!(error.what.contains(expected), "{line}: {error}");
        }
        let binary = Aliases::parse(b"a:b@x.example\n\xff\xfe:x@y\n").unwrap_err();
        assert_eq!((binary.len(), binary[0].line), (1, 2), "{binary:?}");
        let many = "x\n".repeat(limits::CONFIGURATION_ERRORS_MAX + 5);
        let errors = Aliases::parse(many.as_bytes()).unwrap_err();
        assert_eq!(errors.len(), limits::CONFIGURATION_ERRORS_MAX);
    }

    #[test]
    fn an_alias_in_two_lines_has_the_addresses_of_both() {
        let aliases = good("a:b@x.example\nc:d@x.example\nA:b@x.example,e@x.example");
        assert_eq!(aliases.to_table(), "a: b@x.example, e@x.example\nc: d@x.example\n");
        let told: Vec<String> = aliases.duplicates.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("line 3: a is in line 1 already"), "{told:?}");
    }

    #[test]
    fn aliases_of_any_length_fit_into_the_table() {
        let address = |n: usize| format!("person{n}@department.example");
        let line = |from: usize, to: usize| {
            let list: Vec<String> = (from..to).map(address).collect();
            format!("all:{}\n", list.join(","))
        };
        let fits = line(0, 1_500);
        let _ = tables(good(&fits).to_table());
        let errors = Aliases::parse((fits + &line(1_500, 9_000)).as_bytes()).unwrap_err();
        assert!(errors[0].to_string().starts_with("line 2: an alias has at most"), "{errors:?}");
    }

    #[test]
    fn a_quarter_may_go_and_no_more() {
        let size = |aliases, addresses| Size { aliases, addresses };
        let live = size(100, 400);
        assert!(!live.would_shrink_to(size(75, 300)));
        assert!(live.would_shrink_to(size(74, 300)), "aliases");
        assert!(live.would_shrink_to(size(75, 299)), "addresses");
        assert!(!live.would_shrink_to(size(1_000, 1_000)));
        assert!(!Size::default().would_shrink_to(Size::default()));
        let tables = tables("a: b@x.example, c@x.example\nd: e@x.example\n".to_owned());
        assert_eq!(Size::live(&tables, "d.example"), Some(size(2, 3)));
        assert_eq!(Size::live(&tables, "e.example"), None);
    }

    /// One alias and its addresses, as the table has them.
    type Line = (String, Vec<String>);

    fn lines() -> impl Strategy<Value = Vec<Line>> {
        let word = "[a-zA-Z0-9!#$%&'+/=?^_`{|}~.-]{1,12}";
        let alias = word.prop_filter("no comment", |word| !word.starts_with('#'));
        let local = word.prop_filter("no pipe", |word| !word.starts_with(['|', '/', '.', '#']));
        let address = (local, "[a-z0-9]{1,8}(\\.[a-z0-9]{1,8}){0,2}")
            .prop_map(|(local, domain)| format!("{local}@{domain}"));
        prop::collection::vec((alias, prop::collection::vec(address, 1..4)), 0..20)
    }

    proptest! {
        /// What is read is what the table gives, whatever blanks and comments were there.
        #[test]
        fn a_file_and_its_table_say_the_same(lines in lines(), blank in "[ \t]{0,2}") {
            let mut text = String::new();
            let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (alias, addresses) in &lines {
                let list = addresses.join(&format!("{blank},{blank}"));
                text.push_str(&format!("{blank}{alias}{blank}:{blank}{list}{blank} # x\n\n"));
                let known = expected.entry(alias.to_ascii_lowercase()).or_default();
                for address in addresses {
                    if !known.contains(address) {
                        known.push(address.clone());
                    }
                }
            }
            let aliases = good(&text);
            let table = aliases.to_table();
            // The table reads back as an aliases file, too.
            prop_assert_eq!(&good(&table).to_table(), &table);
            let tables = tables(table);
            let name = table_name("d.example");
            let mut found = BTreeMap::new();
            for (key, value, _) in tables.entries(&name) {
                let list: Vec<String> = addresses_of(value).map(str::to_owned).collect();
                found.insert(key.to_owned(), list);
            }
            prop_assert_eq!(&found, &expected);
            if !expected.is_empty() {
                prop_assert_eq!(Size::live(&tables, "d.example"), Some(aliases.size()));
            }
        }

        /// Any bytes give aliases that a node can load, or errors.
        #[test]
        fn any_bytes_are_aliases_or_errors(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(aliases) = Aliases::parse(&bytes) {
                let _ = tables(aliases.to_table());
            }
        }

        /// The same with texts that are nearly good.
        #[test]
        fn any_text_is_aliases_or_errors(text in "([a-z#:@,. \t\"|/<>*\r\n]|é){0,80}") {
            match Aliases::parse(text.as_bytes()) {
                Ok(aliases) => {
                    let _ = tables(aliases.to_table());
                }
                Err(errors) => {
                    prop_assert!(!errors.is_empty());
                    let lines = text.lines().count();
                    prop_assert!(errors.iter().all(|e| (1..=lines).contains(&e.line)));
                }
            }
        }
    }

    /// The routers read the value of an alias as the addresses that stand in it.
    #[tokio::test]
    async fn routers_read_what_was_meant() {
        let policy = b"routers {\n  redirect \"aliases\" domains=\"d.example\" \
                       to=\"{table:domains/{domain}/aliases:{local_part}}\"\n  fail \"end\" message=\"end\"\n}\n";
        let table = good("a:x#y@one.example, b@[192.0.2.1],c{d}@two.example").to_table();
        let files = [
            (table_name("d.example"), table.into_bytes()),
            ("policy.kdl".to_owned(), policy.to_vec()),
        ];
        let configuration =
            Configuration::from_files(&files.into()).unwrap_or_else(|errors| panic!("{errors:?}"));
        let dns = crate::dns::FixedDns::default();
        let targets = crate::route::route(
            &configuration,
            &dns,
            &crate::route::About::default(),
            "A@d.example",
        )
        .await;
        let mut addresses: Vec<&str> = targets.iter().map(|t| t.address.as_str()).collect();
        addresses.sort_unstable();
        assert_eq!(addresses, ["b@[192.0.2.1]", "c{d}@two.example", "x#y@one.example"]);
    }
}
