// Products of a warpgroup (wgmma), a warp at a time: each warp computes its 16 rows when its own
// lanes have come, since nothing promises that the four warps of a group wait for each other. That
// all four issue the same products is checked by their numbers.
//
// A product reads shared memory at some time between its issue and the wait that covers it: at
// once, at the wait, or when chance says. Its registers hold POISON from issue to wait; what they
// held, and the sums, are kept here. So a missing wait, or a stage that is overwritten too early,
// gives wrong results, and registers that are written in between are found out.

#include <algorithm>
#include <cstring>
#include <deque>
#include <list>

#include "runtime.h"

namespace emulator {

namespace {

// A signalling NaN: arithmetic changes it, moves do not.
constexpr uint32_t POISON = 0x7fa0c0de;

// Registers of the warp's lanes while products of theirs are on their way.
struct Sums {
    float* at[32];
    uint32_t n;
    uint32_t in_flight;
    // [row][column] of 16 rows.
    std::vector<float> value;
};

struct Issued {
    Half type;
    uint32_t n;
    bool n_major, add, in_registers;
    Matrix a, b;
    float fragment[16][16];
    Sums* sums;
    uint32_t group;
    bool done;
};

// What a group's warps must agree in: the n-th product of each.
struct Agreed {
    Site site;
    uint32_t n;
    const void *a, *b;
};

struct Products {
    std::deque<Issued> open;
    std::list<Sums> sums;
    // Groups that were closed, and of products that were made: `done` of those in `open` have
    // happened.
    uint32_t closed, done;
    uint64_t issued;
    // A fence since registers may have been touched.
    bool fenced;
};
Products products[32];
std::vector<Agreed> agreed[8];

float* element(Sums& sums, uint32_t lane, uint32_t i) {
    const uint32_t row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    return &sums.value[row * sums.n + column];
}

// Sixteen bytes of a matrix: of K-major ones eight k of row `row`, of N-major ones eight n of row
// `row` of k.
const unsigned char* chunk(const Matrix& matrix, uint32_t row, uint32_t column) {
    const unsigned char* start = static_cast<const unsigned char*>(matrix.at);
    const uint32_t in_group = row % 8 * matrix.swizzle, group = row / 8 * matrix.swizzle * 8;
    const uint32_t per_row = matrix.swizzle / 2;
    const uint32_t panel = matrix.n_major ? column / per_row * matrix.panel : 0;
    const uint32_t inside = matrix.n_major ? column % per_row : column;
    const unsigned char* at = swizzle(start + group + in_group + panel + inside * 2, matrix.swizzle);
    check_proxy(at, 16, "wgmma");
    return at;
}

void load_chunk(Half type, const unsigned char* at, float (&value)[8]) {
    uint16_t bits[8];
    memcpy(bits, at, 16);
    for (uint32_t i = 0; i < 8; i++) {
        value[i] = half_value(type, bits[i]);
    }
}

// Reads the operands and adds, in f32 in the order of k. Tensor cores sum in another order, so that
// last bits differ.
void perform(Issued& product, uint32_t warp) {
    static float b[16][256];
    float value[8];
    for (uint32_t half = 0; half < 16 && !product.in_registers; half += 8) {
        for (uint32_t row = 0; row < 16; row++) {
            load_chunk(product.type, chunk(product.a, warp % 4 * 16 + row, half), value);
            memcpy(&product.fragment[row][half], value, sizeof value);
        }
    }
    if (product.n_major) {
        for (uint32_t k = 0; k < 16; k++) {
            for (uint32_t n = 0; n < product.n; n += 8) {
                load_chunk(product.type, chunk(product.b, k, n), value);
                memcpy(&b[k][n], value, sizeof value);
            }
        }
    } else {
        for (uint32_t n = 0; n < product.n; n++) {
            for (uint32_t half = 0; half < 16; half += 8) {
                load_chunk(product.type, chunk(product.b, n, half), value);
                for (uint32_t i = 0; i < 8; i++) {
                    b[half + i][n] = value[i];
                }
            }
        }
    }
    float* sums = product.sums->value.data();
    if (!product.add) {
        std::fill(product.sums->value.begin(), product.sums->value.end(), 0.0f);
    }
    for (uint32_t row = 0; row < 16; row++, sums += product.n) {
        for (uint32_t k = 0; k < 16; k++) {
            for (uint32_t n = 0; n < product.n; n++) {
                sums[n] += product.fragment[row][k] * b[k][n];
            }
        }
    }
    product.done = true;
}

// The oldest `count` products that have not happened yet.
void perform_some(uint32_t warp, uint32_t count) {
    for (Issued& product : products[warp].open) {
        if (count > 0 && !product.done) {
            perform(product, warp);
            products[warp].done++;
            count--;
        }
    }
}

uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

void check_untouched(const Sums& sums) {
    for (uint32_t lane = 0; lane < 32; lane++) {
        for (uint32_t i = 0; i < sums.n / 2; i++) {
            if (bits_of(sums.at[lane][i]) != POISON) {
                fault("wgmma: d[%u] of lane %u was written while its product was on its way: no wgmma_wait in between", i, lane);
            }
        }
    }
}

// The warp's registers of a product: those of products on their way, or new ones, as they are now.
Sums* sums_of(Warp& warp, const Product& first) {
    Products& mine = products[warp.number];
    for (Sums& sums : mine.sums) {
        bool same = sums.n == first.n, overlaps = false;
        for (uint32_t lane = 0; lane < 32; lane++) {
            const float* d = lane_of(warp, lane).words->product->d;
            same &= sums.at[lane] == d;
            overlaps |= d < sums.at[lane] + sums.n / 2 && sums.at[lane] < d + first.n / 2;
        }
        if (same) {
            check_untouched(sums);
            return &sums;
        }
        if (overlaps) {
            fault("wgmma: its registers are partly those of a product on its way");
        }
    }
    if (!mine.fenced) {
        fault("wgmma: no wgmma_fence since its registers may have been touched");
    }
    mine.sums.push_back(Sums{{}, first.n, 0, std::vector<float>(16 * first.n)});
    Sums& sums = mine.sums.back();
    for (uint32_t lane = 0; lane < 32; lane++) {
        sums.at[lane] = lane_of(warp, lane).words->product->d;
        for (uint32_t i = 0; i < first.n / 2; i++) {
            *element(sums, lane, i) = sums.at[lane][i];
            memcpy(&sums.at[lane][i], &POISON, 4);
        }
    }
    return &sums;
}

void check_group(Warp& warp, const Product& product) {
    const uint32_t first = warp.number / 4 * 4;
    if (threads_in_block() < first * 32 + 128) {
        fault("wgmma: warps %u to %u are no whole warpgroup in a block of %u threads", first, first + 3, threads_in_block());
    }
    std::vector<Agreed>& all = agreed[warp.number / 4];
    const uint64_t number = products[warp.number].issued++;
    const Agreed own{lane_of(warp, 0).site, product.n, product.registers != nullptr ? nullptr : product.a.at, product.b.at};
    if (number == all.size()) {
        all.push_back(own);
    } else if (const Agreed& other = all[number];
               other.site.line != own.site.line || other.n != own.n || other.a != own.a || other.b != own.b) {
        fault("wgmma: product %llu of this warp is another one than that of its warpgroup, at %s:%d",
              static_cast<unsigned long long>(number), other.site.file, other.site.line);
    }
}

void check_matrix(const Matrix& matrix, const char* which) {
    if (matrix.swizzle != 32 && matrix.swizzle != 64 && matrix.swizzle != 128) {
        fault("wgmma: %s with a swizzle of %u bytes", which, matrix.swizzle);
    }
    const uintptr_t at = reinterpret_cast<uintptr_t>(matrix.at);
    // A K-major tile may be entered in the middle of its first row: 16 k are 32 bytes. Everything
    // else begins where the pattern begins.
    const uintptr_t allowed = matrix.n_major ? 0 : matrix.swizzle - 32;
    if ((at & (matrix.swizzle * 8 - 1) & ~allowed) != 0 || at % 32 != 0 || matrix.panel % 16 != 0) {
        fault("wgmma: %s does not begin on a multiple of %u bytes", which, matrix.swizzle * 8);
    }
}

} // namespace

// Bits 7 to 9 turn bits 4 to 6, as many as the pattern has.
unsigned char* swizzle(const void* address, uint32_t span) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    return reinterpret_cast<unsigned char*>(span == 0 ? at : at ^ (at >> 3 & (span - 16)));
}

