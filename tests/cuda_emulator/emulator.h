// What a kernel sees of the emulator: CUDA's built-in names as host C++. NVRTC's stand-in puts this
// file before each kernel text (g++ -DXATTN_EMULATED -include emulator.h); the other side is in
// runtime.h. README.md says what is modelled.
//
// Memory accesses of the kernel happen here, inline, not in the runtime, so that sanitizers see
// them with the kernel's lines.
#pragma once

#include <cmath>
#include <cstdint>

namespace emulator {

// Changes whenever this file and the runtime stop fitting together: images made before are then
// refused.
constexpr uint32_t ABI = 2;

#if defined(__SANITIZE_ADDRESS__)
constexpr uint32_t SANITIZER = 1;
#elif defined(__SANITIZE_THREAD__)
constexpr uint32_t SANITIZER = 2;
#else
constexpr uint32_t SANITIZER = 0;
#endif

// Every image has one, under the name emulator_image.
struct Image {
    uint32_t abi;
    uint32_t sanitizer;
    // What it was compiled for: 90 is sm_90.
    uint32_t architecture;
};

// What KERNEL leaves under the name of the entry point.
struct Kernel {
    uint32_t threads;
    uint32_t params_size;
    uint32_t operands_size;
    // It reads shared memory past the ordinary accesses too (lib/hopper.cuh): writes are remembered
    // until they are fenced.
    uint32_t proxies;
    // Of a third parameter, where it has one.
    uint32_t maps_size;
    void (*body)(const void* params, const void* operands, const void* maps);
};

// A place in a kernel's text, for messages, and to tell barriers apart.
struct Site {
    const char* file;
    int line;
};

struct Index {
    uint32_t x, y, z;
};

// The kernel's view of the thread that runs; the runtime's Thread begins with it.
struct ThreadView {
    Index index;
    uint32_t lane;
    uint32_t pending_copies;
};

struct Copy {
    void* shared;
    const void* global;
    bool exists;
    // How many groups the thread had closed when it issued the copy.
    uint32_t group;
};

enum class Half : uint32_t { f16, bf16 };

// A matrix in shared memory as products of a warpgroup read it.
struct Matrix {
    const void* at;
    uint32_t swizzle;
    // Bytes from one panel of neighbouring n to the next.
    uint32_t panel;
    bool n_major;
};

// One thread's side of such a product.
struct Product {
    Half type;
    uint32_t n;
    bool n_major;
    bool add;
    Matrix a, b;
    // Four words of a where it is no matrix in shared memory.
    const uint32_t* registers;
    float* d;
};

enum class Collective : uint32_t {
    sync,
    shuffle,
    shuffle_xor,
    shuffle_up,
    shuffle_down,
    ballot,
    any,
    all,
    ldmatrix,
    ldmatrix_trans,
    mma_f16,
    mma_bf16,
    product,
    product_fence,
    product_commit,
    product_wait
};

// In: up to 10 words of a lane (mma: a, b, d); out: up to 4.
struct Words {
    uint32_t in[10];
    uint32_t out[4];
    uint32_t argument;
    uint32_t width;
    const Product* product;
};

// Defined in the runtime (libcuda.so.1).
extern ThreadView* self;
extern Index block_index, block_size, grid_size;
void* tile_at(const char* name, uint64_t offset, uint64_t bytes, uint64_t alignment);
void barrier(Site site);
void collective(Collective what, uint32_t mask, Words& words, Site site);
void check_copy(void* shared, const void* global);
void check_row(const void* row);
void check_wide(const void* at, const char* what);
// Remembers the copy, or says that it happens now.
bool defer_copy(const Copy& copy);
void close_group();
// Takes a copy that has to be complete (at most `open` groups may be on their way), or one that
// happens to complete now.
bool take_due(uint32_t open, Copy& copy);
bool take_lucky(Copy& copy);
// Sixteen bytes of shared memory were written by an ordinary access.
void note_written(const void* at);
void proxy_fence();
void named_barrier(uint32_t id, uint32_t threads, Site site);
void transaction_init(void* barrier, uint32_t arrivals);
void transaction_fence();
// Expects `bytes` more of copies, and arrives.
void transaction_arrive(void* barrier, uint32_t bytes, Site site);
void transaction_wait(void* barrier, uint32_t parity, Site site);
void tensor_copy(void* to, const void* map, int32_t x, int32_t y, void* barrier, Site site);

// Two words of 8 bytes: a memcpy of constant size is expanded behind ThreadSanitizer's back.
static inline void move_16(void* to, const void* from) {
    const uint64_t* source = static_cast<const uint64_t*>(from);
    uint64_t* target = static_cast<uint64_t*>(to);
    const uint64_t first = source[0], second = source[1];
    target[0] = first;
    target[1] = second;
}

static inline void perform(const Copy& copy) {
    if (copy.exists) {
        move_16(copy.shared, copy.global);
    } else {
        static_cast<uint64_t*>(copy.shared)[0] = 0;
        static_cast<uint64_t*>(copy.shared)[1] = 0;
    }
    note_written(copy.shared);
}

// Any point where time may pass lets some of the thread's copies complete.
static inline void time_passes() {
    Copy copy;
    while (self->pending_copies != 0 && take_lucky(copy)) {
        perform(copy);
    }
}

static inline void copy_async_16(void* shared, const void* global, bool exists) {
    check_copy(shared, global);
    const Copy copy{shared, global, exists, 0};
    if (!defer_copy(copy)) {
        perform(copy);
    }
}

static inline void copy_async_commit() {
    close_group();
}

static inline void copy_async_wait(uint32_t open) {
    Copy copy;
    while (self->pending_copies != 0 && take_due(open, copy)) {
        perform(copy);
    }
}

static inline void load_16(uint32_t (&to)[4], const void* from) {
    check_wide(from, "wide_load");
    alignas(16) uint32_t words[4];
    move_16(words, from);
    to[0] = words[0], to[1] = words[1], to[2] = words[2], to[3] = words[3];
}

static inline void store_16(void* to, const uint32_t (&from)[4]) {
    check_wide(to, "wide_store");
    alignas(16) const uint32_t words[4] = {from[0], from[1], from[2], from[3]};
    move_16(to, words);
    note_written(to);
}

// Each lane reads its own row when it arrives; what it read is then handed round.
template <unsigned N> static inline void ldmatrix(uint32_t (&r)[N], uint32_t matrices, bool transposed, const void* row, Site site) {
    time_passes();
    Words words{};
    words.argument = matrices;
    if (self->lane < 8 * matrices) {
        check_row(row);
        alignas(16) uint32_t elements[4];
        move_16(elements, row);
        for (int i = 0; i < 4; i++) {
            words.in[i] = elements[i];
        }
    }
    // The runtime counts bank conflicts from it.
    words.in[4] = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(row));
    collective(transposed ? Collective::ldmatrix_trans : Collective::ldmatrix, 0xffffffffu, words, site);
    for (unsigned i = 0; i < N; i++) {
        r[i] = words.out[i];
    }
}

