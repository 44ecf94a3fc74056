//! The whole configuration with its explanations, for `ppswd config` and ppswd.toml(5). Names, texts, defaults and what has to
//! be given are those of the types; only examples stand here.

use std::fmt::Write as _;

use clap_mangen::roff::{Roff, bold, roman};
use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

use super::{HttpsConfig, ListenerConfig, NodeConfig, SourceConfig, documented::Documented};

/// A value for everything that has no default. The directories are those of the Debian package.
const EXAMPLE: &str = r#"
name = "ppsw-1.example.org"
data = "/var/lib/ppswd"
log = "/var/log/ppswd"
config = "/etc/ppswd/config"
certificates = "/etc/ppswd/certs"
control = "192.0.2.1:2590"
http = "192.0.2.1:2580"
agent = "192.0.2.1:2570"
dns = ["192.0.2.53:53"]
local_smtp = "127.0.0.1:25"
threads = 8
retry = "F,2h,15m; G,16h,30m,1.5; F,5d,8h"

[[listener]]
service = "smtp"
address = "192.0.2.1:3525"
proxy_from = ["192.0.2.101/32", "192.0.2.102/32"]

[[listener]]
service = "submission"
address = "192.0.2.1:3587"
proxy_from = ["192.0.2.101/32", "192.0.2.102/32"]

[[listener]]
service = "submissions"
address = "192.0.2.1:3465"
proxy_from = ["192.0.2.101/32", "192.0.2.102/32"]

[[source]]
personality = "*"
address = "192.0.2.10"
"#;

const HEAD: &str = "The configuration of a node, with everything that there is, as `ppswd config` prints it. \
                    `ppswd check --config FILE` tells every error.\n\
                    Relative paths count from the directory of this file.\n\
                    \n\
                    What has no `#` before its name is an example, to be filled in. What has one stands there with its default, \
                    or with an example where there is none.\n";

/// One setting.
struct Setting {
    name: &'static str,
    text: &'static str,
    /// As it stands behind `=`.
    value: String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It has to be given; the value is an example.
    Required,
    /// The value is what counts if nothing is given.
    Default,
    /// Nothing is set by default; the value is an example.
    Optional,
}

/// Settings below a `[name]` or `[[name]]`.
struct Part {
    name: &'static str,
    text: &'static str,
    form: Form,
    settings: Vec<Setting>,
    /// Further tables of the example.
    more: Vec<Table>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One table; all of it has defaults.
    Table,
    /// Any number of tables, none by default.
    List,
    /// The same; without any, a node would be of little use.
    FilledIn,
}

/// A whole `ppswd.toml`, with each setting's explanation before it.
///
/// # Errors
/// None, as long as the examples fit the types.
pub fn annotated() -> Result<String, toml::de::Error> {
    let (settings, parts) = all()?;
    let mut text = String::new();
    comment(&mut text, HEAD);
    for setting in &settings {
        text.push('\n');
        comment(&mut text, setting.text);
        if setting.kind == Kind::Optional {
            text.push_str("# Not set by default.\n");
        }
        let hash = if setting.kind == Kind::Required { "" } else { "#" };
        line(&mut text, &format!("{hash}{} = {}", setting.name, setting.value));
    }
    for part in &parts {
        text.push('\n');
        part.write(&mut text);
    }
    Ok(text)
}

/// ppswd.toml(5), as roff.
///
/// # Errors
/// As [`annotated`].
pub fn page() -> Result<Vec<u8>, toml::de::Error> {
    let (settings, parts) = all()?;
    let mut page = Roff::new();
    page.control("TH", ["ppswd.toml", "5", "", "ppswitch", ""]);
    page.control("SH", ["NAME"]);
    page.text([roman("ppswd.toml - configuration of a node of a ppswitch cluster")]);
    page.control("SH", ["DESCRIPTION"]);
    page.text([roman(NodeConfig::ABOUT.trim())]);
    page.text([roman("The file is TOML. Relative paths count from its own directory.")]);
    page.text([roman(
        "ppswd config prints one with all of this in it, ppswd check tells every error.",
    )]);
    page.control("SH", ["SETTINGS"]);
    settings.iter().for_each(|setting| setting.tell(&mut page));
    for part in &parts {
        page.control("SS", [part.heading().as_str()]);
        page.text([roman(flowing(part.text))]);
        if part.form != Form::Table {
            page.text([roman("There may be several.")]);
        }
        part.settings.iter().for_each(|setting| setting.tell(&mut page));
    }
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("ppswd"), roman("(1), "), bold("ppswctl"), roman("(1)")]);
    Ok(page.render().into_bytes())
}

