use super::super::recording::{Entry, FileIndex, Header, Op, Recording, StartFile};
use super::super::{choose, vfs};
use super::*;
use crate::plan::Stream;
use crate::run::trace::Phase;
use crate::scenario::power::Profile;
use hardboard::Durability;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn recording(start: Vec<u8>, ops: Vec<Op>) -> Recording {
    let entry = |op| Entry { at_us: 0, process: 0, phase: Phase::Other, op };
    Recording {
        header: Header {
            subject: String::new(),
            database: "a.db".to_owned(),
            board: None,
            check_sql: None,
            promise: Durability::Process,
            unseen: Vec::new(),
            elapsed_us: 0,
        },
        start: vec![StartFile { name: "a.db".to_owned(), bytes: start }],
        entries: ops.into_iter().map(entry).collect(),
    }
}

fn op() -> impl Strategy<Value = Op> {
    let file = FileIndex(0);
    let write = (0..30_000_u64, 1..6_000_usize, any::<u8>()).prop_map(move |(offset, n, seed)| {
        let bytes: Vec<u8> = (0..251_u8).cycle().take(n).map(|i| i ^ seed).collect();
        Op::Write { file, offset, bytes: bytes.into() }
    });
    prop_oneof![
        8 => write,
        1 => (0..30_000_u64).prop_map(move |length| Op::Truncate { file, length }),
        1 => (0..30_000_u64).prop_map(move |length| {
            Op::Allocate { file, offset: 0, length }
        }),
        1 => Just(Op::Sync { file }),
    ]
}

fn resized(to: &mut Vec<u8>, bytes: u64) {
    to.resize(to_usize(bytes), 0);
}

/// The image by the plainest means: every kept unit of every change onto a plain file.
fn plain(inode: &Inode, choice: &FileChoice) -> Vec<u8> {
    let FileChoice::Writes { most, exceptions, unit_bytes, .. } = choice else {
        return match choice {
            FileChoice::Whole(Most::Kept) => inode.now.to_vec(),
            _ => inode.durable.to_vec(),
        };
    };
    let kept = Kept { most: *most, exceptions, unit_bytes: *unit_bytes, filler: None };
    let mut file = inode.durable.to_vec();
    for (index, change) in inode.pending.iter().enumerate() {
        let units = kept.units(index);
        match change {
            Change::Write(offset, bytes) => {
                each_unit(*offset, bytes.len(), *unit_bytes, |unit, range| {
                    if units.keeps(unit) {
                        let at = to_usize(*offset) + range.start;
                        let end = at + range.len();
                        let longer = file.len().max(end) as u64;
                        resized(&mut file, longer);
                        file[at..end].copy_from_slice(&bytes[range]);
                    }
                });
            }
            Change::Truncate(bytes) if units != Units::None => resized(&mut file, *bytes),
            Change::Grow(bytes) if units != Units::None => {
                let longer = (file.len() as u64).max(*bytes);
                resized(&mut file, longer);
            }
            Change::Truncate(_) | Change::Grow(_) => {}
        }
    }
    file
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 40,
        ..ProptestConfig::default()
    })]

    #[test]
    fn image_is_what_the_kept_units_make_of_the_durable_file(
        start in prop::collection::vec(any::<u8>(), 0..9_000),
        ops in prop::collection::vec(op(), 1..12),
        seed: u64,
    ) {
        let recording = recording(start, ops);
        let mut model = Model::new(&recording, Profile::Strict);
        let mut chance = Stream::new(seed, "test");
        for at in 0..=recording.entries.len() {
            model.advance_to(at);
            for _ in 0..4 {
                let mut choice = choose::random(&model, &mut chance);
                if let Some((_, FileChoice::Writes { lost_beyond_end, .. })) =
                    choice.files.first_mut()
                {
                    *lost_beyond_end = None;
                }
                let of_file = choice.files.first().map(|(_, choice)| choice.clone());
                let of_file = of_file.unwrap_or(FileChoice::Whole(choice.others));
                let image = vfs::with_disk(|disk| {
                    compose(&model, &choice, disk);
                    disk.file(Part::Database).map(|layer| layer.to_vec())
                });
                let plain = plain(&model.inodes[0], &of_file);
                prop_assert_eq!(image.unwrap_or_default(), plain);
            }
            vfs::with_disk(Disk::release);
        }
    }

    #[test]
    fn in_ordered_no_byte_beyond_the_durable_size_is_other_than_zero_or_written(
        start in prop::collection::vec(1..255_u8, 0..9_000),
        ops in prop::collection::vec(op(), 1..12),
        seed: u64,
    ) {
        let recording = recording(start, ops);
        let mut model = Model::new(&recording, Profile::Ordered);
        model.advance_to(recording.entries.len());
        let mut chance = Stream::new(seed, "test");
        let inode = model.inodes[0].clone();
        for _ in 0..8 {
            let choice = choose::random(&model, &mut chance);
            let image = vfs::with_disk(|disk| {
                compose(&model, &choice, disk);
                disk.file(Part::Database).map(|layer| layer.to_vec())
            });
            let image = image.unwrap_or_default();
            for (at, byte) in image.iter().enumerate().skip(to_usize(inode.durable.len())) {
                let written = |change: &Change| match change {
                    Change::Write(offset, bytes) => {
                        let within = at.checked_sub(to_usize(*offset));
                        within.and_then(|within| bytes.get(within)) == Some(byte)
                    }
                    Change::Truncate(_) | Change::Grow(_) => false,
                };
                prop_assert!(*byte == 0 || inode.pending.iter().any(written));
            }
        }
        vfs::with_disk(Disk::release);
    }
}

