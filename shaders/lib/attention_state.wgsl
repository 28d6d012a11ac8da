// The online softmax (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
// The state of a row is the largest logit so far (row_max) and the sum of weights e^(logit -
// row_max) (row_sum), beside the sums of weighted values. start: no key yet. update: a block of
// logits becomes weights. rescale: the factor by which sums shrink when the maximum grows
// (`decay`). merge: the states of two chunks of keys. finish: row_sum divides the values, and
// log-sum-exp.
struct State {
    row_max: f32,
    row_sum: f32,
    decay: f32,
}

fn softmax_start() -> State {
    return State(LOWEST, 0.0, 0.0);
}

// A weight; P itself where `row_max` is log-sum-exp.
fn softmax_weight(logit: f32, row_max: f32) -> f32 {
    return exp_nonpositive(logit - row_max);
}

fn softmax_rescale(before: f32, row_max: f32) -> f32 {
    return exp_nonpositive(before - row_max);
}

// `added`: the sum of a block's weights.
fn softmax_update(before: State, row_max: f32, added: f32) -> State {
    let decay = softmax_rescale(before.row_max, row_max);
    return State(row_max, fma(before.row_sum, decay, added), decay);
}

// Adds a chunk's state, as it lies in memory. `all.row_max` is the largest of all chunks.
fn softmax_merge(all: State, chunk: vec4<f32>) -> State {
    let decay = softmax_rescale(chunk.x, all.row_max);
    return State(all.row_max, fma(chunk.y, decay, all.row_sum), decay);
}

fn log_sum_exp_bits(row_max: f32, row_sum: f32) -> u32 {
    return bitcast<u32>(row_max + ln(row_sum));
}

// Split-K: what `attention_decode` and `attention_general` leave for `attention_merge`. For each
// chunk, problem, row and head: a vec4 (row_max, row_sum, 1 if the row gets a key of the chunk,
// else 0) and the sums of weighted values, QUADS vec4s. These are never read for a row that gets no
// key. Queries are dense.
fn state_of(chunk: u32, problem: u32, i: u32, head: u32) -> u32 {
    let rows = chunk * params.problems + (problem - params.first_problem);
    return params.states_offset + ((rows * params.q_rows + i) * params.heads + head) * (1u + QUADS);
}

// The keys of a range that lie in a chunk: all of them without split-K.
fn in_chunk(chunk: u32, range: vec2<u32>) -> vec2<u32> {
    if !SPLIT {
        return range;
    }
    let start = chunk * params.chunk_keys;
    return vec2<u32>(max(range.x, start), min(range.y, start + params.chunk_keys));
}
