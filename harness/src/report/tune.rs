//! What `tune` makes of its rows: a recommendation for what may be lost and what may take how
//! long, and a picture of both.
//!
//! Pure: functions of the rows of the report.

use super::cost::Config;
use std::fmt;
use std::str::FromStr;

/// What a power cut may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LossBudget {
    /// At most so many acknowledged commits.
    Commits(u64),
    /// At most the commits of so many milliseconds.
    Ms(f64),
}

/// How long a commit may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatencyBudget {
    /// Of which commits.
    pub quantile: Quantile,
    /// How long.
    pub us: f64,
}

/// Which commits a latency is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantile {
    /// Half of them are faster.
    P50,
    /// 99 of 100 are.
    P99,
    /// 999 of 1,000 are.
    P999,
    /// The slowest.
    Max,
}

/// A budget that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotABudget(&'static str);

impl FromStr for LossBudget {
    type Err = NotABudget;

    fn from_str(text: &str) -> Result<Self, NotABudget> {
        let text = text.trim();
        let wrong = NotABudget("a loss budget is 0, or like 10commits, or like 50ms");
        if text == "0" {
            return Ok(Self::Commits(0));
        }
        if let Some(number) = text.strip_suffix("commits").or(text.strip_suffix("commit")) {
            return number.trim().parse().map(Self::Commits).map_err(|_| wrong);
        }
        match humantime::parse_duration(text) {
            Ok(time) => Ok(Self::Ms(time.as_secs_f64() * 1e3)),
            Err(_) => Err(wrong),
        }
    }
}

impl FromStr for LatencyBudget {
    type Err = NotABudget;

    fn from_str(text: &str) -> Result<Self, NotABudget> {
        let wrong =
            NotABudget("a latency budget is like p99=5ms; quantiles are p50, p99, p999, max");
        let (name, time) = text.split_once('=').ok_or(wrong.clone())?;
        let quantile = match name.trim() {
            "p50" => Quantile::P50,
            "p99" => Quantile::P99,
            "p999" | "p99.9" => Quantile::P999,
            "max" => Quantile::Max,
            _ => return Err(wrong),
        };
        let time = humantime::parse_duration(time.trim()).map_err(|_| wrong)?;
        Ok(Self { quantile, us: time.as_secs_f64() * 1e6 })
    }
}

impl fmt::Display for LossBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commits(0) => f.write_str("0"),
            Self::Commits(most) => write!(f, "{most}commits"),
            Self::Ms(most) => write!(f, "{most}ms"),
        }
    }
}

impl fmt::Display for LatencyBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}us", self.quantile.as_str(), self.us)
    }
}

impl Quantile {
    const fn as_str(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Max => "max",
        }
    }
}

impl LossBudget {
    fn allows(self, config: &Config) -> bool {
        let Some(loss) = &config.power else { return false };
        let sound = loss.corrupt_states + loss.not_a_prefix_states == 0;
        // What the recording was too short to see the end of may be any amount.
        sound
            && !loss.loss_is_at_least
            && match self {
                Self::Commits(most) => loss.loss_commits.max <= lossless(most),
                Self::Ms(most) => loss.loss_ms.is_some_and(|ms| ms.max <= most),
            }
    }

