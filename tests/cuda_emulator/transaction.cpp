// Barriers that count bytes (mbarrier), and the tensor copies that complete on them. A copy happens
// at issue, when nobody can go on without it, or when chance says; until then its target holds NaN.

#include <cstring>
#include <map>

#include "memory.h"
#include "runtime.h"
#include "tensor_map.h"

namespace emulator {

namespace {

struct Barrier {
    uint32_t arrivals, missing;
    // Bytes expected and not yet copied.
    int64_t bytes = 0;
    uint32_t phase = 0;
    // Made by this thread, which has made no barrier_init_fence since.
    const Thread* unfenced;
    std::vector<Thread*> waiting;
};

struct TensorCopy {
    TensorMap map;
    unsigned char* to;
    int64_t x, y;
    void* barrier;
};

std::map<const void*, Barrier> barriers;
std::vector<TensorCopy> copies;

Barrier& barrier_at(const void* at, const char* what) {
    const auto found = barriers.find(at);
    if (found == barriers.end()) {
        fault("%s: nobody made a barrier at %p", what, at);
    }
    return found->second;
}

// Ends the phase if nothing is missing. Says whether somebody waited for that.
bool settle(Barrier& barrier, const void* at) {
    if (barrier.missing > 0 || barrier.bytes != 0) {
        return false;
    }
    barrier.phase++;
    barrier.missing = barrier.arrivals;
    synchronise_release(const_cast<void*>(at));
    const bool awaited = !barrier.waiting.empty();
    for (Thread* thread : barrier.waiting) {
        make_runnable(*thread);
    }
    barrier.waiting.clear();
    return awaited;
}

uint32_t box_bytes(const TensorMap& map) {
    return map.box[0] * map.box[1] * map.element_bytes;
}

void perform(const TensorCopy& copy) {
    const TensorMap& map = copy.map;
    const uint32_t row_bytes = map.box[0] * map.element_bytes;
    for (uint32_t row = 0; row < map.box[1]; row++) {
        for (uint32_t piece = 0; piece < row_bytes; piece += 16) {
            alignas(16) unsigned char bytes[16] = {};
            for (uint32_t i = 0; i < 16; i += map.element_bytes) {
                const int64_t x = copy.x + (piece + i) / map.element_bytes, y = copy.y + row;
                if (x < 0 || y < 0 || static_cast<uint64_t>(x) >= map.extent[0] || static_cast<uint64_t>(y) >= map.extent[1]) {
                    continue;
                }
                const void* from = reinterpret_cast<const void*>(map.address + static_cast<uint64_t>(y) * map.stride +
                                                                static_cast<uint64_t>(x) * map.element_bytes);
                if (!holds(from, map.element_bytes)) {
                    fault("tensor_copy: element (%lld, %lld) lies in no allocation", static_cast<long long>(x), static_cast<long long>(y));
                }
                memcpy(bytes + i, from, map.element_bytes);
            }
            memcpy(swizzle(copy.to + row * row_bytes + piece, map.swizzle), bytes, 16);
        }
    }
    Barrier& barrier = barrier_at(copy.barrier, "tensor_copy");
    barrier.bytes -= box_bytes(map);
    settle(barrier, copy.barrier);
}

} // namespace

void begin_transactions() {
    barriers.clear();
    copies.clear();
}

void end_transactions() {
    if (!copies.empty()) {
        block_fault(std::to_string(copies.size()) + " tensor copies are on their way when their block ends");
    }
}

bool copies_pass(bool must) {
    if (copies.empty()) {
        return false;
    }
    if (must || (mode_of_block() == Async::random && schedule.one_in(8))) {
        const uint32_t chosen = schedule.below(static_cast<uint32_t>(copies.size()));
        const TensorCopy copy = copies[chosen];
        copies.erase(copies.begin() + chosen);
        perform(copy);
    }
    return true;
}

void transaction_init(void* barrier, uint32_t arrivals) {
    if (reinterpret_cast<uintptr_t>(barrier) % 8 != 0 || arrivals == 0 || arrivals >= 1u << 20) {
        fault("barrier_init: %u arrivals at %p: 1 to 2^20 - 1, on a multiple of 8 bytes", arrivals, barrier);
    }
    check_proxy(barrier, 8, "barrier_init");
    if (!barriers.emplace(barrier, Barrier{arrivals, arrivals, 0, 0, static_cast<Thread*>(self), {}}).second) {
        fault("barrier_init: there is a barrier at %p already", barrier);
    }
}

void transaction_fence() {
    for (auto& [at, barrier] : barriers) {
        barrier.unfenced = barrier.unfenced == self ? nullptr : barrier.unfenced;
    }
}

void transaction_arrive(void* at, uint32_t bytes, Site site) {
    static_cast<Thread*>(self)->site = site;
    Barrier& barrier = barrier_at(at, bytes == 0 ? "barrier_arrive" : "barrier_expect");
    if (barrier.missing == 0) {
        fault("barrier at %p: more than its %u arrivals before its bytes have come", at, barrier.arrivals);
    }
    synchronise_release(at);
    barrier.bytes += bytes;
    barrier.missing--;
    // Whoever waited may be faster than this thread.
    if (settle(barrier, at)) {
        let_others_run();
    }
}

void transaction_wait(void* at, uint32_t parity, Site site) {
    Thread& thread = *static_cast<Thread*>(self);
    thread.site = site;
    Barrier& barrier = barrier_at(at, "barrier_wait");
    if (parity > 1) {
        fault("barrier_wait: parity %u", parity);
    }
    // The phase of that parity that is running, or the one before the running one, which has ended.
    if (barrier.phase % 2 == parity) {
        barrier.waiting.push_back(&thread);
        wait_as(State::at_transaction);
    }
    synchronise_acquire(at);
}

void tensor_copy(void* to, const void* map, int32_t x, int32_t y, void* barrier, Site site) {
    static_cast<Thread*>(self)->site = site;
    TensorCopy copy{{}, static_cast<unsigned char*>(to), x, y, barrier};
    memcpy(&copy.map, map, sizeof copy.map);
    if (copy.map.magic != TENSOR_MAP || reinterpret_cast<uintptr_t>(map) % 64 != 0) {
        fault("tensor_copy: no tensor map on a multiple of 64 bytes at %p", map);
    }
    const uint32_t row_bytes = copy.map.box[0] * copy.map.element_bytes;
    if (copy.map.swizzle != 0 && copy.map.swizzle != row_bytes) {
        fault("tensor_copy: not modelled: rows of %u bytes with a swizzle of %u", row_bytes, copy.map.swizzle);
    }
    // 128 is what the instruction wants; a pattern that begins elsewhere is none that wgmma reads.
    const uint32_t alignment = copy.map.swizzle * 8 > 128 ? copy.map.swizzle * 8 : 128;
    if (reinterpret_cast<uintptr_t>(to) % alignment != 0) {
        fault("tensor_copy: its target does not lie on a multiple of %u bytes", alignment);
    }
    check_proxy(to, box_bytes(copy.map), "tensor_copy");
    if (barrier_at(barrier, "tensor_copy").unfenced != nullptr) {
        fault("tensor_copy: no barrier_init_fence since its barrier was made");
    }
    if (mode_of_block() == Async::early) {
        perform(copy);
        return;
    }
    memset(to, 0xff, box_bytes(copy.map));
    copies.push_back(copy);
}

} // namespace emulator
