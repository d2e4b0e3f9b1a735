// Many rows by a matrix in 4 bits (Q4_K): what reading a prompt, and a step of a whole class, mostly consist of.
//
// ggml multiplies pairs in 16 bits, and shuffles the rows for it. Here columns lie side by side, and every four bytes of a row
// meet all of them at once, without a shuffle; with AVX-512 VNNI in one instruction, which multiplies and adds in 32 bits.
// x86-64 from AVX2 on; anything else is left to ggml. The blocks are as ggml lays them out for its own kernel.
#pragma once

#include "matrix512.h"

#include "matrix256.h"
#include "used.h"

#ifdef APPLIANCE_MATRIX

namespace appliance {

// So many of the columns as go side by side; how many that were.
static int matrix(int n, float * out, size_t step, const void * vx, const void * vy, int rows, int columns) {
    const int blocks = n / QK_K;
    const block_q4_Kx8 * x = (const block_q4_Kx8 *) vx;
    const block_q8_Kx4 * y = (const block_q8_Kx4 *) vy;
    const int done = columns - columns % COLUMNS;
    for (int row = 0; row < rows;) {
        const int left = rows - row, size = left >= 16 ? 16 : left;
        for (int column = 0; column < done; column += COLUMNS) {
            const block_q4_Kx8 * a = x + (column / 8) * blocks;
            float * to = out + row * step + column;
            const block_q8_Kx4 * from = y + (row / 4) * blocks;
            switch (size) {
                case 16: tile<16>(from, a, blocks, to, step); break;
                case 12: tile<12>(from, a, blocks, to, step); break;
                case 8: tile<8>(from, a, blocks, to, step); break;
                default: tile<4>(from, a, blocks, to, step); break;
            }
        }
        row += size;
    }
    return done;
}

}  // namespace appliance

#endif
