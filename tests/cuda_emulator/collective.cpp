// Warp collectives. Each lane leaves its words and waits; the last lane of the mask to arrive
// computes the results of all. So nobody reads another lane's words after it went on.

#include "runtime.h"

namespace emulator {

namespace {

// The lane whose value `lane` receives, by the rules of the PTX ISA ("shfl.sync"); its own where
// the segment ends.
uint32_t source_lane(Collective what, uint32_t lane, uint32_t argument, uint32_t width) {
    const uint32_t first = lane & ~(width - 1), last = first + width - 1;
    switch (what) {
    case Collective::shuffle: return first | (argument & (width - 1));
    case Collective::shuffle_xor: return (lane ^ argument) <= last ? lane ^ argument : lane;
    case Collective::shuffle_up: return lane >= first + argument ? lane - argument : lane;
    default: return lane + argument <= last ? lane + argument : lane;
    }
}

void shuffle_lanes(Collective what, const Warp& warp, uint32_t mask) {
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
        const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(rest));
        Words& words = *lane_of(warp, lane).words;
        if (words.width == 0 || words.width > 32 || (words.width & (words.width - 1)) != 0) {
            fault("a shuffle of width %u: 1, 2, 4, 8, 16 or 32 it must be", words.width);
        }
        const uint32_t from = source_lane(what, lane, words.argument, words.width) & 31;
        if ((mask >> from & 1) == 0) {
            fault("lane %u shuffles from lane %u, which the mask %08x does not name", lane, from, mask);
        }
        words.out[0] = lane_of(warp, from).words->in[0];
    }
}

void vote_lanes(Collective what, const Warp& warp, uint32_t mask) {
    uint32_t ballot = 0;
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
        const uint32_t lane = static_cast<uint32_t>(__builtin_ctz(rest));
        ballot |= lane_of(warp, lane).words->in[0] << lane;
    }
    const uint32_t result = what == Collective::ballot ? ballot : what == Collective::any ? ballot != 0 : ballot == mask;
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
        lane_of(warp, static_cast<uint32_t>(__builtin_ctz(rest))).words->out[0] = result;
    }
}

void ldmatrix_lanes(bool transposed, const Warp& warp) {
    const uint32_t matrices = lane_of(warp, 0).words->argument;
    for (uint32_t matrix = 0; matrix < matrices; matrix++) {
        uint16_t element[8][8];
        uint32_t addresses[8];
        for (uint32_t row = 0; row < 8; row++) {
            const Words& words = *lane_of(warp, 8 * matrix + row).words;
            __builtin_memcpy(element[row], words.in, 16);
            addresses[row] = words.in[4];
        }
        statistics->phases[LDMATRIX]++;
        statistics->conflicts[LDMATRIX] += bank_conflicts(addresses, 8);
        for (uint32_t lane = 0; lane < 32; lane++) {
            const uint32_t g = lane / 4, t = lane % 4;
            const uint32_t low = transposed ? element[2 * t][g] : element[g][2 * t];
            const uint32_t high = transposed ? element[2 * t + 1][g] : element[g][2 * t + 1];
            lane_of(warp, lane).words->out[matrix] = low | high << 16;
        }
    }
}

template <bool BF16> float real(uint32_t bits) {
    return half_value(BF16 ? Half::bf16 : Half::f16, bits);
}

