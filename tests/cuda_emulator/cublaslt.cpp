// Stand-in for libcublasLt: as much of it as src/backend/cuda/cublaslt/ calls. It refuses what the
// real library refuses or answers with garbage: matrices that do not fit one another, leading
// dimensions, types, pointer modes, broken promises of alignment, workspaces that are too small,
// null pointers, objects that are gone, host addresses where device addresses belong. Each refusal
// is a status and a line on stderr. Products run in stream order with everything else, in plain
// loops: sums in f64, then f32 as alpha * sum + beta * c + bias, one rounding.
//
// Matrices are column-major: element (row, column) at row + column * ld.

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <set>

#include "emulator.h"
#include "memory.h"
#include "stream.h"

CUDA_API CUresult cuCtxGetCurrent(CUcontext* out);

namespace {

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum DataType { R_32F = 0, R_16F = 2, R_16BF = 14 };
constexpr int COMPUTE_32F = 68;
enum PointerMode { MODE_HOST = 0, MODE_DEVICE = 1, MODE_DEVICE_VECTOR = 2, MODE_VECTOR_ZERO = 3, MODE_VECTOR_HOST = 4 };
enum Epilogue { EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4, EPILOGUE_GELU = 32 };

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t ld;
    int32_t batch = 1;
    int64_t batch_stride = 0;
};

struct Matmul {
    int compute, scale;
    int mode = MODE_HOST;
    int transpose_a = 0, transpose_b = 0;
    int epilogue = EPILOGUE_DEFAULT;
    const void* bias = nullptr;
};

struct Preference {
    uint64_t workspace = 0;
    // Of A, B, C, D. The library's default.
    uint32_t alignment[4] = {256, 256, 256, 256};
};

struct Algorithm {
    uint64_t signature;
    uint64_t workspace;
    uint32_t alignment[4];
    uint64_t rest[4];
};
static_assert(sizeof(Algorithm) == 64, "as cublasLtMatmulAlgo_t");

struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

// What the stand-in's algorithms ask for: a number of bytes that nothing else is likely to have,
// and overwrite.
constexpr uint64_t WORKSPACE = 1536;

std::set<const void*> alive;
std::atomic<unsigned> heuristics{0}, products{0};

[[gnu::format(printf, 2, 3)]] Status refuse(Status status, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char text[256];
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "emulated cuBLASLt: %s (status %d)\n", text, status);
    return status;
}

bool lives(const void* object) {
    return object != nullptr && alive.count(object) != 0;
}

template <class T> Status create(T** out, T value) {
    const emulator::Guard guard(emulator::lock());
    if (out == nullptr) {
        return refuse(INVALID_VALUE, "nowhere to put a new object");
    }
    *out = new T(value);
    alive.insert(*out);
    return SUCCESS;
}

template <class T> Status destroy(T* object) {
    const emulator::Guard guard(emulator::lock());
    if (!lives(object)) {
        return refuse(INVALID_VALUE, "destroys what is not there");
    }
    // Its memory is kept, so that no new object takes the address and a late use is always noticed.
    alive.erase(object);
    return SUCCESS;
}

template <class T> Status assign(T& to, const void* from, size_t bytes) {
    if (from == nullptr || bytes != sizeof to) {
        return refuse(INVALID_VALUE, "an attribute of %zu bytes where it has %zu", bytes, sizeof to);
    }
    memcpy(&to, from, bytes);
    return SUCCESS;
}

size_t size_of(int type) {
    return type == R_32F ? 4 : 2;
}

