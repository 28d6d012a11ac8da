//! One tile of `attention`: query rows of one problem, times query heads that share one K/V head.

use super::super::instructions::Detected;
use super::super::rows::{PAD, Raw, Rows, padded};
use super::super::simd::{self, Kernel, Vector, prefetch};
use super::keys::{JointKeys, Line, Rule, SegmentOperands};
use super::logit::Logit;
use super::micro::{Accumulate, Scores, Sums};
use super::state::{Softmax, finish};
use crate::ops::attention::AttentionSizes;
use crate::ops::{Attention, EmptyRow};
use crate::size::{Size, Word};

/// Keys of one chunk. It affects the result's bits: chunks begin at the first key that the rule can
/// show and merge in ascending order.
pub(super) const CHUNK: usize = 64;

/// Most query rows of a tile, and most rows x heads.
pub(super) const TILE: usize = 64;

/// f32 in a cache line.
const LINE: usize = 16;

#[derive(Clone, Copy)]
pub(super) struct Cut {
    /// Query rows of a tile.
    pub rows: usize,
    /// Query heads of a tile, at most those of one K/V head.
    pub heads: usize,
    /// Tiles over the query heads of one K/V head.
    pub head_tiles: usize,
    /// Tiles over the query rows of one problem.
    pub row_tiles: usize,
}

impl Cut {
    /// f32 of scratch for one tile.
    pub fn scratch<W: Word>(&self, head_dim: usize) -> Size<W> {
        let (m, width) = (Size::of(padded(self.rows * self.heads)), Size::of(head_dim));
        let d = width.next_multiple_of(PAD);
        m * width + m * CHUNK + m * d + m * 3 + d * (2 * CHUNK) + d
    }
}

pub(super) struct Call {
    pub set: Detected,
    pub op: Attention,
    pub sizes: AttentionSizes,
    pub cut: Cut,
    pub q: Rows,
    pub q_offsets: Option<Line>,
    pub first: SegmentOperands,
    pub second: Option<SegmentOperands>,
    pub rule: Rule,
    pub out: Rows,
    pub log_sum_exp: Option<(Raw, [usize; 3])>,
    pub row_visible: Option<(Raw, [usize; 2])>,
}

/// Tile number `index` of a call, problem by problem.
pub(super) struct Tile<'a> {
    pub call: &'a Call,
    pub index: usize,
    pub scratch: *mut f32,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let (call, cut) = (self.call, &self.call.cut);
        let by_medium = matches!(call.rule, Rule::SameMedia { .. });
        let head_tiles = call.sizes.kv_heads * cut.head_tiles;
        let (b, rest) = (self.index / (cut.row_tiles * head_tiles), self.index % (cut.row_tiles * head_tiles));
        // Rows of one medium meet few keys: heads come first, while the pages of those keys are in
        // the TLB. Elsewhere rows come first, while the keys of one head are in the cache.
        let (row_tile, head) = match by_medium {
            true => (rest / head_tiles, rest % head_tiles),
            false => (rest % cut.row_tiles, rest / cut.row_tiles),
        };
        let (kv_head, head_tile) = (head / cut.head_tiles, head % cut.head_tiles);
        let group = call.sizes.heads / call.sizes.kv_heads;
        // SAFETY: b is a problem; row indices stay below the number of its rows, which `ragged`
        // clamps.
        unsafe {
            let (entry, offset, rows) = match &call.q_offsets {
                Some(offsets) => {
                    let (start, rows) = offsets.ragged(b, call.sizes.q_rows);
                    (0, start, rows)
                }
                None => (b, 0, call.sizes.q_rows),
            };
            let (start, end) = (row_tile * cut.rows, rows.min((row_tile + 1) * cut.rows));
            if start >= end {
                return;
            }
            let first_head = head_tile * cut.heads;
            let keys = JointKeys { first: call.first.part(b), second: call.second.as_ref().map(|s| s.part(b)) };
            let mut run = Run {
                call,
                keys: &keys,
                problem: b,
                entry,
                offset,
                start,
                rows: 0,
                kv_head,
                first_head: kv_head * group + first_head,
                heads: cut.heads.min(group - first_head),
                scratch: Scratch::default(),
            };
            // Rows of one medium meet only its keys; the other rules take the tile whole.
            while run.start < end {
                run.rows = end - run.start;
                if by_medium {
                    let phi = call.rule.phi(entry, offset + run.start);
                    let same = |r: &usize| call.rule.phi(entry, offset + run.start + r) == phi;
                    run.rows = (1..run.rows).take_while(same).count() + 1;
                }
                run.scratch = Scratch::lay(self.scratch, run.rows * run.heads, call.sizes.head_dim, V::LANES);
                run.attend::<V>();
                run.start += run.rows;
            }
        }
    }
}

