//! The data of a redirect router: addresses, and nothing that could run or write anything.

/// One item of redirection data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item<'a> {
    Address(&'a str),
    /// `:fail: text`
    Fail(&'a str),
    /// Something that is not allowed here.
    Forbidden(&'a str),
}

/// Items of a text: addresses separated by commas, or a special item that takes the rest of it. Empty data has none.
pub(super) fn items(data: &str) -> Vec<Item<'_>> {
    let mut found = Vec::new();
    let mut rest = data.trim();
    while !rest.is_empty() {
        if rest.starts_with(':') {
            found.push(special(rest));
            break;
        }
        let (item, after) = split(rest);
        rest = after.trim_start();
        if !item.is_empty() {
            found.push(address(item));
        }
    }
    found
}

fn special(text: &str) -> Item<'_> {
    let (word, rest) = text[1..].split_once(':').unwrap_or((text, ""));
    match word.to_ascii_lowercase().as_str() {
        "fail" => Item::Fail(rest.trim()),
        _ => Item::Forbidden(text),
    }
}

/// Up to the first comma outside quotes.
fn split(text: &str) -> (&str, &str) {
    let mut quoted = false;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => return (text[..at].trim(), &text[at + 1..]),
            _ => {}
        }
    }
    (text.trim(), "")
}

fn address(item: &str) -> Item<'_> {
    // `Name <address>` is how people paste addresses.
    let inner = match (item.rfind('<'), item.strip_suffix('>')) {
        (Some(at), Some(cut)) => cut[at + 1..].trim(),
        _ => item,
    };
    let local_quoted = inner.starts_with('"');
    // Pipes, files and includes of an alias file have no meaning here.
    if inner.starts_with(['|', '/', ':', '.']) || (inner.contains(' ') && !local_quoted) {
        return Item::Forbidden(item);
    }
    Item::Address(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_refusals() {
        use Item::{Address, Fail, Forbidden};
        for (data, expected) in [
            ("", vec![]),
            ("a@x", vec![Address("a@x")]),
            ("a@x, b@y,c ,", vec![Address("a@x"), Address("b@y"), Address("c")]),
            (r#""a,b"@x, c@x"#, vec![Address(r#""a,b"@x"#), Address("c@x")]),
            ("A Person <a@x>", vec![Address("a@x")]),
            (":fail: gone, see x", vec![Fail("gone, see x")]),
            (":FAIL:gone", vec![Fail("gone")]),
            (":blackhole:", vec![Forbidden(":blackhole:")]),
            (":include:/etc/passwd", vec![Forbidden(":include:/etc/passwd")]),
            ("a@x, |/bin/sh", vec![Address("a@x"), Forbidden("|/bin/sh")]),
            ("/etc/passwd", vec![Forbidden("/etc/passwd")]),
            ("two words@x", vec![Forbidden("two words@x")]),
            (":", vec![Forbidden(":")]),
            ("<", vec![Address("<")]),
        ] {
            assert_eq!(items(data), expected, "{data}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_ends(text in ".{0,80}") {
            let _ = items(&text);
        }
    }
}
