//! Figures of this process, as the kernel tells them when somebody asks for the metrics.

use std::sync::LazyLock;

use metrics_process::Collector;

static COLLECTOR: LazyLock<Collector> = LazyLock::new(|| Collector::new("ppsw_"));

/// Says what they mean.
pub(crate) fn describe() {
    COLLECTOR.describe();
}

/// Reads them anew: some small files of `/proc`.
pub(super) fn collect() {
    COLLECTOR.collect();
}
