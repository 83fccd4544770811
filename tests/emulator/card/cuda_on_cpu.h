// CUDA C++ for the system's C++ compiler: this header is force-included before a kernel's source, which then
// compiles unchanged. The threads of a block are fibers on one OS thread and run in shuffled order; blocks run one
// after another, in shuffled order too. It finds mistakes (a missing barrier, a divergent one, a read past a
// buffer, memory that nothing wrote); it says nothing about speed, and it has no memory hierarchy: no banks, no
// caches, no weak ordering between blocks, no registers to run out of.
//
// Bits: +, -, *, / and sqrt round as a card's do, a fused multiply-add happens only where the source asks for one
// (nvcc contracts where it likes), f32 subnormals are kept. expf and its kin are the C library's, not a card's.
#pragma once
#define FLOTILLA_EMULATED 1

#include "arithmetic.h"
#include "block.h"
#include "warp.h"
#include "memory.h"
#include "matrix.h"
#include "warpgroup.h"
#include "launch.h"
