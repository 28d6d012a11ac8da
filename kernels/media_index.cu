// media_index: φ, for each token the number of the last medium at or before it, and the media plan.
//
// Work: one block per row of the batch, a few thousand tokens. It goes over the row in chunks of
// THREADS * EACH, EACH neighbouring tokens per thread, in registers. What a range of tokens does to
// the state (media counted, whether the count restarted, what came last) combines associatively, so
// the states before each thread's tokens are a prefix scan: shuffles within warps, then over the
// warps' totals. So are the numbers of its runs.
// Shared memory: the totals of each warp, 20 bytes per warp.
// Traffic: tokens, φ and the plan once each (tokens twice for `next` without a media count).

struct MediaIndexParams {
    u32 tokens_offset;
    u32 carry_in_offset;
    u32 media_count_offset;
    u32 carry_out_offset;
    u32 phi_offset;
    u32 plan_offset;
    u32 batch;
    u32 rows;
    u32 token;
    u32 end_token;
    u32 tokens_stride_b;
    u32 tokens_stride_r;
    u32 carry_in_stride;
    u32 media_count_stride;
    u32 carry_out_stride;
    u32 phi_stride_b;
    u32 phi_stride_r;
};

struct MediaIndexOperands {
    Operand tokens, carry_in, media_count, carry_out, phi, plan;
};

// DOCUMENT_END is one of these.
#define IGNORE 0
#define HIDE 1
#define RESTART 2

constexpr u32 EACH = 8;
constexpr u32 WARPS = THREADS / 32;
constexpr u32 LARGEST = 0x7fffffff;

constexpr u32 MEDIUM = 1, END = 2;

// A range of tokens: media since its last restart (or start), whether it has one, what came last.
struct Step {
    u32 media, restarts, last;
};

DEVICE Step then(const Step& a, const Step& b) {
    return Step{b.media + (b.restarts ? 0 : a.media), a.restarts | b.restarts, b.last ? b.last : a.last};
}

DEVICE bool is_medium(const MediaIndexParams& params, u32 token) {
    return LOCATIONS ? token != 0 : token == params.token;
}

DEVICE Step medium_step(const MediaIndexParams& params, const Step& before, u32 token) {
    return is_medium(params, token) ? then(before, Step{1, 0, MEDIUM}) : before;
}

DEVICE Step end_step(const MediaIndexParams& params, const Step& before, u32 token) {
    const bool ends = DOCUMENT_END != IGNORE && token == params.end_token;
    return ends ? then(before, Step{0, DOCUMENT_END == RESTART, END}) : before;
}

// The state before the row: media so far, and whether a document has ended since the last of them.
struct Carry {
    u32 count;
    bool hidden;
};

DEVICE bool is_hidden(const Carry& carry, const Step& step) {
    return step.last == END || (step.last == 0 && carry.hidden);
}

// Media counted after `step` since the row's start.
DEVICE u32 counted(const Carry& carry, const Step& step) {
    return min((step.restarts ? 0 : carry.count) + step.media, LARGEST);
}

// φ of a token. `step` includes it as a medium, not as a document's end. With `next`, 0 beyond
// `limit`, which is untrusted: it may be negative.
DEVICE u32 phi_after(const MediaIndexParams& params, const Carry& carry, i32 limit, const Step& step, u32 token) {
    if (is_hidden(carry, step)) {
        return 0;
    }
    const u32 media = counted(carry, step);
    if (!NEXT) {
        return media;
    }
    const u32 next = is_medium(params, token) ? media : min(media + 1, LARGEST);
    return i32(next) > limit ? 0 : next;
}

DEVICE Step shuffled_up(const Step& step, u32 reach) {
    return Step{
        __shfl_up_sync(ALL_LANES, step.media, reach),
        __shfl_up_sync(ALL_LANES, step.restarts, reach),
        __shfl_up_sync(ALL_LANES, step.last, reach),
    };
}

// What all threads before this one do, from what each does: an exclusive scan, of which `total` is
// the whole. Its shared memory is free again after one barrier.
DEVICE Step steps_before(Step own, Step* warp_step, Step& total) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u32 reach = 1; reach < 32; reach *= 2) {
        const Step other = shuffled_up(own, reach);
        if (lane >= reach) {
            own = then(other, own);
        }
    }
    if (lane == 31) {
        warp_step[warp] = own;
    }
    __syncthreads();
    Step before = {0, 0, 0};
    total = before;
    for (u32 w = 0; w < WARPS; w++) {
        before = w == warp ? total : before;
        total = then(total, warp_step[w]);
    }
    const Step inside = shuffled_up(own, 1);
    return lane == 0 ? before : then(before, inside);
}

