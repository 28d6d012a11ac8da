// Products of a warpgroup: kernels/wrappers_product.cu on images of shared memory that are laid out
// here, from the figures of the PTX ISA ("Shared Memory Matrix Layout", "Swizzling modes"): a
// pattern is eight rows of as many 16-byte chunks as the swizzle spans, and chunk c of row r stands
// in place c ^ (r / (8 / chunks)).
#pragma once

namespace products {

using u32 = uint32_t;
using u16 = uint16_t;

struct Case {
    const char* type;
    u32 n, swizzle;
    bool n_major, in_registers;
};

// Where element (row, column) lies in rows of `span` bytes, groups of eight rows behind one
// another; in halves.
inline u32 place(u32 span, u32 row, u32 column) {
    const u32 chunks = span / 16, chunk = column / 8;
    return row / 8 * (span * 4) + row % 8 * (span / 2) + (chunk ^ row % 8 / (8 / chunks)) * 8 + column % 8;
}

// Small integers, exact in both types.
inline u16 bits_of(const char* type, int value) {
    const float real = static_cast<float>(value);
    const _Float16 half = static_cast<_Float16>(real);
    u32 word;
    memcpy(&word, &real, 4);
    u16 bits;
    memcpy(&bits, &half, 2);
    return type[0] == 'b' ? static_cast<u16>(word >> 16) : bits;
}

template <class Draw> int check(const Case& c, u32 rounds, Draw draw) {
    const u32 k = c.swizzle / 2, sums = c.n / 2;
    const std::string defines = "#define ELEMENT " + std::string(c.type) + "\n#define COLUMNS_N " + std::to_string(c.n) + "\n#define SWIZZLE " +
                                std::to_string(c.swizzle) + "\n#define B_BY_N " + (c.n_major ? "true" : "false") + "\n#define A_IN_REGISTERS " +
                                (c.in_registers ? "true" : "false") + "\n";
    harness::Program program("product", 128, defines, "kernels/wrappers_product.cu",
                             "#line 1 \"kernels/lib/hopper.cuh\"\n" + harness::read_file("kernels/lib/hopper.cuh") + "#line 1 \"kernels/wrappers_product.cu\"\n" + harness::read_file("kernels/wrappers_product.cu"));
    const u32 a_words = 16 * c.swizzle, b_words = c.n * c.swizzle / 4, round_words = sums * 128 + a_words + b_words;
    std::vector<u32> input(rounds * round_words);
    std::vector<std::vector<int>> expected;
    for (u32 round = 0; round < rounds; round++) {
        std::vector<int> a(64 * k), b(k * c.n), d(64 * c.n);
        u32* words = &input[round * round_words];
        std::vector<u16> a_image(a_words * 2), b_image(b_words * 2);
        for (u32 row = 0; row < 64; row++) {
            for (u32 i = 0; i < k; i++) {
                a_image[place(c.swizzle, row, i)] = bits_of(c.type, a[row * k + i] = static_cast<int>(draw() % 7) - 3);
            }
        }
        for (u32 i = 0; i < k; i++) {
            for (u32 n = 0; n < c.n; n++) {
                // N-major: panels of k columns, as many halves as a row of the pattern has.
                const u32 at = c.n_major ? n / k * (k * k) + place(c.swizzle, i, n % k) : place(c.swizzle, n, i);
                b_image[at] = bits_of(c.type, b[i * c.n + n] = static_cast<int>(draw() % 7) - 3);
            }
        }
        for (u32 row = 0; row < 64; row++) {
            for (u32 n = 0; n < c.n; n++) {
                const u32 thread = row / 16 * 32 + row % 8 * 4 + n % 8 / 2, index = n / 8 * 4 + row % 16 / 8 * 2 + n % 2;
                const int before = static_cast<int>(draw() % 100);
                const float real = static_cast<float>(before);
                memcpy(&words[index * 128 + thread], &real, 4);
                int sum = round % 2 == 1 ? before : 0;
                for (u32 i = 0; i < k; i++) {
                    sum += a[row * k + i] * b[i * c.n + n];
                }
                d[row * c.n + n] = sum;
            }
        }
        memcpy(words + sums * 128, a_image.data(), a_words * 4);
        memcpy(words + sums * 128 + a_words, b_image.data(), b_words * 4);
        expected.push_back(d);
    }
    harness::Buffer<u32> in(input), out(rounds * sums * 128);
    struct {
        u32 rounds;
    } params{rounds};
    struct {
        harness::Operand input, output;
    } operands{{in.pointer(), 4, 0}, {out.pointer(), 4, 0}};
    harness::expect(program.launch({1, 1, 1}, 8192 + b_words * 4, params, operands), "the products' kernel");
    const std::vector<u32> result = out.read();
    int failures = 0;
    for (u32 round = 0; round < rounds; round++) {
        for (u32 row = 0; row < 64; row++) {
            for (u32 n = 0; n < c.n; n++) {
                const u32 thread = row / 16 * 32 + row % 8 * 4 + n % 8 / 2, index = n / 8 * 4 + row % 16 / 8 * 2 + n % 2;
                float actual;
                memcpy(&actual, &result[(round * sums + index) * 128 + thread], 4);
                const float wanted = static_cast<float>(expected[round][row * c.n + n]);
                if (actual != wanted && failures++ < 4) {
                    fprintf(stderr, "wgmma %s n%u, swizzle %u, %s-major, a in %s: round %u, row %u, column %u: expected %g, got %g\n", c.type, c.n,
                            c.swizzle, c.n_major ? "N" : "K", c.in_registers ? "registers" : "shared memory", round, row, n, wanted, actual);
                }
            }
        }
    }
    return failures;
}

template <class Draw> int check_all(Draw draw) {
    int failures = 0;
    for (const char* type : {"f16", "bf16"}) {
        for (const u32 n : {64u, 96u, 128u, 256u}) {
            for (const u32 swizzle : {32u, 64u, 128u}) {
                for (const bool n_major : {false, true}) {
                    // Panels of the pattern's width: 96 is no multiple of 64.
                    if (n_major && n % (swizzle / 2) != 0) {
                        continue;
                    }
                    // The type and the place of a are told by other code than the rest: each with
                    // half of the layouts.
                    const bool in_registers = (n / 32 + swizzle / 32 + n_major) % 2 == (type[0] == 'b');
                    failures += check({type, n, swizzle, n_major, in_registers}, 3, draw);
                }
            }
        }
    }
    return failures;
}

} // namespace products
