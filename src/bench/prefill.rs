//! Prefill over fresh media: φ, the projection of K and V into a media cache, then a gated block
//! that reads the cache. The work that public modules do in one call.

use super::call::{Input, Runnable};
use super::ops::{unread, upload};
use super::steps::{self, Step};
use super::weights::RandomWeights;
use crate::bridge::{
    GatedBlock, GatedBlockArgs, GatedBlockCall, GatedBlockConfig, MediaCache, Precision, PreparedMediaFill,
};
use crate::device::UNTOUCHED;
use crate::ops::{Keys, Media, MediaIndex, MediaIndexArgs, MediaSource, Source, Visibility};
use crate::verify::cases::AttentionCase;
use crate::{DType, Device, Dispatch, HostTensor, Prepared, PreparedBridge, Recorder, Result, Tensor, Workspace};

/// Shapes of a prefill of one sequence.
#[derive(Debug, Clone)]
pub(super) struct PrefillCase {
    pub config: GatedBlockConfig,
    pub rows: usize,
    pub media: usize,
    pub per_media: usize,
}

/// φ from where media stand, or bits that are given.
enum Sight {
    Phi { op: Box<Prepared<MediaIndex>>, locations: Input, phi: Tensor, keys_per_media: u32 },
    Bits { bits: Input, keys_per_block: u32 },
}

struct Prefill {
    device: Device,
    sight: Sight,
    media: Input,
    fill: PreparedMediaFill,
    cache: MediaCache,
    text: Input,
    block: PreparedBridge<GatedBlockCall>,
    out: Tensor,
    workspace: Workspace,
    /// Bytes of K and V that no row sees.
    unread: u64,
}

impl PrefillCase {
    /// `attention` is that of the block.
    pub fn build(
        &self,
        attention: &AttentionCase,
        device: &Device,
        dtype: DType,
        precision: Precision,
    ) -> Result<Box<dyn Runnable>> {
        let &PrefillCase { ref config, rows, media, per_media } = self;
        let mut random = RandomWeights::new(5).with_matrices(dtype);
        let bridge = GatedBlock::new(device, config, &random.gated_block(config)?, precision)?;
        let mut real = |shape: &[usize]| -> Result<Input> {
            Input::new(device, &random.rounded(0.0, 1.0, shape, dtype)?, precision.activations)
        };
        let fresh = real(&[media, per_media, config.media_width])?;
        let text = real(&[1, rows, config.width])?;

        let sight = match upload(attention, device)? {
            Visibility::MediaBits { bits, keys_per_block } => Sight::Bits { bits, keys_per_block },
            _ => {
                let locations = HostTensor::from_slice(&locations(&attention.media_index(1, rows)), &[1, rows])?;
                let locations = Input::new(device, &locations, DType::U32)?;
                let phi = Tensor::zeros(device, DType::I32, &[1, rows])?;
                let shapes = phi_args(locations.view()?.spec(), phi.spec());
                let op = Box::new(MediaIndex::default().prepare(device, shapes)?);
                Sight::Phi { op, locations, phi, keys_per_media: per_media as u32 }
            }
        };
        let cache = MediaCache::new(&[&bridge], 1, media, per_media)?;
        let fill = cache.prepare_fill(&[&bridge], media)?;
        let out = Tensor::zeros(device, precision.activations, &[1, rows, config.width])?;
        let visibility = sight.visibility(|input| Ok(input.view()?.spec()), Tensor::spec)?;
        let block = bridge.prepare(block_args(text.view()?.spec(), cache.spec(), visibility, out.spec()))?;
        let phi_workspace = match &sight {
            Sight::Phi { op, .. } => op.workspace_bytes(),
            Sight::Bits { .. } => 0,
        };
        let bytes = phi_workspace.max(fill.workspace_bytes()).max(block.workspace_bytes());
        Ok(Box::new(Prefill {
            device: device.clone(),
            sight,
            media: fresh,
            fill,
            cache,
            text,
            block,
            out,
            workspace: Workspace::new(device, bytes)?,
            unread: (unread(attention)? * config.kv_width() * precision.activations.size()) as u64,
        }))
    }

    /// The same structure, small enough for the reference.
    pub fn reduced(&self, config: GatedBlockConfig) -> Self {
        PrefillCase { config, rows: self.rows.min(20), media: self.media.min(3), per_media: 5 }
    }
}

/// Where the media of one row of text stand: 1 for their tokens.
fn locations(phi: &[i32]) -> Vec<u32> {
    let before = std::iter::once(&0).chain(phi);
    phi.iter().zip(before).map(|(now, before)| u32::from(now > before)).collect()
}

fn phi_args<R, W>(locations: R, media_index: W) -> MediaIndexArgs<R, W> {
    let source = MediaSource::Locations(locations);
    MediaIndexArgs { source, carry_in: None, carry_out: None, media_count: None, media_index, plan: None }
}

fn block_args<R, W>(x: R, kv: R, visibility: Visibility<R>, out: W) -> GatedBlockArgs<R, W> {
    let x = Source::From(x);
    GatedBlockArgs { x, x_offsets: None, kv, keys: Keys::All, slots: None, kv_offsets: None, visibility, out }
}

impl Sight {
    fn visibility<'a, R>(
        &'a self,
        input: impl Fn(&'a Input) -> Result<R>,
        tensor: impl Fn(&'a Tensor) -> R,
    ) -> Result<Visibility<R>> {
        Ok(match self {
            Sight::Phi { phi, keys_per_media, .. } => {
                Visibility::SameMedia(Media { media_index: tensor(phi), keys_per_media: *keys_per_media, plan: None })
            }
            Sight::Bits { bits, keys_per_block } => {
                Visibility::MediaBits { bits: input(bits)?, keys_per_block: *keys_per_block }
            }
        })
    }
}

impl Runnable for Prefill {
    fn device(&self) -> &Device {
        &self.device
    }

    fn enqueue(&mut self, recorder: &mut Recorder<'_>) -> Result<()> {
        if let Sight::Phi { op, locations, phi, .. } = &mut self.sight {
            op.enqueue(recorder, phi_args(locations.view()?, phi.view_mut()), &mut self.workspace)?;
        }
        self.cache.enqueue_fill(&self.fill, recorder, 0, 0, &self.media.view()?, &mut self.workspace)?;
        let visibility = self.sight.visibility(Input::view, Tensor::view)?;
        let args = block_args(self.text.view()?, self.cache.kv(0)?, visibility, self.out.view_mut());
        self.block.enqueue(recorder, args, &mut self.workspace)
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = match &self.sight {
            Sight::Phi { op, .. } => Step::of_op(op),
            Sight::Bits { .. } => Vec::new(),
        };
        steps.extend(self.fill.bridges().iter().flat_map(Step::of_bridge));
        steps.extend(Step::of_bridge(&self.block));
        steps::without(&mut steps, self.unread);
        steps
    }

    fn poison(&mut self) -> Result<()> {
        self.out.fill(&self.device, UNTOUCHED)
    }

    fn workspace_bytes(&self) -> usize {
        self.workspace.bytes()
    }

    fn largest_tensor_bytes(&self) -> usize {
        self.block.largest_tensor_bytes().max(self.fill.largest_tensor_bytes())
    }

    fn outputs(&self) -> Result<Vec<HostTensor<'static>>> {
        Ok(vec![self.out.download(&self.device)?])
    }
}
