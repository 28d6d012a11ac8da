//! `attention`: softmax(scale · q kᵀ) v on the CPU.
//!
//! **Work.** A tile is up to 64 (query row, query head) pairs: rows of one problem times the query
//! heads that share a K/V head (GQA). A chunk of K and V is read, and converted to f32 if needed,
//! once for all of them. Tiles are dealt to threads in order; where there are few, they are made
//! smaller. A row's result does not depend on the tile it is in, so neither the number of threads
//! nor of problems changes a bit. A tile sweeps the keys in chunks of 64, which begin at the first
//! key that the rule can show it. Chunks, and keys inside a chunk, that no row of the tile sees are
//! skipped by index: they are never read, so NaN in them has no effect. Under `SameMedia` a tile is
//! processed run by run of equal φ, found from φ itself while the rows are in L1 (the media plan
//! would save nothing, and is ignored). Each run meets the keys of its medium, usually one chunk.
//!
//! **Caches.** The transposed queries, the scores of a chunk (64 x 64 f32 = 16 KiB) and the sums
//! (64 x head_dim) stay in L1 and L2; K and V rows in f32 are read in place. **Traffic.** q and out
//! once; K and V once per tile, from L2 or L3 after the first.
//!
//! **Arithmetic.** f32 throughout, see `attention/micro.rs`; the chunks' (max, sum, accumulators)
//! merge in ascending order. exp is that of `simd/math.rs`. No allocation: scratch comes from the
//! workspace, one part per thread of the pool in which the op was prepared. Calls of fewer than
//! 2^17 multiply-adds (decoding one row over 64 keys) stay on the caller's thread.
//!
//! **Measured** (2 cores of an EPYC 7003 with AVX2, 2 threads, f32, best of 60; PyTorch 2.15 SDPA
//! on the same cores, which computes the dense product where we skip; `cargo run --release
//! --example cpu_floors`):
//!
//! | heads x dim, queries x keys | µs | GFLOP/s | PyTorch µs | ratio |
//! |---|---|---|---|---|
//! | 8 x 64, 64 x (256 + 64), batch 1 | 338 | 124 | 487 | 1.4 |
//! | 8 x 64, 64 x (256 + 64), batch 8 | 2710 | 124 | 3750 | 1.4 |
//! | 8 x 64, 512 x 64 of 1, 4, 16 images | 640, 630, 670 | 104, 107, 100 | 910, 2620, 9750 | 1.4, 4.2, 15 |
//! | 8 x 64, 512 x 64 of 64 images (16 MiB of K and V, 8 rows each) | 1060 | 63 | | |
//! | 32 over 8 x 128, 256 x 1601 | 50500 | 133 | 49100 | 0.97 |
//! | 32 over 8 x 128, 1 x 6404 | 5700 | 18 | 8300 | 1.5 |
//! | 8 x 64, 1 x 64 | 19 | 6.9 | 14 | 0.74 |
//!
//! Tried: packing K and V of a chunk for tiles of more than 16 rows (against set conflicts of
//! strided rows): within noise, left out. Prefetching into L2 instead of L1: the same. Prefetch,
//! and all heads of a medium in turn: 15 -> 20 GFLOP/s on one thread at 64 images. Inlining the
//! three steps of a chunk into the sweep: the same speed, 206 instead of 36 s of build time.

mod keys;
mod logit;
mod micro;
mod state;
mod tile;

use keys::{Line, Rule, SegmentOperands};
use tile::{CHUNK, Call, Cut, TILE, Tile};

use super::Cpu;
use super::rows::{Raw, Rows};
use super::simd;
use super::tasks::Tasks;
use crate::Result;
use crate::backend::{Implements, expect_reals};
use crate::ops::attention::AttentionSizes;
use crate::ops::{Attention, AttentionArgs, Operands, Visibility};
use crate::size::{self, Size};
use crate::tensor::{Bound, HostMemory, Spec};

/// The smallest tile that parallelism may ask for, in rows x heads.
const SMALLEST_TILE: usize = 16;

/// Below this many tiles per thread, tiles are made smaller.
const TILES_PER_THREAD: usize = 2;

pub(crate) struct Prepared {
    op: Attention,
    sizes: AttentionSizes,
    cut: Cut,
    tasks: Tasks,
}