DEVICE u32 sum_before(u32 own, u32* warp_count, u32& total) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 sum = own;
    for (u32 reach = 1; reach < 32; reach *= 2) {
        const u32 other = __shfl_up_sync(ALL_LANES, sum, reach);
        sum += lane >= reach ? other : 0;
    }
    if (lane == 31) {
        warp_count[warp] = sum;
    }
    __syncthreads();
    u32 before = 0;
    total = 0;
    for (u32 w = 0; w < WARPS; w++) {
        before = w == warp ? total : before;
        total += warp_count[w];
    }
    return before + sum - own;
}

KERNEL(MediaIndexParams, MediaIndexOperands) {
    SHARED(Step, warp_step, 0, WARPS);
    SHARED(u32, warp_count, WARPS * 12, WARPS);
    SHARED(u32, warp_phi, WARPS * 16, WARPS);
    const u32 thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const u64 b = blockIdx.x;
    const u32 rows = params.rows;
    const u32* tokens = data<u32>(operands.tokens) + (params.tokens_offset + b * params.tokens_stride_b);
    i32* phi_row = data<i32>(operands.phi) + (params.phi_offset + b * params.phi_stride_b);

    Carry carry = {0, false};
    if (present(operands.carry_in)) {
        const i32 value = data<i32>(operands.carry_in)[params.carry_in_offset + b * params.carry_in_stride];
        carry.hidden = value < 0;
        carry.count = u32(carry.hidden ? ~value : value);
        if (carry.hidden && DOCUMENT_END == RESTART) {
            carry.count = 0;
        }
    }
    i32 limit = i32(LARGEST);
    if (NEXT && present(operands.media_count)) {
        limit = data<i32>(operands.media_count)[params.media_count_offset + b * params.media_count_stride];
    } else if (NEXT) {
        u32 here = 0, total;
        for (u64 i = thread; i < rows; i += THREADS) {
            here += is_medium(params, tokens[i * params.tokens_stride_r]);
        }
        sum_before(here, warp_count, total);
        limit = i32(min(carry.count + total, LARGEST));
    }
    u32* plan = present(operands.plan) ? data<u32>(operands.plan) + (params.plan_offset + b * 2 * (u64(rows) + 1)) : nullptr;

    Step before = {0, 0, 0};
    u32 items = 0, last_phi = 0;
    for (u32 chunk = 0; chunk < rows; chunk += THREADS * EACH) {
        const u32 first = min(chunk + thread * EACH, rows);
        const u32 count = min(rows - first, EACH);
        u32 token[EACH];
        Step own = {0, 0, 0};
#pragma unroll
        for (u32 j = 0; j < EACH; j++) {
            if (j < count) {
                token[j] = tokens[u64(first + j) * params.tokens_stride_r];
                own = end_step(params, medium_step(params, own, token[j]), token[j]);
            }
        }
        // All threads have read the last chunk's totals.
        __syncthreads();
        Step total;
        Step step = then(before, steps_before(own, warp_step, total));
        before = then(before, total);

        u32 phi[EACH];
        u32 last = 0;
#pragma unroll
        for (u32 j = 0; j < EACH; j++) {
            if (j < count) {
                step = medium_step(params, step, token[j]);
                phi[j] = last = phi_after(params, carry, limit, step, token[j]);
                phi_row[u64(first + j) * params.phi_stride_r] = i32(last);
                step = end_step(params, step, token[j]);
            }
        }
        if (plan == nullptr) {
            continue;
        }
        // Runs that begin with one of this thread's tokens, as bits.
        if (lane == 31) {
            warp_phi[warp] = last;
        }
        __syncthreads();
        u32 seen = __shfl_up_sync(ALL_LANES, last, 1);
        if (lane == 0) {
            seen = warp == 0 ? last_phi : warp_phi[warp - 1];
        }
        u32 begins = 0;
#pragma unroll
        for (u32 j = 0; j < EACH; j++) {
            if (j < count) {
                begins |= u32(first + j == 0 || phi[j] != seen) << j;
                seen = phi[j];
            }
        }
        u32 runs;
        u32 number = items + sum_before(__popc(begins), warp_count, runs);
#pragma unroll
        for (u32 j = 0; j < EACH; j++) {
            if (begins >> j & 1) {
                number++;
                plan[2 * u64(number)] = first + j;
                plan[2 * u64(number) + 1] = phi[j];
            }
        }
        items += runs;
        // The last thread has the last token of a full chunk; only the last chunk is not full.
        last_phi = warp_phi[WARPS - 1];
    }
    // Everybody has read carry_in, which carry_out may be.
    __syncthreads();
    if (thread == 0 && present(operands.carry_out)) {
        const i32 after = i32(counted(carry, before));
        data<i32>(operands.carry_out)[params.carry_out_offset + b * params.carry_out_stride] = is_hidden(carry, before) ? ~after : after;
    }
    if (plan != nullptr) {
        if (thread == 0) {
            plan[0] = items;
            plan[1] = 0;
        }
        for (u64 rest = 2 * (u64(items) + 1) + thread; rest < 2 * (u64(rows) + 1); rest += THREADS) {
            plan[rest] = 0;
        }
    }
}
