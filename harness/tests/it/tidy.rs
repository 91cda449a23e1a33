use crate::support::top;
use std::path::{Path, PathBuf};

/// What each stage may use of the others.
const MAY_USE: [(&str, &[&str]); 6] = [
    ("scenario", &[]),
    ("plan", &["scenario"]),
    ("history", &["plan", "scenario"]),
    ("run", &["plan", "history", "scenario"]),
    ("oracle", &["plan", "history", "scenario"]),
    ("report", &["scenario", "plan", "history", "oracle"]),
];

/// The only parts of `run` that others may name: the machine, and the words for phases, errors,
/// faults and traps.
const OF_RUN: [&str; 4] = [
    "crate::run::machine",
    "use crate::run::trace::{ErrorCode, PhasePattern};",
    "use crate::run::trace::{ErrorCode, PhasePattern, Trap};",
    "use crate::run::trace::{ErrorCode, Fault, KillWhen, Phase, PhasePattern, Whom};",
];

fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                found.extend(files(&path, ending));
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn stages_use_only_those_before_them() {
    let stages: Vec<&str> = MAY_USE.iter().map(|(stage, _)| *stage).collect();
    for (stage, allowed) in MAY_USE {
        for file in files(&top().join("harness/src").join(stage), ".rs") {
            let text = std::fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                let used = stages.iter().filter(|other| line.contains(&format!("crate::{other}")));
                for other in used {
                    let of_run = *other == "run" && OF_RUN.iter().any(|part| line.contains(part));
                    let before = allowed.contains(other) || *other == stage || of_run;
                    let place = format!("{}:{}", file.display(), number + 1);
                    assert!(before, "{place}: {stage} must not use {other}");
                }
            }
        }
    }
}

#[test]
fn files_stay_within_600_lines_of_100_characters() {
    for file in files(&top(), ".rs") {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.lines().count();
        assert!(lines <= 600, "{} has {lines} lines: it has two subjects", file.display());
        for (number, line) in text.lines().enumerate() {
            let width = line.chars().count();
            assert!(width <= 100, "{}:{}: {width} characters", file.display(), number + 1);
        }
    }
}

#[test]
fn every_path_in_the_architecture_exists() {
    let text = std::fs::read_to_string(top().join("ARCHITECTURE.md")).unwrap();
    assert!(text.lines().count() <= 100, "at most 100 lines");
    let mut checked = 0;
    for path in text.split('`').skip(1).step_by(2) {
        let is_path = path.contains('/') && !path.contains([' ', '<', '*', ':']);
        if is_path {
            assert!(top().join(path).exists(), "{path} is not there");
            checked += 1;
        }
    }
    assert!(checked > 10, "only {checked} paths");
}

#[test]
fn every_path_in_the_documents_exists() {
    let mut checked = 0;
    for file in files(&top().join("docs"), ".md") {
        let text = std::fs::read_to_string(&file).unwrap();
        for path in text.split('`').skip(1).step_by(2) {
            if ["src/", "harness/", "scenarios/"].iter().any(|start| path.starts_with(start)) {
                assert!(top().join(path).exists(), "{}: {path} is not there", file.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 10, "only {checked} paths");
}

#[test]
fn every_test_that_the_documents_name_is_there() {
    let sources: Vec<String> =
        files(&top(), ".rs").iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let text = std::fs::read_to_string(top().join("docs/hardened-rows.md")).unwrap();
    let is_test = |name: &&str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        name.matches('_').count() > 2 && name.chars().all(plain)
    };
    let mut checked = 0;
    for name in text.split('`').skip(1).step_by(2).filter(is_test) {
        let start = format!("fn {name}(");
        assert!(sources.iter().any(|source| source.contains(&start)), "no test is named {name}");
        checked += 1;
    }
    assert!(checked > 60, "only {checked} tests");
}

#[test]
fn the_changelog_is_at_this_version() {
    let text = std::fs::read_to_string(top().join("CHANGELOG.md")).unwrap();
    let first = text.lines().find(|line| line.starts_with("## ")).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(first.contains("Unreleased") || first.contains(version), "{first}");
}

#[test]
fn no_file_names_a_machine_or_the_making_of_this_project() {
    let endings = [".rs", ".md", ".toml", ".json"];
    for file in endings.iter().flat_map(|ending| files(&top(), ending)) {
        let text = std::fs::read_to_string(&file).unwrap();
        let own = file.ends_with("tests/it/tidy.rs") || file.ends_with("tests/it/results.rs");
        for word in ["/root/", "/home/", "/work/"] {
            assert!(own || !text.contains(word), "{} holds {word}", file.display());
        }
    }
}

#[test]
fn the_readme_shows_commands_that_exist() {
    let text = std::fs::read_to_string(top().join("README.md")).unwrap();
    for scenario in text.split_whitespace().filter(|word| word.starts_with("scenarios/")) {
        let path = scenario.trim_matches(|c: char| !c.is_alphanumeric());
        assert!(top().join(path).exists(), "{path}");
    }
}

#[test]
fn every_dependency_may_be_used_under_our_licences() {
    const ALLOWED: [&str; 10] = [
        "MIT",
        "Apache-2.0",
        "Unicode-3.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "Zlib",
        "Unlicense",
        "CC0-1.0",
        "BSL-1.0",
    ];
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        // What other platforms would need was never fetched.
        .args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
        .current_dir(top())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or("none");
        let mut choices = licence.split(" OR ").flat_map(|part| part.split('/'));
        let fits = choices.any(|choice| {
            choice.trim_matches(['(', ')']).split(" AND ").all(|part| {
                ALLOWED
                    .iter()
                    .any(|allowed| part.trim_matches(['(', ')', ' ']).starts_with(allowed))
            })
        });
        assert!(fits, "{name} is under {licence}");
    }
}
