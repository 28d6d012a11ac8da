//! `linear` by the kernels of compute capability 9.0: every epilogue, tiles that end anywhere,
//! blocks that make several tiles, and who multiplies where they do not serve.

use std::sync::Arc;

use xattn::ops::{Activation, Linear, LinearArgs, Matrix, Source};
use xattn::{
    CudaLinear, CudaOptions, DType, Device, Dispatch, HostTensor, Recorder, Tensor, Weight, WeightSource, Workspace,
};

use crate::support::{calls, child, emulated, integers, is_child, is_hopper, opened, said, tensor};

fn options(linear: CudaLinear) -> CudaOptions {
    let mut options = CudaOptions::from_env().unwrap();
    options.linear = linear;
    options
}

/// Tensor maps made so far; none on real hardware, which does not count.
fn maps() -> Option<u64> {
    calls("cuTensorMapEncodeTiled")
}

/// A product, and what follows it.
#[derive(Clone, Copy, Debug)]
struct Case {
    dtype: DType,
    batch: usize,
    rows: usize,
    n: usize,
    k: usize,
    activation: Activation,
    prepared: bool,
    bias: bool,
    /// From an operand, or in place.
    residual: Option<bool>,
    /// Its length.
    gate: Option<usize>,
    masked: bool,
}

fn case(dtype: DType, [batch, rows, n, k]: [usize; 4]) -> Case {
    Case {
        dtype,
        batch,
        rows,
        n,
        k,
        activation: Activation::None,
        prepared: false,
        bias: false,
        residual: None,
        gate: None,
        masked: false,
    }
}

/// The result on a device. Integers: exact but for gelu, SwiGLU and gates.
fn run(device: &Device, c: Case) -> Vec<f32> {
    let Case { dtype, batch, rows, n, k, .. } = c;
    let pair = c.activation == Activation::SwiGlu;
    let x = tensor(device, &integers(batch * rows * k, 1), &[batch, rows, k], dtype);
    let (w, up) = (integers(n * k, 2), integers(n * k, 6));
    let host = |values: &[f32]| HostTensor::from_slice(values, &[n, k]).unwrap().into_owned().unwrap();
    let (wide_w, wide_up) = (tensor(device, &w, &[n, k], dtype), tensor(device, &up, &[n, k], dtype));
    let matrix = match (c.prepared, pair) {
        (false, false) => Matrix::View(wide_w.view()),
        (false, true) => Matrix::Pair(wide_w.view(), wide_up.view()),
        (true, _) => {
            let mut source = WeightSource::stacked(vec![host(&w)]);
            if pair {
                source.up = vec![host(&up)];
            }
            Matrix::Prepared(Arc::new(Weight::prepare(device, &source, dtype).unwrap()))
        }
    };
    let bias = tensor(device, &integers(n, 3), &[n], DType::F32);
    let start = integers(batch * rows * n, 4);
    let residual = tensor(device, &start, &[batch, rows, n], dtype);
    let mut out = tensor(device, &start, &[batch, rows, n], dtype);
    let gate = c.gate.map(|len| {
        let values: Vec<f32> = (0..len).map(|i| 0.25 + (i % 3) as f32).collect();
        tensor(device, &values, &[len], DType::F32)
    });
    let mask: Vec<u32> = (0..batch * rows).map(|row| u32::from(row % 3 != 1)).collect();
    let mask = HostTensor::from_slice(&mask, &[batch, rows]).unwrap();
    let mask = Tensor::upload(device, &mask, DType::U32).unwrap();
    let args = LinearArgs {
        bias: c.bias.then(|| bias.view()),
        residual: c.residual.map(|from| if from { Source::From(residual.view()) } else { Source::InPlace }),
        gate: gate.as_ref().map(Tensor::view),
        row_mask: c.masked.then(|| mask.view()),
        ..LinearArgs::new(x.view(), matrix, out.view_mut())
    };
    Linear { activation: c.activation, ..Default::default() }.run(device, args).unwrap();
    out.download(device).unwrap().to_f32().unwrap()
}

