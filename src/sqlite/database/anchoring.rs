//! The chain of the schema and its anchor: compared at the open, written after each commit.

use serde::Serialize;

use super::Database;
use crate::error::{Result, StoreError};
use crate::sqlite::anchor::{Anchor, AnchorFile};
use crate::sqlite::chain::{Chain, Head, Ledger};
use crate::sqlite::durability::Durability;
use crate::sqlite::sidecar;

/// What the anchor said when the database was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Anchored {
    /// The commit that it names is there.
    Confirmed(Anchor),
    /// There was no anchor, so nothing is known of what may be missing. It was made.
    Absent,
}

/// Goes on only if nobody was told that the commit which is about to be made is there already: two
/// histories of one number would else be acknowledged, and the newer anchor would hide the older.
pub(super) fn require_unmade(
    chain: Option<&Chain>,
    anchor: Option<&AnchorFile>,
    path: &std::path::Path,
) -> Result<()> {
    let (Some(chain), Some(anchor)) = (chain, anchor) else { return Ok(()) };
    let Some(next) = chain.next.get() else { return Ok(()) };
    let late = anchor.newest_from(next.seq).map_err(|source| StoreError::Beside {
        during: "read the anchor",
        path: sidecar::beside(path, "-anchor"),
        source,
    })?;
    late.map_or(Ok(()), |late| {
        let (missing, newest) = (late.head.seq, next.seq - 1);
        Err(StoreError::RolledBack { path: path.to_owned(), missing, newest })
    })
}

impl Database {
    /// Compares the database with its anchor, and keeps the anchor from now on.
    ///
    /// # Errors
    ///
    /// - [`StoreError::RolledBack`]: a commit that was acknowledged is not there.
    /// - [`StoreError::Beside`]: the anchor cannot be read or made.
    pub(crate) fn keep_chain(&mut self, ledger: &'static Ledger) -> Result<()> {
        let anchor = self.open_anchor()?;
        // First the anchor, then the database, which only gets longer.
        let newest = anchor.newest().map_err(self.beside_anchor("read the anchor"))?;
        let chain = Chain::new(ledger);
        let head = self.read("read the newest commit", |conn| chain.head(conn))?;
        let anchored = if let Some(anchored) = newest {
            let link = self
                .read("read an anchored commit", |conn| chain.link_of(conn, anchored.head.seq))?;
            if link != Some(anchored.head.link) {
                return Err(self.rolled_back(anchored.head, head));
            }
            Anchored::Confirmed(anchored)
        } else {
            // What is here already is not known to have reached the disk.
            let known = Anchor { head, durability: Durability::Process };
            let known = (head != Head::ORIGIN).then_some(&known);
            anchor.reset(known).map_err(self.beside_anchor("make the anchor"))?;
            Anchored::Absent
        };
        chain.seen.set(head);
        self.chain = Some(chain);
        self.anchor = Some(anchor);
        self.opened.anchored = Some(anchored);
        Ok(())
    }

    /// Goes on only if no commit of an earlier database is anchored here: for one that is empty,
    /// asked under its write lock.
    pub(crate) fn require_nothing_anchored(place: &std::path::Path) -> Result<()> {
        let failed = |source| StoreError::Beside {
            during: "read the anchor",
            path: sidecar::beside(place, "-anchor"),
            source,
        };
        match AnchorFile::open(place).and_then(|anchor| anchor.newest()).map_err(failed)? {
            None => Ok(()),
            Some(anchored) => Err(StoreError::RolledBack {
                path: place.to_owned(),
                missing: anchored.head.seq,
                newest: 0,
            }),
        }
    }

    /// Where the file lies, without symbolic links.
    #[must_use]
    pub fn place(&self) -> &std::path::Path {
        &self.place
    }

    /// The commit that was made has its record before it is acknowledged.
    pub(super) fn anchor_commit(&mut self, durability: Durability) {
        let Some(chain) = &self.chain else { return };
        let Some(head) = chain.next.take() else { return };
        chain.seen.set(head);
        let Some(file) = &self.anchor else { return };
        let written = file.write(&Anchor { head, durability });
        let synced = match durability {
            Durability::Power if self.options.anchor_sync => file.sync(),
            Durability::Power | Durability::Process => Ok(()),
        };
        // The commit stands and is acknowledged; the next one is not begun without this.
        self.unanchored = written.and(synced).is_err();
    }

    /// Makes good what [`anchor_commit`](Self::anchor_commit) could not do.
    pub(super) fn anchor_what_is_not(&mut self) -> Result<()> {
        if let (true, Some(chain), Some(file)) = (self.unanchored, &self.chain, &self.anchor) {
            let known = Anchor { head: chain.seen.get(), durability: Durability::Process };
            file.write(&known).map_err(self.beside_anchor("write the anchor"))?;
            self.unanchored = false;
        }
        Ok(())
    }

    pub(super) fn sync_anchor(&self) {
        if let (Some(file), Durability::Power) = (&self.anchor, self.default_durability()) {
            // What it may lack after a power cut stands in its module.
            file.sync().ok();
        }
    }

    fn open_anchor(&self) -> Result<AnchorFile> {
        AnchorFile::open(&self.place).map_err(self.beside_anchor("open the anchor"))
    }

    fn beside_anchor(&self, during: &'static str) -> impl Fn(std::io::Error) -> StoreError {
        let path = sidecar::beside(&self.place, "-anchor");
        move |source| StoreError::Beside { during, path: path.clone(), source }
    }

    fn rolled_back(&self, missing: Head, newest: Head) -> StoreError {
        StoreError::RolledBack { path: self.path.clone(), missing: missing.seq, newest: newest.seq }
    }
}
