// Thirty-two columns at a time, for processors with AVX-512 VNNI (Intel's servers from 2019 on, AMD's from the Ryzen 7000 on).
//
// Four bytes of a row meet four of each of sixteen columns in one instruction, and are loaded once for two such groups. Weights
// are unpacked, and rid of their shuffle, once for as many rows as are computed together. A format says only how its blocks are
// unpacked; blocks of eight columns lie in memory as ggml repacks them.
#pragma once

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define APPLIANCE_MATRIX 1
#define APPLIANCE_MATRIX_SIX 1

#define APPLIANCE_INLINE inline __attribute__((always_inline))

namespace appliance {

constexpr int MOST_ROWS = 64;  // that are computed together
constexpr int STEPS = 8;       // in which a block of 256 numbers is gone through, 32 in each

// What sixteen columns' blocks are scaled by: a float for each sub-block and column. Weights are stored without a sign: `least`
// times the sums of a row's numbers is what that adds, in pairs of sixteen numbers' sums; times `by`, it is to be taken off.
struct Scales {
    __m512 scale[16];
    __m512i least[8];
    __m512 by;
};

// Halves of eight columns and of eight more.
static inline __m512 sixteen(const ggml_half * left, const ggml_half * right) {
    const __m128i low = _mm_loadu_si128((const __m128i *) left), high = _mm_loadu_si128((const __m128i *) right);
    return _mm512_cvtph_ps(_mm256_set_m128i(high, low));
}

// Eight bytes of each of eight columns, and of eight more: the first four of all sixteen, and the others.
static inline void part(__m512i left, __m512i right, __m512i * out) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    out[0] = _mm512_permutex2var_epi32(left, even, right);
    out[1] = _mm512_permutex2var_epi32(left, _mm512_add_epi32(even, _mm512_set1_epi32(1)), right);
}

// Q4_K: sub-blocks of 32 with a scale and a least value, in 6 bits each.
struct Four {
    typedef block_q4_Kx8 Block;
    static constexpr int SUBS = 1;  // of them in a step

    static inline void scales(const Block & left, const Block & right, Scales & out) {
        // Twelve bytes for each sub-block hold eight scales and eight least values: three words, here of all sub-blocks.
        const __m512i first = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 0, 3, 6, 9, 12, 15, 18, 21);
        const auto words = [&](const uint8_t * packed, int offset) {
            const __m512i low = _mm512_loadu_si512(packed);
            const __m512i high = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *) (packed + 64)));
            const __m512i at = _mm512_add_epi32(first, _mm512_set1_epi32(offset));
            return _mm512_castsi512_si256(_mm512_permutex2var_epi32(low, at, high));
        };
        const auto both = [&](int offset) {
            const __m512i low = _mm512_castsi256_si512(words(left.scales, offset));
            return _mm512_inserti64x4(low, words(right.scales, offset), 1);
        };
        const __m512i u0 = both(0), u1 = both(1), u2 = both(2);
        const __m512i six = _mm512_set1_epi32(0x3f3f3f3f), four = _mm512_set1_epi32(0x0f0f0f0f);
        const __m512i two = _mm512_set1_epi32(0x03030303);
        const auto upper = [&](__m512i x) { return _mm512_slli_epi32(_mm512_and_si512(_mm512_srli_epi32(x, 6), two), 4); };
        const __m512i scales0 = _mm512_and_si512(u0, six);
        const __m512i scales4 = _mm512_or_si512(_mm512_and_si512(u2, four), upper(u0));
        const __m512i least0 = _mm512_and_si512(u1, six);
        const __m512i least4 = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(u2, 4), four), upper(u1));

        // The sixteen columns' bytes of a sub-block side by side, four sub-blocks in a vector.
        const __m512i low = _mm512_setr_epi32(0, 16, 8, 24, 1, 17, 9, 25, 2, 18, 10, 26, 3, 19, 11, 27);
        const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
        alignas(64) uint8_t scale[128], least[128];
        _mm512_store_si512(scale, _mm512_permutex2var_epi32(scales0, low, scales4));
        _mm512_store_si512(scale + 64, _mm512_permutex2var_epi32(scales0, high, scales4));
        _mm512_store_si512(least, _mm512_permutex2var_epi32(least0, low, least4));
        _mm512_store_si512(least + 64, _mm512_permutex2var_epi32(least0, high, least4));
        const __m512 by = sixteen(left.d, right.d);
        for (int i = 0; i < 8; ++i) {
            const __m512i s = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *) (scale + 16 * i)));
            const __m512i m = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *) (least + 16 * i)));
            out.scale[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(s), by);
            out.least[i] = _mm512_or_si512(m, _mm512_slli_epi32(m, 16));
        }
        out.by = sixteen(left.dmin, right.dmin);
    }

    // Of each 64 numbers, the first 32 lie in the lower halves of bytes, and the others in the upper.
    static inline void weights(const Block & left, const Block & right, int step, __m512i * out) {
        const __m512i nibble = _mm512_set1_epi8(0x0f);
        for (int c = 0; c < 4; ++c) {
            const int at = step / 2 * 256 + c * 64;
            const auto whole = [&](const Block & block) {
                return _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(block.qs + at), step % 2 * 4), nibble);
            };
            part(whole(left), whole(right), out + 2 * c);
        }
    }
};

