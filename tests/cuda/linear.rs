//! `linear` by cuBLASLt and by our kernels: who multiplies, gates that are exact, plans that are
//! made once. `xattn verify` judges the numbers.

use xattn::ops::{Activation, Linear, LinearArgs, Matrix, RowReduce, Source};
use xattn::{
    CudaCublasLt, CudaLinear, CudaOptions, DType, Device, Dispatch, Tensor, View, Weight, WeightSource, Workspace,
};

use crate::support::{calls, child, emulated, integers, said, spec, tensor};

/// The cuBLASLt stand-in's counts of searches and GEMMs; none with another library.
pub fn counts() -> Option<(u32, u32)> {
    // SAFETY: the library is loaded already where it matters; the symbol is the stand-in's alone,
    // and its type is that of `tests/cuda_emulator/cublaslt.cpp`.
    unsafe {
        let library = libloading::Library::new("libcublasLt.so.13").ok()?;
        let count: libloading::Symbol<'_, unsafe extern "C" fn(*mut u32, *mut u32)> =
            library.get("xattn_cublaslt_counts").ok()?;
        let (mut sought, mut made) = (0, 0);
        count(&mut sought, &mut made);
        Some((sought, made))
    }
}

fn device(cublaslt: CudaCublasLt) -> Device {
    let mut options = CudaOptions::from_env().unwrap();
    options.cublaslt = cublaslt;
    Device::open_cuda(&options).unwrap()
}

/// A test whose counts nothing else disturbs: the named one, in a process of its own.
fn alone(test: &str) {
    if !emulated() {
        eprintln!("skipped: only the emulator's libraries count calls");
        return;
    }
    said(child(test, &[("XATTN_CUDA_CUBLASLT", None), ("XATTN_CUDA_LINEAR", None)]).output().unwrap());
}

const BATCH: usize = 2;
const ROWS: usize = 40;
const N: usize = 72;
const K: usize = 96;

/// What follows a product.
#[derive(Clone, Copy, Debug)]
struct Case {
    dtype: DType,
    activation: Activation,
    bias: bool,
    /// From an operand, or in place.
    residual: Option<bool>,
    /// Its length.
    gate: Option<usize>,
    masked: bool,
}

impl Case {
    fn plain(dtype: DType) -> Self {
        Case { dtype, activation: Activation::None, bias: false, residual: None, gate: None, masked: false }
    }
}

/// The result on a device. Integers: exact, but for the activation of a gelu.
fn run(device: &Device, case: Case) -> Vec<f32> {
    let Case { dtype, .. } = case;
    let x = tensor(device, &integers(BATCH * ROWS * K, 1), &[BATCH, ROWS, K], dtype);
    let w = tensor(device, &integers(N * K, 2), &[N, K], dtype);
    let bias = tensor(device, &integers(N, 3), &[N], dtype);
    let start = integers(BATCH * ROWS * N, 4);
    let residual = tensor(device, &start, &[BATCH, ROWS, N], dtype);
    let mut out = tensor(device, &start, &[BATCH, ROWS, N], dtype);
    let gate = case.gate.map(|n| tensor(device, &vec![0.0; n], &[n], DType::F32));
    let mask = xattn::HostTensor::from_slice(&vec![1_u32; BATCH * ROWS], &[BATCH, ROWS]).unwrap();
    let mask = Tensor::upload(device, &mask, DType::U32).unwrap();
    let args = LinearArgs {
        bias: case.bias.then(|| bias.view()),
        residual: case.residual.map(|from| if from { Source::From(residual.view()) } else { Source::InPlace }),
        gate: gate.as_ref().map(Tensor::view),
        row_mask: case.masked.then(|| mask.view()),
        ..LinearArgs::new(x.view(), Matrix::View(w.view()), out.view_mut())
    };
    Linear { activation: case.activation, ..Default::default() }.run(device, args).unwrap();
    out.download(device).unwrap().to_f32().unwrap()
}

