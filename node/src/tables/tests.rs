use super::*;

fn tables(files: &[(&str, &str)]) -> Result<Tables, Vec<TableError>> {
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()));
    Tables::from_files(&files.collect())
}

#[test]
fn both_forms_of_an_entry_load() {
    let t = tables(&[(
        "tables/t",
        "# comment\n\nplain\nKey value  and more \nalias: a@x, b@y # who\nclose:xyz789@cam.ac.uk\n\
         gone :fail: moved to room #5\nspaced : v\n",
    )])
    .unwrap();
    assert_eq!(t.get("t", "plain"), Some(""));
    assert_eq!(t.get("t", "KEY"), Some("value  and more"));
    assert_eq!(t.get("t", "alias"), Some("a@x, b@y"));
    assert_eq!(t.get("t", "close"), Some("xyz789@cam.ac.uk"));
    assert_eq!(t.get("t", "gone"), Some(":fail: moved to room #5"));
    assert_eq!(t.get("t", "spaced"), Some("v"));
    assert_eq!(t.get("t", "absent"), None);
    assert_eq!(t.get("absent", "plain"), None);
}

#[test]
fn the_most_specific_wildcard_wins() {
    let t = tables(&[("tables/t", "*.cam.ac.uk 1\n*.ch.cam.ac.uk 2\nx.ch.cam.ac.uk 3\n")]).unwrap();
    assert_eq!(t.get_partial("t", "x.ch.cam.ac.uk"), Some("3"));
    assert_eq!(t.get_partial("t", "Y.ch.cam.ac.uk"), Some("2"));
    assert_eq!(t.get_partial("t", "ch.cam.ac.uk"), Some("1"));
    assert_eq!(t.get_partial("t", "cam.ac.uk"), None);
    assert_eq!(t.get_partial("t", "evilcam.ac.uk"), None);
}

#[test]
fn the_longest_prefix_wins() {
    let t = tables(&[(
        "tables/n",
        "10.0.0.0/8 wide\n10.1.0.0/16: near\n10.1.2.3 one\n2001:db8::/32 six\n",
    )])
    .unwrap();
    assert!(t.is_nets("n"));
    for (address, value) in [
        ("10.9.9.9", Some("wide")),
        ("10.1.9.9", Some("near")),
        ("10.1.2.3", Some("one")),
        ("::ffff:10.1.2.3", Some("one")),
        ("2001:db8::1", Some("six")),
        ("192.0.2.1", None),
    ] {
        assert_eq!(t.get_net("n", address.parse().unwrap()), value, "{address}");
    }
}

#[test]
fn every_error_has_file_and_line() {
    let errors = tables(&[
        ("tables/a", "x 1\nX 2\n continued\n:novalue\n"),
        ("tables/n", "10.0.0.1/8\n"),
        ("tables/../etc/passwd", "x\n"),
        ("lists/punting/ownres", "x\n"),
    ])
    .unwrap_err();
    let places: Vec<_> = errors.iter().map(|e| (e.file.as_str(), e.line)).collect();
    for place in [
        ("tables/a", 2),
        ("tables/a", 3),
        ("tables/a", 4),
        ("tables/n", 1),
        ("tables/../etc/passwd", 0),
        ("lists/punting/ownres", 0),
    ] {
        assert!(places.contains(&place), "{place:?} in {errors:?}");
    }
    assert!(errors.iter().any(|e| e.to_string().contains("is in line 1 already")));
}

#[test]
fn names_from_outside_find_no_file() {
    let t = tables(&[("tables/a", "x 1\n"), ("domains/d.example/aliases", "x y@z\n")]).unwrap();
    assert_eq!(t.get("domains/../tables/a", "x"), None);
    assert_eq!(t.get("domains/d.example/../d.example/aliases", "x"), None);
    assert_eq!(t.get("domains/d.example/aliases", "x"), Some("y@z"));
}

#[test]
fn lists_keep_their_order() {
    let t = tables(&[("lists/p/members", "# c\nb@x\na@x # second\n")]).unwrap();
    assert_eq!(t.lines("lists/p/members").unwrap(), ["b@x", "a@x"]);
    assert_eq!(t.lines("lists/q/members"), None);
}

proptest::proptest! {
    #[test]
    fn any_bytes_load_or_fail_cleanly(bytes in proptest::collection::vec(0_u8.., 0..200)) {
        let files = BTreeMap::from([("tables/t".to_owned(), bytes)]);
        let _ = Tables::from_files(&files);
    }
}
