//! Ops as candle custom ops.
//!
//! ```text
//! let out = Attention::new(&device, 64).same_media(&q, &k, &v, &phi, 64)?;      a new tensor
//! x.inplace_op3(&y, &gate, &GatedResidual::new(&device))?;                       x += tanh(gate) · y
//! phi.inplace_op3(&ids, &carry, &MediaIndex::new(&device, token))?;
//! ```

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cpu_backend::CpuDevice;
use candle_core::{CpuStorage, CustomOp3, InplaceOp3, Layout, Result, Shape, Storage, Tensor};
use xattn::ops::{self, AttentionArgs, GatedResidualArgs, Media, MediaIndexArgs, MediaSource, Source, Visibility};
use xattn::{Device, Dispatch, Prepared, Recorder, Spec, View, ViewMut, Workspace};

use crate::kept::Kept;
#[cfg(feature = "cuda")]
use crate::operand::cuda;
use crate::operand::{fault, view, view_mut};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;

/// An op with the plan of its last shapes: in steady state a call neither plans nor allocates.
pub struct Planned<O: Dispatch> {
    op: O,
    device: Device,
    kept: Kept<(Prepared<O>, Workspace)>,
}

impl<O: Dispatch> Planned<O>
where
    O::Args<Spec, Spec>: PartialEq,
{
    /// For one device.
    pub fn new(device: &Device, op: O) -> Self {
        Planned { op, device: device.clone(), kept: Kept::default() }
    }

    /// Runs on the recorder, planning anew if the shapes are.
    pub fn record(&self, recorder: &mut Recorder<'_>, args: O::Args<View<'_>, ViewMut<'_>>) -> xattn::Result<()> {
        let specs = O::shapes(&args)?;
        let (prepared, mut workspace) = match self.kept.take(|(prepared, _)| *prepared.shapes() == specs) {
            Some(kept) => kept,
            None => {
                let prepared = self.op.prepare(&self.device, specs)?;
                let workspace = Workspace::new(&self.device, prepared.workspace_bytes())?;
                (prepared, workspace)
            }
        };
        let result = prepared.enqueue(recorder, args, &mut workspace);
        self.kept.put((prepared, workspace));
        result
    }
}

/// `attention` over one segment, a `CustomOp3`: out from (q, k, v), whose layout is
/// `[batch, rows, heads, head_dim]`.
pub struct Attention {
    planned: Planned<ops::Attention>,
}

impl Attention {
    /// Scale head_dim^-1/2.
    pub fn new(device: &Device, head_dim: usize) -> Self {
        Attention { planned: Planned::new(device, ops::Attention::for_head_dim(head_dim)) }
    }

    /// Every row sees every key.
    pub fn all(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        q.apply_op3_no_bwd(k, v, &Call { attention: self, media: None })
    }

    /// A row sees the keys of its medium: `media_index` i32 `[batch, rows]`.
    pub fn same_media(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        media_index: &Tensor,
        keys_per_media: u32,
    ) -> Result<Tensor> {
        q.apply_op3_no_bwd(k, v, &Call { attention: self, media: Some((media_index, keys_per_media)) })
    }
}

/// One call. Candle's interface has room for three tensors: φ comes along.
struct Call<'c> {
    attention: &'c Attention,
    media: Option<(&'c Tensor, u32)>,
}

impl CustomOp3 for Call<'_> {
    fn name(&self) -> &'static str {
        "xattn attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = q_l.shape().clone();
        let layout = Layout::contiguous(&shape);
        let mut out = CpuDevice.zeros_impl(&shape, q.dtype())?;
        let mut args = AttentionArgs::new(view(q, q_l)?, view(k, k_l)?, view(v, v_l)?, view_mut(&mut out, &layout)?);
        let phi = self.media.map(|(phi, keys_per_media)| (phi.storage_and_layout(), keys_per_media));
        if let Some(((storage, layout), keys_per_media)) = &phi {
            let Storage::Cpu(storage) = &**storage else { candle_core::bail!("the media index is not on the CPU") };
            let media_index = view(storage, layout)?;
            args.visibility = Visibility::SameMedia(Media { media_index, keys_per_media: *keys_per_media, plan: None });
        }
        self.attention.planned.record(&mut Recorder::Host, args).map_err(fault)?;
        Ok((out, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_l: &Layout,
        k: &CudaStorage,
        k_l: &Layout,
        v: &CudaStorage,
        v_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let shape = q_l.shape().clone();
        let layout = Layout::contiguous(&shape);
        let mut out = q.device().zeros_impl(&shape, q.dtype())?;
        let stream = q.device().cuda_stream();
        {
            let (q, _q) = cuda::view(q, q_l, &stream)?;
            let (k, _k) = cuda::view(k, k_l, &stream)?;
            let (v, _v) = cuda::view(v, v_l, &stream)?;
            let (out, _out) = cuda::view_mut(&mut out, &layout, &stream)?;
            let mut args = AttentionArgs::new(q, k, v, out);
            let phi = self.media.map(|(phi, keys_per_media)| (phi.storage_and_layout(), keys_per_media));
            let mut _phi = None;
            if let Some(((storage, layout), keys_per_media)) = &phi {
                let Storage::Cuda(storage) = &**storage else {
                    candle_core::bail!("the media index is not on the GPU")
                };
                let (media_index, guard) = cuda::view(storage, layout, &stream)?;
                _phi = Some(guard);
                args.visibility =
                    Visibility::SameMedia(Media { media_index, keys_per_media: *keys_per_media, plan: None });
            }
            self.attention.planned.record(&mut cuda::recorder(&stream), args).map_err(fault)?;
        }
        Ok((out, shape))
    }
}

