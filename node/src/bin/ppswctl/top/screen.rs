//! What `top` draws. Pure but for the order and the place that its reader has chosen.

use ppsw_proto::control::{DomainSummary, GroupStatus, NodeStatus};
use ratatui::{
    Frame,
    crossterm::event::KeyCode,
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Paragraph, Row, Table},
};

use super::snapshot::View;

/// Rows of nodes and of groups on a screen; the rest of it is for the queue.
const ROWS_MAX: usize = 12;

/// By what destinations are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Recipients,
    Deferred,
    Oldest,
    Name,
}

impl Order {
    const ALL: [Self; 4] = [Self::Recipients, Self::Deferred, Self::Oldest, Self::Name];

    const fn word(self) -> &'static str {
        match self {
            Self::Recipients => "recipients",
            Self::Deferred => "deferred",
            Self::Oldest => "oldest",
            Self::Name => "name",
        }
    }

    /// The next one in a direction, round and round.
    fn turn(self, forward: bool) -> Self {
        let place = Self::ALL.iter().position(|order| *order == self).unwrap_or(0);
        let step = if forward { 1 } else { Self::ALL.len() - 1 };
        Self::ALL[(place + step) % Self::ALL.len()]
    }
}

pub(super) struct Screen {
    view: View,
    order: Order,
    /// Destinations that are scrolled past.
    skipped: usize,
    trouble: Option<String>,
}

impl Screen {
    pub(super) fn new(view: View) -> Self {
        let mut screen = Self { view, order: Order::Recipients, skipped: 0, trouble: None };
        screen.sort();
        screen
    }

    pub(super) fn take(&mut self, view: View) {
        self.view = view;
        self.trouble = None;
        self.sort();
    }

    /// The last look failed; what was seen before stays.
    pub(super) fn trouble(&mut self, text: String) {
        self.trouble = Some(text);
    }

    pub(super) fn press(&mut self, key: KeyCode) {
        match key {
            KeyCode::Right | KeyCode::Char('s') => self.order = self.order.turn(true),
            KeyCode::Left => self.order = self.order.turn(false),
            KeyCode::Down => self.skipped += 1,
            KeyCode::Up => self.skipped = self.skipped.saturating_sub(1),
            KeyCode::Home => self.skipped = 0,
            _ => {}
        }
        self.sort();
    }

    fn sort(&mut self) {
        let order = self.order;
        let domains = &mut self.view.queue.domains;
        domains.sort_by(|a, b| {
            let first = match order {
                Order::Recipients => b.recipients.cmp(&a.recipients),
                Order::Deferred => b.deferred.cmp(&a.deferred),
                Order::Oldest => a.oldest_ms.cmp(&b.oldest_ms),
                Order::Name => std::cmp::Ordering::Equal,
            };
            first.then_with(|| a.domain.cmp(&b.domain))
        });
        self.skipped = self.skipped.min(domains.len().saturating_sub(1));
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let nodes = &self.view.status.nodes;
        let groups: Vec<&GroupStatus> = self.view.groups().collect();
        let height = |rows: usize| u16::try_from(rows.min(ROWS_MAX) + 2).unwrap_or(u16::MAX);
        let [head, upper, middle, lower, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(height(nodes.len())),
            Constraint::Length(height(groups.len())),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.head(), head);
        frame.render_widget(self.nodes(), upper);
        frame.render_widget(group_table(&groups), middle);
        frame.render_widget(self.destinations(), lower);
        frame.render_widget(self.foot(), foot);
    }

