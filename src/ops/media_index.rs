//! `media_index`: φ, the 1-based index of the last medium up to each text token; the media plan.
//!
//! ```text
//! count[b,i] = carry[b] + #{ j ≤ i : token j of row b is a medium }         (the medium's token counts itself)
//! φ[b,i]     = count[b,i]                                                   or, with `next`:
//! φ[b,i]     = count[b,i] if token i is a medium, else count[b,i] + 1; either is 0 when it exceeds the row's media
//! ```
//!
//! At document ends φ drops to 0 until the next medium ([`DocumentEnd`]). The **media plan** lists
//! the runs of equal φ of each row, so that `attention` meets each medium's keys once per run.
//! Sources: spec 1.1, 3.2 (open_flamingo `helpers.py`), 3.3 (for chunked prefill), 3.4 (the
//! next-image variant), 4.2 (IDEFICS' processor).

use super::{Checker, Cost, Op, Operands, Parameters, Visit, all_bytes, sealed};
use crate::tensor::Spec;
use crate::{DType, Result};

/// The effect of a document's end on φ. The end token itself still belongs to its document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum DocumentEnd {
    /// Nothing.
    #[default]
    Ignore,
    /// φ = 0 until the next medium; media are still counted through the row (IDEFICS, packed
    /// samples over one list of media).
    Hide {
        /// The token id that ends a document.
        token: i32,
    },
    /// φ = 0 and counting starts again at 1 (packed samples, each with its own list of media).
    Restart {
        /// The token id that ends a document.
        token: i32,
    },
}

/// Parameters of `media_index`.
///
/// A prompt in two chunks, in which token 9 stands for an image. The second chunk goes on counting
/// where the first one ended:
///
/// ```
/// use xattn::ops::{MediaIndex, MediaIndexArgs, MediaSource};
/// use xattn::{Device, Dispatch, View, ViewMut};
///
/// let (first, second) = ([5i32, 9, 5, 9], [5i32, 9, 5]);
/// let (mut phi, mut state, mut more) = ([0i32; 4], [0i32; 1], [0i32; 3]);
/// let tokens = |ids| MediaSource::Tokens { ids, token: 9 };
/// let mut args = MediaIndexArgs::new(tokens(View::new(&first, &[1, 4])?), ViewMut::new(&mut phi, &[1, 4])?);
/// args.carry_out = Some(ViewMut::new(&mut state, &[1])?);
/// MediaIndex::default().run(&Device::cpu(), args)?;
/// assert_eq!((phi, state), ([0, 1, 1, 2], [2]));
///
/// let mut args = MediaIndexArgs::new(tokens(View::new(&second, &[1, 3])?), ViewMut::new(&mut more, &[1, 3])?);
/// args.carry_in = Some(View::new(&state, &[1])?);
/// MediaIndex::default().run(&Device::cpu(), args)?;
/// assert_eq!(more, [2, 3, 3]);
/// # Ok::<(), xattn::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MediaIndex {
    /// Tokens that are not media see the next medium instead of the last one (OpenFlamingo v1
    /// augmentation). Not with document ends.
    pub next: bool,
    /// The effect of document ends.
    pub document_end: DocumentEnd,
}

/// The positions of the media.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum MediaSource<R> {
    /// `i32 [B, L]`: token ids; a token with `id == token` is a medium.
    Tokens {
        /// The ids.
        ids: R,
        /// The id of the media token.
        token: i32,
    },
    /// `u32 [B, L]`: nonzero for a medium. Not with document ends, which need ids.
    Locations(R),
}

/// Operands of `media_index`.
#[derive(Debug, Clone, PartialEq)]
pub struct MediaIndexArgs<R, W> {
    /// The positions of the media.
    pub source: MediaSource<R>,
    /// State before the first token, `i32 [B]`. c ≥ 0: c media came before. c < 0: `!c` media came
    /// before and a document has ended since, so that φ is 0 until the next medium; under
    /// [`DocumentEnd::Restart`] `!c` then counts as 0. Absent: 0. Without document ends, φ of the
    /// last token is the next chunk's carry.
    pub carry_in: Option<R>,
    /// State after the last token, like `carry_in`; may be the same memory in the same layout.
    pub carry_out: Option<W>,
    /// Media of the whole row, `i32 [B]`: for `next` over a chunk. Absent: those up to its end.
    pub media_count: Option<R>,
    /// φ: `i32 [B, L]`.
    pub media_index: W,
    /// The media plan, `u32 [B, 1 + L, 2]` ([`plan_shape`]). Entry 0 is `(items, 0)`, entry 1 + n
    /// is `(first row, φ)` of run n; runs of φ = 0 are included. Run n ends where run n + 1 begins,
    /// the last one at L. Entries behind the last run are zeros.
    pub plan: Option<W>,
}

