//! Options of `policy.kdl` outside ACLs and routers, named as in Exim.

use std::time::Duration;

use super::{
    Options,
    compile::Compiler,
    list::Kind,
    source::{Setting, duration, flag, load, number, size, text},
};

/// Names of all options.
pub(crate) const NAMES: [&str; 26] = [
    "qualify_domain",
    "smtp_accept_max",
    "smtp_accept_reserve",
    "smtp_accept_max_per_host",
    "smtp_accept_max_per_relay_host",
    "smtp_reserve_hosts",
    "smtp_load_reserve",
    "shed_connections_over",
    "shed_queue_over",
    "shed_load_over",
    "shed_commit_over",
    "shed_space_under",
    "queue_only_load",
    "deliver_queue_load_max",
    "remote_sort_domains",
    "tls_try_verify_hosts",
    "message_size_limit",
    "bounce_return_size_limit",
    "errors_reply_to",
    "delay_warning",
    "ignore_bounce_errors_after",
    "auto_thaw",
    "check_spool_space",
    "check_spool_inodes",
    "hosts_treat_as_local",
    "allow_domain_literals",
];

/// Patterns of `remote_sort_domains`: each is compared with each destination of a message.
const SORTED_DOMAINS_MAX: usize = 100;

/// More connections than this do not fit into a process' file descriptors.
const CONNECTIONS_MAX: u64 = 1_000_000;

impl Default for Options {
    fn default() -> Self {
        Self {
            qualify_domain: "localhost".to_owned(),
            smtp_accept_max: 400,
            smtp_accept_reserve: 20,
            smtp_accept_max_per_host: 10,
            smtp_accept_max_per_relay_host: 10,
            smtp_load_reserve: None,
            shed_connections_over: None,
            shed_queue_over: None,
            shed_load_over: None,
            shed_commit_over: None,
            shed_space_under: None,
            queue_only_load: None,
            deliver_queue_load_max: None,
            remote_sort_domains: Vec::new(),
            message_size_limit: 100 << 20,
            bounce_return_size_limit: 10 << 10,
            errors_reply_to: None,
            delay_warning: Duration::from_secs(24 * 3_600),
            ignore_bounce_errors_after: Duration::from_secs(24 * 3_600),
            auto_thaw: Duration::from_secs(8 * 3_600),
            check_spool_space: 1_000 << 20,
            check_spool_inodes: 1_000,
            allow_domain_literals: false,
        }
    }
}

/// Sets one option.
pub(super) fn compile(setting: &Setting<'_>, compiler: &mut Compiler<'_>) {
    setting.only(&[], &mut compiler.errors);
    match setting.name {
        "hosts_treat_as_local" => {
            compiler.local_names = compiler.list_of(Kind::Domains, setting);
            return;
        }
        "smtp_reserve_hosts" => {
            compiler.reserve_hosts = compiler.list_of(Kind::Hosts, setting);
            return;
        }
        "tls_try_verify_hosts" => {
            compiler.certificate_hosts = compiler.list_of(Kind::Hosts, setting);
            return;
        }
        _ => {}
    }
    let errors = &mut compiler.errors;
    let options = &mut compiler.options;
    let Some(entry) = setting.value("see docs/policy.md", errors) else { return };
    let mut count = |slot: &mut usize| {
        if let Some(n) = number(entry, CONNECTIONS_MAX, errors) {
            // Bounded by CONNECTIONS_MAX.
            *slot = n as usize;
        }
    };
    match setting.name {
        "smtp_accept_max" => count(&mut options.smtp_accept_max),
        "smtp_accept_reserve" => count(&mut options.smtp_accept_reserve),
        "smtp_accept_max_per_host" => count(&mut options.smtp_accept_max_per_host),
        "smtp_accept_max_per_relay_host" => count(&mut options.smtp_accept_max_per_relay_host),
        "message_size_limit" => set(&mut options.message_size_limit, size(entry, errors)),
        "bounce_return_size_limit" => {
            set(&mut options.bounce_return_size_limit, size(entry, errors));
        }
        "queue_only_load" => options.queue_only_load = load(entry, errors),
        "deliver_queue_load_max" => options.deliver_queue_load_max = load(entry, errors),
        "smtp_load_reserve" => options.smtp_load_reserve = load(entry, errors),
        "shed_connections_over" => {
            options.shed_connections_over = number(entry, CONNECTIONS_MAX, errors);
        }
        "shed_queue_over" => options.shed_queue_over = number(entry, u64::MAX, errors),
        "shed_load_over" => options.shed_load_over = load(entry, errors),
        "shed_commit_over" => options.shed_commit_over = duration(entry, errors),
        "shed_space_under" => options.shed_space_under = size(entry, errors),
        "check_spool_space" => set(&mut options.check_spool_space, size(entry, errors)),
        "check_spool_inodes" => {
            set(&mut options.check_spool_inodes, number(entry, u64::MAX, errors));
        }
        "delay_warning" => set(&mut options.delay_warning, duration(entry, errors)),
        "ignore_bounce_errors_after" => {
            set(&mut options.ignore_bounce_errors_after, duration(entry, errors));
        }
        "auto_thaw" => set(&mut options.auto_thaw, duration(entry, errors)),
        "allow_domain_literals" => options.allow_domain_literals = flag(entry, errors),
        "errors_reply_to" => {
            options.errors_reply_to = text(entry, "an address", errors).map(str::to_owned);
        }
        "remote_sort_domains" => {
            let patterns = text(entry, "patterns like \"*.cam.ac.uk *.ac.uk\"", errors);
            let patterns = patterns.map(str::to_ascii_lowercase).unwrap_or_default();
            options.remote_sort_domains =
                patterns.split_whitespace().map(str::to_owned).take(SORTED_DOMAINS_MAX).collect();
        }
        "qualify_domain" => {
            let domain = text(entry, "a domain", errors).map(str::to_ascii_lowercase);
            set(&mut options.qualify_domain, domain);
        }
        _ => errors.unknown(setting.span, "option", setting.name, NAMES),
    }
}

fn set<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}
