//! A hash chain over the commits of a schema, so that a commit that went missing is found.
//!
//! SQLite's own check sees the shape of the pages. A database that was rolled back whole, by an
//! old copy put over it, a `-wal` that somebody removed or a checkpoint that lost part of the log,
//! has a perfect shape. So each commit of a schema that keeps a [`Ledger`] has a row with a
//! [`Link`]: the hash of the link before it and of all that the commit says of itself. Whoever
//! knows one link of a database (see [`super::anchor`]) can tell at any later time whether that
//! commit, and every one before it, is still there as it was.
//!
//! | what                 | is a hash of                                                      |
//! |----------------------|-------------------------------------------------------------------|
//! | a row's checksum     | the name of its table and its columns, by XXH3 of 64 bits          |
//! | a commit's `content` | the checksums of the rows that it appended, by the same; 0: none   |
//! | a commit's `link`    | the link before, the commit's columns, `content`, by BLAKE3        |
//!
//! A row that was taken out for age leaves the chain whole: its commit has `content`.
//!
//! Hashed are values that each begin with their type, texts and blobs with their length, so no two
//! lists of values are hashed as the same bytes. A link names a history, and two that differ must
//! not have one link: hence 256 bits of BLAKE3. A checksum finds damage, not a forger, who could
//! as well write another link: hence the quicker hash, which there is one of for each row.
//!
//! In: values. Out: checksums and links. Not here: how a walk over the whole chain goes, which is
//! `verify`'s work.

use std::cell::Cell;
use std::fmt;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension};
use serde::{Serialize, Serializer};
use xxhash_rust::xxh3::xxh3_64;

/// How a schema keeps its chain: statements, each of which an index must serve.
///
/// The numbers of the commits are 1, 2, 3, ... without a hole.
#[derive(Debug)]
pub struct Ledger {
    /// Number and link of the newest commit; no row: there is none. No parameter.
    pub head: &'static str,
    /// The link of the commit whose number is `?1`.
    pub link_of: &'static str,
    /// All commits with a number above `?1` in order: the number, the link, `content`, how many
    /// rows it appended, then the columns that went into the link.
    pub commits: &'static str,
    /// All appended rows of commits with a number above `?1`, in the order of writing: the number
    /// of the commit, the checksum, the key, then the columns that went into the checksum.
    pub rows: &'static str,
    /// The name of the table of appended rows.
    pub rows_table: &'static str,
    /// The number of the last commit of which rows may have been taken out for age; 0: none.
    pub pruned_to: &'static str,
    /// Gives the row of key `?1` the checksum `?2`.
    pub set_row: &'static str,
    /// Gives commit `?1` its number of rows `?2`, `content` `?3` and link `?4`.
    pub set_commit: &'static str,
    /// Takes the row of commit `?1` out.
    pub drop_commit: &'static str,
    /// Puts a row for commit `?1` where none is, one that says that it was lost.
    pub fill_gap: &'static str,
}

/// What a commit is chained by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link([u8; 32]);

impl Link {
    /// What stands before the first commit.
    pub const ORIGIN: Self = Self([0; 32]);

    pub(crate) const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes, as the database has them.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Link {
    /// In hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({self})")
    }
}

impl Serialize for Link {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl ToSql for Link {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.as_slice().to_sql()
    }
}

impl FromSql for Link {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let bytes = value.as_blob()?;
        bytes.try_into().map(Self).map_err(|_| FromSqlError::InvalidBlobSize {
            expected_size: 32,
            blob_size: bytes.len(),
        })
    }
}

/// A commit and its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Head {
    /// The commit's number; 0: there is none yet.
    pub seq: i64,
    /// Its link.
    pub link: Link,
}

impl Head {
    /// Where a chain begins.
    pub const ORIGIN: Self = Self { seq: 0, link: Link::ORIGIN };
}

/// Values as the bytes that are hashed. They are gathered first: most lists are short, and one
/// call of a hash over all costs a third of what one for each value does.
pub(crate) struct Digest(Vec<u8>);

impl Digest {
    pub(crate) fn new(domain: &str) -> Self {
        let mut digest = Self(Vec::with_capacity(512));
        digest.absorb(ValueRef::Text(domain.as_bytes()));
        digest
    }

