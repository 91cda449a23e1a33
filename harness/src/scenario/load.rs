//! Reading a scenario file, with every complaint on its line and column.

pub(super) use super::check::Complaint;
use super::{Scenario, check};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A scenario file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It says something that is not understood or cannot be.
    #[error("{name}:{line}:{column}: {text}")]
    Content {
        /// The file, or the name of a built-in scenario.
        name: String,
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
        /// What is wrong, in one line.
        text: String,
    },
}

/// Reads and checks the file at `path`.
pub fn load(path: &Path) -> Result<Scenario, ScenarioError> {
    read(path, &check::check)
}

/// Reads a file of any shape, and checks it.
pub(super) fn read<T: DeserializeOwned>(
    path: &Path,
    check: &dyn Fn(&T) -> Result<(), Complaint>,
) -> Result<T, ScenarioError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ScenarioError::Read { path: path.to_owned(), source })?;
    parse_as(&path.display().to_string(), &text, check)
}

/// Checks the text of a scenario; `name` is what complaints call it.
pub fn parse(name: &str, text: &str) -> Result<Scenario, ScenarioError> {
    parse_as(name, text, &check::check)
}

/// Checks a text of any shape.
pub(super) fn parse_as<T: DeserializeOwned>(
    name: &str,
    text: &str,
    check: &dyn Fn(&T) -> Result<(), Complaint>,
) -> Result<T, ScenarioError> {
    let complain = |offset: usize, what: &str| {
        let (line, column) = place(text, offset);
        let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
        ScenarioError::Content { name: name.to_owned(), line, column, text: what }
    };
    let scenario: T = toml::from_str(text)
        .map_err(|error| complain(error.span().map_or(0, |span| span.start), error.message()))?;
    check(&scenario)
        .map_err(|complaint| complain(offset_of(text, complaint.path), &complaint.text))?;
    Ok(scenario)
}

/// Line and column, both from 1, of a byte offset.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Where the value at `path` begins; where it is not written, its table or the file's start.
///
/// In an array of tables the first one that has the key is meant.
fn offset_of(text: &str, path: &[&str]) -> usize {
    let Ok(root) = DeTable::parse(text) else { return 0 };
    let mut offset = 0;
    let mut table = root.get_ref();
    for key in path {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == key) else {
            break;
        };
        offset = name.span().start;
        match next_table(value) {
            Some(inner) => table = inner,
            None => break,
        }
    }
    offset
}

fn next_table<'a, 'i>(value: &'a Spanned<DeValue<'i>>) -> Option<&'a DeTable<'i>> {
    match value.get_ref() {
        DeValue::Table(table) => Some(table),
        DeValue::Array(array) => array.iter().find_map(|item| match item.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => None,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Expect, FORMAT};
    use crate::verdict::FindingKind;

    const GOOD: &str = r#"format = 1
claim = "An acknowledged write survives."
expect = "pass"

[writers]
dispatcher = 1
worker = 2

[workload]
lease-ms = 20

[[setting]]
synchronous = "full"
wal-autocheckpoint = 100

[cycles]
count = 10

[kill]
commit = 1
"#;

    /// `GOOD` with one change is refused at this place with a text that holds `part`.
    #[track_caller]
    fn refused(from: &str, to: &str, at: (usize, usize), part: &str) {
        assert!(GOOD.contains(from), "the change must change something: {from}");
        let error = parse("x.toml", &GOOD.replace(from, to)).unwrap_err();
        let ScenarioError::Content { line, column, text, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!((*line, *column), at, "{error}");
        assert!(text.contains(part), "{error}");
        assert!(!error.to_string().contains('\n'), "one line: {error}");
    }

    #[test]
    fn a_good_file_is_read() {
        let scenario = parse("x.toml", GOOD).unwrap();
        assert_eq!(scenario.format, FORMAT);
        assert_eq!(scenario.expect, Expect::Pass);
        assert_eq!(scenario.setting[0].name(), "full+100");
    }

    #[test]
    fn a_misspelt_key_is_reported_on_its_line() {
        refused("lease-ms", "leese-ms", (10, 1), "leese-ms");
        refused("wal-autocheckpoint", "wal-autocheckpont", (14, 1), "wal-autocheckpont");
        refused("commit = 1", "comit = 1", (20, 1), "comit");
    }

    #[test]
    fn an_unknown_role_is_reported_on_its_line() {
        refused("worker = 2", "wroker = 2", (7, 1), "wroker");
    }

    #[test]
    fn an_unknown_value_is_reported_where_it_stands() {
        refused("\"full\"", "\"fulll\"", (13, 15), "fulll");
        refused("\"pass\"", "{ fail = \"lost\" }", (3, 19), "lost");
    }

    #[test]
    fn no_writers_is_refused() {
        refused("dispatcher = 1\nworker = 2", "reader = 1", (5, 2), "0 writers");
    }

    #[test]
    fn values_out_of_range_are_refused_at_their_key() {
        refused("lease-ms = 20", "lease-ms = 0", (10, 1), "not within");
        refused("count = 10", "run-ms = [9, 3]", (17, 1), "backwards");
        refused("commit = 1", "commit = 9", (19, 2), "only 3 processes");
        refused("= 100", "= 0", (12, 3), "checkpoint-owner");
        refused("format = 1", "format = 2", (1, 1), "format 2");
    }

    #[test]
    fn an_unknown_engine_is_refused_on_its_line() {
        refused("[writers]", "engine = \"3.50.3\"\n[writers]", (5, 10), "3.50.3");
        refused("[writers]", "engine = \"given\"\n[writers]", (5, 1), "--engine");
        let of_role = "wal-autocheckpoint = 100\nengine-of.visitor = \"3.5\"";
        refused("wal-autocheckpoint = 100", of_role, (15, 21), "3.5");
    }

    #[test]
    fn no_kills_at_all_must_be_meant() {
        let every = |kill: &str| format!("graceful-every = 1\n[kill]\n{kill}");
        refused("[kill]\ncommit = 1", &every(""), (19, 1), "none = true");
        refused("[kill]\ncommit = 1", &every("none = true\ncommit = 1"), (21, 1), "none = true");
        refused("commit = 1", "none = true", (20, 1), "graceful-every = 1");
        let text = GOOD.replace("[kill]\ncommit = 1", &every("none = true"));
        assert!(parse("x.toml", &text).unwrap().kill.none);
    }

    #[test]
    fn what_is_not_toml_is_refused_where_it_stops_being_toml() {
        refused("expect = ", "expect ", (3, 8), "");
    }

    #[test]
    fn an_expected_finding_is_read() {
        let text = GOOD.replace("expect = \"pass\"", "expect.fail = \"stale-write\"");
        let scenario = parse("x.toml", &text).unwrap();
        assert_eq!(scenario.expect, Expect::Fail(FindingKind::StaleWrite));
    }
}
