// Attention over the past: what a class's next words mostly wait for, once its talks have become long.
//
// ggml computes the next words' a head at a time, so that heads which share their keys and values (grouped queries) read and
// convert them again and again, and takes an exponential for each cell alone; for a prompt it computes whole tiles, half of
// which nobody sees. Here four heads go over the past together: every key and value is read and converted once for them, what
// is hidden is stepped over, exponentials are taken in blocks, and sums are kept in 32 bits. x86-64 from AVX2 on, keys and
// values in 16 bits; anything else is left to ggml.
#pragma once

#include "used.h"
#include "wide.h"

#include "../ggml-cpu-impl.h"
#include "../vec.h"
#include "ggml-impl.h"

#include <cmath>
#include <cstring>

#ifdef APPLIANCE_WIDE
#define APPLIANCE_ATTENTION 1

namespace appliance {

constexpr int ROWS = 8;       // queries that go over the past together, four heads of each side by side
constexpr int CELLS = 64;     // of the past, whose exponentials are taken together
constexpr int AHEAD = 32;     // cells whose keys are fetched in advance
constexpr int LONGEST = 256;  // numbers of a key or a value at most

// Bring so many halves nearer: the past of a class is read from memory once a step, a row here and a row there.
static inline void fetch(const char * row, int count) {
    for (int line = 0; line < 2 * count; line += 64) {
        _mm_prefetch(row + line, _MM_HINT_T0);
    }
}

// The sums of four vectors, side by side.
static inline __m128 sums(const wide * a) {
    const __m256 ab = _mm256_hadd_ps(half(a[0]), half(a[1]));
    const __m256 cd = _mm256_hadd_ps(half(a[2]), half(a[3]));
    const __m256 abcd = _mm256_hadd_ps(ab, cd);
    return _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1));
}

// The same for all cells that are computed together.
static inline void sums(const wide a[TOGETHER][HEADS], float * out) {
#if defined(__AVX512F__)
    __m512 cell[TOGETHER];  // the four heads' sums, four times, each of a quarter
    for (int c = 0; c < TOGETHER; ++c) {
        const __m512 x = _mm512_add_ps(_mm512_unpacklo_ps(a[c][0], a[c][1]), _mm512_unpackhi_ps(a[c][0], a[c][1]));
        const __m512 y = _mm512_add_ps(_mm512_unpacklo_ps(a[c][2], a[c][3]), _mm512_unpackhi_ps(a[c][2], a[c][3]));
        const __m512d p = _mm512_castps_pd(x), q = _mm512_castps_pd(y);
        cell[c] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
    }
    const __m512 x = _mm512_add_ps(_mm512_shuffle_f32x4(cell[0], cell[1], 0x44), _mm512_shuffle_f32x4(cell[0], cell[1], 0xee));
    const __m512 y = _mm512_add_ps(_mm512_shuffle_f32x4(cell[2], cell[3], 0x44), _mm512_shuffle_f32x4(cell[2], cell[3], 0xee));
    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd)));
#else
    for (int c = 0; c < TOGETHER; ++c) {
        _mm_storeu_ps(out + c * HEADS, sums(a[c]));
    }
#endif
}

// Where four heads of one query are: the greatest score of each, the sum of its weights, and its weighted values.
struct Row {
    float query[HEADS * LONGEST];  // scaled; a head's numbers after another's, without a gap
    float values[HEADS * LONGEST];
    float greatest[HEADS];
    float weight[HEADS];
    const ggml_fp16_t * mask;  // a half for each cell, null where all are seen
};

// The keys and values that the rows go over, and what is the same for all of them.
struct Past {
    const char * keys;
    const char * values;
    size_t key_step, value_step;
    int DK, DV;
    float slope[HEADS];  // of the mask
    float softcap;       // 0 for none
};