    pub(crate) fn absorb(&mut self, value: ValueRef<'_>) {
        let (tag, number, bytes): (u8, u64, &[u8]) = match value {
            ValueRef::Null => return self.0.push(0),
            ValueRef::Integer(number) => (1, u64::from_le_bytes(number.to_le_bytes()), &[]),
            ValueRef::Real(number) => (2, number.to_bits(), &[]),
            ValueRef::Text(text) => (3, text.len() as u64, text),
            ValueRef::Blob(blob) => (4, blob.len() as u64, blob),
        };
        let mut head = [tag; 9];
        head[1..].copy_from_slice(&number.to_le_bytes());
        self.0.extend_from_slice(&head);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn link(&self) -> Link {
        Link(*blake3::hash(&self.0).as_bytes())
    }

    pub(crate) fn checksum(&self) -> i64 {
        i64::from_le_bytes(xxh3_64(&self.0).to_le_bytes())
    }
}

/// The checksum of a row of that table with those columns.
#[must_use]
pub fn row_checksum(table: &str, columns: &[&dyn ToSql]) -> i64 {
    let mut digest = Digest::new(table);
    for column in columns {
        absorb(&mut digest, *column);
    }
    digest.checksum()
}

/// The content of a commit that appended rows with those checksums.
pub(crate) struct Content(Option<Digest>);

impl Content {
    pub(crate) fn new() -> Self {
        Self(None)
    }

    pub(crate) fn absorb(&mut self, checksum: i64) {
        let digest = self.0.get_or_insert_with(|| Digest::new("content"));
        digest.absorb(ValueRef::Integer(checksum));
    }

    /// 0 if nothing was absorbed, and never 0 otherwise.
    pub(crate) fn value(&self) -> i64 {
        self.0.as_ref().map_or(0, |digest| digest.checksum().max(i64::MIN + 1).wrapping_abs() | 1)
    }
}

/// The link of a commit, to be fed with its columns.
pub(crate) fn next_link(before: &Link) -> Digest {
    let mut digest = Digest::new("commit");
    digest.absorb(ValueRef::Blob(&before.0));
    digest
}

fn absorb(digest: &mut Digest, value: &dyn ToSql) {
    match value.to_sql() {
        Ok(ToSqlOutput::Borrowed(value)) => digest.absorb(value),
        Ok(ToSqlOutput::Owned(value)) => digest.absorb(ValueRef::from(&value)),
        // Nothing that SQLite would bind either: the row is refused when it is inserted.
        Ok(_) | Err(_) => digest.absorb(ValueRef::Blob(b"not a value")),
    }
}

/// Makes the chain anew over what is there, within a transaction of the caller's: for rows that
/// came from elsewhere. Commits that are missing become commits that say so.
pub(crate) fn rebuild(conn: &Connection, ledger: &Ledger) -> rusqlite::Result<Head> {
    let mut contents = std::collections::BTreeMap::new();
    let mut rows = conn.prepare(ledger.rows)?;
    let columns = rows.column_count();
    let mut rows = rows.query([0])?;
    let mut set_row = conn.prepare(ledger.set_row)?;
    while let Some(row) = rows.next()? {
        let (seq, key): (i64, i64) = (row.get(0)?, row.get(2)?);
        let mut digest = Digest::new(ledger.rows_table);
        for column in 3..columns {
            digest.absorb(row.get_ref(column)?);
        }
        let checksum = digest.checksum();
        set_row.execute((key, checksum))?;
        let (content, count) = contents.entry(seq).or_insert_with(|| (Content::new(), 0));
        content.absorb(checksum);
        *count += 1;
    }
    let newest = contents.last_key_value().map_or(0, |(seq, _)| *seq);
    fill_gaps(conn, ledger, newest)?;
    let pruned_to: i64 = conn.query_row(ledger.pruned_to, [], |row| row.get(0))?;
    // Twice over the commits, for the number of rows is among the columns that go into the link.
    for (set_links, mut head) in [(false, Head::ORIGIN), (true, Head::ORIGIN)] {
        let mut commits = conn.prepare(ledger.commits)?;
        let columns = commits.column_count();
        let mut commits = commits.query([0])?;
        let mut set_commit = conn.prepare(ledger.set_commit)?;
        while let Some(commit) = commits.next()? {
            let (seq, content, count): (i64, i64, i64) =
                (commit.get(0)?, commit.get(2)?, commit.get(3)?);
            let (content, count) = match contents.get(&seq) {
                Some((found, rows)) if seq > pruned_to => (found.value(), *rows),
                None if seq > pruned_to => (0, 0),
                _ => (content, count),
            };
            let mut digest = next_link(&head.link);
            digest.absorb(ValueRef::Integer(seq));
            digest.absorb(ValueRef::Integer(content));
            for column in 4..columns {
                digest.absorb(commit.get_ref(column)?);
            }
            head = Head { seq, link: digest.link() };
            set_commit.execute((seq, count, content, head.link))?;
        }
        if set_links {
            return Ok(head);
        }
    }
    Ok(Head::ORIGIN)
}

fn fill_gaps(conn: &Connection, ledger: &Ledger, newest: i64) -> rusqlite::Result<()> {
    let present: std::collections::BTreeSet<i64> = conn
        .prepare(ledger.commits)?
        .query_map([0], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let newest = present.last().copied().unwrap_or(0).max(newest);
    let mut fill = conn.prepare(ledger.fill_gap)?;
    for seq in (1..=newest).filter(|seq| !present.contains(seq)) {
        fill.execute([seq])?;
    }
    Ok(())
}

/// The newest commit of the database.
pub(crate) fn newest(conn: &Connection, ledger: &Ledger) -> rusqlite::Result<Head> {
    let head = conn
        .prepare_cached(ledger.head)?
        .query_row([], |row| Ok(Head { seq: row.get(0)?, link: row.get(1)? }))
        .optional()?;
    Ok(head.unwrap_or(Head::ORIGIN))
}

/// What a database knows of its chain while it is open.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) ledger: &'static Ledger,
    /// The newest commit that was seen by this connection.
    pub(crate) seen: Cell<Head>,
    /// The one that the open transaction makes.
    pub(crate) next: Cell<Option<Head>>,
}

impl Chain {
    pub(crate) fn new(ledger: &'static Ledger) -> Self {
        Self { ledger, seen: Cell::new(Head::ORIGIN), next: Cell::new(None) }
    }