#[test]
fn both_ways_agree_to_the_bit_where_sums_are_exact() {
    alone("linear::both_ways");
}

#[test]
#[ignore = "a process of its own"]
fn both_ways() {
    let (library, own, reference) = (device(CudaCublasLt::On), device(CudaCublasLt::Off), Device::reference());
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let plain = Case::plain(dtype);
        let cases = [
            (plain, true),
            (Case { bias: true, ..plain }, true),
            (Case { residual: Some(true), ..plain }, true),
            (Case { residual: Some(false), bias: true, ..plain }, true),
            (Case { residual: Some(true), gate: Some(1), ..plain }, true),
            (Case { residual: Some(false), gate: Some(N), ..plain }, true),
            // What cuBLASLt would compute otherwise, or not at all.
            (Case { residual: Some(true), gate: Some(1), bias: true, ..plain }, false),
            (Case { residual: Some(true), masked: true, ..plain }, false),
            (Case { activation: Activation::Relu, ..plain }, false),
            (Case { gate: Some(1), ..plain }, false),
        ];
        for (case, by_library) in cases {
            let before = counts().unwrap().1;
            let ours = run(&own, case);
            assert_eq!(counts().unwrap().1, before, "{case:?}: off is off");
            let theirs = run(&library, case);
            assert_eq!(counts().unwrap().1, before + u32::from(by_library), "{case:?}");
            assert_eq!(ours, run(&reference, case), "{case:?}");
            assert_eq!(ours, theirs, "{case:?}");
            if case.gate.is_some() && case.residual.is_some() {
                let residual = integers(BATCH * ROWS * N, 4);
                assert_eq!(theirs, residual, "{case:?}: a gate of 0 leaves the residual alone");
            }
        }
        // erf, not the tanh form: within a rounding of the reference.
        let gelu = Case { activation: Activation::Gelu, ..plain };
        let before = counts().unwrap().1;
        let (ours, truth) = (run(&library, gelu), run(&reference, gelu));
        assert_eq!(counts().unwrap().1, before);
        let worst = ours.iter().zip(&truth).map(|(a, b)| (a - b).abs() / b.abs().max(1e-3)).fold(0.0, f32::max);
        let ulp = match dtype {
            DType::F32 => f32::EPSILON,
            DType::F16 => 2f32.powi(-10),
            _ => 2f32.powi(-7),
        };
        assert!(worst <= 8.0 * ulp, "{dtype}: {worst}");
    }
}

#[test]
fn an_activation_can_be_a_second_pass() {
    alone("linear::two_passes");
}

#[test]
#[ignore = "a process of its own"]
fn two_passes() {
    let (two, auto, own) = (device(CudaCublasLt::TwoPass), device(CudaCublasLt::Auto), device(CudaCublasLt::Off));
    let made = |device: &Device, case| {
        let before = counts().unwrap().1;
        let out = run(device, case);
        (out, counts().unwrap().1 - before)
    };
    for dtype in [DType::F16, DType::BF16] {
        let relu = Case { activation: Activation::Relu, ..Case::plain(dtype) };
        for (case, by_library) in [
            (relu, 1),
            (Case { bias: true, ..relu }, 1),
            (Case::plain(dtype), 1),
            // Something follows the activation, its slope is too large, or not every row has one.
            (Case { residual: Some(true), ..relu }, 0),
            (Case { activation: Activation::SquaredRelu, ..relu }, 0),
            (Case { masked: true, ..relu }, 0),
        ] {
            let (ours, theirs) = (run(&own, case), made(&two, case));
            assert_eq!(theirs, (ours, by_library), "{case:?}");
            let plain = case.activation == Activation::None;
            assert_eq!(made(&auto, case).1, u32::from(plain), "{case:?}: not by itself");
        }
        // Sums are exact here: the first rounding is the only difference.
        let gelu = Case { activation: Activation::Gelu, bias: true, ..Case::plain(dtype) };
        let (ours, (theirs, by_library)) = (run(&own, gelu), made(&two, gelu));
        assert_eq!(by_library, 1);
        let ulp = if dtype == DType::F16 { 2f32.powi(-10) } else { 2f32.powi(-7) };
        let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs() / a.abs().max(1.0)).fold(0.0, f32::max);
        assert!(worst <= 2.0 * ulp, "{dtype}: {worst}");
    }
    // f32 results stay ours.
    assert_eq!(made(&two, Case { activation: Activation::Gelu, ..Case::plain(DType::F32) }).1, 0);
}

