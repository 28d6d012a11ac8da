//! `media_index`, as in the equation of `ops/media_index.rs`. Integers, in either arithmetic.

use super::Reference;
use super::dense::{Dense, Operand, Promise};
use crate::Result;
use crate::backend::Implements;
use crate::ops::{DocumentEnd, MediaIndex, MediaIndexArgs, MediaSource, Operands};
use crate::tensor::{HostMemory, Spec};

impl Implements<MediaIndex> for Reference {
    type Prepared = MediaIndex;

    fn prepare(&self, op: &MediaIndex, _: &<MediaIndex as Operands>::Args<Spec, Spec>) -> Result<MediaIndex> {
        Ok(*op)
    }

    fn workspace_bytes(_: &MediaIndex) -> usize {
        0
    }

    unsafe fn record(
        &self,
        op: &MediaIndex,
        _: &mut (),
        args: &MediaIndexArgs<Operand, Operand>,
        _: &HostMemory,
    ) -> Result<()> {
        // SAFETY: the contract of `record`, passed on.
        media_index(op, &unsafe { Promise::of_enqueue() }, args)
    }
}

#[derive(Clone, Copy)]
struct Token {
    is_medium: bool,
    ends_document: bool,
}

/// Media counted so far, and whether a document has ended since the last one.
#[derive(Clone, Copy)]
struct State {
    count: i32,
    hidden: bool,
}

impl State {
    fn from_carry(carry: i32, document_end: DocumentEnd) -> Self {
        if carry >= 0 {
            return State { count: carry, hidden: false };
        }
        State { count: if restarts(document_end) { 0 } else { !carry }, hidden: true }
    }

    fn carry(self) -> i32 {
        if self.hidden { !self.count } else { self.count }
    }
}

fn restarts(document_end: DocumentEnd) -> bool {
    matches!(document_end, DocumentEnd::Restart { .. })
}

fn tokens(op: &MediaIndex, memory: &Promise, source: &MediaSource<Operand>) -> Result<Dense<Token>> {
    match source {
        MediaSource::Tokens { ids, token } => {
            let end = match op.document_end {
                DocumentEnd::Ignore => None,
                DocumentEnd::Hide { token } | DocumentEnd::Restart { token } => Some(token),
            };
            memory.read::<i32>(ids)?.map(|id| Token { is_medium: id == *token, ends_document: Some(id) == end })
        }
        MediaSource::Locations(locations) => {
            memory.read::<u32>(locations)?.map(|at| Token { is_medium: at != 0, ends_document: false })
        }
    }
}

fn media_index(op: &MediaIndex, memory: &Promise, args: &MediaIndexArgs<Operand, Operand>) -> Result<()> {
    // Without rows there are still the carry and the plan's counts, if asked for.
    if args.media_index.spec.elements() == 0 && args.carry_out.is_none() && args.plan.is_none() {
        return Ok(());
    }
    let tokens = tokens(op, memory, &args.source)?;
    let carry_in = args.carry_in.as_ref().map(|c| memory.read::<i32>(c)).transpose()?;
    let media_count = args.media_count.as_ref().map(|c| memory.read::<i32>(c)).transpose()?;
    let (batch, rows) = (tokens.dim(0), tokens.dim(1));
    let mut phi = Dense::filled(&[batch, rows], 0)?;
    let mut carry_out = Dense::filled(&[batch], 0)?;
    for b in 0..batch {
        let mut state = State::from_carry(carry_in.as_ref().map_or(0, |c| *c.at(&[b])), op.document_end);
        let in_chunk = tokens.row(&[b]).iter().filter(|t| t.is_medium).count();
        // `check` limits rows to less than 2^31; only a hostile carry can saturate.
        let media = media_count.as_ref().map_or(state.count.saturating_add(in_chunk as i32), |c| *c.at(&[b]));
        for i in 0..rows {
            let token = *tokens.at(&[b, i]);
            if token.is_medium {
                state = State { count: state.count.saturating_add(1), hidden: false };
            }
            *phi.at_mut(&[b, i]) = if state.hidden {
                0
            } else if op.next {
                let next = if token.is_medium { state.count } else { state.count.saturating_add(1) };
                if next > media { 0 } else { next }
            } else {
                state.count
            };
            if token.ends_document {
                state = State { count: if restarts(op.document_end) { 0 } else { state.count }, hidden: true };
            }
        }
        *carry_out.at_mut(&[b]) = state.carry();
    }
    let plan = args.plan.as_ref().map(|to| Ok((to, runs(&phi)?.map(Some)?))).transpose()?;
    let (carry_out, phi) = (carry_out.map(Some)?, phi.map(Some)?);
    if let Some((to, plan)) = plan {
        memory.write(to, plan);
    }
    if let Some(to) = &args.carry_out {
        memory.write(to, carry_out);
    }
    memory.write(&args.media_index, phi);
    Ok(())
}

/// The media plan: `(items, 0)`, then `(first row, φ)` of each run of equal φ.
fn runs(phi: &Dense<i32>) -> Result<Dense<u32>> {
    let (batch, rows) = (phi.dim(0), phi.dim(1));
    let mut plan = Dense::filled(&[batch, 1 + rows, 2], 0)?;
    for b in 0..batch {
        let phi = phi.row(&[b]);
        let mut items = 0;
        for i in 0..rows {
            if i == 0 || phi[i] != phi[i - 1] {
                items += 1;
                plan.row_mut(&[b, items]).copy_from_slice(&[i as u32, phi[i] as u32]);
            }
        }
        plan.row_mut(&[b, 0])[0] = items as u32;
    }
    Ok(plan)
}
