// Memory of the driver API: allocations, copies, fills.

#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <map>

#include "runtime.h"
#include "device.h"
#include "stream.h"

namespace emulator {

namespace {

struct Allocation {
    unsigned char* memory;
    size_t bytes;
};

#if defined(XATTN_SANITIZE_ADDRESS) || defined(XATTN_SANITIZE_THREAD)
constexpr size_t GUARD = 0;
#else
constexpr size_t GUARD = 256;
#endif
// CUDA promises at least that much.
constexpr size_t ALIGNMENT = 256, TOTAL = size_t{8} << 30;
constexpr unsigned char POISON = 0xff, GUARDED = 0xa5;

std::map<const unsigned char*, Allocation> allocations;
std::map<const unsigned char*, size_t> pinned;
size_t in_use;

bool guarded(const unsigned char* at) {
    for (size_t i = 0; i < GUARD; i += 8) {
        uint64_t word;
        memcpy(&word, at + i, 8);
        if (word != 0xa5a5a5a5a5a5a5a5ull) {
            return false;
        }
    }
    return true;
}

template <class Blocks>
bool within(const Blocks& blocks, const unsigned char* at, size_t bytes, size_t (*size)(const typename Blocks::mapped_type&)) {
    auto next = blocks.upper_bound(at);
    if (next == blocks.begin()) {
        return false;
    }
    --next;
    return at + bytes <= next->first + size(next->second);
}

} // namespace

void* allocate_global(size_t bytes) {
    if (bytes > TOTAL - in_use) {
        return nullptr;
    }
    void* memory = nullptr;
    if (posix_memalign(&memory, ALIGNMENT, GUARD + bytes + GUARD) != 0) {
        return nullptr;
    }
    unsigned char* start = static_cast<unsigned char*>(memory) + GUARD;
    memset(start - GUARD, GUARDED, GUARD);
    memset(start, POISON, bytes);
    memset(start + bytes, GUARDED, GUARD);
    allocations[start] = Allocation{static_cast<unsigned char*>(memory), bytes};
    in_use += bytes;
    return start;
}

bool free_global(void* at) {
    const auto found = allocations.find(static_cast<unsigned char*>(at));
    if (found == allocations.end()) {
        return false;
    }
    in_use -= found->second.bytes;
    // Whoever still reads it finds NaN.
    memset(at, POISON, found->second.bytes);
    free(found->second.memory);
    allocations.erase(found);
    return true;
}

bool holds(const void* at, size_t bytes) {
    return within(allocations, static_cast<const unsigned char*>(at), bytes, [](const Allocation& a) { return a.bytes; });
}

bool is_pinned(const void* at) {
    return within(pinned, static_cast<const unsigned char*>(at), 1, [](const size_t& bytes) { return bytes; });
}

bool allocations_intact(std::string& what) {
    for (const auto& [start, allocation] : allocations) {
        const bool before = guarded(start - GUARD);
        if (!before || !guarded(start + allocation.bytes)) {
            char text[160];
            snprintf(text, sizeof text, "something was written %s the allocation of %zu bytes at %p", before ? "behind" : "before",
                     allocation.bytes, static_cast<const void*>(start));
            what = text;
            // Said once.
            memset(const_cast<unsigned char*>(start) - GUARD, GUARDED, GUARD);
            memset(const_cast<unsigned char*>(start) + allocation.bytes, GUARDED, GUARD);
            return false;
        }
    }
    return true;
}

namespace {

void* pointer(CUdeviceptr at) {
    return reinterpret_cast<void*>(at);
}

// Device ranges are checked when the call is made, and again when it runs: the memory may be gone
// by then.
CUresult check_range(const char* call, CUdeviceptr at, size_t bytes) {
    if (bytes == 0 || holds(pointer(at), bytes)) {
        return CUDA_SUCCESS;
    }
    complain("%s: %zu bytes at %p are not within one allocation", call, bytes, pointer(at));
    return CUDA_ERROR_INVALID_VALUE;
}

// Work on device memory.
CUresult enqueue_on(CUstream stream, const char* call, CUdeviceptr at, size_t bytes, std::function<void()> work) {
    if (const CUresult result = check_range(call, at, bytes); result != CUDA_SUCCESS) {
        return result;
    }
    return enqueue(stream, [=] {
        if (check_range(call, at, bytes) != CUDA_SUCCESS) {
            break_context(CUDA_ERROR_ILLEGAL_ADDRESS);
        } else {
            work();
        }
    });
}

CUresult blocking(CUresult enqueued) {
    if (enqueued != CUDA_SUCCESS) {
        return enqueued;
    }
    finish(stream_of(nullptr)->last);
    return sticky_error();
}

} // namespace

} // namespace emulator

using namespace emulator;