#[test]
fn plans_are_made_once_and_steady_state_makes_none() {
    alone("linear::planned");
}

#[test]
#[ignore = "a process of its own"]
fn planned() {
    let device = device(CudaCublasLt::Auto);
    let dtype = DType::BF16;
    let (rows, n, k) = (128, 128, 256);
    let x = tensor(&device, &integers(rows * k, 1), &[1, rows, k], dtype);
    let weight = xattn::HostTensor::from_slice(&integers(n * k, 2), &[n, k]).unwrap();
    let weight = std::sync::Arc::new(Weight::prepare(&device, &WeightSource::stacked(vec![weight]), dtype).unwrap());
    let gate = tensor(&device, &[0.5], &[1], DType::F32);
    let mut out = Tensor::zeros(&device, dtype, &[1, rows, n]).unwrap();
    let shapes = LinearArgs {
        residual: Some(Source::InPlace),
        gate: Some(spec(DType::F32, &[1])),
        ..LinearArgs::new(spec(dtype, &[1, rows, k]), Matrix::Prepared(weight.clone()), spec(dtype, &[1, rows, n]))
    };
    let prepared = Linear::default().prepare(&device, shapes.clone()).unwrap();
    assert_eq!(counts(), Some((1, 0)), "one plan, nothing run");
    // The stand-in's algorithms need 1536 bytes; then alpha, beta, and 192 to align at 256.
    assert_eq!(prepared.workspace_bytes(), 1536 + 8 + 192);
    let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
    let mut recorder = device.recorder().unwrap();
    let costly = ["cuMemAlloc_v2", "cuModuleLoadData", "cuStreamSynchronize", "cuStreamCreate"];
    let before = costly.map(|name| calls(name).unwrap());
    for _ in 0..20 {
        let args = LinearArgs {
            residual: Some(Source::InPlace),
            gate: Some(gate.view()),
            ..LinearArgs::new(x.view(), Matrix::Prepared(weight.clone()), out.view_mut())
        };
        prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
    }
    assert_eq!(counts(), Some((1, 20)));
    assert_eq!(costly.map(|name| calls(name).unwrap()), before, "{costly:?}");
    device.finish(recorder).unwrap();
    // The same product again, and another one.
    Linear::default().prepare(&device, shapes.clone()).unwrap();
    assert_eq!(counts(), Some((1, 20)));
    Linear::default().prepare(&device, LinearArgs { gate: None, ..shapes }).unwrap();
    assert_eq!(counts(), Some((2, 20)));
}

#[test]
fn addresses_that_do_not_lie_as_promised_are_ours() {
    alone("linear::misaligned");
}

#[test]
#[ignore = "a process of its own"]
fn misaligned() {
    let device = device(CudaCublasLt::On);
    let dtype = DType::F16;
    let (rows, n, k) = (3, 16, 32);
    // Rows on multiples of 16 bytes, the first one two bytes further on.
    let mut values = vec![f32::NAN];
    values.extend(integers(rows * k, 1));
    let shifted = tensor(&device, &values, &[values.len()], dtype);
    let straight = tensor(&device, &integers(rows * k, 1), &[1, rows, k], dtype);
    let w = tensor(&device, &integers(n * k, 2), &[n, k], dtype);
    let shapes =
        LinearArgs::new(spec(dtype, &[1, rows, k]), Matrix::View(spec(dtype, &[n, k])), spec(dtype, &[1, rows, n]));
    let prepared = Linear::default().prepare(&device, shapes).unwrap();
    let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
    let mut result = |x: View<'_>| {
        let mut out = Tensor::zeros(&device, dtype, &[1, rows, n]).unwrap();
        let mut recorder = device.recorder().unwrap();
        let args = LinearArgs::new(x, Matrix::View(w.view()), out.view_mut());
        prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
        device.finish(recorder).unwrap();
        out.download(&device).unwrap().to_f32().unwrap()
    };
    let theirs = result(straight.view());
    assert_eq!(counts().unwrap().1, 1);
    let flat = shifted.view().narrow(0, 1, rows * k).unwrap();
    assert_eq!(result(flat.split(0, 1, rows * k).unwrap().split(1, rows, k).unwrap()), theirs);
    assert_eq!(counts().unwrap().1, 1, "the second product is ours");
}

