//! What enqueueing takes from Rust's heap on a CUDA device: nothing, whoever multiplies and
//! whichever kernel attends, nor does a captured graph's launch. Runs on an NVIDIA device, or with
//! `scripts/emulated-cuda cargo test --features cuda --test cuda_heap`; the emulator's own heap is
//! that of C++ and does not count.

use xattn::ops::{
    Activation, Attention, AttentionArgs, GatedResidual, GatedResidualArgs, Keys, Linear, LinearArgs, Matrix, Media,
    MediaIndex, MediaIndexArgs, MediaSource, Norm, NormArgs, NormKind, Operands, RowReduce, Segment, Source,
    Visibility,
};
use xattn::{
    CudaAttentionVariant, CudaCublasLt, CudaLinear, CudaOptions, DType, Device, Dispatch, HostTensor, Shapes, Tensor,
    Weight, WeightSource, Workspace,
};

#[path = "counting/mod.rs"]
mod counting;
#[path = "cuda/decode.rs"]
#[expect(dead_code, reason = "this program needs a part of it")]
mod decode;
#[path = "cuda/support.rs"]
#[expect(dead_code, reason = "this program needs a part of it")]
mod support;

use counting::blocks_of;
use decode::{Decode, block};
use support::{integers, is_hopper, opened, tensor};

#[test]
fn blocks_are_counted() {
    counting::check();
}

/// Enqueues an op and its captured graph; objects of the first call are kept.
macro_rules! expect_no_blocks {
    ($device:expr, $what:expr, $op:expr, $args:expr) => {{
        let (device, op, what) = (&$device, $op, $what);
        let prepared = op.prepare(device, ShapesOf::shapes_of(op, &$args)).unwrap();
        let mut workspace = Workspace::new(device, prepared.workspace_bytes()).unwrap();
        let mut recorder = device.recorder().unwrap();
        prepared.enqueue(&mut recorder, $args, &mut workspace).unwrap();
        for _ in 0..3 {
            let args = $args;
            let blocks = blocks_of(|| prepared.enqueue(&mut recorder, args, &mut workspace).unwrap());
            assert_eq!(blocks, 0, "{what}");
        }
        let args = $args;
        // SAFETY: operands and workspace live to the end of this block, the graph does not outlive
        // it.
        let mut graph = unsafe {
            device.capture(&mut recorder, |recorder| prepared.enqueue(recorder, args, &mut workspace)).unwrap()
        };
        graph.launch(&mut recorder).unwrap();
        assert_eq!(blocks_of(|| graph.launch(&mut recorder).unwrap()), 0, "{what}, a graph");
        device.finish(recorder).unwrap();
    }};
}

/// Layouts of views.
trait ShapesOf: Operands {
    fn shapes_of(
        _: &Self,
        args: &Self::Args<xattn::View<'_>, xattn::ViewMut<'_>>,
    ) -> Self::Args<xattn::Spec, xattn::Spec> {
        Self::shapes(args).unwrap()
    }
}
impl<O: Operands> ShapesOf for O {}

fn numbers(device: &Device, shape: &[usize], dtype: DType) -> Tensor {
    tensor(device, &integers(shape.iter().product(), 1), shape, dtype)
}

fn ints(device: &Device, values: &[i32], shape: &[usize]) -> Tensor {
    Tensor::upload(device, &HostTensor::from_slice(values, shape).unwrap(), DType::I32).unwrap()
}

fn words(device: &Device, values: &[u32], shape: &[usize]) -> Tensor {
    Tensor::upload(device, &HostTensor::from_slice(values, shape).unwrap(), DType::U32).unwrap()
}

fn device(change: impl FnOnce(&mut CudaOptions)) -> Option<Device> {
    let mut options = CudaOptions::from_env().unwrap();
    change(&mut options);
    opened(&options)
}

