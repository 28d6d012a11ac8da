//! `attention`: softmax(scale · q kᵀ) v over one or two K/V segments, with a visibility rule and no
//! mask matrix.
//!
//! For problem b, query row i, head h (K/V head g = ⌊h / (H / Hk)⌋) and the keys j of both segments
//! in order (first, then second):
//!
//! ```text
//! s_j   = scale · ⟨q[b,i,h], k[b,j,g]⟩             for visible j
//! out   = Σ_j exp(s_j − m) v[b,j,g] / Σ_j exp(s_j − m)        m = max_j s_j
//! lse   = m + ln Σ_j exp(s_j − m)
//! ```
//!
//! A key is visible when it exists ([`Keys`]) and the rule lets the row see it ([`Visibility`]).
//! [`EmptyRows`] says what a row without a visible key gets. Source: spec sections 1, 3.2, 4.2,
//! 5.2, 7.1 and 9 of the systems in the README's table.

use super::{Checker, Cost, Op, Operands, Parameters, Visit, all_bytes, amount, sealed};
use crate::tensor::{Spec, bit_words};
use crate::{DType, Result};

/// The result of a row that sees no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum EmptyRow {
    /// Zeros, with log-sum-exp −∞.
    #[default]
    Zero,
    /// The mean of V over every key position of both segments, padded and masked ones included;
    /// log-sum-exp ln(key positions). PyTorch code that replaces scores by a large negative number
    /// computes this.
    Uniform,
    /// The softmax over every key position of both segments, rules and key masks ignored, as in
    /// transformers' Mllama.
    AttendAll,
}

/// The results of the three kinds of empty row, decided per row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct EmptyRows {
    /// φ ≤ 0: no medium at or before the row. Only under [`Visibility::SameMedia`] and
    /// [`Visibility::PrecedingMedia`].
    pub no_media: EmptyRow,
    /// φ exceeds the media present. Only under [`Visibility::SameMedia`]; preceding media are all
    /// visible then.
    ///
    /// Media present are ⌈extent / keys_per_media⌉. The extent of a segment is `lengths[b]` under
    /// [`Keys::Lengths`], else all its key positions (a bitset does not shorten it). With two
    /// segments, it is the first one's key positions plus the second one's extent if that is not 0,
    /// else the first one's extent. A ragged segment's key positions are the problem's own rows.
    pub beyond_media: EmptyRow,
    /// Every key that the rule shows is masked, or there is none.
    pub masked: EmptyRow,
}

impl EmptyRows {
    /// The same policy for every kind.
    pub const fn all(policy: EmptyRow) -> Self {
        EmptyRows { no_media: policy, beyond_media: policy, masked: policy }
    }
}

/// Parameters of `attention`.
///
/// Three rows of text: the first comes before any image, the others see the second of two images:
///
/// ```
/// use xattn::ops::{Attention, AttentionArgs, Media, Visibility};
/// use xattn::{Device, Dispatch, View, ViewMut};
///
/// // One head of width 2. Two images of two keys each, whose values are 1 and 2.
/// let (q, k, mut out) = ([0.5f32; 3 * 2], [0.25f32; 4 * 2], [0f32; 3 * 2]);
/// let v = [1f32, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0];
/// let keys = |of| View::new(of, &[1, 4, 1, 2]);
/// let mut args = AttentionArgs::new(
///     View::new(&q, &[1, 3, 1, 2])?,
///     keys(&k)?,
///     keys(&v)?,
///     ViewMut::new(&mut out, &[1, 3, 1, 2])?,
/// );
/// let phi = [0i32, 2, 2];
/// let media_index = View::new(&phi, &[1, 3])?;
/// args.visibility = Visibility::SameMedia(Media { media_index, keys_per_media: 2, plan: None });
/// Attention::for_head_dim(2).run(&Device::cpu(), args)?;
/// assert_eq!(out, [0.0, 0.0, 2.0, 2.0, 2.0, 2.0]);
/// # Ok::<(), xattn::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Factor on the scores, usually head_dim^-1/2.
    pub scale: f32,
    /// The result of rows without a visible key.
    pub empty_rows: EmptyRows,
}

