// ptx: instructions that CUDA C++ lacks. All inline PTX is here (sm_80 on) and in hopper.cuh.
//
// Each wrapper is one instruction. Under the emulator the same names are its functions, written
// from the lane layouts of the PTX ISA ("Warp-level Matrix Instructions");
// tests/cuda_emulator/wrappers checks those lane by lane.
//
// Fragments of mma m16n8k16, for lane = 4 g + t (g: 0..7, t: 0..3); two 16-bit elements per word,
// lower index in the low half:
//   A, 16 x 16   a[0] A[g][2t..]   a[1] A[g+8][2t..]   a[2] A[g][2t+8..]   a[3] A[g+8][2t+8..]
//   B, 16 x 8    b[0] B[2t..][g]   b[1] B[2t+8..][g]; a word is two rows of a column
//   D, 16 x 8    d[0], d[1] D[g][2t], D[g][2t+1]   d[2], d[3] D[g+8][2t], D[g+8][2t+1]; f32
// ldmatrix gives each lane, of each 8x8 matrix whose row i lies at the address of lane i: elements
// [g][2t], [g][2t+1]; transposed, [2t][g], [2t+1][g]. So a tile of A with packed rows loads as x4
// with lanes 0-15 at rows 0-15 and lanes 16-31 at column 8 of rows 0-15.

#ifdef XATTN_EMULATED

DEVICE f32 f16_to_f32(u16 bits) {
    return emulator::f16_to_f32(bits);
}
DEVICE u16 f32_to_f16(f32 value) {
    return emulator::f32_to_f16(value);
}
DEVICE u16 f32_to_bf16(f32 value) {
    return emulator::f32_to_bf16(value);
}
DEVICE u32 f32_to_f16_pair(f32 low, f32 high) {
    return f32_to_f16(low) | static_cast<u32>(f32_to_f16(high)) << 16;
}
DEVICE u32 f32_to_bf16_pair(f32 low, f32 high) {
    return f32_to_bf16(low) | static_cast<u32>(f32_to_bf16(high)) << 16;
}

DEVICE f32 exp2_approx(f32 x) {
    return emulator::exp2_approx(x);
}
DEVICE f32 reciprocal(f32 x) {
    return 1.0f / x;
}

DEVICE u32 thread_again() {
    return threadIdx.x;
}

DEVICE Wide wide_load(const void* at) {
    Wide value;
    emulator::load_16(value.word, at);
    return value;
}
DEVICE void wide_store(void* at, Wide value) {
    emulator::store_16(at, value.word);
}
DEVICE void wide_store_global(void* at, Wide value) {
    emulator::store_16(at, value.word);
}

DEVICE void ldmatrix_x4(u32 (&r)[4], const void* shared_row, SITE) {
    emulator::ldmatrix(r, 4, false, shared_row, {file, line});
}
DEVICE void ldmatrix_x2(u32 (&r)[2], const void* shared_row, SITE) {
    emulator::ldmatrix(r, 2, false, shared_row, {file, line});
}
DEVICE void ldmatrix_x4_trans(u32 (&r)[4], const void* shared_row, SITE) {
    emulator::ldmatrix(r, 4, true, shared_row, {file, line});
}
DEVICE void ldmatrix_x2_trans(u32 (&r)[2], const void* shared_row, SITE) {
    emulator::ldmatrix(r, 2, true, shared_row, {file, line});
}

template <class T> DEVICE void mma_16816(f32* d, const u32 (&a)[4], const u32 (&b)[2], SITE);
template <> DEVICE void mma_16816<f16>(f32* d, const u32 (&a)[4], const u32 (&b)[2], const char* file, int line) {
    emulator::mma_16816(emulator::Half::f16, d, a, b, {file, line});
}
template <> DEVICE void mma_16816<bf16>(f32* d, const u32 (&a)[4], const u32 (&b)[2], const char* file, int line) {
    emulator::mma_16816(emulator::Half::bf16, d, a, b, {file, line});
}

DEVICE void copy_async_16(void* shared, const void* global, bool exists, u32 offset = 0) {
    emulator::copy_async_16(static_cast<char*>(shared) + offset, global, exists);
}
DEVICE void copy_async_commit() {
    emulator::copy_async_commit();
}
template <int N> DEVICE void copy_async_wait() {
    emulator::copy_async_wait(N);
}

#else

DEVICE f32 f16_to_f32(u16 bits) {
    f32 value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
DEVICE u16 f32_to_f16(f32 value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
DEVICE u16 f32_to_bf16(f32 value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
// The instruction takes the high half first.
DEVICE u32 f32_to_f16_pair(f32 low, f32 high) {
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
DEVICE u32 f32_to_bf16_pair(f32 low, f32 high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// 2^x within 2 ulp; subnormal results are 0. 0 for -infinity.
DEVICE f32 exp2_approx(f32 x) {
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x within 1 ulp.
DEVICE f32 reciprocal(f32 x) {
    f32 y;
    asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// threadIdx.x, read again: what follows from it is recomputed, not kept in registers over loops.
DEVICE u32 thread_again() {
    u32 x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

DEVICE Wide wide_load(const void* at) {
    return *static_cast<const Wide*>(at);
}
DEVICE void wide_store(void* at, Wide value) {
    *static_cast<Wide*>(at) = value;
}
// To global memory, never split: NVRTC 13.0 makes four stores of some assignments.
DEVICE void wide_store_global(void* at, Wide value) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(at)), "r"(value.word[0]), "r"(value.word[1]), "r"(value.word[2]), "r"(value.word[3])
                 : "memory");
}

DEVICE u32 shared_address(const void* shared) {
    return static_cast<u32>(__cvta_generic_to_shared(shared));
}

// Lane i gives the address of row i % 8 of matrix i / 8: 16 bytes, aligned to 16.
DEVICE void ldmatrix_x4(u32 (&r)[4], const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}
// Only the addresses of lanes 0 to 15 are used; the others must be valid all the same.
DEVICE void ldmatrix_x2(u32 (&r)[2], const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(shared_row))
                 : "memory");
}
DEVICE void ldmatrix_x4_trans(u32 (&r)[4], const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}
DEVICE void ldmatrix_x2_trans(u32 (&r)[2], const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

// d += a b; d is four registers.
template <class T> DEVICE void mma_16816(f32* d, const u32 (&a)[4], const u32 (&b)[2]);
template <> DEVICE void mma_16816<f16>(f32* d, const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <> DEVICE void mma_16816<bf16>(f32* d, const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Starts to copy 16 bytes past the L1 cache, to `offset` bytes after `shared`; addresses are
// aligned to 16. Where the source does not exist, zeros are written and `global` is not read; it
// must still be an address of the same tensor.
DEVICE void copy_async_16(void* shared, const void* global, bool exists, u32 offset = 0) {
    // The byte count is chosen here, so that the assembler sees a predicate: a bit shifted into
    // place would take five instructions. The offset, added last, goes into the instruction.
    asm volatile("{\n"
                 ".reg .pred exists;\n"
                 ".reg .b32 bytes;\n"
                 "setp.ne.u32 exists, %2, 0;\n"
                 "selp.b32 bytes, 16, 0, exists;\n"
                 "cp.async.cg.shared.global [%0], [%1], 16, bytes;\n"
                 "}"
                 :
                 : "r"(shared_address(shared) + offset), "l"(global), "r"(static_cast<u32>(exists))
                 : "memory");
}
DEVICE void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most N of this thread's latest groups are in flight. Other threads' copies need a
// barrier after it.
template <int N> DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

#endif
