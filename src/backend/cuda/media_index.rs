//! `media_index`: `kernels/media_index.cu`, one launch, the plan included.

use super::Cuda;
use super::compile::{KernelText, kernel};
use super::launch::Launch;
use crate::Result;
use crate::backend::gpu::OneLaunch;
use crate::backend::gpu::media_index::{MediaIndexOperands, media_index_params};
use crate::ops::{DocumentEnd, MediaIndex, MediaIndexArgs, MediaSource, Operands};
use crate::tensor::Spec;

const THREADS: u32 = 256;

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

    fn source(&self) -> KernelText {
        let operands = &MediaIndexOperands::NAMES;
        KernelText::new(MediaIndex::NAME, self.entry, kernel!("media_index.cu"), operands)
            .constant("LOCATIONS", u8::from(self.locations))
            .constant("NEXT", u8::from(self.next))
            .constant("DOCUMENT_END", self.document_end)
            .threads(THREADS)
            .shared_bytes(20 * THREADS / 32)
    }
}

/// Indices depend on shapes alone, not on what ids or carries hold.
impl OneLaunch<MediaIndex> for Cuda {
    fn plan(&self, op: &MediaIndex, shapes: &MediaIndexArgs<Spec, Spec>) -> Result<Option<Launch>> {
        let (batch, rows) = (shapes.media_index.dim(0), shapes.media_index.dim(1));
        // The plan and the last number of each problem are written without rows too.
        let written = shapes.carry_out.is_some() || shapes.plan.is_some();
        if batch == 0 || (rows == 0 && !written) {
            return Ok(None);
        }
        let locations = matches!(shapes.source, MediaSource::Locations(_));
        let source = Instance::of(locations, op.next, op.document_end).source();
        let grid = [u32::try_from(batch).unwrap_or(u32::MAX), 1, 1];
        Ok(Some(Launch::new(self, &source, &media_index_params(op, shapes), grid)?))
    }
}

pub(super) fn instances() -> Vec<KernelText> {
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
