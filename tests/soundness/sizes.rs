//! Extents of 0 and strides of 0: shapes that need no memory, so that no memory bounds them. Their
//! sizes wrapped, their loops ran for centuries, and copies of them aborted the process.

use std::time::{Duration, Instant};

use xattn::bridge::{Interpolation, PerceiverResampler, Precision, ResamplerArgs};
use xattn::checkpoint::flamingo;
use xattn::ops::{
    Attention, AttentionArgs, EmptyRows, GatedResidual, GatedResidualArgs, Keys, Linear, LinearArgs, Matrix,
    MediaIndex, MediaIndexArgs, MediaSource, Norm, NormArgs, NormKind, Source,
};
use xattn::{DType, Device, Dispatch, Error, HostTensor, Result, Spec, View, ViewMut, Weight, WeightSource, Workspace};

/// On the CPU and the reference: an answer at once, and a small workspace.
fn answers<O: Dispatch>(op: &O, args: impl Fn() -> Result<O::Args<View<'static>, ViewMut<'static>>>) -> [Result<()>; 2]
where
    O::Args<Spec, Spec>: Send + Sync,
{
    [Device::cpu(), Device::reference()].map(|device| {
        let start = Instant::now();
        let result = (|| {
            let args = args()?;
            let prepared = op.prepare(&device, O::shapes(&args)?)?;
            assert!(prepared.workspace_bytes() < 1 << 20, "a workspace of {} bytes", prepared.workspace_bytes());
            let mut workspace = Workspace::new(&device, prepared.workspace_bytes())?;
            prepared.enqueue(&mut device.recorder()?, args, &mut workspace)
        })();
        assert!(start.elapsed() < Duration::from_secs(5), "{device:?} took {:?}", start.elapsed());
        result
    })
}

static GATE: [f32; 1] = [1.0];

fn empty(shape: &[usize]) -> Result<View<'static>> {
    View::new::<f32>(&[], shape)
}

fn empty_mut(shape: &[usize]) -> Result<ViewMut<'static>> {
    ViewMut::new::<f32>(&mut [], shape)
}

/// Both answers say this. Where addresses have 32 bits, the numbers are others and may fit.
#[track_caller]
fn assert_refused(results: [Result<()>; 2], message: &str) {
    for result in results {
        match result {
            Err(error) if usize::BITS == 64 => assert_eq!(error.to_string(), message),
            Err(Error::Argument { .. }) => {}
            Err(other) => panic!("{other}"),
            Ok(()) if usize::BITS < 64 => {}
            Ok(()) => panic!("accepted"),
        }
    }
}

/// The workspace's size wrapped to 128 bytes; tanh(gate) was written 2^63 bytes behind it.
#[test]
fn a_product_of_no_rows_and_2_61_columns() {
    const N: usize = if usize::BITS == 64 { (1 << 61) - 1 } else { (1 << 29) - 1 };
    assert_refused(
        answers(&Linear::default(), || {
            let args = LinearArgs::new(empty(&[0, 0, 0])?, Matrix::View(empty(&[N, 0])?), empty_mut(&[0, 0, N])?);
            Ok(LinearArgs { gate: Some(View::new(&GATE, &[1])?), ..args })
        }),
        "linear: weight: expected at most 2^32 - 1 elements, got f32[2305843009213693951, 0]",
    );
}

/// The workspace's size wrapped to 7744 bytes; 2^55 zeros were written at a wrapped address.
#[cfg(target_pointer_width = "64")]
#[test]
fn attention_without_heads_of_2_55_columns() {
    const D: usize = 0x00fe_03f8_0fe0_3f90;
    assert_refused(
        answers(&Attention::for_head_dim(D), || {
            Ok(AttentionArgs::new(
                empty(&[1, 1, 0, D])?,
                empty(&[1, 0, 0, D])?,
                empty(&[1, 0, 0, D])?,
                empty_mut(&[1, 1, 0, D])?,
            ))
        }),
        "attention: q: expected at most 2^32 - 1 elements, got f32[1, 1, 0, 71499008037633936]",
    );
}

const MANY: usize = 1 << (usize::BITS / 2 - 3);

/// 2^58 rows and heads of width 0 were visited one by one.
#[test]
fn attention_of_width_0_over_many_rows_and_heads() {
    let op = Attention { scale: 1.0, empty_rows: EmptyRows::default() };
    let (q, k) = ([1, MANY, MANY, 0], [1, 1, MANY, 0]);
    assert_refused(
        answers(&op, || {
            Ok(AttentionArgs::new(
                View::strided::<f32>(&[], &q, &[0, MANY, 1, 1])?,
                View::strided::<f32>(&[], &k, &[0, 0, 1, 1])?,
                View::strided::<f32>(&[], &k, &[0, 0, 1, 1])?,
                ViewMut::strided::<f32>(&mut [], &q, &[0, MANY, 1, 1])?,
            ))
        }),
        "attention: q: expected at most 2^32 - 1 elements, got f32[1, 536870912, 536870912, 0]",
    );
}

