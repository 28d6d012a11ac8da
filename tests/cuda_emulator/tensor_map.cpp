// cuTensorMapEncodeTiled: the checks that the driver's documentation names, for what is modelled:
// matrices of 16-bit reals.

#include "tensor_map.h"

#include <cstring>

#include "cuda_api.h"
#include "runtime.h"
#include "stream.h"

using namespace emulator;

namespace {

enum : uint32_t { FLOAT16 = 6, BFLOAT16 = 9 };

const char* refuse(const void* map, uint32_t type, uint32_t rank, uint64_t address, const uint64_t* extent, const uint64_t* stride,
                   const uint32_t* box, const uint32_t* step, uint32_t interleave, uint32_t swizzle, uint32_t promotion, uint32_t fill) {
    if (reinterpret_cast<uintptr_t>(map) % 64 != 0) {
        return "the map does not lie on a multiple of 64 bytes";
    }
    if ((type != FLOAT16 && type != BFLOAT16) || rank != 2 || interleave != 0 || fill != 0) {
        return "not modelled: 2 dimensions of 16-bit reals without interleave, zeros out of bounds";
    }
    if (address == 0 || address % 16 != 0) {
        return "the address is no multiple of 16";
    }
    if (stride[0] % 16 != 0 || stride[0] == 0 || stride[0] >= uint64_t{1} << 40) {
        return "the stride is no multiple of 16 bytes below 2^40";
    }
    for (uint32_t i = 0; i < 2; i++) {
        if (extent[i] == 0 || extent[i] > uint64_t{1} << 32) {
            return "an extent is not 1 to 2^32";
        }
        if (box[i] == 0 || box[i] > 256) {
            return "a side of the box is not 1 to 256";
        }
        if (step[i] != 1) {
            return "not modelled: steps other than 1";
        }
    }
    if (box[0] * 2 % 16 != 0) {
        return "the rows of the box are no multiple of 16 bytes";
    }
    if (swizzle > 3 || (swizzle != 0 && box[0] * 2 > 16u << swizzle)) {
        return "the rows of the box are wider than the swizzle";
    }
    return promotion > 3 ? "no such promotion" : nullptr;
}

} // namespace

CUDA_API CUresult cuTensorMapEncodeTiled(void* map, uint32_t type, uint32_t rank, void* address, const uint64_t* extent, const uint64_t* stride,
                                         const uint32_t* box, const uint32_t* step, uint32_t interleave, uint32_t swizzle, uint32_t promotion,
                                         uint32_t fill) {
    counted(__func__);
    const Guard guard(lock());
    if (map == nullptr || extent == nullptr || stride == nullptr || box == nullptr || step == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const uint64_t at = reinterpret_cast<uint64_t>(address);
    if (const char* why = refuse(map, type, rank, at, extent, stride, box, step, interleave, swizzle, promotion, fill); why != nullptr) {
        complain("cuTensorMapEncodeTiled: %s", why);
        return CUDA_ERROR_INVALID_VALUE;
    }
    const TensorMap encoded{TENSOR_MAP, at, {extent[0], extent[1]}, stride[0], {box[0], box[1]}, 2, swizzle == 0 ? 0 : 16u << swizzle};
    memset(map, 0, 128);
    memcpy(map, &encoded, sizeof encoded);
    return CUDA_SUCCESS;
}
