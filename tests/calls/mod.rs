//! Every op and every bridge on a device, as calls that can be made again and again: each with
//! operands and a workspace of its own, at sizes that the CPU backend deals to several threads.

#![allow(dead_code, reason = "each test uses a part")]

use std::sync::Arc;

use xattn::bench::RandomWeights;
use xattn::bench::weights::Text;
use xattn::bridge::{
    DenseWeights, GatedBlock, GatedBlockArgs, GatedBlockCall, GatedBlockConfig, HeadArgs, HeadCall, ItcHeads, ItmHead,
    LanguageProjection, LmHead, MediaCache, Objective, PerceiverResampler, Precision, ProjectMediaArgs,
    ProjectMediaCall, QFormer, QFormerArgs, QFormerCall, QFormerConfig, ResamplerArgs, ResamplerCall, ResamplerConfig,
};
use xattn::ops::{
    Activation, Attention, AttentionArgs, GatedResidual, GatedResidualArgs, Keys, Linear, LinearArgs, Matrix, Media,
    MediaIndex, MediaIndexArgs, MediaSource, Norm, NormArgs, NormKind, Operands, RowReduce, Source, Visibility,
};
use xattn::verify::generate::Rng;
use xattn::{DType, Device, Dispatch, HostTensor, Recorder, Result, Tensor, Weight, WeightSource, Workspace};

/// What is asked of a call.
enum Ask<'a> {
    /// To be enqueued; the functions are called when all operands have been made, and right after.
    Enqueue(&'a mut Recorder<'static>, &'a mut Workspace, [&'a mut dyn FnMut(); 2]),
    /// For the bytes of its results.
    Read(&'a mut Vec<u8>),
}

/// An op or a bridge, prepared, with its operands.
pub struct Call {
    pub name: &'static str,
    /// How often it hands work to threads, at most.
    pub hands: usize,
    device: Device,
    workspace: Workspace,
    answer: Box<dyn FnMut(Ask<'_>) -> Result<()> + Send>,
}

impl Call {
    /// Enqueues it once and waits. `begin` is called last before, `end` first after it.
    pub fn enqueue(&mut self, begin: &mut dyn FnMut(), end: &mut dyn FnMut()) -> Result<()> {
        let mut recorder = self.device.recorder()?;
        (self.answer)(Ask::Enqueue(&mut recorder, &mut self.workspace, [begin, end]))?;
        self.device.finish(recorder)
    }

    /// Runs it once and returns the bytes of all its results.
    pub fn bits(&mut self) -> Result<Vec<u8>> {
        self.enqueue(&mut || (), &mut || ())?;
        let mut bytes = Vec::new();
        (self.answer)(Ask::Read(&mut bytes))?;
        Ok(bytes)
    }
}

/// A [`Call`]: its name, device and how often it hands work to threads, the kind of operands, how
/// it is prepared from their layouts, the tensors it writes, and an expression for the operands.
macro_rules! call {
    ($name:literal, $device:expr, $hands:expr, $kind:ty, $prepare:expr, [$($out:ident),*], $args:expr) => {{
        let device: Device = $device.clone();
        let shapes = <$kind as xattn::Shapes>::shapes(&$args).unwrap();
        let prepared = $prepare(shapes).unwrap();
        let workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
        let hands = $hands(&prepared);
        let on = device.clone();
        let answer = move |ask: Ask<'_>| match ask {
            Ask::Enqueue(recorder, workspace, [begin, end]) => {
                let args = $args;
                begin();
                let result = prepared.enqueue(recorder, args, workspace);
                end();
                result
            }
            Ask::Read(bytes) => {
                $(bytes.extend_from_slice(&$out.download(&on)?.bytes()?);)*
                Ok(())
            }
        };
        Call { name: $name, hands, device, workspace, answer: Box::new(answer) }
    }};
}

/// Makes tensors on a device.
pub struct Lab {
    device: Device,
    rng: Rng,
}

