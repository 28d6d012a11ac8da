// A block's shared memory: each tile a heap block of its own, so that a step over its end is one
// over the end of a heap block. And the copies that are on their way into it.

#include <cstdlib>
#include <cstring>
#include <deque>

#include "runtime.h"

#if defined(XATTN_SANITIZE_THREAD)
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace emulator {

namespace {

struct Tile {
    std::string name;
    uint64_t offset, bytes;
    unsigned char* allocation;
    unsigned char* start;
    // Asked for by the block that runs.
    bool used;
    // Of each 16 bytes: who wrote them by an ordinary access and has not fenced since, as its
    // number + 1.
    std::vector<uint16_t> writers;
};

std::vector<Tile> tiles;
// How the block that runs treats copies.
Async block_mode;

constexpr uint64_t ROW = 1024, GUARD = 128;
constexpr unsigned char POISON = 0xff, GUARDED = 0xa5;

// Housekeeping is no access of the kernel: under ThreadSanitizer it leaves no trace, and forgets
// what the memory was used for before.
struct Unseen {
#if defined(XATTN_SANITIZE_THREAD)
    Unseen() {
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    }
    ~Unseen() {
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    }
#else
    Unseen() {}
#endif
};

#if defined(XATTN_SANITIZE_ADDRESS) || defined(XATTN_SANITIZE_THREAD)
constexpr bool SANITIZED = true;
#else
constexpr bool SANITIZED = false;
#endif

// Addresses keep their remainder by 1024 bytes, so that banks, swizzles and alignment are those of
// the offset. Under a sanitizer the heap block ends where the tile ends; otherwise bands around it
// are checked when the block has run.
void allocate(Tile& tile) {
    const Unseen unseen;
    const uint64_t before = tile.offset % ROW + (SANITIZED ? 0 : ROW), after = SANITIZED ? 0 : GUARD;
    void* memory = nullptr;
    if (posix_memalign(&memory, ROW, before + tile.bytes + after) != 0) {
        fault("no memory for tile %s", tile.name.c_str());
    }
    tile.allocation = static_cast<unsigned char*>(memory);
    tile.start = tile.allocation + before;
}

void fill(const Tile& tile) {
    const Unseen unseen;
    memset(tile.start, POISON, tile.bytes);
    if (!SANITIZED) {
        memset(tile.start - GUARD, GUARDED, GUARD);
        memset(tile.start + tile.bytes, GUARDED, GUARD);
    }
}

bool intact(const unsigned char* band) {
    for (uint64_t i = 0; i < GUARD; i++) {
        if (band[i] != GUARDED) {
            return false;
        }
    }
    return true;
}

Tile* tile_around(const void* at, uint64_t bytes) {
    const unsigned char* address = static_cast<const unsigned char*>(at);
    for (Tile& tile : tiles) {
        if (tile.used && address >= tile.start && address + bytes <= tile.start + tile.bytes) {
            return &tile;
        }
    }
    return nullptr;
}

void check_aligned(const void* at, const char* what) {
    if (reinterpret_cast<uintptr_t>(at) % 16 != 0) {
        fault("%s: address %p is no multiple of 16", what, at);
    }
}

// One instruction of a warp, as far as its lanes have come to it.
struct Instruction {
    uint32_t present = 0;
    uint32_t addresses[32];
};
// Of each kind and warp: those that some lane has not made yet, and the number of the first.
struct Instructions {
    std::deque<Instruction> open;
    uint32_t first = 0;
};
Instructions instructions[2][32];

void count_instruction(Access kind, const Instruction& instruction) {
    for (uint32_t phase = 0; phase < 32; phase += 8) {
        uint32_t addresses[8], count = 0;
        for (uint32_t lane = phase; lane < phase + 8; lane++) {
            if ((instruction.present >> lane & 1) != 0) {
                addresses[count++] = instruction.addresses[lane];
            }
        }
        if (count > 0) {
            statistics->phases[kind]++;
            statistics->conflicts[kind] += bank_conflicts(addresses, count);
        }
    }
}

bool counting() {
    static const bool wanted = getenv("XATTN_EMULATOR_STATISTICS") != nullptr;
    return wanted;
}

// Lanes do not meet at these accesses: the n-th of each lane is taken for one instruction's.
void count_access(Access kind, const void* at) {
    if (!counting()) {
        return;
    }
    Thread& thread = *static_cast<Thread*>(self);
    Instructions& all = instructions[kind][thread.warp->number];
    const uint32_t place = thread.accesses[kind]++ - all.first;
    if (place >= all.open.size()) {
        all.open.resize(place + 1);
    }
    Instruction& instruction = all.open[place];
    instruction.present |= 1u << thread.lane;
    instruction.addresses[thread.lane] = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(at));
    while (!all.open.empty() && all.open.front().present == 0xffffffffu) {
        count_instruction(kind, all.open.front());
        all.open.pop_front();
        all.first++;
    }
}

void count_rest() {
    for (const Access kind : {COPY, WIDE}) {
        for (Instructions& all : instructions[kind]) {
            for (const Instruction& instruction : all.open) {
                count_instruction(kind, instruction);
            }
            all = Instructions();
        }
    }
}

} // namespace

