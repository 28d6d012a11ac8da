// attention_merge: the reduction of split-K, from the states of the chunks of keys
// (lib/attention_state.wgsl) to results.
//
// Work: one invocation per row, head and four columns; 256 per workgroup. It takes the largest
// row_max of all chunks, then adds sums and weighted values, each scaled by e^(row_max - largest),
// in ascending order of the chunks. Chunks are cut by position and not by the number of problems,
// so other problems change no bit.
// Workgroup memory: none. Traffic: the states once (their first vec4 twice, and from the cache for
// all but one invocation of a row); out once.

@compute @workgroup_size(256)
fn attention_merge(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = linear_workgroup(workgroup, workgroups) * 256u + lane;
    let column = index % QUADS;
    let head = index / QUADS % params.heads;
    let row = index / QUADS / params.heads % params.q_rows;
    let problem = params.first_problem + index / QUADS / params.heads / params.q_rows;
    if problem - params.first_problem >= params.problems {
        return;
    }
    var all = softmax_start();
    var seen = false;
    for (var chunk = 0u; chunk < params.chunks; chunk++) {
        let state = states_at(state_of(chunk, problem, row, head));
        if state.z > 0.0 {
            all.row_max = max(all.row_max, state.x);
            seen = true;
        }
    }
    var x = vec4<f32>();
    for (var chunk = 0u; chunk < params.chunks; chunk++) {
        let at = state_of(chunk, problem, row, head);
        let state = states_at(at);
        if state.z > 0.0 {
            all = softmax_merge(all, state);
            x = fma(states_at(at + 1u + column), vec4<f32>(all.decay), x);
        }
    }
    var bits = EMPTY_LOG_SUM_EXP;
    if seen {
        x /= all.row_sum;
        bits = log_sum_exp_bits(all.row_max, all.row_sum);
    }
    store_columns(problem, row, head, column, x);
    if column == 0u {
        store_log_sum_exp(problem, row, head, bits);
    }
}
