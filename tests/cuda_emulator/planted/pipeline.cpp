// pipeline CLASS LAUNCHES: as planted.cpp, for pipeline.cu.

#include <cstdint>
#include <cstring>

#include "../harness.h"

using namespace harness;

namespace {

const char* const CLASSES[] = {"none",
                               "missing_barrier_init_fence",
                               "missing_empty_wait",
                               "wrong_empty_parity",
                               "wrong_bytes",
                               "wrong_target",
                               "not_all_warps",
                               "missing_proxy_fence",
                               "missing_named_barrier",
                               "wrong_full_parity",
                               "missing_full_wait",
                               "missing_product_fence",
                               "warp_left_out",
                               "touched_in_flight",
                               "released_early",
                               "missing_product_wait"};

constexpr uint32_t K = 64 * 12;

// On multiples of 128 bytes where it counts: in the kernel's copy of the operands, and while it is encoded.
struct Map {
    uint64_t word[16];
};
struct Operands {
    Map a, b;
    Operand out;
};
struct Params {
    uint32_t k;
};

// Small integers, exact in f16, as rows of K.
Buffer<uint16_t>& matrix(std::vector<int>& number, uint32_t& state) {
    std::vector<uint16_t> bits;
    for (uint32_t i = 0; i < 64 * K; i++) {
        state = state * 1664525u + 1013904223u;
        number.push_back(static_cast<int>(state >> 24) % 7 - 3);
        const _Float16 half = static_cast<_Float16>(number.back());
        bits.push_back(0);
        memcpy(&bits.back(), &half, 2);
    }
    return *new Buffer<uint16_t>(bits);
}

Map map_of(const Buffer<uint16_t>& memory) {
    alignas(128) Map map;
    const uint64_t extent[] = {K, 64}, stride[] = {K * 2};
    const uint32_t box[] = {64, 64}, step[] = {1, 1};
    expect(cuTensorMapEncodeTiled(&map, 6, 2, memory.pointer(), extent, stride, box, step, 0, 3, 0, 0), "cuTensorMapEncodeTiled");
    return map;
}

} // namespace

int main(int argc, char** argv) {
    require(argc == 3, "usage: pipeline CLASS LAUNCHES");
    std::string defines, chosen = argv[1];
    int number = -1, count = 1;
    for (const char* name : CLASSES) {
        std::string upper = name;
        for (char& letter : upper) {
            letter = static_cast<char>(toupper(letter));
        }
        defines += "#define " + upper + " " + std::to_string(count) + "\n";
        number = chosen == name ? count : number;
        count++;
    }
    require(number >= 0, "no class " + chosen);
    defines += "#define PLANT " + std::to_string(number) + "\n";

    open_device();
    std::vector<int> a, b;
    uint32_t state = 1;
    const Buffer<uint16_t>&a_memory = matrix(a, state), &b_memory = matrix(b, state);
    std::vector<float> sums(64 * 64);
    for (uint32_t row = 0; row < 64; row++) {
        for (uint32_t column = 0; column < 64; column++) {
            int sum = 0;
            for (uint32_t k = 0; k < K; k++) {
                sum += a[row * K + k] * b[column * K + k];
            }
            for (uint32_t step = 0; step < K; step += 64) {
                sum += 2 * b[column * K + step + row];
            }
            sums[row * 64 + column] = static_cast<float>(sum);
        }
    }
    Program program("pipeline", 160, defines, "planted/pipeline.cu",
                    "#line 1 \"kernels/lib/hopper.cuh\"\n" + read_file("kernels/lib/hopper.cuh") + "#line 1 \"planted/pipeline.cu\"\n" +
                        read_file("tests/cuda_emulator/planted/pipeline.cu"));
    Buffer<float> out(sums.size());
    int caught = 0;
    std::string each;
    const int launches = atoi(argv[2]);
    for (int i = 0; i < launches; i++) {
        out.write(std::vector<float>(sums.size(), 12345.0f));
        bool fault = false;
        const Operands operands{map_of(a_memory), map_of(b_memory), {out.pointer(), 1, 0}};
        if (program.launch({1, 1, 1}, 40992, Params{K}, operands) != CUDA_SUCCESS) {
            expect(cuDevicePrimaryCtxReset_v2(0), "cuDevicePrimaryCtxReset");
            fault = true;
        }
        const bool wrong = fault || out.read() != sums;
        caught += wrong;
        each += wrong ? 'x' : '.';
    }
    printf("%s %d/%d %s\n", chosen.c_str(), caught, launches, each.c_str());
    return 0;
}
