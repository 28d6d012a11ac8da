/* An engine in C with a CUDA context, a stream and memory of its own: attention is enqueued on the stream, and nothing waits but the engine.
 *
 *   cargo build --release -p xattn-capi --features cuda
 *   cc -std=c11 -Icapi/include examples/c/cuda_engine.c target/release/libxattn_c.a -lm -lpthread -ldl -o cuda_engine && ./cuda_engine
 *
 * It takes the driver's functions from libcuda.so.1 at run time, so that it compiles without CUDA. An engine includes cuda.h instead.
 */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "xattn.h"

enum { ROWS = 6, HEADS = 4, DIM = 64, KEYS = 9, Q = ROWS * HEADS * DIM, KV = KEYS * HEADS * DIM };

static void expect(int32_t status, const char *what) {
    if (status != XATTN_STATUS_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, xattn_status_name(status), xattn_last_error());
        exit(1);
    }
}

static void driver(int result, const char *what) {
    if (result != 0) {
        fprintf(stderr, "%s: CUDA error %d\n", what, result);
        exit(1);
    }
}

/* The address of a function of the driver, in a pointer to a pointer to a function. */
static void find(void *library, const char *name, void *into) {
    void *function = dlsym(library, name);
    if (!function) {
        fprintf(stderr, "libcuda.so.1 has no %s\n", name);
        exit(1);
    }
    memcpy(into, &function, sizeof function);
}

/* A tensor without gaps at a device address. */
static xattn_tensor tensor(uint64_t address, const uint64_t *shape) {
    xattn_tensor t = {.struct_size = sizeof t, .data = (void *)(uintptr_t)address, .dtype = XATTN_F32, .rank = 4};
    t.bytes = sizeof(float);
    for (int i = 0; i < 4; i++) t.shape[i] = shape[i], t.bytes *= shape[i];
    return t;
}

int main(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) {
        printf("skipped: %s\n", dlerror());
        return 77;
    }
    int (*init)(unsigned), (*retain)(void **, int), (*current)(void *), (*stream_create)(void **, unsigned), (*stream_wait)(void *);
    int (*alloc)(uint64_t *, size_t), (*to_device)(uint64_t, const void *, size_t, void *), (*to_host)(void *, uint64_t, size_t, void *);
    int (*release)(uint64_t);
    find(library, "cuInit", &init), find(library, "cuDevicePrimaryCtxRetain", &retain), find(library, "cuCtxSetCurrent", &current);
    find(library, "cuStreamCreate", &stream_create), find(library, "cuStreamSynchronize", &stream_wait);
    find(library, "cuMemAlloc_v2", &alloc), find(library, "cuMemFree_v2", &release);
    find(library, "cuMemcpyHtoDAsync_v2", &to_device), find(library, "cuMemcpyDtoHAsync_v2", &to_host);

    /* The engine's own. */
    void *context = NULL, *stream = NULL;
    driver(init(0), "cuInit"), driver(retain(&context, 0), "context"), driver(current(context), "context");
    driver(stream_create(&stream, 1), "stream");
    uint64_t memory = 0, q_at, k_at, v_at, out_at;
    driver(alloc(&memory, (2 * Q + 2 * KV) * sizeof(float)), "memory");
    q_at = memory, k_at = q_at + Q * sizeof(float), v_at = k_at + KV * sizeof(float), out_at = v_at + KV * sizeof(float);
    static float host[Q + 2 * KV], out_data[Q];
    for (int i = 0; i < Q + 2 * KV; i++) host[i] = (float)(i % 7 - 3) / 8.0f;
    driver(to_device(memory, host, sizeof host, stream), "copy");

    /* Once: the device over the engine's context, and a plan. */
    xattn_device *device = NULL;
    expect(xattn_device_from_cuda(context, &device), "device");
    char name[256];
    expect(xattn_device_describe(device, name, sizeof name), "describe");
    printf("%s\n", name);
    const uint64_t rows[] = {1, ROWS, HEADS, DIM}, keys[] = {1, KEYS, HEADS, DIM};
    xattn_tensor q = tensor(q_at, rows), k = tensor(k_at, keys), v = tensor(v_at, keys), out = tensor(out_at, rows);
    xattn_segment segment = {.struct_size = sizeof segment, .k = &k, .v = &v};
    xattn_attention_args args = {.struct_size = sizeof args, .scale = 1.0f / sqrtf(DIM), .q = &q, .first = &segment, .out = &out};
    xattn_prepared *prepared = NULL;
    expect(xattn_attention_prepare(device, &args, &prepared), "prepare");
    uint64_t bytes = 0, workspace = 0;
    expect(xattn_prepared_workspace_bytes(prepared, &bytes), "workspace");
    driver(alloc(&workspace, bytes + 256), "workspace");

    /* At every step. */
    expect(xattn_attention_enqueue(prepared, &args, (void *)(uintptr_t)workspace, bytes, stream), "enqueue");
    driver(to_host(out_data, out_at, sizeof out_data, stream), "copy");
    driver(stream_wait(stream), "wait");

    /* The same on the reference, in host memory. */
    static float truth[Q];
    xattn_device *judge = NULL;
    expect(xattn_device_open("reference", &judge), "reference");
    q.data = host, k.data = host + Q, v.data = host + Q + KV, out.data = truth;
    expect(xattn_attention(judge, &args), "reference");
    float error = 0, largest = 0;
    for (int i = 0; i < Q; i++) {
        error = fmaxf(error, fabsf(out_data[i] - truth[i]));
        largest = fmaxf(largest, fabsf(truth[i]));
    }
    printf("largest %g, largest error %g\n", largest, error);
    expect(xattn_prepared_free(prepared), "free"), expect(xattn_device_free(device), "free"), expect(xattn_device_free(judge), "free");
    driver(release(workspace), "free"), driver(release(memory), "free");
    /* 73 products and sums of f32, each off by half an ulp at most. */
    return largest > 0 && error <= 73 * largest * 6e-8f && xattn_live_handles() == 0 ? 0 : 1;
}