#[test]
fn row_wise_ops_and_media_index() {
    let Some(device) = device(|_| ()) else { return };
    for dtype in [DType::F32, DType::BF16] {
        let (x, weight, bias) =
            (numbers(&device, &[2, 1, 5, 64], dtype), numbers(&device, &[64], dtype), numbers(&device, &[64], dtype));
        let mut out = Tensor::zeros(&device, dtype, &[2, 1, 5, 64]).unwrap();
        expect_no_blocks!(
            device,
            "norm",
            &Norm { kind: NormKind::Layer, eps: 1e-5 },
            NormArgs {
                weight: Some(weight.view()),
                bias: Some(bias.view()),
                ..NormArgs::new(Source::From(x.view()), None, None, out.view_mut())
            }
        );
        let (y, gate) = (numbers(&device, &[2, 5, 64], dtype), numbers(&device, &[1], DType::F32));
        let mut out = Tensor::zeros(&device, dtype, &[2, 5, 64]).unwrap();
        expect_no_blocks!(
            device,
            "gated_residual",
            &GatedResidual,
            GatedResidualArgs::new(Source::InPlace, y.view(), gate.view(), out.view_mut())
        );
    }
    let tokens = ints(&device, &[7, 1, 7, 2, 3, 7], &[2, 3]);
    let mut phi = Tensor::zeros(&device, DType::I32, &[2, 3]).unwrap();
    let mut plan = Tensor::zeros(&device, DType::U32, &[2, 1 + 3, 2]).unwrap();
    let mut carry = Tensor::zeros(&device, DType::I32, &[2]).unwrap();
    expect_no_blocks!(
        device,
        "media_index",
        &MediaIndex::default(),
        MediaIndexArgs {
            carry_out: Some(carry.view_mut()),
            plan: Some(plan.view_mut()),
            ..MediaIndexArgs::new(MediaSource::Tokens { ids: tokens.view(), token: 7 }, phi.view_mut())
        }
    );
}

/// 80 rows for cuBLASLt, 5 for our kernels; odd columns; with epilogues.
fn products(device: &Device, what: &str, dtype: DType) {
    for (rows, n, k) in [(80, 72, 96), (5, 33, 40)] {
        let (x, w) = (numbers(device, &[2, rows, k], dtype), numbers(device, &[n, k], dtype));
        let (bias, residual) = (numbers(device, &[n], dtype), numbers(device, &[2, rows, n], dtype));
        let source = HostTensor::from_slice(&integers(n * k, 2), &[n, k]).unwrap();
        let packed = std::sync::Arc::new(Weight::prepare(device, &WeightSource::stacked(vec![source]), dtype).unwrap());
        let mut out = Tensor::zeros(device, dtype, &[2, rows, n]).unwrap();
        let plain = Linear::default();
        let what = format!("{what}, {dtype}, {rows} rows");
        expect_no_blocks!(
            *device,
            format!("{what}, plain"),
            &plain,
            LinearArgs::new(x.view(), Matrix::View(w.view()), out.view_mut())
        );
        expect_no_blocks!(
            *device,
            format!("{what}, packed, bias"),
            &plain,
            LinearArgs {
                bias: Some(bias.view()),
                ..LinearArgs::new(x.view(), Matrix::Prepared(packed.clone()), out.view_mut())
            }
        );
        for gates in [1, n] {
            let gate = numbers(device, &[gates], DType::F32);
            expect_no_blocks!(
                *device,
                format!("{what}, {gates} gates"),
                &plain,
                LinearArgs {
                    residual: Some(Source::From(residual.view())),
                    gate: Some(gate.view()),
                    ..LinearArgs::new(x.view(), Matrix::View(w.view()), out.view_mut())
                }
            );
        }
        let relu = Linear { activation: Activation::Relu, ..plain };
        expect_no_blocks!(
            *device,
            format!("{what}, ReLU"),
            &relu,
            LinearArgs { bias: Some(bias.view()), ..LinearArgs::new(x.view(), Matrix::View(w.view()), out.view_mut()) }
        );
        let swiglu = Linear { activation: Activation::SwiGlu, ..plain };
        expect_no_blocks!(
            *device,
            format!("{what}, SwiGLU"),
            &swiglu,
            LinearArgs::new(x.view(), Matrix::Pair(w.view(), w.view()), out.view_mut())
        );
        let mut one = Tensor::zeros(device, dtype, &[2, 1, n]).unwrap();
        let mean = Linear { reduce: RowReduce::Mean, ..plain };
        expect_no_blocks!(
            *device,
            format!("{what}, mean"),
            &mean,
            LinearArgs::new(x.view(), Matrix::View(w.view()), one.view_mut())
        );
    }
}

#[test]
fn products_by_cublaslt() {
    for cublaslt in [CudaCublasLt::Auto, CudaCublasLt::On, CudaCublasLt::TwoPass] {
        let Some(device) = device(|options| options.cublaslt = cublaslt) else { return };
        for dtype in [DType::F32, DType::BF16] {
            products(&device, &format!("{cublaslt:?}"), dtype);
        }
    }
}

