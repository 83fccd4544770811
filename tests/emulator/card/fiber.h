// One CUDA thread: its place in the block, its stack, and the switch from one to another. On x86-64 the switch is
// six pushes and pops; with g++ the running thread is kept in r15, so that threadIdx costs one load. Elsewhere:
// ucontext and a thread-local pointer. No scheduling here: see block.h.
#pragma once
#include "arithmetic.h"

#if !defined(__x86_64__) || defined(FLOTILLA_EMULATED_PORTABLE)
#include <ucontext.h>
#endif

namespace flotilla_emulated {

struct Block;
struct Warp;

/// A cp.async that was issued and not waited for.
struct Copy {
    void* to;
    const void* from;
    bool valid;
    unsigned group;
};

struct WarpgroupProduct; // in warpgroup.h

struct Thread {
    void* saved_stack; // where the switch away from this thread left its registers
    uint3 index;
    unsigned number, lane;
    Warp* warp;
    Block* block;
    const char* waits_for; // what it stands at, for the report of a deadlock
    int line;
    bool exited;
    unsigned spins;
    long long spins_since_us;
    Copy* copies; // kept from launch to launch
    unsigned copy_count, copy_capacity, copy_group;
    bool unfenced; // has waited for copies, and not shown them to warpgroup products
    WarpgroupProduct* products; // started and not waited for; kept from launch to launch
    unsigned product_count, product_capacity, product_group;
    bool product_fenced;
    char* stack_top;
#if !defined(__x86_64__) || defined(FLOTILLA_EMULATED_PORTABLE)
    ucontext_t context;
#endif
};

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(FLOTILLA_EMULATED_PORTABLE)
register Thread* self asm("r15");
#define FLOTILLA_EMULATED_SELF_IN_REGISTER 1
#else
static thread_local Thread* self;
#endif

[[noreturn]] void fiber_main();

#if defined(__x86_64__) && !defined(FLOTILLA_EMULATED_PORTABLE)
extern "C" void flotilla_emulated_switch(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .hidden flotilla_emulated_switch
    .globl flotilla_emulated_switch
    .type flotilla_emulated_switch, @function
    .p2align 4
flotilla_emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size flotilla_emulated_switch, .-flotilla_emulated_switch
)");

/// Where the launch itself waits while its fibers run.
struct MainContext {
    void* saved_stack;
};

inline void fiber_prepare(Thread* thread) {
    // Colour the stacks: without it those of a warp would all fall into the same few cache sets.
    auto** top = reinterpret_cast<void**>(thread->stack_top - (thread->number % 61) * 64);
    top[-1] = nullptr;                               // the return address of nobody
    top[-2] = reinterpret_cast<void*>(&fiber_main);  // popped by ret, with the stack aligned as after a call
    for (int i = 3; i <= 8; i++) top[-i] = nullptr;
    top[-8] = thread; // r15
    thread->saved_stack = &top[-8];
}
inline void switch_threads(Thread* from, Thread* to) {
#ifndef FLOTILLA_EMULATED_SELF_IN_REGISTER
    self = to;
#endif
    flotilla_emulated_switch(&from->saved_stack, to->saved_stack);
}
inline void switch_in(MainContext* main, Thread* to) {
#ifndef FLOTILLA_EMULATED_SELF_IN_REGISTER
    self = to;
#endif
    flotilla_emulated_switch(&main->saved_stack, to->saved_stack);
}
inline void switch_out(Thread* from, MainContext* main) {
    flotilla_emulated_switch(&from->saved_stack, main->saved_stack);
}
#else
struct MainContext {
    ucontext_t context;
};
inline void fiber_prepare(Thread* thread) {
    getcontext(&thread->context);
    thread->context.uc_stack.ss_sp = thread->stack_top - (56 << 10);
    thread->context.uc_stack.ss_size = 56 << 10;
    thread->context.uc_link = nullptr;
    makecontext(&thread->context, reinterpret_cast<void (*)()>(&fiber_main), 0);
}
inline void switch_threads(Thread* from, Thread* to) {
    self = to;
    swapcontext(&from->context, &to->context);
}
inline void switch_in(MainContext* main, Thread* to) {
    self = to;
    swapcontext(&main->context, &to->context);
}
inline void switch_out(Thread* from, MainContext* main) { swapcontext(&from->context, &main->context); }
#endif

} // namespace flotilla_emulated
