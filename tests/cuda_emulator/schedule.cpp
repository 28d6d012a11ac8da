// Which thread runs. A warp that was chosen runs until it blocks (mostly), so that it gets as far
// ahead of the others as barriers allow; then chance chooses another. Within a warp each lane runs
// until it waits, from a lane and in a direction that chance chooses as well. Blocks run one after
// the other, in an order of chance.

#include <signal.h>
#include <ucontext.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>

#include "runtime.h"

extern "C" char emulator_resume[];

namespace emulator {

ThreadView* self;
Index block_index, block_size, grid_size;
const Launch* launch;
Statistics* statistics;
Random schedule;

namespace {

using Threads = std::vector<std::unique_ptr<Thread>>;
#if defined(XATTN_SANITIZE_THREAD)
// Blocks use them in turn: ThreadSanitizer takes what one fiber does in two blocks for ordered, and
// would not see them race.
Threads sets[2];
#else
Threads sets[1];
#endif
uint64_t blocks_run;
constexpr uint32_t SETS = sizeof sets / sizeof sets[0], LARGEST_BLOCK = 1024;
Threads* running_set = sets;

Thread& thread_at(uint32_t number) {
    return *(*running_set)[number];
}

Warp warps[32];
uint32_t thread_count, warp_count;
// Warps with a runnable lane.
uint32_t ready;
Warp* current;
Fiber scheduler;
uint32_t arrived, returned;
Site barrier_site;
uint32_t barrier_first;
// Objects that ThreadSanitizer orders by: the start of a launch, and two per barrier and block,
// used in turn: with one, a thread that wakes late would be ordered behind what others did before
// their next barrier. Blocks share them only after 256 others.
char launch_started, block_ended, barrier_objects[512], sync_objects[256][32][32][2];
uint64_t barriers;
// 0: a warp runs until it blocks; n: once in n collectives chance takes it from it.
uint32_t interruption;
bool failed, running;
uint64_t launches;

uint32_t lanes_mask(uint32_t count) {
    return count == 32 ? 0xffffffffu : (1u << count) - 1;
}

uint32_t nth_bit(uint32_t bits, uint32_t n) {
    while (n-- > 0) {
        bits &= bits - 1;
    }
    return static_cast<uint32_t>(__builtin_ctz(bits));
}

[[noreturn]] void deadlock() {
    std::string waiting;
    uint32_t shown = 0;
    for (uint32_t i = 0; i < thread_count && shown < 4; i++) {
        // One for each place: the first thread of the block, and those at other places.
        if (thread_at(i).state != State::returned && (shown == 0 || thread_at(i).site.line != thread_at(i - 1).site.line)) {
            waiting += (shown++ == 0 ? "" : "; ") + describe(thread_at(i));
        }
    }
    fault("deadlock: nobody can go on. %s", waiting.c_str());
}

Thread& choose() {
    while (ready == 0) {
        if (!copies_pass(true)) {
            deadlock();
        }
    }
    if (current == nullptr || current->runnable == 0) {
        current = &warps[nth_bit(ready, schedule.below(static_cast<uint32_t>(__builtin_popcount(ready))))];
    }
    const uint32_t draw = static_cast<uint32_t>(schedule.next()), start = draw & 31;
    const uint32_t turned = start == 0 ? current->runnable : current->runnable >> start | current->runnable << (32 - start);
    const uint32_t bit = draw & 32 ? static_cast<uint32_t>(__builtin_ctz(turned)) : 31 - static_cast<uint32_t>(__builtin_clz(turned));
    return lane_of(*current, (bit + start) & 31);
}

void go_to(Thread& to) {
    Thread& from = *static_cast<Thread*>(self);
    if (&from != &to) {
        self = &to;
        change_to(from.fiber, to.fiber);
    }
}

void thread_main() {
    fiber_entered();
    synchronise_acquire(&launch_started);
    launch->kernel->body(launch->params.data(), launch->operands.data(), launch->maps.data());
    synchronise_release(&block_ended);
    Thread& thread = *static_cast<Thread*>(self);
    time_passes();
    Warp& warp = *thread.warp;
    const uint32_t bit = 1u << thread.lane;
    if (arrived > 0) {
        fault("divergent barrier: this thread returned while %u others wait at %s:%d", arrived, barrier_site.file, barrier_site.line);
    }
    for (uint32_t lane = 0; lane < warp.lanes; lane++) {
        const Thread& other = lane_of(warp, lane);
        if (other.state == State::at_collective && (other.mask & bit) != 0) {
            fault("lane %u returned, and is named by the mask %08x of %s", thread.lane, other.mask, describe(other).c_str());
        }
    }
    warp.returned |= bit;
    returned++;
    thread.state = State::returned;
    warp.runnable &= ~bit;
    if (warp.runnable == 0) {
        ready &= ~(1u << warp.number);
    }
    if (returned == thread_count) {
        change_to(thread.fiber, scheduler);
    }
    go_to(choose());
    abort();
}

#if !defined(XATTN_SANITIZE_ADDRESS) && !defined(XATTN_SANITIZE_THREAD)
// A pointer that leads nowhere ends the kernel like any other fault.
void on_signal(int number, siginfo_t* info, void* context) {
    if (!running) {
        signal(number, SIG_DFL);
        return;
    }
    complain("%s at address %p", number == SIGFPE ? "arithmetic fault" : "access to memory that does not exist", info->si_addr);
    failed = true;
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    registers[REG_RSP] = reinterpret_cast<greg_t>(scheduler.stack_pointer);
    registers[REG_RIP] = reinterpret_cast<greg_t>(emulator_resume);
}

struct Signals {
    static constexpr int NUMBERS[3] = {SIGSEGV, SIGBUS, SIGFPE};
    struct sigaction before[3];
    // Fibers' stacks may be what is broken.
    std::vector<char> memory = std::vector<char>(64 * 1024);
    stack_t stack_before;
    Signals() {
        stack_t stack{};
        stack.ss_sp = memory.data();
        stack.ss_size = memory.size();
        sigaltstack(&stack, &stack_before);
        struct sigaction action {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (int i = 0; i < 3; i++) {
            sigaction(NUMBERS[i], &action, &before[i]);
        }
    }
    ~Signals() {
        for (int i = 0; i < 3; i++) {
            sigaction(NUMBERS[i], &before[i], nullptr);
        }
        sigaltstack(&stack_before, nullptr);
    }
};
#else
// The sanitizer has its own, and says more.
struct Signals {
    Signals() {}
};
#endif

void begin_block(uint64_t number) {
    block_index = {static_cast<uint32_t>(number % grid_size.x), static_cast<uint32_t>(number / grid_size.x % grid_size.y),
                   static_cast<uint32_t>(number / grid_size.x / grid_size.y)};
    ready = lanes_mask(warp_count);
    arrived = returned = 0;
    current = nullptr;
    running_set = &sets[++blocks_run % SETS];
    for (uint32_t w = 0; w < warp_count; w++) {
        const uint32_t lanes = std::min(32u, thread_count - 32 * w);
        warps[w] = Warp{w, lanes, lanes_mask(lanes)};
    }
    while (running_set->size() < thread_count) {
        running_set->push_back(std::make_unique<Thread>());
    }
    for (uint32_t i = 0; i < thread_count; i++) {
        Thread& thread = thread_at(i);
        thread.index = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
        thread.lane = i % 32;
        thread.warp = &warps[i / 32];
        thread.state = State::runnable;
        thread.closed_groups = 0;
        thread.pending_copies = 0;
        thread.copies.clear();
        thread.accesses[COPY] = thread.accesses[WIDE] = 0;
        thread.written.clear();
        prepare(thread.fiber, static_cast<uint32_t>(blocks_run % SETS) * LARGEST_BLOCK + i, thread_main);
    }
    begin_block_memory();
}

void print(const char* format, va_list arguments) {
    fprintf(stderr, "emulator: ");
    if (launch != nullptr) {
        fprintf(stderr, "kernel %s", launch->name.c_str());
        if (running && self != nullptr) {
            const Index& t = self->index;
            fprintf(stderr, ", block (%u, %u, %u), thread (%u, %u, %u)", block_index.x, block_index.y, block_index.z, t.x, t.y, t.z);
        }
        fprintf(stderr, ": ");
    }
    vfprintf(stderr, format, arguments);
    const char* modes[] = {"early", "late", "random"};
    fprintf(stderr, "; XATTN_EMULATOR_SEED=%llu XATTN_EMULATOR_ASYNC=%s\n", static_cast<unsigned long long>(seed()),
            modes[static_cast<int>(async_mode())]);
}

} // namespace

uint64_t seed() {
    static const uint64_t value = [] {
        const char* text = getenv("XATTN_EMULATOR_SEED");
        return text != nullptr && *text != 0 ? strtoull(text, nullptr, 10) : static_cast<uint64_t>(std::random_device()());
    }();
    return value;
}

Thread& lane_of(const Warp& warp, uint32_t lane) {
    return thread_at(warp.number * 32 + lane);
}

std::string describe(const Thread& thread) {
    static const char* const names[] = {"syncwarp", "shfl",   "shfl_xor", "shfl_up",  "shfl_down",      "ballot",
                                        "any",      "all",    "ldmatrix", "ldmatrix", "mma",            "mma",
                                        "wgmma",    "wgmma_fence", "wgmma_commit", "wgmma_wait"};
    char text[200];
    const char* what = thread.state == State::at_barrier         ? "the barrier"
                       : thread.state == State::at_named_barrier ? "a named barrier"
                       : thread.state == State::at_transaction   ? "barrier_wait"
                                                                 : names[static_cast<int>(thread.what)];
    snprintf(text, sizeof text, "thread (%u, %u, %u), lane %u, which waits in %s at %s:%d", thread.index.x, thread.index.y, thread.index.z,
             thread.lane, what, thread.site.file, thread.site.line);
    return text;
}

void complain(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print(format, arguments);
    va_end(arguments);
}

void fault(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print(format, arguments);
    va_end(arguments);
    failed = true;
    change_to(static_cast<Thread*>(self)->fiber, scheduler);
    abort();
}

void block_fault(const std::string& what) {
    const Index& b = block_index;
    complain("block (%u, %u, %u): %s", b.x, b.y, b.z, what.c_str());
    failed = true;
}

void wait_as(State state) {
    Thread& thread = *static_cast<Thread*>(self);
    thread.state = state;
    Warp& warp = *thread.warp;
    warp.runnable &= ~(1u << thread.lane);
    if (warp.runnable == 0) {
        ready &= ~(1u << warp.number);
    }
    // After it: what happens now may wake this thread.
    products_pass(warp);
    copies_pass(false);
    go_to(choose());
}

void wake(Warp& warp, uint32_t lanes) {
    warp.at_collective &= ~lanes;
    warp.runnable |= lanes;
    ready |= 1u << warp.number;
    for (uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
        lane_of(warp, static_cast<uint32_t>(__builtin_ctz(rest))).state = State::runnable;
    }
    if (interruption != 0 && schedule.one_in(interruption)) {
        current = &warps[nth_bit(ready, schedule.below(static_cast<uint32_t>(__builtin_popcount(ready))))];
    }
    go_to(choose());
}

void make_runnable(Thread& thread) {
    thread.state = State::runnable;
    thread.warp->runnable |= 1u << thread.lane;
    ready |= 1u << thread.warp->number;
}

void let_others_run() {
    current = nullptr;
    go_to(choose());
}

uint32_t threads_in_block() {
    return thread_count;
}

Thread& thread_of_block(uint32_t number) {
    return thread_at(number);
}

void* sync_object(const Warp& warp, uint32_t lowest, uint32_t turn) {
    return &sync_objects[blocks_run % 256][warp.number][lowest][turn & 1];
}

void barrier(Site site) {
    Thread& thread = *static_cast<Thread*>(self);
    thread.site = site;
    if (returned > 0) {
        fault("divergent barrier: %u threads have returned and never reach %s:%d", returned, site.file, site.line);
    }
    if (arrived == 0) {
        barrier_site = site;
        barrier_first = thread.warp->number * 32 + thread.lane;
    } else if (barrier_site.line != site.line || strcmp(barrier_site.file, site.file) != 0) {
        thread.state = State::at_barrier;
        fault("divergent barrier: %s, and %s", describe(thread_at(barrier_first)).c_str(), describe(thread).c_str());
    }
    char* const object = &barrier_objects[blocks_run % 256 * 2 + barriers % 2];
    synchronise_release(object);
    if (++arrived < thread_count) {
        wait_as(State::at_barrier);
    } else {
        arrived = 0;
        barriers++;
        for (uint32_t i = 0; i < thread_count; i++) {
            thread_at(i).state = State::runnable;
        }
        for (uint32_t w = 0; w < warp_count; w++) {
            warps[w].runnable = lanes_mask(warps[w].lanes);
        }
        ready = lanes_mask(warp_count);
        current = nullptr;
        go_to(choose());
    }
    synchronise_acquire(object);
}

bool run(const Launch& what) {
    launch = &what;
    grid_size = what.grid;
    block_size = what.block;
    thread_count = block_size.x * block_size.y * block_size.z;
    warp_count = (thread_count + 31) / 32;
    schedule.state = (seed() + ++launches) * 0x9e3779b97f4a7c15ull | 1;
    schedule.next();
    const uint32_t interruptions[] = {0, 64, 8};
    interruption = interruptions[schedule.below(3)];
    const uint64_t blocks = static_cast<uint64_t>(grid_size.x) * grid_size.y * grid_size.z;
    uint64_t number = schedule.next() % blocks, step = 1 + schedule.next() % blocks;
    while (std::gcd(step, blocks) != 1) {
        step++;
    }
    statistics->launches++;
    statistics->blocks += blocks;
    failed = false;
    const Signals signals;
    synchronise_release(&launch_started);
    for (uint64_t i = 0; i < blocks && !failed; i++, number = (number + step) % blocks) {
        scheduler = Fiber();
        begin_block(number);
        running = true;
        self = &choose();
        change_to(scheduler, static_cast<Thread*>(self)->fiber);
        running = false;
        if (!failed) {
            end_products();
            end_transactions();
        }
        end_block_memory();
        for (uint32_t t = 0; t < thread_count && failed; t++) {
            discard(thread_at(t).fiber);
        }
    }
    synchronise_acquire(&block_ended);
    release_tiles();
    launch = nullptr;
    self = nullptr;
    return !failed;
}

} // namespace emulator