/// As above, for the other ops.
#[test]
fn rows_of_width_0_take_no_time() {
    let wide = [1, MANY, MANY, 0];
    assert_refused(
        answers(&Norm { kind: NormKind::Rms, eps: 1e-5 }, || {
            Ok(NormArgs::new(Source::From(empty(&wide)?), None, None, empty_mut(&wide)?))
        }),
        "norm: out: expected at most 2^32 - 1 elements, got f32[1, 536870912, 536870912, 0]",
    );
    let wide = [MANY, MANY, 0];
    assert_refused(
        answers(&GatedResidual, || {
            let x = Source::From(empty(&wide)?);
            Ok(GatedResidualArgs::new(x, empty(&wide)?, View::new(&GATE, &[1])?, empty_mut(&wide)?))
        }),
        "gated_residual: out: expected at most 2^32 - 1 elements, got f32[536870912, 536870912, 0]",
    );
    assert_refused(
        answers(&Linear::default(), || {
            Ok(LinearArgs::new(empty(&[MANY, MANY, 0])?, Matrix::View(empty(&[0, 0])?), empty_mut(&wide)?))
        }),
        "linear: x: expected at most 2^32 - 1 elements, got f32[536870912, 536870912, 0]",
    );
    let none = [MANY * MANY, 0];
    assert_refused(
        answers(&MediaIndex::default(), || {
            let locations = MediaSource::Locations(View::new::<u32>(&[], &none)?);
            Ok(MediaIndexArgs::new(locations, ViewMut::new::<i32>(&mut [], &none)?))
        }),
        "media_index: media_index: expected at most 2^32 - 1 elements, got i32[288230376151711744, 0]",
    );
}

/// As many as an operand may name, without an element: no loop over them either.
#[test]
fn what_is_empty_is_done_at_once() {
    fn done(results: [Result<()>; 2]) {
        results.into_iter().for_each(|result| result.unwrap());
    }
    let (rows, heads) = (1 << 16, 1 << 15);
    let (q, k) = ([1, rows, heads, 0], [1, 1, heads, 0]);
    let op = Attention { scale: 1.0, empty_rows: EmptyRows::default() };
    done(answers(&op, || Ok(AttentionArgs::new(empty(&q)?, empty(&k)?, empty(&k)?, empty_mut(&q)?))));
    done(answers(&Norm { kind: NormKind::Layer, eps: 1e-5 }, || {
        Ok(NormArgs::new(Source::From(empty(&q)?), None, None, empty_mut(&q)?))
    }));
    let wide = [rows, heads, 0];
    done(answers(&GatedResidual, || {
        let x = Source::From(empty(&wide)?);
        Ok(GatedResidualArgs::new(x, empty(&wide)?, View::new(&GATE, &[1])?, empty_mut(&wide)?))
    }));
    done(answers(&Linear::default(), || {
        let args = LinearArgs::new(empty(&wide)?, Matrix::View(empty(&[0, 0])?), empty_mut(&wide)?);
        Ok(LinearArgs { gate: Some(View::new(&GATE, &[1])?), ..args })
    }));
    let none = [rows * heads, 0];
    done(answers(&MediaIndex::default(), || {
        let locations = MediaSource::Locations(View::new::<u32>(&[], &none)?);
        Ok(MediaIndexArgs::new(locations, ViewMut::new::<i32>(&mut [], &none)?))
    }));
}

/// Rows of width 0 see keys all the same, and have a log-sum-exp: what is asked for is computed.
#[test]
fn what_is_not_empty_is_computed() {
    for device in [Device::cpu(), Device::reference()] {
        let (mut lse, mut seen) = ([7.0f32; 6], [7u32; 3]);
        let mut args = AttentionArgs::new(
            empty(&[1, 3, 2, 0]).unwrap(),
            empty(&[1, 5, 1, 0]).unwrap(),
            empty(&[1, 5, 1, 0]).unwrap(),
            empty_mut(&[1, 3, 2, 0]).unwrap(),
        );
        args.row_visible = Some(ViewMut::new(&mut seen, &[1, 3]).unwrap());
        let op = Attention { scale: 1.0, empty_rows: EmptyRows::default() };
        op.run(&device, args).unwrap();
        assert_eq!(seen, [1; 3], "{device:?}");

        let mut args = AttentionArgs::new(
            empty(&[1, 3, 2, 0]).unwrap(),
            empty(&[1, 5, 1, 0]).unwrap(),
            empty(&[1, 5, 1, 0]).unwrap(),
            empty_mut(&[1, 3, 2, 0]).unwrap(),
        );
        args.log_sum_exp = Some(ViewMut::new(&mut lse, &[1, 3, 2]).unwrap());
        op.run(&device, args).unwrap();
        assert!(lse.iter().all(|lse| (lse - 5.0f32.ln()).abs() < 1e-6), "{device:?}: {lse:?}");

        let (mut carry, mut plan) = ([7i32; 2], [7u32; 4]);
        let locations = MediaSource::Locations(View::new::<u32>(&[], &[2, 0]).unwrap());
        let mut args = MediaIndexArgs::new(locations, ViewMut::new::<i32>(&mut [], &[2, 0]).unwrap());
        args.carry_out = Some(ViewMut::new(&mut carry, &[2]).unwrap());
        args.plan = Some(ViewMut::new(&mut plan, &[2, 1, 2]).unwrap());
        MediaIndex::default().run(&device, args).unwrap();
        assert_eq!((carry, plan), ([0; 2], [0; 4]), "{device:?}");
    }
}