// Adds so many vectors of the cells' values, from a number on, each times its weight, to the rows of four heads.
template <int COUNT>
static inline void gather(
        const Past & past, int from, const int64_t * cells, int count, const float * weights, float * out) {
    const int DV = past.DV;
    wide a[COUNT][HEADS];
    for (int p = 0; p < COUNT; ++p) {
        for (int h = 0; h < HEADS; ++h) {
            a[p][h] = load(out + h * DV + p * WIDTH);
        }
    }
    for (int i = 0; i < count; ++i) {
        const ggml_fp16_t * v = (const ggml_fp16_t *) (past.values + cells[i] * past.value_step) + from;
        wide x[COUNT];
        for (int p = 0; p < COUNT; ++p) {
            x[p] = halves(v + p * WIDTH);
        }
        for (int h = 0; h < HEADS; ++h) {
            const wide w = all(weights[i * HEADS + h]);
            for (int p = 0; p < COUNT; ++p) {
                a[p][h] = fma(x[p], w, a[p][h]);
            }
        }
    }
    for (int p = 0; p < COUNT; ++p) {
        for (int h = 0; h < HEADS; ++h) {
            store(out + h * DV + p * WIDTH, a[p][h]);
        }
    }
}

// One row over the cells that it sees from `next` on, so many as are taken together; where it stopped.
static int64_t advance(const Past & past, Row & row, int64_t next, int64_t end) {
    alignas(64) float scores[CELLS * HEADS];
    int64_t cells[CELLS];
    float bias[CELLS];
    const int DK = past.DK, DV = past.DV;

    // Cells that are hidden are stepped over, and cost no more than that.
    int count = 0;
    for (; next < end && count < CELLS; ++next) {
        const ggml_fp16_t m = row.mask ? row.mask[next] : 0;
        if (m == 0xFC00) {  // minus infinity
            continue;
        }
        bias[count] = m ? GGML_CPU_FP16_TO_FP32(m) : 0.0f;
        cells[count++] = next;
    }
    if (count == 0) {
        return next;
    }

    int i = 0;
    for (; i + TOGETHER <= count; i += TOGETHER) {
        const ggml_fp16_t * key[TOGETHER];
        for (int c = 0; c < TOGETHER; ++c) {
            key[c] = (const ggml_fp16_t *) (past.keys + cells[i + c] * past.key_step);
            fetch(past.values + cells[i + c] * past.value_step, DV);
        }
        if (cells[i] + AHEAD + TOGETHER <= end) {
            for (int c = 0; c < TOGETHER; ++c) {
                fetch(past.keys + (cells[i] + AHEAD + c) * past.key_step, DK);
            }
        }
        wide a[TOGETHER][HEADS];
        for (int c = 0; c < TOGETHER; ++c) {
            for (int h = 0; h < HEADS; ++h) {
                a[c][h] = zero();
            }
        }
        for (int j = 0; j < DK; j += WIDTH) {
            wide x[TOGETHER];
            for (int c = 0; c < TOGETHER; ++c) {
                x[c] = halves(key[c] + j);
            }
            for (int h = 0; h < HEADS; ++h) {
                const wide q = load(row.query + h * DK + j);
                for (int c = 0; c < TOGETHER; ++c) {
                    a[c][h] = fma(x[c], q, a[c][h]);
                }
            }
        }
        sums(a, scores + i * HEADS);
    }
    for (; i < count; ++i) {
        const ggml_fp16_t * key = (const ggml_fp16_t *) (past.keys + cells[i] * past.key_step);
        wide a[HEADS] = { zero(), zero(), zero(), zero() };
        for (int j = 0; j < DK; j += WIDTH) {
            const wide x = halves(key + j);
            for (int h = 0; h < HEADS; ++h) {
                a[h] = fma(x, load(row.query + h * DK + j), a[h]);
            }
        }
        _mm_store_ps(scores + i * HEADS, sums(a));
    }
    if (past.softcap != 0.0f) {
        for (i = 0; i < count * HEADS; ++i) {
            scores[i] = past.softcap * tanhf(scores[i]);
        }
    }
    if (row.mask) {
        const __m128 slopes = _mm_loadu_ps(past.slope);
        for (i = 0; i < count; ++i) {
            const __m128 s = _mm_load_ps(scores + i * HEADS);
            _mm_store_ps(scores + i * HEADS, _mm_add_ps(s, _mm_mul_ps(slopes, _mm_set1_ps(bias[i]))));
        }
    }
    constexpr int STEP = WIDTH / HEADS;  // cells in a vector of scores
    const int padded = (count + STEP - 1) / STEP * STEP;
    for (i = count * HEADS; i < padded * HEADS; ++i) {
        scores[i] = -INFINITY;
    }

    wide top = load(scores);
    for (i = STEP; i < padded; i += STEP) {
        top = most(top, load(scores + i * HEADS));
    }
    alignas(16) float tops[HEADS];
    _mm_store_ps(tops, fold_max(top));
    for (int h = 0; h < HEADS; ++h) {
        if (tops[h] > row.greatest[h]) {
            const float less = expf(row.greatest[h] - tops[h]);
            row.greatest[h] = tops[h];
            row.weight[h] *= less;
            for (int j = 0; j < DV; j += WIDTH) {
                store(row.values + h * DV + j, times(load(row.values + h * DV + j), all(less)));
            }
        }
    }
    const wide greatest = four(row.greatest);
    wide total = zero();
    for (i = 0; i < padded; i += STEP) {
        const wide weight = ggml_v_expf(minus(load(scores + i * HEADS), greatest));
        store(scores + i * HEADS, weight);
        total = plus(total, weight);
    }
    _mm_storeu_ps(row.weight, _mm_add_ps(_mm_loadu_ps(row.weight), fold_sum(total)));

    int j = 0;
    for (; j + PIECES * WIDTH <= DV; j += PIECES * WIDTH) {
        gather<PIECES>(past, j, cells, count, scores, row.values + j);
    }
    for (; j < DV; j += WIDTH) {
        gather<1>(past, j, cells, count, scores, row.values + j);
    }
    return next;
}

