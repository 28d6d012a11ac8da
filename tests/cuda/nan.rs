//! A NaN in a key that rows see is their result, by every kernel of `attention`, and nobody else's.

use xattn::CudaAttentionVariant::{Decode, DecodeSplit, General, Resampler, ResamplerHopper, ResamplerSplit};
use xattn::ops::{Attention, AttentionArgs};
use xattn::{CudaOptions, DType, Device, Dispatch, Tensor};

use crate::support::{integers, is_hopper, opened, tensor};

const HEADS: usize = 2;
const DIM: usize = 64;

/// Results and log-sum-exps of two problems of 3 rows and 1100 keys. `poisoned`: a key of the first
/// problem whose head 0 begins with NaN.
fn run(device: &Device, dtype: DType, poisoned: Option<usize>) -> [Vec<u32>; 2] {
    let (rows, keys) = (3, 1100);
    let of = |n: usize, salt| integers(2 * n * HEADS * DIM, salt);
    let mut k = of(keys, 2);
    if let Some(key) = poisoned {
        k[key * HEADS * DIM] = f32::NAN;
    }
    let upload = |values: &[f32], n: usize| tensor(device, values, &[2, n, HEADS, DIM], dtype);
    let (q, k, v) = (upload(&of(rows, 1), rows), upload(&k, keys), upload(&of(keys, 3), keys));
    let mut out = Tensor::zeros(device, dtype, &[2, rows, HEADS, DIM]).unwrap();
    let mut lse = Tensor::zeros(device, DType::F32, &[2, rows, HEADS]).unwrap();
    let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
    args.log_sum_exp = Some(lse.view_mut());
    Attention::for_head_dim(DIM).run(device, args).unwrap();
    [&out, &lse].map(|t| t.download(device).unwrap().to_f32().unwrap().iter().map(|x| x.to_bits()).collect())
}

#[test]
fn a_nan_that_a_row_sees_is_its_result() {
    for variant in [General, Decode, DecodeSplit, Resampler, ResamplerSplit, ResamplerHopper] {
        let mut options = CudaOptions::from_env().unwrap();
        options.attention = Some(variant);
        let Some(device) = opened(&options) else { return };
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            if variant == ResamplerHopper && (dtype == DType::F32 || !is_hopper(&device)) {
                continue;
            }
            let clean = run(&device, dtype, None);
            // In the first chunk of keys, in one between, in the last one.
            for key in [0, 700, 1099] {
                let poisoned = run(&device, dtype, Some(key));
                for (width, (got, clean)) in [DIM, 1].into_iter().zip(poisoned.iter().zip(&clean)) {
                    for (i, (&got, &clean)) in got.iter().zip(clean).enumerate() {
                        let row = i / width / HEADS;
                        let sees = row < 3 && (i / width).is_multiple_of(HEADS);
                        let right = if sees { f32::from_bits(got).is_nan() } else { got == clean };
                        assert!(right, "{variant} {dtype}, key {key}: row {row}: {:e}", f32::from_bits(got));
                    }
                }
            }
        }
    }
}
