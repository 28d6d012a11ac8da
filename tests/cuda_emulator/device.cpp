// The device, contexts, and what the driver says about errors.

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "device.h"
#include "runtime.h"
#include "stream.h"

namespace emulator {

namespace {

bool initialised;
// How often each counted call was made.
std::map<std::string, unsigned long long> calls;
// There is one context; a thread either has it current or not.
char context;
thread_local std::vector<CUcontext> current;
int retained;

struct Model {
    int shared_per_block, shared_per_multiprocessor, threads_per_multiprocessor, blocks_per_multiprocessor, multiprocessors, l2;
};

// From the tables of the CUDA C++ Programming Guide, for the usual members of a family: A100, L40,
// H100.
Model model_of_family() {
    switch (architecture()) {
    case 80: return {166912, 167936, 2048, 32, 108, 41943040};
    case 89: return {101376, 102400, 1536, 24, 142, 100663296};
    default: return {232448, 233472, 2048, 32, 132, 52428800};
    }
}

Model model() {
    Model model = model_of_family();
    const char* text = getenv("XATTN_EMULATOR_MULTIPROCESSORS");
    model.multiprocessors = text == nullptr || atoi(text) < 1 ? model.multiprocessors : atoi(text);
    return model;
}

} // namespace

void counted(const char* call) {
    const Guard guard(lock());
    calls[call]++;
}

int architecture() {
    static const int value = [] {
        const char* text = getenv("XATTN_EMULATOR_SM");
        const int number = text == nullptr ? 90 : atoi(text);
        return number == 80 || number == 89 ? number : 90;
    }();
    return value;
}

bool context_is_current() {
    return !current.empty();
}

int shared_limit() {
    return model().shared_per_block;
}

} // namespace emulator

using namespace emulator;

CUDA_API unsigned long long xattn_emulator_calls(const char* call) {
    const Guard guard(lock());
    const auto found = calls.find(call);
    return found == calls.end() ? 0 : found->second;
}