float load(int type, const void* at, uint64_t index) {
    if (type == R_32F) {
        return static_cast<const float*>(at)[index];
    }
    const uint16_t bits = static_cast<const uint16_t*>(at)[index];
    if (type == R_16F) {
        return emulator::f16_to_f32(bits);
    }
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

void store(int type, void* at, uint64_t index, float value) {
    if (type == R_32F) {
        static_cast<float*>(at)[index] = value;
    } else {
        static_cast<uint16_t*>(at)[index] = type == R_16F ? emulator::f32_to_f16(value) : emulator::f32_to_bf16(value);
    }
}

uint64_t span_bytes(const Layout& m) {
    const uint64_t matrix = (m.columns - 1) * m.ld + m.rows;
    return (matrix + (m.batch - 1) * m.batch_stride) * size_of(m.type);
}

// A product's descriptors, checked to fit one another.
struct Product {
    Matmul op;
    Layout a, b, c, d;
    uint64_t rows, columns, depth;
};

Status check(const Matmul* op, const Layout* a, const Layout* b, const Layout* c, const Layout* d, Product& p) {
    for (const void* object : {static_cast<const void*>(op), static_cast<const void*>(a), static_cast<const void*>(b), static_cast<const void*>(c), static_cast<const void*>(d)}) {
        if (!lives(object)) {
            return refuse(INVALID_VALUE, "a descriptor is null or gone");
        }
    }
    p = {*op, *a, *b, *c, *d, 0, 0, 0};
    p.rows = op->transpose_a ? a->columns : a->rows;
    p.depth = op->transpose_a ? a->rows : a->columns;
    p.columns = op->transpose_b ? b->rows : b->columns;
    const uint64_t depth = op->transpose_b ? b->columns : b->rows;
    if (p.depth != depth) {
        return refuse(INVALID_VALUE, "A has depth %llu, B has %llu", (unsigned long long)p.depth, (unsigned long long)depth);
    }
    for (const Layout* m : {c, d}) {
        if (m->rows != p.rows || m->columns != p.columns) {
            return refuse(INVALID_VALUE, "%c is %llu x %llu, the product %llu x %llu", m == c ? 'C' : 'D', (unsigned long long)m->rows,
                          (unsigned long long)m->columns, (unsigned long long)p.rows, (unsigned long long)p.columns);
        }
    }
    const Layout* all[] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        if (all[i]->ld < static_cast<int64_t>(all[i]->rows)) {
            return refuse(INVALID_VALUE, "%c has %llu rows and a leading dimension of %lld", 'A' + i, (unsigned long long)all[i]->rows, (long long)all[i]->ld);
        }
        if (all[i]->batch != d->batch) {
            return refuse(INVALID_VALUE, "%c has %d matrices, D has %d", 'A' + i, all[i]->batch, d->batch);
        }
    }
    if (d->batch > 1 && d->batch_stride == 0) {
        return refuse(INVALID_VALUE, "all results of a batch at one place");
    }
    if (op->compute != COMPUTE_32F || op->scale != R_32F) {
        return refuse(NOT_SUPPORTED, "compute type %d with scale type %d: only f32 sums are known here", op->compute, op->scale);
    }
    if (a->type != b->type || c->type != d->type || (d->type != a->type && d->type != R_32F)) {
        return refuse(NOT_SUPPORTED, "types %d, %d, %d, %d of A, B, C, D", a->type, b->type, c->type, d->type);
    }
    if (op->mode == MODE_DEVICE_VECTOR || op->mode == MODE_VECTOR_ZERO) {
        return refuse(NOT_SUPPORTED, "pointer mode %d is not known here", op->mode);
    }
    if (op->epilogue & EPILOGUE_GELU) {
        return refuse(NOT_SUPPORTED, "epilogue %d: GELU here would be the tanh form", op->epilogue);
    }
    if (op->epilogue != EPILOGUE_DEFAULT && op->epilogue != EPILOGUE_BIAS) {
        return refuse(NOT_SUPPORTED, "epilogue %d is not known here", op->epilogue);
    }
    return SUCCESS;
}

