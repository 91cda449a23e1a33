//! The file of a history: appended by the lanes of a run, read back by the judge.

use super::Line;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A history that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: std::io::Error,
    },
    /// A line is not one of ours.
    #[error("{}:{line}: not a line of a history: {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1; in a span, from its first line.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// Bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    from: u64,
    bytes: usize,
}

/// A history that is being written, by several lanes at once.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    end: Mutex<u64>,
}

impl Writer {
    /// Begins the file at `path`, in place of what was there.
    pub fn create(path: &Path) -> Result<Self, HistoryError> {
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| HistoryError::Io { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file, end: Mutex::new(0) })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `lines` together, and says where they are.
    pub fn append<'a>(
        &self,
        lines: impl IntoIterator<Item = &'a Line>,
    ) -> Result<Span, HistoryError> {
        let fail = |source| HistoryError::Io { path: self.path.clone(), source };
        let mut bytes = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut bytes, line).map_err(|error| fail(error.into()))?;
            bytes.push(b'\n');
        }
        // A lane that panicked while it held the lock has left the end as it was: go on from there.
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(*end)).and_then(|_| file.write_all(&bytes)).map_err(fail)?;
        let span = Span { from: *end, bytes: bytes.len() };
        *end += span.bytes as u64;
        Ok(span)
    }

    /// Reads back what lies in `span`.
    pub fn read(&self, span: Span) -> Result<Vec<Line>, HistoryError> {
        let mut bytes = vec![0; span.bytes];
        self.file
            .read_exact_at(&mut bytes, span.from)
            .map_err(|source| HistoryError::Io { path: self.path.clone(), source })?;
        bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .enumerate()
            .map(|(index, line)| {
                serde_json::from_slice(line).map_err(|source| HistoryError::Line {
                    path: self.path.clone(),
                    line: index + 1,
                    source,
                })
            })
            .collect()
    }
}

/// A finished history, line by line.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    lines: BufReader<File>,
    line: usize,
    torn: bool,
}

impl Reader {
    /// Opens the file at `path`.
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        let file = File::open(path)
            .map_err(|source| HistoryError::Io { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), lines: BufReader::new(file), line: 0, torn: false })
    }

    /// Whether the last line was torn: the harness was killed while it wrote.
    #[must_use]
    pub fn torn(&self) -> bool {
        self.torn
    }

    /// The next line; `None` at the end, and at a torn last line.
    pub fn next_line(&mut self) -> Result<Option<Line>, HistoryError> {
        let mut bytes = Vec::new();
        self.lines
            .read_until(b'\n', &mut bytes)
            .map_err(|source| HistoryError::Io { path: self.path.clone(), source })?;
        self.line += 1;
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.last() != Some(&b'\n') {
            self.torn = true;
            return Ok(None);
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|source| HistoryError::Line {
            path: self.path.clone(),
            line: self.line,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::End;
    use super::*;

    const LINE: Line = Line::End(End { interrupted: false });

    #[test]
    fn what_is_appended_is_read_back_by_its_span() {
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::create(&dir.path().join("h.jsonl")).unwrap();
        let one = writer.append([&LINE]).unwrap();
        let two = writer.append([&LINE, &Line::End(End { interrupted: true })]).unwrap();
        assert_eq!(writer.read(one).unwrap(), [LINE]);
        assert_eq!(writer.read(two).unwrap().len(), 2);
    }

    #[test]
    fn a_torn_last_line_is_not_a_line_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("h.jsonl");
        Writer::create(&path).unwrap().append([&LINE]).unwrap();
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"type\":\"end\",\"interr");
        std::fs::write(&path, text).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        assert_eq!(reader.next_line().unwrap(), Some(LINE));
        assert!(!reader.torn());
        assert_eq!(reader.next_line().unwrap(), None);
        assert!(reader.torn());
    }

    #[test]
    fn a_foreign_line_is_refused_with_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("h.jsonl");
        std::fs::write(&path, "{\"type\":\"end\",\"interrupted\":false}\nhello\n").unwrap();
        let mut reader = Reader::open(&path).unwrap();
        reader.next_line().unwrap();
        assert!(reader.next_line().unwrap_err().to_string().contains("h.jsonl:2:"));
    }
}