#[test]
fn without_the_library_our_kernels_serve() {
    if !emulated() {
        eprintln!("skipped: only the emulator's libraries can be left out one by one");
        return;
    }
    let scratch = crate::support::Scratch::new("no-cublaslt");
    std::fs::create_dir_all(&scratch.0).unwrap();
    let search = std::env::var("LD_LIBRARY_PATH").unwrap();
    let has_all = |folder: &&str| std::path::Path::new(folder).join("libcublasLt.so.13").exists();
    let folder = std::path::Path::new(search.split(':').find(has_all).unwrap());
    for library in ["libcuda.so.1", "libcuda.so", "libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"] {
        std::os::unix::fs::symlink(folder.join(library), scratch.0.join(library)).unwrap();
    }
    said(child("linear::no_library", &[("LD_LIBRARY_PATH", Some(scratch.text()))]).output().unwrap());
}

#[test]
#[ignore = "a process of its own"]
fn no_library() {
    assert_eq!(counts(), None);
    let case = Case { residual: Some(true), gate: Some(1), ..Case::plain(DType::BF16) };
    assert_eq!(run(&device(CudaCublasLt::On), case), integers(BATCH * ROWS * N, 4));
}

#[test]
fn weights_of_another_shape_or_device_are_refused() {
    let Some(device) = crate::support::device() else { return };
    let dtype = DType::BF16;
    let prepare = |device: &Device, n: usize| {
        let matrix = xattn::HostTensor::from_slice(&integers(n * 8, 1), &[n, 8]).unwrap();
        std::sync::Arc::new(Weight::prepare(device, &WeightSource::stacked(vec![matrix]), dtype).unwrap())
    };
    let shapes = |weight| LinearArgs::new(spec(dtype, &[1, 2, 8]), weight, spec(dtype, &[1, 2, 4]));
    let foreign = Linear::default().prepare(&device, shapes(Matrix::Prepared(prepare(&Device::cpu(), 4))));
    let message = foreign.err().unwrap().to_string();
    assert!(message.starts_with("linear: weight: expected a matrix prepared for cuda, got "), "{message}");

    let prepared = Linear::default().prepare(&device, shapes(Matrix::Prepared(prepare(&device, 4)))).unwrap();
    let x = tensor(&device, &integers(16, 1), &[1, 2, 8], dtype);
    let mut out = Tensor::zeros(&device, dtype, &[1, 2, 4]).unwrap();
    let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
    let mut recorder = device.recorder().unwrap();
    let args = LinearArgs::new(x.view(), Matrix::Prepared(prepare(&device, 5)), out.view_mut());
    let message = prepared.enqueue(&mut recorder, args, &mut workspace).unwrap_err().to_string();
    assert!(message.starts_with("linear: weight: expected Weight(bf16[4, 8]) as prepared, got "), "{message}");
    device.finish(recorder).unwrap();
}

