// The tile of `attention_general` and `attention_media`: up to PAIRS (row, query head) pairs of one
// K/V head against 64 keys at a time. PAIRS is 32; 8 and 16 also work.
//
// 4 PAIRS invocations. Scores: each computes 4 pairs x 4 keys from columns staged 16 at a time.
// Softmax: 4 invocations per pair. Values: a register tile of 4 pairs x 4 or 8 columns. Invocations
// of pairs that the tile does not have only help to stage.
// Workgroup memory (PAIRS = 32): scores 8 KiB; staged q and k, then v 6 KiB; softmax states, key
// sets 1.6 KiB.

const BLOCK = 64u;
const LANES = 4u * PAIRS;
// Where the staged keys begin, behind the queries; vec4 that are staged in all.
const STAGE_K = 4u * PAIRS;
const STAGE = STAGE_K + 4u * BLOCK;
// Keys of V staged at a time: a power of two that fits the stage with a panel's columns.
const V_KEYS = select(select(select(8u, 16u, 16u * PANEL <= STAGE), 32u, 32u * PANEL <= STAGE), 64u, 64u * PANEL <= STAGE);

// What one workgroup works on: rows start .. end of a problem whose row 0 is row `offset` of entry
// `entry`, heads from `head` on. Bit i of `taken` is set where row start + i also belongs to a
// later problem, which then writes it: ragged queries whose offsets descend overlap.
struct Tile {
    problem: u32,
    entry: u32,
    offset: u32,
    start: u32,
    end: u32,
    kv_head: u32,
    head: u32,
    heads: u32,
    panel: u32,
    chunk: u32,
    taken: u32,
}

// Sums of weighted values: one column vector per pair; b holds the panel's columns from 64 on.
struct Sums {
    a: mat4x4<f32>,
    b: mat4x4<f32>,
}

var<workgroup> stage: array<vec4<f32>, STAGE>;
var<workgroup> scores: array<vec4<f32>, PAIRS * BLOCK / 4u>;
var<workgroup> pair_states: array<State, PAIRS>;
var<workgroup> partial: array<f32, LANES>;
var<workgroup> row_keys: array<vec2<u32>, PAIRS>;
var<workgroup> row_range: array<vec2<u32>, PAIRS>;
var<workgroup> row_gets: array<u32, PAIRS>;
var<workgroup> shared_tile: Tile;
var<workgroup> shared_words: vec2<u32>;

// The tile of a workgroup, the same in all invocations. It has no rows where there is none.
fn tile_of(workgroup: u32, lane: u32) -> Tile {
    if lane == 0u {
        var tile = Tile();
        tile.chunk = workgroup % params.chunks;
        var rest = workgroup / params.chunks;
        tile.panel = rest % params.panels;
        rest /= params.panels;
        let head_tile = rest % params.head_tiles;
        rest /= params.head_tiles;
        tile.kv_head = rest % (params.heads / params.group);
        // Dense queries: problem by problem. Ragged ones: the tiles of all problems in order.
        rest /= params.heads / params.group;
        var rows = params.q_rows;
        if q_offsets_present {
            var found = false;
            for (var b = 0u; b < params.batch; b++) {
                let at = params.q_offsets_offset + b * params.q_offsets_stride;
                let next = q_offsets_at(at + params.q_offsets_stride);
                let range = rows_between(q_offsets_at(at), next, params.q_rows);
                if found {
                    tile.taken |= within(vec2<u32>(range.x, range.x + range.y), tile.offset + rest * params.tile_rows);
                    continue;
                }
                let tiles = (range.y + params.tile_rows - 1u) / params.tile_rows;
                found = rest < tiles;
                if found {
                    tile.problem = b;
                    tile.offset = range.x;
                    rows = range.y;
                } else {
                    rest -= tiles;
                }
            }
            rows = select(0u, rows, found);
        } else {
            let problem = rest / params.row_tiles;
            tile.problem = params.first_problem + problem;
            tile.entry = tile.problem;
            rest %= params.row_tiles;
            rows = select(0u, rows, problem < params.problems);
        }
        tile.head = head_tile * params.tile_heads;
        tile.heads = min(params.tile_heads, params.group - tile.head);
        tile.head += tile.kv_head * params.group;
        tile.start = min(rest * params.tile_rows, rows);
        tile.end = min(tile.start + params.tile_rows, rows);
        shared_tile = tile;
    }
    return workgroupUniformLoad(&shared_tile);
}

