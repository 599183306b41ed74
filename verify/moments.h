/* moments.h - what a step of AdamW must give, with moments in 8 bits too, and how far off it may be: for the oracle
 * and for bitsandbytes' figures. */
#ifndef MOMENTS_H
#define MOMENTS_H

#include "../kernels.h"
#include "../nf4.h"

#include <math.h>

/* A number's step in double, and the error of a table whose unit roundoff is u: a few roundings of each
 * term that is added. */
struct stepped { double p, m, v, p_error, m_error, v_error; };

static inline struct stepped step_number(double p, double m, double v, double gradient, const struct adamw_step *s,
                                         double u)
{
    double g = gradient * s->grad_scale, root, rate;
    struct stepped r;
    r.m = s->beta1 * m + (1 - s->beta1) * g;
    r.v = s->beta2 * v + (1 - s->beta2) * g * g;
    root = sqrt(r.v / s->correction2) + s->eps;
    rate = s->lr / s->correction1 / root;
    r.p = p * (1 - s->lr * s->weight_decay) - rate * r.m;
    r.m_error = s->beta1 > 0 ? 6 * u * (fabs(s->beta1 * m) + fabs((1 - s->beta1) * g)) : 0;    /* m is g */
    r.v_error = 8 * u * r.v + 1.2e-38;      /* what is below the normal floats may be lost */
    r.p_error = 3 * u * (fabs(p) + fabs(r.p)) + rate * (r.m_error + 16 * u * fabs(r.m));
    return r;
}

/* The map's number nearest to y; of two the lower. */
static inline int nearest_code(const float map[256], double y)
{
    int k = 0;
    while (k < 255 && y > (float)((map[k] + map[k + 1]) / 2)) k++;
    return k;
}

/* A block x[n] encoded: its largest magnitude, and the code of each number. `slack`: how many places the code
 * may be off when x is off by error[n] and x / largest by three roundings to float (by none where the largest
 * is a power of two): 0 away from the midpoints.
 * All errors are taken `times` times. Returns the largest; *largest_error may be NULL. */
static inline double encode_numbers(int *code, int *slack, double *largest_error, const double *x,
                                    const double *error, int n, double times, const float map[256])
{
    double largest = 0, worst = 0, u = ldexp(1, -24);
    int i, exponent;
    for (i = 0; i < n; i++) {
        if (fabs(x[i]) > largest) largest = fabs(x[i]);
        if (error[i] > worst) worst = error[i];
    }
    for (i = 0; i < n; i++) {
        double y = largest > 0 ? x[i] / largest : 0;
        double divided = frexp(largest, &exponent) == 0.5 ? 0 : 3 * u * fabs(y);
        double e = largest > 0 ? times * ((error[i] + fabs(y) * worst) / largest + divided) : 0;
        code[i] = nearest_code(map, y);
        slack[i] = nearest_code(map, y + e) - nearest_code(map, y - e);
    }
    if (largest_error) *largest_error = times * (worst + u * largest);
    return largest;
}

#endif
