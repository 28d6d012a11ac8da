//! Cases of `attention`.

use super::call::{Call, OperandId, Operands};
use super::declare::{BOUNDARY, Layout, Parameters, Real, Side, parameters, words};
use super::{CaseOp, Judgement};
use crate::ops::{Attention, AttentionArgs, Each, EmptyRow, EmptyRows, Keys, Media, Segment, Visibility};
use crate::verify::generate::{Fill, Rng, one_hot, reals, spread_media};
use crate::{DType, HostTensor, Result, bit_words, pack_bits};

use super::attention_bounds::bounds;

words! {
    /// Which existing keys a row may see.
    Rule {
        /// All.
        All = "all",
        /// Those of medium φ.
        SameMedia = "same_media",
        /// Those of media 1..=φ.
        PrecedingMedia = "preceding_media",
        /// A prefix, then causal.
        PrefixCausal = "prefix_causal",
        /// Those whose block's bit is set.
        MediaBits = "media_bits",
    }
}

words! {
    /// The form of φ.
    Phi {
        /// Rising, as text with media makes it.
        Ordered = "ordered",
        /// Any medium in any row, also negative or beyond the media present.
        Any = "any",
        /// Rising, with the media plan.
        Planned = "planned",
    }
    beyond {
        /// Media at equal distances in the text. A single row sees the last medium. Each medium is
        /// a block of the bitset.
        Spread = "spread",
        /// Every row sees the first medium. All blocks of the bitset are tiles of it.
        Tiles = "tiles",
    }
}

words! {
    /// Which keys of a segment exist.
    Exist {
        /// All.
        All = "all",
        /// A length per problem, also 0 and beyond the segment.
        Lengths = "lengths",
        /// A bit per key.
        Bits = "bits",
        /// A bit per key; only the last one's is set.
        Last = "last",
    }
    beyond {
        /// A length per problem, from all keys down to three quarters of them.
        Most = "most",
    }
}

words! {
    /// How problems are laid out.
    Batching {
        /// One entry per problem.
        Dense = "dense",
        /// The first segment through cache entries.
        Slots = "slots",
        /// Ragged queries.
        RaggedQ = "ragged_q",
        /// Ragged queries, keys and values.
        Ragged = "ragged",
    }
}

words! {
    /// What empty rows get.
    Empty {
        /// Zeros.
        Zero = "zero",
        /// The mean of V.
        Uniform = "uniform",
        /// The softmax over all keys.
        AttendAll = "attend_all",
        /// As OpenFlamingo: zeros without media, the mean beyond them.
        Mixed = "mixed",
    }
}

words! {
    /// Which further results are written.
    Extra {
        /// None.
        None = "none",
        /// Log-sum-exp.
        LogSumExp = "lse",
        /// Which rows saw a key.
        Visible = "visible",
        /// Both.
        Both = "both",
    }
}

words! {
    /// The form of operands.
    Values {
        /// Standard normal.
        Normal = "normal",
        /// Queries of standard deviation 8: a sharp softmax.
        Sharp = "sharp",
        /// Queries 0, values sparse small integers: means over a power of two are exact.
        Exact = "exact",
        /// NaN and infinities in keys and values that do not exist.
        Poison = "poison",
        /// Normal; NaN in one query row of four and in one element of K per entry, NaN or ±∞ in one
        /// element of V per entry.
        NonFinite = "non_finite",
    }
    beyond {
        /// Uniform. K and V of a segment are halves of rows twice as wide, as one GEMM writes them.
        Uniform = "uniform",
    }
}

/// A number of query heads and one of K/V heads: `8/2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub q: usize,
    /// K/V heads.
    pub kv: usize,
}

impl std::fmt::Display for Heads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.q, self.kv)
    }
}

impl std::str::FromStr for Heads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |t: &str| t.parse::<usize>().ok();
        let pair = text.split_once('/').and_then(|(q, kv)| Some(Heads { q: parse(q)?, kv: parse(kv)? }));
        pair.ok_or_else(|| "expected query heads/kv heads".into())
    }
}

/// The length of the second segment, or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Second(pub Option<usize>);

impl std::fmt::Display for Second {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(n) => write!(f, "{n}"),
            None => f.write_str("none"),
        }
    }
}

impl std::str::FromStr for Second {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Second(None));
        }
        text.parse().map(|n| Second(Some(n))).map_err(|_| "expected a length or none".into())
    }
}

pub(super) const fn heads(q: usize, kv: usize) -> Heads {
    Heads { q, kv }
}

