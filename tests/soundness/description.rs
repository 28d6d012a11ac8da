//! `enqueue` compares the description with what was prepared: operands, layouts, parameters.

use std::sync::Arc;

use xattn::ops::*;
use xattn::{DType, Device, Dispatch, HostTensor, Result, Shapes, View, ViewMut, Weight, WeightSource, Workspace};

fn devices() -> [Device; 2] {
    [Device::cpu(), Device::reference()]
}

/// Prepares for one call and enqueues another: what the second one gets.
fn swapped<'a, O: Dispatch>(
    device: &Device,
    op: &O,
    prepared: O::Args<View<'a>, ViewMut<'a>>,
    enqueued: O::Args<View<'a>, ViewMut<'a>>,
) -> Result<()> {
    let plan = op.prepare(device, O::shapes(&prepared)?)?;
    let mut workspace = Workspace::new(device, plan.workspace_bytes())?;
    plan.enqueue(&mut device.recorder()?, enqueued, &mut workspace)
}

fn view<T: xattn::Element>(data: &[T], shape: &[usize]) -> View<'static> {
    // Test data is leaked, so that two calls may name it.
    View::new(data.to_vec().leak(), shape).unwrap()
}

fn out(shape: &[usize]) -> ViewMut<'static> {
    ViewMut::new(vec![0f32; shape.iter().product()].leak(), shape).unwrap()
}

#[track_caller]
fn refused<O: Dispatch>(
    op: &O,
    prepared: impl Fn() -> O::Args<View<'static>, ViewMut<'static>>,
    enqueued: impl Fn() -> O::Args<View<'static>, ViewMut<'static>>,
    message: &str,
) {
    for device in devices() {
        swapped(&device, op, prepared(), prepared()).unwrap();
        assert_eq!(swapped(&device, op, prepared(), enqueued()).unwrap_err().to_string(), message, "{device:?}");
    }
}

/// `linear` with a reduction has one row of output per batch entry: a residual in place would be
/// read in every row of x, beyond `out`.
#[test]
fn a_residual_that_was_not_prepared_is_refused() {
    let call = |device: &Device, residual| {
        let part = HostTensor::from_slice(&[0f32; 16], &[4, 4]).unwrap();
        let weight = Weight::prepare(device, &WeightSource::stacked(vec![part]), DType::F32).unwrap();
        let mut args =
            LinearArgs::new(view(&[0f32; 12], &[1, 3, 4]), Matrix::Prepared(Arc::new(weight)), out(&[1, 1, 4]));
        args.residual = residual;
        args
    };
    let op = Linear { reduce: RowReduce::Max, ..Linear::default() };
    for device in devices() {
        let said = swapped(&device, &op, call(&device, None), call(&device, Some(Source::InPlace)));
        assert_eq!(said.unwrap_err().to_string(), "linear: residual: expected none as prepared, got in place");
        // A weight of the same shape and dtype is data.
        swapped(&device, &op, call(&device, None), call(&device, None)).unwrap();
    }
    let plain = |residual: Option<Source<View<'static>>>| {
        let mut args =
            LinearArgs::new(view(&[0f32; 12], &[1, 3, 4]), Matrix::View(view(&[0f32; 16], &[4, 4])), out(&[1, 3, 4]));
        args.residual = residual;
        args
    };
    let given = || plain(Some(Source::From(view(&[0f32; 12], &[1, 3, 4]))));
    let message = "linear: residual: expected an operand as prepared, got in place";
    refused(&Linear::default(), given, || plain(Some(Source::InPlace)), message);
}

#[test]
fn the_visibility_rule_is_the_prepared_one() {
    let call = |visibility: Visibility<View<'static>>| {
        let mut args = AttentionArgs::new(
            view(&[1f32; 4], &[1, 1, 1, 4]),
            view(&[1f32; 16], &[1, 4, 1, 4]),
            view(&[1f32; 16], &[1, 4, 1, 4]),
            out(&[1, 1, 1, 4]),
        );
        args.visibility = visibility;
        args
    };
    let media = |keys_per_media| Media { media_index: view(&[2i32], &[1, 1]), keys_per_media, plan: None };
    let same = |n| move || call(Visibility::SameMedia(media(n)));
    let op = Attention::for_head_dim(4);
    let message = "attention: visibility: expected same_media as prepared, got preceding_media";
    refused(&op, same(2), || call(Visibility::PrecedingMedia(media(2))), message);
    refused(&op, same(2), same(0), "attention: keys_per_media: expected 2 as prepared, got 0");
    refused(&op, same(4), same(2), "attention: keys_per_media: expected 4 as prepared, got 2");
    let bits = |keys_per_block| move || call(Visibility::MediaBits { bits: view(&[1u32], &[1, 1, 1]), keys_per_block });
    refused(&op, bits(2), bits(0), "attention: keys_per_block: expected 2 as prepared, got 0");
    let causal = |prefix| move || call(Visibility::PrefixCausal { prefix, offset: None });
    refused(&op, causal(1), causal(2), "attention: prefix: expected 1 as prepared, got 2");
    let offset = || call(Visibility::PrefixCausal { prefix: 1, offset: Some(view(&[3u32], &[1])) });
    refused(&op, causal(1), offset, "attention: operands: expected 4 as prepared, got 5");
    let lengths = || {
        let mut args = call(Visibility::All);
        args.first.keys = Keys::Lengths(view(&[3u32], &[1]));
        args
    };
    let slots = || {
        let mut args = call(Visibility::All);
        args.first.slots = Some(view(&[0u32], &[1]));
        args
    };
    // Equal layouts under another name.
    refused(&op, lengths, slots, "attention: first.slots: expected first.lengths u32[1] as prepared, got u32[1]");
}

