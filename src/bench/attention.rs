//! Cases of `attention`.

use std::ops::Range;

use serde_json::Value;

use super::call::{Call, Input, against_reference};
use super::rule::Rule;
use super::sample;
use super::visited::Visited;
use super::weights::RandomWeights;
use crate::ops::{Attention, AttentionArgs, Keys, Segment};
use crate::threads::Pool;
use crate::verify::compare::Outcome;
use crate::{DType, Device, HostTensor, Result, Spec};

/// Shapes of an attention.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AttentionCase {
    pub batch: usize,
    pub rows: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Keys of the first and of the second segment; 0: no second one.
    pub keys: [usize; 2],
    /// The segment whose keys exist by length: 0 or 1.
    pub padded: Option<usize>,
    pub rule: Rule,
}

/// Rows of a problem, with some heads.
struct Part {
    problem: usize,
    rows: Vec<Range<usize>>,
    kv_heads: Range<usize>,
}

impl AttentionCase {
    /// Lengths between three quarters and all of the keys.
    fn lengths(&self, keys: usize) -> Vec<u32> {
        (0..self.batch).map(|b| (keys - b * keys / (4 * self.batch)) as u32).collect()
    }

    fn segment(
        &self,
        device: &Device,
        random: &mut RandomWeights,
        which: usize,
        dtype: DType,
    ) -> Result<Segment<Input>> {
        let keys = self.keys[which];
        let width = self.kv_heads * self.head_dim;
        let kv = random.rounded(0.0, 1.0, &[self.batch, keys, 2 * width], dtype)?;
        let kv = Input::new(device, &kv, dtype)?;
        let heads = |start| kv.heads(start, self.kv_heads, self.head_dim);
        let segment = Segment::new(heads(0), heads(width));
        if self.padded != Some(which) {
            return Ok(segment);
        }
        let lengths = HostTensor::from_slice(&self.lengths(keys), &[self.batch])?;
        Ok(segment.with_keys(Keys::Lengths(Input::new(device, &lengths, DType::U32)?)))
    }

    pub fn json(&self) -> Value {
        let mut shape = fields!(self; batch, rows, heads, kv_heads, head_dim, keys);
        shape["lengths"] = self.padded.map(|segment| ["first", "second"][segment]).into();
        shape["visibility"] = self.rule.json();
        shape
    }

    fn op(&self) -> Attention {
        Attention::for_head_dim(self.head_dim)
    }

    pub fn build(&self, device: &Device, dtype: DType) -> Result<Call<Attention>> {
        let mut random = RandomWeights::new(1);
        let shape = [self.batch, self.rows, self.heads, self.head_dim];
        let q = Input::new(device, &random.rounded(0.0, 1.0, &shape, dtype)?, dtype)?;
        let first = self.segment(device, &mut random, 0, dtype)?;
        let second = match self.keys[1] {
            0 => None,
            _ => Some(self.segment(device, &mut random, 1, dtype)?),
        };
        let visibility = self.rule.visibility(device, self.batch, self.rows, self.keys.iter().sum())?;
        let args = AttentionArgs {
            q,
            q_offsets: None,
            first,
            second,
            visibility,
            out: Spec::contiguous(dtype, &shape)?,
            log_sum_exp: None,
            row_visible: None,
        };
        let each = 2 * self.kv_heads * self.head_dim * dtype.size();
        Ok(Call::op(device, &self.op(), args)?.leaving(self.unread() * each))
    }

    /// Keys that no row sees, of all problems.
    fn unread(&self) -> usize {
        let [first, second] = self.keys;
        // Lengths of a first segment before a second one leave a gap in the joint axis, which all
        // rows would see.
        let gap: usize = match (self.padded, &self.rule) {
            (Some(0), Rule::All) if second > 0 => self.lengths(first).into_iter().map(|n| first - n as usize).sum(),
            _ => 0,
        };
        gap + self.rule.unread(self.joint_lengths().as_deref(), self.batch, self.rows, first + second)
    }

    /// What the reference recomputes. All of a small case; else rows of eight problems, or of
    /// eighths of the rows where there are fewer problems. Each part has other heads, so that all
    /// of them come up.
    fn parts(&self) -> Vec<Part> {
        let &AttentionCase { batch, rows, heads, kv_heads, .. } = self;
        let keys: usize = self.keys.iter().sum();
        let seen = match &self.rule {
            Rule::SameMedia(media) => media.keys_per_media as usize,
            _ => keys,
        };
        // Multiply-adds of a row with one K/V head and its queries.
        let each = 2 * seen * heads / kv_heads * self.head_dim;
        // Rows that see what is before them are counted from the first one.
        if batch * rows * kv_heads * each <= sample::WHOLE || matches!(self.rule, Rule::PrefixCausal { .. }) {
            let whole = |problem| Part { problem, rows: sample::all(0..rows), kv_heads: 0..kv_heads };
            return (0..batch).map(whole).collect();
        }
        let width = kv_heads.div_ceil(sample::PARTS);
        // Long keys are expensive: fewer rows of them.
        let affordable = 2 * sample::WHOLE / (sample::PARTS * width * each);
        let count = affordable.clamp(2 * sample::RUN, sample::ROWS / sample::PARTS);
        let last = sample::PARTS - 1;
        let mut rng = sample::chooser();
        (0..sample::PARTS)
            .map(|i| {
                let few = batch < sample::PARTS && rows >= sample::PARTS * sample::RUN;
                let range = match few {
                    true => rows * i / sample::PARTS..rows * (i + 1) / sample::PARTS,
                    false => 0..rows,
                };
                let first = i * (kv_heads - width) / last;
                Part {
                    problem: i * (batch - 1) / last,
                    rows: sample::spread(&mut rng, range, count),
                    kv_heads: first..first + width,
                }
            })
            .collect()
    }