#[test]
fn name_of_a_new_file_is_lost_until_its_directory_is_synced_in_strict_alone() {
    let wal = FileIndex(1);
    let ops = vec![
        Op::Create { file: wal, name: "a.db-wal".to_owned() },
        Op::Write { file: wal, offset: 0, bytes: vec![1; 32].into() },
        Op::Sync { file: wal },
    ];
    let recording = recording(vec![0; 512], ops);
    let there = |profile, at| {
        let mut model = Model::new(&recording, profile);
        model.advance_to(at);
        vfs::with_disk(|disk| {
            compose(&model, &Choice::whole(Most::Lost, &model), disk);
            disk.file(Part::Wal).is_some()
        })
    };
    assert!(!there(Profile::Strict, 3));
    assert!(there(Profile::Ordered, 3));
    assert!(!there(Profile::Ordered, 2));
    vfs::with_disk(Disk::release);
}

fn files(model: &Model<'_>, choice: &Choice) -> BTreeMap<String, Vec<u8>> {
    vfs::with_disk(|disk| {
        compose(model, choice, disk);
        Part::ALL
            .into_iter()
            .filter_map(|part| {
                let bytes = disk.file(part)?.to_vec();
                Some((format!("a.db{}", part.suffix()), bytes))
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 40,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_image_that_a_profile_chooses_is_one_that_it_admits(
        start in prop::collection::vec(any::<u8>(), 0..9_000),
        ops in prop::collection::vec(op(), 1..10),
        seed: u64,
    ) {
        let recording = recording(start, ops);
        for profile in Profile::ALL {
            let mut model = Model::new(&recording, profile);
            model.advance_to(recording.entries.len());
            let mut chance = Stream::new(seed, "test");
            for _ in 0..4 {
                let choice = choose::random(&model, &mut chance);
                let files = files(&model, &choice);
                prop_assert!(model.admits(&files).is_ok(), "{} {:?}", profile, choice);
            }
            vfs::with_disk(Disk::release);
        }
    }
}

#[test]
fn what_no_cut_could_leave_is_not_admitted() {
    let wal = FileIndex(1);
    let page: super::super::Bytes = vec![7; 4_096].into();
    let ops = vec![
        Op::Write { file: FileIndex(0), offset: 4_096, bytes: page.clone() },
        Op::Sync { file: FileIndex(0) },
        Op::Create { file: wal, name: "a.db-wal".to_owned() },
        Op::Write { file: wal, offset: 0, bytes: page },
    ];
    let recording = recording(vec![1; 8_192], ops);
    let admits = |profile, change: &dyn Fn(&mut BTreeMap<String, Vec<u8>>)| {
        let mut model = Model::new(&recording, profile);
        model.advance_to(4);
        let mut files = files(&model, &Choice::whole(Most::Kept, &model));
        change(&mut files);
        vfs::with_disk(Disk::release);
        model.admits(&files)
    };
    let of = |files: &mut BTreeMap<String, Vec<u8>>, name: &str, at: usize, byte: u8| {
        files.get_mut(name).unwrap()[at] = byte;
    };
    for profile in Profile::ALL {
        assert_eq!(admits(profile, &|_| {}), Ok(()), "{profile}");
        // A byte that was durable before, and one that was synced.
        assert!(admits(profile, &|files| of(files, "a.db", 9, 2)).is_err(), "{profile}");
        assert!(admits(profile, &|files| drop(files.remove("a.db"))).is_err(), "{profile}");
        let longer = |files: &mut BTreeMap<String, Vec<u8>>| {
            files.get_mut("a.db").unwrap().push(0);
        };
        assert!(admits(profile, &longer).is_err(), "{profile}");
        assert_eq!(admits(profile, &|files| drop(files.remove("a.db-wal"))), Ok(()), "{profile}");
    }
    // Bytes that nobody wrote, beyond what was durable: in `ordered` never.
    let stale = |files: &mut BTreeMap<String, Vec<u8>>| of(files, "a.db-wal", 700, 99);
    assert_eq!(admits(Profile::Strict, &stale), Ok(()));
    assert!(matches!(
        admits(Profile::Ordered, &stale),
        Err(super::super::Impossible::Bytes { .. })
    ));
    // What was synced is lost on a disk that lies, and on no other.
    let unsynced = |files: &mut BTreeMap<String, Vec<u8>>| {
        files.insert("a.db".to_owned(), vec![1; 8_192]);
    };
    assert_eq!(admits(Profile::LyingDisk, &unsynced), Ok(()));
    assert!(admits(Profile::Strict, &unsynced).is_err());
}
