// Streams, events and graphs: work is kept until something forces it, or chance does, so that a
// missing synchronisation shows.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cuda_api.h"

namespace emulator {

// All entry points of the stand-ins hold it: the emulator has one state per process.
std::recursive_mutex& lock();
using Guard = std::lock_guard<std::recursive_mutex>;

struct Operation {
    std::function<void()> run;
    std::vector<std::shared_ptr<Operation>> after;
    bool done = false;
};
using Point = std::shared_ptr<Operation>;

// Whom a capture forbids calls such as cuMemAlloc: the modes "global", "thread local" and "relaxed"
// of the driver.
enum class Forbids : int { everybody = 0, its_thread = 1, nobody = 2 };

struct Graph {
    std::vector<std::function<void()>> nodes;
    // Streams that record into it, the first of which began it.
    std::vector<struct Stream*> streams;
    bool invalidated = false;
    Forbids forbids = Forbids::everybody;
    std::thread::id thread;
};

struct Stream {
    // Not ordered with the null stream.
    bool independent = false;
    Point last;
    std::shared_ptr<Graph> capture;
};

struct Event {
    Point point;
    std::weak_ptr<Graph> capture;
};

// Null for a handle that is none.
Stream* stream_of(CUstream handle);
Event* event_of(CUevent handle);

// Puts work on a stream, or into the graph that the stream records. `work` runs later, under the
// lock, perhaps several times (a graph's). The stand-ins of other libraries use it too.
CUresult enqueue(CUstream stream, std::function<void()> work);

// Runs what is pending on a stream, in an event's past, or everywhere.
void finish(const Point& point);
void finish_all();

// The first fault stays: every later call answers it, as a broken context does.
CUresult sticky_error();
void break_context(CUresult error);
void mend_context();

// True, and the captures spoilt, where a call such as cuMemAlloc is not allowed to this thread
// while streams record.
bool capture_forbids();

} // namespace emulator