// An algorithm belongs to the product that it was found for.
uint64_t signature(const Product& p) {
    uint64_t hash = 0xcbf29ce484222325ull;
    const auto mix = [&](uint64_t value) { hash = (hash ^ value) * 0x100000001b3ull; };
    for (const Layout* m : {&p.a, &p.b, &p.c, &p.d}) {
        for (const uint64_t value : {(uint64_t)m->type, m->rows, m->columns, (uint64_t)m->ld, (uint64_t)m->batch, (uint64_t)m->batch_stride}) {
            mix(value);
        }
    }
    for (const int value : {p.op.mode, p.op.transpose_a, p.op.transpose_b, p.op.epilogue}) {
        mix(static_cast<uint64_t>(value));
    }
    return hash;
}

struct Call {
    Product p;
    const void *alpha, *beta;
    // Values of host pointers, read when the call was made.
    float host_alpha, host_beta;
    const void *a, *b, *c;
    void* d;
    void* workspace;
    size_t workspace_bytes;
};

void run(const Call& call) {
    const Product& p = call.p;
    // Whoever keeps something else there loses it.
    if (call.workspace_bytes != 0) {
        memset(call.workspace, 0xff, call.workspace_bytes);
    }
    const bool device = p.op.mode != MODE_HOST, vector = p.op.mode == MODE_VECTOR_HOST;
    const float beta = p.op.mode == MODE_DEVICE ? *static_cast<const float*>(call.beta) : call.host_beta;
    for (int batch = 0; batch < p.d.batch; batch++) {
        const auto at = [&](const Layout& m, uint64_t row, uint64_t column) { return batch * m.batch_stride + column * m.ld + row; };
        for (uint64_t column = 0; column < p.columns; column++) {
            for (uint64_t row = 0; row < p.rows; row++) {
                double sum = 0;
                for (uint64_t k = 0; k < p.depth; k++) {
                    const float a = load(p.a.type, call.a, p.op.transpose_a ? at(p.a, k, row) : at(p.a, row, k));
                    const float b = load(p.b.type, call.b, p.op.transpose_b ? at(p.b, column, k) : at(p.b, k, column));
                    sum += static_cast<double>(a) * b;
                }
                const float alpha = device ? static_cast<const float*>(call.alpha)[vector ? row : 0] : call.host_alpha;
                float value = alpha * static_cast<float>(sum);
                if (beta != 0) {
                    value += beta * load(p.c.type, call.c, at(p.c, row, column));
                }
                if (p.op.epilogue == EPILOGUE_BIAS) {
                    value += load(p.d.type, p.op.bias, row);
                }
                store(p.d.type, call.d, at(p.d, row, column), value);
            }
        }
    }
}

bool overlap(const void* a, uint64_t a_bytes, const void* b, uint64_t b_bytes) {
    const char *x = static_cast<const char*>(a), *y = static_cast<const char*>(b);
    return x < y + b_bytes && y < x + a_bytes;
}

} // namespace

CUDA_API int cublasLtCreate(int** handle) {
    CUcontext context = nullptr;
    if (cuCtxGetCurrent(&context) != CUDA_SUCCESS || context == nullptr) {
        return refuse(NOT_INITIALIZED, "cublasLtCreate without a current context");
    }
    return create(handle, 0);
}
CUDA_API int cublasLtDestroy(int* handle) {
    return destroy(handle);
}
CUDA_API size_t cublasLtGetVersion() {
    return 130000;
}

CUDA_API int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    if (type != R_32F && type != R_16F && type != R_16BF) {
        return refuse(NOT_SUPPORTED, "matrices of type %d are not known here", type);
    }
    if (rows == 0 || columns == 0) {
        return refuse(INVALID_VALUE, "an empty matrix, %llu x %llu", (unsigned long long)rows, (unsigned long long)columns);
    }
    return create(layout, Layout{type, rows, columns, ld});
}
CUDA_API int cublasLtMatrixLayoutDestroy(Layout* layout) {
    return destroy(layout);
}
CUDA_API int cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t bytes) {
    const emulator::Guard guard(emulator::lock());
    if (!lives(layout)) {
        return refuse(INVALID_VALUE, "a layout is null or gone");
    }
    switch (attribute) {
    case 5: return assign(layout->batch, value, bytes);
    case 6: return assign(layout->batch_stride, value, bytes);
    default: return refuse(NOT_SUPPORTED, "layout attribute %d is not known here", attribute);
    }
}