// Rows over the cells from begin to end. They go on together: a stretch of the past is near when the next row comes to it.
static void attend(const Past & past, Row * rows, int count, int64_t begin, int64_t end) {
    for (int r = 0; r < count; ++r) {
        memset(rows[r].values, 0, sizeof(float) * HEADS * past.DV);
        for (int h = 0; h < HEADS; ++h) {
            rows[r].greatest[h] = -INFINITY;
            rows[r].weight[h] = 0.0f;
        }
    }
    for (int64_t next = begin; next < end;) {
        const int64_t stop = advance(past, rows[count - 1], next, end);  // the last query sees most
        for (int r = 0; r < count - 1; ++r) {
            for (int64_t mine = next; mine < stop;) {
                mine = advance(past, rows[r], mine, stop);
            }
        }
        next = stop;
    }
}

// Whether `attend` can compute this node: keys and values in 16 bits, heads that share them.
static bool fits(const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2], * mask = dst->src[3];
    return used() && q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 && v->type == GGML_TYPE_F16
        && k->ne[0] % WIDTH == 0 && v->ne[0] % WIDTH == 0
        && k->ne[0] <= LONGEST && v->ne[0] <= LONGEST
        && k->ne[2] == v->ne[2] && k->ne[3] == v->ne[3] && q->ne[2] >= 2 * k->ne[2] && (mask == nullptr || mask->ne[2] == 1);
}

// Heads are taken in fours of those that share keys, and queries in groups: so many units of work, over all sequences.
static int64_t units(const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0], * k = dst->src[1];
    const int64_t shared = q->ne[2] / k->ne[2];
    return (shared + HEADS - 1) / HEADS * k->ne[2] * ((q->ne[1] + ROWS - 1) / ROWS) * q->ne[3];
}