float half_value(Half type, uint32_t bits) {
    if (type == Half::f16) {
        return f16_to_f32(static_cast<uint16_t>(bits));
    }
    float value;
    bits <<= 16;
    memcpy(&value, &bits, 4);
    return value;
}

void begin_products() {
    for (Products& all : products) {
        all = Products();
    }
    for (std::vector<Agreed>& all : agreed) {
        all.clear();
    }
}

void end_products() {
    for (uint32_t warp = 0; warp < 32; warp++) {
        const Products& mine = products[warp];
        if (!mine.open.empty()) {
            block_fault("warp " + std::to_string(warp) + " returned with " + std::to_string(mine.open.size()) + " products on their way");
        }
        if (mine.issued != agreed[warp / 4].size()) {
            block_fault("warp " + std::to_string(warp) + " issued " + std::to_string(mine.issued) + " products, its warpgroup " +
                        std::to_string(agreed[warp / 4].size()));
        }
    }
}

void issue_product(Warp& warp) {
    const Product& first = *lane_of(warp, 0).words->product;
    for (uint32_t lane = 1; lane < 32; lane++) {
        const Product& other = *lane_of(warp, lane).words->product;
        if (other.a.at != first.a.at || other.b.at != first.b.at || other.add != first.add) {
            fault("wgmma: lane %u has other operands than lane 0", lane);
        }
    }
    if (first.n % 8 != 0 || first.n == 0 || first.n > 256 || first.n_major != first.b.n_major) {
        fault("wgmma: %u columns, %s-major, and a matrix that is %s-major", first.n, first.n_major ? "N" : "K", first.b.n_major ? "N" : "K");
    }
    check_matrix(first.b, "b");
    if (first.registers == nullptr) {
        check_matrix(first.a, "a");
    }
    check_group(warp, first);
    Products& mine = products[warp.number];
    mine.open.push_back({first.type, first.n, first.n_major, first.add, first.registers != nullptr, first.a, first.b, {},
                         sums_of(warp, first), mine.closed, false});
    Issued& product = mine.open.back();
    product.sums->in_flight++;
    for (uint32_t lane = 0; lane < 32 && product.in_registers; lane++) {
        const uint32_t* words = lane_of(warp, lane).words->product->registers;
        for (uint32_t word = 0; word < 4; word++) {
            const uint32_t row = lane / 4 + word % 2 * 8, column = lane % 4 * 2 + word / 2 * 8;
            product.fragment[row][column] = half_value(first.type, words[word] & 0xffff);
            product.fragment[row][column + 1] = half_value(first.type, words[word] >> 16);
        }
    }
    if (mode_of_block() == Async::early) {
        perform_some(warp.number, 1);
    }
}

