// No second matrix NAME. The tile is never touched.
const NAME_present = false;
var<workgroup> tile_NAME: array<vec4<f32>, 1>;
fn stage_NAME(block: u32, k0: u32, lane: u32) {}
