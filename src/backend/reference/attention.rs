//! `attention`, as in the equation of `ops/attention.rs`.

use super::dense::{Dense, Operand, Promise, collect};
use super::real::{Order, Real};
use super::{Arithmetic, Reference};
use crate::Result;
use crate::backend::Implements;
use crate::ops::{Attention, AttentionArgs, EmptyRow, Keys, Media, Operands, Segment, Visibility};
use crate::tensor::{HostMemory, Spec};

impl Implements<Attention> for Reference {
    type Prepared = Attention;

    fn prepare(&self, op: &Attention, _: &<Attention as Operands>::Args<Spec, Spec>) -> Result<Attention> {
        Ok(*op)
    }

    fn workspace_bytes(_: &Attention) -> usize {
        0
    }

    unsafe fn record(
        &self,
        op: &Attention,
        _: &mut (),
        args: &AttentionArgs<Operand, Operand>,
        _: &HostMemory,
    ) -> Result<()> {
        // SAFETY: the contract of `record`, passed on.
        let memory = unsafe { Promise::of_enqueue() };
        match self.arithmetic {
            Arithmetic::F64 => attention::<f64>(op, &memory, args, &Order::new(0)),
            Arithmetic::F32 { permutation } => attention::<f32>(op, &memory, args, &Order::new(permutation)),
        }
    }
}

struct DenseSegment<R> {
    /// `[entries, Lk, Hk, d]`.
    k: Dense<R>,
    v: Dense<R>,
    keys: Keys<Dense<u32>>,
    offsets: Option<Dense<u32>>,
    slots: Option<Dense<u32>>,
}

impl<R: Real> DenseSegment<R> {
    fn read(memory: &Promise, segment: &Segment<Operand>) -> Result<Self> {
        Ok(DenseSegment {
            k: memory.reals(&segment.k)?,
            v: memory.reals(&segment.v)?,
            keys: match &segment.keys {
                Keys::All => Keys::All,
                Keys::Lengths(lengths) => Keys::Lengths(memory.read(lengths)?),
                Keys::Bits(bits) => Keys::Bits(memory.read(bits)?),
            },
            offsets: segment.offsets.as_ref().map(|o| memory.read(o)).transpose()?,
            slots: segment.slots.as_ref().map(|s| memory.read(s)).transpose()?,
        })
    }

    fn part(&self, b: usize) -> Part<'_, R> {
        let (entry, start, positions) = match (&self.offsets, &self.slots) {
            (Some(offsets), _) => {
                let (start, end) = ragged(offsets, b, self.k.dim(1));
                (0, start, end - start)
            }
            (None, Some(slots)) => ((*slots.at(&[b]) as usize).min(self.k.dim(0) - 1), 0, self.k.dim(1)),
            (None, None) => (b, 0, self.k.dim(1)),
        };
        let extent = match &self.keys {
            Keys::Lengths(lengths) => (*lengths.at(&[b]) as usize).min(positions),
            Keys::All | Keys::Bits(_) => positions,
        };
        let bits = match &self.keys {
            Keys::Bits(bits) => Some(bits.row(&[b])),
            Keys::All | Keys::Lengths(_) => None,
        };
        Part { segment: self, entry, start, positions, extent, bits }
    }
}

/// One problem's part of a segment.
struct Part<'s, R> {
    segment: &'s DenseSegment<R>,
    entry: usize,
    start: usize,
    /// Key positions, padded ones included.
    positions: usize,
    /// End of the last key that may exist.
    extent: usize,
    bits: Option<&'s [u32]>,
}

impl<R: Real> Part<'_, R> {
    fn exists(&self, j: usize) -> bool {
        j < self.extent && self.bits.is_none_or(|bits| bit(bits, j))
    }

    fn k(&self, j: usize, g: usize) -> &[R] {
        self.segment.k.row(&[self.entry, self.start + j, g])
    }

    fn v(&self, j: usize, g: usize) -> &[R] {
        self.segment.v.row(&[self.entry, self.start + j, g])
    }
}

/// The joint key axis of one problem: the first segment's key positions, then the second one's.
struct JointKeys<'s, R> {
    first: Part<'s, R>,
    second: Option<Part<'s, R>>,
}

impl<R: Real> JointKeys<'_, R> {
    fn positions(&self) -> usize {
        self.first.positions + self.second.as_ref().map_or(0, |s| s.positions)
    }

    /// The part that key position j belongs to, and its position there.
    fn part(&self, j: usize) -> (&Part<'_, R>, usize) {
        match &self.second {
            Some(second) if j >= self.first.positions => (second, j - self.first.positions),
            _ => (&self.first, j),
        }
    }

    fn exists(&self, j: usize) -> bool {
        let (part, j) = self.part(j);
        part.exists(j)
    }

    fn k(&self, j: usize, g: usize) -> &[R] {
        let (part, j) = self.part(j);
        part.k(j, g)
    }

    fn v(&self, j: usize, g: usize) -> &[R] {
        let (part, j) = self.part(j);
        part.v(j, g)
    }

    /// See [`crate::ops::EmptyRows::beyond_media`].
    fn media_present(&self, keys_per_media: u32) -> u64 {
        let extent = match &self.second {
            Some(second) if second.extent > 0 => self.first.positions + second.extent,
            _ => self.first.extent,
        };
        (extent as u64).div_ceil(u64::from(keys_per_media))
    }
}

