//! A device, if this machine has one, and small tensors.

use xattn::{DType, Device, Error, HostTensor, Tensor, WgpuCounts, WgpuOptions};

/// A device of our own. Without an adapter the test is skipped; with `CI=true`, it fails.
pub fn device(options: &WgpuOptions) -> Option<Device> {
    match Device::open_wgpu(options) {
        Ok(device) => Some(device),
        Err(error @ Error::Unavailable { .. }) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{error}");
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Small integers that repeat after a prime number of elements: sums of products are exact.
pub fn integers(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7 + salt * 5) % 11) as f32 % 5.0 - 2.0).collect()
}

pub fn tensor(device: &Device, values: &[f32], shape: &[usize], dtype: DType) -> Tensor {
    Tensor::upload(device, &HostTensor::from_slice(values, shape).unwrap(), dtype).unwrap()
}

pub fn read(device: &Device, tensor: &Tensor) -> Vec<f32> {
    tensor.download(device).unwrap().to_f32().unwrap()
}

/// x Wᵀ of integers.
pub fn product(x: &[f32], w: &[f32], rows: usize, n: usize, k: usize) -> Vec<f32> {
    let dot = |r: usize, c: usize| (0..k).map(|i| x[r * k + i] * w[c * k + i]).sum();
    (0..rows * n).map(|i| dot(i / n, i % n)).collect()
}

/// What the device made and sent since then.
pub fn since(device: &Device, before: &WgpuCounts) -> WgpuCounts {
    let mut counts = device.wgpu_counts().unwrap();
    counts.buffers -= before.buffers;
    counts.bind_groups -= before.bind_groups;
    counts.pipelines -= before.pipelines;
    counts.dispatches -= before.dispatches;
    counts.submissions -= before.submissions;
    counts
}