CUDA_API CUresult cuMemAlloc_v2(CUdeviceptr* at, size_t bytes) {
    counted(__func__);
    if (!context_is_current()) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    const Guard guard(lock());
    if (at == nullptr || bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (capture_forbids()) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    void* memory = allocate_global(bytes);
    *at = reinterpret_cast<CUdeviceptr>(memory);
    return memory == nullptr ? CUDA_ERROR_OUT_OF_MEMORY : sticky_error();
}

// The memory is there at once; that others must not use it before the stream has come here is not
// checked.
CUDA_API CUresult cuMemAllocAsync(CUdeviceptr* at, size_t bytes, CUstream handle) {
    counted(__func__);
    const Guard guard(lock());
    const Stream* stream = stream_of(handle);
    if (stream == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    // Graphs with allocations are not modelled.
    if (stream->capture != nullptr) {
        stream->capture->invalidated = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (at == nullptr || bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    void* memory = allocate_global(bytes);
    *at = reinterpret_cast<CUdeviceptr>(memory);
    return memory == nullptr ? CUDA_ERROR_OUT_OF_MEMORY : sticky_error();
}

// cuMemFree waits for everything that may use the memory.
CUDA_API CUresult cuMemFree_v2(CUdeviceptr at) {
    counted(__func__);
    const Guard guard(lock());
    if (at == 0) {
        return CUDA_SUCCESS;
    }
    if (capture_forbids()) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    finish_all();
    return free_global(pointer(at)) ? sticky_error() : CUDA_ERROR_INVALID_VALUE;
}

CUDA_API CUresult cuMemFreeAsync(CUdeviceptr at, CUstream stream) {
    const Guard guard(lock());
    if (at == 0) {
        return CUDA_SUCCESS;
    }
    const CUresult result = enqueue_on(stream, "cuMemFreeAsync", at, 1, [at] { free_global(pointer(at)); });
    // A broken context runs nothing any more.
    if (sticky_error() != CUDA_SUCCESS) {
        free_global(pointer(at));
    }
    return result;
}

CUDA_API CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    const Guard guard(lock());
    *free_bytes = TOTAL - in_use;
    *total = TOTAL;
    return sticky_error();
}

CUDA_API CUresult cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    counted(__func__);
    const Guard guard(lock());
    *at = malloc(bytes);
    pinned[static_cast<unsigned char*>(*at)] = bytes;
    return *at == nullptr ? CUDA_ERROR_OUT_OF_MEMORY : sticky_error();
}

CUDA_API CUresult cuMemFreeHost(void* at) {
    const Guard guard(lock());
    finish_all();
    if (pinned.erase(static_cast<unsigned char*>(at)) == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    free(at);
    return sticky_error();
}

// From pageable memory the driver takes a copy before it returns; pinned memory is read when the
// stream comes to it.
CUDA_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream handle) {
    const Guard guard(lock());
    const Stream* stream = stream_of(handle);
    if (stream != nullptr && (stream->capture != nullptr || is_pinned(from))) {
        return enqueue_on(handle, "cuMemcpyHtoDAsync", to, bytes, [=] { memcpy(pointer(to), from, bytes); });
    }
    const unsigned char* start = static_cast<const unsigned char*>(from);
    const auto staged = std::make_shared<std::vector<unsigned char>>(start, start + bytes);
    return enqueue_on(handle, "cuMemcpyHtoDAsync", to, bytes, [=] { memcpy(pointer(to), staged->data(), bytes); });
}

CUDA_API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    const Guard guard(lock());
    if (capture_forbids()) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return blocking(cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr));
}

// Into pageable memory the copy is complete when the call returns; into pinned memory, when the
// stream has been waited for.
CUDA_API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream handle) {
    const Guard guard(lock());
    const CUresult result = enqueue_on(handle, "cuMemcpyDtoHAsync", from, bytes, [=] { memcpy(to, pointer(from), bytes); });
    const Stream* stream = stream_of(handle);
    if (result == CUDA_SUCCESS && stream->capture == nullptr && !is_pinned(to)) {
        finish(stream->last);
        return sticky_error();
    }
    return result;
}

CUDA_API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    const Guard guard(lock());
    if (capture_forbids()) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
}

CUDA_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    const Guard guard(lock());
    if (const CUresult result = check_range("cuMemcpyDtoDAsync", from, bytes); result != CUDA_SUCCESS) {
        return result;
    }
    return enqueue_on(stream, "cuMemcpyDtoDAsync", to, bytes, [=] { memmove(pointer(to), pointer(from), bytes); });
}

CUDA_API CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    const Guard guard(lock());
    if (capture_forbids()) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
}

CUDA_API CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, CUstream stream) {
    const Guard guard(lock());
    return enqueue_on(stream, "cuMemsetD8Async", at, bytes, [=] { memset(pointer(at), value, bytes); });
}

CUDA_API CUresult cuMemsetD8_v2(CUdeviceptr at, unsigned char value, size_t bytes) {
    return cuMemsetD8Async(at, value, bytes, nullptr);
}

CUDA_API CUresult cuMemsetD32Async(CUdeviceptr at, unsigned value, size_t count, CUstream stream) {
    const Guard guard(lock());
    return enqueue_on(stream, "cuMemsetD32Async", at, 4 * count, [=] {
        for (size_t i = 0; i < count; i++) {
            static_cast<unsigned*>(pointer(at))[i] = value;
        }
    });
}