#[test]
fn products_by_our_kernels() {
    for linear in [CudaLinear::Any, CudaLinear::Tile64, CudaLinear::Hopper] {
        let Some(device) = device(|options| {
            options.cublaslt = CudaCublasLt::Off;
            options.linear = linear;
        }) else {
            return;
        };
        if linear != CudaLinear::Hopper || is_hopper(&device) {
            products(&device, &format!("{linear:?}"), DType::BF16);
        }
    }
}

#[test]
fn every_kernel_of_attention() {
    let variants = [
        None,
        Some(CudaAttentionVariant::General),
        Some(CudaAttentionVariant::Resampler),
        Some(CudaAttentionVariant::ResamplerSplit),
        Some(CudaAttentionVariant::Decode),
        Some(CudaAttentionVariant::DecodeSplit),
        Some(CudaAttentionVariant::Media),
    ];
    for variant in variants {
        let Some(device) = device(|options| options.attention = variant) else { return };
        let op = Attention::for_head_dim(64);
        let dtype = DType::BF16;
        let (q, kv) = (numbers(&device, &[2, 6, 2, 64], dtype), numbers(&device, &[2, 600, 2, 64], dtype));
        let lengths = words(&device, &[600, 77], &[2]);
        let slots = words(&device, &[1, 0], &[2]);
        let phi = ints(&device, &[0, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 2], &[2, 6]);
        let mut out = Tensor::zeros(&device, dtype, &[2, 6, 2, 64]).unwrap();
        let mut lse = Tensor::zeros(&device, DType::F32, &[2, 6, 2]).unwrap();
        let mut visible = Tensor::zeros(&device, DType::U32, &[2, 6]).unwrap();
        let what = format!("attention by {variant:?}");
        if variant != Some(CudaAttentionVariant::Media) {
            expect_no_blocks!(
                device,
                what.clone(),
                &op,
                AttentionArgs {
                    first: Segment::new(kv.view(), kv.view())
                        .with_keys(Keys::Lengths(lengths.view()))
                        .with_slots(slots.view()),
                    second: Some(Segment::new(kv.view(), kv.view())),
                    log_sum_exp: Some(lse.view_mut()),
                    row_visible: Some(visible.view_mut()),
                    ..AttentionArgs::new(q.view(), kv.view(), kv.view(), out.view_mut())
                }
            );
        }
        let all_only = [Some(CudaAttentionVariant::Resampler), Some(CudaAttentionVariant::ResamplerSplit)];
        if !all_only.contains(&variant) {
            let media = || Media { media_index: phi.view(), keys_per_media: 64, plan: None };
            expect_no_blocks!(
                device,
                format!("{what}, same media"),
                &op,
                AttentionArgs {
                    visibility: Visibility::SameMedia(media()),
                    ..AttentionArgs::new(q.view(), kv.view(), kv.view(), out.view_mut())
                }
            );
        }
    }
}

#[test]
fn a_gated_block_and_its_graph() {
    for cublaslt in [CudaCublasLt::Auto, CudaCublasLt::On] {
        let Some(device) = device(|options| options.cublaslt = cublaslt) else { return };
        for dtype in [DType::F32, DType::BF16] {
            let (block, mut decode) = (block(&device, dtype), Decode::new(&device, dtype));
            let prepared = block.prepare(decode.shapes(&block)).unwrap();
            let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
            let mut recorder = device.recorder().unwrap();
            prepared.enqueue(&mut recorder, decode.views(&block), &mut workspace).unwrap();
            for _ in 0..3 {
                let args = decode.views(&block);
                let blocks = blocks_of(|| prepared.enqueue(&mut recorder, args, &mut workspace).unwrap());
                assert_eq!(blocks, 0, "{cublaslt:?}, {dtype}");
            }
            // SAFETY: block, operands and workspace live to the end of the loop; the graph is gone
            // before.
            let mut graph = unsafe { prepared.capture(&mut recorder, decode.views(&block), &mut workspace).unwrap() };
            graph.launch(&mut recorder).unwrap();
            assert_eq!(blocks_of(|| graph.launch(&mut recorder).unwrap()), 0, "{cublaslt:?}, {dtype}, a graph");
            device.finish(recorder).unwrap();
        }
    }
}
