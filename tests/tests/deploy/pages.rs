//! Commands that the pages show.

use std::collections::HashMap;

use ppsw_tests::process::program;
use regex::Regex;

use super::{run, said, text};

/// What a page shows as a command: verbs and options.
fn commands(page: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let code = Regex::new("`ppswctl ([^`]+)`").unwrap();
    let text = Regex::new("\"[^\"]*\"|'[^']*'").unwrap();
    let verb = Regex::new("^[a-z][a-z-]*$").unwrap();
    let command = |line: &str| {
        let line = text.replace_all(line, "X").into_owned();
        let words: Vec<&str> = line.split([' ', '=']).collect();
        let options = words.iter().filter(|word| word.starts_with("--")).map(|&o| o.to_owned());
        let verbs = words.iter().skip_while(|word| ["--json", "--viewer"].contains(word));
        let verbs = verbs.take_while(|word| verb.is_match(word)).take(2).map(|&v| v.to_owned());
        (verbs.collect(), options.collect())
    };
    code.captures_iter(page).map(|found| command(&found[1])).collect()
}

#[test]
fn commands_of_the_pages_exist() {
    let ppswctl = program("ppswctl").display().to_string();
    let mut helps: HashMap<Vec<String>, Option<String>> = HashMap::new();
    let mut help = |verbs: &[String]| {
        let known = helps.entry(verbs.to_vec()).or_insert_with(|| {
            let words: Vec<&str> = verbs.iter().map(String::as_str).chain(["--help"]).collect();
            let output = run(&ppswctl, &words);
            output.status.success().then(|| said(&output))
        });
        known.clone()
    };
    let mut checked = 0;
    for page in ["operations", "runbook", "security", "sizing", "queue", "tables", "metrics"] {
        for (verbs, options) in commands(&text(&format!("docs/{page}.md"))) {
            // The second word may be an argument.
            let known = help(&verbs).or_else(|| help(verbs.get(..1)?));
            let known = known.unwrap_or_else(|| panic!("docs/{page}.md: ppswctl {verbs:?}"));
            for option in &options {
                let there = known.contains(option.as_str());
                assert!(there, "docs/{page}.md: ppswctl {verbs:?} has no {option}");
            }
            checked += 1;
        }
    }
    println!("{checked} commands");
    assert!(checked > 80, "{checked} commands");
}
