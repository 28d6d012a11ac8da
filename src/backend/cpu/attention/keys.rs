//! The keys of a problem, and those that a row sees: everything that depends on values in memory,
//! which are hostile and are clamped here, once.

use super::super::rows::{Raw, Rows};
use crate::ops::{EmptyRow, EmptyRows, Keys, Segment, Visibility};
use crate::tensor::{Bound, HostMemory};

type Operand = Bound<HostMemory>;

/// 32-bit integers `[n]`.
#[derive(Clone, Copy)]
pub(super) struct Line {
    at: Raw,
    stride: usize,
}

impl Line {
    pub fn of(bound: &Operand) -> Self {
        Line { at: Raw::of(bound), stride: bound.spec.stride(0) }
    }

    /// # Safety
    /// The operand holds its spec, and `i` is inside.
    pub unsafe fn get(&self, i: usize) -> usize {
        // SAFETY: passed on to the caller.
        unsafe { self.at.add(i * self.stride).u32() as usize }
    }

    /// Rows `offsets[b]..offsets[b + 1]` within `total`, whatever the offsets are: first row and
    /// number of rows.
    ///
    /// # Safety
    /// As [`Line::get`], for `b + 1`.
    pub unsafe fn ragged(&self, b: usize, total: usize) -> (usize, usize) {
        // SAFETY: passed on to the caller.
        let (start, end) = unsafe { (self.get(b).min(total), self.get(b + 1)) };
        (start, end.clamp(start, total) - start)
    }

    /// Whether no problem begins before another one's end: only then may problems run in parallel.
    ///
    /// # Safety
    /// As [`Line::get`], for `n - 1`.
    pub unsafe fn ascends(&self, n: usize) -> bool {
        // SAFETY: passed on to the caller.
        (1..n).all(|i| unsafe { self.get(i - 1) <= self.get(i) })
    }
}

pub(super) struct SegmentOperands {
    pub k: Rows,
    pub v: Rows,
    entries: usize,
    rows: usize,
    keys: Keys<Line>,
    bits: Option<Rows>,
    offsets: Option<Line>,
    slots: Option<Line>,
}

impl SegmentOperands {
    pub fn of(segment: &Segment<Operand>) -> Self {
        SegmentOperands {
            k: Rows::of(&segment.k),
            v: Rows::of(&segment.v),
            entries: segment.k.spec.dim(0),
            rows: segment.k.spec.dim(1),
            keys: match &segment.keys {
                Keys::Lengths(lengths) => Keys::Lengths(Line::of(lengths)),
                Keys::All | Keys::Bits(_) => Keys::All,
            },
            bits: match &segment.keys {
                Keys::Bits(bits) => Some(Rows::of(bits)),
                Keys::All | Keys::Lengths(_) => None,
            },
            offsets: segment.offsets.as_ref().map(Line::of),
            slots: segment.slots.as_ref().map(Line::of),
        }
    }

    /// Problem b's part of it.
    ///
    /// # Safety
    /// The operands hold their specs, and b is a problem.
    pub unsafe fn part(&self, b: usize) -> Part {
        // SAFETY: passed on to the caller.
        unsafe {
            let (entry, start, positions) = match (&self.offsets, &self.slots) {
                (Some(offsets), _) => {
                    let (start, len) = offsets.ragged(b, self.rows);
                    (0, start, len)
                }
                (None, Some(slots)) => (slots.get(b).min(self.entries.saturating_sub(1)), 0, self.rows),
                (None, None) => (b, 0, self.rows),
            };
            let extent = match &self.keys {
                Keys::Lengths(lengths) => lengths.get(b).min(positions),
                _ => positions,
            };
            Part { entry, start, positions, extent, bits: self.bits.map(|bits| bits.at([b, 0, 0])) }
        }
    }
}

/// One problem's part of a segment.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub entry: usize,
    pub start: usize,
    /// Key positions, padded ones included.
    pub positions: usize,
    /// End of the last key that may exist.
    extent: usize,
    bits: Option<Raw>,
}

impl Part {
    /// # Safety
    /// The bitset holds a bit for every key position.
    unsafe fn exists(&self, j: usize) -> bool {
        // SAFETY: j < extent <= positions, passed on to the caller.
        j < self.extent && self.bits.is_none_or(|bits| unsafe { bits.add(j / 32).u32() } >> (j % 32) & 1 == 1)
    }
}

/// The joint key axis of one problem: the first segment's key positions, then the second one's.
pub(super) struct JointKeys {
    pub first: Part,
    pub second: Option<Part>,
}

impl JointKeys {
    pub fn positions(&self) -> usize {
        self.first.positions + self.second.map_or(0, |s| s.positions)
    }

    /// # Safety
    /// As [`Part::exists`]; `j < positions()`.
    pub unsafe fn exists(&self, j: usize) -> bool {
        // SAFETY: passed on to the caller.
        unsafe {
            match &self.second {
                Some(second) if j >= self.first.positions => second.exists(j - self.first.positions),
                _ => self.first.exists(j),
            }
        }
    }

    /// Media with at least one key position that may exist.
    fn media_present(&self, keys_per_media: usize) -> usize {
        let extent = match &self.second {
            Some(second) if second.extent > 0 => self.first.positions + second.extent,
            _ => self.first.extent,
        };
        extent.div_ceil(keys_per_media)
    }
}

