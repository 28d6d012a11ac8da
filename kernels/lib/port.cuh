// port: what differs between nvcc, NVRTC and the emulator (g++).
//
// A kernel's text is one string: #defines, these libraries, the op; there are no headers. The
// prelude defines ENTRY (name of the entry point), THREADS (per block) and, where it matters,
// MIN_BLOCKS (blocks per SM that registers must leave room for). The emulator's compiler defines
// XATTN_EMULATED; only this file, ptx.cuh and hopper.cuh may test it.

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using f32 = float;

#ifndef MIN_BLOCKS
#define MIN_BLOCKS 1
#endif

#ifdef XATTN_EMULATED

#define DEVICE inline __attribute__((unused))

// The body becomes a host function; the emulator finds it by ENTRY, with sizes and threads.
#define KERNEL(P, O)                                           \
    static void kernel_body(const P& params, const O& operands); \
    EMULATED_KERNEL(ENTRY, P, O, THREADS, kernel_body)         \
    static void kernel_body([[maybe_unused]] const P& params, [[maybe_unused]] const O& operands)

// A heap block of its own, full of NaN, checked against the launch's size and all other tiles.
#define SHARED(T, name, byte_offset, count) T* name = emulator::tile<T>(#name, byte_offset, count)

#else

#define DEVICE __device__ __forceinline__

// Dependent launches (Hopper; CudaOptions::dependent_launch): a grid's blocks may be placed while
// the grid before still runs. Nothing is read or written before that one is complete, and the grid
// after may then be placed in turn. Otherwise both do nothing.
DEVICE void after_previous_grid() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// An entry point: KERNEL(NormParams, NormOperands) { ... params.width ... operands.x ... }. Both
// structs stay in constant memory.
#define KERNEL(P, O)                                                                  \
    DEVICE void kernel_body(const P& params, const O& operands);                     \
    extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)                \
        ENTRY(const __grid_constant__ P params, const __grid_constant__ O operands) { \
        after_previous_grid();                                                       \
        kernel_body(params, operands);                                               \
    }                                                                                \
    DEVICE void kernel_body(const P& params, const O& operands)

// All shared memory is dynamic: Rust passes its size with the launch. 1024 bytes: the alignment of
// swizzled tiles (hopper.cuh).
extern __shared__ __align__(1024) unsigned char shared_memory[];

// `name` points at `count` elements of T, `byte_offset` bytes into shared memory. Ranges of
// different names must not overlap, even if used in turn: `reinterpret_cast` gives a second view.
#define SHARED(T, name, byte_offset, count) T* name = reinterpret_cast<T*>(shared_memory + (byte_offset))

#endif

// What `Operand::type` says. 0 is an operand that this call does not have.
constexpr u32 TYPE_F32 = 1, TYPE_F16 = 2, TYPE_BF16 = 3, TYPE_WORD = 4;

// A tensor or scratch memory. `at` already holds the operand's offset.
struct Operand {
    void* at;
    u32 type;
    u32 reserved; // bit 0: base and all strides are multiples of 16 bytes
};

DEVICE bool present(const Operand& operand) {
    return operand.type != 0;
}

// May rows be read and written 16 bytes at a time?
DEVICE bool is_wide(const Operand& operand) {
    return (operand.reserved & 1) != 0;
}

// The elements of an operand whose type is known when the text is compiled.
template <class T> DEVICE T* data(const Operand& operand) {
    return static_cast<T*>(operand.at);
}