    fn describe(self) -> String {
        match self {
            Self::Commits(0) => "no acknowledged commit".to_owned(),
            Self::Commits(most) => format!("at most {most} acknowledged commits"),
            Self::Ms(most) => format!("at most the commits of {most} ms"),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of commits stay far below 2^52")]
fn lossless(count: u64) -> f64 {
    count as f64
}

impl LatencyBudget {
    fn of(self, config: &Config) -> f64 {
        let us = config.commit_us;
        match self.quantile {
            Quantile::P50 => us.p50,
            Quantile::P99 => us.p99,
            Quantile::P999 => us.p999,
            Quantile::Max => us.max,
        }
    }

    fn describe(self) -> String {
        format!("{} ≤ {:.3} ms", self.quantile.as_str(), self.us / 1e3)
    }
}

/// What a row is called in words and in the picture.
#[must_use]
pub fn name(config: &Config) -> String {
    let mut name = if config.journal_mode == "delete" {
        format!("{} delete", config.synchronous)
    } else {
        format!("{}+{}", config.synchronous, config.wal_autocheckpoint)
    };
    if config.checkpoint_owner {
        name.push_str("+owner");
    }
    if config.page_bytes > 0 {
        name = format!("{name} page {}", config.page_bytes);
    }
    if let Some(workers) = config.workers {
        name = format!("{name} {workers} workers");
    }
    if let Some([least, most]) = config.events_per_append {
        name = format!("{name} {least}–{most} rows");
    }
    name
}

/// Whether a row differs from the workload only by pragmas: what can be recommended.
fn is_pragmas_alone(config: &Config) -> bool {
    config.workers.is_none() && config.events_per_append.is_none()
}

/// The pragmas of a row, to be pasted.
#[must_use]
pub fn snippet(config: &Config) -> String {
    let mut lines = Vec::new();
    if config.page_bytes > 0 {
        let bytes = config.page_bytes;
        lines.push(format!("PRAGMA page_size = {bytes};  -- before the first table is made"));
    }
    lines.push(format!("PRAGMA journal_mode = {};", config.journal_mode.to_uppercase()));
    lines.push(format!("PRAGMA synchronous = {};", config.synchronous.to_uppercase()));
    if config.journal_mode != "delete" {
        lines.push(format!("PRAGMA wal_autocheckpoint = {};", config.wal_autocheckpoint));
    }
    if config.checkpoint_owner {
        lines
            .push("-- and one process that checkpoints: PRAGMA wal_checkpoint(PASSIVE)".to_owned());
    }
    lines.join("\n")
}

fn told(config: &Config) -> String {
    let loss = match &config.power {
        None => "loss not measured".to_owned(),
        Some(loss) if loss.corrupt_states + loss.not_a_prefix_states > 0 => {
            format!("damaged in {} of {} images", loss.corrupt_states, loss.states)
        }
        Some(loss) if loss.loss_is_at_least => {
            format!("a power cut loses {:.0} commits and more", loss.loss_commits.max)
        }
        Some(loss) if loss.loss_commits.max == 0.0 => {
            format!("a power cut lost nothing acknowledged in {} images", loss.states)
        }
        Some(loss) => {
            let ms = loss.loss_ms.map_or_else(|| "–".to_owned(), |ms| format!("{:.1}", ms.max));
            format!(
                "a power cut loses {:.1} commits on average and {:.0} at worst, those of {ms} ms",
                loss.loss_commits.mean, loss.loss_commits.max
            )
        }
    };
    format!(
        "p50 {:.0} µs, p99 {:.0} µs, {:.0} commits/s, {:.2} fsyncs a commit; {loss}",
        config.commit_us.p50, config.commit_us.p99, config.commits_per_s, config.fsyncs_per_commit
    )
}

/// The cheapest row that keeps both budgets, why, and what lies beside it.
#[must_use]
pub fn recommend(configs: &[Config], loss: LossBudget, latency: Option<LatencyBudget>) -> String {
    let asked = match latency {
        None => loss.describe(),
        Some(latency) => format!("{}, and {}", loss.describe(), latency.describe()),
    };
    // Of a row that made no commit neither latency nor rate is known.
    let rows = || configs.iter().filter(|c| is_pragmas_alone(c) && c.commits_per_s > 0.0);
    let quick = |config: &&Config| latency.is_none_or(|budget| budget.of(config) <= budget.us);
    let by_speed = |a: &&Config, b: &&Config| a.commits_per_s.total_cmp(&b.commits_per_s);
    let best = rows().filter(|config| loss.allows(config)).filter(quick).max_by(by_speed);
    let mut text = format!("Asked for: a power cut may cost {asked}.\n");
    let line =
        |what: &str, config: &Config| format!("{what} {}: {}.\n", name(config), told(config));
    let Some(best) = best else {
        text.push_str("No row meets both.\n");
        if let Some(safe) = rows().filter(|config| loss.allows(config)).max_by(by_speed) {
            text.push_str(&line("The fastest that loses no more:", safe));
        }
        if let Some(fast) =
            rows().filter(quick).filter(|c| is_sound(c)).min_by(|a, b| by_loss(a, b))
        {
            text.push_str(&line("The safest that is as fast:", fast));
        }
        return text;
    };
    text.push_str(&line("Recommended:", best));
    text = [text, snippet(best), "\n".to_owned()].join("\n");
    text.push_str(
        "Why: of the rows that keep to what was asked for it makes the most commits a second.\n",
    );
    let better =
        rows().filter(|config| is_sound(config) && by_loss(config, best).is_lt()).max_by(by_speed);
    match better {
        Some(better) => text.push_str(&line("Next better:", better)),
        None => text.push_str("Next better: no row loses less.\n"),
    }
    let cheaper = rows()
        .filter(|config| is_sound(config) && config.commits_per_s > best.commits_per_s)
        .min_by(by_speed);
    match cheaper {
        Some(cheaper) => text.push_str(&line("Next cheaper:", cheaper)),
        None => text.push_str("Next cheaper: no sound row makes more commits a second.\n"),
    }
    text
}

fn is_sound(config: &Config) -> bool {
    let sound = |loss: &super::cost::PowerLoss| loss.corrupt_states + loss.not_a_prefix_states == 0;
    config.power.as_ref().is_some_and(sound)
}

fn by_loss(a: &Config, b: &Config) -> std::cmp::Ordering {
    let loss = |config: &Config| {
        let power = config.power.as_ref();
        power.map_or(f64::INFINITY, |loss| {
            if loss.loss_is_at_least { f64::INFINITY } else { loss.loss_commits.max }
        })
    };
    loss(a).total_cmp(&loss(b))
}

/// Width and height of the picture, and what is left free around it.
const SIZE: (f64, f64) = (860.0, 520.0);
/// Left, right, bottom, top.
const MARGIN: (f64, f64, f64, f64) = (70.0, 110.0, 60.0, 40.0);
const WIDTH: f64 = SIZE.0 - MARGIN.0 - MARGIN.1;
const HEIGHT: f64 = SIZE.1 - MARGIN.2 - MARGIN.3;

/// The picture's axes: p99 in µs to the right, lost commits upwards, both logarithmic.
struct Axes {
    least_us: f64,
    most_us: f64,
    most_commits: f64,
}

impl Axes {
    fn of(points: &[(f64, f64, &Config)]) -> Self {
        let most = |of: fn(&(f64, f64, &Config)) -> f64| points.iter().map(of).fold(1.0, f64::max);
        let most_us = most(|point| point.0) * 1.3;
        let least_us = points.iter().map(|point| point.0).fold(most_us, f64::min) / 1.3;
        Self { least_us, most_us, most_commits: most(|point| point.1) * 1.3 }
    }

    fn x(&self, us: f64) -> f64 {
        let whole = (self.most_us / self.least_us).ln().max(1e-9);
        MARGIN.0 + WIDTH * (us / self.least_us).ln() / whole
    }

    /// One commit is far from none: the scale is logarithmic in 1 + commits.
    fn y(&self, commits: f64) -> f64 {
        MARGIN.3 + HEIGHT * (1.0 - commits.ln_1p() / self.most_commits.ln_1p())
    }

    fn grid(&self) -> Vec<String> {
        let (left, top) = (MARGIN.0, MARGIN.3);
        let mut lines = Vec::new();
        for us in ticks(self.least_us, self.most_us) {
            let (x, end, text) = (self.x(us), top + HEIGHT, top + HEIGHT + 16.0);
            lines.push(format!(
                "<line x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{end}\" \
                 stroke=\"#ddd\"/>\n\
                 <text x=\"{x:.1}\" y=\"{text}\" text-anchor=\"middle\">{us:.0}</text>"
            ));
        }
        let steps = [0.0, 1.0, 10.0, 100.0, 1_000.0, 10_000.0];
        for commits in steps.into_iter().filter(|commits| *commits <= self.most_commits) {
            let (y, end, text) = (self.y(commits), left + WIDTH, left - 6.0);
            lines.push(format!(
                "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{end}\" y2=\"{y:.1}\" \
                 stroke=\"#ddd\"/>\n\
                 <text x=\"{text}\" y=\"{:.1}\" text-anchor=\"end\">{commits:.0}</text>",
                y + 4.0
            ));
        }
        lines.push(format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">p99 of COMMIT, µs</text>\n\
             <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">\
             acknowledged commits that a power cut loses at worst</text>",
            left + WIDTH / 2.0,
            SIZE.1 - 14.0,
            top + HEIGHT / 2.0
        ));
        lines
    }
}

/// Loss against latency: the rows that no other beats in both are joined.
#[must_use]
pub fn pareto(configs: &[Config]) -> String {
    let points: Vec<(f64, f64, &Config)> = configs
        .iter()
        .filter(|config| config.commits_per_s > 0.0)
        .filter_map(|config| {
            let loss = config.power.as_ref()?;
            Some((config.commit_us.p99.max(1.0), loss.loss_commits.max, config))
        })
        .collect();
    let axes = Axes::of(&points);
    let mut svg = vec![format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>",
        SIZE.0, SIZE.1
    )];
    svg.extend(axes.grid());
    let corners = front(&points);
    let corners =
        corners.iter().map(|(us, lost)| format!("{:.1},{:.1}", axes.x(*us), axes.y(*lost)));
    svg.push(format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#2a7\" stroke-width=\"1.5\"/>",
        corners.collect::<Vec<_>>().join(" ")
    ));
    for (us, lost, config) in &points {
        let color = if is_sound(config) { "#247" } else { "#c22" };
        let more = config.power.as_ref().is_some_and(|loss| loss.loss_is_at_least);
        let more = if more { " and more" } else { "" };
        let (x, y, name) = (axes.x(*us), axes.y(*lost), name(config));
        svg.push(format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{color}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\">{name}{more}</text>",
            x + 6.0,
            y - 4.0
        ));
    }
    svg.push("</svg>\n".to_owned());
    svg.join("\n")
}

