// planted CLASS LAUNCHES: runs product.cu with a bug of a class (or `none`) so many times, each
// with another schedule, and says how many launches were caught: a fault, or a result that differs
// from the exact one. Prints `CLASS caught/launches` and an x for each caught one.

#include <cstdint>
#include <cstring>

#include "../harness.h"

using namespace harness;

namespace {

const char* const CLASSES[] = {"none",
                               "missing_barrier_before_read",
                               "missing_barrier_before_overwrite",
                               "missing_wait",
                               "shared_bounds",
                               "store_shared_bounds",
                               "global_write_bounds",
                               "global_read_bounds",
                               "divergent_barrier",
                               "barrier_count",
                               "uninitialised",
                               "missing_lane",
                               "wrong_mask",
                               "missing_syncwarp",
                               "overlapping_tiles",
                               "misaligned",
                               "signed_overflow",
                               "block_race"};

struct Params {
    uint32_t k, rows;
};
struct Operands {
    Operand a, b, out, largest;
};

// Small integers: exact in f16, and so are their sums in f32.
uint16_t half(int value) {
    const _Float16 number = static_cast<_Float16>(value);
    uint16_t bits;
    memcpy(&bits, &number, 2);
    return bits;
}

} // namespace

int main(int argc, char** argv) {
    require(argc == 3, "usage: planted CLASS LAUNCHES");
    std::string defines, chosen = argv[1];
    // From 1: a name that product.cu has and this list has not counts as 0, and is never planted.
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

    const uint32_t k = 128, blocks = 3, rows = 64 * blocks;
    std::vector<uint16_t> a(rows * k), b(32 * k);
    std::vector<int> a_number(a.size()), b_number(b.size());
    uint32_t state = 1;
    const auto draw = [&] {
        state = state * 1664525u + 1013904223u;
        return static_cast<int>(state >> 24) % 7 - 3;
    };
    for (size_t i = 0; i < a.size(); i++) {
        a[i] = half(a_number[i] = draw());
    }
    for (size_t i = 0; i < b.size(); i++) {
        b[i] = half(b_number[i] = draw());
    }
    std::vector<float> sums(rows), largest(blocks, -1e30f);
    for (uint32_t row = 0; row < rows; row++) {
        int sum = 0;
        for (uint32_t column = 0; column < 32; column++) {
            for (uint32_t i = 0; i < k; i++) {
                sum += a_number[row * k + i] * b_number[column * k + i];
            }
        }
        sums[row] = static_cast<float>(sum);
        largest[row / 64] = std::max(largest[row / 64], sums[row]);
    }

    open_device();
    Program program("product", 128, defines, "planted/product.cu", read_file("tests/cuda_emulator/planted/product.cu"));
    Buffer<uint16_t> a_memory(a), b_memory(b);
    Buffer<float> out(rows), largest_memory(blocks);
    int caught = 0;
    std::string each;
    const int launches = atoi(argv[2]);
    for (int i = 0; i < launches; i++) {
        out.write(std::vector<float>(rows, 12345.0f));
        largest_memory.write(std::vector<float>(blocks, 12345.0f));
        bool fault = false;
        const Operands operands{{a_memory.pointer(), 2, 0}, {b_memory.pointer(), 2, 0}, {out.pointer(), 1, 0}, {largest_memory.pointer(), 1, 0}};
        const CUresult result = program.launch({blocks, 1, 1}, 2 * 96 * 40 * 2 + 64 * 4, Params{k, rows}, operands);
        if (result != CUDA_SUCCESS) {
            expect(cuDevicePrimaryCtxReset_v2(0), "cuDevicePrimaryCtxReset");
            fault = true;
        }
        const bool wrong = fault || out.read() != sums || largest_memory.read() != largest;
        caught += wrong;
        each += wrong ? 'x' : '.';
    }
    printf("%s %d/%d %s\n", chosen.c_str(), caught, launches, each.c_str());
    return 0;
}
