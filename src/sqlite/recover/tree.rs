//! All rows that the pages of a database still hold, table by table.
//!
//! First each table's tree is walked from its root. Then the pages that no tree led to are looked
//! at: the leaves below an interior page that is gone, or of a table whose root is not known
//! because the schema is. Such a leaf is given to the table whose columns its records fit. Pages on
//! the list of free ones are left out, since what they hold was deleted.
//!
//! In: [`Pages`] and the [`Shape`] of each table. Out: [`Salvage`]. Each page is read a bounded
//! number of times, whatever the pages say of each other.

use std::collections::HashMap;

use rusqlite::types::Value;

use super::pages::{Pages, big};
use super::record::{Cell, Kind, cells};
use super::shape::Shape;

/// No tree that SQLite makes is deeper (its limit is 20).
const DEPTH_MAX: u32 = 40;

/// One row: its number (0 for a table without) and its values as the record has them.
pub(super) type Row = (i64, Vec<Value>);

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Salvage {
    /// The rows of each table, by its place in the list of shapes.
    pub(super) rows: HashMap<usize, Vec<Row>>,
    /// Rows whose number is not one that they can have where they are: they give way to others.
    pub(super) doubtful: HashMap<usize, Vec<Row>>,
    /// What cannot be read, by the place of its table in the list of shapes.
    pub(super) broken: HashMap<usize, Broken>,
    /// Leaves that were found without their tree.
    pub(super) stray_pages: u32,
}

/// What cannot be read of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Broken {
    /// Pages of its tree that are not what they must be.
    pub(super) pages: u64,
    /// Cells that make no sense on pages that do, and pages that hide cells.
    pub(super) cells: u64,
}

/// Collects all rows.
pub(super) fn salvage(pages: &Pages, shapes: &[Shape]) -> Salvage {
    let count = pages.count() as usize + 1;
    let mut walk = Walk { pages, seen: vec![false; count], found: Salvage::default() };
    for (index, shape) in shapes.iter().enumerate() {
        if let Some(root) = shape.root {
            walk.descend(index, shape, root, DEPTH_MAX, Bounds::NONE);
        }
    }
    walk.strays(shapes);
    walk.found
}

/// The rows of one tree alone, as that of the schema, whose root is page 1.
pub(super) fn rows_of(pages: &Pages, shape: &Shape) -> (Vec<Row>, bool) {
    let count = pages.count() as usize + 1;
    let mut walk = Walk { pages, seen: vec![false; count], found: Salvage::default() };
    walk.descend(0, shape, shape.root.unwrap_or(1), DEPTH_MAX, Bounds::NONE);
    let whole = walk.found.broken.is_empty();
    (walk.found.rows.remove(&0).unwrap_or_default(), whole)
}

/// The numbers that the rows below a page may have, as the pages above it say.
#[derive(Clone, Copy)]
struct Bounds {
    above: i64,
    to: i64,
}

impl Bounds {
    const NONE: Self = Self { above: i64::MIN, to: i64::MAX };

    fn hold(self, rowid: i64) -> bool {
        rowid > self.above && rowid <= self.to
    }
}

struct Walk<'a> {
    pages: &'a Pages,
    seen: Vec<bool>,
    found: Salvage,
}