impl Attention {
    /// Scale head_dim^-1/2 and zeros for empty rows.
    pub fn for_head_dim(head_dim: usize) -> Self {
        Attention { scale: (1.0 / (head_dim.max(1) as f64).sqrt()) as f32, empty_rows: EmptyRows::default() }
    }
}

/// Which keys of a segment exist.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Keys<R> {
    /// All of them.
    All,
    /// The first `lengths[b]` of problem b: `u32 [B]`. Values beyond the segment count as its size.
    Lengths(R),
    /// The keys whose bit is set: `u32 [B, ⌈Lk/32⌉]`, least significant bit first (`pack_bits`).
    /// Not with ragged segments.
    Bits(R),
}

impl<R> Keys<R> {
    pub(crate) fn as_ref(&self) -> Keys<&R> {
        match self {
            Keys::All => Keys::All,
            Keys::Lengths(r) => Keys::Lengths(r),
            Keys::Bits(r) => Keys::Bits(r),
        }
    }

    pub(crate) fn try_map<W, R2, W2>(
        self,
        names: [&'static str; 2],
        v: &mut impl Visit<R, W, R2, W2>,
    ) -> Result<Keys<R2>> {
        Ok(match self {
            Keys::All => Keys::All,
            Keys::Lengths(r) => Keys::Lengths(v.read(names[0], r)?),
            Keys::Bits(r) => Keys::Bits(v.read(names[1], r)?),
        })
    }
}

/// Keys and values of one segment.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment<R> {
    /// Keys `[entries, Lk, Hk, d]`; ragged: `[1, total, Hk, d]`.
    pub k: R,
    /// Values, like `k`.
    pub v: R,
    /// The keys that exist.
    pub keys: Keys<R>,
    /// Ragged segments: problem b has rows `offsets[b]..offsets[b+1]` of `k` and `v`; `u32 [B+1]`.
    pub offsets: Option<R>,
    /// The entry of `k` and `v` that problem b reads: `u32 [B]`. Values beyond the last entry count
    /// as the last. Absent: entry b.
    pub slots: Option<R>,
}

impl<R> Segment<R> {
    /// A segment whose keys all exist.
    pub fn new(k: R, v: R) -> Self {
        Segment { k, v, keys: Keys::All, offsets: None, slots: None }
    }

    /// With a key mask.
    pub fn with_keys(self, keys: Keys<R>) -> Self {
        Segment { keys, ..self }
    }

    /// Addressed through slots.
    pub fn with_slots(self, slots: R) -> Self {
        Segment { slots: Some(slots), ..self }
    }

    /// Ragged.
    pub fn with_offsets(self, offsets: R) -> Self {
        Segment { offsets: Some(offsets), ..self }
    }

    fn as_ref(&self) -> Segment<&R> {
        Segment {
            k: &self.k,
            v: &self.v,
            keys: self.keys.as_ref(),
            offsets: self.offsets.as_ref(),
            slots: self.slots.as_ref(),
        }
    }