CUDA_API int cublasLtMatmulDescCreate(Matmul** op, int compute, int scale) {
    return create(op, Matmul{compute, scale});
}
CUDA_API int cublasLtMatmulDescDestroy(Matmul* op) {
    return destroy(op);
}
CUDA_API int cublasLtMatmulDescSetAttribute(Matmul* op, int attribute, const void* value, size_t bytes) {
    const emulator::Guard guard(emulator::lock());
    if (!lives(op)) {
        return refuse(INVALID_VALUE, "a product's descriptor is null or gone");
    }
    switch (attribute) {
    case 2: return assign(op->mode, value, bytes);
    case 3: return assign(op->transpose_a, value, bytes);
    case 4: return assign(op->transpose_b, value, bytes);
    case 7: return assign(op->epilogue, value, bytes);
    case 8: return assign(op->bias, value, bytes);
    default: return refuse(NOT_SUPPORTED, "attribute %d of a product is not known here", attribute);
    }
}

CUDA_API int cublasLtMatmulPreferenceCreate(Preference** preference) {
    return create(preference, Preference{});
}
CUDA_API int cublasLtMatmulPreferenceDestroy(Preference* preference) {
    return destroy(preference);
}
CUDA_API int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value, size_t bytes) {
    const emulator::Guard guard(emulator::lock());
    if (!lives(preference)) {
        return refuse(INVALID_VALUE, "a preference is null or gone");
    }
    if (attribute == 1) {
        return assign(preference->workspace, value, bytes);
    }
    if (attribute >= 5 && attribute <= 8) {
        return assign(preference->alignment[attribute - 5], value, bytes);
    }
    return refuse(NOT_SUPPORTED, "attribute %d of a preference is not known here", attribute);
}

CUDA_API int cublasLtMatmulAlgoGetHeuristic(int* handle, Matmul* op, Layout* a, Layout* b, Layout* c, Layout* d, Preference* preference, int asked,
                                            Heuristic* found, int* count) {
    const emulator::Guard guard(emulator::lock());
    if (!lives(handle) || !lives(preference) || found == nullptr || count == nullptr || asked < 1) {
        return refuse(INVALID_VALUE, "heuristics without a handle, a preference or a place for the answer");
    }
    heuristics++;
    *count = 0;
    Product p;
    if (const Status status = check(op, a, b, c, d, p); status != SUCCESS) {
        return status;
    }
    const Layout* all[] = {a, b, c, d};
    Heuristic best{};
    for (int i = 0; i < 4; i++) {
        best.algorithm.alignment[i] = preference->alignment[i];
        if (all[i]->columns > 1 && (all[i]->ld * size_of(all[i]->type)) % preference->alignment[i] != 0) {
            return refuse(NOT_SUPPORTED, "%c: columns do not lie on multiples of the %u bytes that were promised", 'A' + i, preference->alignment[i]);
        }
    }
    best.algorithm.signature = signature(p);
    best.algorithm.workspace = best.workspace = preference->workspace >= WORKSPACE ? WORKSPACE : 0;
    best.waves = 1;
    *found = best;
    *count = 1;
    return SUCCESS;
}