/// How many steps are on their way changes no sum: neither where k ends before the pipeline is
/// full, nor where it goes round several times.
#[test]
fn the_deep_pipeline_gives_the_same_bits() {
    let open = |linear| {
        let mut options = CudaOptions::from_env().unwrap();
        options.linear = linear;
        crate::support::opened(&options)
    };
    let (Some(shallow), Some(deep)) = (open(CudaLinear::Tile64), open(CudaLinear::Tile64Deep)) else { return };
    let (rows, n, dtype) = (33, 70, DType::BF16);
    for k in [8, 136, 701] {
        let fractions = |count: usize, seed| integers(count, seed).iter().map(|v| v / 7.0).collect::<Vec<f32>>();
        let run = |device: &Device| {
            let x = tensor(device, &fractions(rows * k, 1), &[1, rows, k], dtype);
            let w = tensor(device, &fractions(n * k, 2), &[n, k], dtype);
            let mut out = Tensor::zeros(device, DType::F32, &[1, rows, n]).unwrap();
            Linear::default().run(device, LinearArgs::new(x.view(), Matrix::View(w.view()), out.view_mut())).unwrap();
            out.download(device).unwrap().to_f32().unwrap().iter().map(|y| y.to_bits()).collect::<Vec<u32>>()
        };
        let bits = run(&deep);
        assert!(bits.iter().collect::<std::collections::HashSet<_>>().len() > 10, "results differ from each other");
        assert_eq!(bits, run(&shallow), "k = {k}");
    }
}

/// Results of rows of which row 1 of the first batch entry holds a NaN. Each kernel in turn.
#[test]
fn nan_stays_where_it_belongs() {
    let (batch, rows, n, k) = (2, 3, 24, 40);
    use CudaLinear::{Any, Auto, Hopper, HopperTurns, Tile64, Tile64Deep, Tile128};
    for linear in [Auto, Any, Tile64, Tile64Deep, Tile128, Hopper, HopperTurns] {
        let mut options = CudaOptions::from_env().unwrap();
        options.linear = linear;
        let Some(device) = crate::support::opened(&options) else { return };
        if matches!(linear, Hopper | HopperTurns) && !crate::support::is_hopper(&device) {
            eprintln!("skipped: {linear:?} is for compute capability 9.0");
            continue;
        }
        for dtype in [DType::F32, DType::BF16] {
            let mut values = integers(batch * rows * k, 1);
            values[k + 3] = f32::NAN;
            let x = tensor(&device, &values, &[batch, rows, k], dtype);
            let w = tensor(&device, &vec![1.0; n * k], &[n, k], dtype);
            let mask: Vec<u32> = (0..batch * rows).map(|row| u32::from(row != 1)).collect();
            let mask = xattn::HostTensor::from_slice(&mask, &[batch, rows]).unwrap();
            let mask = Tensor::upload(&device, &mask, DType::U32).unwrap();
            let run = |op: Linear, out_rows: usize, masked: bool| {
                let mut out = tensor(&device, &vec![0.0; batch * out_rows * n], &[batch, out_rows, n], dtype);
                let args = LinearArgs {
                    row_mask: masked.then(|| mask.view()),
                    ..LinearArgs::new(x.view(), Matrix::View(w.view()), out.view_mut())
                };
                op.run(&device, args).unwrap();
                let out = out.download(&device).unwrap().to_f32().unwrap();
                out.chunks(n).map(|row| row.iter().filter(|v| v.is_nan()).count()).collect::<Vec<_>>()
            };
            let what = format!("{linear:?} {dtype}");
            let with = |activation, reduce| Linear { activation, reduce };
            let keep = RowReduce::None;
            assert_eq!(run(with(Activation::Relu, keep), rows, false), [0, n, 0, 0, 0, 0], "{what}: ReLU");
            assert_eq!(run(with(Activation::SquaredRelu, keep), rows, false), [0, n, 0, 0, 0, 0], "{what}");
            assert_eq!(run(with(Activation::None, keep), rows, true), [0; 6], "{what}: a masked row");
            // The NaN is neither the first nor the last that a maximum meets.
            assert_eq!(run(with(Activation::None, RowReduce::Max), 1, false), [n, 0], "{what}: maximum");
            assert_eq!(run(with(Activation::None, RowReduce::Mean), 1, false), [n, 0], "{what}: mean");
        }
    }
}