    fn map<W, R2, W2>(self, names: &[&'static str; 6], v: &mut impl Visit<R, W, R2, W2>) -> Result<Segment<R2>> {
        Ok(Segment {
            k: v.read(names[0], self.k)?,
            v: v.read(names[1], self.v)?,
            keys: self.keys.try_map([names[2], names[3]], v)?,
            offsets: self.offsets.map(|r| v.read(names[4], r)).transpose()?,
            slots: self.slots.map(|r| v.read(names[5], r)).transpose()?,
        })
    }
}

/// φ, and the keys of each medium.
#[derive(Debug, Clone, PartialEq)]
pub struct Media<R> {
    /// φ: `i32 [B, Lq]` (ragged queries: `[1, total]`), 1-based, 0 and less = no medium.
    pub media_index: R,
    /// Keys per medium: medium m owns keys `(m−1)·keys_per_media .. m·keys_per_media` of the joint
    /// key axis.
    pub keys_per_media: u32,
    /// The media plan that `media_index` built from the same φ, if there is one. It never changes
    /// the result: φ alone decides what a row sees. A plan of other contents causes no access
    /// outside of the operands either. On CUDA, rows that lie in none of its runs may then keep
    /// what `out` and `log_sum_exp` held before, and runs that overlap cost time. The other
    /// backends do not read it.
    pub plan: Option<R>,
}

/// The existing keys that a row may see. Key positions: the first segment's, then the second's.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Visibility<R> {
    /// Every key.
    All,
    /// The keys of medium φ (Flamingo: the last image at or before the token).
    SameMedia(Media<R>),
    /// The keys of media 1..=φ.
    PrecedingMedia(Media<R>),
    /// Q-Former ITG: key j of row i when `j < prefix` or `j <= i + offset`.
    PrefixCausal {
        /// Keys that every row sees.
        prefix: u32,
        /// Key position of query row 0 of problem b, which is the number of keys cached before it:
        /// `u32 [B]`. Values beyond 2^31 - 1 count as that. Absent: 0. The keys are then a cache of
        /// fixed capacity of which [`Keys::Lengths`] says how many exist, so that one prepared call
        /// serves every step.
        offset: Option<R>,
    },
    /// Key j when bit `j / keys_per_block` of the row is set: image masks of IDEFICS and Llama-3.2.
    MediaBits {
        /// `u32 [B, Lq, words]` (ragged queries: `[1, total, words]`), least significant bit first;
        /// absent words count as zeros.
        bits: R,
        /// Keys per bit.
        keys_per_block: u32,
    },
}

impl<R> Visibility<R> {
    pub(crate) fn as_ref(&self) -> Visibility<&R> {
        fn media<R>(m: &Media<R>) -> Media<&R> {
            Media { media_index: &m.media_index, keys_per_media: m.keys_per_media, plan: m.plan.as_ref() }
        }
        match self {
            Visibility::All => Visibility::All,
            Visibility::SameMedia(m) => Visibility::SameMedia(media(m)),
            Visibility::PrecedingMedia(m) => Visibility::PrecedingMedia(media(m)),
            Visibility::PrefixCausal { prefix, offset } => {
                Visibility::PrefixCausal { prefix: *prefix, offset: offset.as_ref() }
            }
            Visibility::MediaBits { bits, keys_per_block } => {
                Visibility::MediaBits { bits, keys_per_block: *keys_per_block }
            }
        }
    }

    pub(crate) fn try_map<W, R2, W2>(self, v: &mut impl Visit<R, W, R2, W2>) -> Result<Visibility<R2>> {
        fn media<R, W, R2, W2>(m: Media<R>, v: &mut impl Visit<R, W, R2, W2>) -> Result<Media<R2>> {
            Ok(Media {
                media_index: v.read("media_index", m.media_index)?,
                keys_per_media: m.keys_per_media,
                plan: m.plan.map(|r| v.read("plan", r)).transpose()?,
            })
        }
        Ok(match self {
            Visibility::All => Visibility::All,
            Visibility::SameMedia(m) => Visibility::SameMedia(media(m, v)?),
            Visibility::PrecedingMedia(m) => Visibility::PrecedingMedia(media(m, v)?),
            Visibility::PrefixCausal { prefix, offset } => {
                Visibility::PrefixCausal { prefix, offset: offset.map(|r| v.read("causal_offset", r)).transpose()? }
            }
            Visibility::MediaBits { bits, keys_per_block } => {
                Visibility::MediaBits { bits: v.read("media_bits", bits)?, keys_per_block }
            }
        })
    }

    pub(crate) fn parameters(&self, say: &mut Parameters<'_>) {
        say("visibility", self.name().into());
        match self {
            Visibility::All => {}
            Visibility::SameMedia(m) | Visibility::PrecedingMedia(m) => {
                say("keys_per_media", m.keys_per_media.to_string());
            }
            Visibility::PrefixCausal { prefix, .. } => say("prefix", prefix.to_string()),
            Visibility::MediaBits { keys_per_block, .. } => say("keys_per_block", keys_per_block.to_string()),
        }
    }