impl Lab {
    pub fn new(device: &Device) -> Self {
        Lab { device: device.clone(), rng: Rng::new(11) }
    }

    fn host(&mut self, shape: &[usize]) -> HostTensor<'static> {
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| self.rng.normal() as f32).collect();
        HostTensor::from_slice(&values, shape).unwrap()
    }

    fn real(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let host = self.host(shape);
        Tensor::upload(&self.device, &host, dtype).unwrap()
    }

    fn zeros(&self, dtype: DType, shape: &[usize]) -> Tensor {
        Tensor::zeros(&self.device, dtype, shape).unwrap()
    }

    fn ints(&self, values: &[i32], shape: &[usize]) -> Tensor {
        Tensor::upload(&self.device, &HostTensor::from_slice(values, shape).unwrap(), DType::I32).unwrap()
    }

    fn words(&self, values: &[u32], shape: &[usize]) -> Tensor {
        Tensor::upload(&self.device, &HostTensor::from_slice(values, shape).unwrap(), DType::U32).unwrap()
    }

    /// φ that rises along rows from 0 to `media`.
    fn media_index(&self, batch: usize, rows: usize, media: usize) -> Tensor {
        let phi: Vec<i32> = (0..batch * rows).map(|i| ((i % rows) * (media + 1) / rows) as i32).collect();
        self.ints(&phi, &[batch, rows])
    }

    /// Packs a matrix: what is handed to threads besides ops.
    pub fn weight(&mut self, dtype: DType) -> Weight {
        let matrix = self.host(&[N, K]);
        Weight::prepare(&self.device, &WeightSource::stacked(vec![matrix]), dtype).unwrap()
    }

    /// Each op, `linear` with every kind of matrix.
    pub fn ops(&mut self) -> Vec<Call> {
        let mut calls = vec![self.media_index_call(), self.norm(), self.gated_residual()];
        calls.extend([self.attention(false), self.attention(true)]);
        calls.extend([self.linear_prepared(), self.linear_view(), self.linear_pair()]);
        calls
    }

    /// Each bridge.
    pub fn bridges(&mut self) -> Vec<Call> {
        let mut calls = vec![self.project_media(), self.gated_block(), self.fill(), self.resampler()];
        calls.extend([self.qformer(0), self.qformer(19)]);
        calls.extend(self.heads());
        calls
    }
}

const F32: DType = DType::F32;
const BATCH: usize = 2;
const ROWS: usize = 48;
const N: usize = 160;
const K: usize = 208;

/// The ops.
impl Lab {
    fn attention(&mut self, by_media: bool) -> Call {
        let (media, keys, heads, dim) = (3, 24, 4, 32);
        let q = self.real(F32, &[BATCH, ROWS, heads, dim]);
        let [k, v] = [0, 1].map(|_| self.real(DType::BF16, &[BATCH, media * keys, heads, dim]));
        let phi = self.media_index(BATCH, ROWS, media);
        let mut out = self.zeros(F32, &[BATCH, ROWS, heads, dim]);
        let mut lse = self.zeros(F32, &[BATCH, ROWS, heads]);
        let mut seen = self.zeros(DType::U32, &[BATCH, ROWS]);
        let op = Attention::for_head_dim(dim);
        let device = self.device.clone();
        call!("attention", self.device, one, Attention, |shapes| op.prepare(&device, shapes), [out, lse, seen], {
            let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
            if by_media {
                let media = Media { media_index: phi.view(), keys_per_media: keys as u32, plan: None };
                args.visibility = Visibility::SameMedia(media);
            }
            args.log_sum_exp = Some(lse.view_mut());
            args.row_visible = Some(seen.view_mut());
            args
        })
    }

