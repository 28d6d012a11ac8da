// hopper: instructions that only compute capability 9.0 has (sm_90a): warpgroup products (wgmma),
// barriers that count bytes, tensor copies (TMA).
//
// Each wrapper is one instruction, as in ptx.cuh. Under the emulator the same names are its
// functions, written from the PTX ISA ("Asynchronous Warpgroup Level Matrix Instructions",
// "mbarrier", "Tensor copies"); tests/cuda_emulator/wrappers checks them, and `xattn cuda-wrappers`
// compares them with its own model on the device that runs it.
//
// A warpgroup is four warps, the first with a number that is a multiple of four. Its products d
// (+)= a b have 64 rows, N columns and 16 k; a is 64 rows of k, b has N rows of k ("K-major") or,
// with N_MAJOR, 16 rows of n. Fragments of thread 32 w + 4 g + t of the warpgroup (g < 8, t < 4):
//   d[4 j], d[4 j + 1]       D[16 w + g][8 j + 2t], [8 j + 2t + 1]
//   d[4 j + 2], d[4 j + 3]   the same columns of row 16 w + g + 8
//   a[0] A[16 w + g][2t..]       a[1] A[16 w + g + 8][2t..]          as in mma m16n8k16
//   a[2] A[16 w + g][2t + 8..]   a[3] A[16 w + g + 8][2t + 8..]
//
// Order: wgmma_fence (before the first product, and after registers of d or a were touched),
// products, wgmma_commit, ... wgmma_wait. Between product and wait neither d nor a may be touched,
// nor the shared memory of the operands be written. wgmma_hold tells the compiler so of d: it goes
// before wgmma_fence and after wgmma_wait. Ordinary stores and copy_async_16 to shared memory need
// async_proxy_fence by the thread that wrote, then a barrier, before a product or tensor copy.

// Where a byte of an unswizzled tile lies: bits 7 to 9 of the address permute the 16-byte chunks of
// a row of SPAN bytes. Tiles begin on multiples of 1024 bytes.
template <u32 SPAN> DEVICE u32 swizzled(u32 byte) {
    static_assert(SPAN == 32 || SPAN == 64 || SPAN == 128, "three patterns");
    return byte ^ (byte >> 3 & (SPAN - 16));
}

// A matrix in global memory for tensor copies (cuTensorMapEncodeTiled): rows, stride, box, swizzle.
struct alignas(128) TensorMap {
    u64 word[16];
};

#ifdef XATTN_EMULATED

#undef EMULATED_PROXIES
#define EMULATED_PROXIES 1

#define KERNEL_WITH_MAPS(P, O, M)                                             \
    static void kernel_body(const P& params, const O& operands, const M& maps); \
    EMULATED_KERNEL_WITH_MAPS(ENTRY, P, O, M, THREADS, kernel_body)           \
    static void kernel_body([[maybe_unused]] const P& params, [[maybe_unused]] const O& operands, const M& maps)

using MatrixAt = emulator::Matrix;

template <u32 SPAN> DEVICE MatrixAt rows_of_k(const void* at) {
    return {at, SPAN, 0, false};
}
template <u32 SPAN> DEVICE MatrixAt rows_of_n(const void* at, u32 panel_bytes) {
    return {at, SPAN, panel_bytes, true};
}
DEVICE MatrixAt further(MatrixAt matrix, u32 bytes) {
    return {static_cast<const char*>(matrix.at) + bytes, matrix.swizzle, matrix.panel, matrix.n_major};
}

DEVICE void wgmma_fence(SITE) {
    emulator::product_fence({file, line});
}
DEVICE void wgmma_commit(SITE) {
    emulator::product_commit({file, line});
}
template <u32 N> DEVICE void wgmma_wait(SITE) {
    emulator::product_wait(N, {file, line});
}
template <u32 COUNT> DEVICE void wgmma_hold(f32 (&)[COUNT]) {}

template <class T> constexpr emulator::Half half_of = emulator::Half::f16;
template <> constexpr emulator::Half half_of<bf16> = emulator::Half::bf16;

template <class T, u32 N, bool N_MAJOR> DEVICE void wgmma_shared(f32 (&d)[N / 2], MatrixAt a, MatrixAt b, bool add, SITE) {
    emulator::product({half_of<T>, N, N_MAJOR, add, a, b, nullptr, d}, {file, line});
}
template <class T, u32 N, bool N_MAJOR> DEVICE void wgmma_registers(f32 (&d)[N / 2], const u32 (&a)[4], MatrixAt b, bool add, SITE) {
    emulator::product({half_of<T>, N, N_MAJOR, add, {}, b, a, d}, {file, line});
}

