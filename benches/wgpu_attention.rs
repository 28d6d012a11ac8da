//! Kernels of `attention` on a wgpu device against each other: the same call by two named variants,
//! alternating in one session. Prints medians, spreads and the ratio;
//! `cargo bench --features wgpu --bench wgpu_attention`. Arguments choose cases by a part of their
//! names.

use std::time::{Duration, Instant};

use xattn::WgpuAttentionVariant::{Decode, DecodeSplit, General, GeneralSplit, Media as ByMedium};
use xattn::ops::{Attention, AttentionArgs, Media, Visibility};
use xattn::{
    DType, Device, Dispatch, HostTensor, Prepared, Shapes, Tensor, View, ViewMut, WgpuAttentionVariant, WgpuOptions,
    Workspace,
};

const RUNS: usize = 15;

/// A call: name, variants, rows, keys, heads, K/V heads, head_dim, keys per medium (0: all keys are
/// seen), dtype.
type Case = (&'static str, [WgpuAttentionVariant; 2], usize, usize, usize, usize, usize, usize, DType);

const CASES: [Case; 13] = [
    ("decode/openflamingo-3b/n4", [Decode, ByMedium], 1, 256, 8, 8, 64, 64, DType::F32),
    ("decode/openflamingo-3b/n4-f16", [Decode, ByMedium], 1, 256, 8, 8, 64, 64, DType::F16),
    ("decode/32x128/n8", [Decode, ByMedium], 1, 512, 32, 32, 128, 64, DType::F32),
    ("decode/32x128-kv8/n8", [Decode, ByMedium], 1, 512, 32, 8, 128, 64, DType::F32),
    ("decode/llama-3.2-11b/k1601", [Decode, General], 1, 1601, 32, 8, 128, 0, DType::F32),
    ("decode/llama-3.2-11b/k6404", [Decode, General], 1, 6404, 32, 8, 128, 0, DType::F32),
    ("decode/llama-3.2-11b/k6404-split", [DecodeSplit, Decode], 1, 6404, 32, 8, 128, 0, DType::F32),
    ("rows/2-heads-1", [Decode, General], 2, 640, 16, 16, 64, 0, DType::F32),
    ("rows/4-heads-1", [Decode, General], 4, 640, 16, 16, 64, 0, DType::F32),
    ("rows/8-heads-1", [Decode, General], 8, 640, 16, 16, 64, 0, DType::F32),
    ("rows/16-heads-1", [Decode, General], 16, 640, 16, 16, 64, 0, DType::F32),
    ("rows/2-heads-4", [Decode, General], 2, 640, 16, 4, 64, 0, DType::F32),
    ("resampler/64x2304-split", [GeneralSplit, General], 64, 2368, 16, 16, 96, 0, DType::F32),
];

/// A call on a device that runs one variant.
struct Call {
    device: Device,
    tensors: [Tensor; 4],
    out: Tensor,
    per_medium: usize,
    prepared: Prepared<Attention>,
    workspace: Workspace,
}

fn args<'a>(
    [q, k, v, phi]: &'a [Tensor; 4],
    out: &'a mut Tensor,
    per_medium: usize,
) -> AttentionArgs<View<'a>, ViewMut<'a>> {
    let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
    if per_medium > 0 {
        let media = Media { media_index: phi.view(), keys_per_media: per_medium as u32, plan: None };
        args.visibility = Visibility::SameMedia(media);
    }
    args
}

impl Call {
    fn new(case: &Case, variant: WgpuAttentionVariant) -> xattn::Result<Self> {
        let &(_, _, rows, keys, heads, kv_heads, dim, per_medium, dtype) = case;
        let mut options = WgpuOptions::from_env()?;
        options.attention = Some(variant);
        let device = Device::open_wgpu(&options)?;
        let real = |shape: [usize; 4]| {
            let n = shape.iter().product();
            let values: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
            Tensor::upload(&device, &HostTensor::from_slice(&values, &shape)?, dtype)
        };
        let (q, k, v) =
            (real([1, rows, heads, dim])?, real([1, keys, kv_heads, dim])?, real([1, keys, kv_heads, dim])?);
        // The last medium.
        let phi = vec![keys.checked_div(per_medium).unwrap_or(0) as i32; rows];
        let phi = Tensor::upload(&device, &HostTensor::from_slice(&phi, &[1, rows])?, DType::I32)?;
        let mut out = Tensor::zeros(&device, dtype, &[1, rows, heads, dim])?;
        let tensors = [q, k, v, phi];
        let shapes = Attention::shapes(&args(&tensors, &mut out, per_medium))?;
        let prepared = Attention::for_head_dim(dim).prepare(&device, shapes)?;
        let workspace = Workspace::new(&device, prepared.workspace_bytes())?;
        Ok(Call { device, tensors, out, per_medium, prepared, workspace })
    }

    fn run(&mut self) -> xattn::Result<Duration> {
        let start = Instant::now();
        let mut recorder = self.device.recorder()?;
        let args = args(&self.tensors, &mut self.out, self.per_medium);
        self.prepared.enqueue(&mut recorder, args, &mut self.workspace)?;
        self.device.finish(recorder)?;
        Ok(start.elapsed())
    }

    fn result(&self) -> xattn::Result<Vec<f32>> {
        self.out.download(&self.device)?.to_f32()
    }
}

fn median(times: &mut [Duration]) -> [f64; 3] {
    times.sort_unstable();
    [times[times.len() / 2], times[0], times[times.len() - 1]].map(|d| d.as_secs_f64() * 1e3)
}

fn compare(case: &Case) -> xattn::Result<()> {
    let [mut a, mut b] = [Call::new(case, case.1[0])?, Call::new(case, case.1[1])?];
    // The first runs compile.
    a.run()?;
    b.run()?;
    let error = a.result()?.iter().zip(b.result()?).fold(0.0f32, |worst, (x, y)| worst.max((x - y).abs()));
    let most = if case.8 == DType::F32 { 1e-5 } else { 2e-3 };
    assert!(error <= most, "{}: results differ by {error:e}", case.0);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        first.push(a.run()?);
        second.push(b.run()?);
    }
    let ([a, a0, a1], [b, b0, b1]) = (median(&mut first), median(&mut second));
    println!(
        "{:34} | {:12} {a:7.2} ({a0:.2} to {a1:.2}) | {:12} {b:7.2} ({b0:.2} to {b1:.2}) | {:.2}",
        case.0,
        case.1[0],
        case.1[1],
        a / b
    );
    Ok(())
}

fn main() -> xattn::Result<()> {
    let device = match Device::open_wgpu(&WgpuOptions::from_env()?) {
        Ok(device) => device,
        Err(error) => {
            println!("nothing timed: {error}");
            return Ok(());
        }
    };
    println!("{}: {}", device.info().name, device.info().details);
    println!("case | first variant, ms, median of {RUNS} | second variant | ratio");
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    for case in CASES.iter().filter(|c| wanted.is_empty() || wanted.iter().any(|w| c.0.contains(w.as_str()))) {
        compare(case)?;
    }
    Ok(())
}