    fn media_index_call(&mut self) -> Call {
        let rows = 20_000;
        let ids: Vec<i32> = (0..BATCH * rows).map(|i| (i % 41) as i32).collect();
        let ids = self.ints(&ids, &[BATCH, rows]);
        let mut phi = self.zeros(DType::I32, &[BATCH, rows]);
        let mut plan = self.zeros(DType::U32, &[BATCH, 1 + rows, 2]);
        let device = self.device.clone();
        let prepare = |shapes| MediaIndex::default().prepare(&device, shapes);
        call!("media_index", self.device, one, MediaIndex, prepare, [phi, plan], {
            let mut args = MediaIndexArgs::new(MediaSource::Tokens { ids: ids.view(), token: 7 }, phi.view_mut());
            args.plan = Some(plan.view_mut());
            args
        })
    }

    fn norm(&mut self) -> Call {
        let shape = [BATCH, 256, 1, K];
        let (x, weight, bias) = (self.real(DType::BF16, &shape), self.real(DType::F16, &[K]), self.real(F32, &[K]));
        let mut out = self.zeros(F32, &shape);
        let op = Norm { kind: NormKind::Layer, eps: 1e-5 };
        let device = self.device.clone();
        call!("norm", self.device, one, Norm, |shapes| op.prepare(&device, shapes), [out], {
            NormArgs::new(Source::From(x.view()), Some(weight.view()), Some(bias.view()), out.view_mut())
        })
    }

    fn gated_residual(&mut self) -> Call {
        let shape = [BATCH, 256, N];
        let (x, y, gate) = (self.real(F32, &shape), self.real(DType::F16, &shape), self.real(F32, &[1]));
        let mut out = self.zeros(F32, &shape);
        let device = self.device.clone();
        let prepare = |shapes| GatedResidual.prepare(&device, shapes);
        call!("gated_residual", self.device, one, GatedResidual, prepare, [out], {
            GatedResidualArgs::new(Source::From(x.view()), y.view(), gate.view(), out.view_mut())
        })
    }

    fn linear_prepared(&mut self) -> Call {
        let (x, residual) = (self.real(F32, &[BATCH, ROWS, K]), self.real(F32, &[BATCH, ROWS, N]));
        let (gate, weight) = (self.real(F32, &[1]), Arc::new(self.weight(DType::BF16)));
        let mut out = self.zeros(F32, &[BATCH, ROWS, N]);
        let op = Linear { activation: Activation::Gelu, ..Linear::default() };
        let device = self.device.clone();
        call!("linear", self.device, one, Linear, |shapes| op.prepare(&device, shapes), [out], {
            let mut args = LinearArgs::new(x.view(), Matrix::Prepared(weight.clone()), out.view_mut());
            args.residual = Some(Source::From(residual.view()));
            args.gate = Some(gate.view());
            args
        })
    }

    fn linear_view(&mut self) -> Call {
        let (x, weight) = (self.real(F32, &[BATCH, ROWS, 5 * K]), self.real(DType::F16, &[N, 5 * K]));
        let mut out = self.zeros(F32, &[BATCH, 1, N]);
        let op = Linear { reduce: RowReduce::Max, ..Linear::default() };
        let device = self.device.clone();
        call!("linear of a view", self.device, twice, Linear, |shapes| op.prepare(&device, shapes), [out], {
            LinearArgs::new(x.view(), Matrix::View(weight.view()), out.view_mut())
        })
    }

    fn linear_pair(&mut self) -> Call {
        let x = self.real(F32, &[BATCH, ROWS, K]);
        let [gate, up] = [0, 1].map(|_| self.real(F32, &[N, K]));
        let mut out = self.zeros(DType::BF16, &[BATCH, ROWS, N]);
        let op = Linear { activation: Activation::SwiGlu, ..Linear::default() };
        let device = self.device.clone();
        call!("linear of a pair", self.device, twice, Linear, |shapes| op.prepare(&device, shapes), [out], {
            LinearArgs::new(x.view(), Matrix::Pair(gate.view(), up.view()), out.view_mut())
        })
    }
}

