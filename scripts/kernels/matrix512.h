// Sixteen columns at a time, for processors with AVX-512 VNNI (Intel's servers from 2019 on, AMD's from the Ryzen 7000 on).
#pragma once

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define APPLIANCE_MATRIX 1

namespace appliance {

constexpr int COLUMNS = 16;
constexpr int SUBS = 8;  // sub-blocks of 32 in a block of 256, each with a scale and a least value of its own

// What sixteen columns' blocks are scaled by: a float for each sub-block and column, and the least values, twice in 16 bits.
struct Scales {
    __m512 scale[SUBS];
    __m512i least[SUBS];
};

static inline void unpack(const block_q4_Kx8 & left, const block_q4_Kx8 & right, Scales & out) {
    // Twelve bytes for each sub-block hold eight scales and eight least values in 6 bits: three words, here of all sub-blocks.
    const __m512i first = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 0, 3, 6, 9, 12, 15, 18, 21);
    const auto words = [&](const uint8_t * packed, int offset) {
        const __m512i low = _mm512_loadu_si512(packed);
        const __m512i high = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *) (packed + 64)));
        return _mm512_castsi512_si256(_mm512_permutex2var_epi32(low, _mm512_add_epi32(first, _mm512_set1_epi32(offset)), high));
    };
    const auto both = [&](int offset) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(words(left.scales, offset)), words(right.scales, offset), 1);
    };
    const __m512i u0 = both(0), u1 = both(1), u2 = both(2);
    const __m512i six = _mm512_set1_epi32(0x3f3f3f3f), four = _mm512_set1_epi32(0x0f0f0f0f);
    const __m512i two = _mm512_set1_epi32(0x03030303);
    const auto upper = [&](__m512i word) { return _mm512_slli_epi32(_mm512_and_si512(_mm512_srli_epi32(word, 6), two), 4); };
    const __m512i scales0 = _mm512_and_si512(u0, six);
    const __m512i scales4 = _mm512_or_si512(_mm512_and_si512(u2, four), upper(u0));
    const __m512i least0 = _mm512_and_si512(u1, six);
    const __m512i least4 = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(u2, 4), four), upper(u1));

    alignas(64) uint32_t a[16], b[16], c[16], d[16];
    _mm512_store_si512(a, scales0);
    _mm512_store_si512(b, scales4);
    _mm512_store_si512(c, least0);
    _mm512_store_si512(d, least4);
    const __m512 by = GGML_F32Cx8x2_LOAD(left.d, right.d);
    for (int i = 0; i < SUBS; ++i) {
        const __m128i s = _mm_setr_epi32(a[i], b[i], a[SUBS + i], b[SUBS + i]);
        const __m128i m = _mm_setr_epi32(c[i], d[i], c[SUBS + i], d[SUBS + i]);
        out.scale[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(s)), by);
        const __m512i once = _mm512_cvtepu8_epi32(m);
        out.least[i] = _mm512_or_si512(once, _mm512_slli_epi32(once, 16));
    }
}

// ROWS rows, interleaved by four as ggml quantises them, by sixteen columns. blocks: of 256 in a row; step: floats from a row
// of the product to the next.
template <int ROWS>
static inline void tile(const block_q8_Kx4 * rows, const block_q4_Kx8 * left, int blocks, float * out, size_t step) {
    const block_q4_Kx8 * right = left + blocks;
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const __m512i nibble = _mm512_set1_epi8(0x0f);
    __m512 sum[ROWS];
    for (int r = 0; r < ROWS; ++r) {
        sum[r] = _mm512_setzero_ps();
    }
    for (int b = 0; b < blocks; ++b) {
        Scales scales;
        unpack(left[b], right[b], scales);
        __m512 part[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            part[r] = _mm512_setzero_ps();
        }
        for (int pair = 0; pair < SUBS / 2; ++pair) {  // two sub-blocks lie in the halves of the same bytes
            __m512i packed[8];
            for (int c = 0; c < 4; ++c) {
                const __m512i x = _mm512_loadu_si512(left[b].qs + pair * 256 + c * 64);
                const __m512i y = _mm512_loadu_si512(right[b].qs + pair * 256 + c * 64);
                packed[2 * c] = _mm512_permutex2var_epi32(x, even, y);
                packed[2 * c + 1] = _mm512_permutex2var_epi32(x, odd, y);
            }
            for (int half = 0; half < 2; ++half) {
                __m512i weights[8];
                for (int c = 0; c < 8; ++c) {
                    weights[c] = _mm512_and_si512(half ? _mm512_srli_epi16(packed[c], 4) : packed[c], nibble);
                }
                const __m512 scale = scales.scale[2 * pair + half];
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; ++r) {
                    const block_q8_Kx4 & row = rows[(r / 4) * blocks + b];
                    const int8_t * numbers = row.qs + pair * 256 + half * 128 + (r % 4) * 8;
                    __m512i product = _mm512_setzero_si512();
#pragma GCC unroll 8
                    for (int c = 0; c < 8; ++c) {
                        int32_t bytes;
                        memcpy(&bytes, numbers + (c / 2) * 32 + (c % 2) * 4, sizeof bytes);
                        product = _mm512_dpbusd_epi32(product, weights[c], _mm512_set1_epi32(bytes));
                    }
                    part[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale, part[r]);
                }
            }
        }
        const __m512 by = GGML_F32Cx8x2_LOAD(left[b].dmin, right[b].dmin);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            const block_q8_Kx4 & row = rows[(r / 4) * blocks + b];
            __m512i product = _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int i = 0; i < SUBS; ++i) {
                int32_t pair;
                memcpy(&pair, row.bsums + (i / 2) * 16 + (r % 4) * 4 + (i % 2) * 2, sizeof pair);
                product = _mm512_dpwssd_epi32(product, scales.least[i], _mm512_set1_epi32(pair));
            }
            const __m512 whole = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(product), by, part[r]);
            sum[r] = _mm512_fmadd_ps(whole, _mm512_set1_ps(row.d[r % 4]), sum[r]);
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        _mm512_storeu_ps(out + r * step, sum[r]);
    }
}

}  // namespace appliance

#endif
