//! `policy check`.

use std::{path::Path, process::ExitCode};

use ppsw_node::policy::{Configuration, Problem};
use serde_json::{Value, json};

/// Every error of a policy; exit 1 if there are any.
pub(crate) async fn check(dir: &Path, as_json: bool) -> ExitCode {
    let problems = Configuration::problems(dir).await;
    if as_json {
        say!("{}", Value::from_iter(problems.iter().map(problem)));
    } else {
        for problem in &problems {
            eprintln!("{}", problem.report);
        }
        match problems.len() {
            0 => say!("{}: good", dir.display()),
            1 => eprintln!("ppswctl: 1 error in {}", dir.display()),
            n => eprintln!("ppswctl: {n} errors in {}", dir.display()),
        }
    }
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn problem(problem: &Problem) -> Value {
    json!({
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "error": problem.what,
        "help": problem.help,
    })
}
