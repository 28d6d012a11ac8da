// What the stand-ins for libcuda and NVRTC promise: work is late until something waits for it,
// streams and events order it, captures record it, and calls that a driver refuses are refused.

#include <algorithm>
#include <thread>

#include "../harness.h"

using namespace harness;

extern "C" {
CUresult cuStreamCreate(CUstream*, unsigned);
CUresult cuStreamSynchronize(CUstream);
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned);
CUresult cuStreamBeginCapture_v2(CUstream, int);
CUresult cuStreamEndCapture(CUstream, CUgraph*);
CUresult cuEventCreate(CUevent*, unsigned);
CUresult cuEventRecord(CUevent, CUstream);
CUresult cuEventQuery(CUevent);
CUresult cuEventElapsedTime(float*, CUevent, CUevent);
CUresult cuGraphInstantiateWithFlags(CUgraphExec*, CUgraph, unsigned long long);
CUresult cuGraphLaunch(CUgraphExec, CUstream);
CUresult cuGraphDestroy(CUgraph);
CUresult cuGraphExecDestroy(CUgraphExec);
CUresult cuMemHostAlloc(void**, size_t, unsigned);
CUresult cuMemFreeHost(void*);
CUresult cuMemsetD8Async(CUdeviceptr, unsigned char, size_t, CUstream);
CUresult cuMemcpyDtoHAsync_v2(void*, CUdeviceptr, size_t, CUstream);
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr, const void*, size_t, CUstream);
CUresult cuDeviceGetName(char*, int, CUdevice);
}

namespace {

int failures;

void check(bool holds, const char* what) {
    if (!holds) {
        failures++;
        fprintf(stderr, "driver: %s\n", what);
    }
}

void check_result(CUresult expected, CUresult actual, const char* what) {
    if (expected != actual) {
        failures++;
        fprintf(stderr, "driver: %s: expected %d, got %d\n", what, expected, actual);
    }
}

struct Params {
    uint32_t count, value;
};
struct Operands {
    Operand out;
};

// out[i] += value, for i below count; value 99 reaches into memory that does not exist.
const char* const KERNEL_TEXT = R"(
struct AddParams { u32 count; u32 value; };
struct AddOperands { Operand out; };
KERNEL(AddParams, AddOperands) {
    SHARED(u32, scratch, 0, 32);
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    scratch[threadIdx.x] = params.value;
    if (i < params.count) {
        u32* out = params.value == 99 ? reinterpret_cast<u32*>(8) : data<u32>(operands.out);
        out[i] += scratch[threadIdx.x];
    }
}
)";

constexpr int TRIES = 200, GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2;

