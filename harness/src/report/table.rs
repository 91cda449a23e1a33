//! The table of `tune`, and what it shows in words.

use super::cost::Config;
use super::{bound, tune};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

const COST: [&str; 14] = [
    "setting",
    "p50 µs",
    "p99 µs",
    "p99.9 µs",
    "max µs",
    "commits/s",
    "fsync/commit",
    "bytes/commit",
    "ckpts",
    "ckpt time",
    "stall ms: mean",
    "max",
    "WAL max",
    "loss at worst",
];

/// What each row costs, as text; `markdown` for a file, boxes for a terminal.
#[must_use]
pub fn render(configs: &[Config], markdown: bool) -> String {
    table(&COST, configs.iter().map(cells), markdown)
}

const DURABILITY: [&str; 13] = [
    "setting",
    "power cut: images",
    "corrupt",
    "no prefix",
    "loss, commits: mean",
    "p99",
    "max",
    "loss, ms: mean",
    "p99",
    "max",
    "cycles killed",
    "lost to kills",
    "corrupt by kills",
];

/// What each row can lose, likewise.
#[must_use]
pub fn render_durability(configs: &[Config], markdown: bool) -> String {
    table(&DURABILITY, configs.iter().map(losses), markdown)
}

fn table(
    header: &[&'static str],
    rows: impl Iterator<Item = Vec<String>>,
    markdown: bool,
) -> String {
    let mut table = Table::new();
    table
        .load_style(if markdown { presets::ASCII_MARKDOWN } else { presets::UTF8_FULL_CONDENSED })
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

fn cells(c: &Config) -> Vec<String> {
    // Of what was never done there is no time.
    let of_commits = |value: f64, digits: usize| {
        if c.commits_per_s > 0.0 { format!("{value:.digits$}") } else { "–".to_owned() }
    };
    vec![
        tune::name(c),
        of_commits(c.commit_us.p50, 0),
        of_commits(c.commit_us.p99, 0),
        of_commits(c.commit_us.p999, 0),
        of_commits(c.commit_us.max, 0),
        format!("{:.0}", c.commits_per_s),
        of_commits(c.fsyncs_per_commit, 3),
        of_commits(c.bytes_per_commit, 0),
        c.checkpoints.to_string(),
        format!("{:.1} %", c.checkpoint_time_share * 100.0),
        format!("{:.2}", c.checkpoint_stall_ms.mean),
        format!("{:.1}", c.checkpoint_stall_ms.max),
        mebibytes(c.wal_high_water_bytes),
        c.power_loss.clone(),
    ]
}

fn losses(c: &Config) -> Vec<String> {
    let zero = |count: u64, bound_95: f64| {
        if count == 0 { format!("0 ({})", bound::text(bound_95)) } else { count.to_string() }
    };
    let mut row = vec![tune::name(c)];
    match &c.power {
        None => row.extend(std::iter::repeat_n("not measured".to_owned(), 9)),
        Some(loss) => {
            let more = if loss.loss_is_at_least { "≥ " } else { "" };
            row.push(loss.states.to_string());
            row.push(zero(loss.corrupt_states, loss.corrupt_states_share_upper_95));
            row.push(zero(loss.not_a_prefix_states, loss.corrupt_states_share_upper_95));
            let (commits, ms) = (loss.loss_commits, loss.loss_ms);
            row.push(format!("{more}{:.1}", commits.mean));
            row.extend([commits.p99, commits.max].map(|n| format!("{more}{n:.0}")));
            row.extend(match ms {
                Some(ms) => [ms.mean, ms.p99, ms.max].map(|n| format!("{more}{n:.1}")),
                None => std::array::from_fn(|_| "–".to_owned()),
            });
        }
    }
    row.push(c.cycles_killed.to_string());
    row.push(zero(c.lost, c.lost_share_upper_95));
    row.push(zero(c.corrupt, c.corrupt_share_upper_95));
    row
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
        "{kills}\nPower cuts tell them apart: each row was recorded and every image judged is one \
         that a cut could leave (profile strict). *Loss* is what was acknowledged and is gone if \
         all that was unsynced is, over cuts after each acknowledgement; its milliseconds are \
         those in which so many commits are made at the row's own rate. In WAL mode EXTRA does \
         what FULL does; with a rollback journal FULL may lose the last commit and EXTRA not.\n\
         Latency is that of COMMIT, untraced, an automatic checkpoint included; a stall is one \
         checkpoint that wrote a page; a bound in brackets is the 95 % upper bound of the share."
    )
}
