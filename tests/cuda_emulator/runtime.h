// The emulator's own side: blocks, warps and threads of the kernel that runs. Everything here is
// used under the driver's lock, by one OS thread at a time.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "emulator.h"

namespace emulator {

struct Warp;

enum class State { runnable, at_collective, at_barrier, at_named_barrier, at_transaction, returned };

struct Fiber {
    void* stack_pointer = nullptr;
    // What the sanitizers know this stack by.
    void* sanitizer = nullptr;
    void* stack_bottom = nullptr;
    size_t stack_bytes = 0;
};

struct Thread : ThreadView {
    Fiber fiber;
    Warp* warp = nullptr;
    State state = State::runnable;
    Site site{};
    Collective what{};
    uint32_t mask = 0;
    Words* words = nullptr;
    uint32_t closed_groups = 0;
    std::vector<Copy> copies;
    // How many 16-byte accesses to shared memory this thread made, of each kind: lanes' accesses of
    // equal number are one instruction's.
    uint32_t accesses[2] = {};
    // What it wrote to shared memory since its last proxy fence, where that matters.
    std::vector<const void*> written;
};

struct Warp {
    uint32_t number = 0;
    uint32_t lanes = 0;
    // Bit sets of lanes.
    uint32_t runnable = 0, at_collective = 0, returned = 0;
    // How many synchronisations each lane was the lowest of: ThreadSanitizer needs two objects,
    // used in turn.
    uint32_t syncs[32] = {};
};

// xorshift64*: fast, seeded, the same everywhere.
struct Random {
    uint64_t state = 1;
    uint64_t next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return state * 0x2545f4914f6cdd1dull >> 16;
    }
    uint32_t below(uint32_t bound) {
        return static_cast<uint32_t>(next() % bound);
    }
    bool one_in(uint32_t n) {
        return below(n) == 0;
    }
};

// Parameters of a kernel begin on multiples of their alignment: a tensor map's is 128 bytes.
struct alignas(128) Parameters {
    unsigned char bytes[128];
};

struct Launch {
    const Kernel* kernel;
    std::string name;
    Index grid, block;
    uint32_t shared_bytes;
    std::vector<Parameters> params, operands, maps;
};

struct Statistics {
    uint64_t launches = 0, blocks = 0;
    // Phases of eight lanes with 16 bytes each, and the cycles that bank conflicts added to them:
    // ldmatrix, copy_async_16, wide_load/store.
    uint64_t phases[3] = {}, conflicts[3] = {};
};
enum Access : uint32_t { COPY = 0, WIDE = 1, LDMATRIX = 2 };

// What is about to run, or runs.
extern const Launch* launch;
extern Statistics* statistics;
extern Random schedule;

// Runs all blocks of a launch, one after the other. False after a fault, which was printed.
bool run(const Launch& what);

// Prints what went wrong, where, and the seed; gives up the launch and does not return.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));
// The same for what shows only when a block has run.
void block_fault(const std::string& what);
// Outside of kernels: prints, and returns.
void complain(const char* format, ...) __attribute__((format(printf, 1, 2)));
uint64_t seed();

// schedule.cpp: lets another thread run until this one may go on.
void wait_as(State state);
void wake(Warp& warp, uint32_t lanes);
// Lets a thread that waits elsewhere run again.
void make_runnable(Thread& thread);
// Chance chooses who goes on.
void let_others_run();
uint32_t threads_in_block();
Thread& thread_of_block(uint32_t number);
Thread& lane_of(const Warp& warp, uint32_t lane);
std::string describe(const Thread& thread);
// What ThreadSanitizer orders a warp's synchronisations by.
void* sync_object(const Warp& warp, uint32_t lowest, uint32_t turn);

// shared.cpp
void begin_block_memory();
void end_block_memory();
void release_tiles();
// More cycles than one that eight lanes with 16 bytes each take: each of the 8 groups of 4 banks
// serves one address at a time.
uint32_t bank_conflicts(const uint32_t* addresses, uint32_t count);
enum class Async { early, late, random };
Async async_mode();
// How the block that runs treats what is asynchronous.
Async mode_of_block();
// Shared memory that lies in a tile, and was not written without a fence: `what` reads or writes it
// in the asynchronous proxy.
void check_proxy(const void* at, uint64_t bytes, const char* what);

// product.cpp: products of a warpgroup, a warp at a time.
void begin_products();
void end_products();
void issue_product(Warp& warp);
void fence_products(Warp& warp);
void commit_products(Warp& warp);
void wait_for_products(Warp& warp);
// Lets some products happen, if chance wants it so.
void products_pass(const Warp& warp);
float half_value(Half type, uint32_t bits);
// Where 16 bytes lie that would lie at `address` without a swizzle of so many bytes; 0: there.
unsigned char* swizzle(const void* address, uint32_t span);

// named_barrier.cpp
void begin_named_barriers();

// transaction.cpp
void begin_transactions();
void end_transactions();
// Lets a tensor copy happen if chance wants it so, or, where nobody can go on, in any case. False
// if none is on its way.
bool copies_pass(bool must);

// fiber.cpp
void prepare(Fiber& fiber, uint32_t number, void (*entry)());
void change_to(Fiber& from, Fiber& to);
void fiber_entered();
void discard(Fiber& fiber);
void synchronise_release(void* object);
void synchronise_acquire(void* object);

} // namespace emulator
