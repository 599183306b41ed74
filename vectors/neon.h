/* neon.h - the vectors of tile.h, and what avx2.h has, in the 128 bits of AArch64. */
#ifndef NEON_H
#define NEON_H

#include <arm_neon.h>

#define NAMED(name) neon_##name
#define MR 12
typedef float32x4_t vec;
enum {
    LANES = 4, NR = 8,      /* 24 sums, 2 vectors of B and 3 of A in 32 registers */
    KC = 320,               /* the most terms of a run: a panel of B, KC x NR floats, is 10 KiB */
    TURNED = 8
};

static inline vec vec_all(float x) { return vdupq_n_f32(x); }
static inline vec vec_load(const float *p) { return vld1q_f32(p); }
static inline vec vec_load_lanes(const float *p, int n)
{
    float some[LANES] = { 0 };
    int i;
    if (n >= LANES) return vld1q_f32(p);
    for (i = 0; i < n; i++) some[i] = p[i];
    return vld1q_f32(some);
}
static inline void vec_store(float *p, vec v) { vst1q_f32(p, v); }
static inline void vec_store_lanes(float *p, int n, vec v)
{
    float some[LANES];
    int i;
    if (n >= LANES) {
        vst1q_f32(p, v);
        return;
    }
    vst1q_f32(some, v);
    for (i = 0; i < n; i++) p[i] = some[i];
}
static inline vec vec_add(vec a, vec b) { return vaddq_f32(a, b); }
static inline vec vec_mul(vec a, vec b) { return vmulq_f32(a, b); }
static inline vec vec_fmadd(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
static inline vec vec_fnmadd(vec a, vec b, vec c) { return vfmsq_f32(c, a, b); }
static inline vec vec_sub(vec a, vec b) { return vsubq_f32(a, b); }
static inline vec vec_div(vec a, vec b) { return vdivq_f32(a, b); }
/* b where a is NaN, as in the other widths: vmaxq_f32() makes it NaN */
static inline vec vec_max(vec a, vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline vec vec_min(vec a, vec b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
static inline float vec_largest(vec v) { return vmaxvq_f32(v); }
static inline float vec_sum(vec v) { return vaddvq_f32(v); }
static inline int vec_any_equal(vec a, vec b) { return vmaxvq_u32(vceqq_f32(a, b)) != 0; }
static inline vec vec_minus_size(vec z) { return vnegq_f32(vabsq_f32(z)); }
static inline vec vec_by_sign(vec z, vec a, vec b)
{
    return vbslq_f32(vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_f32(z), 31)), a, b);
}
static inline vec vec_between(vec v, vec others, int from, int to)
{
    static const int32_t order[LANES] = { 0, 1, 2, 3 };
    int32x4_t lane = vld1q_s32(order);
    return vbslq_f32(vandq_u32(vcgeq_s32(lane, vdupq_n_s32(from)), vcltq_s32(lane, vdupq_n_s32(to))), v, others);
}
static inline vec vec_round(vec x) { return vrndnq_f32(x); }
static inline vec vec_raised(vec p, vec n)
{
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vcvtq_s32_f32(n), 23)));
}
static inline vec vec_unless_below(vec v, vec x, vec least)
{
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcltq_f32(x, least)));
}
static inline vec vec_times_power(vec p, vec n)
{
    const int32x4_t bias = vdupq_n_s32(127);
    int32x4_t i = vcvtq_s32_f32(n), half = vshrq_n_s32(i, 1);
    p = vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23)));
    return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vsubq_s32(i, half), bias), 23)));
}

/* a[i*row] in all lanes. Of packed rows, which lie side by side, it is a lane of a vector of four: fmla takes a factor
 * out of a lane, and of four loads there is one. */
ALWAYS_INLINE vec vec_of_row(const float *a, size_t row, int i, int mr)
{
    vec four;
    if (!(__builtin_constant_p(row) && row == 1 && mr % 4 == 0)) return vdupq_n_f32(a[(size_t)i * row]);
    four = vld1q_f32(a + i / 4 * 4);
    switch (i % 4) {
    case 0: return vdupq_laneq_f32(four, 0);
    case 1: return vdupq_laneq_f32(four, 1);
    case 2: return vdupq_laneq_f32(four, 2);
    default: return vdupq_laneq_f32(four, 3);
    }
}

struct doubles { float64x2_t low, high; };
static inline void add_doubles(struct doubles *s, vec v)
{
    s->low = vaddq_f64(s->low, vcvt_f64_f32(vget_low_f32(v)));
    s->high = vaddq_f64(s->high, vcvt_high_f64_f32(v));
}
static inline double doubles_sum(const struct doubles *s) { return vaddvq_f64(vaddq_f64(s->low, s->high)); }

/* a . b over n elements: four running sums, always added up in the same way. */
static inline float dot(const float *a, const float *b, int n)
{
    vec s0 = vec_all(0), s1 = s0, s2 = s0, s3 = s0;
    int i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        s0 = vec_fmadd(vec_load(a + i), vec_load(b + i), s0);
        s1 = vec_fmadd(vec_load(a + i + LANES), vec_load(b + i + LANES), s1);
        s2 = vec_fmadd(vec_load(a + i + 2 * LANES), vec_load(b + i + 2 * LANES), s2);
        s3 = vec_fmadd(vec_load(a + i + 3 * LANES), vec_load(b + i + 3 * LANES), s3);
    }
    for (; i < n; i += LANES) s0 = vec_fmadd(vec_load_lanes(a + i, n - i), vec_load_lanes(b + i, n - i), s0);
    return vec_sum(vec_add(vec_add(s0, s1), vec_add(s2, s3)));
}

/* ---- transposition: as in avx2.h ---- */

/* out[k*stride + r] = rows[r][i + k], r < 4, k < 4 */
static inline void transpose4(float *out, size_t stride, const float *const *rows, int i)
{
    vec a = vld1q_f32(rows[0] + i), b = vld1q_f32(rows[1] + i), c = vld1q_f32(rows[2] + i), d = vld1q_f32(rows[3] + i);
    vec ab = vtrn1q_f32(a, b), cd = vtrn1q_f32(c, d);       /* columns 0 and 2 */
    vst1q_f32(out, vcombine_f32(vget_low_f32(ab), vget_low_f32(cd)));
    vst1q_f32(out + 2 * stride, vcombine_f32(vget_high_f32(ab), vget_high_f32(cd)));
    ab = vtrn2q_f32(a, b);                                  /* 1 and 3 */
    cd = vtrn2q_f32(c, d);
    vst1q_f32(out + stride, vcombine_f32(vget_low_f32(ab), vget_low_f32(cd)));
    vst1q_f32(out + 3 * stride, vcombine_f32(vget_high_f32(ab), vget_high_f32(cd)));
}

ALWAYS_INLINE void transpose_square(float *out, size_t stride, const float *const *rows, int i)
{
    transpose4(out, stride, rows, i);
    transpose4(out + 4, stride, rows + 4, i);
    transpose4(out + 4 * stride, stride, rows, i + 4);
    transpose4(out + 4 * stride + 4, stride, rows + 4, i + 4);
}

static inline void interleave(float *out, size_t stride, const float *const *rows)
{
    transpose4(out, stride, rows, 0);
    transpose4(out + 4 * stride, stride, rows, 4);
}

static inline void add_four(float *c, const float *v) { vst1q_f32(c, vaddq_f32(vld1q_f32(c), vld1q_f32(v))); }

#endif