impl Part {
    fn heading(&self) -> String {
        match self.form {
            Form::Table => format!("[{}]", self.name),
            Form::List | Form::FilledIn => format!("[[{}]]", self.name),
        }
    }

    fn write(&self, text: &mut String) {
        comment(text, self.text);
        // The heading of a table without settings is a table with its defaults.
        let heading = if self.form == Form::List { "#" } else { "" }.to_owned() + &self.heading();
        let hash = if self.form == Form::FilledIn { "" } else { "#" };
        line(text, &heading);
        for setting in &self.settings {
            comment(text, setting.text);
            line(text, &format!("{hash}{} = {}", setting.name, setting.value));
        }
        for table in &self.more {
            line(text, &format!("\n{heading}"));
            for setting in &self.settings {
                if let Some(value) = table.get(setting.name) {
                    line(text, &format!("{hash}{} = {value}", setting.name));
                }
            }
        }
    }
}

impl Setting {
    fn tell(&self, page: &mut Roff) {
        page.control("TP", []);
        page.text([bold(self.name)]);
        page.text([roman(flowing(self.text))]);
        let (word, value) = match self.kind {
            Kind::Required => ("It has to be given, as in", self.value.as_str()),
            Kind::Default => ("Default:", self.value.as_str()),
            Kind::Optional => ("Not set by default; as in", self.value.as_str()),
        };
        page.text([roman(format!("{word} ")), bold(value), roman(".")]);
    }
}

/// Settings outside of tables, and the tables.
fn all() -> Result<(Vec<Setting>, Vec<Part>), toml::de::Error> {
    let example: Table = EXAMPLE.parse()?;
    let mut rest = settings::<NodeConfig>(&example, &defaults::<NodeConfig>(&example)?);
    let mut parts = Vec::new();
    let tables =
        [("listener", Form::FilledIn), ("source", Form::List), ("https_domains", Form::Table)];
    for (name, form) in tables {
        let Some(at) = rest.iter().position(|setting| setting.name == name) else { continue };
        let text = rest.remove(at).text;
        let tables = example.get(name).and_then(Value::as_array).into_iter().flatten();
        let mut tables: Vec<Table> = tables.filter_map(Value::as_table).cloned().collect();
        let first = if tables.is_empty() { Table::new() } else { tables.remove(0) };
        let settings = match name {
            "listener" => settings::<ListenerConfig>(&first, &Table::new()),
            "source" => settings::<SourceConfig>(&first, &Table::new()),
            _ => settings::<HttpsConfig>(&first, &defaults::<HttpsConfig>(&first)?),
        };
        parts.push(Part { name, text, form, settings, more: tables });
    }
    Ok((rest, parts))
}

/// The settings of a type, in their order.
fn settings<T: Documented + DeserializeOwned>(example: &Table, defaults: &Table) -> Vec<Setting> {
    let setting = |&(name, text): &(&'static str, &'static str)| {
        let given = |value: &&Value| value.as_array().is_none_or(|all| !all.is_empty());
        let default = defaults.get(name).filter(given);
        let kind = match default {
            _ if is_required::<T>(example, name) => Kind::Required,
            Some(_) => Kind::Default,
            None => Kind::Optional,
        };
        let value = if kind == Kind::Default { default } else { example.get(name) };
        Setting { name, text, value: value.map(Value::to_string).unwrap_or_default(), kind }
    };
    T::FIELDS.iter().map(setting).collect()
}

