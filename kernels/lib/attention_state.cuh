// The online softmax (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
// The state of a row is the largest logit so far (row_max) and the sum of weights e^(logit -
// row_max) (row_sum), beside the sums of weighted values. start: no key yet. update: a block of
// logits becomes weights. rescale: the factor by which sums shrink when the maximum grows. merge:
// two sums of different maxima. finish: the divisor of the values, and log-sum-exp.
//
// RowState lies in shared memory, with exponentials to 1 ulp; FragmentState in the registers of a
// tensor core tile, with ex2.approx. Hidden keys weigh 0 by index, whatever their logit is.

constexpr f32 LOG2_E = 1.44269504f;

// What is subtracted from logits: 0 where no key was seen, since -inf - -inf is NaN.
DEVICE f32 softmax_shift(f32 row_max) {
    return row_max == -infinity() ? 0.0f : row_max;
}

// A weight; P itself where `shift` is log-sum-exp.
DEVICE f32 softmax_weight(f32 logit, f32 shift) {
    return exp_of(logit - shift);
}

DEVICE f32 softmax_rescale(f32 row_max, f32 shift) {
    return exp_of(row_max - shift);
}

DEVICE f32 softmax_merge(f32 sum, f32 part, f32 part_max, f32 shift) {
    return fma(softmax_rescale(part_max, shift), part, sum);
}

// `unit`: what row_max counts.
DEVICE f32 log_sum_exp_of(f32 row_max, f32 row_sum, f32 unit = 1.0f) {
    return fma(row_max, unit, log_of(row_sum));
}

// `decay`: by how much the last update rescales weighted values.
struct RowState {
    f32 row_max, row_sum, decay;
};

DEVICE RowState softmax_start() {
    return {-infinity(), 0.0f, 0.0f};
}

// A lane's EACH logits, STEP apart, of the row of its aligned group of LANES lanes become weights
// in place. Bit n STEP of `set`: whether the row sees the lane's n-th key.
template <u32 LANES, u32 EACH, u32 STEP>
DEVICE void softmax_update(RowState& state, f32* logits, u64 set) {
    const f32 before = state.row_max;
    f32 largest = before, sum = 0.0f;
#pragma unroll
    for (u32 n = 0; n < EACH * STEP; n += STEP) {
        largest = (set >> n & 1) != 0 ? fmaxf(largest, logits[n]) : largest;
    }
    largest = warp_max<LANES>(largest);
    const f32 shift = softmax_shift(largest);
#pragma unroll
    for (u32 n = 0; n < EACH * STEP; n += STEP) {
        const f32 weight = (set >> n & 1) != 0 ? softmax_weight(logits[n], shift) : 0.0f;
        logits[n] = weight;
        sum += weight;
    }
    sum = warp_sum<LANES>(sum);
    // All lanes have read row_max before one of them writes it: a shuffle does not order memory.
    __syncwarp();
    if (threadIdx.x % LANES == 0) {
        const f32 decay = softmax_rescale(before, shift);
        state = {largest, fma(state.row_sum, decay, sum), decay};
    }
}

// A lane's two rows, lane / 4 and lane / 4 + 8 of the warp's 16: weighted values (o[4 n + 2 half +
// i] is column 8 n + 2 (lane % 4) + i), the largest logit, and the sum of this lane's weights.
template <u32 VALUES> struct FragmentState {
    f32 o[VALUES];
    f32 row_max[2];
    f32 row_sum[2];
};

template <u32 VALUES> DEVICE void softmax_start(FragmentState<VALUES>& state) {
    state = {};
    state.row_max[0] = state.row_max[1] = -infinity();
}

template <u32 VALUES> DEVICE void softmax_rescale(FragmentState<VALUES>& state, u32 half, f32 decay) {
#pragma unroll
    for (u32 i = 2 * half; i < VALUES; i += 4) {
        state.o[i] *= decay;
        state.o[i + 1] *= decay;
    }
}

// The logits of 64 keys become weights: s[4 n + 2 half + i] is that of key 8 n + 2 (lane % 4) + i.
// `set`: the keys that each of the two rows sees; `full`: all rows of the warp see all of them.
// `first`: there is no block before. `unit`: what a logit counts, above 0. VOTE: values are
// rescaled only where a maximum of the warp has grown; elsewhere all factors are 1.
template <bool VOTE, u32 VALUES>
DEVICE void softmax_update(FragmentState<VALUES>& state, f32 (&s)[32], const u64 (&set)[2], bool full, bool first, f32 unit) {
    if (!full) {
        const u32 column = threadIdx.x % 4 * 2;
        const u64 own[2] = {set[0] >> column, set[1] >> column};
#pragma unroll
        for (u32 i = 0; i < 32; i++) {
            s[i] = (own[i / 2 % 2] >> (i / 4 * 8 + i % 2) & 1) != 0 ? s[i] : -infinity();
        }
    }
    const f32 factor = unit * LOG2_E;
    f32 rest[2], decay[2] = {1.0f, 1.0f};
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        f32 largest = state.row_max[half];
#pragma unroll
        for (u32 i = 2 * half; i < 32; i += 4) {
            largest = fmaxf(largest, fmaxf(s[i], s[i + 1]));
        }
        largest = warp_max<4>(largest);
        const f32 shift = softmax_shift(largest);
        rest[half] = -shift * factor;
        if (!first) {
            // The difference first: it is exactly 0, and the factor 1, where the maximum stays.
            decay[half] = exp2_approx((state.row_max[half] - shift) * factor);
            state.row_sum[half] *= decay[half];
            if (!VOTE) {
                softmax_rescale(state, half, decay[half]);
            }
        }
        state.row_max[half] = largest;
    }
    if (VOTE && __any_sync(ALL_LANES, decay[0] != 1.0f || decay[1] != 1.0f)) {
        softmax_rescale(state, 0, decay[0]);
        softmax_rescale(state, 1, decay[1]);
    }
#pragma unroll
    for (u32 i = 0; i < 32; i++) {
        s[i] = exp2_approx(fma(s[i], factor, rest[i / 2 % 2]));
        state.row_sum[i / 2 % 2] += s[i];
    }
}

// Sums of weights over the four lanes that share a row.
template <u32 VALUES> DEVICE void softmax_finish(FragmentState<VALUES>& state) {
    state.row_sum[0] = warp_sum<4>(state.row_sum[0]);
    state.row_sum[1] = warp_sum<4>(state.row_sum[1]);
}
