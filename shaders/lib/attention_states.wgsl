// What `attention_decode` and `attention_general` leave for `attention_merge` where the keys are split into chunks: for each chunk, problem,
// row and head a vec4 (row_max, row_sum, 1 if the row gets a key of the chunk, else 0) and the row's sums of weighted values, QUADS vec4s.
// What a row that gets no key has behind its first vec4 is never read. Queries are dense.

fn state_of(chunk: u32, problem: u32, i: u32, head: u32) -> u32 {
    let rows = chunk * params.problems + (problem - params.first_problem);
    return params.states_offset + ((rows * params.q_rows + i) * params.heads + head) * (1u + QUADS);
}

// The keys of a chunk that lie in a range: all of it where the keys are not split.
fn in_chunk(chunk: u32, range: vec2<u32>) -> vec2<u32> {
    if !SPLIT {
        return range;
    }
    let start = chunk * params.chunk_keys;
    return vec2<u32>(max(range.x, start), min(range.y, start + params.chunk_keys));
}
