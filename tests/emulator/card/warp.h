// What the lanes of a warp do together: a meeting of the lanes in a mask, where the last to come does the work for
// all, and over it __syncwarp, shuffles, votes. A card lets the lanes of a mask that have returned stay away; here
// that is reported, since it is nearly always a mistake.
#pragma once
#include "block.h"

namespace flotilla_emulated {

template <class Act> inline void warp_meet(unsigned mask, const char* what, int line, void* operand, Act act) {
    Thread* thread = self;
    Warp& warp = *thread->warp;
    const unsigned bit = 1u << thread->lane;
    if (!(mask & bit)) fail("%s in line %d: lane %u is not in its own mask %08x", what, line, thread->lane, mask);
    mask &= warp.present; // the lanes that the last warp of an odd block does not have
    warp.slots[thread->lane] = operand;
    unsigned at = 0;
    while (at < warp.meeting_count && warp.meetings[at].mask != mask) at++;
    if (at == warp.meeting_count) {
        // Diverged lanes may meet among themselves while others already wait further on. What can never end is that
        // each of two waits for the other at another place.
        for (unsigned i = 0; i < warp.meeting_count; i++)
            if ((warp.meetings[i].arrived & mask) && (warp.meetings[i].mask & bit))
                fail("%s in line %d with mask %08x, while lanes of it are at %s with mask %08x", what, line, mask,
                     warp.meetings[i].what, warp.meetings[i].mask);
        warp.meetings[warp.meeting_count++] = {mask, 0, what};
    }
    Meeting& meeting = warp.meetings[at];
    if (meeting.what != what && strcmp(meeting.what, what) != 0)
        fail("%s in line %d, while other lanes of its warp are at %s", what, line, meeting.what);
    meeting.arrived |= bit;
    if (meeting.arrived != mask) {
        wait_ready(thread, what, line);
        return;
    }
    meeting = warp.meetings[--warp.meeting_count];
    act(warp, mask);
    Block* block = thread->block;
    for (unsigned rest = mask & ~bit; rest != 0; rest &= rest - 1)
        block->ready[block->ready_count++] = warp.threads + __builtin_ctz(rest);
}

struct Shuffle {
    unsigned long long value, result;
    unsigned source; // a lane
};

template <class T> inline T shuffle(unsigned mask, T value, unsigned source, const char* what, int line) {
    static_assert(sizeof(T) <= 8);
    Shuffle mine = {0, 0, source};
    memcpy(&mine.value, &value, sizeof value);
    warp_meet(mask, what, line, &mine, [](Warp& warp, unsigned mask) {
        for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
            auto* lane = static_cast<Shuffle*>(warp.slots[__builtin_ctz(rest)]);
            // What a lane outside the mask holds is undefined: poison.
            lane->result = mask >> lane->source & 1 ? static_cast<Shuffle*>(warp.slots[lane->source])->value : ~0ull;
        }
    });
    T result;
    memcpy(&result, &mine.result, sizeof result);
    return result;
}

struct Vote {
    bool mine;
    unsigned all;
};

inline unsigned ballot(unsigned mask, bool predicate, const char* what, int line) {
    Vote vote = {predicate, 0};
    warp_meet(mask, what, line, &vote, [](Warp& warp, unsigned mask) {
        unsigned all = 0;
        for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
            const int lane = __builtin_ctz(rest);
            all |= unsigned(static_cast<Vote*>(warp.slots[lane])->mine) << lane;
        }
        for (unsigned rest = mask; rest != 0; rest &= rest - 1)
            static_cast<Vote*>(warp.slots[__builtin_ctz(rest)])->all = all;
    });
    return vote.all;
}

/// The five xor shuffles 16, 8, 4, 2, 1 of a whole warp in one meeting: the same bits, a fifth of the switches.
template <class Fold> inline float butterfly(float value, const char* what, int line, Fold fold) {
    if (self->warp->present != ~0u) fail("%s in line %d: the warp has fewer than 32 lanes", what, line);
    warp_meet(~0u, what, line, &value, [fold](Warp& warp, unsigned) {
        float lanes[WARP_LANES], folded[WARP_LANES];
        for (unsigned i = 0; i < WARP_LANES; i++) lanes[i] = *static_cast<float*>(warp.slots[i]);
        for (unsigned step = WARP_LANES / 2; step != 0; step /= 2) {
            for (unsigned i = 0; i < WARP_LANES; i++) folded[i] = fold(lanes[i], lanes[i ^ step]);
            memcpy(lanes, folded, sizeof lanes);
        }
        for (unsigned i = 0; i < WARP_LANES; i++) *static_cast<float*>(warp.slots[i]) = lanes[i];
    });
    return value;
}
inline float butterfly_sum(float value, int line = __builtin_LINE()) {
    return butterfly(value, "warp_sum", line, [](float a, float b) { return a + b; });
}
inline float butterfly_max(float value, int line = __builtin_LINE()) {
    return butterfly(value, "warp_max", line, [](float a, float b) { return fmaxf(a, b); });
}

} // namespace flotilla_emulated

inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
    flotilla_emulated::warp_meet(mask, "__syncwarp", line, nullptr, [](flotilla_emulated::Warp&, unsigned) {});
}
template <class T> inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, int line = __builtin_LINE()) {
    const unsigned own = flotilla_emulated::self->lane, group = own & ~unsigned(width - 1);
    return flotilla_emulated::shuffle(mask, value, group | (unsigned(lane) & unsigned(width - 1)), "__shfl_sync", line);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, int line = __builtin_LINE()) {
    const unsigned own = flotilla_emulated::self->lane, source = own ^ unsigned(lanes);
    // A lane of a later group is not reached: the own value stays.
    const bool reached = source / unsigned(width) <= own / unsigned(width);
    return flotilla_emulated::shuffle(mask, value, reached ? source : own, "__shfl_xor_sync", line);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, int line = __builtin_LINE()) {
    const unsigned own = flotilla_emulated::self->lane, source = own + lanes;
    const bool reached = source / unsigned(width) == own / unsigned(width);
    return flotilla_emulated::shuffle(mask, value, reached ? source : own, "__shfl_down_sync", line);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, int line = __builtin_LINE()) {
    const unsigned own = flotilla_emulated::self->lane;
    const bool reached = (own & unsigned(width - 1)) >= lanes;
    return flotilla_emulated::shuffle(mask, value, reached ? own - lanes : own, "__shfl_up_sync", line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return flotilla_emulated::ballot(mask, predicate != 0, "__ballot_sync", line);
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return flotilla_emulated::ballot(mask, predicate != 0, "__any_sync", line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return flotilla_emulated::ballot(mask, predicate == 0, "__all_sync", line) == 0;
}