CUDA_API CUresult cuInit(unsigned flags) {
    const Guard guard(lock());
    // XATTN_EMULATOR_DEVICES=0: a driver on a machine without a device.
    const char* devices = getenv("XATTN_EMULATOR_DEVICES");
    if (devices != nullptr && strcmp(devices, "0") == 0) {
        return CUDA_ERROR_NO_DEVICE;
    }
    initialised = true;
    return flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUDA_API CUresult cuDriverGetVersion(int* version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDeviceGetCount(int* count) {
    *count = 1;
    return initialised ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

CUDA_API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    if (!initialised) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    *device = 0;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUDA_API CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
    if (device != 0 || length <= 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    snprintf(name, static_cast<size_t>(length), "Emulated CUDA device (no GPU)");
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDeviceGetUuid_v2(char* uuid, CUdevice) {
    memset(uuid, 0, 16);
    return CUDA_SUCCESS;
}
CUDA_API CUresult cuDeviceGetUuid(char* uuid, CUdevice device) {
    return cuDeviceGetUuid_v2(uuid, device);
}

CUDA_API CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
    *bytes = size_t{8} << 30;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    if (device != 0 || value == nullptr) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    const Model m = model();
    switch (attribute) {
    case 1: *value = 1024; break;       // threads per block
    case 2: *value = 1024; break;       // block x
    case 3: *value = 1024; break;       // block y
    case 4: *value = 64; break;         // block z
    case 5: *value = 2147483647; break; // grid x
    case 6: *value = 65535; break;      // grid y
    case 7: *value = 65535; break;      // grid z
    case 8: *value = 49152; break;      // shared memory per block, without asking for more
    case 9: *value = 65536; break;      // constant memory
    case 10: *value = 32; break;        // warp
    case 11: *value = 2147483647; break; // pitch
    case 12: *value = 65536; break;     // registers per block
    case 13: *value = 0; break;         // clock rate: nothing to be computed from it
    case 16: *value = m.multiprocessors; break;
    case 18: *value = 0; break;  // integrated
    case 31: *value = 1; break;  // concurrent kernels
    case 36: *value = 0; break;  // memory clock
    case 37: *value = 0; break;  // bus width
    case 38: *value = m.l2; break;
    case 39: *value = m.threads_per_multiprocessor; break;
    case 41: *value = 1; break; // unified addressing
    case 75: *value = architecture() / 10; break;
    case 76: *value = architecture() % 10; break;
    case 81: *value = m.shared_per_multiprocessor; break;
    case 82: *value = 65536; break; // registers per multiprocessor
    case 83: *value = 0; break;     // managed memory
    case 95: *value = 0; break;     // cooperative launch
    case 97: *value = m.shared_per_block; break;
    case 106: *value = m.blocks_per_multiprocessor; break;
    case 111: *value = 1024; break; // reserved shared memory per block
    case 115: *value = 1; break;    // memory pools
    default: complain("cuDeviceGetAttribute: attribute %d is not modelled", attribute); return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice device) {
    const Guard guard(lock());
    if (device != 0) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    retained++;
    *out = reinterpret_cast<CUcontext>(&context);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) {
    const Guard guard(lock());
    if (retained == 0) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (--retained == 0) {
        finish_all();
        mend_context();
    }
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDevicePrimaryCtxReset_v2(CUdevice) {
    const Guard guard(lock());
    finish_all();
    mend_context();
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
    *flags = 0;
    *active = retained > 0;
    return CUDA_SUCCESS;
}

// An engine's own context: the same device memory, so here the same context under another name
// would do. It is one of its own for the calls that compare handles.
CUDA_API CUresult cuCtxCreate_v2(CUcontext* out, unsigned, CUdevice device) {
    if (device != 0) {
        return CUDA_ERROR_INVALID_DEVICE;
    }
    *out = reinterpret_cast<CUcontext>(new char);
    current.push_back(*out);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxCreate_v4(CUcontext* out, void*, unsigned flags, CUdevice device) {
    return cuCtxCreate_v2(out, flags, device);
}

CUDA_API CUresult cuCtxDestroy_v2(CUcontext destroyed) {
    const Guard guard(lock());
    if (destroyed == nullptr || destroyed == reinterpret_cast<CUcontext>(&context)) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    finish_all();
    if (!current.empty() && current.back() == destroyed) {
        current.pop_back();
    }
    delete reinterpret_cast<char*>(destroyed);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxSetCurrent(CUcontext next) {
    if (!current.empty()) {
        current.pop_back();
    }
    if (next != nullptr) {
        current.push_back(next);
    }
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxGetCurrent(CUcontext* out) {
    *out = current.empty() ? nullptr : current.back();
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxPushCurrent_v2(CUcontext next) {
    if (next == nullptr) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    current.push_back(next);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxPopCurrent_v2(CUcontext* out) {
    if (current.empty()) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (out != nullptr) {
        *out = current.back();
    }
    current.pop_back();
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxGetDevice(CUdevice* device) {
    *device = 0;
    return current.empty() ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

CUDA_API CUresult cuCtxGetDevice_v2(CUdevice* device, CUcontext) {
    *device = 0;
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuStreamGetCtx(CUstream, CUcontext* out) {
    return cuCtxGetCurrent(out);
}

CUDA_API CUresult cuCtxSynchronize() {
    counted(__func__);
    const Guard guard(lock());
    if (current.empty()) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    if (capture_forbids()) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    finish_all();
    return sticky_error();
}

CUDA_API CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = *greatest = 0;
    return CUDA_SUCCESS;
}

namespace {

struct Description {
    CUresult result;
    const char* name;
    const char* text;
};

constexpr Description DESCRIPTIONS[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not initiated in this stream"},
    {CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {CUDA_ERROR_CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
};

const Description* describe(CUresult result) {
    for (const Description& description : DESCRIPTIONS) {
        if (description.result == result) {
            return &description;
        }
    }
    return nullptr;
}

} // namespace

CUDA_API CUresult cuGetErrorName(CUresult result, const char** name) {
    const Description* description = describe(result);
    *name = description == nullptr ? nullptr : description->name;
    return description == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUDA_API CUresult cuGetErrorString(CUresult result, const char** text) {
    const Description* description = describe(result);
    *text = description == nullptr ? nullptr : description->text;
    return description == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