/// The keys that a row sees, or the policy of an empty row.
enum Row {
    Sees(Vec<usize>),
    Empty(EmptyRow),
}

enum Rule {
    All,
    SameMedia { media_index: Dense<i32>, keys_per_media: u32 },
    PrecedingMedia { media_index: Dense<i32>, keys_per_media: u32 },
    PrefixCausal { prefix: u32, offset: Option<Dense<u32>> },
    MediaBits { bits: Dense<u32>, keys_per_block: u32 },
}

impl Rule {
    fn read(memory: &Promise, visibility: &Visibility<Operand>) -> Result<Self> {
        // `check` refuses 0; this does not rely on it.
        let media = |m: &Media<Operand>| Ok((memory.read(&m.media_index)?, m.keys_per_media.max(1)));
        Ok(match visibility {
            Visibility::All => Rule::All,
            Visibility::SameMedia(m) => {
                let (media_index, keys_per_media) = media(m)?;
                Rule::SameMedia { media_index, keys_per_media }
            }
            Visibility::PrecedingMedia(m) => {
                let (media_index, keys_per_media) = media(m)?;
                Rule::PrecedingMedia { media_index, keys_per_media }
            }
            Visibility::PrefixCausal { prefix, offset } => {
                Rule::PrefixCausal { prefix: *prefix, offset: offset.as_ref().map(|o| memory.read(o)).transpose()? }
            }
            Visibility::MediaBits { bits, keys_per_block } => {
                Rule::MediaBits { bits: memory.read(bits)?, keys_per_block: (*keys_per_block).max(1) }
            }
        })
    }

    /// What row i of problem b reads; it is row `at` of the operands.
    fn row<R: Real>(&self, op: &Attention, keys: &JointKeys<'_, R>, b: usize, i: usize, at: [usize; 2]) -> Result<Row> {
        let policy = &op.empty_rows;
        let visible = |rule: &dyn Fn(u64) -> bool| {
            let seen = collect((0..keys.positions()).filter(|&j| keys.exists(j) && rule(j as u64)))?;
            Ok(if seen.is_empty() { Row::Empty(policy.masked) } else { Row::Sees(seen) })
        };
        match self {
            Rule::All => visible(&|_| true),
            Rule::SameMedia { media_index, keys_per_media } => {
                let Some(phi) = medium(media_index, at) else { return Ok(Row::Empty(policy.no_media)) };
                if phi > keys.media_present(*keys_per_media) {
                    return Ok(Row::Empty(policy.beyond_media));
                }
                visible(&|j| j / u64::from(*keys_per_media) == phi - 1)
            }
            Rule::PrecedingMedia { media_index, keys_per_media } => {
                let Some(phi) = medium(media_index, at) else { return Ok(Row::Empty(policy.no_media)) };
                visible(&|j| j / u64::from(*keys_per_media) < phi)
            }
            Rule::PrefixCausal { prefix, offset } => {
                let offset = offset.as_ref().map_or(0, |offset| (*offset.at(&[b])).min(i32::MAX as u32));
                visible(&|j| j < u64::from(*prefix) || j <= i as u64 + u64::from(offset))
            }
            Rule::MediaBits { bits, keys_per_block } => {
                let words = bits.row(&at);
                visible(&|j| bit(words, (j / u64::from(*keys_per_block)) as usize))
            }
        }
    }
}

/// φ of a row, if there is a medium.
fn medium(media_index: &Dense<i32>, at: [usize; 2]) -> Option<u64> {
    u64::try_from(*media_index.at(&at)).ok().filter(|&phi| phi > 0)
}

/// Bit n; absent words count as zeros.
fn bit(words: &[u32], n: usize) -> bool {
    words.get(n / 32).is_some_and(|word| word >> (n % 32) & 1 == 1)
}

/// Rows `offsets[b]..offsets[b + 1]` within `total`, whatever the offsets are.
fn ragged(offsets: &Dense<u32>, b: usize, total: usize) -> (usize, usize) {
    let start = (*offsets.at(&[b]) as usize).min(total);
    let end = (*offsets.at(&[b + 1]) as usize).clamp(start, total);
    (start, end)
}