impl<R, W> MediaIndexArgs<R, W> {
    /// φ of whole rows, without a plan.
    pub fn new(source: MediaSource<R>, media_index: W) -> Self {
        MediaIndexArgs { source, carry_in: None, carry_out: None, media_count: None, media_index, plan: None }
    }
}

/// Shape of the media plan of `[batch, rows]` tokens.
pub fn plan_shape(batch: usize, rows: usize) -> [usize; 3] {
    [batch, 1 + rows, 2]
}

impl sealed::Sealed for MediaIndex {}

impl Operands for MediaIndex {
    const NAME: &'static str = "media_index";
    const IN_PLACE: &'static [(&'static str, &'static str)] = &[("carry_in", "carry_out")];
    type Args<R, W> = MediaIndexArgs<R, W>;

    fn map<R, W, R2, W2>(a: MediaIndexArgs<R, W>, v: &mut impl Visit<R, W, R2, W2>) -> Result<MediaIndexArgs<R2, W2>> {
        Ok(MediaIndexArgs {
            source: match a.source {
                MediaSource::Tokens { ids, token } => MediaSource::Tokens { ids: v.read("tokens", ids)?, token },
                MediaSource::Locations(r) => MediaSource::Locations(v.read("locations", r)?),
            },
            carry_in: a.carry_in.map(|r| v.read("carry_in", r)).transpose()?,
            carry_out: a.carry_out.map(|w| v.write("carry_out", w)).transpose()?,
            media_count: a.media_count.map(|r| v.read("media_count", r)).transpose()?,
            media_index: v.write("media_index", a.media_index)?,
            plan: a.plan.map(|w| v.write("plan", w)).transpose()?,
        })
    }

    fn as_ref<R, W>(a: &MediaIndexArgs<R, W>) -> MediaIndexArgs<&R, &W> {
        MediaIndexArgs {
            source: match &a.source {
                MediaSource::Tokens { ids, token } => MediaSource::Tokens { ids, token: *token },
                MediaSource::Locations(r) => MediaSource::Locations(r),
            },
            carry_in: a.carry_in.as_ref(),
            carry_out: a.carry_out.as_ref(),
            media_count: a.media_count.as_ref(),
            media_index: &a.media_index,
            plan: a.plan.as_ref(),
        }
    }

    type Form = MediaIndexArgs<(), ()>;

    fn form(args: MediaIndexArgs<(), ()>) -> Self::Form {
        args
    }

    fn parameters(a: &Self::Form, say: &mut Parameters<'_>) {
        if let MediaSource::Tokens { token, .. } = a.source {
            say("token", token.to_string());
        }
    }
}

impl Op for MediaIndex {
    fn check(&self, a: &MediaIndexArgs<Spec, Spec>) -> Result<()> {
        let c = Checker { op: Self::NAME };
        c.rank("media_index", &a.media_index, "[batch, rows]", 2)?;
        c.dtype("media_index", &a.media_index, DType::I32)?;
        c.written("media_index", &a.media_index)?;
        c.index_range("media_index", &a.media_index)?;
        let (batch, rows) = (a.media_index.dim(0), a.media_index.dim(1));
        c.that(rows < i32::MAX as usize, "media_index", "fewer than 2^31 - 1 rows", rows)?;
        match &a.source {
            MediaSource::Tokens { ids, .. } => {
                c.integers("tokens", ids, DType::I32, "[batch, rows]", &[batch, rows])?;
            }
            MediaSource::Locations(locations) => {
                c.integers("locations", locations, DType::U32, "[batch, rows]", &[batch, rows])?;
                let plain = self.document_end == DocumentEnd::Ignore;
                c.that(
                    plain,
                    "document_end",
                    "Ignore, since locations hold no token ids",
                    format!("{:?}", self.document_end),
                )?;
            }
        }
        let combines = !self.next || self.document_end == DocumentEnd::Ignore;
        c.that(combines, "next", "no document ends beside it", format!("{:?}", self.document_end))?;
        for (name, spec) in [("carry_in", &a.carry_in), ("media_count", &a.media_count)] {
            if let Some(spec) = spec {
                c.integers(name, spec, DType::I32, "[batch]", &[batch])?;
            }
        }
        c.that(a.media_count.is_none() || self.next, "media_count", "none without `next`", "one")?;
        if let Some(spec) = &a.carry_out {
            c.integers("carry_out", spec, DType::I32, "[batch]", &[batch])?;
            c.written("carry_out", spec)?;
        }
        if let Some(plan) = &a.plan {
            c.integers("plan", plan, DType::U32, "[batch, 1 + rows, 2]", &plan_shape(batch, rows))?;
            c.that(plan.is_contiguous(), "plan", "a contiguous tensor", plan)?;
        }
        Ok(())
    }

    fn cost(&self, a: &MediaIndexArgs<Spec, Spec>) -> Cost {
        Cost { bytes: all_bytes::<MediaIndex>(a), flops: 0 }
    }
}
