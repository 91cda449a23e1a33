//! The files of this run that matter, and how they are recognised.

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::ProcessId;
use super::super::hash::NumberMap;
use super::super::phase::Sidecar;
use super::locate::{id_of, link_of, path_of};
use super::{DatabaseId, Databases, FileId, FileRef, Role};

/// The first bytes of every SQLite database.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// A database that the run has to do with.
#[derive(Clone, Debug)]
pub struct Database {
    /// Its path, absolute and without links.
    pub path: PathBuf,
    /// The path of its WAL.
    pub wal: PathBuf,
    /// The page size by the last WAL header that was seen, in bytes.
    pub(in super::super) wal_page_bytes: Option<u64>,
    /// The last frame header that was seen: where it stands, and whether it ends a transaction.
    pub(in super::super) last_frame: Option<(u64, bool)>,
    /// Whether there is a WAL with something in it; not known after anything that may change it.
    pub(in super::super) wal_in_use: Option<bool>,
}

/// What a descriptor turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Sight {
    /// A file that matters.
    File(FileRef),
    /// A file that may yet turn out to be a database: it is empty.
    Undecided,
    /// Nothing to us.
    NotOurs,
}

/// All files of the run that matter.
#[derive(Debug)]
pub(in super::super) struct Files {
    detect: bool,
    databases: Vec<Database>,
    known: NumberMap<FileId, (FileRef, PathBuf)>,
    acks: Vec<FileId>,
}

impl Files {
    pub(in super::super) fn new(asked: &Databases) -> Self {
        let mut files = Self {
            detect: matches!(asked, Databases::Detect),
            databases: Vec::new(),
            known: NumberMap::default(),
            acks: Vec::new(),
        };
        if let Databases::At(paths) = asked {
            for path in paths {
                files.add_database(resolved(path));
            }
        }
        files
    }

    /// Takes the file behind `descriptor` for one that gets acknowledgements.
    pub(in super::super) fn add_ack(&mut self, id: FileId) {
        if !self.acks.contains(&id) {
            self.acks.push(id);
        }
    }

    pub(in super::super) fn database(&self, id: DatabaseId) -> &Database {
        &self.databases[id.0]
    }

    pub(in super::super) fn database_mut(&mut self, id: DatabaseId) -> &mut Database {
        &mut self.databases[id.0]
    }

    pub(in super::super) fn databases(&self) -> impl Iterator<Item = (DatabaseId, &Database)> {
        self.databases.iter().enumerate().map(|(index, database)| (DatabaseId(index), database))
    }

    /// The path that a file was last seen under.
    pub(in super::super) fn path(&self, id: FileId) -> Option<&Path> {
        self.known.get(&id).map(|(_, path)| path.as_path())
    }

    /// The identity of an open descriptor; `None` if it is not open.
    pub(in super::super) fn identity(process: ProcessId, fd: i32) -> Option<FileId> {
        fs::metadata(link_of(process, fd)).ok().map(|metadata| id_of(&metadata))
    }

    /// What an open descriptor is.
    pub(in super::super) fn look_at(&mut self, process: ProcessId, fd: i32) -> Sight {
        let Ok(metadata) = fs::metadata(link_of(process, fd)) else {
            return Sight::NotOurs;
        };
        let id = id_of(&metadata);
        if self.acks.contains(&id) {
            return Sight::File(FileRef { id, role: Role::Ack, database: None });
        }
        if !metadata.is_file() && !metadata.is_dir() {
            return Sight::NotOurs;
        }
        let Ok(path) = path_of(process, fd) else {
            return Sight::NotOurs;
        };
        let named = if metadata.is_dir() { self.directory(&path) } else { self.by_name(id, &path) };
        if let Some((role, database)) = named {
            return self.remember(id, role, database, path);
        }
        if !self.detect || metadata.is_dir() {
            return Sight::NotOurs;
        }
        match metadata.len() {
            0 => Sight::Undecided,
            _ if has_magic(&link_of(process, fd)) || has_sidecar(&path) => {
                let database = self.add_database(path.clone());
                self.remember(id, Role::Database, database, path)
            }
            _ => Sight::NotOurs,
        }
    }

    /// Takes a descriptor for a database because it is locked as only SQLite locks.
    pub(in super::super) fn promote(&mut self, process: ProcessId, fd: i32) -> Option<FileRef> {
        if !self.detect {
            return None;
        }
        let id = Self::identity(process, fd)?;
        let path = path_of(process, fd).ok()?;
        let database = self.add_database(path.clone());
        match self.remember(id, Role::Database, database, path) {
            Sight::File(file) => Some(file),
            Sight::Undecided | Sight::NotOurs => None,
        }
    }

    /// Whether files that nobody named may be databases.
    pub(in super::super) fn detects(&self) -> bool {
        self.detect
    }

    /// What a file is that a path names and that may be about to be opened.
    pub(in super::super) fn look_at_path(
        &mut self,
        id: FileId,
        path: &Path,
        metadata: &Metadata,
    ) -> Sight {
        if let Some(file) = self.at_path(id, path) {
            return Sight::File(file);
        }
        if !self.detect {
            return Sight::NotOurs;
        }
        match metadata.len() {
            0 => Sight::Undecided,
            _ if has_magic(path) || has_sidecar(path) => {
                let database = self.add_database(path.to_owned());
                self.remember(id, Role::Database, database, path.to_owned())
            }
            _ => Sight::NotOurs,
        }
    }