/// Round numbers between two on a logarithmic axis.
fn ticks(from: f64, to: f64) -> Vec<f64> {
    let mut ticks = Vec::new();
    let mut decade = 1.0;
    while decade <= to {
        for step in [1.0, 2.0, 5.0] {
            if (from..=to).contains(&(decade * step)) {
                ticks.push(decade * step);
            }
        }
        decade *= 10.0;
    }
    ticks
}

/// The sound points that no other beats in both, from the left.
fn front(points: &[(f64, f64, &Config)]) -> Vec<(f64, f64)> {
    let mut sound: Vec<(f64, f64)> =
        points.iter().filter(|p| is_sound(p.2)).map(|p| (p.0, p.1)).collect();
    sound.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut front: Vec<(f64, f64)> = Vec::new();
    for point in sound {
        if front.last().is_none_or(|last| point.1 < last.1) {
            front.push(point);
        }
    }
    front
}

#[cfg(test)]
mod tests {
    use super::super::cost::{PowerLoss, Quantiles};
    use super::super::power::Window;
    use super::*;

    fn row(synchronous: &str, p99: f64, commits_per_s: f64, lost: f64, corrupt: u64) -> Config {
        let window = |max| Window { mean: max / 2.0, p99: max, max };
        Config {
            synchronous: synchronous.to_owned(),
            wal_autocheckpoint: 100,
            commit_us: Quantiles { p50: p99 / 2.0, p99, p999: p99 * 2.0, max: p99 * 4.0 },
            commits_per_s,
            journal_mode: "wal".to_owned(),
            power: Some(PowerLoss {
                states: 1_000,
                corrupt_states: corrupt,
                loss_commits: window(lost),
                loss_ms: Some(window(lost * 2.0)),
                ..PowerLoss::default()
            }),
            ..Config::default()
        }
    }

