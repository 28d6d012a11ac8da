#pragma once

#include "cuda_api.h"

CUDA_API CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device);

namespace emulator {

// 80, 89 or 90, as XATTN_EMULATOR_SM says.
int architecture();
// Whether this thread has a context: without one, most calls fail.
bool context_is_current();
// The most shared memory that a block may ask for.
int shared_limit();

} // namespace emulator
