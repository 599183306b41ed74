/* avx2.h - vectors of 256 bits: parts of one, sums, transposition. */
#ifndef AVX2_H
#define AVX2_H

#include <immintrin.h>

/* ---- partial vectors of 256 bits: the first n of 8 lanes, the others 0 or untouched ---- */

static inline __m256i lanes(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline __m256 load_lanes(const float *p, int n)
{
    return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes(n));
}
static inline void store_lanes(float *p, int n, __m256 v)
{
    if (n >= 8) _mm256_storeu_ps(p, v);
    else _mm256_maskstore_ps(p, lanes(n), v);
}

static inline float sum8(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float max8(__m256 v)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
static inline double sum4d(__m256d v)
{
    __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

/* a . b over n elements: four running sums of 8 lanes, always added up in the same way. */
static inline float dot(const float *a, const float *b, int n)
{
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    int i = 0;
    for (; i + 32 <= n; i += 32) {
        s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
        s1 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), s1);
        s2 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 16), _mm256_loadu_ps(b + i + 16), s2);
        s3 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 24), _mm256_loadu_ps(b + i + 24), s3);
    }
    for (; i < n; i += 8) s0 = _mm256_fmadd_ps(load_lanes(a + i, n - i), load_lanes(b + i, n - i), s0);
    return sum8(_mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3)));
}

/* ---- transposition ---- */

/* out[k*stride + r] = rows[r][k], r < 4, k < 8 */
static inline void interleave(float *out, size_t stride, const float *const *rows)
{
    __m256 a = _mm256_loadu_ps(rows[0]), b = _mm256_loadu_ps(rows[1]);
    __m256 c = _mm256_loadu_ps(rows[2]), d = _mm256_loadu_ps(rows[3]), v[4];
    __m256 ab = _mm256_unpacklo_ps(a, b), cd = _mm256_unpacklo_ps(c, d);
    int k;
    v[0] = _mm256_shuffle_ps(ab, cd, 0x44);
    v[1] = _mm256_shuffle_ps(ab, cd, 0xee);
    ab = _mm256_unpackhi_ps(a, b);
    cd = _mm256_unpackhi_ps(c, d);
    v[2] = _mm256_shuffle_ps(ab, cd, 0x44);
    v[3] = _mm256_shuffle_ps(ab, cd, 0xee);
    for (k = 0; k < 4; k++) {
        _mm_storeu_ps(out + (size_t)k * stride, _mm256_castps256_ps128(v[k]));
        _mm_storeu_ps(out + (size_t)(k + 4) * stride, _mm256_extractf128_ps(v[k], 1));
    }
}

/* c[i] += v[i], i < 4 */
static inline void add_four(float *c, const float *v) { _mm_storeu_ps(c, _mm_add_ps(_mm_loadu_ps(c), _mm_loadu_ps(v))); }

#endif