    /// Judges the parts. How many rows they have.
    pub fn check(
        &self,
        device: &Device,
        call: &Call<Attention>,
        outputs: &[HostTensor<'static>],
        dtype: DType,
    ) -> Result<(usize, Vec<Outcome>)> {
        let parts = self.parts();
        let group = self.heads / self.kv_heads;
        let mut gathered = Vec::with_capacity(parts.len());
        for Part { problem, rows, kv_heads } in &parts {
            let heads = [kv_heads.start * group, kv_heads.len() * group];
            let mut args = call.gathered(&mut |name, view| {
                let view = view.narrow(0, *problem, 1)?;
                match name {
                    "q" => sample::rows_of(device, view.narrow(2, heads[0], heads[1])?, rows),
                    "media_index" | "media_bits" => sample::rows_of(device, view, rows),
                    "first.k" | "first.v" | "second.k" | "second.v" => {
                        device.download(&view.narrow(2, kv_heads.start, kv_heads.len())?)
                    }
                    _ => device.download(&view),
                }
            })?;
            let output = outputs[0].view()?.narrow(0, *problem, 1)?.narrow(2, heads[0], heads[1])?;
            let actual = sample::rows_of(&Device::reference(), output, rows)?;
            args.out = actual.view()?.spec();
            gathered.push((args, actual));
        }
        let judged = Pool::callers().map(gathered.len(), |i| {
            let (args, actual) = &gathered[i];
            against_reference(&self.op(), args, std::slice::from_ref(actual), dtype)
        });
        let judged: Vec<Vec<Outcome>> = judged.into_iter().collect::<Result<_>>()?;
        Ok((parts.iter().map(|part| sample::count(&part.rows)).sum(), judged.into_iter().flatten().collect()))
    }

    /// Lengths that shorten the joint axis at its end: of a first segment only where it is alone.
    fn joint_lengths(&self) -> Option<Vec<u32>> {
        match self.padded {
            Some(0) if self.keys[1] == 0 => Some(self.lengths(self.keys[0])),
            Some(1) => Some(self.lengths(self.keys[1]).into_iter().map(|n| n + self.keys[0] as u32).collect()),
            _ => None,
        }
    }

    pub fn visited(&self) -> Visited {
        self.rule.visited(self.joint_lengths().as_deref(), self.batch, self.rows, self.keys.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rule::{media_bits, same_media};

    const LARGE: AttentionCase = AttentionCase {
        batch: 8,
        rows: 2048,
        heads: 24,
        kv_heads: 12,
        head_dim: 128,
        keys: [512, 0],
        padded: None,
        rule: same_media(8, 64),
    };

    #[test]
    fn keys_that_no_row_sees() {
        // 8 problems of 512 keys; of problem b, b sixty-fourths of a quarter of them are padding.
        let padding = (0..8).map(|b| b * 512 / 32).sum::<usize>();
        const ALL: AttentionCase = AttentionCase { rule: Rule::All, ..LARGE };
        assert_eq!(AttentionCase { padded: Some(0), ..ALL }.unread(), padding);
        assert_eq!(AttentionCase { padded: Some(0), keys: [512, 64], ..ALL }.unread(), padding);
        assert_eq!(AttentionCase { padded: Some(1), keys: [64, 512], ..ALL }.unread(), padding);
        assert_eq!(ALL.unread(), 0);
        // One row sees the last of 8 media, by φ or by bits.
        for rule in [same_media(8, 64), media_bits(8, 64), media_bits(8, 16)] {
            assert_eq!(AttentionCase { rows: 1, rule: rule.clone(), ..LARGE }.unread(), 8 * (512 - 64), "{rule:?}");
            assert_eq!(AttentionCase { rule: rule.clone(), ..LARGE }.unread(), 0, "{rule:?}");
        }
        let rule = Rule::PrefixCausal { prefix: 40, offset: None };
        assert_eq!(AttentionCase { rows: 32, rule, ..LARGE }.unread(), 8 * (512 - 40));
    }

    #[test]
    fn parts_reach_every_head_and_both_ends() {
        let of = |case: AttentionCase| -> Vec<(usize, usize, usize, Range<usize>)> {
            let part = |p: Part| (p.problem, p.rows[0].start, p.rows[p.rows.len() - 1].end, p.kv_heads);
            case.parts().into_iter().map(part).collect()
        };
        let heads = [0..2, 1..3, 2..4, 4..6, 5..7, 7..9, 8..10, 10..12];
        let problems: Vec<_> = (0..8).map(|i| (i, 0, 2048, heads[i].clone())).collect();
        assert_eq!(of(LARGE), problems);
        // One problem: eighths of its rows.
        let rows: Vec<_> = (0..8).map(|i| (0, 256 * i, 256 * (i + 1), heads[i].clone())).collect();
        assert_eq!(of(AttentionCase { batch: 1, ..LARGE }), rows);
        let count = |case: AttentionCase| case.parts().iter().map(|p| sample::count(&p.rows)).sum::<usize>();
        assert_eq!(count(LARGE), 256);
        // 6404 keys, all of them seen: 8 rows of each part.
        assert_eq!(count(AttentionCase { keys: [6404, 0], rule: Rule::All, ..LARGE }), 64);
        let small = AttentionCase { batch: 2, rows: 40, ..LARGE };
        assert_eq!(of(small), [(0, 0, 40, 0..12), (1, 0, 40, 0..12)]);
    }
}