// Where columns 4 c to 4 c + 3 of pair or key n are staged: four vec4 per row of 16 columns,
// swizzled against bank conflicts.
fn staged(n: u32, c: u32) -> u32 {
    return n * 4u + (c ^ (n / 2u % 4u));
}

fn has(words: vec2<u32>, i: u32) -> bool {
    return ((select(words.x, words.y, i >= 32u) >> (i % 32u)) & 1u) == 1u;
}

// The keys of the block at `block` that some row of the run sees, the same in all invocations.
// row_keys gets those of each row.
fn mark_keys(lane: u32, tile: Tile, keys: Keys, start: u32, rows: u32, mode: u32, bounds: vec2<u32>, block: u32) -> vec2<u32> {
    // Everybody is done with the block before.
    workgroupBarrier();
    if lane < rows {
        var seen = vec2<u32>(within(bounds, block), within(bounds, block + 32u));
        if mode == VISIBLE {
            let row = tile.offset + start + lane;
            let range = row_range[lane];
            seen = vec2<u32>(
                visible(keys, tile.entry, row, range, block),
                visible(keys, tile.entry, row, range, block + 32u),
            );
            if (seen.x | seen.y) != 0u {
                row_gets[lane] = VISIBLE;
            }
        }
        row_keys[lane] = seen;
    }
    workgroupBarrier();
    if lane == 0u {
        var any = vec2<u32>(0u);
        for (var r = 0u; r < rows; r++) {
            any |= row_keys[r];
        }
        shared_words = any;
    }
    return workgroupUniformLoad(&shared_words);
}

// Logits of the block's live keys, into `scores`: pair m, key j at 64 m + j.
fn score(lane: u32, tile: Tile, keys: Keys, q: u32, pairs: u32, block: u32, live: vec2<u32>, uniform_weights: bool) {
    let pair = lane / 16u * 4u;
    let key = lane % 16u;
    var s = mat4x4<f32>();
    if !uniform_weights {
        for (var c = 0u; c < QUADS; c += 4u) {
            let quad = lane % 4u;
            stage[staged(lane / 4u, quad)] = row_columns(q, c + quad, lane / 4u < pairs);
            for (var part = 0u; part < BLOCK / PAIRS; part++) {
                let j = part * PAIRS + lane / 4u;
                // Key j is row 16 (j mod 4) + j / 4: neighbours read neighbouring rows.
                let to = staged(j % 4u * 16u + j / 4u, quad);
                stage[STAGE_K + to] = key_columns(keys, block + j, tile.kv_head, c + quad, has(live, j));
            }
            workgroupBarrier();
            if pair < pairs {
                for (var n = 0u; n < 4u; n++) {
                    let k0 = stage[STAGE_K + staged(key, n)];
                    let k1 = stage[STAGE_K + staged(16u + key, n)];
                    let k2 = stage[STAGE_K + staged(32u + key, n)];
                    let k3 = stage[STAGE_K + staged(48u + key, n)];
                    let q0 = stage[staged(pair, n)];
                    let q1 = stage[staged(pair + 1u, n)];
                    let q2 = stage[staged(pair + 2u, n)];
                    let q3 = stage[staged(pair + 3u, n)];
                    s[0] += vec4<f32>(dot(q0, k0), dot(q0, k1), dot(q0, k2), dot(q0, k3));
                    s[1] += vec4<f32>(dot(q1, k0), dot(q1, k1), dot(q1, k2), dot(q1, k3));
                    s[2] += vec4<f32>(dot(q2, k0), dot(q2, k1), dot(q2, k2), dot(q2, k3));
                    s[3] += vec4<f32>(dot(q3, k0), dot(q3, k1), dot(q3, k2), dot(q3, k3));
                }
            }
            workgroupBarrier();
        }
    }
    if pair < pairs {
        scores[pair * 16u + key] = logits_of(s[0]);
        scores[(pair + 1u) * 16u + key] = logits_of(s[1]);
        scores[(pair + 2u) * 16u + key] = logits_of(s[2]);
        scores[(pair + 3u) * 16u + key] = logits_of(s[3]);
    }
    workgroupBarrier();
}