parameters! {
    /// Parameters of a case of `attention`.
    AttentionCase("attention") {
        /// Problems.
        batch: usize = &[1, 2, 3],
        /// Query rows of the longest problem.
        q: usize = BOUNDARY,
        /// Key positions of the first segment.
        k: usize = BOUNDARY,
        /// Key positions of the second segment.
        k2: Second = &[
            Second(None), Second(Some(0)), Second(Some(1)), Second(Some(2)), Second(Some(63)), Second(Some(64)),
            Second(Some(65)), Second(Some(127)), Second(Some(128)), Second(Some(129)), Second(Some(255)), Second(Some(257)),
        ],
        /// Heads.
        h: Heads = &[heads(1, 1), heads(3, 3), heads(4, 2), heads(6, 1)],
        /// Width of a head.
        d: usize = &[8, 24, 40, 64, 80, 96, 128],
        /// Visibility.
        rule: Rule = Rule::COVERED,
        /// Media per problem, or blocks of the bitset, or length of the prefix.
        media: usize = &[1, 2, 3, 5, 0],
        /// Form of φ.
        phi: Phi = Phi::COVERED,
        /// Which keys of the first segment exist.
        keys: Exist = Exist::COVERED,
        /// Which keys of the second segment exist.
        keys2: Exist = Exist::COVERED,
        /// How problems are laid out.
        batching: Batching = Batching::COVERED,
        /// What empty rows get.
        empty: Empty = Empty::COVERED,
        /// Further results.
        extra: Extra = Extra::COVERED,
        /// Form of operands.
        values: Values = Values::COVERED,
        /// How operands lie in memory.
        layout: Layout = Layout::COVERED,
        /// Queries, keys and values.
        dtype: Real = Real::COVERED,
        /// The result.
        out: Side = Side::COVERED,
    }
}

/// Queries, keys and values of benchmarks.
const UNIFORM: Fill = Fill::Uniform(0.0, 1.0);

/// The largest score elements times head_dim: a case runs up to eleven times, in plain loops.
const WORK: usize = 1_200_000;

impl Parameters for AttentionCase {
    const OP: &'static str = "attention";
    const RANDOM: usize = 1200;

    fn extents() -> Vec<usize> {
        Self::extents_of()
    }

    fn choose(choice: &[usize], seed: u64) -> Self {
        Self::choose_from(choice, seed)
    }

    fn legal(&self) -> bool {
        let ragged_keys = self.batching == Batching::Ragged;
        let bits = |exist| matches!(exist, Exist::Bits | Exist::Last);
        (!ragged_keys || !(bits(self.keys) || bits(self.keys2)))
            // Uniform and AttendAll read keys that do not exist.
            && (self.values != Values::Poison || self.empty == Empty::Zero)
            // Under the other rules, a row may get what another row of its problem sees.
            && (self.values != Values::NonFinite || matches!(self.rule, Rule::All | Rule::SameMedia))
            && self.h.kv > 0
            && self.batch * self.q * (self.k + self.second()) * self.h.q * self.d <= WORK
    }

    fn vary(&mut self, rng: &mut Rng) {
        self.batch = 1 + rng.below(4);
        self.q = rng.below(150);
        self.k = rng.below(200);
        self.k2 = if rng.one_in(2) { Second(None) } else { Second(Some(rng.below(100))) };
        self.media = rng.below(7);
        self.d = 8 * (1 + rng.below(16));
    }
}

/// Offsets of a ragged operand: problem b has rows `offsets[b]..offsets[b + 1]`; one row before the
/// first problem and one after the last belong to none.
fn offsets(rng: &mut Rng, batch: usize, longest: usize) -> Vec<u32> {
    let mut offsets = vec![1u32];
    for b in 0..batch {
        let rows = if b == batch / 2 { longest } else { rng.below(longest + 1) };
        offsets.push(offsets[b] + rows as u32);
    }
    offsets
}

/// Total rows of a ragged operand.
fn total(offsets: &[u32]) -> usize {
    offsets.last().map_or(0, |&end| end as usize) + 1
}

/// Lengths from all of the keys down to three quarters of them.
pub(crate) fn most(batch: usize, keys: usize) -> Vec<u32> {
    (0..batch).map(|b| (keys - b * keys / (4 * batch)) as u32).collect()
}

fn vector(values: &[u32]) -> Result<HostTensor<'static>> {
    HostTensor::from_slice(values, &[values.len()])
}