fn cases(dtype: DType) -> Vec<Case> {
    let tail = case(dtype, [2, 40, 72, 96]);
    let mut all = vec![
        // At most one tile; k beyond a ring of stages; partial tiles in rows, columns and k.
        case(dtype, [1, 128, 256, 64]),
        case(dtype, [1, 1, 8, 8]),
        case(dtype, [1, 70, 264, 584]),
        // Several tiles for each block, more rows of tiles than are walked at once.
        case(dtype, [1, 300, 520, 72]),
        case(dtype, [3, 400, 136, 136]),
        // Several tiles for each block, each of which goes round the ring of stages two to four
        // times.
        case(dtype, [1, 260, 264, 1032]),
        // Rows of y off multiples of 16 bytes; a prepared matrix of an odd k, and one row.
        case(dtype, [1, 129, 257, 80]),
        Case { prepared: true, ..case(dtype, [1, 1, 72, 97]) },
        Case { prepared: true, ..tail },
    ];
    let swiglu = Case { activation: Activation::SwiGlu, ..tail };
    all.extend([
        Case { bias: true, ..tail },
        Case { bias: true, activation: Activation::Relu, residual: Some(true), ..tail },
        Case { activation: Activation::SquaredRelu, ..tail },
        Case { activation: Activation::Gelu, bias: true, ..tail },
        Case { residual: Some(false), gate: Some(1), ..tail },
        Case { residual: Some(true), gate: Some(72), bias: true, masked: true, ..tail },
        Case { masked: true, ..tail },
        swiglu,
        Case { prepared: true, n: 264, rows: 140, residual: Some(true), gate: Some(1), ..swiglu },
    ]);
    all
}

#[test]
fn every_epilogue_and_every_edge() {
    // Two multiprocessors: blocks make several tiles, and the two that take turns both have some.
    let environment = [("XATTN_CUDA_LINEAR", None), ("XATTN_EMULATOR_MULTIPROCESSORS", Some("2"))];
    said(child("hopper::by_name", &environment).output().unwrap());
}

#[test]
#[ignore = "a process of its own"]
fn by_name() {
    if !is_child() {
        return;
    }
    let reference = Device::reference();
    for linear in [CudaLinear::Hopper, CudaLinear::HopperTurns] {
        let Some(device) = opened(&CudaOptions::from_env().unwrap()) else { return };
        if !is_hopper(&device) {
            eprintln!("skipped: {linear:?} is for compute capability 9.0");
            return;
        }
        let device = Device::open_cuda(&options(linear)).unwrap();
        for c in [DType::BF16, DType::F16].into_iter().flat_map(cases) {
            let before = maps();
            let (ours, truth) = (run(&device, c), run(&reference, c));
            if let Some(before) = before {
                let made = 2 + u64::from(c.activation == Activation::SwiGlu);
                assert_eq!(maps().unwrap() - before, made, "{linear:?} {c:?}: tensor maps");
            }
            // Rounded once: within one unit of the last place if the f32 is not exact.
            let exact = c.gate.is_none() && !matches!(c.activation, Activation::Gelu | Activation::SwiGlu);
            let unit = if exact {
                0.0
            } else if c.dtype == DType::F16 {
                2f32.powi(-10)
            } else {
                2f32.powi(-7)
            };
            for (i, (a, b)) in ours.iter().zip(&truth).enumerate() {
                assert!((a - b).abs() <= unit * b.abs().max(2f32.powi(-14)), "{linear:?} {c:?}: {i}: {a}, not {b}");
            }
            assert_eq!(ours.len(), truth.len());
        }
    }
}