DEVICE void async_proxy_fence() {
    emulator::proxy_fence();
}
template <u32 COUNT> DEVICE void named_barrier(u32 id, SITE) {
    emulator::time_passes();
    emulator::named_barrier(id, COUNT, {file, line});
}

DEVICE void barrier_init(u64* barrier, u32 arrivals) {
    emulator::transaction_init(barrier, arrivals);
}
DEVICE void barrier_init_fence() {
    emulator::transaction_fence();
}
DEVICE void barrier_arrive(u64* barrier, SITE) {
    emulator::time_passes();
    emulator::transaction_arrive(barrier, 0, {file, line});
}
DEVICE void barrier_expect(u64* barrier, u32 bytes, SITE) {
    emulator::transaction_arrive(barrier, bytes, {file, line});
}
DEVICE void barrier_wait(u64* barrier, u32 parity, SITE) {
    emulator::time_passes();
    emulator::transaction_wait(barrier, parity, {file, line});
}
DEVICE void tensor_prefetch(const TensorMap&) {}
DEVICE void tensor_copy(void* to, const TensorMap& map, u32 x, u32 y, u64* barrier, SITE) {
    emulator::tensor_copy(to, &map, static_cast<i32>(x), static_cast<i32>(y), barrier, {file, line});
}

#else

// An entry point whose third parameter is a struct of tensor maps: their addresses must be those of
// constant memory. Begins as KERNEL does.
#define KERNEL_WITH_MAPS(P, O, M)                                                                                        \
    DEVICE void kernel_body(const P& params, const O& operands, const M& maps);                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)                                                   \
        ENTRY(const __grid_constant__ P params, const __grid_constant__ O operands, const __grid_constant__ M maps) {   \
        after_previous_grid();                                                                                          \
        kernel_body(params, operands, maps);                                                                            \
    }                                                                                                                   \
    DEVICE void kernel_body(const P& params, const O& operands, const M& maps)

// The descriptor: bits 0-13 address / 16, 16-29 leading byte offset / 16, 32-45 stride byte offset
// / 16, 62-63 the swizzle. The base offset (49-51) is 0: tiles begin on multiples of 1024 bytes.
struct MatrixAt {
    u64 descriptor;
};

template <u32 SPAN> DEVICE MatrixAt matrix_at(const void* at, u32 leading, u32 stride) {
    constexpr u64 mode = SPAN == 128 ? 1 : SPAN == 64 ? 2 : 3;
    return {u64((shared_address(at) & 0x3ffff) >> 4) | u64(leading >> 4) << 16 | u64(stride >> 4) << 32 | mode << 62};
}
// K-major: rows of SPAN bytes of k, groups of eight rows SPAN * 8 bytes apart. The leading offset
// is unused. 16 further k: 32 bytes on.
template <u32 SPAN> DEVICE MatrixAt rows_of_k(const void* at) {
    return matrix_at<SPAN>(at, 16, SPAN * 8);
}
// N-major: a row of SPAN / 2 neighbouring n per k, groups of eight k SPAN * 8 bytes apart; the next
// n `panel_bytes` on. 16 further k: SPAN * 16 bytes on.
template <u32 SPAN> DEVICE MatrixAt rows_of_n(const void* at, u32 panel_bytes) {
    return matrix_at<SPAN>(at, panel_bytes, SPAN * 8);
}
// The matrix `bytes` further on: one addition instead of a new address.
DEVICE MatrixAt further(MatrixAt matrix, u32 bytes) {
    return {matrix.descriptor + (bytes >> 4)};
}

DEVICE void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
DEVICE void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most N of the latest groups are in flight.
template <u32 N> DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(N) : "memory");
}
template <u32 COUNT> DEVICE void wgmma_hold(f32 (&d)[COUNT]) {
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) {
        asm volatile("" : "+f"(d[i])::"memory");
    }
}

template <class T, u32 N> struct Wgmma;

#define NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_48 \
    NAMES_32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64 \
    NAMES_48 ", " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_128 \
    NAMES_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define SUMS_8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS_32 SUMS_8(0), SUMS_8(8), SUMS_8(16), SUMS_8(24)
#define SUMS_48 SUMS_32, SUMS_8(32), SUMS_8(40)
#define SUMS_64 SUMS_48, SUMS_8(48), SUMS_8(56)
#define SUMS_128 SUMS_64, SUMS_8(64), SUMS_8(72), SUMS_8(80), SUMS_8(88), SUMS_8(96), SUMS_8(104), SUMS_8(112), SUMS_8(120)