    fn head(&self) -> Paragraph<'_> {
        let queue = &self.view.queue;
        let text = format!(
            "{}: {} messages, {} recipients, {} held, oldest {}",
            self.view.status.cluster,
            queue.messages,
            queue.recipients,
            queue.held,
            self.view.age(queue.oldest_ms)
        );
        Paragraph::new(Line::from(Span::styled(text, Modifier::BOLD)))
    }

    fn foot(&self) -> Paragraph<'_> {
        match &self.trouble {
            Some(trouble) => Paragraph::new(trouble.as_str()).style(Style::new().fg(Color::Red)),
            None => Paragraph::new("q quit   left/right order   up/down scroll")
                .style(Style::new().add_modifier(Modifier::DIM)),
        }
    }

    fn nodes(&self) -> Table<'_> {
        let rows = self.view.status.nodes.iter().take(ROWS_MAX).map(|node| self.node(node));
        let widths = [
            Constraint::Fill(2),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(10),
            Constraint::Length(9),
            Constraint::Length(8),
        ];
        let head = ["node", "state", " accept/s", " deliver/s", "  defer/s", "  fail/s"];
        framed(Table::new(rows, widths).header(header(&head)), "nodes".to_owned())
    }

    fn node(&self, node: &NodeStatus) -> Row<'static> {
        let member = node.member.clone().unwrap_or_default();
        let colour = match node.state.as_str() {
            "up" => Color::Green,
            "down" => Color::Red,
            _ => Color::Yellow,
        };
        let rates = self.view.rates.get(&member.id);
        let rate = |of: fn(&super::snapshot::Rates) -> f64, width: usize| {
            rates.map_or_else(|| format!("{:>width$}", "-"), |r| format!("{:>width$.1}", of(r)))
        };
        Row::new([
            Span::raw(format!("{} {}", member.id, member.name)),
            Span::styled(node.state.clone(), Style::new().fg(colour)),
            Span::raw(rate(|r| r.accepted, 9)),
            Span::raw(rate(|r| r.delivered, 10)),
            Span::raw(rate(|r| r.deferred, 9)),
            Span::raw(rate(|r| r.failed, 8)),
        ])
    }

    fn destinations(&self) -> Table<'_> {
        let rows = self.view.queue.domains.iter().skip(self.skipped).map(|domain| {
            let DomainSummary { domain: name, recipients, deferred, oldest_ms } = domain;
            Row::new([
                name.clone(),
                format!("{recipients:>10}"),
                format!("{deferred:>9}"),
                format!("{:>9}", self.view.age(*oldest_ms)),
            ])
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(10),
            Constraint::Length(9),
            Constraint::Length(9),
        ];
        let head = ["destination", "recipients", " deferred", "   oldest"];
        let title = format!("queue by {}", self.order.word());
        framed(Table::new(rows, widths).header(header(&head)), title)
    }
}

fn group_table(groups: &[&GroupStatus]) -> Table<'static> {
    let rows: Vec<Row<'static>> = groups
        .iter()
        .take(ROWS_MAX)
        .map(|group| {
            let name = if group.id == 0 {
                "control".to_owned()
            } else {
                format!("partition {}", group.id)
            };
            let leader = if group.leader == 0 {
                Span::styled("none", Style::new().fg(Color::Red))
            } else {
                Span::raw(format!("node {}", group.leader))
            };
            let voters: Vec<String> = group.voters.iter().map(u64::to_string).collect();
            Row::new([
                Span::raw(name),
                leader,
                Span::raw(voters.join(" ")),
                Span::raw(format!("{:>6}", group.term)),
                Span::raw(format!("{:>9}", group.messages)),
            ])
        })
        .collect();
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(12),
        Constraint::Length(6),
        Constraint::Length(9),
    ];
    let head = ["group", "leader", "voters", "  term", " messages"];
    framed(Table::new(rows, widths).header(header(&head)), "groups".to_owned())
}