impl Implements<Attention> for Cpu {
    type Prepared = Prepared;

    fn prepare(&self, op: &Attention, shapes: &AttentionArgs<Spec, Spec>) -> Result<Prepared> {
        expect_reals::<Attention>("cpu", shapes)?;
        let mut sizes = shapes.sizes();
        let is_empty = |spec: &Option<Spec>| spec.is_none_or(|spec| spec.elements() == 0);
        // Rows see keys even if there is no element to compute: one head of width 0 stands for all.
        let headless = shapes.out.elements() == 0 && is_empty(&shapes.log_sum_exp);
        if headless {
            (sizes.heads, sizes.kv_heads, sizes.head_dim) = (0, 1, 0);
        }
        let group = (sizes.heads / sizes.kv_heads).max(1);
        let heads = if headless { 0 } else { group.min(TILE) };
        let head_tiles = group.div_ceil(group.min(TILE));
        let mut rows = (TILE / group.min(TILE)).min(sizes.q_rows.max(1));
        let problems = Size::product(&[sizes.batch, sizes.kv_heads, head_tiles]);
        let tiles = |rows: usize| problems * sizes.q_rows.div_ceil(rows);
        let seen = match &shapes.visibility {
            Visibility::SameMedia(m) => (m.keys_per_media as usize).min(sizes.first_keys + sizes.second_keys),
            _ => sizes.first_keys + sizes.second_keys,
        };
        let work = Size::product(&[shapes.q.dim(0), sizes.q_rows, sizes.heads, seen.max(CHUNK), sizes.head_dim, 2]);
        let wanted = TILES_PER_THREAD * self.pool.threads();
        while tiles(rows).get().is_some_and(|tiles| tiles < wanted) && rows / 2 * group.min(TILE) >= SMALLEST_TILE {
            rows = rows.div_ceil(2);
        }
        let cut = Cut { rows, heads, head_tiles, row_tiles: sizes.q_rows.div_ceil(rows) };
        let tasks = match headless && is_empty(&shapes.row_visible) {
            true => Some(Tasks::EMPTY),
            false => {
                let work = work.get().unwrap_or(usize::MAX);
                Tasks::of(&self.pool, Size::of(0), cut.scratch(sizes.head_dim), work, tiles(rows))
            }
        };
        let tasks = tasks.ok_or_else(|| size::refused(Attention::NAME, "q", shapes.q))?;
        Ok(Prepared { op: *op, sizes, cut, tasks })
    }

    fn workspace_bytes(prepared: &Prepared) -> usize {
        prepared.tasks.bytes()
    }

    unsafe fn record(
        &self,
        prepared: &Prepared,
        _: &mut (),
        args: &<Attention as Operands>::Args<Bound<HostMemory>, Bound<HostMemory>>,
        workspace: &HostMemory,
    ) -> Result<()> {
        if prepared.tasks.is_empty() {
            return Ok(());
        }
        let set = self.set;
        let call = Call {
            set,
            op: prepared.op,
            sizes: prepared.sizes,
            cut: prepared.cut,
            q: Rows::of(&args.q),
            q_offsets: args.q_offsets.as_ref().map(Line::of),
            first: SegmentOperands::of(&args.first),
            second: args.second.as_ref().map(SegmentOperands::of),
            rule: Rule::of(&args.visibility),
            out: Rows::of(&args.out),
            log_sum_exp: args.log_sum_exp.as_ref().map(|o| (Raw::of(o), [0, 1, 2].map(|i| o.spec.stride(i)))),
            row_visible: args.row_visible.as_ref().map(|o| (Raw::of(o), [0, 1].map(|i| o.spec.stride(i)))),
        };
        // SAFETY: operands hold their specs and the workspace the planned bytes, by the contract of
        // `Implements::record`. Tiles write disjoint rows and heads, unless offsets descend: then
        // problems overlap, and one thread takes them in order.
        unsafe {
            let disjoint = call.q_offsets.is_none_or(|offsets| offsets.ascends(prepared.sizes.batch + 1));
            let threads = if disjoint { usize::MAX } else { 1 };
            prepared.tasks.spread(&self.pool, workspace, threads, |index, scratch| {
                simd::run(set, Tile { call: &call, index, scratch });
            });
        }
        Ok(())
    }
}