/// `media_index`: φ (i32) from [token ids (i32), carry (i32 `[batch]`)]. The last φ of a row is the
/// carry of its next chunk.
pub struct MediaIndex {
    planned: Planned<ops::MediaIndex>,
    token: i32,
}

impl MediaIndex {
    /// Media stand where the id is `token`.
    pub fn new(device: &Device, token: i32) -> Self {
        MediaIndex { planned: Planned::new(device, ops::MediaIndex::default()), token }
    }
}

impl MediaIndex {
    fn args<'a>(&self, ids: View<'a>, carry: View<'a>, out: ViewMut<'a>) -> MediaIndexArgs<View<'a>, ViewMut<'a>> {
        MediaIndexArgs {
            source: MediaSource::Tokens { ids, token: self.token },
            carry_in: Some(carry),
            carry_out: None,
            media_count: None,
            media_index: out,
            plan: None,
        }
    }
}

impl InplaceOp3 for MediaIndex {
    fn name(&self) -> &'static str {
        "xattn media_index"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_l: &Layout,
        ids: &CpuStorage,
        ids_l: &Layout,
        carry: &CpuStorage,
        carry_l: &Layout,
    ) -> Result<()> {
        let args = self.args(view(ids, ids_l)?, view(carry, carry_l)?, view_mut(out, out_l)?);
        self.planned.record(&mut Recorder::Host, args).map_err(fault)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        out: &mut CudaStorage,
        out_l: &Layout,
        ids: &CudaStorage,
        ids_l: &Layout,
        carry: &CudaStorage,
        carry_l: &Layout,
    ) -> Result<()> {
        let stream = ids.device().cuda_stream();
        let (ids, _ids) = cuda::view(ids, ids_l, &stream)?;
        let (carry, _carry) = cuda::view(carry, carry_l, &stream)?;
        let (out, _out) = cuda::view_mut(out, out_l, &stream)?;
        self.planned.record(&mut cuda::recorder(&stream), self.args(ids, carry, out)).map_err(fault)
    }
}

/// `gated_residual`: out + tanh(gate) · y in place, from [y, gate].
pub struct GatedResidual(Planned<ops::GatedResidual>);

impl GatedResidual {
    /// For one device.
    pub fn new(device: &Device) -> Self {
        GatedResidual(Planned::new(device, ops::GatedResidual))
    }
}

impl InplaceOp3 for GatedResidual {
    fn name(&self) -> &'static str {
        "xattn gated_residual"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_l: &Layout,
        y: &CpuStorage,
        y_l: &Layout,
        gate: &CpuStorage,
        gate_l: &Layout,
    ) -> Result<()> {
        let args = GatedResidualArgs::new(Source::InPlace, view(y, y_l)?, view(gate, gate_l)?, view_mut(out, out_l)?);
        self.0.record(&mut Recorder::Host, args).map_err(fault)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        out: &mut CudaStorage,
        out_l: &Layout,
        y: &CudaStorage,
        y_l: &Layout,
        gate: &CudaStorage,
        gate_l: &Layout,
    ) -> Result<()> {
        let stream = y.device().cuda_stream();
        let (y, _y) = cuda::view(y, y_l, &stream)?;
        let (gate, _gate) = cuda::view(gate, gate_l, &stream)?;
        let (out, _out) = cuda::view_mut(out, out_l, &stream)?;
        let args = GatedResidualArgs::new(Source::InPlace, y, gate, out);
        self.0.record(&mut cuda::recorder(&stream), args).map_err(fault)
    }
}