/// 4 MiB of memory, of which the keys repeat one row: a dense copy of them does not fit.
#[test]
fn keys_that_repeat_do_not_abort_the_reference() {
    const D: usize = 1 << 20;
    const KEYS: usize = i32::MAX as usize;
    let (row, mut out) = (vec![0.0f32; D], vec![0.0f32; D]);
    let keys = || View::strided(&row, &[1, KEYS, 1, D], &[0, 0, 0, 1]).unwrap();
    for device in [Device::reference(), Device::yardstick(1)] {
        let q = View::new(&row, &[1, 1, 1, D]).unwrap();
        let args = AttentionArgs::new(q, keys(), keys(), ViewMut::new(&mut out, &[1, 1, 1, D]).unwrap());
        let message = Attention::for_head_dim(D).run(&device, args).unwrap_err().to_string();
        let bytes = (KEYS as u128) * (D as u128) * if device_is_f64(&device) { 8 } else { 4 };
        assert_eq!(message, format!("reference: out of memory: {bytes} bytes for a dense copy"));
    }
}

fn device_is_f64(device: &Device) -> bool {
    device.info().name.contains("f64")
}

/// Matrices without columns need no memory; their rows were added up unchecked.
#[test]
fn rows_of_stacked_matrices_are_counted() {
    let rows = isize::MAX as usize;
    let empty = || HostTensor::from_bytes(DType::F32, &[rows, 0], Vec::new()).unwrap();
    for device in [Device::cpu(), Device::reference()] {
        let source = WeightSource::stacked(vec![empty(), empty(), empty()]);
        let message = Weight::prepare(&device, &source, DType::F32).unwrap_err().to_string();
        let expected = "linear: weight: expected sizes that fit the address space, got 3 stacked matrices";
        assert_eq!(message, expected, "{device:?}");
    }
}

/// A view of one number that repeats 2^46 times.
#[test]
fn a_download_that_does_not_fit_is_an_error() {
    for (n, bytes) in [(1usize << 46, 1usize << 48), ((1 << 61) - 1, (1 << 63) - 4)] {
        let view = View::new(&[1.0f32], &[1]).unwrap().repeat(0, n).unwrap();
        let error = Device::cpu().download(&view).unwrap_err();
        assert_eq!(error, Error::OutOfMemory { backend: "cpu", purpose: "a download", bytes });
    }
}

/// Features with strides of 0 need no memory for any number of frames; time embeddings do.
#[test]
fn time_embeddings_of_more_frames_than_memory_holds() {
    let mut tensors = std::collections::BTreeMap::new();
    let mut insert = |name: &str, shape: &[usize]| {
        let values = vec![0.5f32; shape.iter().product()];
        tensors.insert(name.to_string(), HostTensor::from_slice(&values, shape).unwrap());
    };
    insert("latents", &[2, 4]);
    insert("time_embeddings", &[2, 4]);
    for norm in ["layers.0.media_norm", "layers.0.latents_norm", "layers.0.ffw_norm", "final_norm"] {
        insert(&format!("{norm}.weight"), &[4]);
        insert(&format!("{norm}.bias"), &[4]);
    }
    for matrix in ["attn.wq", "attn.wk", "attn.wv", "attn.wo"] {
        insert(&format!("layers.0.{matrix}"), &[4, 4]);
    }
    insert("layers.0.ffw.w1", &[16, 4]);
    insert("layers.0.ffw.w2", &[4, 16]);
    let how = Interpolation::Linear { align_corners: true };
    let (config, weights) = flamingo::resampler(&tensors, "", 1, how).unwrap();
    let device = Device::cpu();
    let bridge = PerceiverResampler::new(&device, &config, &weights, Precision::uniform(DType::F32)).unwrap();
    let frames = 1usize << 52;
    let features = Spec::contiguous(DType::F32, &[1, 1, 1, 4]).unwrap().expand(2, frames).unwrap();
    let out = Spec::contiguous(DType::F32, &[1, 1, 2, 4]).unwrap();
    let error = bridge.prepare(frames, ResamplerArgs { features, keys: Keys::All, offsets: None, out }).err().unwrap();
    assert_eq!(error, Error::OutOfMemory { backend: "host", purpose: "time embeddings", bytes: 32 << 52 });
}