// Q6_K: sub-blocks of 16 with a scale in 8 bits; weights from -32 to 31, stored as 0 to 63, four bits here and two there.
struct Six {
    typedef block_q6_Kx8 Block;
    static constexpr int SUBS = 2;

    static inline void scales(const Block & left, const Block & right, Scales & out) {
        const __m512 by = sixteen(left.d, right.d);
        __m512i scale[16];
        for (int i = 0; i < 16; ++i) {
            const __m128i low = _mm_loadl_epi64((const __m128i *) (left.scales + 8 * i));
            const __m128i high = _mm_loadl_epi64((const __m128i *) (right.scales + 8 * i));
            scale[i] = _mm512_cvtepi8_epi32(_mm_unpacklo_epi64(low, high));
            out.scale[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(scale[i]), by);
        }
        for (int i = 0; i < 8; ++i) {
            const __m512i low = _mm512_and_si512(scale[2 * i], _mm512_set1_epi32(0xffff));
            out.least[i] = _mm512_or_si512(low, _mm512_slli_epi32(scale[2 * i + 1], 16));
        }
        out.by = _mm512_mul_ps(by, _mm512_set1_ps(32.0f));
    }

    // Of each 128 numbers, the first 64 have their four bits in the lower halves of bytes, and the others in the upper.
    static inline void weights(const Block & left, const Block & right, int step, __m512i * out) {
        const __m512i nibble = _mm512_set1_epi8(0x0f), two = _mm512_set1_epi8(0x30);
        const int quarter = step % 4, shift = quarter / 2 * 4;
        const auto whole = [&](const Block & block, int c) {
            const int low = step / 4 * 512 + quarter % 2 * 256 + c * 64, high = step / 4 * 256 + c * 64;
            const __m512i l = _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(block.ql + low), shift), nibble);
            const __m512i bits = _mm512_loadu_si512(block.qh + high);
            const __m512i h = quarter == 3 ? _mm512_srli_epi16(bits, 2) : _mm512_slli_epi16(bits, 4 - 2 * quarter);
            return _mm512_or_si512(l, _mm512_and_si512(h, two));
        };
        for (int c = 0; c < 4; ++c) {
            part(whole(left, c), whole(right, c), out + 2 * c);
        }
    }
};

// Rows as ggml quantises them: four interleaved by eight bytes, and one alone.
struct Interleaved {
    typedef block_q8_Kx4 Block;
    static constexpr int ROWS = 4, APART = 32;  // bytes from eight numbers of a row to its next eight
    static inline const int8_t * numbers(const Block & block, int row, int place) { return block.qs + place * 4 + row * 8; }
    static inline const int16_t * sums(const Block & block, int row, int pair) {
        return block.bsums + pair / 2 * 16 + row * 4 + pair % 2 * 2;
    }
    static inline float scale(const Block & block, int row) { return block.d[row]; }
};