// Turns logits into weights and updates the states. The weight of a hidden key is 0 by its index.
fn softmax_of_block(lane: u32, heads: u32, pairs: u32) {
    let pair = lane / 4u;
    let part = lane % 4u;
    var mask = 0u;
    if pair < pairs {
        let words = row_keys[pair / heads];
        mask = select(words.x, words.y, part >= 2u) >> (part % 2u * 16u);
    }
    var largest = LOWEST;
    if pair < pairs {
        for (var n = 0u; n < 4u; n++) {
            let s = scores[pair * 16u + part * 4u + n];
            let bits = mask >> (4u * n);
            largest = max(largest, select(LOWEST, s.x, (bits & 1u) != 0u));
            largest = max(largest, select(LOWEST, s.y, (bits & 2u) != 0u));
            largest = max(largest, select(LOWEST, s.z, (bits & 4u) != 0u));
            largest = max(largest, select(LOWEST, s.w, (bits & 8u) != 0u));
        }
    }
    partial[lane] = largest;
    workgroupBarrier();
    let before = pair_states[pair].row_max;
    let first = pair * 4u;
    largest = max(before, max(max(partial[first], partial[first + 1u]), max(partial[first + 2u], partial[first + 3u])));
    workgroupBarrier();
    var sum = 0.0;
    if pair < pairs {
        for (var n = 0u; n < 4u; n++) {
            let at = pair * 16u + part * 4u + n;
            let s = scores[at];
            let bits = mask >> (4u * n);
            let w = vec4<f32>(
                select(0.0, softmax_weight(s.x, largest), (bits & 1u) != 0u),
                select(0.0, softmax_weight(s.y, largest), (bits & 2u) != 0u),
                select(0.0, softmax_weight(s.z, largest), (bits & 4u) != 0u),
                select(0.0, softmax_weight(s.w, largest), (bits & 8u) != 0u),
            );
            scores[at] = w;
            sum += (w.x + w.y) + (w.z + w.w);
        }
    }
    partial[lane] = sum;
    workgroupBarrier();
    if part == 0u {
        let added = (partial[lane] + partial[lane + 1u]) + (partial[lane + 2u] + partial[lane + 3u]);
        pair_states[pair] = softmax_update(pair_states[pair], largest, added);
    }
    workgroupBarrier();
}

