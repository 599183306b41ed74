/* bounds.c - follows one number of `lora verify --backend ref --op matmul_dw` from its inputs to its share of the bound,
 * and holds docs/bounds.md to it (page.h). `make test` builds and runs it. */
#include "page.h"
#include "verify/oracle.h"

#include <math.h>

enum { MOST = 4 };          /* terms of a case that can be shown */

/* The number of a case that is nearest to its bound: dw[o,i] = old + scale * sum over n of dout[n,o] x[n,i]. */
struct shown {
    int K;
    double scale, dout[MOST], x[MOST], old, expected, found, bound, share;
    char label[160];
};
struct search { double share; char label[160]; int cases; struct shown normal, wild; };

/* Its case's label has the sizes, and the kind of numbers: 0 normal, 2 wild (oracle_products.c). */
static int look(void *context, const struct oracle_result *r)
{
    struct search *s = context;
    struct shown *b;
    int N, O, I, mode, n;
    s->cases++;
    if (r->share > s->share) s->share = r->share, snprintf(s->label, sizeof s->label, "%s", r->label);
    if (sscanf(r->label, "N %d O %d I %d mode %d", &N, &O, &I, &mode) != 4 || N > MOST || N < 2 || mode == 1) return 0;
    b = mode ? &s->wild : &s->normal;
    if (!(r->share > b->share)) return 0;
    b->K = N;
    b->scale = mode ? 1 : 1.7;
    for (n = 0; n < N; n++) {
        b->dout[n] = r->operands[1].before[(size_t)n * (size_t)O + r->index / (size_t)I];
        b->x[n] = r->operands[2].before[(size_t)n * (size_t)I + r->index % (size_t)I];
    }
    b->old = r->operands[0].before[r->index];
    b->expected = r->expected;
    b->found = r->found;
    b->bound = r->bound;
    b->share = r->share;
    snprintf(b->label, sizeof b->label, "%s", r->label);
    return 0;
}

static const struct search *search(void)
{
    static struct search s;
    if (!s.cases) oracle_run(&kernels_ref, &kernels_ref64, "matmul_dw", look, &s, NULL);
    return &s;
}

/* As kernels_ref.c computes it: each product, each sum, the scaling and the last sum rounded to float. */
static void put_steps(struct text *t, const struct shown *b)
{
    double exact = 0;
    float sum = 0;
    int n;
    text_printf(t, "%s; scale %g, u = 2^-24 = %.3e\n\n", b->label, b->scale, ldexp(1, -24));
    text_puts(t, "n           dout              x   their product     in float       sum so far       in float\n");
    for (n = 0; n < b->K; n++) {
        float product = (float)b->dout[n] * (float)b->x[n];
        exact += b->dout[n] * b->x[n];
        sum += product;
        text_printf(t, "%d %14.7g %14.7g %15.10g %14.8g %15.10g %14.8g\n", n, b->dout[n], b->x[n], b->dout[n] * b->x[n],
                    (double)product, exact, (double)sum);
    }
    text_printf(t, "times scale%67.10g %14.8g\n", b->scale * exact, (double)(float)(b->scale * (double)sum));
    sum = (float)b->old + (float)(b->scale * (double)sum);
    text_printf(t, "and what was there, %.7g%*.10g %14.8g\n", b->old, 58 - snprintf(NULL, 0, "%.7g", b->old), b->old + b->scale * exact, (double)sum);
    text_printf(t, "\nerror %.4e\n", fabs((double)sum - b->expected));
    if ((double)sum != b->found) text_puts(t, "not what the kernel found\n");
}

/* Whose parts are those of dot_bound() in verify/oracle_products.c. */
static void put_bound(struct text *t, const struct shown *b, int wild)
{
    double u = ldexp(1, -24), dd = 0, xx = 0, size = 0, c, bound;
    int n;
    for (n = 0; n < b->K; n++) {
        dd += b->dout[n] * b->dout[n];
        xx += b->x[n] * b->x[n];
        size += fabs(b->dout[n] * b->x[n]);
    }
    if (wild) {
        c = b->K + 4;
        bound = c * u * (b->scale * size + fabs(b->old));
        text_printf(t, "c = K + 4 = %g\nsum |dout x| = %.6g\n", c, size);
        text_printf(t, "bound = c u (%g * %.6g + %.6g) = %.4e\n", b->scale, size, fabs(b->old), bound);
    } else {
        c = 2 * sqrt(b->K) + 2;
        bound = c * u * (b->scale * sqrt(dd * xx) + fabs(b->old));
        text_printf(t, "c = 2 sqrt(%d) + 2 = %g\n|dout| = %.6g, |x| = %.6g, |dout| |x| = %.6g\n", b->K, c, sqrt(dd), sqrt(xx), sqrt(dd * xx));
        text_printf(t, "bound = c u (%g * %.6g + %.6g) = %.4e\n", b->scale, sqrt(dd * xx), fabs(b->old), bound);
    }
    text_printf(t, "error / bound = %.2f %%\n", 100 * fabs(b->found - b->expected) / bound);
    if (!(fabs(bound - b->bound) <= 1e-12 * bound)) text_puts(t, "not the bound of the oracle\n");
}

static void put_random(struct text *t) { put_steps(t, &search()->normal); }

static void put_random_bound(struct text *t) { put_bound(t, &search()->normal, 0); }

static void put_wild(struct text *t)
{
    put_steps(t, &search()->wild);
    text_puts(t, "\n");
    put_bound(t, &search()->wild, 1);
}

/* The line as `lora verify` prints it. */
static void put_verify(struct text *t)
{
    const struct search *s = search();
    text_puts(t, "operation           cases not read   failed  worst error  (of its bound) in\n");
    text_printf(t, "matmul_dw          %6d %8d %8d  %9.2f %%  %s\n", s->cases, 0, 0, 100 * s->share, s->label);
}

/* What faults would do to the random number, in shares of its bound. */
static void put_faults(struct text *t)
{
    const struct shown *b = &search()->normal;
    double short_sum = 0, left_out = INFINITY;
    int n;
    for (n = 0; n < b->K; n++) {
        short_sum += (double)bf16_to_f32(f32_to_bf16((float)b->dout[n])) * (double)bf16_to_f32(f32_to_bf16((float)b->x[n]));
        left_out = fmin(left_out, fabs(b->dout[n] * b->x[n]));
    }
    text_printf(t, "the smallest term left out       %12.0f times the bound\n", b->scale * left_out / b->bound);
    text_printf(t, "operands rounded to bf16         %12.0f times the bound\n", fabs(b->old + b->scale * short_sum - b->expected) / b->bound);
    text_printf(t, "what was there left out          %12.0f times the bound\n", fabs(b->old) / b->bound);
}

int main(int argc, char **argv)
{
    static const struct page_block blocks[] = {
        { "random", put_random }, { "random-bound", put_random_bound }, { "faults", put_faults }, { "wild", put_wild }, { "verify", put_verify },
    };
    return page_main(argc, argv, blocks, sizeof blocks / sizeof *blocks, 1);
}
