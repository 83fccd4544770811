// Capturing a stream into a graph, and running it. The order of recording respects every dependency, so a graph is a
// list that runs in that order on the stream it is launched into: concurrency within a graph is not emulated.
#include "driver.h"
#include <algorithm>

namespace card {

static std::mutex captures_lock;
static std::vector<Capture*>& captures() {
    static auto* all = new std::vector<Capture*>;
    return *all;
}

CUresult refuse_in_capture() {
    std::lock_guard guard(captures_lock);
    CUresult refused = CUDA_SUCCESS;
    for (Capture* capture : captures()) {
        const bool here = capture->thread == std::this_thread::get_id();
        if (capture->mode == 0 || (capture->mode == 1 && here)) {
            capture->invalid = true;
            refused = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    return refused;
}

} // namespace card

using namespace card;

CARD_API CUresult cuStreamBeginCapture_v2(Stream* handle, int mode) {
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    CHECK(!stream->is_null, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    CHECK(stream->capture == nullptr, CUDA_ERROR_ILLEGAL_STATE);
    auto* capture = new Capture{new Graph, stream, mode, std::this_thread::get_id(), false, {}, {}};
    stream->capture = capture;
    std::lock_guard guard(captures_lock);
    captures().push_back(capture);
    return CUDA_SUCCESS;
}
CARD_API CUresult cuStreamEndCapture(Stream* handle, Graph** graph) {
    *graph = nullptr;
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    Capture* capture = stream->capture;
    CHECK(capture != nullptr && capture->origin == stream, CUDA_ERROR_ILLEGAL_STATE);
    CHECK(capture->mode == 2 || capture->thread == std::this_thread::get_id(), CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    {
        std::lock_guard guard(captures_lock);
        auto& all = captures();
        all.erase(std::remove(all.begin(), all.end(), capture), all.end());
    }
    stream->capture = nullptr;
    for (Stream* joined : capture->joined) joined->capture = nullptr;
    const bool unjoined = std::any_of(capture->pending.begin(), capture->pending.end(), [](auto& p) { return p.second; });
    if (capture->invalid || unjoined) {
        const CUresult code = capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
        delete capture->graph;
        return code; // events that were recorded in it keep its address: it is never reused
    }
    *graph = capture->graph;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuStreamIsCapturing(Stream* handle, int* status) {
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuThreadExchangeStreamCaptureMode(int* mode) {
    static thread_local int own = 0;
    std::swap(own, *mode);
    return CUDA_SUCCESS;
}
CARD_API CUresult cuGraphInstantiateWithFlags(GraphExec** exec, Graph* graph, unsigned long long flags) {
    *exec = nullptr;
    CHECK(valid(graph), CUDA_ERROR_INVALID_HANDLE);
    CHECK(!((flags & 4) && (flags & 1)), CUDA_ERROR_INVALID_VALUE); // device launch with automatic frees
    *exec = new GraphExec{GraphExec::MAGIC, std::make_shared<std::vector<Node>>(graph->nodes)};
    return CUDA_SUCCESS;
}
CARD_API CUresult cuGraphLaunch(GraphExec* exec, Stream* handle) {
    Stream* stream = stream_of(handle);
    CHECK(valid(exec) && stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    auto nodes = exec->nodes;
    return enqueue(stream, NodeKind::Kernel, [nodes](Stream& stream, bool failed) {
        for (const Node& node : *nodes) {
            const CUresult code = node.work(stream, failed);
            if (code != CUDA_SUCCESS) return code;
        }
        return CUDA_SUCCESS;
    });
}
CARD_API CUresult cuGraphUpload(GraphExec* exec, Stream* handle) {
    return valid(exec) && stream_of(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
CARD_API CUresult cuGraphGetNodes(Graph* graph, Node** nodes, size_t* count) {
    CHECK(valid(graph), CUDA_ERROR_INVALID_HANDLE);
    if (nodes)
        for (size_t i = 0; i < *count; i++) nodes[i] = i < graph->nodes.size() ? &graph->nodes[i] : nullptr;
    if (!nodes || *count > graph->nodes.size()) *count = graph->nodes.size();
    return CUDA_SUCCESS;
}
CARD_API CUresult cuGraphNodeGetType(Node* node, int* type) {
    *type = int(node->kind);
    return CUDA_SUCCESS;
}
CARD_API CUresult cuGraphExecDestroy(GraphExec* exec) {
    CHECK(valid(exec), CUDA_ERROR_INVALID_HANDLE);
    exec->magic = 0;
    delete exec; // launches under way hold the nodes
    return CUDA_SUCCESS;
}
CARD_API CUresult cuGraphDestroy(Graph* graph) {
    CHECK(valid(graph), CUDA_ERROR_INVALID_HANDLE);
    graph->magic = 0;
    delete graph;
    return CUDA_SUCCESS;
}
