//! Whole bridges as candle custom ops.
//!
//! ```text
//! media.inplace_op2(&features, &resampler)?;       once per image
//! kv.inplace_op2(&media, &block.media())?;         once per image and block
//! text.inplace_op3(&kv, &phi, &block)?;            at every step, in place
//! ```

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result};
use xattn::bridge::{self, GatedBlockArgs, Precision, ProjectMediaArgs, ResamplerArgs};
use xattn::checkpoint::{TensorSource, open_flamingo};
use xattn::ops::{Keys, Media, Operands, Source, Visibility};
use xattn::{DType, Device, PreparedBridge, Recorder, Shapes, Spec, View, ViewMut, Workspace};

use crate::kept::Kept;
#[cfg(feature = "cuda")]
use crate::operand::cuda;
use crate::operand::{fault, view, view_mut};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};

/// The plan of a bridge call for its last shapes.
struct Plan<C: Operands>(Kept<(PreparedBridge<C>, Workspace)>);

impl<C: Operands> Default for Plan<C> {
    fn default() -> Self {
        Plan(Kept::default())
    }
}

impl<C: Operands> Plan<C>
where
    C::Args<Spec, Spec>: PartialEq,
{
    fn record(
        &self,
        device: &Device,
        recorder: &mut Recorder<'_>,
        prepare: impl FnOnce(C::Args<Spec, Spec>) -> xattn::Result<PreparedBridge<C>>,
        args: C::Args<View<'_>, ViewMut<'_>>,
    ) -> xattn::Result<()> {
        let specs = C::shapes(&args)?;
        let (prepared, mut workspace) = match self.0.take(|(prepared, _)| *prepared.shapes() == specs) {
            Some(kept) => kept,
            None => {
                let prepared = prepare(specs)?;
                let workspace = Workspace::new(device, prepared.workspace_bytes())?;
                (prepared, workspace)
            }
        };
        let result = prepared.enqueue(recorder, args, &mut workspace);
        self.0.put((prepared, workspace));
        result
    }
}

/// A Perceiver resampler: media `[batch, media, latents, width]` from features
/// `[batch, media, tokens, width]`.
pub struct Resampler {
    device: Device,
    bridge: bridge::PerceiverResampler,
    plan: Plan<bridge::ResamplerCall>,
}

impl Resampler {
    /// OpenFlamingo's, from its named weights.
    pub fn open_flamingo<'a>(
        device: &Device,
        source: &dyn TensorSource<'a>,
        prefix: &str,
        heads: usize,
        dtype: DType,
    ) -> xattn::Result<Self> {
        let (config, weights) = open_flamingo::resampler(source, prefix, heads)?;
        let bridge = bridge::PerceiverResampler::new(device, &config, &weights, Precision::uniform(dtype))?;
        Ok(Resampler { device: device.clone(), bridge, plan: Plan::default() })
    }
}

impl InplaceOp2 for Resampler {
    fn name(&self) -> &'static str {
        "xattn resampler"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, out_l: &Layout, features: &CpuStorage, features_l: &Layout) -> Result<()> {
        let (features, out) = (view(features, features_l)?, view_mut(out, out_l)?);
        let args = ResamplerArgs { features, keys: Keys::All, offsets: None, out };
        let plan = |specs| self.bridge.prepare(1, specs);
        self.plan.record(&self.device, &mut Recorder::Host, plan, args).map_err(fault)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        out: &mut CudaStorage,
        out_l: &Layout,
        features: &CudaStorage,
        features_l: &Layout,
    ) -> Result<()> {
        let stream = features.device().cuda_stream();
        let (features, _features) = cuda::view(features, features_l, &stream)?;
        let (out, _out) = cuda::view_mut(out, out_l, &stream)?;
        let args = ResamplerArgs { features, keys: Keys::All, offsets: None, out };
        let plan = |specs| self.bridge.prepare(1, specs);
        self.plan.record(&self.device, &mut cuda::recorder(&stream), plan, args).map_err(fault)
    }
}

/// A gated block: text `[batch, rows, width]` in place, from [kv, media index].
pub struct GatedBlock {
    device: Device,
    bridge: bridge::GatedBlock,
    keys_per_media: u32,
    plan: Plan<bridge::GatedBlockCall>,
    media_plan: Plan<bridge::ProjectMediaCall>,
}

