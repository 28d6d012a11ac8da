//! `media_index`: `shaders/media_index.wgsl`, one dispatch, media plan included.

use super::Wgpu;
use super::launch::{Launch, linear_grid, span};
use super::shader_text::{ShaderText, Text, lib};
use crate::Result;
use crate::backend::gpu::media_index::{MediaIndexOperands, media_index_params};
use crate::backend::gpu::{Kernels, OneLaunch};
use crate::ops::{DocumentEnd, MediaIndex, MediaIndexArgs, MediaSource, Operands};
use crate::tensor::Spec;

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
    fn source(&self) -> Result<ShaderText> {
        let text = include_str!("../../../shaders/media_index.wgsl");
        let operands = MediaIndexOperands {
            tokens: Text::u32(true),
            carry_in: Text::u32(self.carry_in),
            media_count: Text::u32(self.media_count),
            carry_out: Text::store(self.carry_out),
            phi: Text::store(true),
            plan: Text::store(self.plan),
        };
        ShaderText::new(MediaIndex::NAME, "media_index", text)
            .library(lib::GRID)
            .constant("LOCATIONS", self.locations)
            .constant("NEXT", self.next)
            .constant("DOCUMENT_END", format!("{}u", self.document_end))
            .workgroup_bytes(256 * (12 + 4 + 4))
            .operands_of(&MediaIndexOperands::NAMES, operands)
    }
}

impl OneLaunch<MediaIndex> for Wgpu {
    fn plan(&self, op: &MediaIndex, shapes: &MediaIndexArgs<Spec, Spec>) -> Result<Option<Launch>> {
        let batch = shapes.media_index.dim(0);
        if batch == 0 {
            return Ok(None);
        }
        let instance = Instance {
            locations: matches!(shapes.source, MediaSource::Locations(_)),
            next: op.next,
            document_end: match op.document_end {
                DocumentEnd::Ignore => 0,
                DocumentEnd::Hide { .. } => 1,
                DocumentEnd::Restart { .. } => 2,
            },
            carry_in: shapes.carry_in.is_some(),
            media_count: shapes.media_count.is_some(),
            carry_out: shapes.carry_out.is_some(),
            plan: shapes.plan.is_some(),
        };
        let spans = MediaIndex::operands(shapes).map(span).list();
        let grid = linear_grid(self, MediaIndex::NAME, batch as u64)?;
        Ok(Some(Launch::new(self, &instance.source()?, &media_index_params(op, shapes), &spans, grid)?))
    }
}

#[cfg(test)]
pub(super) fn instances() -> Vec<ShaderText> {
    let mut all = Vec::new();
    for (locations, next, document_end) in
        [(false, false, 0), (false, false, 1), (false, false, 2), (false, true, 0), (true, false, 0), (true, true, 0)]
    {
        for bits in 0..16u32 {
            let [carry_in, media_count, carry_out, plan] = [0, 1, 2, 3].map(|n| bits >> n & 1 == 1);
            let instance = Instance { locations, next, document_end, carry_in, media_count, carry_out, plan };
            all.push(instance.source().unwrap());
        }
    }
    all
}
