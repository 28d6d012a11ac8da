// The order of work: each operation names those that come before it. Running one runs these first;
// which pending one runs next is chance.

#include "device.h"
#include "stream.h"

#include <algorithm>

#include "runtime.h"

namespace emulator {

namespace {

std::vector<Point> pending;
std::vector<std::unique_ptr<Stream>> streams;
std::vector<std::unique_ptr<Event>> events;
Stream null_stream;
// One per host thread, kept when the thread ends: its work may be pending.
std::vector<std::unique_ptr<Stream>> thread_streams;
thread_local Stream* thread_stream;
CUresult broken = CUDA_SUCCESS;
// Chance of its own, so that what kernels draw does not depend on who asked for what when.
Random chance;

Random& dice() {
    static const bool seeded = [] {
        chance.state = seed() * 0x9e3779b97f4a7c15ull | 1;
        return true;
    }();
    (void)seeded;
    return chance;
}

void execute(const Point& operation) {
    if (broken == CUDA_SUCCESS && operation->run) {
        operation->run();
    }
    operation->done = true;
    operation->run = nullptr;
    operation->after.clear();
}

// Without recursion: chains are as long as the caller's patience.
void run_with_past(const Point& last) {
    std::vector<Point> stack{last};
    while (!stack.empty()) {
        const Point top = stack.back();
        if (top->done) {
            stack.pop_back();
            continue;
        }
        bool ready = true;
        for (const Point& before : top->after) {
            if (!before->done) {
                stack.push_back(before);
                ready = false;
            }
        }
        if (ready) {
            execute(top);
            stack.pop_back();
        }
    }
}

void forget_done() {
    pending.erase(std::remove_if(pending.begin(), pending.end(), [](const Point& operation) { return operation->done; }), pending.end());
}

// What an operation of this stream must wait for: the one before it, and, between the null stream
// and those that are ordered with it, theirs.
std::vector<Point> predecessors(const Stream& stream) {
    std::vector<Point> after;
    const auto add = [&](const Stream& other) {
        if (other.last != nullptr && !other.last->done) {
            after.push_back(other.last);
        }
    };
    add(stream);
    if (&stream == &null_stream) {
        for (const auto& other : streams) {
            if (other != nullptr && !other->independent) {
                add(*other);
            }
        }
        for (const auto& other : thread_streams) {
            add(*other);
        }
    } else if (!stream.independent) {
        add(null_stream);
    }
    return after;
}

Point append(Stream& stream, std::function<void()> work) {
    const Point operation = std::make_shared<Operation>();
    operation->run = std::move(work);
    operation->after = predecessors(stream);
    stream.last = operation;
    pending.push_back(operation);
    return operation;
}

// Work may begin at any time. Now and then some does.
void perhaps_progress() {
    if (!pending.empty() && dice().one_in(4)) {
        run_with_past(pending[dice().below(static_cast<uint32_t>(pending.size()))]);
        forget_done();
    }
    if (pending.size() > 4096) {
        finish_all();
    }
}

bool blocking_capture() {
    return std::any_of(streams.begin(), streams.end(), [](const auto& s) { return s != nullptr && !s->independent && s->capture != nullptr; });
}

} // namespace

std::recursive_mutex& lock() {
    static std::recursive_mutex mutex;
    return mutex;
}

Stream* stream_of(CUstream handle) {
    const uintptr_t number = reinterpret_cast<uintptr_t>(handle);
    if (number <= 1) {
        return &null_stream;
    }
    if (number == 2) {
        if (thread_stream == nullptr) {
            thread_streams.push_back(std::make_unique<Stream>());
            thread_stream = thread_streams.back().get();
        }
        return thread_stream;
    }
    const auto found = std::find_if(streams.begin(), streams.end(), [&](const auto& s) { return s.get() == reinterpret_cast<Stream*>(handle); });
    return found == streams.end() ? nullptr : found->get();
}

Event* event_of(CUevent handle) {
    const auto found = std::find_if(events.begin(), events.end(), [&](const auto& e) { return e.get() == reinterpret_cast<Event*>(handle); });
    return found == events.end() ? nullptr : found->get();
}

CUresult enqueue(CUstream handle, std::function<void()> work) {
    const Guard guard(lock());
    Stream* stream = stream_of(handle);
    if (stream == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (broken != CUDA_SUCCESS) {
        return broken;
    }
    if (stream->capture != nullptr) {
        if (stream->capture->invalidated) {
            return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        }
        stream->capture->nodes.push_back(std::move(work));
        return CUDA_SUCCESS;
    }
    if (stream == &null_stream && blocking_capture()) {
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    append(*stream, std::move(work));
    perhaps_progress();
    return broken;
}

void finish(const Point& point) {
    if (point != nullptr && !point->done) {
        run_with_past(point);
        forget_done();
    }
}

void finish_all() {
    while (!pending.empty()) {
        run_with_past(pending[dice().below(static_cast<uint32_t>(pending.size()))]);
        forget_done();
    }
}

CUresult sticky_error() {
    return broken;
}

void break_context(CUresult error) {
    if (broken == CUDA_SUCCESS) {
        broken = error;
    }
}

void mend_context() {
    broken = CUDA_SUCCESS;
}

bool capture_forbids() {
    bool any = false;
    const auto spoil = [&](Stream& stream) {
        const auto& graph = stream.capture;
        if (graph != nullptr && (graph->forbids == Forbids::everybody ||
                                 (graph->forbids == Forbids::its_thread && graph->thread == std::this_thread::get_id()))) {
            graph->invalidated = true;
            any = true;
        }
    };
    for (const auto& stream : streams) {
        if (stream != nullptr) {
            spoil(*stream);
        }
    }
    for (const auto& stream : thread_streams) {
        spoil(*stream);
    }
    return any;
}

} // namespace emulator

using namespace emulator;

CUDA_API CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
    counted(__func__);
    if (!context_is_current()) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    const Guard guard(lock());
    if (stream == nullptr || flags > 1) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    streams.push_back(std::make_unique<Stream>());
    streams.back()->independent = flags == 1;
    *stream = reinterpret_cast<CUstream>(streams.back().get());
    return sticky_error();
}

CUDA_API CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int) {
    return cuStreamCreate(stream, flags);
}

