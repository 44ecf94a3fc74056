//! The status page: the whole cluster as this node knows it, for people with nothing but a browser. It needs no script and
//! nothing from elsewhere; its policy (CSP) lets it have neither. No address of a person is on it.

mod nodes;
mod queue;
mod verdict;
mod words;

use std::sync::LazyLock;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use ppsw_control::ClusterView;
use sha2::{Digest, Sha256};

use self::verdict::Verdict;
use crate::limits::PAGE_REFRESH;

const STYLE: &str = include_str!("page.css");

/// `Content-Security-Policy` of the page: its own style, which is named by its hash, and nothing else.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = BASE64_STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

/// The page. `reasons` as `/readyz` gives them, so of now; the view may be some seconds old.
pub(super) fn render(reasons: &[String], view: &ClusterView) -> String {
    let verdict = Verdict::of(view);
    let cluster = words::name(&view.status.cluster);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="refresh" content=(PAGE_REFRESH.as_secs());
                meta name="robots" content="noindex";
                title { (verdict.word()) " · " (cluster) " · ppswitch" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "ppswitch cluster " bdi { (cluster) } }
                    p.note { "as " (asked(view)) " saw it at " (words::clock(view.taken.0)) }
                }
                main {
                    (verdict.markup())
                    h2 { "Queue" } (queue::tiles(view))
                    section #nodes { h2 { "Nodes" } (nodes::table(view)) }
                    section #groups { h2 { "Groups" } (nodes::groups(view)) }
                    div.pair {
                        section #ages { h2 { "Queue by age" } (queue::ages(view)) }
                        section #destinations { h2 { "Queue by destination" } (queue::destinations(view)) }
                    }
                    section #rules { h2 { "Rules of operators" } (queue::rules(view)) }
                }
                (footer(reasons, view))
            }
        }
    };
    page.into_string()
}

fn asked(view: &ClusterView) -> String {
    let node = view.status.asked;
    let members = view.status.nodes.iter().filter_map(|node| node.member.as_ref());
    match members.into_iter().find(|member| member.id == node) {
        Some(member) if !member.name.is_empty() => {
            format!("node {node} ({})", words::name(&member.name))
        }
        _ => format!("node {node}"),
    }
}

fn footer(reasons: &[String], view: &ClusterView) -> Markup {
    html! {
        footer {
            p {
                @if reasons.is_empty() {
                    "Node " (view.status.asked) " takes new connections."
                } @else {
                    "Node " (view.status.asked) " takes no new connections: "
                    (words::name(&reasons.join("; "))) "."
                }
            }
            p {
                "This node alone: " a href="/readyz" { "readiness" } ", " a href="/metrics" { "metrics" }
                ". The page renews itself every " (PAGE_REFRESH.as_secs()) " s."
            }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
