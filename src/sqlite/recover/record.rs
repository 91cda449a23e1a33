//! Cells and records of a b-tree page, read without SQLite and without trust.
//!
//! Section numbers are those of the SQLite documentation, *Database File Format*. In: the bytes of
//! a page. Out: its cells and their values, as far as they make sense. Nothing here panics.

use rusqlite::types::Value;

use super::pages::{Pages, big};

/// No row is longer than SQLite allows at most by default.
const PAYLOAD_BYTES_MAX: u64 = 1 << 30;
/// Nor has it more columns than SQLite can be built for.
const COLUMNS_MAX: usize = 32_768;

/// What a page of a b-tree is (1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    IndexInterior,
    TableInterior,
    IndexLeaf,
    TableLeaf,
}

impl Kind {
    /// What the byte at the start of the page's header says.
    pub(super) fn of(page: &[u8], number: u32) -> Option<Self> {
        match page.get(header_at(number))? {
            2 => Some(Self::IndexInterior),
            5 => Some(Self::TableInterior),
            10 => Some(Self::IndexLeaf),
            13 => Some(Self::TableLeaf),
            _ => None,
        }
    }

    fn is_interior(self) -> bool {
        matches!(self, Self::IndexInterior | Self::TableInterior)
    }
}

/// One cell.
#[derive(Debug)]
pub(super) struct Cell {
    /// The page with what is less, for an interior page.
    pub(super) child: Option<u32>,
    /// The row's number, for a table.
    pub(super) rowid: i64,
    /// The values, unless the page has only keys; `None` if they make no sense.
    pub(super) values: Option<Vec<Value>>,
    /// The bytes that it takes on its page.
    bytes: usize,
}

/// What a page holds.
#[derive(Debug, Default)]
pub(super) struct Cells {
    pub(super) list: Vec<Cell>,
    /// How many more its header tells of, which make no sense.
    pub(super) broken: u32,
    /// The page with what is greater than all, for an interior page.
    pub(super) last_child: Option<u32>,
}

/// Page 1 begins with the header of the file.
fn header_at(number: u32) -> usize {
    if number == 1 { 100 } else { 0 }
}

/// Reads the cells of a page of that kind.
pub(super) fn cells(pages: &Pages, page: &[u8], number: u32, kind: Kind) -> Cells {
    let at = header_at(number);
    let mut found = Cells::default();
    let Some(count) = page.get(at + 3..at + 5).map(big) else { return found };
    let array = at + if kind.is_interior() { 12 } else { 8 };
    if kind.is_interior() {
        found.last_child = page.get(at + 8..at + 12).map(big);
    }
    // Each cell takes four bytes at least, and two in the array.
    let count = (count as usize).min(page.len() / 6);
    for index in 0..count {
        let place = page.get(array + 2 * index..array + 2 * index + 2).map(|at| big(at) as usize);
        let cell = place
            .filter(|place| *place >= array + 2 * count)
            .and_then(|place| read_cell(pages, page, place, kind));
        match cell {
            Some(cell) => {
                found.broken += u32::from(cell.values.is_none() && kind != Kind::TableInterior);
                found.list.push(cell);
            }
            None => found.broken += 1,
        }
    }
    if matches!(kind, Kind::TableLeaf | Kind::TableInterior) {
        found.broken += drop_out_of_order(&mut found.list);
    }
    // A count that was lowered hides cells without any other trace.
    let hidden = found.broken == 0 && !is_accounted_for(page, at, array, &found.list, pages);
    found.broken += u32::from(hidden);
    found
}

/// Takes out the fewest cells without which the numbers of the rows grow, and says how many.
fn drop_out_of_order(cells: &mut Vec<Cell>) -> u32 {
    if cells.windows(2).all(|pair| pair[0].rowid < pair[1].rowid) {
        return 0;
    }
    // The longest run that grows: for each cell how long it is up to it, and which comes before.
    let mut runs: Vec<(usize, Option<usize>)> = Vec::with_capacity(cells.len());
    for (index, cell) in cells.iter().enumerate() {
        let before = (0..index)
            .filter(|before| cells[*before].rowid < cell.rowid)
            .max_by_key(|before| runs[*before].0);
        runs.push((before.map_or(1, |before| runs[before].0 + 1), before));
    }
    let mut keep = vec![false; cells.len()];
    let mut last = (0..cells.len()).max_by_key(|index| runs[*index].0);
    while let Some(index) = last {
        keep[index] = true;
        last = runs[index].1;
    }
    let all = cells.len();
    let mut kept = keep.into_iter();
    cells.retain(|_| kept.next().unwrap_or(true));
    u32::try_from(all - cells.len()).unwrap_or(u32::MAX)
}

