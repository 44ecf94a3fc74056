//! `ppswd.toml` as people write it.

use super::*;

const GOOD: &str = r#"
name = "ppsw-1.example"
data = "data"
log = "log"
config = "../config"
certificates = "../certs"
control = "127.10.1.9:2590"
http = "127.10.1.9:2580"
[[listener]]
service = "smtp"
address = "127.10.1.1:2525"
"#;

#[test]
fn a_misspelt_option_is_an_error_with_its_line() {
    let error = toml::from_str::<NodeConfig>(&GOOD.replace("http =", "htp =")).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("line 8") && text.contains("htp"), "{text}");
}

#[test]
fn a_retry_rule_is_read_and_a_bad_one_refused() {
    let with = |rule: &str| toml::from_str::<NodeConfig>(&format!("retry = \"{rule}\"\n{GOOD}"));
    let config = with("F,1h,2s").unwrap();
    let wait = config.retry.unwrap().next(Duration::ZERO);
    assert_eq!(wait, Some(Duration::from_secs(2)));
    assert_eq!(config.drain_notice, Duration::from_secs(3));
    assert_eq!(config.takeover_grace, ppsw_spool::limits::TAKEOVER_GRACE);
    assert!(with("F,1h").is_err());
}

#[test]
fn the_scrub_is_switched_off_only_on_purpose() {
    let parsed = |line: &str| {
        let text = GOOD.replace("[[listener]]", &format!("{line}\n[[listener]]"));
        toml::from_str::<NodeConfig>(&text)
    };
    assert_eq!(parsed("").unwrap().scrub_period(), Some(ppsw_spool::limits::SCRUB_PERIOD));
    let daily = parsed("scrub_period = \"1day\"").unwrap();
    assert_eq!(daily.scrub_period(), Some(Duration::from_secs(86_400)));
    assert_eq!(parsed("scrub_period = \"0s\"").unwrap().scrub_period(), None);
    assert_eq!(parsed("scrub_period = \"0\"").unwrap().scrub_period(), None);
    let often = parsed("scrub_period = \"1s\"").unwrap().check().unwrap_err();
    assert!(often.contains("1s") && often.contains("never"), "{often}");
    let text = parsed("scrub_period = \"weekly\"").unwrap_err().to_string();
    assert!(text.contains("weekly") && text.contains("7days"), "{text}");
}

#[test]
fn sizes_are_numbers_with_or_without_a_unit() {
    let with = |value: &str| {
        let text = format!("check_spool_space = {value}\n{GOOD}");
        toml::from_str::<NodeConfig>(&text).map(|config| config.check_spool_space)
    };
    assert_eq!(with("\"1000M\"").unwrap(), 1_048_576_000);
    assert_eq!(with("\"3G\"").unwrap(), 3 << 30);
    assert_eq!(with("\"0\"").unwrap(), 0);
    assert_eq!(with("123456").unwrap(), 123_456);
    for bad in [
        "\"1000MB\"",
        "\"MM\"",
        "\"1MM\"",
        "\"\"",
        "\"-1\"",
        "-1",
        "\"99999999999999999999\"",
        "\"99999999999G\"",
    ] {
        assert!(with(bad).is_err(), "{bad}");
    }
    let default: NodeConfig = toml::from_str(GOOD).unwrap();
    assert_eq!((default.check_spool_space, default.check_spool_inodes), (1000 << 20, 1000));
}

#[test]
fn a_node_has_some_threads() {
    let with = |line: &str| toml::from_str::<NodeConfig>(&format!("{line}\n{GOOD}")).unwrap();
    for (line, threads) in [("", None), ("threads = 1", Some(1)), ("threads = 1024", Some(1024))] {
        let config = with(line);
        assert_eq!(config.threads, threads);
        config.check().unwrap();
    }
    for line in ["threads = 0", "threads = 1025"] {
        let error = with(line).check().unwrap_err();
        assert!(error.contains(line) && error.contains("1 to 1024"), "{error}");
    }
}

#[test]
fn an_address_used_twice_is_refused() {
    let config: NodeConfig = toml::from_str(&GOOD.replace("2580", "2590")).unwrap();
    assert!(config.check().unwrap_err().contains("used twice"));
}