fn accumulate(lane: u32, tile: Tile, keys: Keys, pairs: u32, block: u32, live: vec2<u32>, before: Sums) -> Sums {
    let pair = lane / 16u * 4u;
    let column = lane % 16u;
    var sums = before;
    if pair < pairs {
        let d = vec4<f32>(
            pair_states[pair].decay, pair_states[pair + 1u].decay, pair_states[pair + 2u].decay, pair_states[pair + 3u].decay,
        );
        sums.a = mat4x4<f32>(sums.a[0] * d.x, sums.a[1] * d.y, sums.a[2] * d.z, sums.a[3] * d.w);
        if PANEL > 16u {
            sums.b = mat4x4<f32>(sums.b[0] * d.x, sums.b[1] * d.y, sums.b[2] * d.z, sums.b[3] * d.w);
        }
    }
    for (var k = 0u; k < BLOCK; k += V_KEYS) {
        // V_KEYS keys that no row sees are not even staged.
        let part = vec2<u32>(within(vec2<u32>(k, k + V_KEYS), 0u), within(vec2<u32>(k, k + V_KEYS), 32u)) & live;
        if (part.x | part.y) == 0u {
            continue;
        }
        for (var at = lane; at < V_KEYS * PANEL; at += LANES) {
            let j = k + at / PANEL;
            stage[at] = value_columns(keys, block + j, tile.kv_head, tile.panel * 32u + at % PANEL, has(live, j));
        }
        workgroupBarrier();
        if pair < pairs && column < PANEL {
            for (var n = 0u; n < V_KEYS; n += 4u) {
                let at = (k + n) / 4u;
                let w0 = scores[pair * 16u + at];
                let w1 = scores[(pair + 1u) * 16u + at];
                let w2 = scores[(pair + 2u) * 16u + at];
                let w3 = scores[(pair + 3u) * 16u + at];
                let first = n * PANEL + column;
                let v = mat4x4<f32>(
                    stage[first], stage[first + PANEL], stage[first + 2u * PANEL], stage[first + 3u * PANEL],
                );
                sums.a[0] += v * w0;
                sums.a[1] += v * w1;
                sums.a[2] += v * w2;
                sums.a[3] += v * w3;
                if PANEL > 16u && column + 16u < PANEL {
                    let next = first + 16u;
                    let u = mat4x4<f32>(
                        stage[next], stage[next + PANEL], stage[next + 2u * PANEL], stage[next + 3u * PANEL],
                    );
                    sums.b[0] += u * w0;
                    sums.b[1] += u * w1;
                    sums.b[2] += u * w2;
                    sums.b[3] += u * w3;
                }
            }
        }
        workgroupBarrier();
    }
    return sums;
}

// Softmax and weighted sum over the keys in `bounds`: those that the rule shows, or in the other
// modes all of them.
fn sweep(lane: u32, tile: Tile, keys: Keys, start: u32, rows: u32, mode: u32, bounds: vec2<u32>) -> Sums {
    let pairs = rows * tile.heads;
    let pair = lane / 4u;
    let q = q_row(tile.entry, tile.offset + start + pair / tile.heads, tile.head + pair % tile.heads);
    workgroupBarrier();
    if lane < PAIRS {
        pair_states[lane] = softmax_start();
    }
    var sums = Sums();
    for (var block = bounds.x; block < bounds.y; block += BLOCK) {
        let live = mark_keys(lane, tile, keys, start, rows, mode, bounds, block);
        if (live.x | live.y) == 0u {
            continue;
        }
        if lane == 0u {
            visited_add(params.visited_offset);
        }
        score(lane, tile, keys, q, pairs, block, live, mode == UNIFORM);
        softmax_of_block(lane, tile.heads, pairs);
        sums = accumulate(lane, tile, keys, pairs, block, live, sums);
    }
    return sums;
}