impl GatedBlock {
    /// OpenFlamingo's, from its named weights.
    pub fn open_flamingo<'a>(
        device: &Device,
        source: &dyn TensorSource<'a>,
        prefix: &str,
        heads: usize,
        keys_per_media: u32,
        dtype: DType,
    ) -> xattn::Result<Self> {
        let (config, weights) = open_flamingo::gated_block(source, prefix, heads, true)?;
        let bridge = bridge::GatedBlock::new(device, &config, &weights, Precision::uniform(dtype))?;
        let (plan, media_plan) = (Plan::default(), Plan::default());
        Ok(GatedBlock { device: device.clone(), bridge, keys_per_media, plan, media_plan })
    }

    /// Width of K plus V of a media token.
    pub fn kv_width(&self) -> usize {
        self.bridge.config().kv_width()
    }

    /// The projection of media tokens `[batch, keys, width]` to `[batch, keys, kv_width]`.
    pub fn media(&self) -> ProjectMedia<'_> {
        ProjectMedia(self)
    }
}

impl GatedBlock {
    fn args<'a>(&self, text: ViewMut<'a>, kv: View<'a>, phi: View<'a>) -> GatedBlockArgs<View<'a>, ViewMut<'a>> {
        let media = Media { media_index: phi, keys_per_media: self.keys_per_media, plan: None };
        GatedBlockArgs {
            x: Source::InPlace,
            x_offsets: None,
            kv,
            keys: Keys::All,
            slots: None,
            kv_offsets: None,
            visibility: Visibility::SameMedia(media),
            out: text,
        }
    }
}

impl InplaceOp3 for GatedBlock {
    fn name(&self) -> &'static str {
        "xattn gated block"
    }

    fn cpu_fwd(
        &self,
        text: &mut CpuStorage,
        text_l: &Layout,
        kv: &CpuStorage,
        kv_l: &Layout,
        phi: &CpuStorage,
        phi_l: &Layout,
    ) -> Result<()> {
        let args = self.args(view_mut(text, text_l)?, view(kv, kv_l)?, view(phi, phi_l)?);
        let plan = |specs| self.bridge.prepare(specs);
        self.plan.record(&self.device, &mut Recorder::Host, plan, args).map_err(fault)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        text: &mut CudaStorage,
        text_l: &Layout,
        kv: &CudaStorage,
        kv_l: &Layout,
        phi: &CudaStorage,
        phi_l: &Layout,
    ) -> Result<()> {
        let stream = kv.device().cuda_stream();
        let (kv, _kv) = cuda::view(kv, kv_l, &stream)?;
        let (phi, _phi) = cuda::view(phi, phi_l, &stream)?;
        let (text, _text) = cuda::view_mut(text, text_l, &stream)?;
        let plan = |specs| self.bridge.prepare(specs);
        self.plan.record(&self.device, &mut cuda::recorder(&stream), plan, self.args(text, kv, phi)).map_err(fault)
    }
}

/// See [`GatedBlock::media`].
pub struct ProjectMedia<'b>(&'b GatedBlock);

impl InplaceOp2 for ProjectMedia<'_> {
    fn name(&self) -> &'static str {
        "xattn media projection"
    }

    fn cpu_fwd(&self, kv: &mut CpuStorage, kv_l: &Layout, media: &CpuStorage, media_l: &Layout) -> Result<()> {
        let args = ProjectMediaArgs { media: view(media, media_l)?, kv: view_mut(kv, kv_l)? };
        let plan = |specs| self.0.bridge.prepare_media(specs);
        self.0.media_plan.record(&self.0.device, &mut Recorder::Host, plan, args).map_err(fault)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, kv: &mut CudaStorage, kv_l: &Layout, media: &CudaStorage, media_l: &Layout) -> Result<()> {
        let stream = media.device().cuda_stream();
        let (media, _media) = cuda::view(media, media_l, &stream)?;
        let (kv, _kv) = cuda::view_mut(kv, kv_l, &stream)?;
        let plan = |specs| self.0.bridge.prepare_media(specs);
        let args = ProjectMediaArgs { media, kv };
        self.0.media_plan.record(&self.0.device, &mut cuda::recorder(&stream), plan, args).map_err(fault)
    }
}
