// Runs one kernel text without Rust, through the same stand-ins: compile with NVRTC's, load and
// launch with libcuda's.
//
//   Program program("sum", 128, {"reduce"}, text);            // ENTRY, THREADS, libraries of kernels/lib in order, the kernel
//   Buffer<float> x(std::vector<float>(128, 1.0f)), y(1);
//   program.launch({1, 1, 1}, shared_bytes, params, operands);
//   y.read()
#pragma once

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "cuda_api.h"

extern "C" {
CUresult cuInit(unsigned);
CUresult cuDevicePrimaryCtxRetain(CUcontext*, CUdevice);
CUresult cuDevicePrimaryCtxReset_v2(CUdevice);
CUresult cuCtxSetCurrent(CUcontext);
CUresult cuCtxSynchronize();
CUresult cuMemAlloc_v2(CUdeviceptr*, size_t);
CUresult cuMemFree_v2(CUdeviceptr);
CUresult cuMemcpyHtoD_v2(CUdeviceptr, const void*, size_t);
CUresult cuMemcpyDtoH_v2(void*, CUdeviceptr, size_t);
CUresult cuModuleLoadData(CUmodule*, const void*);
CUresult cuModuleUnload(CUmodule);
CUresult cuModuleGetFunction(CUfunction*, CUmodule, const char*);
CUresult cuTensorMapEncodeTiled(void*, uint32_t, uint32_t, void*, const uint64_t*, const uint64_t*, const uint32_t*, const uint32_t*, uint32_t,
                                uint32_t, uint32_t, uint32_t);
CUresult cuFuncSetAttribute(CUfunction, int, int);
CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**);
int nvrtcCreateProgram(void**, const char*, const char*, int, const char* const*, const char* const*);
int nvrtcCompileProgram(void*, int, const char* const*);
int nvrtcGetProgramLogSize(void*, size_t*);
int nvrtcGetProgramLog(void*, char*);
int nvrtcGetCUBINSize(void*, size_t*);
int nvrtcGetCUBIN(void*, char*);
int nvrtcDestroyProgram(void**);
}

namespace harness {

inline void require(bool holds, const std::string& what) {
    if (!holds) {
        fprintf(stderr, "harness: %s\n", what.c_str());
        exit(2);
    }
}

inline void expect(CUresult result, const char* call) {
    require(result == CUDA_SUCCESS, std::string(call) + " answered " + std::to_string(result));
}

inline void open_device() {
    CUcontext context;
    expect(cuInit(0), "cuInit");
    expect(cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
    expect(cuCtxSetCurrent(context), "cuCtxSetCurrent");
}

inline std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    require(file.good(), "cannot read " + path);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Device memory with elements of T.
template <class T> class Buffer {
  public:
    explicit Buffer(size_t count) : count(count) {
        expect(cuMemAlloc_v2(&at, count * sizeof(T)), "cuMemAlloc");
    }
    explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
        write(values);
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() {
        cuMemFree_v2(at);
    }
    void write(const std::vector<T>& values) {
        expect(cuMemcpyHtoD_v2(at, values.data(), values.size() * sizeof(T)), "cuMemcpyHtoD");
    }
    std::vector<T> read() const {
        std::vector<T> values(count);
        expect(cuMemcpyDtoH_v2(values.data(), at, count * sizeof(T)), "cuMemcpyDtoH");
        return values;
    }
    void* pointer() const {
        return reinterpret_cast<void*>(at);
    }

  private:
    CUdeviceptr at = 0;
    size_t count;
};

// As kernels see operands.
struct Operand {
    void* at = nullptr;
    uint32_t type = 0;
    uint32_t reserved = 0;
};

struct Grid {
    unsigned x, y, z;
};

class Program {
  public:
    // `defines` are lines such as "#define TILE 64"; `name` stands in messages.
    Program(const std::string& entry, unsigned threads, const std::string& defines, const std::string& name, const std::string& text)
        : threads(threads) {
        std::string source = "#define ENTRY " + entry + "\n#define THREADS " + std::to_string(threads) + "\n" + defines + "\n";
        for (const char* library : {"port", "real", "ptx", "math", "reduce"}) {
            const std::string path = std::string("kernels/lib/") + library + ".cuh";
            source += "#line 1 \"" + path + "\"\n" + read_file(path);
        }
        source += "#line 1 \"" + name + "\"\n" + text;
        void* program = nullptr;
        require(nvrtcCreateProgram(&program, source.c_str(), name.c_str(), 0, nullptr, nullptr) == 0, "nvrtcCreateProgram failed");
        // The image must fit the device that XATTN_EMULATOR_SM names; the default is 90.
        const char* sm = getenv("XATTN_EMULATOR_SM");
        const std::string architecture = std::string("--gpu-architecture=sm_") + (sm == nullptr ? "90" : sm);
        const char* options[] = {architecture.c_str(), "--std=c++17"};
        const int result = nvrtcCompileProgram(program, 2, options);
        size_t bytes = 0;
        nvrtcGetProgramLogSize(program, &bytes);
        std::string log(bytes, 0);
        nvrtcGetProgramLog(program, log.data());
        require(result == 0, entry + " does not compile:\n" + log);
        nvrtcGetCUBINSize(program, &bytes);
        std::vector<char> image(bytes);
        nvrtcGetCUBIN(program, image.data());
        nvrtcDestroyProgram(&program);
        expect(cuModuleLoadData(&module, image.data()), "cuModuleLoadData");
        expect(cuModuleGetFunction(&function, module, entry.c_str()), "cuModuleGetFunction");
    }
    Program(const Program&) = delete;
    ~Program() {
        cuModuleUnload(module);
    }

    template <class P, class O, class M = char> CUresult enqueue(Grid grid, unsigned shared_bytes, P params, O operands, CUstream stream, M maps = {}) {
        if (shared_bytes > 49152) {
            expect(cuFuncSetAttribute(function, 8, static_cast<int>(shared_bytes)), "cuFuncSetAttribute");
        }
        void* parameters[] = {&params, &operands, &maps};
        return cuLaunchKernel(function, grid.x, grid.y, grid.z, threads, 1, 1, shared_bytes, stream, parameters, nullptr);
    }

    CUresult unload() {
        return cuModuleUnload(module);
    }

    // Waits for the kernel; what it answers may be a fault.
    template <class P, class O, class M = char> CUresult launch(Grid grid, unsigned shared_bytes, P params, O operands, M maps = {}) {
        const CUresult result = enqueue(grid, shared_bytes, params, operands, nullptr, maps);
        return result == CUDA_SUCCESS ? cuCtxSynchronize() : result;
    }

  private:
    CUmodule module = nullptr;
    CUfunction function = nullptr;
    unsigned threads;
};

} // namespace harness
