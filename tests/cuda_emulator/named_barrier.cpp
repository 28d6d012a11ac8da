// Named barriers: bar.sync with a number and a count of threads, whole warps.

#include <cstring>

#include "runtime.h"

namespace emulator {

namespace {

struct Named {
    std::vector<Thread*> waiting;
    uint32_t threads = 0;
    // How often it was passed: ThreadSanitizer needs two objects, used in turn.
    uint32_t turns = 0;
};
constexpr uint32_t COUNT = 16;
Named barriers[COUNT];
char objects[COUNT][2];

} // namespace

void begin_named_barriers() {
    for (Named& barrier : barriers) {
        barrier.waiting.clear();
        barrier.threads = 0;
    }
}

void named_barrier(uint32_t id, uint32_t threads, Site site) {
    if (id == 0 || id >= COUNT) {
        fault("named barrier %u: 1 to %u there are; 0 is __syncthreads", id, COUNT - 1);
    }
    if (threads == 0 || threads % 32 != 0 || threads > threads_in_block()) {
        fault("named barrier %u of %u threads: whole warps of %u threads it must be", id, threads, threads_in_block());
    }
    Named& barrier = barriers[id];
    if (!barrier.waiting.empty() && barrier.threads != threads) {
        fault("named barrier %u: of %u threads here, of %u for %s", id, threads, barrier.threads, describe(*barrier.waiting[0]).c_str());
    }
    Thread& thread = *static_cast<Thread*>(self);
    thread.site = site;
    void* object = &objects[id][barrier.turns % 2];
    synchronise_release(object);
    barrier.threads = threads;
    barrier.waiting.push_back(&thread);
    if (barrier.waiting.size() < threads) {
        wait_as(State::at_named_barrier);
    } else {
        barrier.turns++;
        const std::vector<Thread*> all = std::move(barrier.waiting);
        barrier.waiting.clear();
        for (Thread* other : all) {
            make_runnable(*other);
        }
        let_others_run();
    }
    synchronise_acquire(object);
}

} // namespace emulator