impl Walk<'_> {
    /// Whether the page is there and was not met before.
    fn enter(&mut self, number: u32) -> bool {
        match self.seen.get_mut(number as usize) {
            Some(seen) => !std::mem::replace(seen, true) && number > 0,
            None => false,
        }
    }

    fn descend(
        &mut self,
        table: usize,
        shape: &Shape,
        number: u32,
        depth: u32,
        mut bounds: Bounds,
    ) {
        if depth == 0 || !self.enter(number) {
            return;
        }
        let page = self.pages.read(number);
        let kind = page.as_deref().and_then(|page| Kind::of(page, number));
        let (Some(page), Some(kind)) = (page, kind.filter(|kind| shape.has(*kind))) else {
            self.broken(table).pages += 1;
            return;
        };
        let found = cells(self.pages, &page, number, kind);
        let fits = |cell: &Cell| cell.values.as_ref().is_none_or(|values| shape.fits(values));
        if !found.list.is_empty() && !found.list.iter().any(fits) {
            // Another tree's page, which that one will come to.
            self.seen[number as usize] = false;
            self.broken(table).pages += 1;
            return;
        }
        if found.broken > 0 {
            self.broken(table).cells += u64::from(found.broken);
        }
        let has_numbers = kind == Kind::TableLeaf || kind == Kind::TableInterior;
        let mut children = Vec::new();
        for cell in found.list {
            let within = !has_numbers || bounds.hold(cell.rowid);
            if let Some(child) = cell.child {
                // A key that cannot be leaves its child without bounds, not without a visit.
                let to = if kind == Kind::TableInterior && within { cell.rowid } else { bounds.to };
                children.push((child, Bounds { to, ..bounds }));
                bounds.above =
                    if kind == Kind::TableInterior && within { to } else { bounds.above };
            }
            self.keep(table, shape, cell, kind, within);
        }
        children.extend(found.last_child.map(|child| (child, bounds)));
        for (child, bounds) in children {
            self.descend(table, shape, child, depth - 1, bounds);
        }
    }

    fn keep(&mut self, table: usize, shape: &Shape, cell: Cell, kind: Kind, within: bool) {
        if kind == Kind::TableInterior {
            return;
        }
        let Some(values) = cell.values else { return };
        if shape.fits(&values) {
            let rows = if within { &mut self.found.rows } else { &mut self.found.doubtful };
            rows.entry(table).or_default().push((cell.rowid, values));
        } else {
            self.broken(table).cells += 1;
        }
    }

    fn broken(&mut self, table: usize) -> &mut Broken {
        self.found.broken.entry(table).or_default()
    }

    /// Looks at the pages that no tree led to.
    fn strays(&mut self, shapes: &[Shape]) {
        for number in free_pages(self.pages) {
            self.enter(number);
        }
        for number in 1..=self.pages.count() {
            if self.seen.get(number as usize).copied().unwrap_or(true) {
                continue;
            }
            let Some(page) = self.pages.read(number) else { continue };
            let Some(kind) = Kind::of(&page, number) else { continue };
            if kind == Kind::TableInterior {
                continue;
            }
            let found = cells(self.pages, &page, number, kind);
            let Some(table) = best(shapes, kind, &found.list) else { continue };
            self.enter(number);
            self.found.stray_pages += 1;
            if found.broken > 0 {
                self.broken(table).cells += u64::from(found.broken);
            }
            for cell in found.list {
                self.keep(table, &shapes[table], cell, kind, true);
            }
        }
    }
}

/// The table that most of the records fit, and all but a few do.
fn best(shapes: &[Shape], kind: Kind, cells: &[Cell]) -> Option<usize> {
    let records: Vec<&[Value]> = cells.iter().filter_map(|cell| cell.values.as_deref()).collect();
    if records.is_empty() {
        return None;
    }
    let fitting = |shape: &Shape| records.iter().filter(|record| shape.fits_whole(record)).count();
    let (table, fits) = shapes
        .iter()
        .enumerate()
        .filter(|(_, shape)| shape.has(kind))
        .map(|(index, shape)| (index, fitting(shape)))
        .max_by_key(|(index, fits)| (*fits, usize::MAX - index))?;
    (fits * 4 >= records.len() * 3).then_some(table)
}

/// The pages on the list of free ones (1.5), as far as it can be followed.
fn free_pages(pages: &Pages) -> Vec<u32> {
    let mut free = Vec::new();
    let Some(first) = pages.read(1) else { return free };
    let mut trunk = first.get(32..36).map_or(0, big);
    for _ in 0..pages.count() {
        let Some(page) = pages.read(trunk) else { break };
        free.push(trunk);
        let count = page.get(4..8).map_or(0, big) as usize;
        let leaves = page.get(8..).unwrap_or_default().chunks_exact(4).take(count).map(big);
        free.extend(leaves);
        trunk = page.get(..4).map_or(0, big);
    }
    free
}
