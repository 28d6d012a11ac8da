//! CUDA: a recorder keeps its stream, and none, no memory and no workspace of one device reaches
//! another. Safe code only. Needs a device, or `scripts/emulated-cuda`; without one a test says
//! that it is skipped.

#![forbid(unsafe_code)]

use xattn::ops::{
    Attention, AttentionArgs, GatedResidual, GatedResidualArgs, Linear, LinearArgs, Matrix, MediaIndex, MediaIndexArgs,
    MediaSource, Norm, NormArgs, NormKind, Source,
};
use xattn::{CudaCublasLt, CudaOptions, DType, Device, Dispatch, Error, HostTensor, Prepared, Spec, Tensor, Workspace};

fn device() -> Option<Device> {
    let mut options = CudaOptions::from_env().unwrap();
    options.cublaslt = CudaCublasLt::On;
    match Device::open_cuda(&options) {
        Ok(device) => Some(device),
        Err(error @ Error::Unavailable { .. }) => {
            assert!(std::env::var_os("XATTN_EMULATOR_SEED").is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn spec(shape: &[usize]) -> Spec {
    Spec::contiguous(DType::F32, shape).unwrap()
}

fn tensor(device: &Device, values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::upload(device, &HostTensor::from_slice(values, shape).unwrap(), DType::F32).unwrap()
}

/// `out = out + y`: the gate is so large that its tanh is 1.
fn sum(device: &Device) -> Prepared<GatedResidual> {
    let shapes = GatedResidualArgs::new(Source::InPlace, spec(&[1, 2, 4]), spec(&[1]), spec(&[1, 2, 4]));
    GatedResidual.prepare(device, shapes).unwrap()
}

struct Operands {
    y: Tensor,
    gate: Tensor,
    out: Tensor,
}

impl Operands {
    fn new(device: &Device) -> Self {
        let ones = [1.0; 8];
        Operands {
            y: tensor(device, &ones, &[1, 2, 4]),
            gate: tensor(device, &[99.0], &[1]),
            out: tensor(device, &ones, &[1, 2, 4]),
        }
    }

    fn args(&mut self) -> GatedResidualArgs<xattn::View<'_>, xattn::ViewMut<'_>> {
        GatedResidualArgs::new(Source::InPlace, self.y.view(), self.gate.view(), self.out.view_mut())
    }
}

/// `c1_recorder_outlives`: it waited for a stream that was destroyed with its device.
#[test]
fn a_recorder_outlives_its_device_and_is_no_other_devices() {
    let (Some(a), Some(b)) = (device(), device()) else { return };
    let recorder = a.recorder().unwrap();
    drop(a);
    let said = b.finish(recorder).unwrap_err().to_string();
    assert_eq!(said, "finish: recorder: expected one of this device, got one of another cuda device");
}

/// `c2_recorder_outlives_enqueue`: a kernel was launched on a destroyed stream.
#[test]
fn nothing_is_enqueued_on_another_devices_recorder() {
    let (Some(a), Some(b)) = (device(), device()) else { return };
    let (prepared, mut operands) = (sum(&b), Operands::new(&b));
    let mut workspace = Workspace::new(&b, prepared.workspace_bytes()).unwrap();
    let mut recorder = a.recorder().unwrap();
    drop(a);
    let said = prepared.enqueue(&mut recorder, operands.args(), &mut workspace).unwrap_err().to_string();
    let words = "gated_residual: recorder: expected one of this device, got one of another cuda device or context";
    assert_eq!(said, words);
    assert_eq!(operands.out.download(&b).unwrap().to_f32().unwrap(), [1.0; 8], "nothing ran");
}

/// The recorder has its stream, whatever becomes of the device's other handles.
#[test]
fn a_recorder_is_used_after_its_device_was_dropped() {
    let Some(a) = device() else { return };
    let (prepared, mut operands) = (sum(&a), Operands::new(&a));
    let mut workspace = Workspace::new(&a, prepared.workspace_bytes()).unwrap();
    let (mut recorder, again) = (a.recorder().unwrap(), a.clone());
    drop(a);
    for _ in 0..3 {
        prepared.enqueue(&mut recorder, operands.args(), &mut workspace).unwrap();
    }
    again.finish(recorder).unwrap();
    assert_eq!(operands.out.download(&again).unwrap().to_f32().unwrap(), [4.0; 8]);
    let mut recorder = again.recorder().unwrap();
    drop(again);
    prepared.enqueue(&mut recorder, operands.args(), &mut workspace).unwrap();
    // Work that nobody waits for, and then all that it needs goes: code, stream, memory.
    drop((prepared, recorder));
}

/// The addresses that cuBLASLt got came from the workspace, whose owner nobody had asked.
#[test]
fn memory_and_workspaces_of_another_device_are_refused() {
    let (Some(a), Some(b)) = (device(), device()) else { return };
    let (rows, n, k) = (64, 64, 64);
    let (x, w, gate) = (
        tensor(&b, &vec![1.0; rows * k], &[1, rows, k]),
        tensor(&b, &vec![1.0; n * k], &[n, k]),
        tensor(&b, &vec![0.5; n], &[n]),
    );
    let mut out = tensor(&b, &vec![1.0; rows * n], &[1, rows, n]);
    let shapes = LinearArgs {
        residual: Some(Source::InPlace),
        gate: Some(gate.spec()),
        ..LinearArgs::new(x.spec(), Matrix::View(w.spec()), out.spec())
    };
    let prepared = Linear::default().prepare(&b, shapes).unwrap();
    assert!(prepared.workspace_bytes() > 0 || std::env::var_os("XATTN_EMULATOR_SEED").is_none(), "by cuBLASLt");
    let foreign = tensor(&a, &vec![1.0; rows * k], &[1, rows, k]);
    let mut recorder = b.recorder().unwrap();
    for (x, of, name) in [(&x, &a, "workspace"), (&foreign, &b, "x")] {
        let mut workspace = Workspace::new(of, prepared.workspace_bytes()).unwrap();
        let args = LinearArgs {
            residual: Some(Source::InPlace),
            gate: Some(gate.view()),
            ..LinearArgs::new(x.view(), Matrix::View(w.view()), out.view_mut())
        };
        let said = prepared.enqueue(&mut recorder, args, &mut workspace).unwrap_err().to_string();
        let words = format!("linear: {name}: expected memory of this device, got memory of another cuda device");
        assert_eq!(said, words);
    }
    b.finish(recorder).unwrap();
    let said = a.download(&out.view()).unwrap_err().to_string();
    assert_eq!(said, "download: view: expected memory of this device, got memory of another cuda device");
}

/// Extents that nobody bounds where another one is 0, and sums and products of them that leave the
/// word: a plan or an error, never a panic, and never a plan for memory that is not there. An
/// operand that is read may repeat one element, so that its span says nothing.
#[test]
fn absurd_extents_are_planned_or_refused() {
    const EXTENTS: [usize; 8] = [0, 1, 2, 8, 1 << 31, (1 << 32) + 1, 1 << 61, usize::MAX];
    let Some(device) = device() else { return };
    let repeated = |shape: &[usize]| {
        let mut strides = vec![0; shape.len()];
        strides[shape.len() - 1] = 1;
        Spec::strided(DType::BF16, shape, &strides)
    };
    let gapless = |shape: &[usize]| Spec::contiguous(DType::BF16, shape);
    let (mut planned, mut refused) = (0, 0);
    let mut count = |what: &str, plan: Result<usize, Error>| match plan {
        // Scratch memory is for results, and those fit.
        Ok(bytes) => {
            assert!(bytes <= 1 << 40, "{what}: {bytes} bytes");
            planned += 1;
        }
        Err(_) => refused += 1,
    };
    let each = |f: &mut dyn FnMut([usize; 4])| {
        for i in 0..EXTENTS.len().pow(4) {
            f([0, 1, 2, 3].map(|d| EXTENTS[i / EXTENTS.len().pow(d) % EXTENTS.len()]));
        }
    };
    each(&mut |[a, b, c, d]| {
        let what = format!("{a} {b} {c} {d}");
        if let (Ok(x), Ok(out)) = (repeated(&[a, b, c, d]), gapless(&[a, b, c, d])) {
            let norm = Norm { kind: NormKind::Rms, eps: 1e-6 };
            let plan = norm.prepare(&device, NormArgs::new(Source::From(x), None, None, out));
            count(&format!("norm {what}"), plan.map(|p| p.workspace_bytes()));
        }
        if let (Ok(x), Ok(w), Ok(out)) = (repeated(&[a, b, c]), repeated(&[d, c]), gapless(&[a, b, d])) {
            let plan = Linear::default().prepare(&device, LinearArgs::new(x, Matrix::View(w), out));
            count(&format!("linear {what}"), plan.map(|p| p.workspace_bytes()));
        }
        // a problems, b rows and c keys of 2 heads of d.
        if let (Ok(q), Ok(k), Ok(out)) = (repeated(&[a, b, 2, d]), repeated(&[a, c, 1, d]), gapless(&[a, b, 2, d])) {
            let plan = Attention::for_head_dim(64).prepare(&device, AttentionArgs::new(q, k, k, out));
            count(&format!("attention {what}"), plan.map(|p| p.workspace_bytes()));
        }
        if d == 0
            && let (Ok(y), Ok(out)) = (repeated(&[a, b, c]), gapless(&[a, b, c]))
        {
            let gate = Spec::contiguous(DType::F32, &[1]).unwrap();
            let plan = GatedResidual.prepare(&device, GatedResidualArgs::new(Source::InPlace, y, gate, out));
            count(&format!("gated_residual {what}"), plan.map(|p| p.workspace_bytes()));
        }
        if (c, d) == (0, 0)
            && let (Ok(ids), Ok(phi)) =
                (Spec::strided(DType::I32, &[a, b], &[0, 1]), Spec::contiguous(DType::I32, &[a, b]))
        {
            let source = MediaSource::Tokens { ids, token: 7 };
            let plan = MediaIndex::default().prepare(&device, MediaIndexArgs::new(source, phi));
            count(&format!("media_index {what}"), plan.map(|p| p.workspace_bytes()));
        }
    });
    assert!(planned > 500 && refused > 500, "{planned} planned, {refused} refused");
    // Nothing to do is no launch, whatever the other extents.
    let nothing = MediaSource::Tokens { ids: Spec::contiguous(DType::I32, &[u32::MAX as usize, 0]).unwrap(), token: 7 };
    let phi = Spec::contiguous(DType::I32, &[u32::MAX as usize, 0]).unwrap();
    MediaIndex::default().prepare(&device, MediaIndexArgs::new(nothing, phi)).unwrap();
}