fn attention<R: Real>(
    op: &Attention,
    memory: &Promise,
    args: &AttentionArgs<Operand, Operand>,
    order: &Order,
) -> Result<()> {
    let shape = args.q.spec.shape();
    let is_empty = |to: &Option<Operand>| to.as_ref().is_none_or(|to| to.spec.elements() == 0);
    // Rows see keys even if there is no element to compute.
    let headless = args.out.spec.elements() == 0 && is_empty(&args.log_sum_exp);
    if headless && is_empty(&args.row_visible) {
        return Ok(());
    }
    let q: Dense<R> = memory.reals(&args.q)?;
    let q_offsets = args.q_offsets.as_ref().map(|o| memory.read::<u32>(o)).transpose()?;
    let first = DenseSegment::read(memory, &args.first)?;
    let second = args.second.as_ref().map(|s| DenseSegment::read(memory, s)).transpose()?;
    let rule = Rule::read(memory, &args.visibility)?;

    let (heads, kv_heads) = (if headless { 0 } else { q.dim(2) }, first.k.dim(2));
    let mut out = Dense::filled(shape, None)?;
    let mut log_sum_exp = args.log_sum_exp.as_ref().map(|_| Dense::filled(&shape[..3], None)).transpose()?;
    let mut row_visible = args.row_visible.as_ref().map(|_| Dense::filled(&shape[..2], None)).transpose()?;

    let batch = q_offsets.as_ref().map_or(q.dim(0), |o| o.dim(0) - 1);
    for b in 0..batch {
        let keys = JointKeys { first: first.part(b), second: second.as_ref().map(|s| s.part(b)) };
        let (entry, start, end) = match &q_offsets {
            Some(offsets) => {
                let (start, end) = ragged(offsets, b, q.dim(1));
                (0, start, end)
            }
            None => (b, 0, q.dim(1)),
        };
        for row in start..end {
            let reads = rule.row(op, &keys, b, row - start, [entry, row])?;
            if let Some(row_visible) = &mut row_visible {
                *row_visible.at_mut(&[entry, row]) = Some(u32::from(matches!(reads, Row::Sees(_))));
            }
            for h in 0..heads {
                let g = h / (heads / kv_heads);
                let (result, lse) = match &reads {
                    Row::Sees(seen) => softmax_row(op, q.row(&[entry, row, h]), &keys, g, seen, order)?,
                    Row::Empty(policy) => empty_row(op, *policy, q.row(&[entry, row, h]), &keys, g, order)?,
                };
                if let Some(log_sum_exp) = &mut log_sum_exp {
                    *log_sum_exp.at_mut(&[entry, row, h]) = Some(lse);
                }
                for (to, x) in out.row_mut(&[entry, row, h]).iter_mut().zip(result) {
                    *to = Some(x);
                }
            }
        }
    }

    order.expect_drawn()?;
    memory.write_reals(&args.out, out)?;
    if let (Some(to), Some(log_sum_exp)) = (&args.log_sum_exp, log_sum_exp) {
        memory.write_reals(to, log_sum_exp)?;
    }
    if let (Some(to), Some(row_visible)) = (&args.row_visible, row_visible) {
        memory.write(to, row_visible);
    }
    Ok(())
}

/// Softmax over the visible keys, at least one, and its log-sum-exp.
fn softmax_row<R: Real>(
    op: &Attention,
    q: &[R],
    keys: &JointKeys<'_, R>,
    g: usize,
    seen: &[usize],
    order: &Order,
) -> Result<(Vec<R>, R)> {
    let scale = R::round_from(f64::from(op.scale));
    let scores: Vec<R> = collect(seen.iter().map(|&j| scale * order.dot(q, keys.k(j, g))))?;
    let row_max = scores.iter().fold(R::NEG_INFINITY, |m, &s| m.max(s));
    let weights: Vec<R> = collect(scores.iter().map(|&s| (s - row_max).exp()))?;
    let row_sum = order.sum(seen.len(), |n| weights[n]);
    let v: Vec<&[R]> = collect(seen.iter().map(|&j| keys.v(j, g)))?;
    let out = collect((0..q.len()).map(|c| order.sum(seen.len(), |n| weights[n] * v[n][c]) / row_sum))?;
    Ok((out, row_max + row_sum.ln()))
}

/// The result of a row without a visible key. Every key position counts, padded and masked ones
/// too; without any, zeros.
fn empty_row<R: Real>(
    op: &Attention,
    policy: EmptyRow,
    q: &[R],
    keys: &JointKeys<'_, R>,
    g: usize,
    order: &Order,
) -> Result<(Vec<R>, R)> {
    let positions = keys.positions();
    match policy {
        EmptyRow::Uniform if positions > 0 => {
            let out = collect((0..q.len()).map(|c| order.mean(positions, |j| keys.v(j, g)[c])))?;
            Ok((out, R::from_usize(positions).ln()))
        }
        EmptyRow::AttendAll if positions > 0 => {
            let all = collect(0..positions)?;
            softmax_row(op, q, keys, g, &all, order)
        }
        EmptyRow::Zero | EmptyRow::Uniform | EmptyRow::AttendAll => {
            Ok((collect(q.iter().map(|_| R::ZERO))?, R::NEG_INFINITY))
        }
    }
}
