// One K/V segment of `attention`, NAME (first, second): where its keys are, and which exist.

fn NAME_part(b: u32) -> Part {
    var part = Part(b, 0u, params.NAME_rows, params.NAME_rows, 0u);
    let origin = params.NAME_origin_offset + b * params.NAME_origin_stride;
    if NAME_origin_kind == SLOTS {
        part.entry = min(NAME_origin_at(origin), max(params.NAME_entries, 1u) - 1u);
    } else if NAME_origin_kind == OFFSETS {
        let next = NAME_origin_at(origin + params.NAME_origin_stride);
        let rows = rows_between(NAME_origin_at(origin), next, params.NAME_rows);
        part = Part(0u, rows.x, rows.y, rows.y, 0u);
    }
    let lengths_or_bits = params.NAME_mask_offset + b * params.NAME_mask_stride;
    if NAME_mask_kind == LENGTHS {
        part.extent = min(NAME_mask_at(lengths_or_bits), part.positions);
    } else if NAME_mask_kind == BITS {
        part.bits = lengths_or_bits;
    }
    return part;
}

// The keys from j of this segment on that exist.
fn NAME_existing(part: Part, j: u32) -> u32 {
    if j >= part.extent {
        return 0u;
    }
    var mask = low_bits(part.extent - j);
    if NAME_mask_kind == BITS {
        let shift = j % 32u;
        var word = NAME_mask_at(part.bits + j / 32u) >> shift;
        if shift > 0u && (j / 32u + 1u) * 32u < part.positions {
            word |= NAME_mask_at(part.bits + j / 32u + 1u) << (32u - shift);
        }
        mask &= word;
    }
    return mask;
}

// Where key j of this segment begins in K and in V, head g.
fn NAME_k_row(part: Part, j: u32, g: u32) -> u32 {
    let entry = params.NAME_k_offset + part.entry * params.NAME_k_stride_b;
    return entry + (part.start + j) * params.NAME_k_stride_r + g * params.NAME_k_stride_h;
}

fn NAME_v_row(part: Part, j: u32, g: u32) -> u32 {
    let entry = params.NAME_v_offset + part.entry * params.NAME_v_stride_b;
    return entry + (part.start + j) * params.NAME_v_stride_r + g * params.NAME_v_stride_h;
}
