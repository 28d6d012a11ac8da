//! Weights from names: the same numbers here and in `flamingo.py`, without any file.
//!
//! Number i of tensor `name` is `splitmix64(fnv1a64(name) + (i + 1) · 0x9e3779b97f4a7c15)`, of
//! which the upper 24 bits n give u = n / 2^23 − 1 in [−1, 1). In f64, rounded once to f32:
//! matrices u · √(3 / columns) (variance 1 / columns), norm weights 1 + u / 10, vectors that end in
//! `bias` u / 10, gates 1/2 + u / 4, everything else (latents, embeddings, features) u.

use std::collections::BTreeMap;

use xattn::HostTensor;

/// u of number `i` of a tensor.
fn uniform(key: u64, i: u64) -> f64 {
    let mut z = key.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f64 / f64::from(1u32 << 23) - 1.0
}

/// The values of a tensor, by what its name and shape say it is.
pub fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let key = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let elements = shape.iter().product::<usize>() as u64;
    let (offset, scale) = match *shape {
        [_, columns] if name.ends_with(".weight") && !name.contains("embedding") => {
            (0.0, (3.0 / columns as f64).sqrt())
        }
        [_] if name.ends_with(".weight") => (1.0, 0.1),
        [_] if name.ends_with("bias") => (0.0, 0.1),
        [1] if name.ends_with("gate") => (0.5, 0.25),
        _ => (0.0, 1.0),
    };
    (0..elements).map(|i| (offset + uniform(key, i) * scale) as f32).collect()
}

/// Named tensors.
pub type Weights = BTreeMap<String, HostTensor<'static>>;

/// Makes tensors of these names and shapes.
pub fn make(names: impl IntoIterator<Item = (String, Vec<usize>)>) -> xattn::Result<Weights> {
    names
        .into_iter()
        .map(|(name, shape)| {
            let tensor = HostTensor::from_slice(&values(&name, &shape), &shape)?;
            Ok((name, tensor))
        })
        .collect()
}

/// Names and shapes of OpenFlamingo's resampler.
pub fn resampler(prefix: &str, width: usize, latents: usize, layers: usize, inner: usize) -> Vec<(String, Vec<usize>)> {
    let mut names = vec![("latents".to_string(), vec![latents, width])];
    names.extend(["weight", "bias"].map(|n| (format!("norm.{n}"), vec![width])));
    for i in 0..layers {
        for norm in ["0.norm_media", "0.norm_latents", "1.0"] {
            names.extend(["weight", "bias"].map(|n| (format!("layers.{i}.{norm}.{n}"), vec![width])));
        }
        let matrices = [
            ("0.to_q", inner, width),
            ("0.to_kv", 2 * inner, width),
            ("0.to_out", width, inner),
            ("1.1", 4 * width, width),
            ("1.3", width, 4 * width),
        ];
        names.extend(matrices.map(|(name, n, k)| (format!("layers.{i}.{name}.weight"), vec![n, k])));
    }
    names.into_iter().map(|(name, shape)| (format!("{prefix}{name}"), shape)).collect()
}

/// Names and shapes of OpenFlamingo's gated block.
pub fn gated_block(prefix: &str, width: usize, media_width: usize, inner: usize) -> Vec<(String, Vec<usize>)> {
    let mut names = Vec::new();
    for norm in ["attn.norm", "ff.0"] {
        names.extend(["weight", "bias"].map(|n| (format!("{norm}.{n}"), vec![width])));
    }
    names.extend(["attn_gate", "ff_gate"].map(|n| (n.to_string(), vec![1])));
    let matrices = [
        ("attn.to_q", inner, width),
        ("attn.to_kv", 2 * inner, media_width),
        ("attn.to_out", width, inner),
        ("ff.1", 4 * width, width),
        ("ff.3", width, 4 * width),
    ];
    names.extend(matrices.map(|(name, n, k)| (format!("{name}.weight"), vec![n, k])));
    names.into_iter().map(|(name, shape)| (format!("{prefix}{name}"), shape)).collect()
}