impl AttentionCase {
    /// Key positions of the second segment.
    pub(crate) fn second(&self) -> usize {
        self.k2.0.unwrap_or(0)
    }

    fn rng(&self, name: &str) -> Rng {
        Rng::named(self.seed, name)
    }

    pub(crate) fn keys_per_media(&self) -> usize {
        ((self.k + self.second()) / self.media.max(1)).max(1)
    }

    /// A segment, and for poison the keys that exist.
    fn segment(&self, operands: &mut Operands, first: bool, keys: usize) -> Result<Segment<OperandId>> {
        let names: [&'static str; 6] = if first {
            ["first.k", "first.v", "first.lengths", "first.bits", "first.offsets", "first.slots"]
        } else {
            ["second.k", "second.v", "second.lengths", "second.bits", "second.offsets", "second.slots"]
        };
        let exist = if first { self.keys } else { self.keys2 };
        let ragged = (self.batching == Batching::Ragged).then(|| offsets(&mut self.rng(names[4]), self.batch, keys));
        let slots = (self.batching == Batching::Slots && first).then(|| {
            let mut rng = self.rng(names[5]);
            // An entry beyond the last counts as the last.
            (0..self.batch).map(|_| if rng.one_in(4) { u32::MAX } else { rng.below(4) as u32 }).collect::<Vec<_>>()
        });
        let (entries, rows) = match (&ragged, &slots) {
            (Some(offsets), _) => (1, total(offsets)),
            (None, Some(_)) => (4, keys),
            (None, None) => (self.batch, keys),
        };
        let mut rng = self.rng(names[2]);
        let lengths: Vec<u32> = match exist {
            Exist::Most => most(self.batch, keys),
            _ => (0..self.batch).map(|_| if rng.one_in(8) { u32::MAX } else { rng.below(keys + 2) as u32 }).collect(),
        };
        let words = bit_words(keys);
        let mut bits: Vec<u32> = (0..self.batch * words).map(|_| (rng.bits() | rng.bits()) as u32).collect();
        if exist == Exist::Last && keys > 0 {
            let last = |at: usize| if at == (keys - 1) / 32 { 1 << ((keys - 1) % 32) } else { 0 };
            bits.iter_mut().enumerate().for_each(|(i, word)| *word = last(i % words));
        }
        // Existing keys of problem b, as rows of an entry.
        let exists = |b: usize, j: usize| match exist {
            Exist::All => true,
            Exist::Lengths | Exist::Most => j < lengths[b] as usize,
            Exist::Bits | Exist::Last => bits[b * words + j / 32] >> (j % 32) & 1 == 1,
        };
        let mut alive = vec![false; entries * rows];
        for b in 0..self.batch {
            let (entry, start, count) = match (&ragged, &slots) {
                (Some(o), _) => (0, o[b] as usize, (o[b + 1] - o[b]) as usize),
                (None, Some(s)) => ((s[b] as usize).min(3), 0, keys),
                (None, None) => (b, 0, keys),
            };
            (0..count).filter(|&j| exists(b, j)).for_each(|j| alive[entry * rows + start + j] = true);
        }
        let [shape, wide] = [1, 2].map(|halves| [entries, rows, halves * self.h.kv, self.d]);
        let v_fill = if self.values == Values::Exact { Fill::Sparse } else { Fill::Normal(1.0) };
        let mut tensor = |name, fill| -> Result<OperandId> {
            let values = reals(&mut self.rng(name), fill, self.dtype.dtype(), &shape)?;
            let values = match self.values {
                Values::Poison => self.poison(&values, &alive)?,
                // The effect of an infinite score is not promised.
                Values::NonFinite if name == names[0] => self.non_finite(name, &values, &[f64::NAN])?,
                Values::NonFinite => self.non_finite(name, &values, &[f64::NAN, f64::INFINITY, f64::NEG_INFINITY])?,
                Values::Normal | Values::Sharp | Values::Exact | Values::Uniform => values,
            };
            Ok(operands.read(name, values))
        };
        let [k, v] = match self.values {
            Values::Uniform => {
                let values = reals(&mut self.rng(names[0]), UNIFORM, self.dtype.dtype(), &wide)?;
                operands.read_halves(names[0], values)
            }
            _ => [tensor(names[0], Fill::Normal(1.0))?, tensor(names[1], v_fill)?],
        };
        let keys = match exist {
            Exist::All => Keys::All,
            Exist::Lengths | Exist::Most => Keys::Lengths(operands.read(names[2], vector(&lengths)?)),
            Exist::Bits | Exist::Last => {
                Keys::Bits(operands.read(names[3], HostTensor::from_slice(&bits, &[self.batch, words])?))
            }
        };
        let offsets = ragged.map(|o| Ok::<_, crate::Error>(operands.read(names[4], vector(&o)?))).transpose()?;
        let slots = slots.map(|s| Ok::<_, crate::Error>(operands.read(names[5], vector(&s)?))).transpose()?;
        Ok(Segment { k, v, keys, offsets, slots })
    }

