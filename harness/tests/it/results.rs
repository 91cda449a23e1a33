use crate::support::top;
use killpoint::report::{Report, summary};

/// The folders of committed reference runs. What recovery saves is no run of the command: the store
/// makes those figures, and holds their summary to them, by itself.
fn folders() -> Vec<std::path::PathBuf> {
    let mut folders: Vec<_> = std::fs::read_dir(top().join("results"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() && !path.join("corpus.json").exists())
        .collect();
    folders.sort();
    folders
}

#[test]
fn summaries_are_what_their_reports_make() {
    assert!(!folders().is_empty());
    for folder in folders() {
        let report = std::fs::read_to_string(folder.join("report.json")).unwrap();
        let report = Report::from_json(&report).unwrap();
        let made = summary::render(&report);
        let stored = std::fs::read_to_string(folder.join("SUMMARY.md")).unwrap();
        assert_eq!(made, stored, "{}", folder.display());
    }
}

#[test]
fn reference_runs_name_their_command_and_place_no_path_of_a_machine() {
    for folder in folders() {
        let text = std::fs::read_to_string(folder.join("report.json")).unwrap();
        let report = Report::from_json(&text).unwrap();
        assert!(report.command.starts_with("killpoint "), "{}", folder.display());
        assert_eq!(report.exit_code, 0, "{}", folder.display());
        for place in ["/home/", "/root/", "/work/", "/tmp/"] {
            assert!(!text.contains(place), "{} holds {place}", folder.display());
        }
    }
}
