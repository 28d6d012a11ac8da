//! Cases of `attention`.

use std::ops::Range;

use rayon::prelude::*;

use super::call::{Call, Input, against_reference};
use super::rule::Rule;
use super::sample;
use super::visited::Visited;
use super::weights::RandomWeights;
use crate::ops::{Attention, AttentionArgs, Keys, Segment};
use crate::verify::compare::Outcome;
use crate::{DType, Device, HostTensor, Result, Spec};

/// Which segment's keys exist by length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Padded {
    No,
    First,
    Second,
}

/// Shapes of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct AttentionCase {
    pub batch: usize,
    pub rows: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Keys of the first and of the second segment; 0: no second one.
    pub keys: [usize; 2],
    pub padded: Padded,
    pub rule: Rule,
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
        if self.padded != [Padded::First, Padded::Second][which] {
            return Ok(segment);
        }
        let lengths = HostTensor::from_slice(&self.lengths(keys), &[self.batch])?;
        Ok(segment.with_keys(Keys::Lengths(Input::new(device, &lengths, DType::U32)?)))
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
        Call::op(device, &self.op(), args)
    }

    /// Rows that the reference recomputes, by problem. All of a small case; else some of some problems, every head of each.
    pub fn sample(&self) -> Vec<(usize, Vec<Range<usize>>)> {
        let keys: usize = self.keys.iter().sum();
        let seen = match self.rule {
            Rule::Media(media) => keys / media,
            _ => keys,
        };
        let each = 2 * seen * self.heads * self.head_dim;
        let whole = self.batch * self.rows * each <= sample::WHOLE;
        // Long keys are expensive, and their rows few: at least what makes a statistic.
        let count = sample::ROWS.min(8 * sample::WHOLE / each.max(1)).max(sample::ROWS / 4);
        let mut rng = sample::chooser();
        let problems = sample::some(self.batch, if whole { self.batch } else { sample::PROBLEMS });
        let of_each = count.div_ceil(problems.len().max(1));
        // The rule counts rows from the first one.
        let all = whole || matches!(self.rule, Rule::PrefixCausal(_));
        let rows = |_| if all { vec![0..self.rows] } else { sample::spread(&mut rng, 0..self.rows, of_each) };
        let runs: Vec<_> = problems.iter().map(rows).collect();
        problems.into_iter().zip(runs).collect()
    }

    /// Judges the sample. How many rows it has.
    pub fn check(
        &self,
        device: &Device,
        call: &Call<Attention>,
        outputs: &[HostTensor<'static>],
        dtype: DType,
    ) -> Result<(usize, Vec<Outcome>)> {
        let sample = self.sample();
        let mut gathered = Vec::with_capacity(sample.len());
        for (problem, runs) in &sample {
            let mut args = call.gathered(&mut |name, view| match name {
                "q" | "media_index" | "media_bits" => sample::rows_of(device, view.narrow(0, *problem, 1)?, runs),
                _ => device.download(&view.narrow(0, *problem, 1)?),
            })?;
            let actual = sample::rows_of(&Device::reference(), outputs[0].view()?.narrow(0, *problem, 1)?, runs)?;
            args.out = actual.view()?.spec();
            gathered.push((args, actual));
        }
        let judged: Vec<Vec<Outcome>> = gathered
            .par_iter()
            .map(|(args, actual)| against_reference(&self.op(), args, std::slice::from_ref(actual), dtype))
            .collect::<Result<_>>()?;
        Ok((sample.iter().map(|(_, runs)| sample::count(runs)).sum(), judged.into_iter().flatten().collect()))
    }

    pub fn visited(&self) -> Visited {
        // Only a first segment alone has lengths that shorten the joint axis at its end.
        let lengths = match self.padded {
            Padded::First if self.keys[1] == 0 => Some(self.lengths(self.keys[0])),
            Padded::Second => {
                Some(self.lengths(self.keys[1]).into_iter().map(|n| n + self.keys[0] as u32).collect::<Vec<_>>())
            }
            _ => None,
        };
        self.rule.visited(lengths.as_deref(), self.batch, self.rows, self.keys.iter().sum())
    }
}