    /// NaN and infinities in rows that are not alive.
    fn poison(&self, values: &HostTensor<'_>, alive: &[bool]) -> Result<HostTensor<'static>> {
        let mut wide = values.to_f64()?;
        for (row, chunk) in wide.chunks_mut(self.h.kv * self.d).enumerate() {
            if !alive[row] {
                chunk
                    .iter_mut()
                    .enumerate()
                    .for_each(|(i, x)| *x = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][i % 3]);
            }
        }
        HostTensor::from_slice(&wide, values.shape())?.to_dtype(values.dtype())?.into_owned()
    }

    /// Replaces one element of each entry by one of `others`.
    fn non_finite(&self, name: &str, values: &HostTensor<'_>, others: &[f64]) -> Result<HostTensor<'static>> {
        let mut rng = self.rng(&format!("{name}.non_finite"));
        let mut wide = values.to_f64()?;
        let entry = values.shape()[1..].iter().product::<usize>().max(1);
        for chunk in wide.chunks_mut(entry) {
            let at = rng.below(chunk.len());
            chunk[at] = others[rng.below(others.len())];
        }
        HostTensor::from_slice(&wide, values.shape())?.to_dtype(values.dtype())?.into_owned()
    }

    /// φ for `entries` x `rows` query rows.
    pub(crate) fn media_index(&self, entries: usize, rows: usize) -> Vec<i32> {
        match self.phi {
            Phi::Spread if rows == 1 => return vec![self.media as i32; entries],
            Phi::Spread => return spread_media(entries, rows, self.media),
            Phi::Tiles => return vec![1; entries * rows],
            Phi::Ordered | Phi::Any | Phi::Planned => {}
        }
        let mut rng = self.rng("media_index");
        let mut phi = Vec::with_capacity(entries * rows);
        for _ in 0..entries {
            let mut now = 0;
            for _ in 0..rows {
                now += i32::from(rng.one_in(1 + rows / (self.media + 2)));
                phi.push(match self.phi {
                    Phi::Any if rng.one_in(20) => [i32::MIN, i32::MAX][rng.below(2)],
                    Phi::Any => rng.below(self.media + 3) as i32 - 1,
                    _ => now,
                });
            }
        }
        phi
    }

    /// What rows see: the rule of `entries` x `rows` query rows, with its operands on the host.
    pub(crate) fn visibility(&self, entries: usize, rows: usize) -> Result<Visibility<HostTensor<'static>>> {
        let keys = self.k + self.second();
        Ok(match self.rule {
            Rule::All => Visibility::All,
            Rule::PrefixCausal => {
                // One case in four has no offset; some offsets are far beyond the keys.
                let mut rng = self.rng("causal_offset");
                let offsets: Vec<u32> = (0..self.batch)
                    .map(|_| if rng.one_in(12) { u32::MAX } else { rng.below(keys + 2) as u32 })
                    .collect();
                let given = self.seed % 4 != 3;
                let offset = given.then(|| vector(&offsets)).transpose()?;
                Visibility::PrefixCausal { prefix: self.media as u32, offset }
            }
            Rule::MediaBits => {
                let blocks = keys.div_ceil(self.keys_per_media());
                let mut words = bit_words(blocks);
                let bits = match self.phi {
                    Phi::Spread => one_hot(&self.media_index(entries, rows), blocks),
                    Phi::Tiles => pack_bits(&vec![1; entries * rows * blocks], blocks)?,
                    Phi::Ordered | Phi::Any | Phi::Planned => {
                        // Sometimes one word is missing: absent words count as zeros.
                        words = words.saturating_sub(usize::from(self.seed % 4 == 1));
                        let mut rng = self.rng("media_bits");
                        (0..entries * rows * words).map(|_| rng.bits() as u32).collect()
                    }
                };
                let bits = HostTensor::from_slice(&bits, &[entries, rows, words])?;
                Visibility::MediaBits { bits, keys_per_block: self.keys_per_media() as u32 }
            }
            Rule::SameMedia | Rule::PrecedingMedia => {
                let phi = self.media_index(entries, rows);
                let plan = match self.phi {
                    Phi::Planned => Some(HostTensor::from_slice(&plan(&phi, entries, rows), &[entries, 1 + rows, 2])?),
                    Phi::Ordered | Phi::Any | Phi::Spread | Phi::Tiles => None,
                };
                let media_index = HostTensor::from_slice(&phi, &[entries, rows])?;
                let media = Media { media_index, keys_per_media: self.keys_per_media() as u32, plan };
                match self.rule {
                    Rule::SameMedia => Visibility::SameMedia(media),
                    _ => Visibility::PrecedingMedia(media),
                }
            }
        })
    }
}

