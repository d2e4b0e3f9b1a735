// Many rows by a matrix in 4 or 6 bits (Q4_K, Q6_K): what reading a prompt, and a step of a whole class, mostly consist of.
//
// ggml multiplies pairs in 16 bits, and shuffles the rows for it. Here columns lie side by side, and every four bytes of a row
// meet all of them at once, without a shuffle; with AVX-512 VNNI in one instruction, which multiplies and adds in 32 bits. There
// matrices in 6 bits are repacked as those in 4 are; ggml does so on other processors only, and here unpacks them in each step.
// x86-64 from AVX2 on; anything else is left to ggml. Rows and blocks of eight columns are as ggml lays them out.
#pragma once

#include "used.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>
#include <type_traits>
#endif

#include "matrix512.h"

#include "matrix256.h"

#ifdef APPLIANCE_MATRIX
namespace appliance {

// Rows by columns of a matrix that ggml has repacked, from the first on: so many of the rows as were computed. EIGHT: whether
// its columns lie side by side in eights, and eight bytes of each together.
template <class Block, bool EIGHT>
static int multiplied(int n, float * out, size_t step, const void * vx, const void * vy, int rows, int columns) {
    return EIGHT && used() ? multiply_by<Block>(n, out, step, vx, vy, rows, columns) : 0;
}

}  // namespace appliance
#endif
