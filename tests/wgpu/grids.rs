//! More workgroups than a dimension of a grid has.

use std::sync::Arc;

use xattn::ops::{Activation, Linear, LinearArgs, Matrix, RowReduce};
use xattn::wgpu::Limits;
use xattn::{DType, Device, Dispatch, HostTensor, Spec, Weight, WeightSource, WgpuOptions};

use crate::support::{device, integers, product, read, tensor};

fn limited(workgroups: u32) -> Option<Device> {
    let limits = Limits { max_compute_workgroups_per_dimension: workgroups, ..Limits::default() };
    let mut options = WgpuOptions::default();
    options.limits = Some(limits);
    device(&options)
}

/// What the memory around the output must still hold.
const GUARD: f32 = 77.0;

/// x `[batch, rows, k]` times `[n, k]`, the output between two guard rows of `n`.
fn run(device: &Device, reduce: RowReduce, prepared: bool, [batch, rows, n, k]: [usize; 4]) -> Vec<f32> {
    let (x, w) = (integers(batch * rows * k, 1), integers(n * k, 2));
    let outputs = if reduce == RowReduce::None { rows } else { 1 };
    let x = tensor(device, &x, &[batch, rows, k], DType::F32);
    let raw = tensor(device, &w, &[n, k], DType::F32);
    let weight = match prepared {
        true => {
            let source = WeightSource::stacked(vec![HostTensor::from_slice(&w, &[n, k]).unwrap()]);
            Matrix::Prepared(Arc::new(Weight::prepare(device, &source, DType::F32).unwrap()))
        }
        false => Matrix::View(raw.view()),
    };
    let all = batch * outputs + 2;
    let mut memory = tensor(device, &vec![GUARD; all * n], &[all, n], DType::F32);
    let out = memory.view_mut().narrow(0, 1, batch * outputs).unwrap().split(0, batch, outputs).unwrap();
    Linear { activation: Activation::None, reduce }.run(device, LinearArgs::new(x.view(), weight, out)).unwrap();
    let memory = read(device, &memory);
    let (out, end) = memory.split_at((all - 1) * n);
    assert!(out[..n].iter().chain(end).all(|&guard| guard == GUARD), "{batch} {rows} {n} {k}: a guard was written");
    out[n..].to_vec()
}

fn expected(reduce: RowReduce, [batch, rows, n, k]: [usize; 4]) -> Vec<f32> {
    let each = product(&integers(batch * rows * k, 1), &integers(n * k, 2), batch * rows, n, k);
    if reduce == RowReduce::None {
        return each;
    }
    let largest = |i: usize| (0..rows).map(|r| each[(i / n * rows + r) * n + i % n]).fold(f32::MIN, f32::max);
    (0..batch * n).map(largest).collect()
}

#[test]
fn grids_of_linear_are_folded() {
    // Grids of a row of tiles, of which the last ones have no work: the kernel, [batch, rows, n, k], workgroups of a dimension.
    for (reduce, prepared, shape, workgroups) in [
        // 16 of 15 and 24 of 21: rows by 64, as the matrix lies and packed.
        (RowReduce::None, false, [2, 150, 130, 5], 4),
        (RowReduce::None, true, [7, 60, 130, 5], 8),
        // 8 of 7: up to 16 rows, a row and four rows of a packed matrix.
        (RowReduce::None, false, [1, 9, 400, 5], 4),
        (RowReduce::None, true, [1, 1, 400, 5], 4),
        (RowReduce::None, true, [1, 3, 400, 5], 4),
        // 24 of 21: batch entries.
        (RowReduce::Max, false, [7, 3, 130, 5], 8),
        (RowReduce::Max, true, [7, 70, 130, 5], 8),
    ] {
        let Some(device) = limited(workgroups) else { return };
        let result = run(&device, reduce, prepared, shape);
        assert_eq!(result, expected(reduce, shape), "{reduce:?} {prepared} {shape:?} in {workgroups}");
    }
}

#[test]
fn what_two_dimensions_do_not_hold_is_refused() {
    let Some(device) = limited(2) else { return };
    let shapes = |n: usize| {
        let spec = |shape: &[usize]| Spec::contiguous(DType::F32, shape).unwrap();
        LinearArgs::new(spec(&[1, 4, 8]), Matrix::View(spec(&[n, 8])), spec(&[1, 4, n]))
    };
    assert!(Linear::default().prepare(&device, shapes(256)).is_ok());
    let error = Linear::default().prepare(&device, shapes(257)).err().unwrap();
    assert_eq!(error.to_string(), "linear: shape: expected at most 4 workgroups, got 5");
}

/// The largest similarity of each of 70001 images, beyond the limit of every device: 65535.
#[test]
fn a_gallery_beyond_65535_workgroups() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let shape = [70_001, 1, 3, 2];
    assert!(run(&device, RowReduce::Max, false, shape) == expected(RowReduce::Max, shape));
}

/// 65536 tiles of rows, then of columns, and one more.
#[test]
#[ignore = "a minute on an emulated adapter"]
fn matrices_beyond_65535_workgroups() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    for shape in [[1, 65_536 * 64 + 1, 1, 2], [1, 1, 65_536 * 64 + 1, 2]] {
        let result = run(&device, RowReduce::None, false, shape);
        assert!(result == expected(RowReduce::None, shape), "{shape:?}");
    }
}
