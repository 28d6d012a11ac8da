// attention_decode: softmax(scale q k^T) v, a row at a time, for few rows (a decoding step).
//
// Work: one workgroup of 128 per row and up to PAIRS heads that share a K/V head, so that K and V
// are read once for all of them. It takes the row's keys in blocks of 128. A block that the row
// does not see is not visited, and a key that it does not see is not read. Scores: two invocations
// per key, each with every other vec4 of the row of K. Softmax: 16 invocations per head, 8 keys
// each. Values: an invocation owns four columns and every 128 / COLUMNS-th key of the block; its
// sums stay in registers until the row's end. A row meets one key set, so nothing that another row
// sees can reach it.
// SPLIT is split-K: a workgroup has one chunk of the keys, and `attention_merge` merges the chunks.
// Workgroup memory: 3.2 KiB + PAIRS (1 KiB + 4 bytes per column of q). Traffic: q and out
// once, K and V once per row and head tile.
// Measured on lavapipe (Mesa 22.3.6, 2 cores under a load of 20, so that only ratios of alternating
// runs mean anything; f32, median of 15; `cargo bench --bench wgpu_attention`): time over that of
// attention_media, or of attention_general without media. One row: 8 heads x 64, one medium of
// four: 0.22 (f16: 0.21); 32 x 128, of eight: 0.31, on 8 K/V heads 0.22; 32 x 128 on 8 K/V heads,
// 1601 keys: 0.65, 6404 keys: 0.58. Two rows, 16 x 64, 640 keys: 0.72 to 0.85 in four runs, on 4
// K/V heads 0.85 to 1.12; 4, 8, 16 rows: 1.65, 3.10, 4.91, hence two rows at most. 6404 keys in 26
// chunks instead of one: 0.99.

const LANES = 128u;
const BLOCK = 128u;
// Invocations per head in the softmax.
const PARTS = 16u;
// Invocations side by side on a row of V: a power of two.
const COLUMNS = select(select(select(select(select(1u, 2u, PANEL > 1u), 4u, PANEL > 2u), 8u, PANEL > 4u), 16u, PANEL > 8u), 32u, PANEL > 16u);

// What a workgroup works on. Row i of its problem is row `row` of entry `entry`.
struct Job {
    problem: u32,
    entry: u32,
    row: u32,
    i: u32,
    kv_head: u32,
    head: u32,
    heads: u32,
    panel: u32,
    chunk: u32,
    exists: u32,
}

// `mode`: what the row gets, VISIBLE or an empty row's policy. Its keys are in start .. end.
struct KeyRange {
    mode: u32,
    start: u32,
    end: u32,
}

// First q, then the sums over all invocations that share columns.
var<workgroup> queries: array<vec4<f32>, PAIRS * QUADS>;
// Two partial scores per key; the first one is then replaced by the weight.
var<workgroup> scores: array<f32, 2u * PAIRS * BLOCK>;
var<workgroup> sums: array<vec4<f32>, LANES>;
var<workgroup> part_max: array<f32, LANES>;
var<workgroup> part_sum: array<f32, LANES>;
var<workgroup> pair_states: array<State, PAIRS>;
var<workgroup> block_keys: array<u32, 4>;
var<workgroup> sees: atomic<u32>;
var<workgroup> shared_job: Job;
var<workgroup> shared_key_range: KeyRange;