/// The runs of equal φ, as `media_index` writes them.
fn plan(phi: &[i32], entries: usize, rows: usize) -> Vec<u32> {
    let mut plan = Vec::with_capacity(entries * (1 + rows) * 2);
    for entry in 0..entries {
        let phi = &phi[entry * rows..(entry + 1) * rows];
        let starts: Vec<usize> = (0..rows).filter(|&i| i == 0 || phi[i] != phi[i - 1]).collect();
        let end = plan.len() + (1 + rows) * 2;
        plan.extend([starts.len() as u32, 0]);
        plan.extend(starts.iter().flat_map(|&i| [i as u32, phi[i] as u32]));
        plan.resize(end, 0);
    }
    plan
}

impl CaseOp for AttentionCase {
    type Op = Attention;

    fn dtype(&self) -> Real {
        self.dtype
    }

    fn with_dtype(self, dtype: Real) -> Self {
        Self { dtype, ..self }
    }

    fn call(&self) -> Result<Call<Attention>> {
        let mut operands = Operands::new(self.layout, self.seed);
        let ragged = match self.batching {
            Batching::RaggedQ | Batching::Ragged => Some(offsets(&mut self.rng("q_offsets"), self.batch, self.q)),
            Batching::Dense | Batching::Slots => None,
        };
        let (entries, rows) = ragged.as_ref().map_or((self.batch, self.q), |o| (1, total(o)));
        let shape = [entries, rows, self.h.q, self.d];
        let fill = match self.values {
            Values::Normal | Values::Poison => Fill::Normal(1.0),
            Values::NonFinite => Fill::NotANumber(1.0),
            Values::Sharp => Fill::Normal(8.0),
            Values::Exact => Fill::Constant(0.0),
            Values::Uniform => UNIFORM,
        };
        let q = operands.read("q", reals(&mut self.rng("q"), fill, self.dtype.dtype(), &shape)?);
        let q_offsets = ragged.map(|o| Ok::<_, crate::Error>(operands.read("q_offsets", vector(&o)?))).transpose()?;
        let first = self.segment(&mut operands, true, self.k)?;
        let second = self.k2.0.map(|keys| self.segment(&mut operands, false, keys)).transpose()?;
        let visibility = self.visibility(entries, rows)?.try_map(&mut Each(|name, values| {
            Ok(if name == "plan" { operands.read_gapless(name, values) } else { operands.read(name, values) })
        }))?;
        let out = operands.write("out", self.out.dtype(self.dtype), &shape);
        let log_sum_exp = match self.extra {
            Extra::LogSumExp | Extra::Both => Some(operands.write("log_sum_exp", DType::F32, &shape[..3])),
            Extra::None | Extra::Visible => None,
        };
        let row_visible = match self.extra {
            Extra::Visible | Extra::Both => Some(operands.write("row_visible", DType::U32, &shape[..2])),
            Extra::None | Extra::LogSumExp => None,
        };
        let empty_rows = match self.empty {
            Empty::Zero => EmptyRows::all(EmptyRow::Zero),
            Empty::Uniform => EmptyRows::all(EmptyRow::Uniform),
            Empty::AttendAll => EmptyRows::all(EmptyRow::AttendAll),
            Empty::Mixed => EmptyRows { beyond_media: EmptyRow::Uniform, ..EmptyRows::default() },
        };
        let op = Attention { empty_rows, ..Attention::for_head_dim(self.d) };
        let args = AttentionArgs { q, q_offsets, first, second, visibility, out, log_sum_exp, row_visible };
        Ok(Call { op, args, operands })
    }

    fn judge(&self, call: &Call<Attention>, truth: &[(&'static str, HostTensor<'static>)]) -> Result<Vec<Judgement>> {
        bounds(self, call, truth)
    }
}
