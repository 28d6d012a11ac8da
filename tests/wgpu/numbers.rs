//! What a call of each op costs, as numbers: dispatches that the recorder counted, bytes that the
//! model says, blocks of keys that the kernels counted. `bridges.rs` does the same for bridges.

use xattn::bench::cases;
use xattn::ops::{
    Attention, AttentionArgs, DocumentEnd, GatedResidual, GatedResidualArgs, Keys, Linear, LinearArgs, Matrix, Media,
    MediaIndex, MediaIndexArgs, MediaSource, Norm, NormArgs, NormKind, Segment, Source, Visibility,
};
use xattn::{DType, Device, Dispatch, Recorder, Tensor, View, ViewMut, WgpuOptions, Workspace};

use crate::support::{device, since};

/// Dispatches and model bytes of one call.
fn numbers<O: Dispatch>(device: &Device, op: &O, args: O::Args<View<'_>, ViewMut<'_>>) -> (u32, u64) {
    let shapes = O::shapes(&args);
    let prepared = op.prepare(device, shapes.unwrap()).unwrap();
    let mut workspace = Workspace::new(device, prepared.workspace_bytes()).unwrap();
    let mut recorder = device.recorder().unwrap();
    prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
    let Recorder::Wgpu(inner) = &recorder else { unreachable!() };
    let dispatches = inner.dispatches();
    device.finish(recorder).unwrap();
    (dispatches, prepared.cost().bytes)
}

fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::zeros(device, dtype, shape).unwrap()
}

#[test]
fn one_dispatch_per_op_and_the_bytes_of_the_model() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let (rows, k, n) = (100, 48, 33);

    let (x, gate) = (zeros(&device, DType::BF16, &[1, rows, n]), zeros(&device, DType::F32, &[1]));
    let mut out = zeros(&device, DType::F32, &[1, rows, n]);
    let args =
        GatedResidualArgs { x: Source::InPlace, y: x.view(), gate: gate.view(), row_mask: None, out: out.view_mut() };
    // y, the gate, out read and written.
    assert_eq!(numbers(&device, &GatedResidual, args), (1, (2 * 3300 + 4 + 2 * 4 * 3300) as u64));

    let (x, weight) = (zeros(&device, DType::F16, &[1, rows, 1, k]), zeros(&device, DType::F32, &[k]));
    let mut out = zeros(&device, DType::F16, &[1, rows, 1, k]);
    let norm = Norm { kind: NormKind::Rms, eps: 1e-5 };
    let args = NormArgs::new(Source::From(x.view()), Some(weight.view()), None, out.view_mut());
    assert_eq!(numbers(&device, &norm, args), (1, (2 * 2 * 4800 + 4 * 48) as u64));

    // Bias, gate, residual in place: all in the product's epilogue.
    let (x, w) = (zeros(&device, DType::F32, &[1, rows, k]), zeros(&device, DType::F32, &[n, k]));
    let bias = zeros(&device, DType::F32, &[n]);
    let mut out = zeros(&device, DType::F32, &[1, rows, n]);
    let args = LinearArgs {
        bias: Some(bias.view()),
        gate: Some(gate.view()),
        residual: Some(Source::InPlace),
        ..LinearArgs::new(x.view(), Matrix::View(w.view()), out.view_mut())
    };
    let bytes = 4 * (rows * k + n * k + n + 1 + 2 * rows * n);
    assert_eq!(numbers(&device, &Linear::default(), args), (1, bytes as u64));
}

#[test]
fn media_index_with_its_plan_is_one_dispatch() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let ints = |shape: &[usize]| zeros(&device, DType::I32, shape);
    let (ids, carry_in) = (ints(&[3, 700]), ints(&[3]));
    let (mut phi, mut carry_out) = (ints(&[3, 700]), ints(&[3]));
    let mut plan = zeros(&device, DType::U32, &[3, 701, 2]);
    let op = MediaIndex { next: false, document_end: DocumentEnd::Restart { token: 2 } };
    let args = MediaIndexArgs {
        source: MediaSource::Tokens { ids: ids.view(), token: 9 },
        carry_in: Some(carry_in.view()),
        carry_out: Some(carry_out.view_mut()),
        media_count: None,
        media_index: phi.view_mut(),
        plan: Some(plan.view_mut()),
    };
    assert_eq!(numbers(&device, &op, args), (1, 4 * (2 * 3 * 700 + 2 * 3 + 3 * 701 * 2)));
}