// The job of a workgroup, the same in all invocations.
fn job_of(workgroup: u32, lane: u32) -> Job {
    if lane == 0u {
        var job = Job();
        job.chunk = workgroup % params.chunks;
        var rest = workgroup / params.chunks;
        job.panel = rest % params.panels;
        rest /= params.panels;
        let head = rest % params.head_tiles * params.tile_heads;
        rest /= params.head_tiles;
        job.kv_head = rest % (params.heads / params.group);
        job.head = job.kv_head * params.group + head;
        job.heads = min(params.tile_heads, params.group - head);
        rest /= params.heads / params.group;
        if q_offsets_present {
            // The last problem that has the row; a row of no problem stays as it is.
            for (var b = 0u; b < params.batch; b++) {
                let at = params.q_offsets_offset + b * params.q_offsets_stride;
                let range = rows_between(q_offsets_at(at), q_offsets_at(at + params.q_offsets_stride), params.q_rows);
                if rest >= range.x && rest - range.x < range.y {
                    job = Job(b, 0u, rest, rest - range.x, job.kv_head, job.head, job.heads, job.panel, job.chunk, 1u);
                }
            }
        } else {
            let problem = rest / params.q_rows;
            job.problem = params.first_problem + problem;
            job.entry = job.problem;
            job.row = rest % params.q_rows;
            job.i = job.row;
            job.exists = select(0u, 1u, problem < params.problems);
        }
        shared_job = job;
    }
    return workgroupUniformLoad(&shared_job);
}

// Which keys the row gets, the same in all invocations.
fn key_range_of(lane: u32, job: Job, keys: Keys, range: vec2<u32>) -> KeyRange {
    if COMPAT {
        if lane == 0u {
            atomicStore(&sees, 0u);
        }
        workgroupBarrier();
        // Every key that the rule shows, not just this chunk's.
        for (var j = range.x + 32u * lane; j < range.y; j += 32u * LANES) {
            if visible(keys, job.entry, job.row, range, j) != 0u {
                atomicStore(&sees, 1u);
                break;
            }
        }
        workgroupBarrier();
    }
    if lane == 0u {
        var mode = VISIBLE;
        var among = range;
        if COMPAT {
            if atomicLoad(&sees) == 0u {
                mode = empty_policy(keys, job.entry, job.row);
                among = vec2<u32>(0u, select(positions_of(keys), 0u, mode == ZERO));
            }
        }
        among = in_chunk(job.chunk, among);
        shared_key_range = KeyRange(mode, among.x, among.y);
    }
    return workgroupUniformLoad(&shared_key_range);
}

fn has(words: array<u32, 4>, j: u32) -> bool {
    let word = select(select(words[0], words[1], j >= 32u), select(words[2], words[3], j >= 96u), j >= 64u);
    return ((word >> (j % 32u)) & 1u) == 1u;
}

fn softmax_of_block(lane: u32, words: array<u32, 4>) {
    let pair = lane / PARTS;
    let part = lane % PARTS;
    let first = pair * BLOCK;
    var largest = LOWEST;
    if pair < PAIRS {
        for (var j = part; j < BLOCK; j += PARTS) {
            if has(words, j) {
                let at = 2u * (first + j);
                let s = logit_of(scores[at] + scores[at + 1u]);
                scores[at] = s;
                largest = max(largest, s);
            }
        }
    }
    part_max[lane] = largest;
    workgroupBarrier();
    if pair < PAIRS {
        largest = pair_states[pair].row_max;
        for (var n = 0u; n < PARTS; n++) {
            largest = max(largest, part_max[pair * PARTS + n]);
        }
        var sum = 0.0;
        for (var j = part; j < BLOCK; j += PARTS) {
            if has(words, j) {
                let at = 2u * (first + j);
                let w = softmax_weight(scores[at], largest);
                scores[at] = w;
                sum += w;
            }
        }
        part_sum[lane] = sum;
    }
    workgroupBarrier();
    if part == 0u && pair < PAIRS {
        var added = 0.0;
        for (var n = 0u; n < PARTS; n++) {
            added += part_sum[lane + n];
        }
        pair_states[pair] = softmax_update(pair_states[pair], largest, added);
    }
    workgroupBarrier();
}

