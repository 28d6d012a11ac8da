//! Cases of `attention`.

use super::call::{Call, Input, Runnable, against_reference};
use super::rule::Rule;
use super::visited::Visited;
use super::weights::RandomWeights;
use crate::ops::{Attention, AttentionArgs, Keys, Segment, Visibility};
use crate::verify::compare::Outcome;
use crate::{DType, Device, HostTensor, Result, Spec};

/// Rows of each sample that the reference recomputes.
const SAMPLE: usize = 2;

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
        let kv = random.tensor(0.0, 1.0, &[self.batch, keys, 2 * width])?;
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
        let q = Input::new(device, &random.tensor(0.0, 1.0, &shape)?, dtype)?;
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

    /// Recomputes rows at the beginning, in the middle and at the end, of the first and the last problem, by the reference.
    pub fn check(&self, device: &Device, call: &Call<Attention>, dtype: DType) -> Result<Vec<Outcome>> {
        let output = &call.outputs()?[0];
        let n = SAMPLE.min(self.rows);
        let mut samples =
            vec![(0, 0), (self.batch - 1, self.rows - n), (self.batch / 2, self.rows / 2 - self.rows / 2 % n)];
        samples.dedup();
        let mut outcomes = Vec::new();
        for (problem, row) in samples {
            let row = row.min(self.rows - n);
            let mut args = call.gathered(device, &mut |name, view| match name {
                "q" | "media_index" | "media_bits" => view.narrow(0, problem, 1)?.narrow(1, row, n),
                _ => view.narrow(0, problem, 1),
            })?;
            if let Visibility::PrefixCausal { offset, .. } = &mut args.visibility {
                *offset += row as u32;
            }
            let view = output.view()?.narrow(0, problem, 1)?.narrow(1, row, n)?;
            args.out = view.spec();
            let actual = Device::reference().download(&view)?;
            outcomes.extend(against_reference(&self.op(), args, vec![actual], dtype)?);
        }
        Ok(outcomes)
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
