// Stream capture and graphs. A graph is its nodes in the order in which they were recorded, which
// is one of the orders that the streams allow.

#include <algorithm>

#include "stream.h"

using namespace emulator;

namespace {

// What handles point at.
struct Recorded {
    std::shared_ptr<Graph> graph;
};

} // namespace

CUDA_API CUresult cuStreamBeginCapture_v2(CUstream handle, int mode) {
    const Guard guard(lock());
    Stream* stream = stream_of(handle);
    if (stream == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    // The null stream cannot be captured.
    if (reinterpret_cast<uintptr_t>(handle) <= 1) {
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (stream->capture != nullptr || mode < 0 || mode > 2) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    stream->capture = std::make_shared<Graph>();
    stream->capture->forbids = static_cast<Forbids>(mode);
    stream->capture->thread = std::this_thread::get_id();
    stream->capture->streams.push_back(stream);
    return sticky_error();
}

CUDA_API CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
    const Guard guard(lock());
    Stream* stream = stream_of(handle);
    if (stream == nullptr || graph == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    *graph = nullptr;
    const std::shared_ptr<Graph> recorded = stream->capture;
    if (recorded == nullptr || recorded->streams.empty() || recorded->streams.front() != stream) {
        return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    }
    if (recorded->forbids != Forbids::nobody && recorded->thread != std::this_thread::get_id()) {
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    }
    for (Stream* part : recorded->streams) {
        part->capture = nullptr;
    }
    recorded->streams.clear();
    if (recorded->invalidated) {
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    *graph = reinterpret_cast<CUgraph>(new Recorded{recorded});
    return sticky_error();
}

// 0 none, 1 active, 2 invalidated.
CUDA_API CUresult cuStreamIsCapturing(CUstream handle, int* status) {
    const Guard guard(lock());
    Stream* stream = stream_of(handle);
    if (stream == nullptr || status == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    *status = stream->capture == nullptr ? 0 : stream->capture->invalidated ? 2 : 1;
    return sticky_error();
}

CUDA_API CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
    const Guard guard(lock());
    if (executable == nullptr || graph == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *executable = reinterpret_cast<CUgraphExec>(new Recorded{*reinterpret_cast<Recorded*>(graph)});
    return sticky_error();
}

CUDA_API CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    counted(__func__);
    if (executable == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const std::shared_ptr<Graph> graph = reinterpret_cast<Recorded*>(executable)->graph;
    return enqueue(stream, [graph] {
        for (const auto& node : graph->nodes) {
            if (sticky_error() == CUDA_SUCCESS) {
                node();
            }
        }
    });
}

CUDA_API CUresult cuGraphUpload(CUgraphExec executable, CUstream stream) {
    return executable == nullptr ? CUDA_ERROR_INVALID_VALUE : enqueue(stream, nullptr);
}

CUDA_API CUresult cuGraphGetNodes(CUgraph graph, void**, size_t* count) {
    const Guard guard(lock());
    if (graph == nullptr || count == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *count = reinterpret_cast<Recorded*>(graph)->graph->nodes.size();
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphExecDestroy(CUgraphExec executable) {
    delete reinterpret_cast<Recorded*>(executable);
    return CUDA_SUCCESS;
}

CUDA_API CUresult cuGraphDestroy(CUgraph graph) {
    delete reinterpret_cast<Recorded*>(graph);
    return CUDA_SUCCESS;
}
