// Eight columns at a time, for processors with AVX2 (from 2013 on) that lack what `matrix512.h` needs.
#pragma once

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(APPLIANCE_MATRIX)
#define APPLIANCE_MATRIX 1

namespace appliance {

constexpr int SUBS = 8;  // sub-blocks of 32 in a block of 256, each with a scale and a least value of its own

// What eight columns' blocks are scaled by: a float for each sub-block and column, and the least values, twice in 16 bits.
struct Scales {
    __m256 scale[SUBS];
    __m256i least[SUBS];
};

static inline __m256 halves(const ggml_half * x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) x)); }

// Columns lie in this order in every vector here: that is how they fall when eight bytes of each are parted in two fours.
static inline __m256i order() { return _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7); }

static inline void unpack(const block_q4_Kx8 & block, Scales & out) {
    // Twelve bytes for each sub-block hold eight scales and eight least values in 6 bits: three words, here of all sub-blocks.
    const __m256i first = _mm256_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21);
    const int * packed = (const int *) block.scales;
    const __m256i u0 = _mm256_i32gather_epi32(packed, first, 4);
    const __m256i u1 = _mm256_i32gather_epi32(packed + 1, first, 4);
    const __m256i u2 = _mm256_i32gather_epi32(packed + 2, first, 4);
    const __m256i six = _mm256_set1_epi32(0x3f3f3f3f), four = _mm256_set1_epi32(0x0f0f0f0f);
    const __m256i two = _mm256_set1_epi32(0x03030303);
    const auto upper = [&](__m256i word) { return _mm256_slli_epi32(_mm256_and_si256(_mm256_srli_epi32(word, 6), two), 4); };

    alignas(32) uint32_t a[8], b[8], c[8], d[8];
    _mm256_store_si256((__m256i *) a, _mm256_and_si256(u0, six));
    _mm256_store_si256((__m256i *) b, _mm256_or_si256(_mm256_and_si256(u2, four), upper(u0)));
    _mm256_store_si256((__m256i *) c, _mm256_and_si256(u1, six));
    _mm256_store_si256((__m256i *) d, _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32(u2, 4), four), upper(u1)));
    const __m256 by = _mm256_permutevar8x32_ps(halves(block.d), order());
    for (int i = 0; i < SUBS; ++i) {
        const __m256i s = _mm256_cvtepu8_epi32(_mm_setr_epi32(a[i], b[i], 0, 0));
        const __m256i m = _mm256_cvtepu8_epi32(_mm_setr_epi32(c[i], d[i], 0, 0));
        out.scale[i] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_permutevar8x32_epi32(s, order())), by);
        const __m256i once = _mm256_permutevar8x32_epi32(m, order());
        out.least[i] = _mm256_or_si256(once, _mm256_slli_epi32(once, 16));
    }
}

// The products of 32 numbers in 4 bits of each column with the same 32 in 8 bits, summed. numbers: eight lie together, then the
// next eight 32 bytes on. Sixteen products of at most 15 * 127 fit into 16 bits, so that the sums are widened once.
static inline __m256i product(const __m256i * weights, const int8_t * numbers) {
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int c = 0; c < 8; ++c) {
        int32_t bytes;
        memcpy(&bytes, numbers + (c / 2) * 32 + (c % 2) * 4, sizeof bytes);
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights[c], _mm256_set1_epi32(bytes)));
    }
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

// ROWS rows, interleaved by four as ggml quantises them, by eight columns. blocks: of 256 in a row; step: floats from a row of
// the product to the next.
template <int ROWS>
static inline void tile(const block_q8_Kx4 * rows, const block_q4_Kx8 * columns, int blocks, float * out, size_t step) {
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    __m256 sum[ROWS];
    for (int r = 0; r < ROWS; ++r) {
        sum[r] = _mm256_setzero_ps();
    }
    for (int b = 0; b < blocks; ++b) {
        Scales scales;
        unpack(columns[b], scales);
        __m256 part[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            part[r] = _mm256_setzero_ps();
        }
        for (int pair = 0; pair < SUBS / 2; ++pair) {
            for (int half = 0; half < 2; ++half) {  // two sub-blocks lie in the halves of the same bytes
                __m256i weights[8];
                for (int c = 0; c < 4; ++c) {
                    const uint8_t * from = columns[b].qs + pair * 256 + c * 64;
                    __m256i x = _mm256_loadu_si256((const __m256i *) from);
                    __m256i y = _mm256_loadu_si256((const __m256i *) (from + 32));
                    if (half) {
                        x = _mm256_srli_epi16(x, 4);
                        y = _mm256_srli_epi16(y, 4);
                    }
                    const __m256 p = _mm256_castsi256_ps(_mm256_and_si256(x, nibble));
                    const __m256 q = _mm256_castsi256_ps(_mm256_and_si256(y, nibble));
                    weights[2 * c] = _mm256_castps_si256(_mm256_shuffle_ps(p, q, 0x88));
                    weights[2 * c + 1] = _mm256_castps_si256(_mm256_shuffle_ps(p, q, 0xdd));
                }
                const __m256 scale = scales.scale[2 * pair + half];
                for (int r = 0; r < ROWS; ++r) {
                    const int8_t * numbers = rows[(r / 4) * blocks + b].qs + pair * 256 + half * 128 + (r % 4) * 8;
                    part[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product(weights, numbers)), scale, part[r]);
                }
            }
        }
        const __m256 by = _mm256_permutevar8x32_ps(halves(columns[b].dmin), order());
        for (int r = 0; r < ROWS; ++r) {
            const block_q8_Kx4 & row = rows[(r / 4) * blocks + b];
            __m256i least = _mm256_setzero_si256();
#pragma GCC unroll 8
            for (int i = 0; i < SUBS; ++i) {
                int32_t pair;
                memcpy(&pair, row.bsums + (i / 2) * 16 + (r % 4) * 4 + (i % 2) * 2, sizeof pair);
                least = _mm256_add_epi32(least, _mm256_madd_epi16(scales.least[i], _mm256_set1_epi32(pair)));
            }
            const __m256 whole = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(least), by, part[r]);
            sum[r] = _mm256_fmadd_ps(whole, _mm256_set1_ps(row.d[r % 4]), sum[r]);
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        _mm256_storeu_ps(out + r * step, _mm256_permutevar8x32_ps(sum[r], order()));  // the order is its own inverse
    }
}

// So many of the rows as are computed: four at a time, of a matrix in 4 bits.
template <class Block>
static int multiply_by(int n, float * out, size_t step, const void * vx, const void * vy, int rows, int columns) {
    if (!std::is_same<Block, block_q4_K>::value) {
        return 0;
    }
    const int blocks = n / QK_K, done = rows - rows % 4;
    for (int row = 0; row < done;) {
        const int left = done - row, size = left >= 16 ? 16 : left;
        for (int column = 0; column < columns; column += 8) {
            const block_q4_Kx8 * x = (const block_q4_Kx8 *) vx + column / 8 * blocks;
            const block_q8_Kx4 * y = (const block_q8_Kx4 *) vy + row / 4 * blocks;
            float * to = out + row * step + column;
            switch (size) {
                case 16: tile<16>(y, x, blocks, to, step); break;
                case 12: tile<12>(y, x, blocks, to, step); break;
                case 8: tile<8>(y, x, blocks, to, step); break;
                default: tile<4>(y, x, blocks, to, step); break;
            }
        }
        row += size;
    }
    return done;
}

}  // namespace appliance

#endif
