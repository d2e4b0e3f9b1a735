// Vectors as wide as the processor's: sixteen floats with AVX-512, eight with AVX2. Hides which of them it is.
#pragma once

#include "ggml.h"

#include <immintrin.h>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__) && defined(__F16C__))
#define APPLIANCE_WIDE 1

namespace appliance {

constexpr int HEADS = 4;  // that are computed side by side

#if defined(__AVX512F__)
typedef __m512 wide;
constexpr int WIDTH = 16, TOGETHER = 4, PIECES = 4;  // registers decide how many cells, and pieces of a value, go together
static inline wide halves(const ggml_fp16_t * x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) x)); }
static inline wide load(const float * x) { return _mm512_loadu_ps(x); }
static inline void store(float * x, wide v) { _mm512_storeu_ps(x, v); }
static inline wide all(float x) { return _mm512_set1_ps(x); }
static inline wide zero() { return _mm512_setzero_ps(); }
static inline wide fma(wide a, wide b, wide c) { return _mm512_fmadd_ps(a, b, c); }
static inline wide times(wide a, wide b) { return _mm512_mul_ps(a, b); }
static inline wide minus(wide a, wide b) { return _mm512_sub_ps(a, b); }
static inline wide plus(wide a, wide b) { return _mm512_add_ps(a, b); }
static inline wide most(wide a, wide b) { return _mm512_max_ps(a, b); }
static inline wide four(const float * x) { return _mm512_broadcast_f32x4(_mm_loadu_ps(x)); }
static inline __m256 half(wide v) {
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
}
static inline __m128 fold_max(wide v) {
    const __m256 a = _mm256_max_ps(_mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
    return _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}
static inline __m128 fold_sum(wide v) {
    const __m256 a = half(v);
    return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}
#else
typedef __m256 wide;
constexpr int WIDTH = 8, TOGETHER = 2, PIECES = 2;
static inline wide halves(const ggml_fp16_t * x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) x)); }
static inline wide load(const float * x) { return _mm256_loadu_ps(x); }
static inline void store(float * x, wide v) { _mm256_storeu_ps(x, v); }
static inline wide all(float x) { return _mm256_set1_ps(x); }
static inline wide zero() { return _mm256_setzero_ps(); }
static inline wide fma(wide a, wide b, wide c) { return _mm256_fmadd_ps(a, b, c); }
static inline wide times(wide a, wide b) { return _mm256_mul_ps(a, b); }
static inline wide minus(wide a, wide b) { return _mm256_sub_ps(a, b); }
static inline wide plus(wide a, wide b) { return _mm256_add_ps(a, b); }
static inline wide most(wide a, wide b) { return _mm256_max_ps(a, b); }
static inline wide four(const float * x) { return _mm256_broadcast_ps((const __m128 *) x); }
static inline __m256 half(wide v) { return v; }
static inline __m128 fold_max(wide v) { return _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
static inline __m128 fold_sum(wide v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
#endif

}  // namespace appliance

#endif
