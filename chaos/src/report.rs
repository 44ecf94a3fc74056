//! What a harness prints: a row per round, all violations, and `N passed, N failed` in the last line.

use std::time::Duration;

use comfy_table::{Table, presets};

use crate::checker::Verdict;

/// One round, or one seed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// What to give to `--round` or `--seed` to see it again.
    pub(crate) name: String,
    pub(crate) faults: String,
    pub(crate) verdict: Verdict,
    /// Longest time that a client did not get a 250.
    pub(crate) pause: Option<Duration>,
    /// The same, of clients of nodes that had no fault.
    pub(crate) pause_elsewhere: Option<Duration>,
}

impl Row {
    /// Whether nothing was violated.
    pub(crate) fn passed(&self) -> bool {
        self.verdict.violations.is_empty()
    }
}

/// All rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    /// Lines about what was measured, printed under the table.
    pub(crate) measured: Vec<String>,
}

impl Report {
    /// Prints it; gives whether everything passed, which needs at least one round.
    #[must_use]
    pub(crate) fn print(&self) -> bool {
        println!("{}", self.table());
        for row in &self.rows {
            for violation in &row.verdict.violations {
                println!("round {}: VIOLATION: {violation}", row.name);
            }
        }
        for line in &self.measured {
            println!("{line}");
        }
        let failed = self.rows.iter().filter(|row| !row.passed()).count();
        println!("{} passed, {failed} failed", self.rows.len() - failed);
        failed == 0 && !self.rows.is_empty()
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header([
            "round",
            "faults",
            "acknowledged",
            "delivered",
            "lost",
            "unexpected",
            "duplicated",
            "in flight",
            "unknown",
            "late",
            "pause",
            "elsewhere",
            "left",
        ]);
        let mut total = Row { name: "all".to_owned(), ..Row::default() };
        total.verdict.left = Some(0);
        for row in &self.rows {
            total.verdict.add(&row.verdict);
            total.pause = total.pause.max(row.pause);
            total.pause_elsewhere = total.pause_elsewhere.max(row.pause_elsewhere);
            table.add_row(cells(row));
        }
        if self.rows.len() > 1 {
            table.add_row(cells(&total));
        }
        table
    }
}

fn cells(row: &Row) -> [String; 13] {
    let verdict = &row.verdict;
    let span = |span: Option<Duration>| {
        span.map_or_else(|| "-".to_owned(), |span| format!("{:.1} s", span.as_secs_f64()))
    };
    [
        row.name.clone(),
        row.faults.clone(),
        verdict.acknowledged.to_string(),
        verdict.delivered.to_string(),
        verdict.lost.to_string(),
        verdict.unexpected.to_string(),
        verdict.duplicated.to_string(),
        verdict.in_flight.to_string(),
        verdict.unknown.to_string(),
        verdict.late.to_string(),
        span(row.pause),
        span(row.pause_elsewhere),
        verdict.left.map_or_else(|| "?".to_owned(), |left| left.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_without_rounds_or_with_a_violation_does_not_pass() {
        assert!(!Report::default().print());
        let good = Row { name: "1".to_owned(), ..Row::default() };
        let mut report = Report { rows: vec![good.clone()], measured: vec![] };
        assert!(report.print());
        let mut bad = good;
        bad.verdict.violations.push("lost: 1.0".to_owned());
        report.rows.push(bad);
        assert!(!report.print());
        assert!(report.table().to_string().contains("all"));
    }
}