uint32_t bank_conflicts(const uint32_t* addresses, uint32_t count) {
    uint32_t different[8] = {}, most = 1;
    for (uint32_t i = 0; i < count; i++) {
        bool seen = false;
        for (uint32_t j = 0; j < i; j++) {
            seen |= addresses[j] == addresses[i];
        }
        uint32_t& here = different[addresses[i] >> 4 & 7];
        here += !seen;
        most = here > most ? here : most;
    }
    return most - 1;
}

Async async_mode() {
    static const Async mode = [] {
        const char* text = getenv("XATTN_EMULATOR_ASYNC");
        const std::string name = text == nullptr ? "" : text;
        return name == "early" ? Async::early : name == "late" ? Async::late : Async::random;
    }();
    return mode;
}

void begin_block_memory() {
    const uint32_t draw = schedule.below(3);
    block_mode = async_mode() != Async::random ? async_mode() : draw == 0 ? Async::early : draw == 1 ? Async::late : Async::random;
    begin_products();
    begin_named_barriers();
    begin_transactions();
}

Async mode_of_block() {
    return block_mode;
}

void* tile_at(const char* name, uint64_t offset, uint64_t bytes, uint64_t alignment) {
    Tile* found = nullptr;
    for (Tile& tile : tiles) {
        if (tile.offset == offset && tile.bytes == bytes && tile.name == name) {
            found = &tile;
        }
    }
    if (found != nullptr && found->used) {
        return found->start;
    }
    if (offset + bytes > launch->shared_bytes) {
        fault("tile %s: bytes %llu to %llu, of %u in this launch", name, static_cast<unsigned long long>(offset),
              static_cast<unsigned long long>(offset + bytes), launch->shared_bytes);
    }
    if (offset % alignment != 0) {
        fault("tile %s: offset %llu is no multiple of %llu, the alignment of its elements", name, static_cast<unsigned long long>(offset),
              static_cast<unsigned long long>(alignment));
    }
    for (const Tile& other : tiles) {
        if (other.used && offset < other.offset + other.bytes && other.offset < offset + bytes) {
            fault("tile %s: bytes %llu to %llu overlap tile %s, bytes %llu to %llu", name, static_cast<unsigned long long>(offset),
                  static_cast<unsigned long long>(offset + bytes), other.name.c_str(), static_cast<unsigned long long>(other.offset),
                  static_cast<unsigned long long>(other.offset + other.bytes));
        }
    }
    if (found == nullptr) {
        tiles.push_back(Tile{name, offset, bytes, nullptr, nullptr, false, {}});
        found = &tiles.back();
        allocate(*found);
    }
    found->used = true;
    found->writers.assign(launch->kernel->proxies != 0 ? (bytes + 15) / 16 : 0, 0);
    fill(*found);
    return found->start;
}

void end_block_memory() {
    if (counting()) {
        count_rest();
    }
    for (Tile& tile : tiles) {
        if (!SANITIZED && tile.used && !(intact(tile.start - GUARD) && intact(tile.start + tile.bytes))) {
            block_fault("something was written outside of tile " + tile.name);
        }
        tile.used = false;
    }
#if defined(XATTN_SANITIZE_THREAD)
    // The next block is not ordered behind this one, and would seem to race with it.
    release_tiles();
#endif
}