CUDA_API int cublasLtMatmul(int* handle, Matmul* op, const void* alpha, const void* A, Layout* a, const void* B, Layout* b, const void* beta, const void* C,
                            Layout* c, void* D, Layout* d, const Algorithm* algorithm, void* workspace, size_t workspace_bytes, CUstream stream) {
    const emulator::Guard guard(emulator::lock());
    if (!lives(handle)) {
        return refuse(NOT_INITIALIZED, "the handle is null or gone");
    }
    if (!alpha || !beta || !A || !B || !C || !D || !algorithm) {
        return refuse(INVALID_VALUE, "a null pointer among alpha, beta, A, B, C, D and the algorithm");
    }
    Call call{};
    Product& p = call.p;
    if (const Status status = check(op, a, b, c, d, p); status != SUCCESS) {
        return status;
    }
    if (algorithm->signature != signature(p)) {
        return refuse(NOT_SUPPORTED, "the algorithm was found for another product");
    }
    if (workspace_bytes < algorithm->workspace) {
        return refuse(INVALID_VALUE, "a workspace of %zu bytes where the algorithm needs %llu", workspace_bytes, (unsigned long long)algorithm->workspace);
    }
    if (workspace_bytes != 0) {
        if (reinterpret_cast<uintptr_t>(workspace) % 16 != 0) {
            return refuse(INVALID_VALUE, "the workspace does not lie on a multiple of 16 bytes");
        }
        if (!emulator::holds(workspace, workspace_bytes)) {
            return refuse(INVALID_VALUE, "the workspace is not %zu bytes of one allocation", workspace_bytes);
        }
    }
    const void* at[] = {A, B, C, D};
    const Layout* all[] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        if (reinterpret_cast<uintptr_t>(at[i]) % algorithm->alignment[i] != 0) {
            return refuse(NOT_SUPPORTED, "%c does not lie on a multiple of the %u bytes that were promised", 'A' + i, algorithm->alignment[i]);
        }
        if (!emulator::holds(at[i], span_bytes(*all[i]))) {
            return refuse(INVALID_VALUE, "%c is not %llu bytes of one allocation", 'A' + i, (unsigned long long)span_bytes(*all[i]));
        }
        if (i < 2 && overlap(at[i], span_bytes(*all[i]), D, span_bytes(*d))) {
            return refuse(INVALID_VALUE, "D lies over %c", 'A' + i);
        }
        if (workspace_bytes != 0 && overlap(at[i], span_bytes(*all[i]), workspace, workspace_bytes)) {
            return refuse(INVALID_VALUE, "the workspace lies over %c", 'A' + i);
        }
    }
    if (C == D && (c->ld != d->ld || c->batch_stride != d->batch_stride)) {
        return refuse(INVALID_VALUE, "C and D at one place, but laid out differently");
    }
    const bool alpha_on_device = p.op.mode != MODE_HOST, beta_on_device = p.op.mode == MODE_DEVICE;
    const uint64_t alphas = p.op.mode == MODE_VECTOR_HOST ? p.rows : 1;
    if (emulator::holds(alpha, 4 * (alpha_on_device ? alphas : 1)) != alpha_on_device) {
        return refuse(INVALID_VALUE, "alpha is %s", alpha_on_device ? "not in device memory" : "in device memory, but the pointer mode says host");
    }
    if (emulator::holds(beta, 4) != beta_on_device) {
        return refuse(INVALID_VALUE, "beta is %s", beta_on_device ? "not in device memory" : "in device memory, but the pointer mode says host");
    }
    if (workspace_bytes != 0 && alpha_on_device && overlap(alpha, 4 * alphas, workspace, workspace_bytes)) {
        return refuse(INVALID_VALUE, "the workspace lies over alpha");
    }
    if (p.op.epilogue == EPILOGUE_BIAS && (p.op.bias == nullptr || !emulator::holds(p.op.bias, p.rows * size_of(d->type)))) {
        return refuse(INVALID_VALUE, "the bias is not in device memory");
    }
    products++;
    call.alpha = alpha, call.beta = beta;
    call.host_alpha = alpha_on_device ? 0 : *static_cast<const float*>(alpha);
    call.host_beta = beta_on_device ? 0 : *static_cast<const float*>(beta);
    call.a = A, call.b = B, call.c = C, call.d = D;
    call.workspace = workspace, call.workspace_bytes = workspace_bytes;
    return emulator::enqueue(stream, [call] { run(call); }) == CUDA_SUCCESS ? SUCCESS : EXECUTION_FAILED;
}

// For tests: how often an algorithm was sought, and how many products were made.
CUDA_API void xattn_cublaslt_counts(unsigned* sought, unsigned* made) {
    *sought = heuristics, *made = products;
}
