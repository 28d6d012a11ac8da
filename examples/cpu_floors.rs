//! Times `attention` on the CPU for the shapes of the bridges: `cargo run --release --example cpu_floors`.

use std::time::Instant;

use xattn::ops::attention::{Attention, AttentionArgs, Media, Segment, Visibility};
use xattn::{DType, Device, Dispatch, HostTensor, Tensor, Workspace};

fn tensor(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect();
    Tensor::upload(device, &HostTensor::from_slice(&values, shape).unwrap(), dtype).unwrap()
}

struct Shape {
    name: &'static str,
    batch: usize,
    rows: usize,
    heads: [usize; 2],
    head_dim: usize,
    keys: [usize; 2],
    media: Option<usize>,
}

fn time(device: &Device, s: &Shape, dtype: DType) {
    let q = tensor(device, dtype, &[s.batch, s.rows, s.heads[0], s.head_dim]);
    let side = |keys| tensor(device, dtype, &[s.batch, keys, s.heads[1], s.head_dim]);
    let (k1, v1, k2, v2) = (side(s.keys[0]), side(s.keys[0]), side(s.keys[1]), side(s.keys[1]));
    let mut out = tensor(device, dtype, &[s.batch, s.rows, s.heads[0], s.head_dim]);
    let phi = s.media.map(|media| {
        let phi: Vec<i32> = (0..s.batch * s.rows).map(|i| (i % s.rows * media / s.rows) as i32 + 1).collect();
        Tensor::upload(device, &HostTensor::from_slice(&phi, &[s.batch, s.rows]).unwrap(), DType::I32).unwrap()
    });
    macro_rules! args {
        ($view:ident, $out:expr) => {{
            let mut args = AttentionArgs::new(q.$view(), k1.$view(), v1.$view(), $out);
            if s.keys[1] > 0 {
                args.second = Some(Segment::new(k2.$view(), v2.$view()));
            }
            if let Some(phi) = &phi {
                args.visibility =
                    Visibility::SameMedia(Media { media_index: phi.$view(), keys_per_media: 64, plan: None });
            }
            args
        }};
    }
    let prepared = Attention::for_head_dim(s.head_dim).prepare(device, args!(spec, out.spec())).unwrap();
    let mut workspace = Workspace::new(device, prepared.workspace_bytes()).unwrap();
    let mut recorder = device.recorder().unwrap();
    let flops = prepared.cost().flops as f64;
    let calls = ((2e8 / flops) as usize).clamp(1, 2000);
    let mut best = f64::INFINITY;
    for _ in 0..15 {
        let start = Instant::now();
        for _ in 0..calls {
            prepared.enqueue(&mut recorder, args!(view, out.view_mut()), &mut workspace).unwrap();
        }
        best = best.min(start.elapsed().as_secs_f64() / calls as f64);
    }
    println!("{:28} {dtype:5} {:10.1} us {:8.1} GFLOP/s", s.name, best * 1e6, flops / best * 1e-9);
}

fn main() {
    let device = Device::cpu();
    println!("{:?}: {}", device, device.info().details);
    let of = |name, batch| Shape { name, batch, rows: 64, heads: [8, 8], head_dim: 64, keys: [256, 64], media: None };
    let gated = |name, media: usize| Shape {
        name,
        batch: 1,
        rows: 512,
        heads: [8, 8],
        head_dim: 64,
        keys: [64 * media, 0],
        media: Some(media),
    };
    let shapes = [
        of("resampler batch 1", 1),
        of("resampler batch 8", 8),
        gated("gated, 1 image", 1),
        gated("gated, 4 images", 4),
        gated("gated, 16 images", 16),
        gated("gated, 64 images", 64),
        Shape { name: "llama 3.2", batch: 1, rows: 256, heads: [32, 8], head_dim: 128, keys: [1601, 0], media: None },
        Shape {
            name: "decode, 64 keys",
            batch: 1,
            rows: 1,
            heads: [8, 8],
            head_dim: 64,
            keys: [64, 0],
            media: Some(1),
        },
        Shape {
            name: "decode, llama 3.2",
            batch: 1,
            rows: 1,
            heads: [32, 8],
            head_dim: 128,
            keys: [6404, 0],
            media: None,
        },
    ];
    for dtype in [DType::F32, DType::BF16] {
        shapes.iter().for_each(|shape| time(&device, shape, dtype));
    }
}
