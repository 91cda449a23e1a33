use crate::support::{run, top};

/// What is mounted, as the whole machine sees it.
fn mounts() -> String {
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap();
    text.lines().filter(|line| line.contains("killpoint")).collect()
}

const SCENARIO: &str = "format = 1\nclaim = 'c'\nexpect = 'pass'\n[script]\n\
    target = 'baseline'\nsteps = ['create', 'claim', 'events', 'heartbeat', 'complete']\n\
    repeat = 4\n[[setting]]\nsynchronous = 'full'\nwal-autocheckpoint = 20\n";

#[test]
fn ext4_under_the_database_is_cut_and_a_disk_that_lies_is_caught() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("small.toml");
    std::fs::write(&file, SCENARIO).unwrap();
    let (file, out) = (file.to_str().unwrap(), dir.path().join("out"));
    let arguments = ["real-fs", file, "--on", "ext4", "--cuts", "24", "--seed", "7"];
    let out = ["--out", out.to_str().unwrap()];
    let done = run(&[arguments.as_slice(), out.as_slice()].concat());
    if done.stderr.contains("SKIPPED ext4") {
        eprintln!("{}", done.stderr);
        assert_eq!(done.code, 3, "{}", done.stderr);
        return;
    }
    assert_eq!(done.code, 0, "{}", done.stderr);
    // The control was run, and is what shows that anything would have been seen.
    assert!(done.stderr.contains("lying disk: fail"), "{}", done.stderr);
    assert!(done.stderr.contains("CAUGHT"), "{}", done.stderr);
    assert_eq!(mounts(), "", "nothing stays mounted");
}

#[test]
fn a_file_system_that_is_none_is_refused() {
    let file = top().join("scenarios/power/file-systems.toml");
    let done = run(&["real-fs", file.to_str().unwrap(), "--on", "fat"]);
    assert_eq!(done.code, 2, "{}", done.stderr);
    assert!(done.stderr.contains("btrfs"), "{}", done.stderr);
}
