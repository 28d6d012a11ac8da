//! A Flamingo-style bridge from a checkpoint: images through the resampler into a media cache, then
//! prefill and a decode step.
//!
//!     cargo run --release --example flamingo [CHECKPOINT]
//!
//! CHECKPOINT is a file or a folder of OpenFlamingo's names. Without one, a small one of random
//! weights is written to a temporary folder. Features and text are random: they stand for what a
//! vision encoder and the layers of a language model hand over.

use std::path::Path;

use xattn::bridge::{
    GatedBlock, GatedBlockArgs, GatedBlockCall, MediaCache, PerceiverResampler, Precision, ResamplerArgs, ResamplerCall,
};
use xattn::checkpoint::{Checkpoint, Overrides};
use xattn::ops::{MediaIndex, MediaIndexArgs, MediaSource, Source};
use xattn::{DType, Device, Dispatch, Error, HostTensor, Result, Shapes, Tensor};

/// Images of the prompt, tokens that the vision encoder makes of each, and the prompt: where 1
/// stands, an image begins.
const IMAGES: usize = 2;
const FEATURES: usize = 256;
const LOCATIONS: [u32; 6] = [0, 1, 0, 1, 0, 0];

/// Weights are read from the file as they are packed for the device.
fn load(path: &Path, device: &Device) -> Result<(PerceiverResampler, Vec<GatedBlock>)> {
    let checkpoint = Checkpoint::open(path, None)?;
    let bridges = checkpoint.bridges(&Overrides::default())?;
    let precision = Precision::uniform(DType::F32);
    let (config, weights) =
        bridges.resampler.ok_or_else(|| Error::argument("flamingo", "checkpoint", "a resampler", "none"))?;
    let resampler = PerceiverResampler::new(device, &config, &weights, precision)?;
    let blocks = bridges.gated_blocks.iter();
    let blocks = blocks.map(|block| GatedBlock::new(device, &block.config, &block.weights, precision));
    Ok((resampler, blocks.collect::<Result<_>>()?))
}

/// Once per image: features become media tokens, and these become K and V of every block.
fn see(
    device: &Device,
    resampler: &PerceiverResampler,
    blocks: &[GatedBlock],
    features: &Tensor,
) -> Result<MediaCache> {
    let latents = resampler.config().latents;
    let mut media = Tensor::zeros(device, DType::F32, &[1, IMAGES, latents, resampler.config().output_width()])?;
    let args = ResamplerArgs::new(features.view(), media.view_mut());
    resampler.prepare(1, ResamplerCall::shapes(&args)?)?.run(args)?;
    let blocks: Vec<&GatedBlock> = blocks.iter().collect();
    let mut cache = MediaCache::new(&blocks, 1, IMAGES, latents)?;
    cache.fill(&blocks, 0, 0, &media.view().merge(0)?)?;
    Ok(cache)
}

/// At every step, before a layer of the language model: rows of text read the media that φ names.
/// Prefill and decode are the same call.
fn read(block: &GatedBlock, layer: usize, cache: &MediaCache, phi: &Tensor, text: &mut Tensor) -> Result<()> {
    let visibility = block.config().visibility(phi.view(), cache.keys_per_media() as u32, None)?;
    let args = GatedBlockArgs::new(Source::InPlace, cache.kv(layer)?, visibility, text.view_mut());
    block.prepare(GatedBlockCall::shapes(&args)?)?.run(args)
}

fn main() -> Result<()> {
    let device = Device::cpu();
    let (resampler, blocks) = match std::env::args_os().nth(1) {
        Some(path) => load(Path::new(&path), &device)?,
        None => {
            let path = std::env::temp_dir().join(format!("xattn-flamingo-{}.safetensors", std::process::id()));
            let loaded = small::write(&path).and_then(|()| load(&path, &device));
            let _ = std::fs::remove_file(&path);
            loaded?
        }
    };
    let mut random = small::Random(1);
    let features = random.tensor(&device, &[1, IMAGES, FEATURES, resampler.config().feature_width()])?;
    let cache = see(&device, &resampler, &blocks, &features)?;

    // φ of the prompt: 0 1 1 2 2 2.
    let rows = LOCATIONS.len();
    let locations = Tensor::upload(&device, &HostTensor::from_slice(&LOCATIONS, &[1, rows])?, DType::U32)?;
    let mut phi = Tensor::zeros(&device, DType::I32, &[1, rows])?;
    let source = MediaSource::Locations(locations.view());
    MediaIndex::default().run(&device, MediaIndexArgs::new(source, phi.view_mut()))?;
    let phi = phi.download(&device)?.to_vec::<i32>()?;
    println!("φ of the prompt: {phi:?}");

    let width = blocks[0].config().width;
    let text = random.numbers(rows * width);
    let run = |rows: std::ops::Range<usize>| -> Result<Vec<f32>> {
        let n = rows.len();
        let phi = Tensor::upload(&device, &HostTensor::from_slice(&phi[rows.clone()], &[1, n])?, DType::I32)?;
        let host = HostTensor::from_slice(&text[rows.start * width..rows.end * width], &[1, n, width])?;
        let mut text = Tensor::upload(&device, &host, DType::F32)?;
        for (layer, block) in blocks.iter().enumerate() {
            read(block, layer, &cache, &phi, &mut text)?;
            // Here the language model's own layers run.
        }
        text.download(&device)?.to_f32()
    };
    let prefill = run(0..rows)?;
    // The last token alone, as a decode step has it: the cache is read, no image is projected
    // again.
    let decode = run(rows - 1..rows)?;
    let difference = prefill[(rows - 1) * width..].iter().zip(&decode).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{} blocks; the decoded row differs from that of prefill by {difference:e}", blocks.len());
    assert!(difference < 1e-5);
    Ok(())
}

