//! `media_index`: `shaders/media_index.wgsl`, one dispatch, the plan included.

use super::launch::{Launch, Operand, linear_grid, span};
use super::source::{Slot, Source, lib};
use super::{Wgpu, WgpuMemory, WgpuRecorder};
use crate::Result;
use crate::backend::Implements;
use crate::backend::gpu::MediaIndexParams;
use crate::ops::{DocumentEnd, MediaIndex, MediaIndexArgs, MediaSource, Operands};
use crate::tensor::{Bound, Spec};

/// What the text depends on.
#[derive(Clone, Copy)]
struct Instance {
    locations: bool,
    next: bool,
    /// 0 ignore, 1 hide, 2 restart.
    document_end: u32,
    carry_in: bool,
    media_count: bool,
    carry_out: bool,
    plan: bool,
}

impl Instance {
    fn source(&self) -> Source {
        let read = |source: Source, name, present: bool| match present {
            true => source.operand(name, lib::READ_U32, Slot::Shared, ""),
            false => source.operand(name, lib::ABSENT_U32, Slot::Absent, ""),
        };
        let write = |source: Source, name, present: bool| match present {
            true => source.operand(name, lib::STORE_U32, Slot::Shared, ""),
            false => source.operand(name, lib::STORE_ABSENT, Slot::Absent, ""),
        };
        let text = include_str!("../../../shaders/media_index.wgsl");
        let mut source = Source::new(MediaIndex::NAME, "media_index", text)
            .library(lib::GRID)
            .constant("LOCATIONS", self.locations)
            .constant("NEXT", self.next)
            .constant("DOCUMENT_END", format!("{}u", self.document_end))
            .workgroup_bytes(256 * (12 + 4 + 4));
        source = read(source, "tokens", true);
        source = read(source, "carry_in", self.carry_in);
        source = read(source, "media_count", self.media_count);
        source = write(source, "carry_out", self.carry_out);
        source = write(source, "phi", true);
        write(source, "plan", self.plan)
    }
}

/// A `media_index`, planned. None where there is nothing to do.
pub(crate) struct Prepared(Option<Launch>);

impl Implements<MediaIndex> for Wgpu {
    type Prepared = Prepared;

    fn prepare(&self, op: &MediaIndex, shapes: &MediaIndexArgs<Spec, Spec>) -> Result<Prepared> {
        let (batch, rows) = (shapes.media_index.dim(0), shapes.media_index.dim(1));
        if batch == 0 {
            return Ok(Prepared(None));
        }
        let (tokens, token) = match &shapes.source {
            MediaSource::Tokens { ids, token } => (ids, Some(*token)),
            MediaSource::Locations(locations) => (locations, None),
        };
        let (document_end, end_token) = match op.document_end {
            DocumentEnd::Ignore => (0, 0),
            DocumentEnd::Hide { token } => (1, token),
            DocumentEnd::Restart { token } => (2, token),
        };
        let instance = Instance {
            locations: token.is_none(),
            next: op.next,
            document_end,
            carry_in: shapes.carry_in.is_some(),
            media_count: shapes.media_count.is_some(),
            carry_out: shapes.carry_out.is_some(),
            plan: shapes.plan.is_some(),
        };
        let stride = |spec: Option<&Spec>, d: usize| spec.map_or(0, |s| s.stride(d) as u32);
        let params = MediaIndexParams {
            batch: batch as u32,
            rows: rows as u32,
            token: token.unwrap_or(0) as u32,
            end_token: end_token as u32,
            tokens_stride_b: stride(Some(tokens), 0),
            tokens_stride_r: stride(Some(tokens), 1),
            carry_in_stride: stride(shapes.carry_in.as_ref(), 0),
            media_count_stride: stride(shapes.media_count.as_ref(), 0),
            carry_out_stride: stride(shapes.carry_out.as_ref(), 0),
            phi_stride_b: stride(Some(&shapes.media_index), 0),
            phi_stride_r: stride(Some(&shapes.media_index), 1),
            ..Default::default()
        };
        let spans = [
            span(tokens),
            shapes.carry_in.as_ref().and_then(span),
            shapes.media_count.as_ref().and_then(span),
            shapes.carry_out.as_ref().and_then(span),
            span(&shapes.media_index),
            shapes.plan.as_ref().and_then(span),
        ];
        let grid = linear_grid(self, MediaIndex::NAME, batch as u64)?;
        Ok(Prepared(Some(Launch::new(self, &instance.source(), &params, &spans, grid)?)))
    }

    fn workspace_bytes(_: &Prepared) -> usize {
        0
    }

    unsafe fn enqueue(
        &self,
        prepared: &Prepared,
        recorder: &mut WgpuRecorder<'_>,
        args: &<MediaIndex as Operands>::Args<Bound<WgpuMemory>, Bound<WgpuMemory>>,
        _: &WgpuMemory,
    ) -> Result<()> {
        let Some(launch) = &prepared.0 else { return Ok(()) };
        let (MediaSource::Tokens { ids: tokens, .. } | MediaSource::Locations(tokens)) = &args.source;
        let operands = [
            Some(Operand::of(tokens)),
            args.carry_in.as_ref().map(Operand::of),
            args.media_count.as_ref().map(Operand::of),
            args.carry_out.as_ref().map(Operand::of),
            Some(Operand::of(&args.media_index)),
            args.plan.as_ref().map(Operand::of),
        ];
        launch.record(self, recorder, &operands)
    }
}

/// Every shader of the op.
#[cfg(test)]
pub(super) fn instances() -> Vec<Source> {
    let mut all = Vec::new();
    for (locations, next, document_end) in
        [(false, false, 0), (false, false, 1), (false, false, 2), (false, true, 0), (true, false, 0), (true, true, 0)]
    {
        for bits in 0..16u32 {
            let [carry_in, media_count, carry_out, plan] = [0, 1, 2, 3].map(|n| bits >> n & 1 == 1);
            let instance = Instance { locations, next, document_end, carry_in, media_count, carry_out, plan };
            all.push(instance.source());
        }
    }
    all
}