@compute @workgroup_size(LANES)
fn attention_decode(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let job = job_of(linear_workgroup(workgroup, workgroups), lane);
    if job.exists == 0u {
        return;
    }
    let keys = keys_of(job.problem);
    let range = key_range(job.problem, job.entry, job.row, job.i, positions_of(keys));
    let reach = key_range_of(lane, job, keys, range);
    for (var at = lane; at < PAIRS * QUADS; at += LANES) {
        let pair = at / QUADS;
        let q = q_row(job.entry, job.row, job.head + min(pair, job.heads - 1u));
        queries[at] = row_columns(q, at % QUADS, pair < job.heads);
    }
    if lane < PAIRS {
        pair_states[lane] = softmax_start();
    }
    let column = lane % COLUMNS;
    let c = job.panel * 32u + column;
    var acc = array<vec4<f32>, PAIRS>();
    var gets = false;
    for (var block = reach.start; block < reach.end; block += BLOCK) {
        // Everybody is done with the block before.
        workgroupBarrier();
        if lane < 4u {
            var word = within(vec2<u32>(reach.start, reach.end), block + 32u * lane);
            if reach.mode == VISIBLE && word != 0u {
                word &= visible(keys, job.entry, job.row, range, block + 32u * lane);
            }
            block_keys[lane] = word;
        }
        let words = workgroupUniformLoad(&block_keys);
        if (words[0] | words[1] | words[2] | words[3]) == 0u {
            continue;
        }
        gets = true;
        if lane == 0u {
            visited_add(params.visited_offset);
        }
        for (var j = lane / 2u; j < BLOCK; j += LANES / 2u) {
            if has(words, j) {
                var s = array<f32, PAIRS>();
                if reach.mode != UNIFORM {
                    for (var quad = lane % 2u; quad < QUADS; quad += 2u) {
                        let k = key_columns(keys, block + j, job.kv_head, quad, true);
                        for (var p = 0u; p < PAIRS; p++) {
                            s[p] += dot(queries[p * QUADS + quad], k);
                        }
                    }
                }
                for (var p = 0u; p < PAIRS; p++) {
                    scores[2u * (p * BLOCK + j) + lane % 2u] = s[p];
                }
            }
        }
        workgroupBarrier();
        softmax_of_block(lane, words);
        for (var p = 0u; p < PAIRS; p++) {
            acc[p] *= pair_states[p].decay;
        }
        if column < PANEL {
            for (var j = lane / COLUMNS; j < BLOCK; j += LANES / COLUMNS) {
                if has(words, j) {
                    let v = value_columns(keys, block + j, job.kv_head, c, true);
                    for (var p = 0u; p < PAIRS; p++) {
                        acc[p] += scores[2u * (p * BLOCK + j)] * v;
                    }
                }
            }
        }
    }
    // Sums over the invocations that share columns, in a fixed order. They replace q.
    for (var p = 0u; p < PAIRS; p++) {
        workgroupBarrier();
        sums[lane] = acc[p];
        workgroupBarrier();
        if lane < PANEL {
            var x = sums[lane];
            for (var n = COLUMNS; n < LANES; n += COLUMNS) {
                x += sums[n + lane];
            }
            queries[p * QUADS + lane] = x;
        }
    }
    workgroupBarrier();
    // The store stands once in the text: drivers take longest to compile 16-bit packing.
    for (var at = lane; at < job.heads * PANEL; at += LANES) {
        let pair = at / PANEL;
        let column = job.panel * 32u + at % PANEL;
        let first = column == 0u;
        var x = queries[pair * QUADS + at % PANEL];
        let of_pair = pair_states[pair];
        if SPLIT {
            let state = state_of(job.chunk, job.problem, job.i, job.head + pair);
            if gets && column < QUADS {
                states_set(state + 1u + column, x);
            }
            if first {
                states_set(state, vec4<f32>(of_pair.row_max, of_pair.row_sum, select(0.0, 1.0, gets), 0.0));
            }
        } else {
            var bits = EMPTY_LOG_SUM_EXP;
            if gets {
                x /= of_pair.row_sum;
                bits = log_sum_exp_bits(of_pair.row_max, of_pair.row_sum);
            }
            store_columns(job.entry, job.row, job.head + pair, column, x);
            if first {
                store_log_sum_exp(job.entry, job.row, job.head + pair, bits);
            }
        }
    }
}
