//! How many blocks of keys the kernels visit: counted by the kernels themselves, compared with what
//! the visibility rule leaves (`bench::visited`).

use std::sync::Arc;

use super::variant::PAIRS;
use super::*;
use crate::backend::Backend;
use crate::backend::wgpu::WgpuOptions;
use crate::bench::visited::rules::{preceding_media, prefix_causal, same_media, with_operands};
use crate::bench::{Blocks, spread_media, visited};
use crate::ops::{Each, EmptyRows, Keys, Segment, Visibility};
use crate::{DType, Spec as Layout};

/// A device, or none where the machine has no adapter; with `CI=true` that is a failure.
fn backend() -> Option<Arc<Wgpu>> {
    match Wgpu::open(&WgpuOptions::default()) {
        Ok(backend) => Some(Arc::new(backend)),
        Err(error @ Error::Unavailable { .. }) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{error}");
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn bound(backend: &Wgpu, dtype: DType, shape: &[usize], words: &[u32]) -> Bound<WgpuMemory> {
    let spec = Layout::contiguous(dtype, shape).unwrap();
    let buffer = backend.allocate(spec.span_bytes(), "a test operand").unwrap();
    let memory = Wgpu::memory(&buffer);
    backend.write(&memory, bytemuck::cast_slice(words)).unwrap();
    Bound { spec, memory }
}

/// Blocks that one head visits.
fn counted(
    backend: &Arc<Wgpu>,
    rows: usize,
    keys: usize,
    lengths: Option<u32>,
    rule: &Visibility<&[u32]>,
    named: Option<WgpuAttentionVariant>,
) -> usize {
    let real = |n: usize| bound(backend, DType::F32, &[1, n, 1, 8], &vec![0; n * 8]);
    let mut args = AttentionArgs::new(real(rows), real(keys), real(keys), real(rows));
    if let Some(n) = lengths {
        let Segment { k, v, .. } = args.first;
        args.first = Segment::new(k, v).with_keys(Keys::Lengths(bound(backend, DType::U32, &[1], &[n])));
    }
    let operand = |dtype, shape: &[usize], words: &[u32]| Ok(bound(backend, dtype, shape, words));
    args.visibility = with_operands(rule.clone(), 1, rows, operand).unwrap();
    let op = Attention { scale: 1.0, empty_rows: EmptyRows::default() };
    let shapes = Attention::map(Attention::as_ref(&args), &mut Each(|_, o: &Bound<WgpuMemory>| Ok(o.spec)));
    let prepared = Prepared::new(backend, &op, &shapes.unwrap(), named, true).unwrap();
    let count = bound(backend, DType::U32, &[1], &[0]);
    let workspace =
        backend.allocate(<Wgpu as Implements<Attention>>::workspace_bytes(&prepared).max(4), "scratch").unwrap();
    let mut recorder = backend.recorder().unwrap();
    prepared.record(backend, &mut recorder, &args, &workspace, Some(Operand::of(&count))).unwrap();
    let split = named.and_then(WgpuAttentionVariant::chunk_keys).is_some();
    assert_eq!(recorder.dispatches(), if split { 2 } else { 1 });
    backend.finish(recorder).unwrap();
    let mut bytes = [0; 4];
    backend.read(&count.memory, &mut bytes).unwrap();
    u32::from_le_bytes(bytes) as usize
}

#[test]
fn blocks_that_nobody_may_see_are_not_visited() {
    let Some(backend) = backend() else { return };
    let blocks = Blocks { rows: PAIRS, keys: 64 };
    let expect = |rows, keys, lengths: Option<u32>, rule: &Visibility<&[u32]>, number: Option<usize>| {
        let list = lengths.map(|n| [n]);
        let count = visited(rule, list.as_ref().map(|l| l.as_slice()), 1, rows, keys, blocks);
        assert_eq!(counted(&backend, rows, keys, lengths, rule, None), count.visited, "{rule:?} {lengths:?}");
        assert!(number.is_none_or(|n| n == count.visited), "{count:?}");
    };
    // 512 rows in 16 tiles, 8 media: each tile sees one block of the 8.
    let phi = spread_media(1, 512, 8);
    expect(512, 512, None, &same_media(&phi), Some(16));
    // Media 7 and 8 do not exist.
    expect(512, 512, Some(384), &same_media(&phi), Some(12));
    // Runs of 10 rows: tiles are cut there.
    let phi = spread_media(1, 40, 4);
    expect(40, 256, None, &same_media(&phi), Some(4 + 1));
    let phi = spread_media(1, 100, 5);
    expect(100, 320, None, &preceding_media(&phi), Some(2 + 4 + 5 + 5));
    expect(100, 320, Some(100), &preceding_media(&phi), Some(4 * 2));
    expect(128, 128, None, &prefix_causal(32, &[0]), Some(1 + 1 + 2 + 2));
    expect(33, 200, None, &Visibility::All, Some(2 * 4));
    expect(33, 200, Some(64), &Visibility::All, Some(2));
    // The rows of one tile see blocks 0 and 2 of 64 keys, those of the other one nothing.
    let bits: Vec<u32> = (0..40).map(|row| [0b100, 0b1, 0][(row / 16).min(2)]).collect();
    expect(40, 256, None, &Visibility::MediaBits { bits: &bits, keys_per_block: 64 }, Some(2));
}

/// The other variants skip the same keys by blocks of their own (`attention_decode`: 1 x 128).
#[test]
fn named_variants_visit_what_a_row_may_see() {
    let Some(backend) = backend() else { return };
    let expect = |variant, rows, keys, lengths: Option<u32>, rule: &Visibility<&[u32]>, number: usize| {
        assert_eq!(counted(&backend, rows, keys, lengths, rule, Some(variant)), number, "{variant} {rule:?}");
    };
    let (decode, split) = (WgpuAttentionVariant::Decode, WgpuAttentionVariant::DecodeSplit);
    // A medium is 64 keys: one block, wherever it begins. φ = 9 is no medium.
    expect(decode, 3, 512, None, &same_media(&[8, 9, 3]), 2);
    expect(decode, 1, 512, Some(300), &same_media(&[5]), 1);
    expect(decode, 1, 512, Some(256), &same_media(&[5]), 0);
    expect(decode, 2, 1000, None, &Visibility::All, 2 * 8);
    expect(decode, 2, 1000, None, &prefix_causal(0, &[127]), 1 + 2);
    let bits = [0b1000_0001];
    expect(decode, 1, 1024, None, &Visibility::MediaBits { bits: &bits, keys_per_block: 128 }, 2);
    // Chunks of 256 keys are whole blocks, so nothing is visited twice.
    expect(split, 2, 1000, None, &Visibility::All, 2 * 8);
    expect(split, 1, 1024, None, &Visibility::MediaBits { bits: &bits, keys_per_block: 128 }, 2);
    expect(split, 1, 1024, None, &preceding_media(&[5]), 3);
    expect(WgpuAttentionVariant::GeneralSplit, 33, 1100, None, &Visibility::All, 2 * 18);
    expect(WgpuAttentionVariant::GeneralSplit, 33, 1100, Some(600), &Visibility::All, 2 * 10);
}
