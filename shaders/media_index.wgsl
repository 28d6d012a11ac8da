// media_index: phi (for each token the number of the last medium at or before it) and the media
// plan (the runs of equal phi).
//
// Work: one workgroup of 256 per row of the batch: rows are a few thousand tokens. It goes over the
// row in chunks of 2048, 8 neighbouring tokens per invocation. The effect of some tokens on the
// state (media counted, whether a document has ended since the last one) is three numbers that
// combine associatively. A scan over them gives the state before each invocation's tokens, another
// one the numbers of its runs.
// Workgroup memory: 3 KiB: states, counts, and the last phi of each invocation.
// Traffic: tokens twice, the second time from the cache (three times for `next` without a media
// count); phi and the plan once.

struct Params {
    tokens_offset: u32,
    carry_in_offset: u32,
    media_count_offset: u32,
    carry_out_offset: u32,
    phi_offset: u32,
    plan_offset: u32,
    batch: u32,
    rows: u32,
    token: u32,
    end_token: u32,
    tokens_stride_b: u32,
    tokens_stride_r: u32,
    carry_in_stride: u32,
    media_count_stride: u32,
    carry_out_stride: u32,
    phi_stride_b: u32,
    phi_stride_r: u32,
}

const LANES = 256u;
const EACH = 8u;
const LARGEST = 0x7fffffffu;

const IGNORE = 0u;
const HIDE = 1u;
const RESTART = 2u;

const MEDIUM = 1u;
const END = 2u;

// The effect of some tokens. `media`: media since the last restart of the count among them, or
// since their start. `restarts`: whether there was one. `last`: what came last.
struct Step {
    media: u32,
    restarts: u32,
    last: u32,
}

var<workgroup> lane_step: array<Step, 256>;
var<workgroup> lane_phi: array<u32, 256>;
var<workgroup> lane_count: array<u32, 256>;

fn then(a: Step, b: Step) -> Step {
    return Step(
        b.media + select(a.media, 0u, b.restarts == 1u),
        a.restarts | b.restarts,
        select(b.last, a.last, b.last == 0u),
    );
}

fn token_at(b: u32, i: u32) -> u32 {
    return tokens_at(params.tokens_offset + b * params.tokens_stride_b + i * params.tokens_stride_r);
}

fn is_medium(token: u32) -> bool {
    if LOCATIONS {
        return token != 0u;
    }
    return token == params.token;
}

fn ends(token: u32) -> bool {
    return DOCUMENT_END != IGNORE && token == params.end_token;
}

fn medium_step(before: Step, token: u32) -> Step {
    if is_medium(token) {
        return then(before, Step(1u, 0u, MEDIUM));
    }
    return before;
}

fn end_step(before: Step, token: u32) -> Step {
    if ends(token) {
        return then(before, Step(0u, select(0u, 1u, DOCUMENT_END == RESTART), END));
    }
    return before;
}

// Media counted since the row's start: `count` before `step`.
fn counted(count: u32, step: Step) -> u32 {
    return min(select(count, 0u, step.restarts == 1u) + step.media, LARGEST);
}

// phi of a token. `step` includes it, but not the document end that it may be.
fn phi_after(count: u32, hidden: bool, limit: u32, step: Step, token: u32) -> u32 {
    if step.last == END || (step.last == 0u && hidden) {
        return 0u;
    }
    let media = counted(count, step);
    if NEXT {
        let next = select(min(media + 1u, LARGEST), media, is_medium(token));
        return select(next, 0u, bitcast<i32>(next) > bitcast<i32>(limit));
    }
    return media;
}

// The sum of lane_count over the lanes before this one, and over all lanes.
fn count_before(lane: u32, count: u32) -> vec2<u32> {
    workgroupBarrier();
    lane_count[lane] = count;
    for (var reach = 1u; reach < LANES; reach *= 2u) {
        workgroupBarrier();
        var sum = lane_count[lane];
        if lane >= reach {
            sum += lane_count[lane - reach];
        }
        workgroupBarrier();
        lane_count[lane] = sum;
    }
    workgroupBarrier();
    return vec2<u32>(lane_count[lane] - count, lane_count[LANES - 1u]);
}