// The result of an allocation that another thread makes.
CUresult allocate_elsewhere() {
    CUresult result = CUDA_ERROR_UNKNOWN;
    std::thread([&result] {
        CUcontext context;
        CUdeviceptr memory;
        expect(cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
        expect(cuCtxSetCurrent(context), "cuCtxSetCurrent");
        result = cuMemAlloc_v2(&memory, 64);
    }).join();
    return result;
}

struct Pinned {
    uint32_t* at;
    Pinned() {
        expect(cuMemHostAlloc(reinterpret_cast<void**>(&at), 64, 0), "cuMemHostAlloc");
    }
    ~Pinned() {
        cuMemFreeHost(at);
    }
};

// How many of many tries found the device's 7 in host memory, before anybody waited.
int seen_early(bool pinned) {
    Pinned memory;
    uint32_t pageable[16];
    Buffer<uint32_t> device(16);
    CUstream stream;
    expect(cuStreamCreate(&stream, 1), "cuStreamCreate");
    uint32_t* host = pinned ? memory.at : pageable;
    int early = 0;
    for (int i = 0; i < TRIES; i++) {
        host[0] = 0;
        const CUdeviceptr at = reinterpret_cast<CUdeviceptr>(device.pointer());
        expect(cuMemsetD8Async(at, 7, 64, stream), "cuMemsetD8Async");
        expect(cuMemcpyDtoHAsync_v2(host, at, 64, stream), "cuMemcpyDtoHAsync");
        early += host[0] == 0x07070707;
        expect(cuStreamSynchronize(stream), "cuStreamSynchronize");
        check(host[0] == 0x07070707, "a copy that was waited for is there");
    }
    return early;
}

// A second stream reads what a first one writes: how often it finds the new value.
int seen_across(bool with_event) {
    CUstream writer, reader;
    CUevent event;
    expect(cuStreamCreate(&writer, 1), "cuStreamCreate");
    expect(cuStreamCreate(&reader, 1), "cuStreamCreate");
    expect(cuEventCreate(&event, 0), "cuEventCreate");
    Buffer<uint32_t> device(16);
    const CUdeviceptr at = reinterpret_cast<CUdeviceptr>(device.pointer());
    int seen = 0;
    for (int i = 0; i < TRIES; i++) {
        device.write(std::vector<uint32_t>(16, 0));
        expect(cuMemsetD8Async(at, 7, 64, writer), "cuMemsetD8Async");
        if (with_event) {
            expect(cuEventRecord(event, writer), "cuEventRecord");
            expect(cuStreamWaitEvent(reader, event, 0), "cuStreamWaitEvent");
        }
        uint32_t host[16];
        expect(cuMemcpyDtoHAsync_v2(host, at, 64, reader), "cuMemcpyDtoHAsync");
        seen += host[0] == 0x07070707;
        expect(cuCtxSynchronize(), "cuCtxSynchronize");
    }
    return seen;
}

void test_order() {
    const int pinned = seen_early(true), pageable = seen_early(false);
    check(pinned > 0 && pinned < TRIES, "a copy into pinned memory is sometimes late and sometimes not");
    check(pageable == TRIES, "a copy into pageable memory has happened when the call returns");
    const int ordered = seen_across(true), loose = seen_across(false);
    check(ordered == TRIES, "an event orders two streams");
    check(loose > 0 && loose < TRIES, "without an event two streams are not ordered");
    printf("driver: of %d, %d early copies into pinned memory; without an event %d reads in order\n", TRIES, pinned, loose);
}

void test_launch(Program& program) {
    Buffer<uint32_t> out(std::vector<uint32_t>(64, 1));
    const Operands operands{{out.pointer(), 4, 0}};
    check_result(CUDA_SUCCESS, program.launch({2, 1, 1}, 128, Params{64, 4}, operands), "a launch");
    check(out.read() == std::vector<uint32_t>(64, 5), "the kernel's result");
    check_result(CUDA_ERROR_INVALID_VALUE, program.launch({0, 1, 1}, 128, Params{64, 4}, operands), "an empty grid");
    check_result(CUDA_ERROR_INVALID_VALUE, program.launch({1, 65536, 1}, 128, Params{64, 4}, operands), "a grid too high");
    check_result(CUDA_ERROR_LAUNCH_FAILED, program.launch({2, 1, 1}, 64, Params{64, 4}, operands), "a tile beyond the launch's shared memory");
    check_result(CUDA_ERROR_LAUNCH_FAILED, program.launch({2, 1, 1}, 128, Params{64, 4}, operands), "a launch after a fault");
    expect(cuDevicePrimaryCtxReset_v2(0), "cuDevicePrimaryCtxReset");
    // Sanitizers end the process there.
    if (getenv("XATTN_EMULATOR_MODULES") == nullptr) {
        const CUresult result = program.launch({2, 1, 1}, 128, Params{64, 99}, operands);
        check_result(CUDA_ERROR_LAUNCH_FAILED, result, "a pointer that leads nowhere");
        expect(cuDevicePrimaryCtxReset_v2(0), "cuDevicePrimaryCtxReset");
    }
    check_result(CUDA_SUCCESS, program.launch({2, 1, 1}, 128, Params{64, 4}, operands), "a launch after a reset");
    const CUdeviceptr at = reinterpret_cast<CUdeviceptr>(out.pointer());
    check_result(CUDA_ERROR_INVALID_VALUE, cuMemcpyHtoD_v2(at + 4, operands.out.at, 256), "a copy past the end of an allocation");
    check_result(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(at + 4), "memory that was not allocated");
}

void test_capture(Program& program) {
    CUstream stream;
    CUevent foreign;
    CUgraph graph = nullptr;
    CUgraphExec executable;
    expect(cuStreamCreate(&stream, 1), "cuStreamCreate");
    expect(cuEventCreate(&foreign, 0), "cuEventCreate");
    Buffer<uint32_t> out(std::vector<uint32_t>(64, 0));
    const CUdeviceptr at = reinterpret_cast<CUdeviceptr>(out.pointer());

    expect(cuStreamBeginCapture_v2(stream, THREAD_LOCAL), "cuStreamBeginCapture");
    expect(cuMemsetD8Async(at, 1, 128, stream), "cuMemsetD8Async");
    expect(program.enqueue({2, 1, 1}, 128, Params{64, 2}, Operands{{out.pointer(), 4, 0}}, stream), "cuLaunchKernel");
    expect(cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
    expect(cuGraphInstantiateWithFlags(&executable, graph, 0), "cuGraphInstantiateWithFlags");
    expect(cuStreamSynchronize(stream), "cuStreamSynchronize");
    check(out.read() == std::vector<uint32_t>(64, 0), "a capture runs nothing");
    for (int i = 0; i < 2; i++) {
        expect(cuGraphLaunch(executable, stream), "cuGraphLaunch");
    }
    expect(cuStreamSynchronize(stream), "cuStreamSynchronize");
    std::vector<uint32_t> expected(64, 4);
    std::fill(expected.begin(), expected.begin() + 32, 0x01010103);
    check(out.read() == expected, "a graph replays its nodes in order");

    CUdeviceptr memory;
    expect(cuStreamBeginCapture_v2(stream, THREAD_LOCAL), "cuStreamBeginCapture");
    check_result(CUDA_SUCCESS, allocate_elsewhere(), "an allocation of another thread during a thread-local capture");
    check_result(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuMemAlloc_v2(&memory, 64), "an allocation during a capture");
    check_result(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(stream, &graph), "the end of a spoilt capture");
    expect(cuStreamBeginCapture_v2(stream, THREAD_LOCAL), "cuStreamBeginCapture");
    check_result(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamSynchronize(stream), "waiting during a capture");
    cuStreamEndCapture(stream, &graph);
    expect(cuStreamBeginCapture_v2(stream, GLOBAL), "cuStreamBeginCapture");
    check_result(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, allocate_elsewhere(), "an allocation of another thread during a global capture");
    cuStreamEndCapture(stream, &graph);
    expect(cuStreamBeginCapture_v2(stream, RELAXED), "cuStreamBeginCapture");
    check_result(CUDA_SUCCESS, cuMemAlloc_v2(&memory, 64), "an allocation during a relaxed capture");
    expect(cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
    expect(cuEventRecord(foreign, nullptr), "cuEventRecord");
    expect(cuStreamBeginCapture_v2(stream, THREAD_LOCAL), "cuStreamBeginCapture");
    check_result(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, cuStreamWaitEvent(stream, foreign, 0), "an event from outside of the capture");
    cuStreamEndCapture(stream, &graph);
    check_result(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamBeginCapture_v2(nullptr, THREAD_LOCAL), "a capture of the null stream");
}

// A module that is unloaded under its kernels: drivers may wait for them, but do not promise it.
void test_unload() {
    CUstream stream;
    CUgraph graph;
    CUgraphExec executable;
    expect(cuStreamCreate(&stream, 1), "cuStreamCreate");
    Buffer<uint32_t> out(std::vector<uint32_t>(64, 0));
    const Operands operands{{out.pointer(), 4, 0}};
    int refused = 0;
    for (int i = 0; i < 8; i++) {
        Program program("add", 32, "", "driver/add.cu", KERNEL_TEXT);
        expect(program.enqueue({2, 1, 1}, 128, Params{64, 1}, operands, stream), "cuLaunchKernel");
        refused += program.unload() == CUDA_ERROR_LAUNCH_FAILED;
        expect(cuDevicePrimaryCtxReset_v2(0), "cuDevicePrimaryCtxReset");
    }
    check(refused > 0, "unloading a module whose kernel has not run is a fault");
    {
        Program program("add", 32, "", "driver/add.cu", KERNEL_TEXT);
        expect(cuStreamBeginCapture_v2(stream, THREAD_LOCAL), "cuStreamBeginCapture");
        expect(program.enqueue({2, 1, 1}, 128, Params{64, 1}, operands, stream), "cuLaunchKernel");
        expect(cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
        expect(cuGraphInstantiateWithFlags(&executable, graph, 0), "cuGraphInstantiateWithFlags");
        expect(cuGraphDestroy(graph), "cuGraphDestroy");
        check_result(CUDA_ERROR_LAUNCH_FAILED, program.unload(), "unloading a module whose kernel is in a graph");
        expect(cuDevicePrimaryCtxReset_v2(0), "cuDevicePrimaryCtxReset");
        expect(cuGraphExecDestroy(executable), "cuGraphExecDestroy");
        check_result(CUDA_SUCCESS, program.unload(), "unloading a module that nothing needs");
    }
    Program program("add", 32, "", "driver/add.cu", KERNEL_TEXT);
    check_result(CUDA_SUCCESS, program.launch({2, 1, 1}, 128, Params{64, 1}, operands), "a launch that was waited for");
    check_result(CUDA_SUCCESS, program.unload(), "unloading a module whose kernels have run");
}

// Host threads with a stream each, at the same time.
void test_threads(Program& program) {
    std::vector<std::thread> threads;
    std::vector<std::vector<uint32_t>> results(4);
    for (uint32_t number = 0; number < 4; number++) {
        threads.emplace_back([&program, &results, number] {
            CUcontext context;
            CUstream stream;
            expect(cuDevicePrimaryCtxRetain(&context, 0), "cuDevicePrimaryCtxRetain");
            expect(cuCtxSetCurrent(context), "cuCtxSetCurrent");
            expect(cuStreamCreate(&stream, 1), "cuStreamCreate");
            Buffer<uint32_t> out(std::vector<uint32_t>(64, number));
            for (int i = 0; i < 50; i++) {
                expect(program.enqueue({2, 1, 1}, 128, Params{64, 1}, Operands{{out.pointer(), 4, 0}}, stream), "cuLaunchKernel");
            }
            expect(cuStreamSynchronize(stream), "cuStreamSynchronize");
            results[number] = out.read();
        });
    }
    for (uint32_t number = 0; number < 4; number++) {
        threads[number].join();
        check(results[number] == std::vector<uint32_t>(64, 50 + number), "threads with a stream each do not disturb one another");
    }
}

int compile(const char* text, const char* option, std::string& log, std::vector<char>& image) {
    void* program = nullptr;
    nvrtcCreateProgram(&program, text, "text.cu", 0, nullptr, nullptr);
    const int result = nvrtcCompileProgram(program, 1, &option);
    size_t bytes = 0;
    nvrtcGetProgramLogSize(program, &bytes);
    log.resize(bytes);
    nvrtcGetProgramLog(program, log.data());
    if (nvrtcGetCUBINSize(program, &bytes) == 0) {
        image.resize(bytes);
        nvrtcGetCUBIN(program, image.data());
    }
    nvrtcDestroyProgram(&program);
    return result;
}

void test_images() {
    std::string log;
    std::vector<char> image;
    CUmodule module;
    CUfunction function;
    check(compile("int x;", "--gpu-architecture=sm_80", log, image) == 0, "an image for sm_80");
    check_result(CUDA_ERROR_NO_BINARY_FOR_GPU, cuModuleLoadData(&module, image.data()), "an image for another architecture");
    check(compile("int x;", "--gpu-architecture=sm_90a", log, image) == 0, "an image for sm_90a");
    check_result(CUDA_SUCCESS, cuModuleLoadData(&module, image.data()), "an image for this architecture");
    check_result(CUDA_ERROR_NOT_FOUND, cuModuleGetFunction(&function, module, "cuInit"), "a function of another library");
    const std::vector<char> zeros(4096, 0);
    check_result(CUDA_ERROR_INVALID_IMAGE, cuModuleLoadData(&module, zeros.data()), "an image of zeros");
    check(compile("#line 7 \"kernels/wrong.cu\"\nint x = y;", "--gpu-architecture=sm_90", log, image) == 6, "a text that does not compile");
    check(log.find("kernels/wrong.cu:7") != std::string::npos, "the log names file and line");
    check(compile("int x;", "--gpu-architecture=sm_35", log, image) == 5 && log.find("sm_35") != std::string::npos, "an unknown architecture");
    check(compile("int x;", "--use_fast_math", log, image) == 5 && log.find("--use_fast_math") != std::string::npos, "an option that is not taken");
}

} // namespace

int main() {
    open_device();
    char name[100];
    expect(cuDeviceGetName(name, sizeof name, 0), "cuDeviceGetName");
    check(std::string(name) == "Emulated CUDA device (no GPU)", "the device says that it is emulated");
    CUevent event;
    float milliseconds;
    expect(cuEventCreate(&event, 0), "cuEventCreate");
    check_result(CUDA_ERROR_NOT_SUPPORTED, cuEventElapsedTime(&milliseconds, event, event), "a time of an emulated device");
    test_order();
    Program program("add", 32, "", "driver/add.cu", KERNEL_TEXT);
    test_launch(program);
    test_capture(program);
    test_unload();
    test_threads(program);
    test_images();
    printf("driver: %d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
