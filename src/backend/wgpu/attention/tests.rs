//! How many key blocks the kernels visit: counted by the kernels, compared with what the visibility
//! rule leaves (`profile::visited`).

use std::sync::Arc;

use super::variant::PAIRS;
use super::*;
use crate::backend::Backend;
use crate::backend::wgpu::WgpuOptions;
use crate::ops::{Each, EmptyRows, Keys, Media, Segment, Visibility};
use crate::profile::{Blocks, Seen, spread_media, visited};
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
    rule: &Seen<'_>,
    named: Option<WgpuAttentionVariant>,
) -> usize {
    let real = |n: usize| bound(backend, DType::F32, &[1, n, 1, 8], &vec![0; n * 8]);
    let phi = |list: &[i32]| bound(backend, DType::I32, &[1, rows], bytemuck::cast_slice(list));
    let media = |list: &[i32], n: usize| Media { media_index: phi(list), keys_per_media: n as u32, plan: None };
    let mut args = AttentionArgs::new(real(rows), real(keys), real(keys), real(rows));
    if let Some(n) = lengths {
        let Segment { k, v, .. } = args.first;
        args.first = Segment::new(k, v).with_keys(Keys::Lengths(bound(backend, DType::U32, &[1], &[n])));
    }
    args.visibility = match *rule {
        Seen::All => Visibility::All,
        Seen::SameMedia(list, n) => Visibility::SameMedia(media(list, n)),
        Seen::PrecedingMedia(list, n) => Visibility::PrecedingMedia(media(list, n)),
        Seen::PrefixCausal { prefix, offset } => {
            let offset = Some(bound(backend, DType::U32, &[1], &[offset as u32]));
            Visibility::PrefixCausal { prefix: prefix as u32, offset }
        }
        Seen::MediaBits { bits, words, keys_per_block } => Visibility::MediaBits {
            bits: bound(backend, DType::U32, &[1, rows, words], bits),
            keys_per_block: keys_per_block as u32,
        },
    };
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
    let expect = |rows, keys, lengths: Option<u32>, rule: &Seen<'_>, number: Option<usize>| {
        let list = lengths.map(|n| [n]);
        let count = visited(rule, list.as_ref().map(|l| l.as_slice()), 1, rows, keys, blocks);
        assert_eq!(counted(&backend, rows, keys, lengths, rule, None), count.visited, "{rule:?} {lengths:?}");
        assert!(number.is_none_or(|n| n == count.visited), "{count:?}");
    };
    // 512 rows in 16 tiles, 8 media: each tile sees one block of the 8.
    let phi = spread_media(1, 512, 8);
    expect(512, 512, None, &Seen::SameMedia(&phi, 64), Some(16));
    // Media 7 and 8 do not exist.
    expect(512, 512, Some(384), &Seen::SameMedia(&phi, 64), Some(12));
    // Runs of 10 rows: tiles are cut there.
    let phi = spread_media(1, 40, 4);
    expect(40, 256, None, &Seen::SameMedia(&phi, 64), Some(4 + 1));
    let phi = spread_media(1, 100, 5);
    expect(100, 320, None, &Seen::PrecedingMedia(&phi, 64), Some(2 + 4 + 5 + 5));
    expect(100, 320, Some(100), &Seen::PrecedingMedia(&phi, 64), Some(4 * 2));
    expect(128, 128, None, &Seen::PrefixCausal { prefix: 32, offset: 0 }, Some(1 + 1 + 2 + 2));
    expect(33, 200, None, &Seen::All, Some(2 * 4));
    expect(33, 200, Some(64), &Seen::All, Some(2));
    // The rows of one tile see key blocks 0 and 2; those of the other tile see none.
    let bits: Vec<u32> = (0..40).map(|row| [0b100, 0b1, 0][(row / 16).min(2)]).collect();
    expect(40, 256, None, &Seen::MediaBits { bits: &bits, words: 1, keys_per_block: 64 }, Some(2));
}

/// The other variants skip the same keys by blocks of their own (`attention_decode`: 1 x 128).
#[test]
fn named_variants_visit_what_a_row_may_see() {
    let Some(backend) = backend() else { return };
    let expect = |variant, rows, keys, lengths: Option<u32>, rule: &Seen<'_>, number: usize| {
        assert_eq!(counted(&backend, rows, keys, lengths, rule, Some(variant)), number, "{variant} {rule:?}");
    };
    let (decode, split) = (WgpuAttentionVariant::Decode, WgpuAttentionVariant::DecodeSplit);
    // A medium is 64 keys: one block, wherever it begins. φ = 9 is no medium.
    expect(decode, 3, 512, None, &Seen::SameMedia(&[8, 9, 3], 64), 2);
    expect(decode, 1, 512, Some(300), &Seen::SameMedia(&[5], 64), 1);
    expect(decode, 1, 512, Some(256), &Seen::SameMedia(&[5], 64), 0);
    expect(decode, 2, 1000, None, &Seen::All, 2 * 8);
    expect(decode, 2, 1000, None, &Seen::PrefixCausal { prefix: 0, offset: 127 }, 1 + 2);
    let bits = [0b1000_0001];
    expect(decode, 1, 1024, None, &Seen::MediaBits { bits: &bits, words: 1, keys_per_block: 128 }, 2);
    // Chunks of 256 keys are whole blocks: no block is visited twice.
    expect(split, 2, 1000, None, &Seen::All, 2 * 8);
    expect(split, 1, 1024, None, &Seen::MediaBits { bits: &bits, words: 1, keys_per_block: 128 }, 2);
    expect(split, 1, 1024, None, &Seen::PrecedingMedia(&[5], 64), 3);
    expect(WgpuAttentionVariant::GeneralSplit, 33, 1100, None, &Seen::All, 2 * 18);
    expect(WgpuAttentionVariant::GeneralSplit, 33, 1100, Some(600), &Seen::All, 2 * 10);
}