/// y += x Wᵀ of two matrices, captured together and launched twice, with maps per launch.
#[test]
fn captured_products_keep_their_maps() {
    let Some(device) = opened(&CudaOptions::from_env().unwrap()).filter(is_hopper) else { return };
    drop(device);
    let device = Device::open_cuda(&options(CudaLinear::HopperTurns)).unwrap();
    let (rows, n, k, dtype) = (130, 72, 200, DType::F16);
    let (start, w) = (integers(rows * n, 4), integers(n * k, 2));
    let spec = |shape: &[usize]| crate::support::spec(dtype, shape);
    let shapes = LinearArgs {
        residual: Some(Source::InPlace),
        ..LinearArgs::new(spec(&[1, rows, k]), Matrix::View(spec(&[n, k])), spec(&[1, rows, n]))
    };
    let prepared = Linear::default().prepare(&device, shapes).unwrap();
    let matrix = tensor(&device, &w, &[n, k], dtype);
    let xs = [1, 3].map(|salt| integers(rows * k, salt));
    let inputs = xs.each_ref().map(|x| tensor(&device, x, &[1, rows, k], dtype));
    let mut outs = xs.each_ref().map(|_| tensor(&device, &start, &[1, rows, n], dtype));
    let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
    let mut recorder = device.recorder().unwrap();
    let record = |recorder: &mut Recorder<'_>| {
        for (x, out) in inputs.iter().zip(&mut outs) {
            let args = LinearArgs {
                residual: Some(Source::InPlace),
                ..LinearArgs::new(x.view(), Matrix::View(matrix.view()), out.view_mut())
            };
            prepared.enqueue(recorder, args, &mut workspace)?;
        }
        Ok(())
    };
    // SAFETY: everything that is recorded lives to the end of the test; the graph is gone before.
    let mut graph = unsafe { device.capture(&mut recorder, record) }.unwrap();
    graph.launch(&mut recorder).unwrap();
    graph.launch(&mut recorder).unwrap();
    device.finish(recorder).unwrap();
    drop(graph);
    for (x, out) in xs.iter().zip(&outs) {
        let ours = out.download(&device).unwrap().to_f32().unwrap();
        for (i, y) in ours.into_iter().enumerate() {
            let (row, column) = (i / n, i % n);
            let product: f32 = (0..k).map(|j| x[row * k + j] * w[column * k + j]).sum();
            assert_eq!(y, start[i] + 2.0 * product, "row {row}, column {column}");
        }
    }
}

#[test]
fn what_they_do_not_serve_is_the_tables() {
    said(child("hopper::others", &[("XATTN_CUDA_LINEAR", None)]).output().unwrap());
}

#[test]
#[ignore = "a process of its own"]
fn others() {
    if !is_child() || !emulated() {
        eprintln!("skipped: only the emulator's driver counts calls");
        return;
    }
    let (device, reference) = (Device::open_cuda(&options(CudaLinear::Hopper)).unwrap(), Device::reference());
    // f32; rows of x that do not lie on multiples of 16 bytes.
    for c in [case(DType::F32, [1, 20, 24, 40]), case(DType::BF16, [1, 20, 24, 41])] {
        assert_eq!(run(&device, c), run(&reference, c), "{c:?}");
    }
    // An address that does not, which is known when the product is enqueued.
    let (rows, n, k) = (20, 24, 40);
    let bf16 = DType::BF16;
    let values = integers(rows * k + 1, 1);
    let result = |device: &Device| {
        let (x, w) =
            (tensor(device, &values, &[rows * k + 1], bf16), tensor(device, &integers(n * k, 2), &[n, k], bf16));
        let mut out = Tensor::zeros(device, bf16, &[1, rows, n]).unwrap();
        let flat = x.view().narrow(0, 1, rows * k).unwrap();
        let x = flat.split(0, 1, rows * k).unwrap().split(1, rows, k).unwrap();
        Linear::default().run(device, LinearArgs::new(x, Matrix::View(w.view()), out.view_mut())).unwrap();
        out.download(device).unwrap().to_f32().unwrap()
    };
    assert_eq!(result(&device), result(&reference));
    assert_eq!(maps(), Some(0));
}

#[test]
fn on_other_devices_a_name_is_refused() {
    if !emulated() {
        eprintln!("skipped: only the emulator is a device of another kind");
        return;
    }
    let environment = [("XATTN_CUDA_LINEAR", None), ("XATTN_EMULATOR_SM", Some("89"))];
    said(child("hopper::elsewhere", &environment).output().unwrap());
}

#[test]
#[ignore = "a process of its own"]
fn elsewhere() {
    if !is_child() {
        return;
    }
    let device = Device::open_cuda(&options(CudaLinear::HopperTurns)).unwrap();
    let spec = |shape: &[usize]| crate::support::spec(DType::BF16, shape);
    let args = LinearArgs::new(spec(&[1, 8, 64]), Matrix::View(spec(&[16, 64])), spec(&[1, 8, 16]));
    let message = Linear::default().prepare(&device, args).err().unwrap().to_string();
    let words = "linear: linear_hopper_turns_bf16 on sm_89 is not supported by cuda; available: only sm_90a has its instructions";
    assert_eq!(message, words);
    let c = case(DType::F32, [1, 20, 24, 40]);
    assert_eq!(run(&device, c), run(&Device::reference(), c), "what it would not serve anyway is the table's");
}
