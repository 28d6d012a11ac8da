// The semantics of kernels/lib, lane by lane. What is expected is written here from the tables of
// the PTX ISA ("Matrix Fragments for mma.m16n8k16", "ldmatrix", "shfl.sync"), element by element,
// and from f64; nothing of the emulator is used.

#include <cmath>
#include <cstring>
#include <map>

#include "../harness.h"
#include "products.h"

using namespace harness;

namespace {

using u32 = uint32_t;
using u16 = uint16_t;
int failures;

void check(bool holds, const char* what, u32 lane, u32 index, double expected, double actual) {
    if (!holds && failures++ < 20) {
        fprintf(stderr, "wrappers: %s, lane %u, %u: expected %.9g, got %.9g\n", what, lane, index, expected, actual);
    }
}

void check_word(const char* what, u32 lane, u32 index, u32 expected, u32 actual) {
    if (expected != actual && failures++ < 20) {
        fprintf(stderr, "wrappers: %s, lane %u, %u: expected %08x, got %08x\n", what, lane, index, expected, actual);
    }
}

float as_float(u32 word) {
    float value;
    memcpy(&value, &word, 4);
    return value;
}

u32 as_word(float value) {
    u32 word;
    memcpy(&word, &value, 4);
    return word;
}

// IEEE binary16 from its definition.
double half_value(u16 bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double magnitude = exponent == 31  ? (fraction == 0 ? INFINITY : NAN)
                             : exponent == 0 ? std::ldexp(fraction, -24)
                                             : std::ldexp(1024 + fraction, exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

double bf16_value(u16 bits) {
    return as_float(static_cast<u32>(bits) << 16);
}

// The nearest of all values with this many explicit fraction bits and this smallest exponent, ties
// to even, as bits.
u32 round_to(double x, int fraction_bits, int exponent_bits) {
    if (std::isnan(x)) {
        return 0x7fff;
    }
    const int bias = (1 << (exponent_bits - 1)) - 1, largest = bias;
    const u32 sign = std::signbit(x) ? 0x8000 : 0;
    const double a = std::fabs(x);
    const u32 infinity = ((1u << exponent_bits) - 1) << fraction_bits;
    if (std::isinf(a)) {
        return sign | infinity;
    }
    int exponent = a == 0 ? 1 - bias : std::max(std::ilogb(a), 1 - bias);
    // In units of the last place; nearbyint rounds ties to even.
    double units = std::nearbyint(std::ldexp(a, fraction_bits - exponent));
    if (units == std::ldexp(1.0, fraction_bits + 1)) {
        units /= 2;
        exponent++;
    }
    if (exponent > largest) {
        return sign | infinity;
    }
    const u32 whole = static_cast<u32>(units);
    const u32 implicit = 1u << fraction_bits;
    return sign | (whole >= implicit ? (static_cast<u32>(exponent + bias) << fraction_bits) + (whole - implicit) : whole);
}

struct Lanes {
    std::vector<u32> words, out;
    u32 input(u32 lane, u32 word) const {
        return words[lane * 12 + word];
    }
    u16 tile(u32 row, u32 column) const {
        return static_cast<u16>(words[32 * 12 + row * 4 + column / 2] >> (column % 2 * 16));
    }
    u32 result(u32 section, u32 lane, u32 word) const {
        return out[(section * 32 + lane) * 4 + word];
    }
};

u16 half_of(u32 word, u32 which) {
    return static_cast<u16>(word >> (16 * which));
}

// Element (row, column) of matrix m stands in lane row * 4 + column / 2, in half column % 2 of
// register m; transposed, the other way round.
void check_ldmatrix(const Lanes& lanes) {
    for (u32 matrix = 0; matrix < 4; matrix++) {
        for (u32 row = 0; row < 8; row++) {
            for (u32 column = 0; column < 8; column++) {
                const u16 element = lanes.tile(matrix * 8 + row, column);
                const u32 straight = row * 4 + column / 2, crossed = column * 4 + row / 2;
                check_word("ldmatrix_x4", straight, matrix, element, half_of(lanes.result(0, straight, matrix), column % 2));
                check_word("ldmatrix_x4_trans", crossed, matrix, element, half_of(lanes.result(1, crossed, matrix), row % 2));
                if (matrix < 2) {
                    check_word("ldmatrix_x2", straight, matrix, element, half_of(lanes.result(2, straight, matrix), column % 2));
                    check_word("ldmatrix_x2_trans", crossed, matrix, element, half_of(lanes.result(2, crossed, 2 + matrix), row % 2));
                }
            }
        }
    }
}

// Fragments by the ISA's element numbers: a0..a7, b0..b3, c0..c3. A tensor core may sum in any
// order: 17 terms, each rounding at most 2^-23.
void check_mma(const Lanes& lanes, u32 section, const char* what, double (*value)(u16)) {
    double a[16][16], b[16][8], c[16][8], size[16][8];
    for (u32 lane = 0; lane < 32; lane++) {
        const u32 group = lane >> 2, thread = lane % 4;
        for (u32 i = 0; i < 8; i++) {
            const u32 row = (i < 2 || (4 <= i && i < 6)) ? group : group + 8;
            const u32 column = thread * 2 + (i & 1) + (i < 4 ? 0 : 8);
            a[row][column] = value(half_of(lanes.input(lane, i / 2), i % 2));
        }
        for (u32 i = 0; i < 4; i++) {
            b[thread * 2 + (i & 1) + (i < 2 ? 0 : 8)][group] = value(half_of(lanes.input(lane, 4 + i / 2), i % 2));
            c[i < 2 ? group : group + 8][thread * 2 + (i & 1)] = as_float(lanes.input(lane, 6 + i));
        }
    }
    for (u32 i = 0; i < 16; i++) {
        for (u32 j = 0; j < 8; j++) {
            size[i][j] = std::fabs(c[i][j]);
            for (u32 k = 0; k < 16; k++) {
                c[i][j] += a[i][k] * b[k][j];
                size[i][j] += std::fabs(a[i][k] * b[k][j]);
            }
        }
    }
    for (u32 lane = 0; lane < 32; lane++) {
        const u32 group = lane >> 2, thread = lane % 4;
        for (u32 i = 0; i < 4; i++) {
            const u32 row = i < 2 ? group : group + 8, column = thread * 2 + (i & 1);
            const double actual = as_float(lanes.result(section, lane, i));
            check(std::fabs(actual - c[row][column]) <= 17 * std::ldexp(size[row][column], -23), what, lane, i, c[row][column], actual);
        }
    }
}

// The pseudo-code of "shfl.sync", on registers: c = ((32 - width) << 8) | clamp.
u32 shuffled(const Lanes& lanes, u32 lane, char mode, u32 b, u32 width) {
    const u32 segment = 32 - width, clamp = mode == 'u' ? 0 : 31;
    const u32 highest = (lane & segment) | (clamp & ~segment & 31), lowest = lane & segment;
    int j = 0;
    bool valid = false;
    switch (mode) {
    case 'u': j = static_cast<int>(lane) - static_cast<int>(b); valid = j >= static_cast<int>(highest); break;
    case 'd': j = static_cast<int>(lane + b); valid = j <= static_cast<int>(highest); break;
    case 'x': j = static_cast<int>(lane ^ b); valid = j <= static_cast<int>(highest); break;
    default: j = static_cast<int>(lowest | (b & ~segment & 31)); valid = j <= static_cast<int>(highest); break;
    }
    return lanes.input(valid ? static_cast<u32>(j) : lane, 0);
}

void check_warp(const Lanes& lanes) {
    u32 ballot = 0;
    for (u32 lane = 0; lane < 32; lane++) {
        ballot |= (lanes.input(lane, 0) & 1) << lane;
    }
    for (u32 lane = 0; lane < 32; lane++) {
        check_word("shfl", lane, 0, shuffled(lanes, lane, 'i', lanes.input(lane, 1) & 31, 32), lanes.result(6, lane, 0));
        check_word("shfl_xor", lane, 1, shuffled(lanes, lane, 'x', 13, 32), lanes.result(6, lane, 1));
        check_word("shfl_up", lane, 2, shuffled(lanes, lane, 'u', 3, 32), lanes.result(6, lane, 2));
        check_word("shfl_down", lane, 3, shuffled(lanes, lane, 'd', 5, 32), lanes.result(6, lane, 3));
        check_word("shfl, width 8", lane, 0, shuffled(lanes, lane, 'i', 5, 8), lanes.result(7, lane, 0));
        check_word("shfl_xor, width 4", lane, 1, shuffled(lanes, lane, 'x', 2, 4), lanes.result(7, lane, 1));
        check_word("shfl_up, width 16", lane, 2, shuffled(lanes, lane, 'u', 3, 16), lanes.result(7, lane, 2));
        check_word("shfl_down, width 8", lane, 3, shuffled(lanes, lane, 'd', 5, 8), lanes.result(7, lane, 3));
        check_word("ballot", lane, 0, ballot, lanes.result(8, lane, 0));
        check_word("any", lane, 1, 1, lanes.result(8, lane, 1));
        check_word("all", lane, 2, 0, lanes.result(8, lane, 2));
        check_word("ballot of a half", lane, 3, ballot & (lane < 16 ? 0xffffu : 0xffff0000u), lanes.result(8, lane, 3));
        for (u32 i = 0; i < 4; i++) {
            const u32 from = lane ^ 1;
            check_word("copy_async_16, wide_load", lane, i, from < 20 ? lanes.words[32 * 12 + from * 4 + i] : 0, lanes.result(5, lane, i));
        }
        const float x = as_float(lanes.input(lane, 6)), y = as_float(lanes.input(lane, 7));
        check_word("pack2<f16>", lane, 0, round_to(x, 10, 5) | round_to(y, 10, 5) << 16, lanes.result(9, lane, 0));
        check_word("pack2<bf16>", lane, 1, round_to(x, 7, 8) | round_to(y, 7, 8) << 16, lanes.result(9, lane, 1));
        // 2 and 1 ulp, as ptx.cuh says.
        const double power = std::exp2(static_cast<double>(x)), inverse = 1.0 / x;
        const double got_power = as_float(lanes.result(9, lane, 2)), got_inverse = as_float(lanes.result(9, lane, 3));
        check(std::fabs(got_power - power) <= std::ldexp(power, -22), "exp2_approx", lane, 2, power, got_power);
        check(std::fabs(got_inverse - inverse) <= std::ldexp(std::fabs(inverse), -23), "reciprocal", lane, 3, inverse, got_inverse);
    }
    for (u32 width : {32u, 4u}) {
        // Halves, quarters, ...: the order of the xor steps, in f32.
        for (u32 lane = 0; lane < 32; lane++) {
            std::vector<float> part;
            for (u32 i = 0; i < width; i++) {
                part.push_back(as_float(lanes.input((lane & ~(width - 1)) + i, 6)));
            }
            for (u32 step = width / 2; step > 0; step /= 2) {
                for (u32 i = 0; i < step; i++) {
                    part[i] += part[i + step];
                }
            }
            check_word("warp_sum", lane, width, as_word(part[0]), lanes.result(10, lane, width == 32 ? 0 : 2));
        }
    }
    for (u32 width : {32u, 8u}) {
        for (u32 lane = 0; lane < 32; lane++) {
            float largest = -INFINITY;
            for (u32 i = 0; i < width; i++) {
                largest = std::max(largest, as_float(lanes.input((lane & ~(width - 1)) + i, 6)));
            }
            check_word("warp_max", lane, width, as_word(largest), lanes.result(10, lane, width == 32 ? 1 : 3));
        }
    }
}

struct OneParam {
    u32 value;
};
struct TwoOperands {
    Operand first, second;
};

void test_wrappers(u32 rounds) {
    Program program("wrappers", 32, "", "wrappers/wrappers.cu", read_file("tests/cuda_emulator/wrappers/wrappers.cu"));
    u32 state = 7;
    const auto draw = [&] {
        state ^= state << 13, state ^= state >> 17, state ^= state << 5;
        return state;
    };
    for (u32 round = 0; round < rounds; round++) {
        Lanes lanes;
        for (u32 lane = 0; lane < 32; lane++) {
            for (u32 word = 0; word < 12; word++) {
                // Fragments: numbers between 2^-3 and 2^2 both as f16 and, with the same bits, as
                // bf16 moderate.
                const u32 pair = (draw() & 0x83ff83ff) | 0x30003000 | (draw() & 0x0c000c00);
                const float real = (static_cast<float>(draw() >> 8) / (1 << 23) - 1.0f) * 8.0f;
                lanes.words.push_back(word < 6 ? pair : as_word(real));
            }
        }
        for (u32 i = 0; i < 128; i++) {
            lanes.words.push_back(draw());
        }
        Buffer<u32> words(lanes.words), out(11 * 32 * 4);
        expect(program.launch({1, 1, 1}, 1024, OneParam{0}, TwoOperands{{words.pointer(), 4, 0}, {out.pointer(), 4, 0}}), "the wrappers' kernel");
        lanes.out = out.read();
        check_ldmatrix(lanes);
        check_mma(lanes, 3, "mma_16816<f16>", half_value);
        check_mma(lanes, 4, "mma_16816<bf16>", bf16_value);
        check_warp(lanes);
    }
}

double true_function(u32 function, double x) {
    switch (function) {
    case 4: return std::tanh(x);
    case 5: return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    default: return x / (1.0 + std::exp(-x));
    }
}

// Distance in units of the last place of the truth.
double ulps(float actual, double truth) {
    const int exponent = std::max(std::ilogb(truth), -126);
    return std::fabs(actual - truth) / std::ldexp(1.0, exponent - 23);
}

void test_functions() {
    // All 16-bit patterns, and f32 from 2^-20 to 2^7 of both signs in steps of 2^-11, with the
    // special ones.
    std::vector<u32> x;
    for (u32 bits = 0; bits < 65536; bits++) {
        x.push_back(bits | (bits * 2654435761u & 0xffff0000u));
    }
    const size_t reals = x.size();
    for (u32 word = as_word(0x1p-20f); word < as_word(128.0f); word += 4099) {
        x.push_back(word);
        x.push_back(word | 0x80000000u);
    }
    for (const float special : {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 65504.0f, 65519.9f, 65520.0f, 1e-8f, 0x1p-25f, 0x1.8p-25f, 1e30f, -1e30f}) {
        x.push_back(as_word(special));
    }
    const u32 count = static_cast<u32>(x.size());
    Program program("functions", 128, "", "wrappers/functions.cu", read_file("tests/cuda_emulator/wrappers/functions.cu"));
    Buffer<u32> in(x), out(8 * count);
    const TwoOperands operands{{in.pointer(), 4, 0}, {out.pointer(), 4, 0}};
    expect(program.launch({(count + 127) / 128, 1, 1}, 16, OneParam{count}, operands), "the functions' kernel");
    const std::vector<u32> results = out.read();
    // tanh: 0.534; gelu: 10 for positive x, 10 + 1.3 x^2 for negative; silu: 3. As math.cuh says.
    double worst[8] = {};
    float sum = 0;
    for (u32 thread = 0; thread < 128; thread++) {
        sum += static_cast<float>(thread % 7);
    }
    for (u32 i = 0; i < count; i++) {
        const u16 bits = static_cast<u16>(x[i]);
        const float value = as_float(x[i]);
        const float half = as_float(results[i]), brain = as_float(results[count + i]);
        check(half == half_value(bits) || (std::isnan(half) && std::isnan(half_value(bits))), "f16 to f32", i, bits, half_value(bits), half);
        check(brain == bf16_value(bits) || (std::isnan(brain) && std::isnan(bf16_value(bits))), "bf16 to f32", i, bits, bf16_value(bits), brain);
        check_word("f32 to f16", i, x[i], round_to(value, 10, 5), results[2 * count + i]);
        check_word("f32 to bf16", i, x[i], round_to(value, 7, 8), results[3 * count + i]);
        check(as_float(results[7 * count + i]) == sum, "block_sum", i, 0, sum, as_float(results[7 * count + i]));
        for (u32 function = 4; function < 7 && i >= reals; function++) {
            const float actual = as_float(results[function * count + i]);
            if (std::isnan(value)) {
                check(std::isnan(actual), "NaN goes through", i, function, value, actual);
            } else if (std::isinf(value)) {
                const double limit = function == 4 ? (value > 0 ? 1 : -1) : value > 0 ? value : 0;
                check(actual == limit, "limit at infinity", i, function, limit, actual);
            } else {
                const double truth = true_function(function, value);
                // Below the normal numbers only absolute errors mean something.
                if (std::fabs(truth) > 0x1p-120) {
                    const double allowed = function == 4 ? 0.534 : function == 6 ? 3 : value > 0 ? 10 : 10 + 1.3 * value * value;
                    const double error = ulps(actual, truth);
                    worst[function] = std::max(worst[function], error / allowed);
                    check(error <= allowed, function == 4 ? "tanh_exact" : function == 5 ? "gelu" : "silu", i, x[i], truth, actual);
                } else {
                    check(std::fabs(actual - truth) < 0x1p-118, "tail", i, function, truth, actual);
                }
            }
        }
    }
    printf("functions: %u values; share of the error bound: tanh_exact %.2f, gelu %.2f, silu %.2f\n", count, worst[4], worst[5], worst[6]);
}

} // namespace

int main(int argc, char** argv) {
    const u32 rounds = argc > 1 ? static_cast<u32>(atoi(argv[1])) : 20;
    open_device();
    test_wrappers(rounds);
    test_functions();
    u32 state = 11;
    failures += products::check_all([&] {
        state ^= state << 13, state ^= state >> 17, state ^= state << 5;
        return state;
    });
    printf("wrappers: %u rounds, %d failures\n", rounds, failures);
    return failures == 0 ? 0 : 1;
}
