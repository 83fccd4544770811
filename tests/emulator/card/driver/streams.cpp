// Streams and events. A stream is an OS thread that does its work in order; an event is a count of records.
#include "driver.h"
#include <algorithm>
#include <ctime>

namespace card {

static std::mutex arenas_lock;
static std::vector<void*>& arenas() {
    static auto* all = new std::vector<void*>;
    return *all;
}
void* arena_take() {
    std::lock_guard guard(arenas_lock);
    if (arenas().empty()) return nullptr;
    void* arena = arenas().back();
    arenas().pop_back();
    return arena;
}
void arena_give_back(void* arena) {
    std::lock_guard guard(arenas_lock);
    if (arena) arenas().push_back(arena);
}

static void stream_run(Stream* stream) {
    prepare_thread_for_faults();
    set_current_context(stream->context);
    stream->arena = arena_take();
    std::unique_lock guard(stream->lock);
    for (;;) {
        stream->changed.wait(guard, [&] { return !stream->queue.empty() || stream->closing; });
        if (stream->queue.empty()) break;
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        stream->busy = true;
        const bool failed = stream->error != CUDA_SUCCESS;
        guard.unlock();
        const CUresult code = work(*stream, failed);
        work = nullptr; // what it holds is let go before anybody who waits goes on
        guard.lock();
        stream->busy = false;
        if (code != CUDA_SUCCESS && stream->error == CUDA_SUCCESS) stream->error = code;
        if (stream->queue.empty()) stream->changed.notify_all();
    }
    arena_give_back(stream->arena);
    guard.unlock();
    stream->magic = 0;
    delete stream;
}

Stream* stream_start(Context* context, bool is_null) {
    auto* stream = new Stream;
    stream->context = context;
    stream->is_null = is_null;
    std::thread(stream_run, stream).detach();
    if (!is_null) {
        std::lock_guard guard(context->lock);
        context->streams.push_back(stream);
    }
    return stream;
}

Stream* stream_of(Stream* handle) {
    // 0, CU_STREAM_LEGACY and CU_STREAM_PER_THREAD
    if (reinterpret_cast<uintptr_t>(handle) > 2) return valid(handle) ? handle : nullptr;
    Context* context = current_context();
    if (context == nullptr) return nullptr;
    std::lock_guard guard(context->lock);
    if (context->null_stream == nullptr) context->null_stream = stream_start(context, true);
    return context->null_stream;
}

CUresult stream_wait_idle(Stream* stream) {
    std::unique_lock guard(stream->lock);
    stream->changed.wait(guard, [&] { return stream->queue.empty() && !stream->busy; });
    return stream->error;
}

CUresult context_wait_idle(Context* context) {
    // A stream may be destroyed by another thread meanwhile: waiting is by markers, not by looking at the stream.
    struct Pending {
        std::mutex lock;
        std::condition_variable changed;
        size_t left = 0;
        CUresult error = CUDA_SUCCESS;
    };
    auto pending = std::make_shared<Pending>();
    {
        std::lock_guard guard(context->lock);
        auto all = context->streams;
        if (context->null_stream) all.push_back(context->null_stream);
        pending->left = all.size();
        for (Stream* stream : all) {
            std::lock_guard stream_guard(stream->lock);
            stream->queue.push_back([pending](Stream& stream, bool) {
                std::lock_guard guard(pending->lock);
                if (stream.error != CUDA_SUCCESS) pending->error = stream.error;
                if (--pending->left == 0) pending->changed.notify_all();
                return CUDA_SUCCESS;
            });
            stream->changed.notify_all();
        }
    }
    std::unique_lock guard(pending->lock);
    pending->changed.wait(guard, [&] { return pending->left == 0; });
    return pending->error;
}

CUresult enqueue(Stream* stream, NodeKind kind, Work work) {
    if (Capture* capture = stream->capture) {
        CHECK(!capture->invalid, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        capture->graph->nodes.push_back({kind, std::move(work)});
        if (stream != capture->origin) capture->pending[stream] = true;
        return CUDA_SUCCESS;
    }
    std::lock_guard guard(stream->lock);
    if (stream->error != CUDA_SUCCESS && kind != NodeKind::Empty) return stream->error;
    stream->queue.push_back(std::move(work));
    stream->asked++;
    stream->changed.notify_all();
    return CUDA_SUCCESS;
}

CUresult run_now(Stream* stream, Work work) {
    CUresult code = enqueue(stream, NodeKind::Empty, std::move(work));
    return code != CUDA_SUCCESS ? code : stream_wait_idle(stream);
}

void stream_failed(Stream& stream, CUresult code, const std::string& text) {
    if (!settings().quiet) fprintf(stderr, "emulated card %d: %s\n", stream.context->ordinal, text.c_str());
    std::lock_guard guard(stream.lock);
    stream.error = code;
    stream.error_text = text;
}

static long long now_ns() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

} // namespace card

using namespace card;

static thread_local std::string last_report;

/// What went wrong on a stream, in words: for tests. Empty: nothing did.
CARD_API const char* flotilla_emulated_stream_error(Stream* handle) {
    Stream* stream = stream_of(handle);
    if (stream == nullptr) return "";
    std::lock_guard guard(stream->lock);
    last_report = stream->error_text;
    return last_report.c_str();
}

/// How many pieces of work a stream was ever asked for, and how many copies to memory that is not pinned: for tests.
CARD_API uint64_t flotilla_emulated_stream_asked(Stream* handle) {
    Stream* stream = stream_of(handle);
    if (stream == nullptr) return 0;
    std::lock_guard guard(stream->lock);
    return stream->asked;
}
CARD_API uint64_t flotilla_emulated_stream_pageable_reads(Stream* handle) {
    Stream* stream = stream_of(handle);
    if (stream == nullptr) return 0;
    std::lock_guard guard(stream->lock);
    return stream->pageable_reads;
}

/// The way in for other libraries (NCCL): work in stream order, recorded where the stream is being captured.
/// `function` gets `failed` and returns a CUresult; `drop` is called when nobody can run it any more.
CARD_API CUresult flotilla_emulated_enqueue(Stream* handle, int (*function)(void*, int failed), void* data, void (*drop)(void*)) {
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    auto held = std::shared_ptr<void>(data, drop);
    return enqueue(stream, NodeKind::Kernel, [held, function](Stream&, bool failed) {
        return static_cast<CUresult>(function(held.get(), failed));
    });
}

CARD_API CUresult cuStreamCreate(Stream** stream, unsigned) {
    CHECK_CONTEXT();
    *stream = stream_start(current_context(), false);
    return CUDA_SUCCESS;
}
CARD_API CUresult cuStreamCreateWithPriority(Stream** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
CARD_API CUresult cuStreamDestroy_v2(Stream* stream) {
    CHECK(valid(stream) && !stream->is_null, CUDA_ERROR_INVALID_HANDLE);
    {
        std::lock_guard guard(stream->context->lock);
        auto& all = stream->context->streams;
        all.erase(std::remove(all.begin(), all.end(), stream), all.end());
    }
    std::lock_guard guard(stream->lock);
    stream->closing = true; // what is queued is still done
    stream->changed.notify_all();
    return CUDA_SUCCESS;
}
static CUresult refuse_if_captured(Stream* stream) {
    if (!stream->capture) return CUDA_SUCCESS;
    stream->capture->invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}
CARD_API CUresult cuStreamSynchronize(Stream* handle) {
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    const CUresult refused = refuse_if_captured(stream);
    if (refused != CUDA_SUCCESS) return refused;
    const CUresult code = stream_wait_idle(stream);
    pool_release(stream->context);
    return code;
}
CARD_API CUresult cuStreamQuery(Stream* handle) {
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    const CUresult refused = refuse_if_captured(stream);
    if (refused != CUDA_SUCCESS) return refused;
    std::lock_guard guard(stream->lock);
    return stream->queue.empty() && !stream->busy ? stream->error : CUDA_ERROR_NOT_READY;
}
CARD_API CUresult cuStreamGetCtx(Stream* handle, Context** context) {
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    *context = stream->context;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuLaunchHostFunc(Stream* handle, void (*function)(void*), void* data) {
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    return enqueue(stream, NodeKind::Host, [=](Stream&, bool failed) {
        if (!failed) function(data);
        return CUDA_SUCCESS;
    });
}

CARD_API CUresult cuEventCreate(Event** event, unsigned flags) {
    CHECK_CONTEXT();
    *event = new Event;
    (*event)->timed = (flags & 2) == 0;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuEventDestroy_v2(Event* event) {
    CHECK(valid(event), CUDA_ERROR_INVALID_HANDLE);
    event->magic = 0;
    delete event;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuEventRecord(Event* event, Stream* handle) {
    Stream* stream = stream_of(handle);
    CHECK(valid(event) && stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    if (stream->capture) {
        event->captured = stream->capture;
        event->captured_stream = stream;
        return CUDA_SUCCESS;
    }
    event->captured = nullptr;
    auto moment = event->moment;
    {
        std::lock_guard guard(moment->lock);
        moment->recorded++;
    }
    return enqueue(stream, NodeKind::Empty, [moment](Stream& stream, bool failed) {
        std::lock_guard guard(moment->lock);
        moment->done++;
        moment->done_ns = now_ns();
        moment->error = failed ? stream.error : CUDA_SUCCESS;
        moment->changed.notify_all();
        return CUDA_SUCCESS;
    });
}
CARD_API CUresult cuEventRecordWithFlags(Event* event, Stream* stream, unsigned) { return cuEventRecord(event, stream); }
CARD_API CUresult cuEventQuery(Event* event) {
    CHECK(valid(event), CUDA_ERROR_INVALID_HANDLE);
    CHECK(event->captured == nullptr, CUDA_ERROR_CAPTURED_EVENT);
    std::lock_guard guard(event->moment->lock);
    return event->moment->done == event->moment->recorded ? event->moment->error : CUDA_ERROR_NOT_READY;
}
CARD_API CUresult cuEventSynchronize(Event* event) {
    CHECK(valid(event), CUDA_ERROR_INVALID_HANDLE);
    CHECK(event->captured == nullptr, CUDA_ERROR_CAPTURED_EVENT);
    auto moment = event->moment;
    std::unique_lock guard(moment->lock);
    moment->changed.wait(guard, [&] { return moment->done == moment->recorded; });
    if (Context* context = current_context()) pool_release(context);
    return moment->error;
}
CARD_API CUresult cuEventElapsedTime_v2(float* ms, Event* start, Event* end) {
    CHECK(valid(start) && valid(end) && start->timed && end->timed, CUDA_ERROR_INVALID_HANDLE);
    Moment &from = *start->moment, &to = *end->moment;
    std::unique_lock from_guard(from.lock, std::defer_lock), to_guard(to.lock, std::defer_lock);
    from_guard.lock();
    if (&from != &to) to_guard.lock();
    CHECK(from.recorded > 0 && to.recorded > 0, CUDA_ERROR_INVALID_HANDLE);
    CHECK(from.done == from.recorded && to.done == to.recorded, CUDA_ERROR_NOT_READY);
    *ms = float(double(to.done_ns - from.done_ns) * 1e-6);
    return CUDA_SUCCESS;
}
CARD_API CUresult cuEventElapsedTime(float* ms, Event* start, Event* end) { return cuEventElapsedTime_v2(ms, start, end); }
CARD_API CUresult cuStreamWaitEvent(Stream* handle, Event* event, unsigned) {
    Stream* stream = stream_of(handle);
    CHECK(valid(event) && stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    if (Capture* capture = event->captured) {
        if (stream->capture == nullptr) { // the wait draws the stream into the capture
            stream->capture = capture;
            capture->joined.push_back(stream);
        } else if (stream->capture != capture) {
            return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        }
        if (stream == capture->origin) capture->pending[event->captured_stream] = false;
        return CUDA_SUCCESS;
    }
    if (stream->capture) {
        stream->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    auto moment = event->moment;
    uint64_t target;
    {
        std::lock_guard guard(moment->lock);
        target = moment->recorded;
    }
    return enqueue(stream, NodeKind::Empty, [moment, target](Stream&, bool) {
        std::unique_lock guard(moment->lock);
        moment->changed.wait(guard, [&] { return moment->done >= target; });
        return CUDA_SUCCESS;
    });
}