void release_tiles() {
    const Unseen unseen;
    for (const Tile& tile : tiles) {
        free(tile.allocation);
    }
    tiles.clear();
}

void check_copy(void* shared, const void* global) {
    check_aligned(shared, "copy_async_16 to shared memory");
    check_aligned(global, "copy_async_16 from global memory");
    if (tile_around(shared, 16) == nullptr) {
        fault("copy_async_16: its target lies in no tile");
    }
    count_access(COPY, shared);
}

void check_row(const void* row) {
    check_aligned(row, "ldmatrix");
    if (tile_around(row, 16) == nullptr) {
        fault("ldmatrix: the row lies in no tile");
    }
}

void check_wide(const void* at, const char* what) {
    check_aligned(at, what);
    if (counting() && tile_around(at, 16) != nullptr) {
        count_access(WIDE, at);
    }
}

void note_written(const void* at) {
    if (launch->kernel->proxies == 0) {
        return;
    }
    Tile* tile = tile_around(at, 16);
    if (tile != nullptr) {
        Thread& thread = *static_cast<Thread*>(self);
        tile->writers[(static_cast<const unsigned char*>(at) - tile->start) / 16] = static_cast<uint16_t>(thread.warp->number * 32 + thread.lane + 1);
        thread.written.push_back(at);
    }
}

void proxy_fence() {
    Thread& thread = *static_cast<Thread*>(self);
    const uint16_t own = static_cast<uint16_t>(thread.warp->number * 32 + thread.lane + 1);
    for (const void* at : thread.written) {
        Tile* tile = tile_around(at, 16);
        uint16_t& writer = tile->writers[(static_cast<const unsigned char*>(at) - tile->start) / 16];
        writer = writer == own ? 0 : writer;
    }
    thread.written.clear();
}

void check_proxy(const void* at, uint64_t bytes, const char* what) {
    const Tile* tile = tile_around(at, bytes);
    if (tile == nullptr) {
        fault("%s: %llu bytes at %p lie in no tile", what, static_cast<unsigned long long>(bytes), at);
    }
    const uint64_t first = static_cast<uint64_t>(static_cast<const unsigned char*>(at) - tile->start);
    for (uint64_t piece = first / 16; piece <= (first + bytes - 1) / 16; piece++) {
        if (tile->writers[piece] != 0) {
            fault("%s: byte %llu of tile %s was written by thread %u, which made no async_proxy_fence since", what,
                  static_cast<unsigned long long>(piece * 16), tile->name.c_str(), tile->writers[piece] - 1u);
        }
    }
}

bool defer_copy(const Copy& copy) {
    if (block_mode == Async::early || (block_mode == Async::random && schedule.one_in(2))) {
        return false;
    }
    Thread& thread = *static_cast<Thread*>(self);
    thread.copies.push_back(copy);
    thread.copies.back().group = thread.closed_groups;
    thread.pending_copies++;
    return true;
}

void close_group() {
    static_cast<Thread*>(self)->closed_groups++;
}

// The oldest group goes first; within a group, chance chooses.
bool take_due(uint32_t open, Copy& copy) {
    Thread& thread = *static_cast<Thread*>(self);
    std::vector<Copy>& copies = thread.copies;
    const uint32_t closed = thread.closed_groups;
    uint32_t due = 0;
    while (due < copies.size() && copies[due].group < closed && copies[due].group + open < closed) {
        due++;
    }
    if (due == 0) {
        return false;
    }
    const uint32_t chosen = schedule.below(due);
    copy = copies[chosen];
    copies.erase(copies.begin() + chosen);
    thread.pending_copies--;
    return true;
}

bool take_lucky(Copy& copy) {
    Thread& thread = *static_cast<Thread*>(self);
    if (block_mode != Async::random || thread.copies.empty() || !schedule.one_in(4)) {
        return false;
    }
    const uint32_t chosen = schedule.below(static_cast<uint32_t>(thread.copies.size()));
    copy = thread.copies[chosen];
    thread.copies.erase(thread.copies.begin() + chosen);
    thread.pending_copies--;
    return true;
}

} // namespace emulator