// One unit, over the cells from begin to end. partials: where the greatest score, the weight and the values of each head go, at
// `stride` floats from head to head; null: the finished rows go to dst.
static void compute(ggml_tensor * dst, int64_t unit, int64_t begin, int64_t end, float * partials, int64_t stride) {
    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2], * mask = dst->src[3], * sinks = dst->src[4];
    const int64_t shared = q->ne[2] / k->ne[2], fours = (shared + HEADS - 1) / HEADS, groups = (q->ne[1] + ROWS - 1) / ROWS;
    const int64_t four = unit % fours, kv = unit / fours % k->ne[2];
    const int64_t row0 = unit / (fours * k->ne[2]) % groups * ROWS, i3 = unit / (fours * k->ne[2] * groups);
    const int64_t first = kv * shared + four * HEADS, k3 = i3 / (q->ne[3] / k->ne[3]), v3 = i3 / (q->ne[3] / v->ne[3]);
    const int valid = (int) (shared - four * HEADS < HEADS ? shared - four * HEADS : HEADS);
    const int count = (int) (q->ne[1] - row0 < ROWS ? q->ne[1] - row0 : ROWS);

    float scale, max_bias;
    Past past;
    memcpy(&scale, (const float *) dst->op_params + 0, sizeof(float));
    memcpy(&max_bias, (const float *) dst->op_params + 1, sizeof(float));
    memcpy(&past.softcap, (const float *) dst->op_params + 2, sizeof(float));
    if (past.softcap != 0.0f) {
        scale /= past.softcap;
    }
    past.keys = (const char *) k->data + kv * k->nb[2] + k3 * k->nb[3];
    past.values = (const char *) v->data + kv * v->nb[2] + v3 * v->nb[3];
    past.key_step = k->nb[1];
    past.value_step = v->nb[1];
    past.DK = (int) k->ne[0];
    past.DV = (int) v->ne[0];

    const uint32_t log2_heads = 1u << (uint32_t) floor(log2((double) q->ne[2]));
    const float m0 = powf(2.0f, -max_bias / log2_heads), m1 = powf(2.0f, -(max_bias / 2.0f) / log2_heads);
    Row rows[ROWS];
    for (int h = 0; h < HEADS; ++h) {
        const int64_t head = first + (h < valid ? h : 0);  // where there are fewer, the first is computed again
        const float slope = head < log2_heads ? powf(m0, head + 1) : powf(m1, 2 * (head - log2_heads) + 1);
        past.slope[h] = max_bias > 0.0f ? slope : 1.0f;
        for (int r = 0; r < count; ++r) {
            const char * from = (const char *) q->data + (row0 + r) * q->nb[1] + head * q->nb[2] + i3 * q->nb[3];
            const float * x = (const float *) from;
            for (int j = 0; j < past.DK; ++j) {
                rows[r].query[h * past.DK + j] = x[j] * scale;
            }
        }
    }
    for (int r = 0; r < count; ++r) {
        const size_t place = mask ? (row0 + r) * mask->nb[1] + (i3 % mask->ne[3]) * mask->nb[3] : 0;
        rows[r].mask = mask ? (const ggml_fp16_t *) ((const char *) mask->data + place) : nullptr;
    }
    attend(past, rows, count, begin, end);

    for (int r = 0; r < count; ++r) {
        for (int h = 0; h < valid; ++h) {
            float * out = rows[r].values + h * past.DV, greatest = rows[r].greatest[h], weight = rows[r].weight[h];
            if (sinks && begin == 0) {
                const float s = ((const float *) sinks->data)[first + h];
                if (s > greatest) {
                    const float less = expf(greatest - s);
                    greatest = s;
                    weight *= less;
                    ggml_vec_scale_f32(past.DV, out, less);
                }
                weight += expf(s - greatest);
            }
            if (partials) {
                float * partial = partials + (first + h) * stride;
                partial[0] = greatest;
                partial[1] = weight;
                memcpy(partial + 2, out, past.DV * sizeof(float));
                continue;
            }
            ggml_vec_scale_f32(past.DV, out, weight == 0.0f ? 0.0f : 1.0f / weight);
            const int64_t place = (i3 * dst->ne[2] + row0 + r) * dst->ne[1] + first + h;
            memcpy((char *) dst->data + place * dst->nb[1], out, past.DV * sizeof(float));
        }
    }
}

}  // namespace appliance

#endif