/// A checkpoint as OpenFlamingo names it, small and random.
mod small {
    use safetensors::tensor::TensorView;
    use safetensors::{Dtype, SafeTensorError, serialize_to_file};

    use super::*;

    pub struct Random(pub u64);

    impl Random {
        /// Uniform in [-0.5, 0.5): a linear congruential generator, of which the upper bits are
        /// taken.
        pub fn numbers(&mut self, n: usize) -> Vec<f32> {
            let mut next = || {
                self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            };
            (0..n).map(|_| next()).collect()
        }

        pub fn tensor(&mut self, device: &Device, shape: &[usize]) -> Result<Tensor> {
            let host = HostTensor::from_slice(&self.numbers(shape.iter().product()), shape)?;
            Tensor::upload(device, &host, DType::F32)
        }
    }

    /// Heads are 8 of 64, as in every OpenFlamingo; media 32 wide, text 48 wide; two layers and two
    /// blocks.
    const INNER: usize = 512;
    const MEDIA: usize = 32;
    const TEXT: usize = 48;

    fn tensors() -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
        let pair = |name: &str| ["weight", "bias"].map(|part| format!("{name}.{part}"));
        add("perceiver.latents".into(), &[4, MEDIA]);
        pair("perceiver.norm").into_iter().for_each(|name| add(name, &[MEDIA]));
        for layer in 0..2 {
            let of = |name: &str| format!("perceiver.layers.{layer}.{name}");
            for norm in ["0.norm_media", "0.norm_latents", "1.0"] {
                pair(&of(norm)).into_iter().for_each(|name| add(name, &[MEDIA]));
            }
            add(of("0.to_q.weight"), &[INNER, MEDIA]);
            add(of("0.to_kv.weight"), &[2 * INNER, MEDIA]);
            add(of("0.to_out.weight"), &[MEDIA, INNER]);
            add(of("1.1.weight"), &[4 * MEDIA, MEDIA]);
            add(of("1.3.weight"), &[MEDIA, 4 * MEDIA]);
            let of = |name: &str| format!("lang_encoder.gated_cross_attn_layers.{layer}.{name}");
            for norm in ["attn.norm", "ff.0"] {
                pair(&of(norm)).into_iter().for_each(|name| add(name, &[TEXT]));
            }
            add(of("attn.to_q.weight"), &[INNER, TEXT]);
            add(of("attn.to_kv.weight"), &[2 * INNER, MEDIA]);
            add(of("attn.to_out.weight"), &[TEXT, INNER]);
            add(of("attn_gate"), &[1]);
            add(of("ff.1.weight"), &[4 * TEXT, TEXT]);
            add(of("ff.3.weight"), &[TEXT, 4 * TEXT]);
            add(of("ff_gate"), &[1]);
        }
        all
    }

    pub fn write(path: &Path) -> Result<()> {
        let mut random = Random(2);
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = tensors()
            .into_iter()
            .map(|(name, shape)| {
                let bytes = random.numbers(shape.iter().product()).into_iter().flat_map(f32::to_le_bytes).collect();
                (name, shape, bytes)
            })
            .collect();
        let fault = |error: SafeTensorError| Error::argument("flamingo", "checkpoint", "a file", error);
        let views =
            tensors.iter().map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
        let views: Vec<(&String, TensorView<'_>)> = views.collect::<std::result::Result<_, _>>().map_err(fault)?;
        serialize_to_file(views, None, path).map_err(fault)
    }
}
