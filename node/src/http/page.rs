//! The status page: readiness and the node's own counters, readable without any tool.

/// The page. `reasons` as `/readyz` gives them; `metrics` in Prometheus' text format.
pub(super) fn render(reasons: &[String], metrics: &str) -> String {
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>ppswitch node</title>\
         <style>body{font:14px sans-serif;margin:2em}td{padding:.1em 1em .1em 0}</style></head><body>",
    );
    if reasons.is_empty() {
        page.push_str("<h1>ready</h1>");
    } else {
        page.push_str("<h1>not ready</h1><ul>");
        for reason in reasons {
            page.push_str(&format!("<li>{}</li>", escape(reason)));
        }
        page.push_str("</ul>");
    }
    page.push_str("<p><a href=\"/livez\">livez</a> <a href=\"/readyz\">readyz</a> ");
    page.push_str("<a href=\"/metrics\">metrics</a></p><table>");
    for (name, value) in samples(metrics) {
        page.push_str(&format!("<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(value)));
    }
    page.push_str("</table></body></html>\n");
    page
}

/// Our counters and gauges. Buckets are left out: they are for machines.
fn samples(metrics: &str) -> impl Iterator<Item = (&str, &str)> {
    metrics
        .lines()
        .filter(|line| line.starts_with("ppsw_"))
        .filter(|line| !line.contains("_bucket{"))
        .filter_map(|line| line.rsplit_once(' '))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_reasons_and_counters() {
        let metrics =
            "# TYPE x counter\nppsw_x_total{a=\"b\"} 4\nppsw_y_bucket{le=\"1\"} 1\nother 1\n";
        let page = render(&["<no> quorum".to_owned()], metrics);
        assert!(page.contains("&lt;no&gt; quorum"), "{page}");
        assert!(page.contains("<td>ppsw_x_total{a=&quot;b&quot;}</td><td>4</td>"), "{page}");
        assert!(!page.contains("ppsw_y_bucket") && !page.contains("other"), "{page}");
    }
}