    /// The rule's name, as `verify` and `bench` print it.
    pub fn name(&self) -> &'static str {
        match self {
            Visibility::All => "all",
            Visibility::SameMedia(_) => "same_media",
            Visibility::PrecedingMedia(_) => "preceding_media",
            Visibility::PrefixCausal { .. } => "prefix_causal",
            Visibility::MediaBits { .. } => "media_bits",
        }
    }
}

/// Operands of `attention`.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionArgs<R, W> {
    /// Queries `[B, Lq, H, d]`; ragged: `[1, total, H, d]`.
    pub q: R,
    /// Ragged queries: problem b has rows `offsets[b]..offsets[b+1]` of `q`; `u32 [B+1]`. Offsets
    /// beyond `q` count as its end, and a problem whose second offset is not larger has no rows.
    /// Offsets that descend make problems overlap. The last problem that has a row writes it; on
    /// CUDA, a common row gets the result of any of them or stays as it is.
    pub q_offsets: Option<R>,
    /// The first K/V segment (features, media, cached keys).
    pub first: Segment<R>,
    /// The second one (latents, new keys): no concatenation is ever materialised.
    pub second: Option<Segment<R>>,
    /// The keys that each row sees.
    pub visibility: Visibility<R>,
    /// Result, like `q`. Rows of no problem (gaps between ragged problems) are left as they are.
    pub out: W,
    /// Natural log-sum-exp of the visible scores: `f32 [B, Lq, H]` (ragged: `[1, total, H]`).
    pub log_sum_exp: Option<W>,
    /// 1 for rows that saw a key, else 0: `u32 [B, Lq]` (ragged: `[1, total]`). Keys of an empty
    /// row's policy do not count.
    pub row_visible: Option<W>,
}

impl<R, W> AttentionArgs<R, W> {
    /// One segment, everything visible.
    pub fn new(q: R, k: R, v: R, out: W) -> Self {
        AttentionArgs {
            q,
            q_offsets: None,
            first: Segment::new(k, v),
            second: None,
            visibility: Visibility::All,
            out,
            log_sum_exp: None,
            row_visible: None,
        }
    }
}

/// Sizes that follow from the operands' shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttentionSizes {
    /// Problems.
    pub batch: usize,
    /// Query rows per problem, at most; ragged: of all problems.
    pub q_rows: usize,
    /// Query heads.
    pub heads: usize,
    /// K/V heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Key positions of the first segment, at most.
    pub first_keys: usize,
    /// Key positions of the second segment, at most; 0 without one.
    pub second_keys: usize,
}

impl<W> AttentionArgs<Spec, W> {
    /// Sizes that follow from the shapes.
    pub fn sizes(&self) -> AttentionSizes {
        AttentionSizes {
            batch: self.q_offsets.map_or(self.q.dim(0), |o| o.dim(0).saturating_sub(1)),
            q_rows: self.q.dim(1),
            heads: self.q.dim(2),
            kv_heads: self.first.k.dim(2),
            head_dim: self.q.dim(3),
            first_keys: self.first.k.dim(1),
            second_keys: self.second.as_ref().map_or(0, |s| s.k.dim(1)),
        }
    }
}

const FIRST: [&str; 6] = ["first.k", "first.v", "first.lengths", "first.bits", "first.offsets", "first.slots"];
const SECOND: [&str; 6] = ["second.k", "second.v", "second.lengths", "second.bits", "second.offsets", "second.slots"];

impl sealed::Sealed for Attention {}

impl Operands for Attention {
    const NAME: &'static str = "attention";
    type Args<R, W> = AttentionArgs<R, W>;

    fn map<R, W, R2, W2>(a: AttentionArgs<R, W>, v: &mut impl Visit<R, W, R2, W2>) -> Result<AttentionArgs<R2, W2>> {
        Ok(AttentionArgs {
            q: v.read("q", a.q)?,
            q_offsets: a.q_offsets.map(|r| v.read("q_offsets", r)).transpose()?,
            first: a.first.map(&FIRST, v)?,
            second: a.second.map(|s| s.map(&SECOND, v)).transpose()?,
            visibility: a.visibility.try_map(v)?,
            out: v.write("out", a.out)?,
            log_sum_exp: a.log_sum_exp.map(|w| v.write("log_sum_exp", w)).transpose()?,
            row_visible: a.row_visible.map(|w| v.write("row_visible", w)).transpose()?,
        })
    }