// Products in f32 (exact), summed in f32 in the order of k. Tensor cores sum in another order, so
// that last bits differ.
template <bool BF16> void mma_lanes(const Warp& warp) {
    float a[16][16], b[16][8], d[16][8];
    for (uint32_t lane = 0; lane < 32; lane++) {
        const uint32_t g = lane / 4, t = lane % 4;
        const uint32_t* in = lane_of(warp, lane).words->in;
        for (uint32_t word = 0; word < 4; word++) {
            const uint32_t row = g + 8 * (word & 1), column = 2 * t + 8 * (word >> 1);
            a[row][column] = real<BF16>(in[word] & 0xffff);
            a[row][column + 1] = real<BF16>(in[word] >> 16);
            __builtin_memcpy(&d[g + 8 * (word >> 1)][2 * t + (word & 1)], &in[6 + word], 4);
        }
        for (uint32_t word = 0; word < 2; word++) {
            b[2 * t + 8 * word][g] = real<BF16>(in[4 + word] & 0xffff);
            b[2 * t + 8 * word + 1][g] = real<BF16>(in[4 + word] >> 16);
        }
    }
    for (uint32_t i = 0; i < 16; i++) {
        for (uint32_t k = 0; k < 16; k++) {
            for (uint32_t j = 0; j < 8; j++) {
                d[i][j] += a[i][k] * b[k][j];
            }
        }
    }
    for (uint32_t lane = 0; lane < 32; lane++) {
        const uint32_t g = lane / 4, t = lane % 4;
        for (uint32_t word = 0; word < 4; word++) {
            __builtin_memcpy(&lane_of(warp, lane).words->out[word], &d[g + 8 * (word >> 1)][2 * t + (word & 1)], 4);
        }
    }
}

// All lanes of the mask must be in the same collective, with the same mask.
void check_agreement(const Thread& last, uint32_t mask) {
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
        const Thread& other = lane_of(*last.warp, static_cast<uint32_t>(__builtin_ctz(rest)));
        if (other.what != last.what || other.mask != mask || other.site.line != last.site.line) {
            fault("divergent warp: %s (mask %08x), and %s (mask %08x)", describe(other).c_str(), other.mask, describe(last).c_str(), mask);
        }
    }
}

void complete(Collective what, Warp& warp, uint32_t mask) {
    switch (what) {
    case Collective::product: return issue_product(warp);
    case Collective::product_fence: return fence_products(warp);
    case Collective::product_commit: return commit_products(warp);
    case Collective::product_wait: return wait_for_products(warp);
    case Collective::sync: return;
    case Collective::shuffle:
    case Collective::shuffle_xor:
    case Collective::shuffle_up:
    case Collective::shuffle_down: return shuffle_lanes(what, warp, mask);
    case Collective::ballot:
    case Collective::any:
    case Collective::all: return vote_lanes(what, warp, mask);
    case Collective::ldmatrix: return ldmatrix_lanes(false, warp);
    case Collective::ldmatrix_trans: return ldmatrix_lanes(true, warp);
    case Collective::mma_f16: return mma_lanes<false>(warp);
    case Collective::mma_bf16: return mma_lanes<true>(warp);
    }
}

} // namespace

void collective(Collective what, uint32_t mask, Words& words, Site site) {
    Thread& thread = *static_cast<Thread*>(self);
    Warp& warp = *thread.warp;
    thread.what = what;
    thread.mask = mask;
    thread.words = &words;
    thread.site = site;
    thread.state = State::at_collective;
    const uint32_t bit = 1u << thread.lane;
    if ((mask & bit) == 0) {
        fault("%s: its mask %08x does not name it", describe(thread).c_str(), mask);
    }
    if (warp.lanes < 32 && mask >> warp.lanes != 0) {
        fault("%s: its mask %08x names lanes that do not exist; the warp has %u", describe(thread).c_str(), mask, warp.lanes);
    }
    if ((mask & warp.returned) != 0) {
        fault("%s: its mask %08x names lanes %08x, which have returned", describe(thread).c_str(), mask, mask & warp.returned);
    }
    // Only __syncwarp orders memory.
    void* object = nullptr;
    if (what == Collective::sync) {
        const uint32_t lowest = static_cast<uint32_t>(__builtin_ctz(mask));
        object = sync_object(warp, lowest, warp.syncs[lowest]);
        synchronise_release(object);
    }
    warp.at_collective |= bit;
    if ((mask & ~warp.at_collective) != 0) {
        wait_as(State::at_collective);
    } else {
        check_agreement(thread, mask);
        complete(what, warp, mask);
        if (what == Collective::sync) {
            warp.syncs[__builtin_ctz(mask)]++;
        }
        wake(warp, mask);
    }
    if (object != nullptr) {
        synchronise_acquire(object);
    }
}

} // namespace emulator