/// Whether every byte of the page belongs to a cell, the free blocks or the gap (1.6).
fn is_accounted_for(page: &[u8], at: usize, array: usize, cells: &[Cell], pages: &Pages) -> bool {
    let number = |from: usize| page.get(from..from + 2).map(|bytes| big(bytes) as usize);
    let (Some(mut block), Some(content)) = (number(at + 1), number(at + 5)) else { return false };
    let content = if content == 0 { 65536 } else { content };
    let fragments = page.get(at + 7).copied().map_or(0, usize::from);
    let array_end = array + 2 * cells.len();
    let mut used = array_end + fragments + cells.iter().map(|cell| cell.bytes).sum::<usize>();
    for _ in 0..page.len() / 4 {
        if block == 0 {
            break;
        }
        let (Some(next), Some(bytes)) = (number(block), number(block + 2)) else { return false };
        used += bytes;
        block = next;
    }
    used + content.saturating_sub(array_end) == pages.usable_bytes()
}

fn read_cell(pages: &Pages, page: &[u8], at: usize, kind: Kind) -> Option<Cell> {
    let whole = page.get(at..)?;
    let mut rest = whole;
    let mut child = None;
    if kind.is_interior() {
        child = Some(big(rest.get(..4)?));
        rest = rest.get(4..)?;
    }
    if kind == Kind::TableInterior {
        let (rowid, taken) = varint(rest)?;
        return Some(Cell { child, rowid: signed(rowid), values: None, bytes: 4 + taken });
    }
    let (bytes, taken) = varint(rest)?;
    rest = rest.get(taken..)?;
    let mut rowid = 0;
    if kind == Kind::TableLeaf {
        let (number, taken) = varint(rest)?;
        rowid = signed(number);
        rest = rest.get(taken..)?;
    }
    let head = whole.len() - rest.len();
    let local = local_bytes(pages, bytes, kind);
    let values = payload(pages, rest, bytes, kind).and_then(|payload| record(&payload));
    // Less than four bytes cannot be given back, so no cell takes less.
    let taken = local.map_or(0, |(here, spills)| here + if spills { 4 } else { 0 });
    Some(Cell { child, rowid, values, bytes: (head + taken).max(4) })
}

/// How many bytes of a payload lie on the page itself, and whether there are more (1.6).
fn local_bytes(pages: &Pages, bytes: u64, kind: Kind) -> Option<(usize, bool)> {
    if bytes > PAYLOAD_BYTES_MAX || bytes > u64::from(pages.count()) * 65536 {
        return None;
    }
    let (bytes, usable) = (usize::try_from(bytes).ok()?, pages.usable_bytes());
    let most = if kind == Kind::TableLeaf { usable - 35 } else { (usable - 12) * 64 / 255 - 23 };
    if bytes <= most {
        return Some((bytes, false));
    }
    let least = (usable - 12) * 32 / 255 - 23;
    let wanted = least + (bytes - least) % (usable - 4);
    Some((if wanted <= most { wanted } else { least }, true))
}

/// The whole payload of a cell, with what lies on overflow pages (1.6.1).
fn payload(pages: &Pages, local: &[u8], bytes: u64, kind: Kind) -> Option<Vec<u8>> {
    let (here, spills) = local_bytes(pages, bytes, kind)?;
    let (bytes, usable) = (usize::try_from(bytes).ok()?, pages.usable_bytes());
    if !spills {
        return local.get(..here).map(<[u8]>::to_vec);
    }
    let mut payload = local.get(..here)?.to_vec();
    let mut next = big(local.get(here..here + 4)?);
    let mut left = pages.count();
    while payload.len() < bytes {
        left = left.checked_sub(1)?;
        let page = pages.read(next)?;
        let part = (bytes - payload.len()).min(usable - 4);
        payload.extend_from_slice(page.get(4..4 + part)?);
        next = big(page.get(..4)?);
    }
    Some(payload)
}

