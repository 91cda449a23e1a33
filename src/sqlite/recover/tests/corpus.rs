//! Damage by the byte, page after page: what a recovery saves of a board, and what it tells of the
//! rest. The whole corpus is run on demand and writes what it came to into `results/recover/`.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::*;

/// What is done to the bytes of a page.
type Damage = fn(&mut [u8], &mut ChaCha8Rng);

const DAMAGES: [(&str, Damage); 7] = [
    ("zeroed", |page, _| page.fill(0)),
    ("all ones", |page, _| page.fill(0xff)),
    ("noise", |page, random| random.fill(page)),
    ("header zeroed", |page, _| page[..8].fill(0)),
    ("one byte", |page, random| {
        let at = random.random_range(0..page.len());
        page[at] ^= random.random_range(1..=255_u8);
    }),
    ("a byte of the header", |page, random| {
        let at = random.random_range(0..12);
        page[at] ^= random.random_range(1..=255_u8);
    }),
    ("a sector of noise", |page, random| {
        let at = 512 * random.random_range(0..page.len() / 512);
        random.fill(&mut page[at..at + 512]);
    }),
];

/// What all recoveries of one kind of damage came to.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Tally {
    damage: String,
    recoveries: u64,
    /// Without a loss outside the damaged page.
    confined: u64,
    /// Without any loss.
    whole: u64,
    rows_lost: u64,
    /// Rows saved with another value than they had: their columns have no checksum, and the chain
    /// cannot tell.
    rows_altered: u64,
    /// Rows whose commit the recovery itself said it could not compare with what was written.
    told_unverified: u64,
    /// Losses that the recovery did not tell, and alterations that it could have told.
    silent: Vec<String>,
    /// Results that were not sound.
    unsound: Vec<String>,
}

/// All of it, as `results/recover/corpus.json` has it.
#[derive(Debug, Serialize, Deserialize)]
struct Figures {
    command: String,
    sqlite_version: String,
    pages: u64,
    rows: u64,
    tallies: Vec<Tally>,
}

/// Damages each `step`-th page in each way, and recovers.
fn corpus(pages: u32, step: usize) -> Figures {
    let dir = tempfile::tempdir().unwrap();
    let path = board(&dir, pages);
    let original = rows(&path);
    let on_page = rows_on_pages(&path);
    let bytes = fs::read(&path).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut tallies = Vec::new();
    for (name, damage) in DAMAGES {
        let mut tally = Tally { damage: name.to_owned(), ..Tally::default() };
        for number in (1..=bytes.len() / 4096).step_by(step) {
            let place = tempfile::tempdir().unwrap();
            let copy = place.path().join("board.db");
            let mut damaged = bytes.clone();
            damage(&mut damaged[(number - 1) * 4096..number * 4096], &mut random);
            fs::write(&copy, &damaged).unwrap();
            fs::copy(beside(&path, "-anchor"), beside(&copy, "-anchor")).unwrap();
            let request = Request { apply: true, backup: None };
            let (outcome, recovery) = outcome(&copy, &original, &request);
            tally.add(number, on_page[&u32::try_from(number).unwrap()], &outcome, &recovery);
        }
        tallies.push(tally);
    }
    Figures {
        command: COMMAND.to_owned(),
        sqlite_version: rusqlite::version().to_owned(),
        pages: bytes.len() as u64 / 4096,
        rows: original.values().map(|rows| rows.len() as u64).sum(),
        tallies,
    }
}

impl Tally {
    fn add(&mut self, page: usize, there: u64, outcome: &Outcome, recovery: &Recovery) {
        let lost: u64 = outcome.lost.values().sum();
        self.recoveries += 1;
        self.whole += u64::from(lost == 0);
        self.rows_lost += lost;
        self.rows_altered += outcome.altered.values().sum::<u64>();
        self.told_unverified += recovery.commits_unverified;
        self.confined += u64::from(lost <= there);
        for (table, told) in [("commits", recovery.commits_unverified), ("events", 0)] {
            if let Some(rows) = outcome.altered.get(table).filter(|rows| **rows > told) {
                self.silent.push(format!("page {page}: {rows} of {table} altered"));
            }
        }
        self.silent.extend(outcome.silent.iter().map(|text| format!("page {page}: {text}")));
        if !outcome.sound {
            self.unsound.push(format!("page {page}: {:?}", recovery.after.first()));
        }
    }
}

