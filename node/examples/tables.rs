//! How fast a table is read and looked up, and what it takes of memory:
//! `cargo run --release -p ppsw-node --example tables -- [ENTRIES]`.
#![allow(clippy::disallowed_methods, clippy::expect_used, reason = "a measurement")]

use std::{collections::BTreeMap, fmt::Write, fs, hint::black_box, time::Instant};

use ppsw_node::tables::Tables;

const LOOK_UPS: usize = 2_000_000;

fn main() {
    let entries: usize =
        std::env::args().nth(1).map_or(1_000_000, |n| n.parse().expect("a number of entries"));
    let mut text = String::new();
    for n in 0..entries {
        writeln!(text, "user{n:07}: user{n:07}@store-{}.example", n % 10).expect("into memory");
    }
    let bytes = text.len();
    let files = BTreeMap::from([("tables/t".to_owned(), text.into_bytes())]);
    let before = resident();
    let mut times: Vec<f64> = (0..5).map(|_| load(&files)).collect();
    times.sort_by(f64::total_cmp);
    let tables = Tables::from_files(&files).expect("a good table");
    println!("{entries} entries, {bytes} bytes of text");
    println!(
        "loaded in {:.0} / {:.0} / {:.0} ms (min/median/max of 5)",
        times[0], times[2], times[4]
    );
    println!(
        "memory: {} bytes, {:.1} of each entry; resident {:+} KiB",
        tables.bytes(),
        tables.bytes() as f64 / entries as f64,
        resident() - before
    );
    look_up(&tables, "found", |n| format!("user{:07}", (n * 7_919) % entries));
    look_up(&tables, "not found", |n| format!("nobody{n:07}"));
}

fn load(files: &BTreeMap<String, Vec<u8>>) -> f64 {
    let begun = Instant::now();
    black_box(Tables::from_files(files).expect("a good table"));
    begun.elapsed().as_secs_f64() * 1000.0
}

fn look_up(tables: &Tables, what: &str, key: impl Fn(usize) -> String) {
    let keys: Vec<String> = (0..LOOK_UPS).map(key).collect();
    let begun = Instant::now();
    let found = keys.iter().filter(|key| tables.get("t", key).is_some()).count();
    let took = begun.elapsed().as_secs_f64();
    println!(
        "{what}: {found} of {LOOK_UPS}, {:.2} million look-ups/s, {:.0} ns each",
        LOOK_UPS as f64 / took / 1e6,
        took * 1e9 / LOOK_UPS as f64
    );
}

/// Resident memory of this process, KiB.
fn resident() -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
}