static inline void mma_16816(Half type, float* d, const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
    Words words;
    for (int i = 0; i < 4; i++) {
        words.in[i] = a[i];
        __builtin_memcpy(&words.in[6 + i], &d[i], 4);
    }
    words.in[4] = b[0];
    words.in[5] = b[1];
    words.argument = words.width = 0;
    collective(type == Half::f16 ? Collective::mma_f16 : Collective::mma_bf16, 0xffffffffu, words, site);
    for (int i = 0; i < 4; i++) {
        __builtin_memcpy(&d[i], &words.out[i], 4);
    }
}

static inline void product(const Product& product, Site site) {
    time_passes();
    Words words{};
    words.product = &product;
    collective(Collective::product, 0xffffffffu, words, site);
}

static inline void product_fence(Site site) {
    Words words{};
    collective(Collective::product_fence, 0xffffffffu, words, site);
}

static inline void product_commit(Site site) {
    Words words{};
    collective(Collective::product_commit, 0xffffffffu, words, site);
}

// At most `open` of the groups that were closed may be on their way.
static inline void product_wait(uint32_t open, Site site) {
    Words words{};
    words.argument = open;
    collective(Collective::product_wait, 0xffffffffu, words, site);
}

static inline float f16_to_f32(uint16_t bits) {
    _Float16 value;
    __builtin_memcpy(&value, &bits, 2);
    return static_cast<float>(value);
}

// The instructions give NaN without a payload.
static inline uint16_t f32_to_f16(float value) {
    if (value != value) {
        return 0x7fff;
    }
    const _Float16 half = static_cast<_Float16>(value);
    uint16_t bits;
    __builtin_memcpy(&bits, &half, 2);
    return bits;
}

static inline uint16_t f32_to_bf16(float value) {
    if (value != value) {
        return 0x7fff;
    }
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Subnormal arguments and results are 0, as in ex2.approx.ftz.
static inline float exp2_approx(float x) {
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}

template <class T> static inline T* tile(const char* name, uint64_t byte_offset, uint64_t count) {
    return static_cast<T*>(tile_at(name, byte_offset, count * sizeof(T), alignof(T)));
}

template <class T> static inline uint32_t word_of(T value) {
    static_assert(sizeof(T) == 4, "warp functions take words of 32 bits here");
    uint32_t word;
    __builtin_memcpy(&word, &value, 4);
    return word;
}

template <class T> static inline T shuffle(Collective what, uint32_t mask, T value, uint32_t argument, uint32_t width, Site site) {
    time_passes();
    Words words;
    words.in[0] = word_of(value);
    words.argument = argument;
    words.width = width;
    collective(what, mask, words, site);
    __builtin_memcpy(&value, &words.out[0], 4);
    return value;
}

static inline uint32_t vote(Collective what, uint32_t mask, int predicate, Site site) {
    return shuffle<uint32_t>(what, mask, predicate != 0, 0, 32, site);
}

} // namespace emulator

