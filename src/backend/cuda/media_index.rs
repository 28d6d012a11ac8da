//! `media_index`: `kernels/media_index.cu`, one launch, the plan included.

use super::compile::{Source, kernel};
use super::launch::{Launch, Operand};
use super::{Cuda, CudaMemory, CudaRecorder};
use crate::Result;
use crate::backend::Implements;
use crate::backend::gpu::MediaIndexParams;
use crate::ops::{DocumentEnd, MediaIndex, MediaIndexArgs, MediaSource, Operands};
use crate::tensor::{Bound, Spec};

const THREADS: u32 = 256;

/// What the text depends on, and its name.
struct Instance {
    entry: &'static str,
    locations: bool,
    next: bool,
    document_end: &'static str,
}

/// Every combination that the op's check lets through.
const INSTANCES: [Instance; 6] = [
    Instance { entry: "media_index", locations: false, next: false, document_end: "IGNORE" },
    Instance { entry: "media_index_hide", locations: false, next: false, document_end: "HIDE" },
    Instance { entry: "media_index_restart", locations: false, next: false, document_end: "RESTART" },
    Instance { entry: "media_index_next", locations: false, next: true, document_end: "IGNORE" },
    Instance { entry: "media_index_locations", locations: true, next: false, document_end: "IGNORE" },
    Instance { entry: "media_index_locations_next", locations: true, next: true, document_end: "IGNORE" },
];

impl Instance {
    fn of(locations: bool, next: bool, document_end: DocumentEnd) -> &'static Instance {
        let [plain, hide, restart, next_of_ids, of_locations, next_of_locations] = &INSTANCES;
        match (document_end, locations, next) {
            (DocumentEnd::Hide { .. }, ..) => hide,
            (DocumentEnd::Restart { .. }, ..) => restart,
            (DocumentEnd::Ignore, false, false) => plain,
            (DocumentEnd::Ignore, false, true) => next_of_ids,
            (DocumentEnd::Ignore, true, false) => of_locations,
            (DocumentEnd::Ignore, true, true) => next_of_locations,
        }
    }

    fn source(&self) -> Source {
        const OPERANDS: &[&str] = &["tokens", "carry_in", "media_count", "carry_out", "phi", "plan"];
        Source::new(MediaIndex::NAME, self.entry, kernel!("media_index.cu"), OPERANDS)
            .constant("LOCATIONS", u8::from(self.locations))
            .constant("NEXT", u8::from(self.next))
            .constant("DOCUMENT_END", self.document_end)
            .threads(THREADS)
            .shared_bytes(20 * THREADS / 32)
    }
}

/// A `media_index`, planned. None where there is nothing to do.
pub(crate) struct Prepared(Option<Launch>);

impl Implements<MediaIndex> for Cuda {
    type Prepared = Prepared;

    fn prepare(&self, op: &MediaIndex, shapes: &MediaIndexArgs<Spec, Spec>) -> Result<Prepared> {
        let (batch, rows) = (shapes.media_index.dim(0), shapes.media_index.dim(1));
        // A plan, the last number of each problem: they are written without rows too.
        let written = shapes.carry_out.is_some() || shapes.plan.is_some();
        if batch == 0 || (rows == 0 && !written) {
            return Ok(Prepared(None));
        }
        let (tokens, token) = match &shapes.source {
            MediaSource::Tokens { ids, token } => (ids, Some(*token)),
            MediaSource::Locations(locations) => (locations, None),
        };
        let end_token = match op.document_end {
            DocumentEnd::Ignore => 0,
            DocumentEnd::Hide { token } | DocumentEnd::Restart { token } => token,
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
        let source = Instance::of(token.is_none(), op.next, op.document_end).source();
        let grid = [u32::try_from(batch).unwrap_or(u32::MAX), 1, 1];
        Ok(Prepared(Some(Launch::new(self, &source, &params, grid)?)))
    }

    fn workspace_bytes(_: &Prepared) -> usize {
        0
    }

    unsafe fn enqueue(
        &self,
        prepared: &Prepared,
        recorder: &mut CudaRecorder<'_>,
        args: &<MediaIndex as Operands>::Args<Bound<CudaMemory>, Bound<CudaMemory>>,
        _: &CudaMemory,
    ) -> Result<()> {
        let Some(launch) = &prepared.0 else { return Ok(()) };
        let (MediaSource::Tokens { ids: tokens, .. } | MediaSource::Locations(tokens)) = &args.source;
        let operands = [
            Operand::of(tokens),
            Operand::maybe(args.carry_in.as_ref()),
            Operand::maybe(args.media_count.as_ref()),
            Operand::maybe(args.carry_out.as_ref()),
            Operand::of(&args.media_index),
            Operand::maybe(args.plan.as_ref()),
        ];
        // SAFETY: the caller's promise, for the operands in the kernel's order; indices depend on shapes alone, not on what ids or carries hold.
        unsafe { launch.record(self, recorder, &operands) }
    }
}

/// Every kernel of the op.
pub(super) fn instances() -> Vec<Source> {
    INSTANCES.iter().map(Instance::source).collect()
}

#[cfg(test)]
mod tests {
    use super::Instance;
    use crate::ops::DocumentEnd;

    #[test]
    fn what_a_call_asks_for_is_what_the_instance_does() {
        let (hide, restart) = (DocumentEnd::Hide { token: 2 }, DocumentEnd::Restart { token: 2 });
        for (locations, next, end, entry) in [
            (false, false, DocumentEnd::Ignore, "media_index"),
            (false, false, hide, "media_index_hide"),
            (false, false, restart, "media_index_restart"),
            (false, true, DocumentEnd::Ignore, "media_index_next"),
            (true, false, DocumentEnd::Ignore, "media_index_locations"),
            (true, true, DocumentEnd::Ignore, "media_index_locations_next"),
        ] {
            let instance = Instance::of(locations, next, end);
            assert_eq!(instance.entry, entry);
            assert_eq!((instance.locations, instance.next), (locations, next), "{entry}");
        }
    }
}