/// Work that is handed to threads in a call of an op, and in one that packs its matrix before.
fn one<T>(_: &T) -> usize {
    1
}

fn twice<T>(_: &T) -> usize {
    2
}

fn steps<C: Operands>(prepared: &xattn::PreparedBridge<C>) -> usize {
    prepared.steps().count()
}

fn block_config() -> GatedBlockConfig {
    let mut config = GatedBlockConfig::new(96, 64, 4, 16);
    config.ffn_hidden = 128;
    config
}

const MEDIA: usize = 3;
const PER_MEDIA: usize = 16;
const PRECISION: Precision = Precision { activations: F32, weights: DType::BF16 };

/// The bridges.
impl Lab {
    fn block(&self) -> GatedBlock {
        let config = block_config();
        let weights = RandomWeights::new(3).gated_block(&config).unwrap();
        GatedBlock::new(&self.device, &config, &weights, PRECISION).unwrap()
    }

    fn project_media(&mut self) -> Call {
        let (block, config) = (self.block(), block_config());
        let media = self.real(F32, &[BATCH * MEDIA, PER_MEDIA, config.media_width]);
        let mut kv = self.zeros(F32, &[BATCH * MEDIA, PER_MEDIA, config.kv_width()]);
        let prepare = |shapes| block.prepare_media(shapes);
        call!("project media", self.device, steps, ProjectMediaCall, prepare, [kv], {
            ProjectMediaArgs { media: media.view(), kv: kv.view_mut() }
        })
    }

    fn gated_block(&mut self) -> Call {
        let (block, config) = (self.block(), block_config());
        let kv = self.real(F32, &[BATCH, MEDIA * PER_MEDIA, config.kv_width()]);
        let x = self.real(F32, &[BATCH, ROWS, config.width]);
        let phi = self.media_index(BATCH, ROWS, MEDIA);
        let mut out = self.zeros(F32, &[BATCH, ROWS, config.width]);
        let prepare = |shapes| block.prepare(shapes);
        call!("gated block", self.device, steps, GatedBlockCall, prepare, [out], {
            let visibility = config.visibility(phi.view(), PER_MEDIA as u32, None).unwrap();
            GatedBlockArgs::new(Source::From(x.view()), kv.view(), visibility, out.view_mut())
        })
    }