    /// The newest commit of the database.
    pub(crate) fn head(&self, conn: &Connection) -> rusqlite::Result<Head> {
        newest(conn, self.ledger)
    }

    /// The link of a commit, if it is there.
    pub(crate) fn link_of(&self, conn: &Connection, seq: i64) -> rusqlite::Result<Option<Link>> {
        if seq == 0 {
            return Ok(Some(Link::ORIGIN));
        }
        conn.prepare_cached(self.ledger.link_of)?.query_row([seq], |row| row.get(0)).optional()
    }
}

/// The next commit of a chain, while its transaction is open.
pub struct Entry<'a> {
    chain: &'a Chain,
    before: Head,
    content: Content,
}

impl fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("before", &self.before).finish_non_exhaustive()
    }
}

/// What the row of a commit must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The commit's `content`.
    pub content: i64,
    /// The commit's `link`.
    pub link: Link,
}

impl<'a> Entry<'a> {
    pub(crate) fn new(chain: &'a Chain, before: Head) -> Self {
        Self { chain, before, content: Content::new() }
    }

    /// The number of the commit.
    #[must_use]
    pub fn seq(&self) -> i64 {
        self.before.seq.saturating_add(1)
    }

    /// The checksum of a row that the commit appends, in the order of writing. `columns` are those
    /// that [`Ledger::rows`] reads, in that order.
    pub fn row(&mut self, columns: &[&dyn ToSql]) -> i64 {
        let checksum = row_checksum(self.chain.ledger.rows_table, columns);
        self.content.absorb(checksum);
        checksum
    }

    /// Ends the entry. `columns` are those that [`Ledger::commits`] reads behind the number of
    /// rows, in that order. The number of the commit goes in by itself.
    pub fn seal(self, columns: &[&dyn ToSql]) -> Sealed {
        let content = self.content.value();
        let mut digest = next_link(&self.before.link);
        digest.absorb(ValueRef::Integer(self.seq()));
        digest.absorb(ValueRef::Integer(content));
        for column in columns {
            absorb(&mut digest, *column);
        }
        let link = digest.link();
        self.chain.next.set(Some(Head { seq: self.seq(), link }));
        Sealed { content, link }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checksum(columns: &[&dyn ToSql]) -> i64 {
        row_checksum("t", columns)
    }

    #[test]
    fn rows_that_differ_in_anything_have_other_checksums() {
        let null: Option<i64> = None;
        let rows: [i64; 9] = [
            checksum(&[&1, &"a"]),
            checksum(&[&"a", &1]),
            checksum(&[&1, &"a", &null]),
            checksum(&[&1, &"b"]),
            checksum(&[&1.0, &"a"]),
            checksum(&[&"1a"]),
            checksum(&[&"1", &"a"]),
            checksum(&[&1, &b"a".as_slice()]),
            row_checksum("u", &[&1, &"a"]),
        ];
        for (index, row) in rows.iter().enumerate() {
            assert!(!rows[..index].contains(row), "row {index}");
        }
        assert_eq!(checksum(&[&1, &"a"]), rows[0]);
    }

    #[test]
    fn content_is_nought_for_no_row_alone_and_depends_on_the_order() {
        let content = |checksums: &[i64]| {
            let mut content = Content::new();
            for checksum in checksums {
                content.absorb(*checksum);
            }
            content.value()
        };
        assert_eq!(content(&[]), 0);
        assert_ne!(content(&[0]), 0);
        assert_ne!(content(&[1, 2]), content(&[2, 1]));
    }

    #[test]
    fn link_is_read_back_as_it_was_written_and_shown_in_digits() {
        let conn = Connection::open_in_memory().unwrap();
        let link = next_link(&Link::ORIGIN).link();
        let read: Link = conn.query_row("SELECT ?1", [link], |row| row.get(0)).unwrap();
        assert_eq!(read, link);
        assert_eq!(link.to_string().len(), 64);
        assert_eq!(serde_json::to_value(link).unwrap(), link.to_string());
        assert!(conn.query_row("SELECT x'00'", [], |row| row.get::<_, Link>(0)).is_err());
    }
}
