// An operand NAME of f32 that begins at a multiple of 16 bytes, four elements at a time.
@group(0) @binding(SLOT) var<storage, ACCESS> NAME: array<vec4<f32>>;
