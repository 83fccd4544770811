// Where a kernel that does what no card forgives ends up: the driver's signal handler sends memory faults here, and
// the compiler's checks (-fsanitize=alignment,bounds, without its library) call here with the line. All of it
// ends the launch with a report.
#pragma once
#include "block.h"

namespace flotilla_emulated {

// As the compiler lays them out for its handlers.
struct SourceLine {
    const char* file;
    unsigned line, column;
};
struct TypeName {
    unsigned short kind, info;
    char name[1];
};
struct Misaligned {
    SourceLine at;
    const TypeName* type;
    unsigned char alignment_log2, access;
};
struct PastArray {
    SourceLine at;
    const TypeName *array, *index;
};

} // namespace flotilla_emulated

#define FLOTILLA_EMULATED_HANDLER extern "C" __attribute__((used, noinline, cold, visibility("hidden"))) inline
// The compiler knows these two, and that they take untyped pointers.
FLOTILLA_EMULATED_HANDLER void __ubsan_handle_type_mismatch_v1_abort(void* data, void* address) {
    auto* what = static_cast<const flotilla_emulated::Misaligned*>(data);
    flotilla_emulated::fail("%s line %u: a %s of type %s at %p, not a multiple of %u", what->at.file, what->at.line,
                            what->access == 0 ? "load" : what->access == 1 ? "store" : "pointer", what->type->name, address,
                            1u << what->alignment_log2);
}
FLOTILLA_EMULATED_HANDLER void __ubsan_handle_out_of_bounds_abort(void* data, void* index) {
    auto* what = static_cast<const flotilla_emulated::PastArray*>(data);
    flotilla_emulated::fail("%s line %u: index %ld is outside of the array %s", what->at.file, what->at.line,
                            long(reinterpret_cast<intptr_t>(index)), what->array->name);
}

/// Where the driver's handler sends a thread that touched memory which is not its own, on the emergency stack.
FLOTILLA_EMULATED_HANDLER void flotilla_emulated_fault(const char* what, const void* address) {
    using namespace flotilla_emulated;
    auto* at = static_cast<const char*>(address);
    const Block* block = self->block;
    const char* shared_end = block->shared + (block->shared_bytes + 15) / 16 * 16;
    if (at >= shared_end && at < shared_end + PAGE)
        fail("touches memory %zu bytes past the %zu bytes of dynamic shared memory", size_t(at - shared_end), block->shared_bytes);
    const char* stack_end = self->stack_top - STACK_BYTES; // its guard page lies below
    if (at < stack_end && at >= stack_end - PAGE)
        fail("needs more than the %zu KB of stack that the emulation gives a thread", STACK_BYTES >> 10);
    fail("%s", what);
}
