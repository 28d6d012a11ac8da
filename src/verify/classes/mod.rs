//! From a fixture's `source_class` to the bridge that computes the same: one row per class.

mod gated;
mod qformer;
mod resampler;
mod run;

use super::Fixture;
use crate::{DType, Device, HostTensor, Result};
use run::Run;

/// Computes one class.
type Class = fn(&mut Run<'_>) -> Result<()>;

/// Every class that [`run`] knows.
const CLASSES: [(&str, Class); 16] = [
    ("flamingo_pytorch.flamingo_pytorch.PerceiverResampler", resampler::flamingo_pytorch),
    ("flamingo_pytorch.flamingo_pytorch.GatedCrossAttentionBlock", gated::open_flamingo_block),
    ("open_flamingo.src.helpers.PerceiverResampler", resampler::open_flamingo),
    ("open_flamingo.src.helpers.GatedCrossAttentionBlock", gated::open_flamingo_block),
    ("open_flamingo.src.flamingo_lm.FlamingoLayer", gated::open_flamingo_layer),
    ("transformers.models.idefics.perceiver.IdeficsPerceiverResampler", resampler::idefics),
    ("transformers.models.idefics.modeling_idefics.IdeficsGatedCrossAttentionLayer", gated::idefics),
    ("transformers.models.idefics2.modeling_idefics2.Idefics2PerceiverResampler", resampler::idefics2),
    ("transformers.models.idefics2.modeling_idefics2.Idefics2Connector", resampler::idefics2_connector),
    ("transformers.models.mllama.modeling_mllama.MllamaCrossAttentionDecoderLayer", gated::mllama),
    ("transformers.models.blip_2.modeling_blip_2.Blip2QFormerModel", qformer::blip2),
    ("transformers.models.blip_2.modeling_blip_2.Blip2ForImageTextRetrieval", qformer::blip2_retrieval),
    ("transformers.models.instructblip.modeling_instructblip.InstructBlipQFormerModel", qformer::instructblip),
    ("lavis.models.blip2_models.Qformer.BertLMHeadModel", qformer::lavis),
    ("gen/paper_numpy.py::perceiver_resampler", resampler::flamingo),
    ("gen/paper_numpy.py::gated_xattn_dense", gated::flamingo),
];

/// Names that [`run`] knows.
pub fn known() -> impl Iterator<Item = &'static str> {
    CLASSES.iter().map(|(name, _)| *name)
}

/// Runs the bridge of a fixture's class. Activations have `dtype`; [`DType::F64`] on the reference.
///
/// Results carry the names of `outputs.*`; intermediate ones begin with `inter.`.
///
/// # Errors
/// An unknown class, weights or inputs that do not form its bridge, an error of the device.
pub fn run(fixture: &Fixture, device: &Device, dtype: DType) -> Result<Vec<(String, HostTensor<'static>)>> {
    let Some((_, class)) = CLASSES.iter().find(|(name, _)| *name == fixture.source_class) else {
        let known: Vec<_> = known().collect();
        return Err(fixture.fault(format!("unknown class {}; known: {}", fixture.source_class, known.join(", "))));
    };
    let mut run = Run::new(fixture, device, dtype);
    class(&mut run).map_err(|e| match e {
        crate::Error::File { .. } => e,
        other => fixture.fault(other),
    })?;
    Ok(run.into_results())
}