/// What may differ from call to call: where row 0 stands in the cache, and how many keys exist.
#[test]
fn the_causal_offset_is_data() {
    for device in devices() {
        let (q, k) = ([1f32], [1f32; 6]);
        let v = [1f32, 2.0, 4.0, 8.0, 16.0, 32.0];
        let (mut lengths, mut offset, mut result) = ([0u32], [0u32], [0f32]);
        fn args<'a>(
            (q, k, v): (&'a [f32], &'a [f32], &'a [f32]),
            (lengths, offset): (&'a [u32], &'a [u32]),
            out: &'a mut [f32],
        ) -> AttentionArgs<View<'a>, ViewMut<'a>> {
            let cache = [1, 6, 1, 1];
            let mut args = AttentionArgs::new(
                View::new(q, &[1, 1, 1, 1]).unwrap(),
                View::new(k, &cache).unwrap(),
                View::new(v, &cache).unwrap(),
                ViewMut::new(out, &[1, 1, 1, 1]).unwrap(),
            );
            args.first.keys = Keys::Lengths(View::new(lengths, &[1]).unwrap());
            args.visibility = Visibility::PrefixCausal { prefix: 0, offset: Some(View::new(offset, &[1]).unwrap()) };
            args
        }
        let shapes = Attention::shapes(&args((&q, &k, &v), (&lengths, &offset), &mut result)).unwrap();
        let prepared = Attention::for_head_dim(1).prepare(&device, shapes).unwrap();
        let mut workspace = Workspace::new(&device, prepared.workspace_bytes()).unwrap();
        // (offset, keys that exist, mean of the values seen)
        let steps = [(0, 6, 1.0), (1, 6, 1.5), (3, 2, 1.5), (5, 6, 63.0 / 6.0), (u32::MAX, 3, 7.0 / 3.0)];
        for (at, exist, mean) in steps {
            (lengths, offset) = ([exist], [at]);
            let args = args((&q, &k, &v), (&lengths, &offset), &mut result);
            prepared.enqueue(&mut device.recorder().unwrap(), args, &mut workspace).unwrap();
            assert!((result[0] - mean as f32).abs() < 1e-5, "{device:?}, offset {at}: {} and not {mean}", result[0]);
        }
    }
}

#[test]
fn in_place_or_not_is_the_prepared_way() {
    let rows = [1, 2, 3];
    let gated = |x| GatedResidualArgs::new(x, view(&[1f32; 6], &rows), view(&[1f32], &[1]), out(&rows));
    let message = "gated_residual: x: expected an operand as prepared, got in place";
    refused(&GatedResidual, || gated(Source::From(view(&[1f32; 6], &rows))), || gated(Source::InPlace), message);
    let shape = [1, 2, 1, 3];
    let norm = |x| NormArgs::new(x, None, None, out(&shape));
    let op = Norm { kind: NormKind::Rms, eps: 1e-5 };
    let message = "norm: x: expected in place as prepared, got an operand";
    refused(&op, || norm(Source::InPlace), || norm(Source::From(view(&[1f32; 6], &shape))), message);
}

#[test]
fn the_media_token_is_the_prepared_one() {
    let call = |token| {
        move || {
            let ids = view(&[1i32, 2, 1], &[1, 3]);
            let phi = ViewMut::new(vec![0i32; 3].leak(), &[1, 3]).unwrap();
            MediaIndexArgs::new(MediaSource::Tokens { ids, token }, phi)
        }
    };
    refused(&MediaIndex::default(), call(1), call(2), "media_index: token: expected 1 as prepared, got 2");
}