    fn rows() -> Vec<Config> {
        vec![
            row("off", 50.0, 9_000.0, 300.0, 400),
            row("normal", 200.0, 5_000.0, 20.0, 0),
            row("full", 4_000.0, 400.0, 0.0, 0),
        ]
    }

    #[track_caller]
    fn check(loss: &str, latency: Option<&str>, parts: &[&str]) {
        let latency = latency.map(|text| text.parse().unwrap());
        let text = recommend(&rows(), loss.parse().unwrap(), latency);
        for part in parts {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }

    #[test]
    fn cheapest_row_that_keeps_both_budgets_is_recommended_with_its_neighbours() {
        check("0", None, &["Recommended: full+100", "PRAGMA synchronous = FULL;"]);
        check("0", None, &["Next better: no row", "Next cheaper: normal+100"]);
        check("20commits", None, &["Recommended: normal+100", "Next better: full+100"]);
        check("50ms", Some("p99=5ms"), &["Recommended: normal+100"]);
        check("19commits", Some("p99=5ms"), &["Recommended: full+100"]);
    }

    #[test]
    fn no_row_that_is_damaged_is_recommended_however_fast() {
        check("100000commits", None, &["Recommended: normal+100", "no sound row"]);
    }

    #[test]
    fn row_that_made_no_commit_is_never_recommended_and_not_in_the_picture() {
        let idle = Config { commits_per_s: 0.0, ..row("full", 0.0, 0.0, 0.0, 0) };
        let text = recommend(std::slice::from_ref(&idle), "0".parse().unwrap(), None);
        assert!(text.contains("No row meets both"), "{text}");
        assert!(!pareto(&[idle]).contains("<circle"));
    }

    #[test]
    fn budgets_that_no_row_keeps_together_are_told_to_be_such() {
        let parts = ["No row meets both", "loses no more: full+100", "as fast: normal+100"];
        check("0", Some("p99=1ms"), &parts);
    }

    #[test]
    fn budgets_are_read_with_their_unit() {
        assert_eq!("0".parse(), Ok(LossBudget::Commits(0)));
        assert_eq!("10commits".parse(), Ok(LossBudget::Commits(10)));
        assert_eq!("50ms".parse(), Ok(LossBudget::Ms(50.0)));
        assert!("ten".parse::<LossBudget>().is_err() && "5".parse::<LossBudget>().is_err());
        let budget: LatencyBudget = "p999=2ms".parse().unwrap();
        assert_eq!((budget.quantile, budget.us), (Quantile::P999, 2_000.0));
        assert_eq!(budget.to_string().parse(), Ok(budget));
        assert_eq!(LossBudget::Ms(50.0).to_string().parse(), Ok(LossBudget::Ms(50.0)));
        assert!("p98=2ms".parse::<LatencyBudget>().is_err());
        assert!("p99=2".parse::<LatencyBudget>().is_err());
    }

    #[test]
    fn picture_holds_every_row_and_joins_those_that_none_beats() {
        let svg = pareto(&rows());
        assert_eq!(svg.matches("<circle").count(), 3);
        let line = svg.lines().find(|line| line.contains("<polyline")).unwrap();
        assert_eq!(line.matches(',').count(), 2, "normal and full: {line}");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