@compute @workgroup_size(256)
fn media_index(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let b = linear_workgroup(workgroup, workgroups);
    if b >= params.batch {
        return;
    }
    var carry = 0i;
    if carry_in_present {
        carry = bitcast<i32>(carry_in_at(params.carry_in_offset + b * params.carry_in_stride));
    }
    let hidden = carry < 0i;
    var count = u32(select(carry, ~carry, hidden));
    if hidden && DOCUMENT_END == RESTART {
        count = 0u;
    }
    var limit = LARGEST;
    if NEXT && media_count_present {
        limit = media_count_at(params.media_count_offset + b * params.media_count_stride);
    } else if NEXT {
        var here = 0u;
        for (var i = lane; i < params.rows; i += LANES) {
            here += select(0u, 1u, is_medium(token_at(b, i)));
        }
        limit = min(count + count_before(lane, here).y, LARGEST);
    }
    let plan = params.plan_offset + b * 2u * (1u + params.rows);

    var before = Step(0u, 0u, 0u);
    var items = 0u;
    var last_phi = 0u;
    for (var chunk = 0u; chunk < params.rows; chunk += LANES * EACH) {
        let first = min(chunk + lane * EACH, params.rows);
        let end = min(first + EACH, params.rows);
        var own = Step(0u, 0u, 0u);
        for (var i = first; i < end; i++) {
            let token = token_at(b, i);
            own = end_step(medium_step(own, token), token);
        }
        workgroupBarrier();
        lane_step[lane] = own;
        for (var reach = 1u; reach < LANES; reach *= 2u) {
            workgroupBarrier();
            var sum = lane_step[lane];
            if lane >= reach {
                sum = then(lane_step[lane - reach], sum);
            }
            workgroupBarrier();
            lane_step[lane] = sum;
        }
        workgroupBarrier();
        var start = before;
        if lane > 0u {
            start = then(before, lane_step[lane - 1u]);
        }
        var step = start;
        var phi = 0u;
        for (var i = first; i < end; i++) {
            let token = token_at(b, i);
            step = medium_step(step, token);
            phi = phi_after(count, hidden, limit, step, token);
            phi_set(params.phi_offset + b * params.phi_stride_b + i * params.phi_stride_r, phi);
            step = end_step(step, token);
        }
        before = then(before, lane_step[LANES - 1u]);
        if plan_present {
            lane_phi[lane] = phi;
            workgroupBarrier();
            var previous = last_phi;
            if lane > 0u {
                previous = lane_phi[lane - 1u];
            }
            // Two passes over the tokens: count the runs that begin here, then number them.
            var runs = 0u;
            var number = 0u;
            var total = 0u;
            for (var pass_over = 0u; pass_over < 2u; pass_over++) {
                step = start;
                var seen = previous;
                for (var i = first; i < end; i++) {
                    let token = token_at(b, i);
                    step = medium_step(step, token);
                    phi = phi_after(count, hidden, limit, step, token);
                    if i == 0u || phi != seen {
                        if pass_over == 1u {
                            number += 1u;
                            plan_set(plan + 2u * number, i);
                            plan_set(plan + 2u * number + 1u, phi);
                        } else {
                            runs += 1u;
                        }
                    }
                    seen = phi;
                    step = end_step(step, token);
                }
                if pass_over == 0u {
                    let numbers = count_before(lane, runs);
                    number = items + numbers.x;
                    total = numbers.y;
                }
            }
            items += total;
            // The last token of a full chunk is the last lane's. Only the last chunk may be short.
            last_phi = lane_phi[LANES - 1u];
        }
    }
    // All invocations have read carry_in, which carry_out may alias.
    storageBarrier();
    if lane == 0u && carry_out_present {
        let after = i32(counted(count, before));
        let ended = before.last == END || (before.last == 0u && hidden);
        carry_out_set(params.carry_out_offset + b * params.carry_out_stride, bitcast<u32>(select(after, ~after, ended)));
    }
    if plan_present {
        if lane == 0u {
            plan_set(plan, items);
            plan_set(plan + 1u, 0u);
        }
        for (var rest = 2u * (items + 1u) + lane; rest < 2u * (1u + params.rows); rest += LANES) {
            plan_set(plan + rest, 0u);
        }
    }
}
