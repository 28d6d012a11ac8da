//! `media_index`: φ by a sequential scan of each row of the batch, and the media plan.
//!
//! **Work**: one task per row of the batch. A scan over a few thousand tokens takes a few
//! microseconds, so that splitting rows would not pay. **Traffic**: tokens once (twice for `next`
//! without a media count, the second time from L1 or L2), φ and the plan once. No workspace.

use super::Cpu;
use super::rows::Raw;
use super::tasks::Tasks;
use crate::Result;
use crate::backend::Implements;
use crate::ops::{DocumentEnd, MediaIndex, MediaIndexArgs, MediaSource, Operands};
use crate::size::{self, Size};
use crate::tensor::{Bound, HostMemory, Spec};

impl Implements<MediaIndex> for Cpu {
    type Prepared = (MediaIndex, Tasks);

    fn prepare(&self, op: &MediaIndex, shapes: &MediaIndexArgs<Spec, Spec>) -> Result<Self::Prepared> {
        let spec = &shapes.media_index;
        // Without rows there are still the carry and the plan's counts, if asked for.
        if spec.elements() == 0 && shapes.carry_out.is_none() && shapes.plan.is_none() {
            return Ok((*op, Tasks::EMPTY));
        }
        let (none, batch) = (Size::of(0), Size::of(spec.dim(0)));
        let tasks = Tasks::of(&self.pool, none, none, spec.elements().saturating_mul(4), batch)
            .ok_or_else(|| size::refused(MediaIndex::NAME, "media_index", spec))?;
        Ok((*op, tasks))
    }

    fn workspace_bytes((_, tasks): &Self::Prepared) -> usize {
        tasks.bytes()
    }

    unsafe fn record(
        &self,
        (op, tasks): &Self::Prepared,
        _: &mut (),
        args: &<MediaIndex as Operands>::Args<Bound<HostMemory>, Bound<HostMemory>>,
        workspace: &HostMemory,
    ) -> Result<()> {
        if tasks.is_empty() {
            return Ok(());
        }
        let (tokens, token) = match &args.source {
            MediaSource::Tokens { ids, token } => (ids, Some(*token)),
            MediaSource::Locations(locations) => (locations, None),
        };
        let per_row = |bound: &Bound<HostMemory>| Line { at: Raw::of(bound), stride: bound.spec.stride(0) };
        let scan = Scan {
            op: *op,
            rows: args.media_index.spec.dim(1),
            token,
            tokens: Grid::of(tokens),
            carry_in: args.carry_in.as_ref().map(per_row),
            carry_out: args.carry_out.as_ref().map(per_row),
            media_count: args.media_count.as_ref().map(per_row),
            media_index: Grid::of(&args.media_index),
            plan: args.plan.as_ref().map(Raw::of),
        };
        // SAFETY: operands hold their specs by the contract of `record`; tasks write disjoint rows.
        unsafe {
            tasks.spread(&self.pool, workspace, usize::MAX, |b, _| scan.row(b));
        }
        Ok(())
    }
}

/// One 4-byte integer per row of the batch.
#[derive(Clone, Copy)]
struct Line {
    at: Raw,
    stride: usize,
}

impl Line {
    fn entry(&self, b: usize) -> Raw {
        self.at.add(b * self.stride)
    }
}

/// 4-byte integers `[batch, rows]`.
#[derive(Clone, Copy)]
struct Grid {
    at: Raw,
    strides: [usize; 2],
}

impl Grid {
    fn of(bound: &Bound<HostMemory>) -> Self {
        Grid { at: Raw::of(bound), strides: [bound.spec.stride(0), bound.spec.stride(1)] }
    }

    fn entry(&self, b: usize, i: usize) -> Raw {
        self.at.add(b * self.strides[0] + i * self.strides[1])
    }
}

struct Scan {
    op: MediaIndex,
    rows: usize,
    token: Option<i32>,
    tokens: Grid,
    carry_in: Option<Line>,
    carry_out: Option<Line>,
    media_count: Option<Line>,
    media_index: Grid,
    plan: Option<Raw>,
}

impl Scan {
    /// # Safety
    /// The operands hold their specs, and no one else writes row b of the outputs.
    unsafe fn row(&self, b: usize) {
        // SAFETY: i < rows and b < batch throughout; the plan of a row has 2 (1 + rows) words, and
        // items never exceed rows.
        unsafe {
            let is_medium = |raw: i32| self.token.map_or(raw != 0, |token| raw == token);
            let (end, restarts) = match self.op.document_end {
                DocumentEnd::Ignore => (None, false),
                DocumentEnd::Hide { token } => (Some(token), false),
                DocumentEnd::Restart { token } => (Some(token), true),
            };
            let carry = self.carry_in.map_or(0, |line| line.entry(b).i32());
            let mut hidden = carry < 0;
            let mut count = match (hidden, restarts) {
                (false, _) => carry,
                (true, true) => 0,
                (true, false) => !carry,
            };
            let limit = match (self.op.next, self.media_count) {
                (false, _) => i32::MAX,
                (true, Some(line)) => line.entry(b).i32(),
                (true, None) => {
                    let here = (0..self.rows).filter(|&i| is_medium(self.tokens.entry(b, i).i32())).count();
                    count.saturating_add(here as i32)
                }
            };
            let plan = self.plan.map(|plan| plan.add(b * 2 * (1 + self.rows)));
            let (mut items, mut last) = (0, None);
            for i in 0..self.rows {
                let raw = self.tokens.entry(b, i).i32();
                let medium = is_medium(raw);
                if medium {
                    count = count.saturating_add(1);
                    hidden = false;
                }
                let phi = if hidden {
                    0
                } else if self.op.next {
                    let next = if medium { count } else { count.saturating_add(1) };
                    if next > limit { 0 } else { next }
                } else {
                    count
                };
                self.media_index.entry(b, i).set_u32(phi as u32);
                if let Some(plan) = plan.filter(|_| last != Some(phi)) {
                    items += 1;
                    last = Some(phi);
                    plan.add(2 * items).set_u32(i as u32);
                    plan.add(2 * items + 1).set_u32(phi as u32);
                }
                if end == Some(raw) {
                    hidden = true;
                    if restarts {
                        count = 0;
                    }
                }
            }
            if let Some(line) = self.carry_out {
                line.entry(b).set_u32(if hidden { !count } else { count } as u32);
            }
            if let Some(plan) = plan {
                plan.set_u32(items as u32);
                plan.add(1).set_u32(0);
                for rest in 2 * (items + 1)..2 * (1 + self.rows) {
                    plan.add(rest).set_u32(0);
                }
            }
        }
    }
}