/// The values of a record (2.1).
fn record(payload: &[u8]) -> Option<Vec<Value>> {
    let (header_bytes, mut at) = varint(payload)?;
    let header_bytes = usize::try_from(header_bytes).ok()?;
    if header_bytes > payload.len() || header_bytes < at {
        return None;
    }
    let mut body = header_bytes;
    let mut values = Vec::new();
    while at < header_bytes {
        let (kind, taken) = varint(payload.get(at..header_bytes)?)?;
        at += taken;
        let (value, bytes) = value(kind, payload.get(body..)?)?;
        body = body.checked_add(bytes)?;
        values.push(value);
        if values.len() > COLUMNS_MAX {
            return None;
        }
    }
    // A record has no byte that belongs to no value.
    (body == payload.len()).then_some(values)
}

fn value(kind: u64, body: &[u8]) -> Option<(Value, usize)> {
    let integer = |bytes: usize| -> Option<(Value, usize)> {
        let part = body.get(..bytes)?;
        let negative = part.first().is_some_and(|byte| byte & 0x80 != 0);
        let start = if negative { -1_i64 } else { 0 };
        let number = part.iter().fold(start, |number, byte| (number << 8) | i64::from(*byte));
        Some((Value::Integer(number), bytes))
    };
    match kind {
        0 => Some((Value::Null, 0)),
        1..=4 => integer(usize::try_from(kind).ok()?),
        5 => integer(6),
        6 => integer(8),
        7 => {
            let bytes = body.get(..8)?.try_into().ok()?;
            Some((Value::Real(f64::from_be_bytes(bytes)), 8))
        }
        8 => Some((Value::Integer(0), 0)),
        9 => Some((Value::Integer(1), 0)),
        10 | 11 => None,
        _ => {
            let bytes = usize::try_from((kind - 12) / 2).ok()?;
            let part = body.get(..bytes)?;
            if kind.is_multiple_of(2) {
                return Some((Value::Blob(part.to_vec()), bytes));
            }
            // A text that is not UTF-8 is not what was written.
            Some((Value::Text(std::str::from_utf8(part).ok()?.to_owned()), bytes))
        }
    }
}

/// A variable-length integer and the bytes it takes (1.6).
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0;
    for index in 0..9 {
        let byte = u64::from(*bytes.get(index)?);
        if index == 8 {
            return Some(((number << 8) | byte, 9));
        }
        number = (number << 7) | (byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((number, index + 1));
        }
    }
    None
}

fn signed(number: u64) -> i64 {
    i64::from_le_bytes(number.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn varints_are_read_as_they_are_defined() {
        assert_eq!(varint(&[0x00]), Some((0, 1)));
        assert_eq!(varint(&[0x7f]), Some((127, 1)));
        assert_eq!(varint(&[0x81, 0x00]), Some((128, 2)));
        assert_eq!(varint(&[0xff; 9]), Some((u64::MAX, 9)));
        assert_eq!(varint(&[0x80; 8]), None);
        assert_eq!(varint(&[]), None);
    }

    #[test]
    fn record_that_does_not_fit_its_bytes_is_none() {
        // Two columns: the integer 5 in one byte, the text "ab".
        let whole = [3, 1, 17, 5, b'a', b'b'];
        let values = vec![Value::Integer(5), Value::Text("ab".to_owned())];
        assert_eq!(record(&whole), Some(values));
        assert_eq!(record(&whole[..5]), None);
        assert_eq!(record(&[3, 1, 17, 5, b'a', b'b', 0]), None);
        assert_eq!(record(&[3, 10, 17, b'a', b'b']), None);
        assert_eq!(record(&[200, 1, 17, 5, b'a', b'b']), None);
        assert_eq!(record(&[3, 1, 17, 5, 0xff, 0xfe]), None);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(record(&bytes));
            let _number = varint(&bytes);
        }
    }
}
