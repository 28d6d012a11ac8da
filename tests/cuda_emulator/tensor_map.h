#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

// What cuTensorMapEncodeTiled leaves in the 128 bytes of a map, here.
struct TensorMap {
    uint64_t magic;
    uint64_t address;
    // Innermost first, in elements; one stride in bytes.
    uint64_t extent[2];
    uint64_t stride;
    uint32_t box[2];
    uint32_t element_bytes;
    // 0: none.
    uint32_t swizzle;
};
static_assert(sizeof(TensorMap) <= 128, "the size of a map");
constexpr uint64_t TENSOR_MAP = 0x70616d726f736e74ull;

} // namespace emulator