fn header(names: &[&'static str]) -> Row<'static> {
    Row::new(names.to_vec()).style(Style::new().add_modifier(Modifier::BOLD))
}

/// A line above with the title; nothing at the sides, so that a screen can be copied from.
fn framed(table: Table<'_>, title: String) -> Table<'_> {
    table.block(Block::new().borders(Borders::TOP).title(title))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ppsw_proto::control::{Member, NodeReport, QueueSummary, StatusReply, Totals};
    use ppsw_spool::env::{Clock as _, SystemClock};
    use ratatui::{Terminal, backend::TestBackend};

    use super::{
        super::snapshot::{Rates, Snapshot},
        *,
    };

    const NOW: u64 = 1_795_944_269_000;

    fn status(accepted: u64, started_ms: u64) -> StatusReply {
        let node = |id: u64, state: &str, report| NodeStatus {
            member: Some(Member { id, name: format!("relay{id}"), ..Member::default() }),
            state: state.to_owned(),
            report,
            ..NodeStatus::default()
        };
        let totals = Totals { accepted, delivered: accepted / 2, deferred: 1, failed: 0 };
        let report = NodeReport { started_ms, totals: Some(totals), ..NodeReport::default() };
        let group = |id, leader| GroupStatus {
            id,
            leader,
            voters: vec![1, 2],
            term: 7,
            messages: 3,
            ..GroupStatus::default()
        };
        StatusReply {
            cluster: "cam".to_owned(),
            nodes: vec![node(1, "up", Some(report)), node(2, "down", None)],
            control: Some(group(0, 1)),
            partitions: vec![group(1, 1), group(2, 0)],
            ..StatusReply::default()
        }
    }

    fn view() -> View {
        let (start, two) = (SystemClock.instant(), Duration::from_secs(2));
        let domain = |name: &str, recipients, deferred, minutes: u64| DomainSummary {
            domain: name.to_owned(),
            recipients,
            deferred,
            oldest_ms: NOW - minutes * 60_000,
        };
        let queue = QueueSummary {
            messages: 6,
            recipients: 6,
            held: 1,
            oldest_ms: NOW - 3_600_000,
            domains: vec![domain("big.example", 5, 0, 1), domain("old.example\u{7}", 1, 1, 60)],
            ..QueueSummary::default()
        };
        let before = Snapshot::new(start, NOW - 2_000, status(100, 5));
        View::new(Some(&before), &Snapshot::new(start + two, NOW, status(200, 5)), queue)
    }

    fn drawn(screen: &Screen) -> String {
        let mut terminal = Terminal::new(TestBackend::new(72, 17)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer.content.chunks(72).map(|cells| {
            let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
            line.trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    const GOLDEN: &str = include_str!("screen.golden");

    #[test]
    fn a_screen_is_drawn_as_it_was() {
        let mut screen = Screen::new(view());
        assert_eq!(drawn(&screen), GOLDEN.trim_end(), "\n{}", drawn(&screen));
        let first = |screen: &Screen| screen.view.queue.domains[0].domain.clone();
        screen.press(KeyCode::Right);
        assert_eq!(first(&screen), "old.example\u{7}");
        assert!(drawn(&screen).contains("queue by deferred"));
        screen.press(KeyCode::Left);
        assert_eq!(first(&screen), "big.example");
        for _ in 0..9 {
            screen.press(KeyCode::Down);
        }
        let scrolled = drawn(&screen);
        assert!(
            !scrolled.contains("big.example") && scrolled.contains("old.example"),
            "{scrolled}"
        );
        screen.trouble("no node answered".to_owned());
        assert!(drawn(&screen).ends_with("no node answered"));
    }

    #[test]
    fn rates_follow_from_two_looks_at_the_same_process() {
        let wanted = Rates { accepted: 50.0, delivered: 25.0, deferred: 0.0, failed: 0.0 };
        assert_eq!(view().rates.into_iter().collect::<Vec<_>>(), [(1, wanted)]);
        let (start, second) = (SystemClock.instant(), Duration::from_secs(1));
        let before = Snapshot::new(start, NOW, status(100, 5));
        let again = Snapshot::new(start + second, NOW, status(3, 6));
        let view = View::new(Some(&before), &again, QueueSummary::default());
        assert!(view.rates.is_empty(), "it was started again in between");
        let json = view.to_json();
        assert!(json["nodes"][0]["per_second"].is_null(), "{json}");
        assert_eq!(json["partitions"][1]["leader"], serde_json::Value::Null);
        assert!(view.to_text().contains("partition 2: led by nobody"), "{}", view.to_text());
    }
}