/// The scratch of a run; `stride` is the number of its rows x heads, rounded up to whole registers.
#[derive(Clone, Copy)]
struct Scratch {
    stride: usize,
    width: usize,
    q: *mut f32,
    scores: *mut f32,
    sums: *mut f32,
    row_max: *mut f32,
    row_sum: *mut f32,
    decay: *mut f32,
    k: *mut f32,
    v: *mut f32,
    row: *mut f32,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::lay(std::ptr::null_mut(), 0, 0, 1)
    }
}

impl Scratch {
    fn lay(at: *mut f32, m: usize, head_dim: usize, lanes: usize) -> Self {
        let (stride, width) = (m.next_multiple_of(lanes), padded(head_dim));
        let mut next = at;
        let mut part = |n: usize| {
            let start = next;
            next = next.wrapping_add(n);
            start
        };
        Scratch {
            stride,
            width,
            scores: part(stride * CHUNK),
            q: part(stride * head_dim),
            sums: part(stride * width),
            row_max: part(stride),
            row_sum: part(stride),
            decay: part(stride),
            k: part(CHUNK * width),
            v: part(CHUNK * width),
            row: part(width),
        }
    }
}

/// A row as f32: in place and prefetched, if that is allowed; else loaded into `room`.
///
/// # Safety
/// As [`Raw::borrow`].
#[inline(always)]
unsafe fn place<V: Vector>(row: Raw, d: usize, room: *mut f32, in_place: bool) -> *const f32 {
    // SAFETY: passed on to the caller.
    unsafe {
        match row.as_f32() {
            Some(at) if in_place => {
                for line in (0..d).step_by(LINE) {
                    prefetch::<true>(at.wrapping_add(line).cast());
                }
                at
            }
            _ => {
                row.load::<V>(d, room);
                room
            }
        }
    }
}

/// Consecutive rows that are processed together.
struct Run<'a> {
    call: &'a Call,
    keys: &'a JointKeys,
    problem: usize,
    /// First index of the operands that hold the rows: the problem, or 0 if queries are ragged.
    entry: usize,
    /// Second index of the problem's row 0.
    offset: usize,
    /// First row of the run within the problem.
    start: usize,
    rows: usize,
    kv_head: usize,
    first_head: usize,
    heads: usize,
    scratch: Scratch,
}

/// The keys of a sweep, and their weights.
#[derive(Clone, Copy, PartialEq)]
enum Sweep {
    /// Keys that the rule and the key masks show.
    Visible,
    /// Every key position.
    AttendAll,
    /// Every key position, equal weights.
    Uniform,
}