struct Alone {
    typedef block_q8_K Block;
    static constexpr int ROWS = 1, APART = 8;
    static inline const int8_t * numbers(const Block & block, int, int place) { return block.qs + place; }
    static inline const int16_t * sums(const Block & block, int, int pair) { return block.bsums + pair * 2; }
    static inline float scale(const Block & block, int) { return block.d; }
};

// A block's part of the product, which grows step by step: begun with what is to be taken off, ended by the rows' own scale.
template <int SIDES> using Part = __m512[SIDES];

template <class Rows, int SIDES>
static APPLIANCE_INLINE void begin(const typename Rows::Block & block, const Scales * scales, Part<SIDES> * to) {
#pragma GCC unroll 4
    for (int r = 0; r < Rows::ROWS; ++r) {
        __m512i least[SIDES];
        for (int s = 0; s < SIDES; ++s) {
            least[s] = _mm512_setzero_si512();
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            int32_t pair;
            memcpy(&pair, Rows::sums(block, r, i), sizeof pair);
            for (int s = 0; s < SIDES; ++s) {
                least[s] = _mm512_dpwssd_epi32(least[s], scales[s].least[i], _mm512_set1_epi32(pair));
            }
        }
        for (int s = 0; s < SIDES; ++s) {
            to[r][s] = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(_mm512_cvtepi32_ps(least[s]), scales[s].by));
        }
    }
}

template <class Rows, int SIDES, int SUBS>
static APPLIANCE_INLINE void add(const typename Rows::Block & block, int place, const __m512i (*weights)[8],
        const __m512 (*scale)[SUBS], Part<SIDES> * to) {
    constexpr int EACH = 8 / SUBS;  // vectors of weights in a sub-block
#pragma GCC unroll 4
    for (int r = 0; r < Rows::ROWS; ++r) {
        const int8_t * numbers = Rows::numbers(block, r, place);
#pragma GCC unroll 2
        for (int i = 0; i < SUBS; ++i) {
            __m512i product[SIDES];
#pragma GCC unroll 2
            for (int s = 0; s < SIDES; ++s) {
                product[s] = _mm512_setzero_si512();
            }
#pragma GCC unroll 8
            for (int c = i * EACH; c < (i + 1) * EACH; ++c) {
                int32_t bytes;
                memcpy(&bytes, numbers + c / 2 * Rows::APART + c % 2 * 4, sizeof bytes);
                const __m512i four = _mm512_set1_epi32(bytes);
#pragma GCC unroll 2
                for (int s = 0; s < SIDES; ++s) {
                    product[s] = _mm512_dpbusd_epi32(product[s], weights[s][c], four);
                }
            }
#pragma GCC unroll 2
            for (int s = 0; s < SIDES; ++s) {
                to[r][s] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product[s]), scale[s][i], to[r][s]);
            }
        }
    }
}

template <class Rows, int SIDES>
static APPLIANCE_INLINE void end(const typename Rows::Block & block, const Part<SIDES> * from, Part<SIDES> * sum) {
    for (int r = 0; r < Rows::ROWS; ++r) {
        const __m512 by = _mm512_set1_ps(Rows::scale(block, r));
        for (int s = 0; s < SIDES; ++s) {
            sum[r][s] = _mm512_fmadd_ps(from[r][s], by, sum[r][s]);
        }
    }
}