/// φ, or the bitset, of every row.
#[derive(Clone, Copy)]
pub(super) struct PerRow {
    at: Raw,
    strides: [usize; 2],
    words: usize,
}

impl PerRow {
    fn of(bound: &Operand) -> Self {
        PerRow {
            at: Raw::of(bound),
            strides: [bound.spec.stride(0), bound.spec.stride(1)],
            words: if bound.spec.rank() == 3 { bound.spec.dim(2) } else { 1 },
        }
    }

    fn row(&self, entry: usize, row: usize) -> Raw {
        self.at.add(entry * self.strides[0] + row * self.strides[1])
    }
}

/// A number of keys to divide by. `check` refuses 0; this does not rely on it.
fn divisor(keys: u32) -> usize {
    keys.max(1) as usize
}

pub(super) enum Rule {
    All,
    SameMedia { phi: PerRow, keys_per_media: usize },
    PrecedingMedia { phi: PerRow, keys_per_media: usize },
    PrefixCausal { prefix: usize, offset: Option<Line> },
    MediaBits { bits: PerRow, keys_per_block: usize },
}

impl Rule {
    pub fn of(visibility: &Visibility<Operand>) -> Self {
        match visibility {
            Visibility::All => Rule::All,
            Visibility::SameMedia(m) => {
                Rule::SameMedia { phi: PerRow::of(&m.media_index), keys_per_media: divisor(m.keys_per_media) }
            }
            Visibility::PrecedingMedia(m) => {
                Rule::PrecedingMedia { phi: PerRow::of(&m.media_index), keys_per_media: divisor(m.keys_per_media) }
            }
            Visibility::PrefixCausal { prefix, offset } => {
                Rule::PrefixCausal { prefix: *prefix as usize, offset: offset.as_ref().map(Line::of) }
            }
            Visibility::MediaBits { bits, keys_per_block } => {
                Rule::MediaBits { bits: PerRow::of(bits), keys_per_block: divisor(*keys_per_block) }
            }
        }
    }

    /// φ of a row, 0 without a medium or without φ.
    ///
    /// # Safety
    /// The operands hold their specs, and the row is inside.
    pub unsafe fn phi(&self, entry: usize, row: usize) -> usize {
        match self {
            Rule::SameMedia { phi, .. } | Rule::PrecedingMedia { phi, .. } => {
                // SAFETY: passed on to the caller.
                unsafe { phi.row(entry, row).i32().max(0) as usize }
            }
            Rule::All | Rule::PrefixCausal { .. } | Rule::MediaBits { .. } => 0,
        }
    }

    /// The range of keys outside of which row i of problem b (row `row` of the operands) sees none;
    /// for all rules but `MediaBits` it sees all that exist inside.
    ///
    /// # Safety
    /// As [`Rule::phi`].
    pub unsafe fn range(&self, b: usize, entry: usize, row: usize, i: usize, positions: usize) -> [usize; 2] {
        // SAFETY: passed on to the caller.
        let phi = unsafe { self.phi(entry, row) };
        let [start, end] = match self {
            Rule::All | Rule::MediaBits { .. } => [0, positions],
            Rule::SameMedia { keys_per_media, .. } => {
                [phi.saturating_sub(1).saturating_mul(*keys_per_media), phi.saturating_mul(*keys_per_media)]
            }
            Rule::PrecedingMedia { keys_per_media, .. } => [0, phi.saturating_mul(*keys_per_media)],
            Rule::PrefixCausal { prefix, offset } => {
                // SAFETY: passed on to the caller.
                let offset = offset.as_ref().map_or(0, |offset| unsafe { offset.get(b) }.min(i32::MAX as usize));
                [0, (*prefix).max(i.saturating_add(offset).saturating_add(1))]
            }
        };
        [start.min(positions), end.min(positions)]
    }

    /// Whether the block of key j is set for a row; true for rules that [`Rule::range`] describes.
    ///
    /// # Safety
    /// As [`Rule::phi`].
    #[inline(always)]
    pub unsafe fn shows(&self, entry: usize, row: usize, j: usize) -> bool {
        match self {
            Rule::MediaBits { bits, keys_per_block } => {
                let block = j / keys_per_block;
                // SAFETY: the word is inside; the rest is passed on to the caller.
                block / 32 < bits.words
                    && unsafe { bits.row(entry, row).add(block / 32).u32() } >> (block % 32) & 1 == 1
            }
            _ => true,
        }
    }

    /// Keys per block, if the rule shows or hides whole blocks.
    pub fn block(&self) -> Option<usize> {
        match self {
            Rule::MediaBits { keys_per_block, .. } => Some(*keys_per_block),
            _ => None,
        }
    }

    /// The policy for a row that sees no key.
    ///
    /// # Safety
    /// As [`Rule::phi`].
    pub unsafe fn empty(&self, policies: &EmptyRows, keys: &JointKeys, entry: usize, row: usize) -> EmptyRow {
        // SAFETY: passed on to the caller.
        let phi = unsafe { self.phi(entry, row) };
        match self {
            Rule::SameMedia { .. } | Rule::PrecedingMedia { .. } if phi == 0 => policies.no_media,
            Rule::SameMedia { keys_per_media, .. } if phi > keys.media_present(*keys_per_media) => {
                policies.beyond_media
            }
            _ => policies.masked,
        }
    }
}