// For N columns: COUNT = N / 2 registers of d, then the numbers of the seven operands after them.
#define WGMMA(T, N, COUNT, O0, O1, O2, O3, O4, O5, O6)                                                                             \
    template <> struct Wgmma<T, N> {                                                                                               \
        template <u32 TRANSPOSED> static DEVICE void shared(f32 (&d)[COUNT], u64 a, u64 b, u32 add) {                              \
            asm volatile("{.reg .pred p; setp.ne.b32 p, %" #O2 ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #T "." #T    \
                         " {" NAMES_##COUNT "}, %" #O0 ", %" #O1 ", p, 1, 1, 0, %" #O3 ";}"                                        \
                         : SUMS_##COUNT                                                                                            \
                         : "l"(a), "l"(b), "r"(add), "n"(TRANSPOSED));                                                             \
        }                                                                                                                          \
        template <u32 TRANSPOSED> static DEVICE void registers(f32 (&d)[COUNT], const u32 (&a)[4], u64 b, u32 add) {               \
            asm volatile("{.reg .pred p; setp.ne.b32 p, %" #O5 ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #T "." #T    \
                         " {" NAMES_##COUNT "}, {%" #O0 ", %" #O1 ", %" #O2 ", %" #O3 "}, %" #O4 ", p, 1, 1, %" #O6 ";}"           \
                         : SUMS_##COUNT                                                                                            \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSED));                         \
        }                                                                                                                          \
    };

WGMMA(f16, 64, 32, 32, 33, 34, 35, 36, 37, 38)
WGMMA(bf16, 64, 32, 32, 33, 34, 35, 36, 37, 38)
WGMMA(f16, 96, 48, 48, 49, 50, 51, 52, 53, 54)
WGMMA(bf16, 96, 48, 48, 49, 50, 51, 52, 53, 54)
WGMMA(f16, 128, 64, 64, 65, 66, 67, 68, 69, 70)
WGMMA(bf16, 128, 64, 64, 65, 66, 67, 68, 69, 70)
WGMMA(f16, 256, 128, 128, 129, 130, 131, 132, 133, 134)
WGMMA(bf16, 256, 128, 128, 129, 130, 131, 132, 133, 134)

// d = a b, or d += a b: 64 rows, N columns, 16 k, a and b in shared memory.
template <class T, u32 N, bool N_MAJOR> DEVICE void wgmma_shared(f32 (&d)[N / 2], MatrixAt a, MatrixAt b, bool add) {
    Wgmma<T, N>::template shared<N_MAJOR>(d, a.descriptor, b.descriptor, add);
}
template <class T, u32 N, bool N_MAJOR> DEVICE void wgmma_registers(f32 (&d)[N / 2], const u32 (&a)[4], MatrixAt b, bool add) {
    Wgmma<T, N>::template registers<N_MAJOR>(d, a, b.descriptor, add);
}

// Makes this thread's writes to shared memory visible to wgmma and TMA after the next barrier.
DEVICE void async_proxy_fence() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Barrier `id` (1 to 15) of COUNT threads, whole warps.
template <u32 COUNT> DEVICE void named_barrier(u32 id) {
    asm volatile("bar.sync %0, %1;" : : "r"(id), "n"(COUNT) : "memory");
}

// A transaction barrier: its phase ends when all arrivals have come and all expected bytes were
// copied. Phases are told apart by parity, from 0 on. One thread initialises it; barrier_init_fence
// and __syncthreads come before its first use.
DEVICE void barrier_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
DEVICE void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DEVICE void barrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(shared_address(barrier)) : "memory");
}
// Arrives, and says how many bytes this phase has to wait for.
DEVICE void barrier_expect(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" : : "r"(shared_address(barrier)), "r"(bytes) : "memory");
}
// Waits until the phase of this parity has ended: the running one, or the one before it. So a new
// barrier lets parity 1 through.
DEVICE void barrier_wait(u64* barrier, u32 parity) {
    u32 ended;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(ended)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
    } while (ended == 0);
}

DEVICE void tensor_prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" : : "l"(&map) : "memory");
}
// Starts to copy the box at column x, row y to shared memory, rows packed, swizzled as the map
// says. One thread calls it. All bytes, zeros outside the matrix too, count on the barrier.
DEVICE void tensor_copy(void* to, const TensorMap& map, u32 x, u32 y, u64* barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 :
                 : "r"(shared_address(to)), "l"(&map), "r"(x), "r"(y), "r"(shared_address(barrier))
                 : "memory");
}

#endif

// setmaxnreg: more or fewer registers for each thread of this warpgroup. Launch bounds cap them at
// entry; each role is one branch.
template <u32 N> DEVICE void registers_up() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "what setmaxnreg takes");
#ifndef XATTN_EMULATED
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(N));
#endif
}
template <u32 N> DEVICE void registers_down() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "what setmaxnreg takes");
#ifndef XATTN_EMULATED
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(N));
#endif
}