// Rows by sixteen columns for each of SIDES. rows: all four together as far as they go, the others alone; blocks: of 256 numbers
// in a row; columns: where each eight begin; step: floats from a row of the product to the next; width: columns that are there;
// fetch: whether to bring nearer what the next columns need.
template <class Format, int SIDES>
static inline void tile(const block_q8_K * rows, int count, const typename Format::Block * const * columns, int blocks,
        float * out, size_t step, int width, bool fetch) {
    constexpr int SUBS = Format::SUBS;
    const int fours = count / 4;
    const block_q8_Kx4 * four = (const block_q8_Kx4 *) rows;
    Part<SIDES> sum[MOST_ROWS], part[MOST_ROWS];
    for (int r = 0; r < count; ++r) {
        for (int s = 0; s < SIDES; ++s) {
            sum[r][s] = _mm512_setzero_ps();
        }
    }
    for (int b = 0; b < blocks; ++b) {
        Scales scales[SIDES];
        for (int s = 0; s < SIDES; ++s) {
            Format::scales(columns[2 * s][b], columns[2 * s + 1][b], scales[s]);
        }
        if (fetch) {
            // A step of a whole class is done with these columns before the memory has brought the next.
            for (int i = 0; i < 2 * SIDES; ++i) {
                const char * next = (const char *) (columns[i] + 2 * SIDES * blocks + b);
                for (size_t line = 0; line < sizeof(typename Format::Block); line += 64) {
                    _mm_prefetch(next + line, _MM_HINT_T1);
                }
            }
        }
        for (int n = 0; n < fours; ++n) {
            begin<Interleaved, SIDES>(four[n * blocks + b], scales, part + 4 * n);
        }
        for (int r = 4 * fours; r < count; ++r) {
            begin<Alone, SIDES>(rows[r * blocks + b], scales, part + r);
        }
        for (int t = 0; t < STEPS; ++t) {
            __m512i weights[SIDES][8];
            __m512 scale[SIDES][SUBS];
#pragma GCC unroll 2
            for (int s = 0; s < SIDES; ++s) {
                Format::weights(columns[2 * s][b], columns[2 * s + 1][b], t, weights[s]);
#pragma GCC unroll 2
                for (int i = 0; i < SUBS; ++i) {
                    scale[s][i] = scales[s].scale[t * SUBS + i];
                }
            }
            for (int n = 0; n < fours; ++n) {
                add<Interleaved, SIDES, SUBS>(four[n * blocks + b], 32 * t, weights, scale, part + 4 * n);
            }
            for (int r = 4 * fours; r < count; ++r) {
                add<Alone, SIDES, SUBS>(rows[r * blocks + b], 32 * t, weights, scale, part + r);
            }
        }
        for (int n = 0; n < fours; ++n) {
            end<Interleaved, SIDES>(four[n * blocks + b], part + 4 * n, sum + 4 * n);
        }
        for (int r = 4 * fours; r < count; ++r) {
            end<Alone, SIDES>(rows[r * blocks + b], part + r, sum + r);
        }
    }
    for (int s = 0; s < SIDES; ++s) {
        const __mmask16 there = width - 16 * s >= 16 ? 0xffff : 0x00ff;
        for (int r = 0; r < count; ++r) {
            _mm512_mask_storeu_ps(out + r * step + 16 * s, there, sum[r][s]);
        }
    }
}

// columns: a multiple of eight.
template <class Format>
static void multiply(int n, float * out, size_t step, const void * vx, const void * vy, int rows, int columns) {
    typedef typename Format::Block Block;
    const int blocks = n / QK_K;
    for (int row = 0; row < rows; row += MOST_ROWS) {
        const int count = rows - row < MOST_ROWS ? rows - row : MOST_ROWS;
        const block_q8_K * y = (const block_q8_K *) vy + row * blocks;
        for (int column = 0; column < columns; column += 32) {
            const int width = columns - column < 32 ? columns - column : 32;
            const Block * eights[4];
            for (int i = 0; i < 4; ++i) {  // what is not there is computed as the last that is, and not stored
                eights[i] = (const Block *) vx + (column / 8 + (8 * i < width ? i : width / 8 - 1)) * blocks;
            }
            float * to = out + row * step + column;
            if (width > 16) {
                tile<Format, 2>(y, count, eights, blocks, to, step, width, row == 0);
            } else {
                tile<Format, 1>(y, count, eights, blocks, to, step, width, row == 0);
            }
        }
    }
}

// So many of the rows as are computed: all, or none. One row of a matrix in 4 bits is as quick in ggml's way.
template <class Block>
static int multiply_by(int n, float * out, size_t step, const void * vx, const void * vy, int rows, int columns) {
    if constexpr (std::is_same<Block, block_q6_K>::value) {
        multiply<Six>(n, out, step, vx, vy, rows, columns);
        return rows;
    }
    if constexpr (std::is_same<Block, block_q4_K>::value) {
        if (rows > 1) {
            multiply<Four>(n, out, step, vx, vy, rows, columns);
            return rows;
        }
    }
    return 0;
}

}  // namespace appliance

#endif
