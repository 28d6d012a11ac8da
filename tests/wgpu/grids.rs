//! More workgroups than a dimension of a grid has.

use std::sync::Arc;

use xattn::ops::{Activation, Linear, LinearArgs, Matrix, RowReduce};
use xattn::verify::cases::{Case, Verdict};
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
    // Grids of a row of tiles, of which the last ones have no work: the kernel, [batch, rows, n,
    // k], workgroups of a dimension.
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

/// Cases of more workgroups than a dimension has: each is refused where two dimensions do not hold
/// them, and right where they do.
#[test]
fn grids_of_every_op_are_folded() {
    let attention = |rest: &str| format!("attention:{rest},values=normal,layout=gapless,dtype=f32,out=same,seed=10");
    let media = "phi=any,keys=all,keys2=all";
    let cases = [
        "media_index:batch=5,rows=70,from=tokens,density=dense,next=false,document=hide,carry=positive,carry_out=true,count=false,plan=true,layout=gapless,seed=10".to_string(),
        "norm:batch=2,rows=257,heads=1,width=33,kind=layer,eps=1e-6,input=plain,add=none,weight=true,bias=true,values=normal,layout=gapless,dtype=f32,parameters=f32,seed=3".into(),
        "norm:batch=1,rows=33,heads=1,width=1024,kind=rms,eps=1e-6,input=plain,add=none,weight=true,bias=false,values=normal,layout=gapless,dtype=f32,parameters=f32,seed=4".into(),
        "gated_residual:batch=1,rows=33,width=129,gate=scalar,in_place=false,mask=true,values=normal,layout=gapless,dtype=f32,stream=same,gate_dtype=same,seed=5".into(),
        // Tiles of 32 rows; runs of φ; a row and K/V head each; chunks of 256 keys, and of 512,
        // whose states are merged in more workgroups than made them.
        attention(&format!("batch=2,q=129,k=40,k2=none,h=1/1,d=8,rule=all,media=1,{media},batching=dense,empty=zero,extra=both")),
        attention(&format!("batch=2,q=129,k=40,k2=none,h=1/1,d=8,rule=same_media,media=3,{media},batching=dense,empty=mixed,extra=both")),
        attention(&format!("batch=3,q=2,k=70,k2=none,h=3/3,d=8,rule=all,media=1,{media},batching=dense,empty=zero,extra=lse")),
        attention(&format!("batch=2,q=1,k=1100,k2=none,h=3/3,d=24,rule=all,media=1,{media},batching=dense,empty=zero,extra=lse")),
        attention(&format!("batch=1,q=32,k=1100,k2=none,h=4/4,d=128,rule=all,media=1,{media},batching=dense,empty=zero,extra=lse")),
        // 130 tiles, and 17 workgroups each for row_visible and φ's copy; a dimension has 12.
        attention(&format!("batch=2,q=2050,k=8,k2=8,h=1/1,d=8,rule=same_media,media=2,{media},batching=ragged,empty=mixed,extra=both")),
    ];
    let limits = [2, 3, 4, 6, 8, 12];
    let Some(devices) = limits.map(limited).into_iter().collect::<Option<Vec<_>>>() else { return };
    for text in cases {
        let case: Case = text.parse().unwrap();
        let mut refused = 0;
        for (limit, device) in limits.into_iter().zip(&devices) {
            match case.verify(std::slice::from_ref(device)).remove(0) {
                Verdict::Failed(why) => {
                    assert!(
                        why.contains(&format!(": shape: expected at most {} workgroups", limit * limit)),
                        "{text}: {why}"
                    );
                    refused = limit;
                }
                Verdict::Compared(outcomes) => {
                    // More than the square of the smaller limit, so more than this one.
                    assert!(refused > 0, "{text}: no grid is folded in {limit}");
                    let failures: Vec<_> = outcomes.into_iter().filter_map(|o| o.failure).collect();
                    assert!(failures.is_empty(), "{text} in {limit}: {failures:?}");
                    refused = u32::MAX;
                    break;
                }
                Verdict::Skipped(why) => panic!("{text}: {why}"),
            }
        }
        assert_eq!(refused, u32::MAX, "{text}: refused in every limit");
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