    fn fill(&mut self) -> Call {
        let (block, config) = (self.block(), block_config());
        let mut cache = MediaCache::new(&[&block], BATCH, MEDIA, PER_MEDIA).unwrap();
        let media = self.real(F32, &[2, PER_MEDIA, config.media_width]);
        let prepared = cache.prepare_fill(&[&block], 2).unwrap();
        let workspace = Workspace::new(&self.device, prepared.workspace_bytes()).unwrap();
        let device = self.device.clone();
        let answer = move |ask: Ask<'_>| match ask {
            Ask::Enqueue(recorder, workspace, [begin, end]) => {
                let media = media.view();
                begin();
                let result = cache.enqueue_fill(&prepared, recorder, 1, 1, &media, workspace);
                end();
                result
            }
            Ask::Read(bytes) => {
                bytes.extend_from_slice(&device.download(&cache.kv(0)?)?.bytes()?);
                Ok(())
            }
        };
        Call { name: "media cache", hands: 2, device: self.device.clone(), workspace, answer: Box::new(answer) }
    }

    fn resampler(&mut self) -> Call {
        let mut config = ResamplerConfig::new(96, 24, 4, 16);
        (config.layers, config.kv_heads, config.ffn_hidden) = (2, 2, 128);
        config.activation = Activation::SquaredRelu;
        let weights = RandomWeights::new(3).resampler(&config).unwrap();
        let resampler = PerceiverResampler::new(&self.device, &config, &weights, PRECISION).unwrap();
        let features = self.real(F32, &[BATCH, 2, 64, config.feature_width()]);
        let mut out = self.zeros(F32, &[BATCH, 2, config.latents, config.output_width()]);
        let prepare = |shapes| resampler.prepare(1, shapes);
        call!("resampler", self.device, steps, ResamplerCall, prepare, [out], {
            ResamplerArgs::new(features.view(), out.view_mut())
        })
    }

    /// Queries over an image and text; or text behind cached rows, which leaves K and V.
    fn qformer(&mut self, past_rows: usize) -> Call {
        let mut config = QFormerConfig::new(96, 4, 64);
        (config.layers, config.queries, config.ffn_hidden) = (2, 16, 128);
        let text = Text { vocabulary: 50, positions: 32 };
        let weights = RandomWeights::new(9).qformer(&config, Some(text)).unwrap();
        let qformer = QFormer::new(&self.device, &config, &weights, PRECISION).unwrap();
        let features = self.real(F32, &[BATCH, 64, config.encoder_width]);
        let ids = self.ints(&(0..BATCH as i32 * 8).collect::<Vec<_>>(), &[BATCH, 8]);
        let lengths = self.words(&[8, 5], &[BATCH]);
        let rows = if past_rows > 0 { 8 } else { config.queries + 8 };
        let caches = if past_rows > 0 { config.layers } else { 0 };
        let past: Vec<Tensor> = (0..caches).map(|_| self.real(F32, &[BATCH, past_rows, 2 * config.width])).collect();
        let mut present: Vec<Tensor> = (0..caches).map(|_| self.zeros(F32, &[BATCH, rows, 2 * config.width])).collect();
        let mut hidden = self.zeros(F32, &[BATCH, rows, config.width]);
        let prepare = |shapes| qformer.prepare(Objective::Bidirectional, past_rows, shapes);
        call!("q-former", self.device, steps, QFormerCall, prepare, [hidden], {
            let mut args = QFormerArgs::text(ids.view(), Keys::Lengths(lengths.view()), hidden.view_mut());
            args.features = (past_rows == 0).then(|| features.view());
            args.past = past.iter().map(Tensor::view).collect();
            args.present = present.iter_mut().map(Tensor::view_mut).collect();
            args
        })
    }

    fn heads(&mut self) -> [Call; 5] {
        let mut random = RandomWeights::new(5);
        let mut dense = |n| -> DenseWeights<'static> { random.biased(n, 96).unwrap() };
        let device = self.device.clone();
        let projection = LanguageProjection::new(&device, &dense(128), PRECISION).unwrap();
        let itc = ItcHeads::new(&device, &dense(64), &dense(64), PRECISION).unwrap();
        let itm = ItmHead::new(&device, &dense(2), PRECISION).unwrap();
        let lm = LmHead::new(&device, &random.lm_head(96, 200).unwrap(), 1e-12, PRECISION).unwrap();
        let mut operands = |rows: usize, width: usize, reduced: bool| {
            let hidden = self.real(F32, &[BATCH, rows, 96]);
            let out = self.zeros(F32, &[BATCH, if reduced { 1 } else { rows }, width]);
            (hidden, out)
        };
        macro_rules! head {
            ($name:literal, $operands:expr, $prepare:expr) => {{
                let (hidden, mut out) = $operands;
                call!($name, device, steps, HeadCall, $prepare, [out], {
                    HeadArgs { hidden: hidden.view(), out: out.view_mut() }
                })
            }};
        }
        [
            head!("language projection", operands(ROWS, 128, false), |shapes| projection.prepare(shapes)),
            head!("itc image", operands(ROWS, 64, false), |shapes| itc.prepare_image(shapes)),
            head!("itc text", operands(1, 64, false), |shapes| itc.prepare_text(shapes)),
            head!("itm head", operands(ROWS, 2, true), |shapes| itm.prepare(shapes)),
            head!("lm head", operands(ROWS, 200, false), |shapes| lm.prepare(shapes)),
        ]
    }
}
