//! The table of `tune`, and what it shows in words.

use super::bound;
use super::cost::Config;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

const HEADER: [&str; 15] = [
    "synchronous",
    "autockpt",
    "p50 µs",
    "p99 µs",
    "p99.9 µs",
    "max µs",
    "commits/s",
    "fsync/commit",
    "ckpts",
    "ckpt time",
    "WAL max",
    "cycles killed",
    "acked",
    "lost to kills",
    "corrupt",
];

/// The rows as text; `markdown` for a file, boxes for a terminal.
#[must_use]
pub fn render(configs: &[Config], markdown: bool) -> String {
    let mut table = Table::new();
    table
        .load_style(if markdown { presets::ASCII_MARKDOWN } else { presets::UTF8_FULL_CONDENSED })
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(HEADER.iter().copied().chain(["power loss"]));
    for config in configs {
        table.add_row(cells(config));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

fn cells(c: &Config) -> Vec<String> {
    let autocheckpoint = if c.checkpoint_owner {
        format!("{} + owner", c.wal_autocheckpoint)
    } else {
        c.wal_autocheckpoint.to_string()
    };
    let zero = |count: u64, bound_95: f64| {
        if count == 0 { format!("0 ({})", bound::text(bound_95)) } else { count.to_string() }
    };
    vec![
        c.synchronous.clone(),
        autocheckpoint,
        format!("{:.0}", c.commit_us.p50),
        format!("{:.0}", c.commit_us.p99),
        format!("{:.0}", c.commit_us.p999),
        format!("{:.0}", c.commit_us.max),
        format!("{:.0}", c.commits_per_s),
        format!("{:.3}", c.fsyncs_per_commit),
        c.checkpoints.to_string(),
        format!("{:.1} %", c.checkpoint_time_share * 100.0),
        mebibytes(c.wal_high_water_bytes),
        c.cycles_killed.to_string(),
        c.acked.to_string(),
        zero(c.lost, c.lost_share_upper_95),
        zero(c.corrupt, c.corrupt_share_upper_95),
        c.power_loss.clone(),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "a figure for a reader")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// What the table shows, and what it cannot.
#[must_use]
pub fn in_words(configs: &[Config]) -> String {
    let acked: u64 = configs.iter().map(|config| config.acked).sum();
    let lost: u64 = configs.iter().map(|config| config.lost).sum();
    let corrupt: u64 = configs.iter().map(|config| config.corrupt).sum();
    let kills = if lost + corrupt == 0 {
        format!(
            "Kills cannot tell the levels apart: of {acked} acknowledged operations none was lost \
             and no database was damaged, at OFF as at EXTRA, because a page that was written \
             survives its process in the page cache."
        )
    } else {
        format!(
            "Of {acked} acknowledged operations {lost} were lost, and {corrupt} cycles left \
             damage. A kill cannot do that by itself: see the findings."
        )
    };
    format!(
        "{kills}\nWhat tells the levels apart is power loss, and that is not yet measured here: \
         choose between OFF, NORMAL and FULL by what a power cut may cost, not by this table's \
         zeros. In WAL mode EXTRA does what FULL does.\nLatency is that of COMMIT, an automatic \
         checkpoint included; a bound in brackets is the 95 % upper bound of the share."
    )
}
