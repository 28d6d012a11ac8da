// attention_media: softmax(scale q k^T) v, each row against the keys of one medium (φ), run by run.
//
// Work: a block takes a stretch of rows of one problem and K/V head, one to four tiles of (row,
// query head) pairs, and cuts it at the runs of equal φ. The tiles of a run stream past the keys of
// its medium, which stay in shared memory. Media of up to 64 keys are one key block, copied once
// per run and stretch, with a single-pass softmax; longer media go block by block. The queries of
// the next tile are in flight meanwhile. Rows without a medium get zeros, or what their policy
// says, in the same launch. The length of a stretch changes no result: rows do not depend on their
// neighbours.
// With a media plan, stretches begin where runs begin: block n of a problem takes items n, n +
// row_tiles, ... of the plan, each at most a stretch of one run. Without a plan, block n takes the
// n-th stretch. The grid size depends on shapes only: the host never reads the number of runs back.
// φ alone says what a row sees; a plan only groups rows. If it disagrees with φ, rows in none of
// its runs are left out, and rows in several are computed again.
// Shared memory, traffic within a tile: attention_mma.cuh (one stage) or attention_ffma.cuh. q and
// out once; K and V of a medium once per run and stretch.
// Tried: queries staged when their tile begins, in one place: 128 registers instead of 152 at 64
// columns (ptxas 13.0, sm_90a), but a block then waits for memory once per tile.

// The runs in tile.start .. tile.end.
DEVICE void attend_runs(const Call& call, const Shared& shared, Resident& resident) {
    const Tile& tile = shared.work->tile;
    const u32 most = call.params.tile_rows;
    u32 start = tile.start, run_end = start;
    Range next{start, start};
    bool new_run = true;
    // No queries are copied ahead of an item: runs of a hostile plan may overlap, so that a row
    // staged in the last item would be taken for one of this item.
    resident.queries = NOTHING;
    do {
        start = next.begin;
        const u32 rows = next.end - start;
        resident.again = !new_run;
        next = {next.end, next.end};
        if (next.begin < tile.end) {
            new_run = next.begin == run_end;
            if (new_run) {
                run_end += run_of(call, tile, run_end, tile.end);
            }
            next.end += min(most, run_end - next.begin);
        }
        // The first round only finds the first rows.
        if (rows > 0) {
            attend(call, shared, start, rows, next, resident);
            resident.place ^= 1;
        }
    } while (next.begin < next.end);
}

// The rows of item n of a problem's plan: run by run, in stretches. Empty past the last item.
DEVICE Range item_of_plan(const Call& call, u32 entry, u32 n, u32 stretch) {
    const u32 rows = call.params.q_rows, lane = threadIdx.x % 32;
    const Operand& plan = call.operands.plan;
    const u64 at = static_cast<u64>(entry) * (1 + rows) * 2;
    const u32 runs = min(word_at(plan, at), rows);
    for (u32 first = 0; first < runs; first += 32) {
        const u32 run = first + lane;
        u32 begin = rows, end = rows;
        if (run < runs) {
            const Range own = rows_between(word_at(plan, at + 2 * (1 + run)), run + 1 < runs ? word_at(plan, at + 2 * (2 + run)) : rows, rows);
            begin = own.begin;
            end = own.end;
        }
        // Items of this lane's run and of the runs before.
        u32 items = (end - begin + stretch - 1) / stretch;
        for (u32 step = 1; step < 32; step *= 2) {
            const u32 before = __shfl_up_sync(ALL_LANES, items, step);
            items += lane >= step ? before : 0;
        }
        const u32 found = __ballot_sync(ALL_LANES, n < items);
        if (found != 0) {
            const u32 owner = __ffs(static_cast<i32>(found)) - 1;
            const u32 own_begin = __shfl_sync(ALL_LANES, begin, owner), own_end = __shfl_sync(ALL_LANES, end, owner);
            const u32 before = __shfl_sync(ALL_LANES, items, owner) - (own_end - own_begin + stretch - 1) / stretch;
            const u32 start = own_begin + (n - before) * stretch;
            return {start, min(start + stretch, own_end)};
        }
        n -= __shfl_sync(ALL_LANES, items, 31);
    }
    return {rows, rows};
}

KERNEL(AttentionParams, AttentionOperands) {
    const Call call{params, operands};
    const Shared shared = shared_tiles();
    Resident resident;
    const bool planned = present(operands.plan);
    if (planned) {
        u32 item;
        Tile tile = heads_of_block(call, item);
        tile.problem = tile.entry = item / params.row_tiles;
        tile.end = params.q_rows;
        if (tile.problem >= params.batch) {
            return;
        }
        if (threadIdx.x < WRITERS) {
            publish(call, shared, tile);
        }
        if (threadIdx.x == 0) {
            shared.work->item = item % params.row_tiles;
        }
        __syncthreads();
    } else {
        publish_tile(call, shared, params.stretch);
    }
    for (;;) {
        if (planned) {
            const Range item = item_of_plan(call, shared.work->tile.entry, shared.work->item, params.stretch);
            if (item.begin >= item.end) {
                return;
            }
            // Everybody is done with the item before.
            __syncthreads();
            if (threadIdx.x == 0) {
                shared.work->tile.start = item.begin;
                shared.work->tile.end = item.end;
                shared.work->item += params.row_tiles;
            }
            __syncthreads();
        }
        attend_runs(call, shared, resident);
        if (!planned) {
            return;
        }
    }
}