/// Index operands beyond the bindings are copied, one dispatch each; so is `row_visible`.
#[test]
fn attention_is_one_dispatch_and_its_extras_are_one_each() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let (rows, first, second) = (20, 70, 50);
    let real = |n: usize| zeros(&device, DType::F32, &[2, n, 2, 16]);
    let (q, k, v, k2, v2) = (real(rows), real(first), real(first), real(second), real(second));
    let (lengths, slots) = (zeros(&device, DType::U32, &[2]), zeros(&device, DType::U32, &[2]));
    let phi = zeros(&device, DType::I32, &[2, rows]);
    let mut out = real(rows);
    let op = Attention::for_head_dim(16);
    let reals = 4 * 2 * 32 * (2 * rows + 2 * first + 2 * second) as u64;

    let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
    args.second = Some(Segment::new(k2.view(), v2.view()));
    assert_eq!(numbers(&device, &op, args), (1, reals));

    let (mut sums, mut seen) = (zeros(&device, DType::F32, &[2, rows, 2]), zeros(&device, DType::U32, &[2, rows]));
    let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
    let mut segment = Segment::new(k.view(), v.view()).with_keys(Keys::Lengths(lengths.view()));
    segment.slots = Some(slots.view());
    args.first = segment;
    args.second = Some(Segment::new(k2.view(), v2.view()));
    let media = Media { media_index: phi.view(), keys_per_media: 60, plan: None };
    args.visibility = Visibility::PrecedingMedia(media);
    args.log_sum_exp = Some(sums.view_mut());
    args.row_visible = Some(seen.view_mut());
    // 7 buffers of reals leave one of 8: lengths, slots and φ are packed. 2 lengths, 2 slots, φ,
    // sums of 2 heads, row_visible.
    let extras = 4 * (2 + 2 + 2 * rows + 4 * rows + 2 * rows) as u64;
    assert_eq!(numbers(&device, &op, args), (1 + 3 + 1, reals + extras));
}

/// Dispatches, bytes and blocks of keys of named cases. A tile of the kernels has 32 (row, head)
/// pairs and visits blocks of 64 keys of the joint axis of both segments; of single rows, blocks of
/// 128.
#[test]
fn named_cases() {
    let mut options = WgpuOptions::default();
    options.count_key_blocks = true;
    let Some(device) = device(&options) else { return };
    // Bytes of q and out, and of K and V, of so many rows and numbers in a row; each in f32.
    let attention = |q: usize, width: usize, keys: usize, kv_width: usize| 8 * (q * width + keys * kv_width) as u64;
    for (name, dispatches, bytes, blocks) in [
        // Heads times tiles of rows times blocks: of 256 + 64 keys, of 257 + 64.
        ("attention/openflamingo-resampler/b1", 1, attention(64, 512, 320, 512), 8 * 2 * 5),
        ("attention/idefics-resampler/b1", 1, attention(64, 1536, 321, 1536), 16 * 2 * 6),
        // Each tile of 32 of the 512 rows sees one medium. φ is one number per row.
        ("attention/openflamingo/l512-n8", 1, attention(512, 512, 512, 512) + 4 * 512, 8 * 16),
        ("attention/openflamingo/l512-n1", 1, attention(512, 512, 64, 512) + 4 * 512, 8 * 16),
        // A decoding step sees one of 4 media.
        ("attention/openflamingo-decode/b1-n4", 1, attention(1, 512, 64, 512) + 4, 8),
        ("attention/openflamingo-decode/b16-n4", 1, attention(16, 512, 16 * 64, 512) + 4 * 16, 16 * 8),
        // 32 queries, 32 rows of text: no tile looks beyond key 63.
        ("attention/blip2-itg/q32-t32", 1, attention(64, 768, 64, 768), 12 * 2),
        ("attention/blip2-cross/k257", 1, attention(32, 768, 257, 768), 12 * 5),
        // 32 + 128 keys, all of which exist: 3 blocks for each of 5 tiles.
        ("attention/instructblip-self/q32-t128", 1, attention(160, 768, 160, 768) + 4, 12 * 5 * 3),
        // Four query heads share the keys read: 8 K/V heads; one row sees four tiles of 1601 keys,
        // named by one word. The kernel for single rows has blocks of 128 keys, in chunks of 256
        // that a second dispatch merges.
        ("attention/llama-3.2-11b-decode/k6404", 2, attention(1, 4096, 0, 0) + attention(0, 0, 6404, 1024) + 4, 8 * 51),
        // Token ids, φ, and the plan: a pair of words per row of text, and one for their number.
        ("media_index/l2048-n32/b8", 1, 4 * 8 * (2 * 2048 + 2 * 2049), 0),
        ("norm/layer/512x2048", 1, 4 * (2 * 512 * 2048 + 2 * 2048), 0),
        ("norm/rms/512x4096", 1, 4 * (2 * 512 * 4096 + 4096), 0),
        // In place: read and written.
        ("norm/rms-heads/512x32x128", 1, 4 * (2 * 512 * 4096 + 128), 0),
        ("linear/q/512x2048-512", 1, 4 * (512 * 2048 + 512 * 2048 + 512 * 512), 0),
        ("linear/gelu-bias/32x768-3072", 1, 4 * (32 * 768 + 3072 * 768 + 3072 + 32 * 3072), 0),
        ("linear/decode/1x4096-4096", 1, 4 * (4096 + 4096 * 4096 + 1 + 2 * 4096), 0),
        ("gated_residual/512x2048", 1, 4 * (3 * 512 * 2048 + 1), 0),
    ] {
        let case = cases().into_iter().find(|c| c.name == name).unwrap();
        let mut built = case.build(&device, DType::F32).unwrap();
        let call = built.runnable();
        call.run().unwrap();
        let visited = device.wgpu_key_blocks().unwrap().unwrap();
        let before = device.wgpu_counts().unwrap();
        call.run().unwrap();
        let counts = since(&device, &before);
        assert_eq!((counts.buffers, counts.bind_groups, counts.pipelines), (0, 0, 0), "{name}");
        let visited = device.wgpu_key_blocks().unwrap().unwrap() - visited;
        assert_eq!((counts.dispatches, counts.submissions), (dispatches, 1), "{name}");
        assert_eq!((call.cost().bytes, visited), (bytes, blocks), "{name}");
    }
}