/// What a type is if nothing is given that need not be.
fn defaults<T>(example: &Table) -> Result<Table, toml::de::Error>
where
    T: Documented + DeserializeOwned + Serialize,
{
    let mut least = example.clone();
    least.retain(|name, _| is_required::<T>(example, name));
    Table::try_from(least.try_into::<T>()?).map_err(serde::de::Error::custom)
}

fn is_required<T: DeserializeOwned>(example: &Table, name: &str) -> bool {
    let mut without = example.clone();
    without.remove(name).is_some() && without.try_into::<T>().is_err()
}

/// Lines of text as lines of comment.
fn comment(to: &mut String, text: &str) {
    for text in text.lines() {
        line(to, format!("# {}", text.trim()).trim_end());
    }
}

fn line(to: &mut String, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(to, "{text}");
}

/// A paragraph without its line ends, and without marks for what is code.
fn flowing(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('`', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With each commented-out setting as one that counts; of examples, only if `all`.
    fn uncommented(text: &str, all: bool) -> String {
        let (mut lines, mut before, mut in_source) = (Vec::new(), "", false);
        for line in text.lines() {
            in_source = line == "#[[source]]" || in_source && !line.is_empty();
            let wanted = all || before != "# Not set by default." && !in_source;
            let setting = line.strip_prefix('#').filter(|rest| !rest.is_empty() && wanted);
            lines.push(setting.filter(|rest| !rest.starts_with(' ')).unwrap_or(line));
            before = line;
        }
        lines.join("\n")
    }

    fn read(text: &str) -> NodeConfig {
        let config: NodeConfig =
            toml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        config.check().unwrap();
        config
    }

    #[test]
    fn the_defaults_that_it_shows_are_those_that_count() {
        let text = annotated().unwrap();
        println!("{text}");
        let as_it_is = format!("{:?}", read(&text));
        assert_ne!(uncommented(&text, false), text);
        assert_eq!(format!("{:?}", read(&uncommented(&text, false))), as_it_is);
        // All examples at once, too, with a listener for `local_smtp`.
        let all = uncommented(&text, true)
            + "\n[[listener]]\nservice = \"smtp\"\naddress = \"127.0.0.1:25\"\n";
        let config = read(&all);
        assert!(config.agent.is_some() && config.retry.is_some() && config.source.len() == 1);
    }

    /// The names that a type takes, by its own complaint about another.
    fn names<T: DeserializeOwned>(example: &Table) -> Vec<String> {
        let mut wrong = example.clone();
        wrong.insert("nonsense".to_owned(), true.into());
        let Err(error) = wrong.try_into::<T>() else { panic!("nonsense is taken") };
        let error = error.to_string();
        let (_, names) = error.split_once("expected ").unwrap();
        names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn every_setting_is_explained() {
        fn compare<T: Documented + DeserializeOwned>(example: &Table) {
            let told: Vec<&str> = T::FIELDS.iter().map(|(name, _)| *name).collect();
            assert_eq!(told, names::<T>(example));
            for (name, text) in T::FIELDS {
                assert!(text.trim().ends_with(['.', ')']), "{name}: {text:?}");
            }
        }
        let example: Table = EXAMPLE.parse().unwrap();
        compare::<NodeConfig>(&example);
        compare::<ListenerConfig>(example["listener"][0].as_table().unwrap());
        compare::<SourceConfig>(example["source"][0].as_table().unwrap());
        compare::<HttpsConfig>(&Table::new());
        let text = annotated().unwrap();
        for (name, _) in NodeConfig::FIELDS {
            let there = |line: &str| {
                let line = line.trim_start_matches(['#', '[']);
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', ']']))
            };
            assert!(text.lines().any(there), "{name}");
        }
        let (settings, parts) = all().unwrap();
        for setting in settings.iter().chain(parts.iter().flat_map(|part| &part.settings)) {
            assert!(
                !setting.value.is_empty(),
                "{} has neither a default nor an example",
                setting.name
            );
        }
    }
}
