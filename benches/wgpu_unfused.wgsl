// What an engine without a fused kernel does for attention over media: scores, mask, softmax and
// product as dispatches of their own, with the scores of all heads [heads, rows, keys] in memory.
// q, k, v and out are f32 [rows or keys, heads, 64], phi i32 [rows].

struct Params {
    rows: u32,
    keys: u32,
    heads: u32,
    keys_per_media: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> phi: array<i32>;
@group(0) @binding(5) var<storage, read_write> s: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>;

var<workgroup> tile_a: array<vec4<f32>, 512>;
var<workgroup> tile_b: array<vec4<f32>, 512>;
var<workgroup> partial: array<f32, 64>;

// 32 rows x 32 keys of scores; each of 64 invocations computes 4 x 4.
@compute @workgroup_size(64)
fn scores(@builtin(workgroup_id) w: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = w.z;
    for (var at = lane; at < 512u; at += 64u) {
        let row = min(w.x * 32u + at / 16u, params.rows - 1u);
        let key = min(w.y * 32u + at / 16u, params.keys - 1u);
        tile_a[at] = q[(row * params.heads + head) * 16u + at % 16u];
        tile_b[at] = k[(key * params.heads + head) * 16u + at % 16u];
    }
    workgroupBarrier();
    let r = lane / 8u * 4u;
    let c = lane % 8u * 4u;
    var sum = mat4x4<f32>();
    for (var n = 0u; n < 16u; n++) {
        let b0 = tile_b[c * 16u + n];
        let b1 = tile_b[(c + 1u) * 16u + n];
        let b2 = tile_b[(c + 2u) * 16u + n];
        let b3 = tile_b[(c + 3u) * 16u + n];
        for (var i = 0u; i < 4u; i++) {
            let a = tile_a[(r + i) * 16u + n];
            sum[i] += vec4<f32>(dot(a, b0), dot(a, b1), dot(a, b2), dot(a, b3));
        }
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let row = w.x * 32u + r + i;
            let key = w.y * 32u + c + j;
            if row < params.rows && key < params.keys {
                s[(head * params.rows + row) * params.keys + key] = 0.125 * sum[i][j];
            }
        }
    }
}

@compute @workgroup_size(64)
fn mask(@builtin(workgroup_id) w: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = w.x;
    for (var key = lane; key < params.keys; key += 64u) {
        if i32(key / params.keys_per_media) + 1i != phi[row] {
            s[(w.y * params.rows + row) * params.keys + key] = -1.0e30;
        }
    }
}

@compute @workgroup_size(64)
fn softmax(@builtin(workgroup_id) w: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = (w.y * params.rows + w.x) * params.keys;
    var largest = -1.0e30;
    for (var key = lane; key < params.keys; key += 64u) {
        largest = max(largest, s[first + key]);
    }
    partial[lane] = largest;
    workgroupBarrier();
    for (var step = 32u; step > 0u; step /= 2u) {
        if lane < step {
            partial[lane] = max(partial[lane], partial[lane + step]);
        }
        workgroupBarrier();
    }
    largest = partial[0];
    workgroupBarrier();
    var sum = 0.0;
    for (var key = lane; key < params.keys; key += 64u) {
        let weight = exp(s[first + key] - largest);
        s[first + key] = weight;
        sum += weight;
    }
    partial[lane] = sum;
    workgroupBarrier();
    for (var step = 32u; step > 0u; step /= 2u) {
        if lane < step {
            partial[lane] += partial[lane + step];
        }
        workgroupBarrier();
    }
    sum = partial[0];
    for (var key = lane; key < params.keys; key += 64u) {
        s[first + key] /= sum;
    }
}

// 32 rows x 64 columns; each of 64 invocations computes 4 rows x 8 columns.
@compute @workgroup_size(64)
fn product(@builtin(workgroup_id) w: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = w.y;
    let r = lane / 8u * 4u;
    let c = lane % 8u * 2u;
    var low = mat4x4<f32>();
    var high = mat4x4<f32>();
    for (var block = 0u; block < params.keys; block += 32u) {
        workgroupBarrier();
        for (var at = lane; at < 512u; at += 64u) {
            let key = min(block + at / 16u, params.keys - 1u);
            tile_b[at] = v[(key * params.heads + head) * 16u + at % 16u];
        }
        for (var at = lane; at < 256u; at += 64u) {
            let row = min(w.x * 32u + at / 8u, params.rows - 1u);
            let first = (head * params.rows + row) * params.keys + block + at % 8u * 4u;
            tile_a[at] = vec4<f32>(s[first], s[first + 1u], s[first + 2u], s[first + 3u]);
        }
        workgroupBarrier();
        for (var n = 0u; n < 8u; n++) {
            for (var i = 0u; i < 4u; i++) {
                let a = tile_a[(r + i) * 8u + n];
                let b = n * 64u + c;
                low[i] += mat4x4<f32>(tile_b[b], tile_b[b + 16u], tile_b[b + 32u], tile_b[b + 48u]) * a;
                high[i] += mat4x4<f32>(tile_b[b + 1u], tile_b[b + 17u], tile_b[b + 33u], tile_b[b + 49u]) * a;
            }
        }
    }
    for (var i = 0u; i < 4u; i++) {
        let row = w.x * 32u + r + i;
        if row < params.rows {
            out[(row * params.heads + head) * 16u + c] = low[i];
            out[(row * params.heads + head) * 16u + c + 1u] = high[i];
        }
    }
}