// Writes the rows that get `mode`: the sums divided by the weights' sum, or zeros; for split-K, the
// chunk's state. The sums pass through `scores`, 64 columns at a time, so that the store stands
// once in the text: packing of 16-bit results takes drivers longest to compile.
fn normalise_and_store(lane: u32, tile: Tile, start: u32, rows: u32, mode: u32, sums: Sums) {
    let pairs = rows * tile.heads;
    for (var half = 0u; half < (PANEL + 15u) / 16u; half++) {
        workgroupBarrier();
        let to = lane / 16u * 64u + lane % 16u;
        if half == 0u {
            scores[to] = sums.a[0];
            scores[to + 16u] = sums.a[1];
            scores[to + 32u] = sums.a[2];
            scores[to + 48u] = sums.a[3];
        } else {
            scores[to] = sums.b[0];
            scores[to + 16u] = sums.b[1];
            scores[to + 32u] = sums.b[2];
            scores[to + 48u] = sums.b[3];
        }
        workgroupBarrier();
        for (var at = lane; at < pairs * 16u; at += LANES) {
            let pair = at / 16u;
            let column = half * 16u + at % 16u;
            let i = start + pair / tile.heads;
            if column >= PANEL || row_gets[pair / tile.heads] != mode || ((tile.taken >> (i - tile.start)) & 1u) == 1u {
                continue;
            }
            let row = tile.offset + i;
            let head = tile.head + pair % tile.heads;
            let of_pair = pair_states[pair];
            if SPLIT {
                let state = state_of(tile.chunk, tile.problem, i, head);
                if mode != ZERO && tile.panel * 32u + column < QUADS {
                    states_set(state + 1u + tile.panel * 32u + column, scores[at]);
                }
                if column == 0u && tile.panel == 0u {
                    states_set(state, vec4<f32>(of_pair.row_max, of_pair.row_sum, select(1.0, 0.0, mode == ZERO), 0.0));
                }
            } else {
                var x = vec4<f32>(0.0);
                var bits = EMPTY_LOG_SUM_EXP;
                if mode != ZERO {
                    x = scores[at] / of_pair.row_sum;
                    bits = log_sum_exp_bits(of_pair.row_max, of_pair.row_sum);
                }
                store_columns(tile.entry, row, head, tile.panel * 32u + column, x);
                if column == 0u && tile.panel == 0u {
                    store_log_sum_exp(tile.entry, row, head, bits);
                }
            }
        }
    }
}

// Rows start .. start + rows of the problem, from queries to results.
fn attend(lane: u32, tile: Tile, keys: Keys, start: u32, rows: u32) {
    let positions = positions_of(keys);
    let row = tile.offset + start + lane;
    workgroupBarrier();
    if lane < rows {
        let range = key_range(tile.problem, tile.entry, row, start + lane, positions);
        row_range[lane] = range;
        row_gets[lane] = ZERO;
        if SPLIT && COMPAT {
            // This chunk alone does not tell whether the row is empty.
            row_gets[lane] = empty_policy(keys, tile.entry, row);
            for (var j = range.x; j < range.y; j += 32u) {
                if visible(keys, tile.entry, row, range, j) != 0u {
                    row_gets[lane] = VISIBLE;
                    break;
                }
            }
        }
    }
    // First the keys that the rule shows; then, for rows that saw none, their policies. Without
    // compat policies they get zeros.
    let steps = select(2u, 4u, COMPAT);
    for (var step = 0u; step < steps; step++) {
        let mode = select(VISIBLE - step, ZERO, step + 1u == steps);
        workgroupBarrier();
        if COMPAT && !SPLIT && step == 1u && lane < rows && row_gets[lane] != VISIBLE {
            row_gets[lane] = empty_policy(keys, tile.entry, row);
        }
        workgroupBarrier();
        if lane == 0u {
            var bounds = vec2<u32>(0xffffffffu, 0u);
            var wanted = false;
            for (var r = 0u; r < rows; r++) {
                let gets = row_gets[r] == mode;
                let range = select(vec2<u32>(0u, positions), row_range[r], mode == VISIBLE);
                wanted = wanted || gets;
                if gets || mode == VISIBLE {
                    bounds = vec2<u32>(min(bounds.x, range.x), max(bounds.y, range.y));
                }
            }
            shared_words = select(vec2<u32>(1u, select(0u, 1u, wanted)), in_chunk(tile.chunk, bounds), mode != ZERO);
        }
        let bounds = workgroupUniformLoad(&shared_words);
        if bounds.y > 0u {
            normalise_and_store(lane, tile, start, rows, mode, sweep(lane, tile, keys, start, rows, mode, bounds));
        }
    }
}