#[track_caller]
fn check(figures: &Figures) {
    let (mut confined, mut all) = (0, 0);
    for tally in &figures.tallies {
        assert_eq!(tally.silent, [""; 0], "{}", tally.damage);
        assert_eq!(tally.unsound, [""; 0], "{}", tally.damage);
        confined += tally.confined;
        all += tally.recoveries;
    }
    assert!(confined * 100 >= all * 99, "{confined} of {all}: {figures:?}");
}

#[test]
fn damage_of_a_page_costs_its_own_rows_and_each_lost_one_is_counted() {
    check(&corpus(60, 7));
}

/// What makes the figures.
const COMMAND: &str =
    "cargo test --release -p hardboard --lib corpus_of_every_page -- --ignored --nocapture";

fn results() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("results/recover")
}

impl Figures {
    /// `SUMMARY.md`: a function of the figures alone.
    fn summary(&self) -> String {
        let sum = |count: fn(&Tally) -> u64| self.tallies.iter().map(count).sum::<u64>();
        let (all, confined) = (sum(|t| t.recoveries), sum(|t| t.confined));
        let mut text = format!(
            "# Recovery of a board with one damaged page\n\nMade by `{}` (SQLite {}): each of the \
             {} pages of a board with {} rows damaged in each of {} ways, {all} recoveries with \
             `recover --apply`, each compared row by row with the board as it was.\n\n\
             | damage | recoveries | nothing lost outside the page | nothing lost | rows lost | \
             rows altered, without a checksum | lost in silence |\n\
             |---|---:|---:|---:|---:|---:|---:|\n",
            self.command,
            self.sqlite_version,
            self.pages,
            self.rows,
            self.tallies.len()
        );
        for t in &self.tallies {
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} |",
                t.damage,
                t.recoveries,
                t.confined,
                t.whole,
                t.rows_lost,
                t.rows_altered,
                t.silent.len()
            )
            .unwrap();
        }
        let hundredths = confined * 10_000 / all.max(1);
        writeln!(
            text,
            "\nIn {confined} of {all} ({}.{:02} %) no row outside the damaged page was lost; {} \
             losses were not told; {} results were not sound.\n\nNot shown: damage of more than \
             one page at once. Rows of tables that only change (tasks, runs) have no checksum: a \
             byte altered in one of them is saved as it is found.",
            hundredths / 100,
            hundredths % 100,
            sum(|t| t.silent.len() as u64),
            sum(|t| t.unsound.len() as u64)
        )
        .unwrap();
        text
    }
}

#[test]
#[ignore = "some minutes in a release build; it writes its figures into results/recover/"]
#[expect(clippy::print_stderr, reason = "the figures are what it is for")]
fn corpus_of_every_page_of_a_board_of_200() {
    let figures = corpus(200, 1);
    eprintln!("{}", figures.summary());
    for silent in figures.tallies.iter().flat_map(|tally| &tally.silent) {
        eprintln!("  {silent}");
    }
    check(&figures);
    fs::create_dir_all(results()).unwrap();
    let text = serde_json::to_string_pretty(&figures).unwrap();
    fs::write(results().join("corpus.json"), text + "\n").unwrap();
    fs::write(results().join("SUMMARY.md"), figures.summary()).unwrap();
}

#[test]
fn summary_of_the_corpus_is_what_its_figures_make() {
    let figures = fs::read(results().join("corpus.json")).unwrap();
    let figures: Figures = serde_json::from_slice(&figures).unwrap();
    assert_eq!(fs::read_to_string(results().join("SUMMARY.md")).unwrap(), figures.summary());
    assert!(figures.pages >= 200 && figures.tallies.len() == DAMAGES.len());
    check(&figures);
}