// lib/hopper.cuh says 1.
#define EMULATED_PROXIES 0
#define EMULATED_KERNEL(entry, P, O, block_threads, function)                                                                  \
    extern "C" __attribute__((visibility("default"))) const emulator::Kernel entry;                                            \
    const emulator::Kernel entry = {block_threads, sizeof(P), sizeof(O), EMULATED_PROXIES, 0,                                  \
                                    [](const void* params, const void* operands, const void*) {                                \
                                        function(*static_cast<const P*>(params), *static_cast<const O*>(operands));            \
                                    }};
#define EMULATED_KERNEL_WITH_MAPS(entry, P, O, M, block_threads, function)                                                     \
    extern "C" __attribute__((visibility("default"))) const emulator::Kernel entry;                                            \
    const emulator::Kernel entry = {block_threads, sizeof(P), sizeof(O), EMULATED_PROXIES, sizeof(M),                          \
                                    [](const void* params, const void* operands, const void* maps) {                           \
                                        function(*static_cast<const P*>(params), *static_cast<const O*>(operands),             \
                                                 *static_cast<const M*>(maps));                                                \
                                    }};

#ifdef XATTN_EMULATED_ARCHITECTURE
extern "C" __attribute__((visibility("default"))) const emulator::Image emulator_image;
const emulator::Image emulator_image = {emulator::ABI, emulator::SANITIZER, XATTN_EMULATED_ARCHITECTURE};
#endif

#define SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

#define threadIdx (emulator::self->index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

#define __restrict__ __restrict

static inline void __syncthreads(SITE) {
    emulator::time_passes();
    emulator::barrier({file, line});
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, SITE) {
    emulator::time_passes();
    emulator::Words words;
    emulator::collective(emulator::Collective::sync, mask, words, {file, line});
}

template <class T> static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, SITE) {
    return emulator::shuffle(emulator::Collective::shuffle, mask, value, lane, width, {file, line});
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, SITE) {
    return emulator::shuffle(emulator::Collective::shuffle_xor, mask, value, lane_mask, width, {file, line});
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SITE) {
    return emulator::shuffle(emulator::Collective::shuffle_up, mask, value, delta, width, {file, line});
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SITE) {
    return emulator::shuffle(emulator::Collective::shuffle_down, mask, value, delta, width, {file, line});
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, SITE) {
    return emulator::vote(emulator::Collective::ballot, mask, predicate, {file, line});
}
static inline int __any_sync(unsigned mask, int predicate, SITE) {
    return static_cast<int>(emulator::vote(emulator::Collective::any, mask, predicate, {file, line}));
}
static inline int __all_sync(unsigned mask, int predicate, SITE) {
    return static_cast<int>(emulator::vote(emulator::Collective::all, mask, predicate, {file, line}));
}

// Acquire and release on hardware need a __threadfence() beside; here a missing one is not found.
static inline unsigned atomicAdd(unsigned* at, unsigned value) {
    return __atomic_fetch_add(at, value, __ATOMIC_ACQ_REL);
}
static inline unsigned atomicOr(unsigned* at, unsigned value) {
    return __atomic_fetch_or(at, value, __ATOMIC_ACQ_REL);
}
static inline unsigned atomicMax(unsigned* at, unsigned value) {
    unsigned old = __atomic_load_n(at, __ATOMIC_ACQUIRE);
    while (old < value && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
    }
    return old;
}
static inline void __threadfence() {}

template <class T> static inline T __ldg(const T* at) {
    return *at;
}

static inline unsigned __float_as_uint(float value) {
    return emulator::word_of(value);
}
static inline int __float_as_int(float value) {
    return static_cast<int>(emulator::word_of(value));
}
static inline float __uint_as_float(unsigned word) {
    float value;
    __builtin_memcpy(&value, &word, 4);
    return value;
}
static inline float __int_as_float(int word) {
    return __uint_as_float(static_cast<unsigned>(word));
}
static inline int __popc(unsigned word) {
    return __builtin_popcount(word);
}
static inline int __ffs(int word) {
    return __builtin_ffs(word);
}
static inline int __clz(int word) {
    return word == 0 ? 32 : __builtin_clz(static_cast<unsigned>(word));
}
static inline float fma(float a, float b, float c) {
    return fmaf(a, b, c);
}
static inline float rsqrtf(float x) {
    return static_cast<float>(1.0 / sqrt(static_cast<double>(x)));
}

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
static inline unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
static inline unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
static inline unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
static inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
static inline unsigned long long max(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
static inline long long min(long long a, long long b) { return a < b ? a : b; }
static inline long long max(long long a, long long b) { return a > b ? a : b; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