// SAFETY of every block below: `Tile::run` keeps row, head and problem indices inside the operands,
// keys are positions below `JointKeys::positions`, scratch is laid out for `rows * heads` rows of
// head_dim columns and CHUNK keys, and V's features are there.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all, above")]
impl Run<'_> {
    #[inline(always)]
    unsafe fn attend<V: Vector>(&self) {
        unsafe {
            let positions = self.keys.positions();
            self.load_queries::<V>();
            let mut ranges = [[0usize; 2]; TILE];
            for (r, range) in ranges[..self.rows].iter_mut().enumerate() {
                *range = self.call.rule.range(self.problem, self.entry, self.row(r), self.start + r, positions);
            }
            let mut seen = [false; TILE];
            let mut policies = [None; TILE];
            for sweep in [Sweep::Visible, Sweep::Uniform, Sweep::AttendAll] {
                let policy = match sweep {
                    Sweep::Visible => None,
                    Sweep::Uniform => Some(EmptyRow::Uniform),
                    Sweep::AttendAll => Some(EmptyRow::AttendAll),
                };
                if policy.is_some() {
                    if !policies[..self.rows].contains(&policy) {
                        continue;
                    }
                    ranges[..self.rows].fill([0, positions]);
                }
                self.sweep::<V>(sweep, &ranges[..self.rows], &mut seen);
                if policy.is_none() {
                    for r in (0..self.rows).filter(|&r| !seen[r]) {
                        let empty = self.call.rule.empty(&self.call.op.empty_rows, self.keys, self.entry, self.row(r));
                        policies[r] = Some(if positions == 0 { EmptyRow::Zero } else { empty });
                    }
                }
                self.normalise_and_store::<V>(|r| policies[r] == policy);
            }
            self.zeros::<V>(|r| policies[r] == Some(EmptyRow::Zero));
            if let Some((at, strides)) = self.call.row_visible
                && self.first_head == 0
            {
                for (r, &seen) in seen[..self.rows].iter().enumerate() {
                    at.add(self.entry * strides[0] + self.row(r) * strides[1]).set_u32(u32::from(seen));
                }
            }
        }
    }

    /// Second index of the operands for row r of the run.
    #[inline(always)]
    fn row(&self, r: usize) -> usize {
        self.offset + self.start + r
    }

    /// q as f32, transposed: element (r, h) of dimension at is `q[at * stride + r * heads + h]`.
    #[inline(always)]
    unsafe fn load_queries<V: Vector>(&self) {
        let (s, d) = (&self.scratch, self.call.sizes.head_dim);
        unsafe {
            for m in 0..s.stride {
                let column = s.q.add(m);
                if m >= self.rows * self.heads {
                    for at in 0..d {
                        *column.add(at * s.stride) = 0.0;
                    }
                    continue;
                }
                let (r, h) = (m / self.heads, m % self.heads);
                let q = self.call.q.at([self.entry, self.row(r), self.first_head + h]).borrow::<V>(d, s.row);
                for at in 0..d {
                    *column.add(at * s.stride) = *q.add(at);
                }
            }
        }
    }

    /// Softmax and weighted sum over the keys in `ranges`, by chunks. Sets `seen` for their rows.
    #[inline(always)]
    unsafe fn sweep<V: Vector>(&self, sweep: Sweep, ranges: &[[usize; 2]], seen: &mut [bool; TILE]) {
        let (s, d) = (&self.scratch, self.call.sizes.head_dim);
        let visible = sweep == Sweep::Visible;
        let begin = ranges.iter().map(|r| r[0]).min().unwrap_or(0);
        let end = ranges.iter().map(|r| r[1]).max().unwrap_or(0);
        let columns = d.next_multiple_of(V::LANES);
        let mut first = true;
        for chunk in (begin..end).step_by(CHUNK) {
            let mut positions = [0usize; CHUNK];
            unsafe {
                let n = self.list(visible, chunk..end.min(chunk + CHUNK), &mut positions);
                if n == 0 {
                    continue;
                }
                let positions = &positions[..n];
                let mut keys = [std::ptr::null::<f32>(); CHUNK];
                let mut values = keys;
                self.locate::<V>(positions, &mut keys, &mut values);
                if sweep == Sweep::Uniform {
                    s.scores.write_bytes(0, n * s.stride);
                } else {
                    let (q, stride, to) = (s.q.cast_const(), s.stride, s.scores);
                    let logit = Logit::new(&self.call.op);
                    simd::run(self.call.set, Scores { q, stride, head_dim: d, keys: &keys[..n], logit, to });
                }
                if visible {
                    self.mask(positions, ranges, seen);
                }
                let Scratch { scores, stride, row_max, row_sum, decay, .. } = *s;
                simd::run(self.call.set, Softmax { logits: scores, stride, keys: n, first, row_max, row_sum, decay });
                let decay = (!first).then_some(decay.cast_const());
                let sums = Sums { at: s.sums, stride: s.width, columns, decay };
                let rows = self.rows * self.heads;
                simd::run(self.call.set, Accumulate { weights: scores, stride, rows, values: &values[..n], sums });
            }
            first = false;
        }
    }

    /// The positions of a chunk that exist and that some row sees; without `visible`, all of them.
    #[inline(always)]
    unsafe fn list(&self, visible: bool, chunk: std::ops::Range<usize>, positions: &mut [usize; CHUNK]) -> usize {
        let mut n = 0;
        let mut next_block = chunk.start;
        let mut shown = true;
        for j in chunk {
            if visible {
                if let Some(block) = self.call.rule.block()
                    && j >= next_block
                {
                    next_block = (j / block + 1).saturating_mul(block);
                    shown = (0..self.rows).any(|r| unsafe { self.call.rule.shows(self.entry, self.row(r), j) });
                }
                if !shown || unsafe { !self.keys.exists(j) } {
                    continue;
                }
            }
            positions[n] = j;
            n += 1;
        }
        n
    }

    /// The rows of K and V as f32: in place if they are stored as f32 (and, for V, end with a whole
    /// register), else converted.
    #[inline(always)]
    unsafe fn locate<V: Vector>(
        &self,
        positions: &[usize],
        keys: &mut [*const f32; CHUNK],
        values: &mut [*const f32; CHUNK],
    ) {
        let (s, d) = (&self.scratch, self.call.sizes.head_dim);
        for (i, &j) in positions.iter().enumerate() {
            let (segment, part, j) = match (&self.keys.second, &self.call.second) {
                (Some(part), Some(segment)) if j >= self.keys.first.positions => {
                    (segment, part, j - self.keys.first.positions)
                }
                _ => (&self.call.first, &self.keys.first, j),
            };
            let index = [part.entry, part.start + j, self.kv_head];
            let (k_room, v_room) = (s.k.wrapping_add(i * s.width), s.v.wrapping_add(i * s.width));
            unsafe {
                keys[i] = place::<V>(segment.k.at(index), d, k_room, true);
                values[i] = place::<V>(segment.v.at(index), d, v_room, d.is_multiple_of(V::LANES));
            }
        }
    }

    /// Sets scores of keys hidden from a row to −∞, and notes rows with a key. `positions` ascend.
    #[inline(always)]
    unsafe fn mask(&self, positions: &[usize], ranges: &[[usize; 2]], seen: &mut [bool; TILE]) {
        let s = &self.scratch;
        let (low, high) = (positions[0], positions[positions.len() - 1]);
        let block = self.call.rule.block();
        for (r, &[start, end]) in ranges.iter().enumerate() {
            if block.is_none() && start <= low && high < end {
                seen[r] = true;
                continue;
            }
            let mut next_block = low;
            let mut shown = true;
            for (i, &j) in positions.iter().enumerate() {
                unsafe {
                    if let Some(block) = block
                        && j >= next_block
                    {
                        next_block = (j / block + 1).saturating_mul(block);
                        shown = self.call.rule.shows(self.entry, self.row(r), j);
                    }
                    if shown && (start..end).contains(&j) {
                        seen[r] = true;
                        continue;
                    }
                    let scores = s.scores.add(i * s.stride + r * self.heads);
                    std::slice::from_raw_parts_mut(scores, self.heads).fill(f32::NEG_INFINITY);
                }
            }
        }
    }

    /// Divides by the sums of weights and writes the chosen rows.
    #[inline(always)]
    unsafe fn normalise_and_store<V: Vector>(&self, chosen: impl Fn(usize) -> bool) {
        let (s, d) = (&self.scratch, self.call.sizes.head_dim);
        for r in (0..self.rows).filter(|&r| chosen(r)) {
            for h in 0..self.heads {
                let m = r * self.heads + h;
                unsafe {
                    let (sums, head) = (s.sums.add(m * s.width), self.first_head + h);
                    let log_sum_exp = finish::<V>(sums, d, *s.row_max.add(m), *s.row_sum.add(m));
                    self.call.out.at([self.entry, self.row(r), head]).store::<V>(d, sums);
                    self.set_log_sum_exp(r, head, log_sum_exp);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn zeros<V: Vector>(&self, chosen: impl Fn(usize) -> bool) {
        let (s, d) = (&self.scratch, self.call.sizes.head_dim);
        unsafe { s.row.write_bytes(0, s.width) };
        for r in (0..self.rows).filter(|&r| chosen(r)) {
            for head in self.first_head..self.first_head + self.heads {
                unsafe {
                    self.call.out.at([self.entry, self.row(r), head]).store::<V>(d, s.row);
                    self.set_log_sum_exp(r, head, f32::NEG_INFINITY);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn set_log_sum_exp(&self, r: usize, head: usize, value: f32) {
        if let Some((at, strides)) = self.call.log_sum_exp {
            let index = self.entry * strides[0] + self.row(r) * strides[1] + head * strides[2];
            unsafe { at.add(index).set_real(value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shapes of `tests/soundness/sizes.rs`, and one row of a head of 26 MB, which a 32-bit
    /// machine can hold.
    #[test]
    fn scratch_that_would_wrap_does_not_fit() {
        let cut = Cut { rows: 1, heads: 0, head_tiles: 1, row_tiles: 1 };
        let wraps = 0x00fe_03f8_0fe0_3f90_u64;
        let bytes = |size: Size<u64>| (size * size_of::<f32>()).get();
        if let Ok(head_dim) = usize::try_from(wraps) {
            assert_eq!(wraps.wrapping_mul(129 * 4), 7744, "bytes that a workspace of this size had");
            assert_eq!(bytes(cut.scratch(head_dim)), None);
        }
        let row = Cut { heads: 1, ..cut };
        let head_dim = 6_700_000;
        assert_eq!(bytes(row.scratch(head_dim)), Some((161 * head_dim as u64 + 16 * 67) * 4));
        assert_eq!((row.scratch::<u32>(head_dim) * size_of::<f32>()).get(), None);
        assert!((row.scratch::<u32>(head_dim / 4) * size_of::<f32>()).get().is_some());
    }
}