    /// What a file is that is named by a path, without opening it. `id` if it exists.
    pub(in super::super) fn at_path(&mut self, id: FileId, path: &Path) -> Option<FileRef> {
        let (role, database) = self.by_name(id, path)?;
        match self.remember(id, role, database, path.to_owned()) {
            Sight::File(file) => Some(file),
            Sight::Undecided | Sight::NotOurs => None,
        }
    }

    /// What a path would be to a database by its name alone, whether it exists or not.
    pub(in super::super) fn role_of_name(&mut self, path: &Path) -> Option<(Role, DatabaseId)> {
        if let Some(database) = self.database_at(path) {
            return Some((Role::Database, database));
        }
        let (base, sidecar) = split_sidecar(path)?;
        let database = match self.database_at(&base) {
            Some(database) => database,
            None if self.detect && base.is_file() => self.add_database(base),
            None => return None,
        };
        Some((role_of(sidecar), database))
    }

    fn by_name(&mut self, id: FileId, path: &Path) -> Option<(Role, DatabaseId)> {
        if let Some(found) = self.role_of_name(path) {
            return Some(found);
        }
        // A second name (a hard link) or a name given later is known by the inode. Only for the
        // database: the inodes of sidecars are used again for other files.
        let (file, _) = self.known.get(&id)?;
        let database = file.database.filter(|_| file.role == Role::Database)?;
        Some((Role::Database, database))
    }

    fn directory(&self, path: &Path) -> Option<(Role, DatabaseId)> {
        self.databases()
            .find(|(_, database)| database.path.parent() == Some(path))
            .map(|(id, _)| (Role::Directory, id))
    }

    fn database_at(&self, path: &Path) -> Option<DatabaseId> {
        self.databases().find(|(_, database)| database.path == path).map(|(id, _)| id)
    }

    fn add_database(&mut self, path: PathBuf) -> DatabaseId {
        if let Some(known) = self.database_at(&path) {
            return known;
        }
        let id = DatabaseId(self.databases.len());
        if let Ok(metadata) = fs::metadata(&path) {
            let file = FileRef { id: id_of(&metadata), role: Role::Database, database: Some(id) };
            self.known.insert(file.id, (file, path.clone()));
        }
        let (wal_page_bytes, last_frame, wal_in_use) = (None, None, None);
        let wal = with_suffix(&path, "-wal");
        self.databases.push(Database { path, wal, wal_page_bytes, last_frame, wal_in_use });
        id
    }

    fn remember(&mut self, id: FileId, role: Role, database: DatabaseId, path: PathBuf) -> Sight {
        let file = FileRef { id, role, database: Some(database) };
        self.known.insert(id, (file, path));
        Sight::File(file)
    }
}

/// The path as the kernel will tell it, for a file that may not exist yet.
fn resolved(path: &Path) -> PathBuf {
    if let Ok(path) = fs::canonicalize(path) {
        return path;
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match (fs::canonicalize(parent), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

fn role_of(sidecar: Sidecar) -> Role {
    match sidecar {
        Sidecar::Wal => Role::Wal,
        Sidecar::Shm => Role::Shm,
        Sidecar::Journal => Role::Journal,
    }
}

const SUFFIXES: [(&str, Sidecar); 3] =
    [("-wal", Sidecar::Wal), ("-shm", Sidecar::Shm), ("-journal", Sidecar::Journal)];

fn split_sidecar(path: &Path) -> Option<(PathBuf, Sidecar)> {
    let bytes = path.as_os_str().as_bytes();
    SUFFIXES.iter().find_map(|(suffix, sidecar)| {
        let base = bytes.strip_suffix(suffix.as_bytes())?;
        Some((PathBuf::from(std::ffi::OsStr::from_bytes(base)), *sidecar))
    })
}

fn has_magic(path: &Path) -> bool {
    let mut head = [0; MAGIC.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head == *MAGIC
}

fn has_sidecar(path: &Path) -> bool {
    SUFFIXES.iter().any(|(suffix, _)| with_suffix(path, suffix).exists())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecar_of_an_asked_database_is_known_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap().join("a.db");
        let mut files = Files::new(&Databases::At(vec![path.clone()]));
        let name = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
        let role = |files: &mut Files, suffix| files.role_of_name(&name(suffix)).map(|r| r.0);
        assert_eq!(role(&mut files, ""), Some(Role::Database));
        assert_eq!(role(&mut files, "-wal"), Some(Role::Wal));
        assert_eq!(role(&mut files, "-shm"), Some(Role::Shm));
        assert_eq!(role(&mut files, "-journal"), Some(Role::Journal));
        assert_eq!(role(&mut files, "-wal2"), None);
        assert_eq!(files.role_of_name(Path::new("/elsewhere/b.db-wal")), None);
    }

    #[test]
    fn detected_database_needs_its_magic_or_a_sidecar() {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("plain");
        fs::write(&plain, b"nothing of the kind").unwrap();
        assert!(!has_magic(&plain) && !has_sidecar(&plain));
        fs::write(directory.path().join("plain-journal"), b"").unwrap();
        assert!(has_sidecar(&plain));
        fs::write(&plain, b"SQLite format 3\0 and more").unwrap();
        assert!(has_magic(&plain));
    }

    #[test]
    fn hard_link_of_a_database_is_that_database() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().canonicalize().unwrap();
        let (first, second) = (directory.join("a.db"), directory.join("b.db"));
        fs::write(&first, b"x").unwrap();
        fs::hard_link(&first, &second).unwrap();
        let mut files = Files::new(&Databases::At(vec![first]));
        let id = id_of(&fs::metadata(&second).unwrap());
        assert_eq!(files.at_path(id, &second).map(|file| file.role), Some(Role::Database));
    }
}