CUDA_API CUresult cuStreamDestroy_v2(CUstream handle) {
    const Guard guard(lock());
    const auto found = std::find_if(streams.begin(), streams.end(), [&](const auto& s) { return s.get() == reinterpret_cast<Stream*>(handle); });
    if (found == streams.end()) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (const auto graph = (*found)->capture; graph != nullptr) {
        graph->invalidated = true;
        graph->streams.erase(std::remove(graph->streams.begin(), graph->streams.end(), found->get()), graph->streams.end());
    }
    // Its work is still pending, and will be done.
    streams.erase(found);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuStreamSynchronize(CUstream handle) {
    counted(__func__);
    const Guard guard(lock());
    Stream* stream = stream_of(handle);
    if (stream == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (stream->capture != nullptr) {
        stream->capture->invalidated = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    for (const Point& before : predecessors(*stream)) {
        finish(before);
    }
    return sticky_error();
}

CUDA_API CUresult cuStreamQuery(CUstream handle) {
    const Guard guard(lock());
    Stream* stream = stream_of(handle);
    if (stream == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    perhaps_progress();
    return stream->last == nullptr || stream->last->done ? sticky_error() : CUDA_ERROR_NOT_READY;
}

CUDA_API CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned) {
    const Guard guard(lock());
    Stream* stream = stream_of(handle);
    Event* event = event_of(event_handle);
    if (stream == nullptr || event == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (const auto graph = event->capture.lock(); graph != nullptr && !graph->streams.empty()) {
        if (stream->capture == nullptr) {
            graph->streams.push_back(stream);
            stream->capture = graph;
        }
        return stream->capture == graph ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (stream->capture != nullptr) {
        // An event of the world outside.
        stream->capture->invalidated = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (event->point != nullptr && !event->point->done) {
        append(*stream, nullptr)->after.push_back(event->point);
    }
    return sticky_error();
}

CUDA_API CUresult cuEventCreate(CUevent* event, unsigned) {
    const Guard guard(lock());
    events.push_back(std::make_unique<Event>());
    *event = reinterpret_cast<CUevent>(events.back().get());
    return sticky_error();
}

CUDA_API CUresult cuEventDestroy_v2(CUevent handle) {
    const Guard guard(lock());
    const auto found = std::find_if(events.begin(), events.end(), [&](const auto& e) { return e.get() == reinterpret_cast<Event*>(handle); });
    if (found == events.end()) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    events.erase(found);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuEventRecord(CUevent event_handle, CUstream handle) {
    const Guard guard(lock());
    Stream* stream = stream_of(handle);
    Event* event = event_of(event_handle);
    if (stream == nullptr || event == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    event->capture.reset();
    if (stream->capture != nullptr) {
        event->capture = stream->capture;
        return CUDA_SUCCESS;
    }
    event->point = append(*stream, nullptr);
    perhaps_progress();
    return sticky_error();
}

CUDA_API CUresult cuEventSynchronize(CUevent handle) {
    const Guard guard(lock());
    Event* event = event_of(handle);
    if (event == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (event->capture.lock() != nullptr) {
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    finish(event->point);
    return sticky_error();
}

CUDA_API CUresult cuEventQuery(CUevent handle) {
    const Guard guard(lock());
    Event* event = event_of(handle);
    if (event == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    perhaps_progress();
    return event->point == nullptr || event->point->done ? sticky_error() : CUDA_ERROR_NOT_READY;
}

// There is no device whose time could be told.
CUDA_API CUresult cuEventElapsedTime(float*, CUevent, CUevent) {
    return CUDA_ERROR_NOT_SUPPORTED;
}
CUDA_API CUresult cuEventElapsedTime_v2(float*, CUevent, CUevent) {
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUDA_API CUresult cuLaunchHostFunc(CUstream stream, void (*function)(void*), void* data) {
    return enqueue(stream, [=] { function(data); });
}