void fence_products(Warp& warp) {
    products[warp.number].fenced = true;
}

void commit_products(Warp& warp) {
    products[warp.number].closed++;
    products_pass(warp);
}

void products_pass(const Warp& warp) {
    Products& mine = products[warp.number];
    const uint32_t waiting = static_cast<uint32_t>(mine.open.size()) - mine.done;
    if (waiting > 0 && mode_of_block() == Async::random && schedule.one_in(8)) {
        perform_some(warp.number, 1 + schedule.below(waiting));
    }
}

void wait_for_products(Warp& warp) {
    Products& mine = products[warp.number];
    const uint32_t open = lane_of(warp, 0).words->argument;
    bool some = false;
    while (!mine.open.empty() && mine.open.front().group + open < mine.closed) {
        Issued& product = mine.open.front();
        if (!product.done) {
            perform_some(warp.number, 1);
        }
        product.sums->in_flight--;
        mine.done--;
        mine.open.pop_front();
        some = true;
    }
    for (auto sums = mine.sums.begin(); sums != mine.sums.end();) {
        if (sums->in_flight > 0) {
            ++sums;
            continue;
        }
        check_untouched(*sums);
        for (uint32_t lane = 0; lane < 32; lane++) {
            for (uint32_t i = 0; i < sums->n / 2; i++) {
                sums->at[lane][i] = *element(*sums, lane, i);
            }
        }
        sums = mine.sums.erase(sums);
    }
    // Whatever is done with these registers now, the next product needs a fence.
    mine.fenced = mine.fenced && !some;
}

} // namespace emulator
