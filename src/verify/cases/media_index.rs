//! Cases of `media_index`: integers, so every result is exact.

use super::call::{Call, Operands};
use super::declare::{BOUNDARY, Layout, Parameters, Real, parameters, words};
use super::{CaseOp, Judgement};
use crate::ops::media_index::plan_shape;
use crate::ops::{DocumentEnd, MediaIndex, MediaIndexArgs, MediaSource};
use crate::verify::generate::Rng;
use crate::{DType, HostTensor, Result};

const MEDIA_TOKEN: i32 = 32001;
const END_TOKEN: i32 = 2;
/// Tokens from one medium to the next, where they are spread.
pub(crate) const SPREAD: usize = 64;

words! {
    /// Where media stand.
    From {
        /// Token ids.
        Tokens = "tokens",
        /// Flags.
        Locations = "locations",
    }
}

words! {
    /// What ends of documents do.
    Document {
        /// Nothing.
        Ignore = "ignore",
        /// φ = 0 until the next medium.
        Hide = "hide",
        /// Counting starts again.
        Restart = "restart",
    }
}

words! {
    /// The state before the first token.
    Carry {
        /// None given.
        None = "none",
        /// Some media before.
        Positive = "positive",
        /// A document has ended since.
        Ended = "ended",
    }
}

words! {
    /// How often media stand.
    Density {
        /// Nowhere.
        Never = "never",
        /// Once in 20 tokens.
        Rare = "rare",
        /// Every other token: adjacent media occur.
        Dense = "dense",
        /// Everywhere.
        Always = "always",
    }
    beyond {
        /// Every 64th token, from the first.
        Spread = "spread",
    }
}

parameters! {
    /// Parameters of a case of `media_index`.
    MediaIndexCase("media_index") {
        /// Rows of tokens.
        batch: usize = &[1, 2, 5],
        /// Tokens of each.
        rows: usize = BOUNDARY,
        /// Where media stand.
        from: From = From::COVERED,
        /// How often.
        density: Density = Density::COVERED,
        /// Whether tokens see the next medium.
        next: bool = &[false, true],
        /// What ends of documents do.
        document: Document = Document::COVERED,
        /// The state before.
        carry: Carry = Carry::COVERED,
        /// Whether the state after is written.
        carry_out: bool = &[false, true],
        /// Whether the row's media are given.
        count: bool = &[false, true],
        /// Whether the plan is written.
        plan: bool = &[false, true],
        /// How operands lie in memory.
        layout: Layout = Layout::COVERED,
    }
}

impl Parameters for MediaIndexCase {
    const OP: &'static str = "media_index";
    const RANDOM: usize = 300;

    fn extents() -> Vec<usize> {
        Self::extents_of()
    }

    fn choose(choice: &[usize], seed: u64) -> Self {
        Self::choose_from(choice, seed)
    }

    fn legal(&self) -> bool {
        let plain = self.document == Document::Ignore;
        (plain || (self.from == From::Tokens && !self.next))
            && (!self.count || self.next)
            && (self.carry != Carry::Ended || !plain)
    }

    fn vary(&mut self, rng: &mut Rng) {
        self.rows = rng.below(1500);
    }
}

impl CaseOp for MediaIndexCase {
    type Op = MediaIndex;

    fn dtype(&self) -> Real {
        Real::F32
    }

    fn with_dtype(self, _: Real) -> Self {
        self
    }

    fn has_reals(&self) -> bool {
        false
    }

    fn call(&self) -> Result<Call<MediaIndex>> {
        let shape = [self.batch, self.rows];
        let mut operands = Operands::new(self.layout, self.seed);
        let mut rng = Rng::named(self.seed, "tokens");
        let mut ids = Vec::with_capacity(self.batch * self.rows);
        for i in 0..self.batch * self.rows {
            let medium = match self.density {
                Density::Never => false,
                Density::Rare => rng.one_in(20),
                Density::Dense => rng.one_in(2),
                Density::Always => true,
                Density::Spread => (i % self.rows).is_multiple_of(SPREAD),
            };
            let other = if rng.one_in(10) { END_TOKEN } else { rng.below(32000) as i32 - 5 };
            ids.push(if medium { MEDIA_TOKEN } else { other });
        }
        let source = match self.from {
            From::Tokens => {
                let ids = operands.read("tokens", HostTensor::from_slice(&ids, &shape)?);
                MediaSource::Tokens { ids, token: MEDIA_TOKEN }
            }
            From::Locations => {
                let flags: Vec<u32> = ids.iter().map(|&id| u32::from(id == MEDIA_TOKEN) * 7).collect();
                MediaSource::Locations(operands.read("locations", HostTensor::from_slice(&flags, &shape)?))
            }
        };
        let mut per_row =
            |f: &mut dyn FnMut(&mut Rng) -> i32| -> Vec<i32> { (0..self.batch).map(|_| f(&mut rng)).collect() };
        let carry_in = match self.carry {
            Carry::None => None,
            Carry::Positive => Some(per_row(&mut |r| r.below(4) as i32)),
            Carry::Ended => Some(per_row(&mut |r| !(r.below(4) as i32))),
        };
        let media_count = self.count.then(|| per_row(&mut |r| r.below(self.rows + 3) as i32));
        let mut integers = |name, values: Option<Vec<i32>>| -> Result<_> {
            values.map(|v| Ok(operands.read(name, HostTensor::from_slice(&v, &[self.batch])?))).transpose()
        };
        let (carry_in, media_count) = (integers("carry_in", carry_in)?, integers("media_count", media_count)?);
        let media_index = operands.write("media_index", DType::I32, &shape);
        let carry_out =
            if self.carry_out { Some(operands.write("carry_out", DType::I32, &[self.batch])) } else { None };
        let plan = if self.plan {
            Some(operands.write_gapless("plan", DType::U32, &plan_shape(self.batch, self.rows)))
        } else {
            None
        };
        let document_end = match self.document {
            Document::Ignore => DocumentEnd::Ignore,
            Document::Hide => DocumentEnd::Hide { token: END_TOKEN },
            Document::Restart => DocumentEnd::Restart { token: END_TOKEN },
        };
        let args = MediaIndexArgs { source, carry_in, carry_out, media_count, media_index, plan };
        Ok(Call { op: MediaIndex { next: self.next, document_end }, args, operands })
    }

    fn judge(&self, _: &Call<MediaIndex>, truth: &[(&'static str, HostTensor<'static>)]) -> Result<Vec<Judgement>> {
        Ok(truth.iter().map(|_| Judgement::Exact).collect())
    }
}