    fn as_ref<R, W>(a: &AttentionArgs<R, W>) -> AttentionArgs<&R, &W> {
        AttentionArgs {
            q: &a.q,
            q_offsets: a.q_offsets.as_ref(),
            first: a.first.as_ref(),
            second: a.second.as_ref().map(Segment::as_ref),
            visibility: a.visibility.as_ref(),
            out: &a.out,
            log_sum_exp: a.log_sum_exp.as_ref(),
            row_visible: a.row_visible.as_ref(),
        }
    }

    type Form = AttentionArgs<(), ()>;

    fn form(args: AttentionArgs<(), ()>) -> Self::Form {
        args
    }

    fn parameters(a: &Self::Form, say: &mut Parameters<'_>) {
        a.visibility.parameters(say);
    }
}

impl Op for Attention {
    fn check(&self, a: &AttentionArgs<Spec, Spec>) -> Result<()> {
        let c = Checker { op: Self::NAME };
        c.that(self.scale.is_finite(), "scale", "a finite number", self.scale)?;
        c.rank("q", &a.q, "[batch, rows, heads, head_dim]", 4)?;
        c.rows("q", &a.q)?;
        if let Some(offsets) = &a.q_offsets {
            check_offsets(&c, "q_offsets", offsets, "q", &a.q)?;
        }
        let sizes = a.sizes();
        check_segment(&c, &FIRST, &a.first, &sizes)?;
        if let Some(second) = &a.second {
            check_segment(&c, &SECOND, second, &sizes)?;
            c.that(
                second.k.dim(2) == sizes.kv_heads,
                "second.k",
                format!("{} heads as first.k", sizes.kv_heads),
                second.k,
            )?;
        }
        let keys = sizes.first_keys.saturating_add(sizes.second_keys);
        c.that(keys <= i32::MAX as usize, "first.k", "at most 2^31 - 1 keys per problem", keys)?;

        let rows = [a.q.dim(0), a.q.dim(1)];
        match &a.visibility {
            Visibility::All => {}
            Visibility::PrefixCausal { offset, .. } => {
                if let Some(offset) = offset {
                    c.integers("causal_offset", offset, DType::U32, "[batch]", &[sizes.batch])?;
                }
            }
            Visibility::SameMedia(m) | Visibility::PrecedingMedia(m) => {
                c.that(m.keys_per_media > 0, "keys_per_media", "at least 1", m.keys_per_media)?;
                c.integers("media_index", &m.media_index, DType::I32, "[batch, rows]", &rows)?;
                if let Some(plan) = &m.plan {
                    let shape = super::media_index::plan_shape(rows[0], rows[1]);
                    c.integers("plan", plan, DType::U32, "[batch, 1 + rows, 2]", &shape)?;
                    c.that(plan.is_contiguous(), "plan", "a contiguous tensor", plan)?;
                }
            }
            Visibility::MediaBits { bits, keys_per_block } => {
                c.that(*keys_per_block > 0, "keys_per_block", "at least 1", keys_per_block)?;
                c.rank("media_bits", bits, "[batch, rows, words]", 3)?;
                c.dtype("media_bits", bits, DType::U32)?;
                c.that(
                    bits.shape()[..2] == rows,
                    "media_bits",
                    format!("shape [{}, {}, words]", rows[0], rows[1]),
                    bits,
                )?;
                c.that(bits.last_contiguous(), "media_bits", "a contiguous last dimension", bits)?;
                c.index_range("media_bits", bits)?;
            }
        }

        c.shape("out", &a.out, "that of q", a.q.shape())?;
        c.rows("out", &a.out)?;
        c.written("out", &a.out)?;
        if let Some(lse) = &a.log_sum_exp {
            c.shape("log_sum_exp", lse, "[batch, rows, heads]", &a.q.shape()[..3])?;
            c.that(
                matches!(lse.dtype(), DType::F32 | DType::F64),
                "log_sum_exp",
                "f32 (f64 on the reference)",
                lse.dtype(),
            )?;
            c.written("log_sum_exp", lse)?;
            c.index_range("log_sum_exp", lse)?;
        }
        if let Some(seen) = &a.row_visible {
            c.integers("row_visible", seen, DType::U32, "[batch, rows]", &rows)?;
            c.written("row_visible", seen)?;
        }
        Ok(())
    }

