// A counter NAME, with which tests see how often something happens.
@group(0) @binding(SLOT) var<storage, read_write> NAME: array<atomic<u32>>;
fn NAME_add(i: u32) {
    atomicAdd(&NAME[i], 1u);
}