    fn cost(&self, a: &AttentionArgs<Spec, Spec>) -> Cost {
        let s = a.sizes();
        let keys = s.first_keys.saturating_add(s.second_keys);
        // Under `SameMedia` a row sees one medium; the upper bound of the other rules is every key.
        let seen = match &a.visibility {
            Visibility::SameMedia(m) => keys.min(m.keys_per_media as usize),
            _ => keys,
        };
        let flops = amount([4, a.q.dim(0), a.q.dim(1), s.heads, seen, s.head_dim]);
        Cost { bytes: all_bytes::<Attention>(a), flops }
    }
}

fn check_offsets(c: &Checker, name: &'static str, offsets: &Spec, what: &'static str, ragged: &Spec) -> Result<()> {
    c.rank(name, offsets, "[batch + 1]", 1)?;
    c.dtype(name, offsets, DType::U32)?;
    c.index_range(name, offsets)?;
    c.that(offsets.dim(0) >= 1, name, "at least one entry", offsets)?;
    c.that(ragged.dim(0) == 1, what, format!("shape [1, total, ...] with {name}"), ragged)
}

fn check_segment(
    c: &Checker,
    names: &[&'static str; 6],
    segment: &Segment<Spec>,
    sizes: &AttentionSizes,
) -> Result<()> {
    let [k_name, v_name, lengths_name, bits_name, offsets_name, slots_name] = *names;
    let (k, v) = (&segment.k, &segment.v);
    c.rank(k_name, k, "[entries, keys, kv_heads, head_dim]", 4)?;
    c.rows(k_name, k)?;
    c.rows(v_name, v)?;
    c.shape(v_name, v, "that of k", k.shape())?;
    c.that(k.dim(3) == sizes.head_dim, k_name, format!("head_dim {} as q", sizes.head_dim), k)?;
    let divides = match k.dim(2) {
        0 => sizes.heads == 0,
        kv_heads => sizes.heads.is_multiple_of(kv_heads),
    };
    c.that(divides, k_name, format!("a number of heads that divides the {} of q", sizes.heads), k)?;
    match (&segment.offsets, &segment.slots) {
        (Some(_), Some(slots)) => c.refuse(slots_name, format!("no slots beside {offsets_name}"), slots)?,
        (Some(offsets), None) => {
            check_offsets(c, offsets_name, offsets, k_name, k)?;
            c.that(offsets.dim(0) == sizes.batch + 1, offsets_name, format!("shape [{}]", sizes.batch + 1), offsets)?;
        }
        (None, Some(slots)) => {
            c.integers(slots_name, slots, DType::U32, "[batch]", &[sizes.batch])?;
            c.that(k.dim(0) > 0 || sizes.batch == 0, k_name, "at least one entry for the slots", k)?;
        }
        (None, None) => {
            c.that(k.dim(0) == sizes.batch, k_name, format!("{} entries, one per problem", sizes.batch), k)?
        }
    }
    match &segment.keys {
        Keys::All => Ok(()),
        Keys::Lengths(lengths) => c.integers(lengths_name, lengths, DType::U32, "[batch]", &[sizes.batch]),
        Keys::Bits(bits) => {
            c.integers(bits_name, bits, DType::U32, "[batch, words]", &[sizes.batch, bit_words(k.dim(1))])?;
            c.that(bits.last_contiguous(), bits_name, "a contiguous last dimension", bits)?;
            c.that(segment.offsets.is_none(), bits_name, format!("no bits beside {offsets_name}"), bits)
        }
    }
}
