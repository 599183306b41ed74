/* oracle_cases.c - the cases of each operation, in the order of kernels.h. A case is: operands
 * (inputs drawn, outputs poisoned), a call, and bounds that follow from the operation's arithmetic.
 * Part of oracle.c; weights and products are in oracle_products.c, attention in oracle_attention.c. */

#include "moments.h"

/* The last three are long: tables share them among threads, and the oracle takes three numbers of them by turns. So end
 * the other tables of shapes, long in one dimension at a time. */
static const int flat_sizes[] = { 0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100, 257, 1000, 4099, 61009, 65536, 70001 };

static void untouched(struct operand *a)
{
    size_t j;
    for (j = 0; j < a->n; j++) a->bound[j] = UNTOUCHED;
}

/* The smallest normal float: what is below may be lost, in a subnormal's rounding or to 0. */
#define TINY 1.2e-38

/* call_ENTRY(): an operation with the operands and parameters of a case. (A macro because each has its own.) */
#define CALL(entry, ...) \
    static int call_##entry(struct call *x, const struct trial *t) \
    { \
        x->k->entry(x->c, __VA_ARGS__); \
        return 0; \
    }

/* ---- moving ---- */

/* n numbers that become 0, or (copied) n others. */
static void flat_cases(struct oracle *o, const char *op, caller *call, int copied)
{
    struct trial t;
    size_t i;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        trial_begin(&t, o, op, call, "n %d", flat_sizes[i]);
        t.n = (size_t)flat_sizes[i];
        add_operand(&t, OUT, t.n, NORMAL);
        if (copied) add_operand(&t, IN, t.n, WILD);
        trial_end(&t, NULL);
    }
}

CALL(zero, x->b[0], t->n)

static void zero_cases(struct oracle *o) { flat_cases(o, "zero", call_zero, 0); }

CALL(copy, x->b[0], x->b[1], t->n)

static void copy_cases(struct oracle *o) { flat_cases(o, "copy", call_copy, 1); }

CALL(gather, x->b[0], x->b[1], (ints *)x->b[2], t->M, t->C)

CALL(scatter_add, x->b[0], x->b[1], (ints *)x->b[2], t->M, t->C)

static const struct { int M, C, rows; } row_shapes[] = {
    { 0, 3, 2 }, { 1, 1, 1 }, { 2, 3, 5 }, { 7, 8, 9 }, { 8, 17, 8 }, { 15, 33, 31 }, { 65, 64, 70 }, { 33, 257, 40 },
    { 3000, 21, 3001 }, { 12, 5001, 13 }, { 250, 260, 251 }
};

static void gather_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    for (i = 0; i < COUNT(row_shapes); i++) {
        int M = row_shapes[i].M, C = row_shapes[i].C, rows = row_shapes[i].rows;
        trial_begin(&t, o, "gather", call_gather, "M %d C %d of %d rows", M, C, rows);
        t.M = M;
        t.C = C;
        add_operand(&t, OUT, (size_t)M * C, NORMAL);
        add_operand(&t, IN, (size_t)rows * C, NORMAL);
        add_ints(&t, IN, (size_t)M, rows);
        trial_end(&t, NULL);
    }
}

/* Rows that are not named must stay, one that is gets one addition. */
static void scatter_add_bounds(struct trial *t)
{
    struct operand *out = t->operand;
    const double *rows = t->operand[2].start;
    size_t j;
    int m;
    untouched(out);
    for (m = 0; m < t->M; m++)
        for (j = (size_t)rows[m] * t->C; j < ((size_t)rows[m] + 1) * t->C; j++)
            out->bound[j] = t->o->u * fabs(out->want[j]);
}

static void scatter_add_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    int m;
    for (i = 0; i < COUNT(row_shapes); i++) {
        int M = row_shapes[i].M, C = row_shapes[i].C, rows = row_shapes[i].rows;
        double *index;
        trial_begin(&t, o, "scatter_add", call_scatter_add, "M %d C %d of %d rows", M, C, rows);
        t.M = M;
        t.C = C;
        add_operand(&t, INOUT, (size_t)rows * C, NORMAL);
        add_operand(&t, IN, (size_t)M * C, NORMAL);
        index = add_ints(&t, IN, (size_t)M, rows);
        for (m = 0; index && m < M; m++) index[m] = (m * 7 + 3) % rows;    /* no row twice: 7 divides no `rows` */
        if (index && rows % 7 == 0) for (m = 0; m < M; m++) index[m] = rows - 1 - m;
        trial_end(&t, scatter_add_bounds);
    }
}

/* ---- RMSNorm ---- */

CALL(rmsnorm, x->b[0], x->b[1], x->b[2], t->N, t->C, t->eps)

/* The sum of squares has no cancellation: kept in float it is off by about sqrt(C) u, as its roundings go either way
 * (docs/bounds.md), in double by nothing; rstd by half of that; then three roundings. */
static double rms_error(const struct trial *t) { return (4 + sqrt(t->C) / 2) * t->o->u; }

static void rmsnorm_bounds(struct trial *t)
{
    struct operand *out = t->operand;
    const double *x = t->operand[1].start, *w = t->operand[2].start;
    int n, i, C = t->C;
    for (n = 0; n < t->N; n++) {
        double length = norm(x + (size_t)n * C, C, 1), rms = sqrt(length * length / C + t->eps);
        for (i = 0; i < C; i++) {
            size_t at = (size_t)n * C + i;
            out->bound[at] = rms_error(t) * fabs(out->want[at]);
            check_oracle(t, out->want[at], x[at] / rms * w[i], fabs(x[at] / rms * w[i]));
        }
    }
}

static const int norm_shapes[][2] = {
    { 0, 4 }, { 1, 1 }, { 2, 2 }, { 3, 5 }, { 5, 8 }, { 7, 15 }, { 8, 16 }, { 9, 17 }, { 17, 31 }, { 33, 33 }, { 31, 64 },
    { 70, 100 }, { 4, 257 }, { 6, 576 }, { 3, 1030 }, { 3000, 11 }, { 6, 5003 }
};

static void rmsnorm_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    int wild;
    for (i = 0; i < COUNT(norm_shapes); i++) {
        for (wild = 0; wild < 2; wild++) {
            int N = norm_shapes[i][0], C = norm_shapes[i][1];
            trial_begin(&t, o, "rmsnorm", call_rmsnorm, "N %d C %d%s", N, C, wild ? " wild" : "");
            t.N = N;
            t.C = C;
            t.eps = wild ? 1e-6 : 1e-5;
            add_operand(&t, OUT, (size_t)N * C, NORMAL);
            add_operand(&t, IN, (size_t)N * C, wild ? WILD : NORMAL);
            add_operand(&t, IN, (size_t)C, NORMAL);
            trial_end(&t, rmsnorm_bounds);
        }
    }
}

CALL(rmsnorm_backward, x->b[0], x->b[1], x->b[2], x->b[3], x->b[4], t->N, t->C, t->eps, t->flag)

/* dx: with n = x rstd, g = dout w, the mean of g n is a dot product of length C over C:
 *   3 (4 + sqrt(C)) u rstd (|g| + |n| |g||n| / C), and the addition.
 * dw: a dot product of length N of dout and n, whose n are off by rms_error. */
static void rmsnorm_backward_bounds(struct trial *t)
{
    struct operand *dx = t->operand, *dw = t->operand + 1;
    const double *dout = t->operand[2].start, *x = t->operand[3].start, *w = t->operand[4].start;
    int N = t->N, C = t->C, n, i;
    double *squares = numbers(t, 2 * (size_t)C), u = t->o->u;     /* of each column of dout and of n */
    if (!squares) return;
    for (i = 0; i < 2 * C; i++) squares[i] = 0;
    for (n = 0; n < N; n++) {
        const double *x_n = x + (size_t)n * C, *dout_n = dout + (size_t)n * C;
        double rstd = norm(x_n, C, 1), gg = 0, gn = 0, nn = rstd;
        rstd = 1 / sqrt(rstd * rstd / C + t->eps);
        nn *= rstd;
        for (i = 0; i < C; i++) gg += dout_n[i] * w[i] * dout_n[i] * w[i];
        for (i = 0; i < C; i++) gn += dout_n[i] * w[i] * x_n[i] * rstd;
        for (i = 0; i < C; i++) {
            size_t at = (size_t)n * C + i;
            double norm_i = x_n[i] * rstd, old = dx->use == INOUT ? fabs(dx->start[at]) : 0;
            dx->bound[at] = 3 * (4 + sqrt(C)) * u * rstd * (fabs(dout_n[i] * w[i]) + fabs(norm_i) * sqrt(gg) * nn / C)
                            + u * (old + fabs(dx->want[at]));
            check_oracle(t, dx->want[at] - (dx->use == INOUT ? dx->start[at] : 0),
                         rstd * (dout_n[i] * w[i] - norm_i * gn / C), dx->bound[at] / u);
            squares[i] += dout_n[i] * dout_n[i];
            squares[C + i] += norm_i * norm_i;
        }
    }
    for (i = 0; !dw->absent && i < C; i++)
        dw->bound[i] = (2 * sqrt(N) + 2) * u * fabs(dw->start[i])
                       + ((2 * sqrt(N) + 2) * u + rms_error(t)) * sqrt(squares[i] * squares[C + i]);
}

static void rmsnorm_backward_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    int variant;
    for (i = 0; i < COUNT(norm_shapes); i++) {
        for (variant = 0; variant < 4; variant++) {
            int N = norm_shapes[i][0], C = norm_shapes[i][1], accumulate = variant & 1;
            trial_begin(&t, o, "rmsnorm_backward", call_rmsnorm_backward, "N %d C %d%s%s", N, C,
                        accumulate ? " +=" : "", variant & 2 ? " dw" : "");
            t.N = N;
            t.C = C;
            t.eps = variant & 2 ? 1e-6 : 1e-5;
            t.flag = accumulate;
            add_operand(&t, accumulate ? INOUT : OUT, (size_t)N * C, NORMAL);
            if (variant & 2) add_operand(&t, INOUT, (size_t)C, NORMAL);
            else add_absent(&t);
            add_operand(&t, IN, (size_t)N * C, NORMAL);
            add_operand(&t, IN, (size_t)N * C, NORMAL);
            add_operand(&t, IN, (size_t)C, NORMAL);
            trial_end(&t, rmsnorm_backward_bounds);
        }
    }
}

/* ---- rotary positions ---- */

CALL(rope, x->b[0], x->b[1], x->b[2], (ints *)x->b[3], t->N, t->NH, t->HS, t->flag)

/* Two products and their sum: 2 u (|a cos| + |b sin|). */
static void rope_bounds(struct trial *t)
{
    struct operand *x = t->operand;
    const double *cosine = t->operand[1].start, *sine = t->operand[2].start, *pos = t->operand[3].start;
    int half = t->HS / 2, n, h, i;
    for (n = 0; n < t->N; n++) {
        for (h = 0; h < t->NH; h++) {
            for (i = 0; i < half; i++) {
                size_t a = ((size_t)n * t->NH + h) * t->HS + i, b = a + half;
                double c = cosine[(size_t)pos[n] * half + i], s = sine[(size_t)pos[n] * half + i];
                double xa = x->start[a], xb = x->start[b];
                if (t->flag) s = -s;
                x->bound[a] = 2 * t->o->u * (fabs(xa * c) + fabs(xb * s));
                x->bound[b] = 2 * t->o->u * (fabs(xb * c) + fabs(xa * s));
                check_oracle(t, x->want[a], xa * c - xb * s, fabs(xa * c) + fabs(xb * s));
                check_oracle(t, x->want[b], xb * c + xa * s, fabs(xb * c) + fabs(xa * s));
            }
        }
    }
}

static void rope_cases(struct oracle *o)
{
    static const int shapes[][3] = { { 0, 1, 2 }, { 1, 1, 2 }, { 2, 3, 4 }, { 3, 1, 6 }, { 5, 2, 10 }, { 8, 4, 16 }, { 9, 3, 30 },
                                     { 17, 2, 34 }, { 33, 9, 64 }, { 4, 2, 128 }, { 700, 3, 6 }, { 3, 300, 34 } };
    struct trial t;
    size_t i;
    int backward;
    for (i = 0; i < COUNT(shapes); i++) {
        for (backward = 0; backward < 2; backward++) {
            int N = shapes[i][0], heads = shapes[i][1], HS = shapes[i][2], positions = 40 + 20 * N;
            trial_begin(&t, o, "rope", call_rope, "N %d heads %d HS %d%s", N, heads, HS, backward ? " backward" : "");
            t.N = N;
            t.NH = t.NKV = heads;
            t.HS = HS;
            t.flag = backward;
            add_operand(&t, INOUT, (size_t)N * heads * HS, NORMAL);
            add_operand(&t, IN, (size_t)positions * (HS / 2), NORMAL);
            add_operand(&t, IN, (size_t)positions * (HS / 2), NORMAL);
            add_ints(&t, IN, (size_t)N, positions);
            trial_end(&t, rope_bounds);
        }
    }
}

/* ---- SwiGLU ---- */

CALL(swiglu, x->b[0], x->b[1], x->b[2], t->n)

/* What underflows in a product may be lost: TINY times the other factors. */
static double lost(double a, double b, double c) { return 4 * TINY * (1 + fabs(a)) * (1 + fabs(b)) * (1 + fabs(c)); }

/* Element i of an operand that is z up / (1 + e^-z): exp to 2 u, and five more roundings. */
static void swiglu_bound(struct trial *t, struct operand *out, size_t i, double z, double up)
{
    out->bound[i] = 8 * t->o->u * fabs(out->want[i]) + lost(z, up, 0);
    check_oracle(t, out->want[i], z * up / (1 + exp(-z)), fabs(z * up));
}

static void swiglu_bounds(struct trial *t)
{
    size_t i;
    for (i = 0; i < t->n; i++) swiglu_bound(t, &t->operand[0], i, t->operand[1].start[i], t->operand[2].start[i]);
}

/* Gates over the whole range, where 1 + e^-z overflows too. */
static void add_gate(struct trial *t, enum use use)
{
    double *gate = add_operand(t, use, t->n, NORMAL);
    size_t i;
    for (i = 0; gate && i < t->n; i++) {
        if (i % 5 == 1) gate[i] = rounded(gate[i] * 10);
        if (i % 17 == 3) gate[i] = rounded(gate[i] * 60);
        if (i % 31 == 7) gate[i] = i % 2 ? -100 : 0;
    }
}

static void swiglu_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        trial_begin(&t, o, "swiglu", call_swiglu, "n %d", flat_sizes[i]);
        t.n = (size_t)flat_sizes[i];
        add_operand(&t, OUT, t.n, NORMAL);
        add_gate(&t, IN);
        add_operand(&t, IN, t.n, NORMAL);
        trial_end(&t, swiglu_bounds);
    }
}

/* In place (flag): operand 0 is dgate and gate, operand 1 is dup and up, operand 2 is out and dout. */
CALL(swiglu_backward, x->b[0], x->b[1], x->b[2], x->b[t->flag ? 2 : 3], x->b[t->flag ? 0 : 4], x->b[t->flag ? 1 : 5], t->n)

/* dgate = d up s (1 + z (1 - s)): s to 4 u, so 1 - s to (4 s + 1) u. */
static void swiglu_backward_bounds(struct trial *t)
{
    const double *gate = t->operand[t->flag ? 0 : 4].start, *up = t->operand[t->flag ? 1 : 5].start;
    const double *dout = t->operand[t->flag ? 2 : 3].start;
    double u = t->o->u;
    size_t i;
    for (i = 0; i < t->n; i++) {
        double d = dout[i], z = gate[i], s = 1 / (1 + exp(-z)), r = 1 / (1 + exp(z));
        double underflow = lost(d, z, up[i]);
        t->operand[0].bound[i] = u * fabs(d * up[i] * s) * (8 * (1 + fabs(z) * r) + fabs(z) * (4 * s + 1) * (r < u ? 0 : 1))
                                 + underflow;
        t->operand[1].bound[i] = 8 * u * fabs(d * z * s) + underflow;
        check_oracle(t, t->operand[0].want[i], d * up[i] * s * (1 + z * r), fabs(d * up[i]) * (1 + fabs(z)));
        check_oracle(t, t->operand[1].want[i], d * z * s, fabs(d * z));
        swiglu_bound(t, &t->operand[2], i, z, up[i]);
    }
}

static void swiglu_backward_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    int in_place;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        for (in_place = 0; in_place < 2; in_place++) {
            trial_begin(&t, o, "swiglu_backward", call_swiglu_backward, "n %d%s", flat_sizes[i],
                        in_place ? " in place" : "");
            t.n = (size_t)flat_sizes[i];
            t.flag = in_place;
            if (in_place) add_gate(&t, INOUT);
            else add_operand(&t, OUT, t.n, NORMAL);
            add_operand(&t, in_place ? INOUT : OUT, t.n, NORMAL);
            add_operand(&t, in_place ? INOUT : OUT, t.n, NORMAL);
            if (!in_place) {
                add_operand(&t, IN, t.n, NORMAL);
                add_gate(&t, IN);
                add_operand(&t, IN, t.n, NORMAL);
            }
            trial_end(&t, swiglu_backward_bounds);
        }
    }
}

/* ---- dropout ---- */

CALL(dropout, x->b[0], x->b[1], (ints *)x->b[2], (ints *)x->b[3], t->N, t->C, t->p, t->key, t->flag)

/* The mask is exact: what is dropped is 0, or stays as it was. */
static void dropout_bounds(struct trial *t)
{
    struct operand *out = t->operand;
    const double *visit = t->operand[2].start, *pos = t->operand[3].start;
    int n, i;
    for (n = 0; n < t->N; n++) {
        for (i = 0; i < t->C; i++) {
            size_t at = (size_t)n * t->C + i;
            uint64_t index = ((uint64_t)visit[n] * 1048576 + (uint64_t)pos[n]) * 1048576 + (uint64_t)i;
            double old = t->flag ? out->start[at] : 0;
            double y = random_uniform(t->key, index) < t->p ? 0 : t->operand[1].start[at] / (1 - t->p);
            out->bound[at] = y != 0 ? 4 * t->o->u * (fabs(y) + fabs(old)) : 0;
            check_oracle(t, out->want[at], old + y, fabs(old) + fabs(y));
        }
    }
}

static void dropout_cases(struct oracle *o)
{
    static const double rates[] = { 0, 0.05, 0.5, 0.9 };
    struct trial t;
    size_t i, k;
    double *visit, *pos;
    int n;
    for (i = 0; i < COUNT(row_shapes); i++) {
        for (k = 0; k < 2 * COUNT(rates); k++) {
            int N = row_shapes[i].M, C = row_shapes[i].C, accumulate = k >= COUNT(rates);
            trial_begin(&t, o, "dropout", call_dropout, "N %d C %d p %g%s", N, C, rates[k % COUNT(rates)],
                        accumulate ? " +=" : "");
            t.N = N;
            t.C = C;
            t.p = rates[k % COUNT(rates)];
            t.flag = accumulate;
            add_operand(&t, accumulate ? INOUT : OUT, (size_t)N * C, NORMAL);
            add_operand(&t, IN, (size_t)N * C, NORMAL);
            visit = add_ints(&t, IN, (size_t)N, 1 << 24);
            pos = add_ints(&t, IN, (size_t)N, 1 << 20);
            for (n = 0; visit && pos && n < N; n += 3) visit[n] = n % 2 ? n : (1 << 24) - 1 - n % 100;     /* up to all 64 bits of the index */
            trial_end(&t, dropout_bounds);
        }
    }
}

/* ---- loss ---- */

CALL(cross_entropy, x->b[0], (ints *)x->b[1], x->b[2], (ints *)x->b[3], (ints *)x->b[4], x->b[5], t->N, t->V,
     t->flag, t->scale)

/* One row: losses to u (8 + 2 max|z| + |loss|), as z - max may be rounded before exp; a gradient to
 * u (12 + 4 max|z|) of its softmax, and two roundings of what is subtracted. */
static void cross_entropy_row(struct trial *t, int row)
{
    struct operand *losses = t->operand, *logits = t->operand + 2;
    const double *z = logits->start + (size_t)row * t->V, *first = t->operand[3].start, *id = t->operand[4].start;
    const double *weight = t->operand[5].start;
    double max = z[0], sum = 0, largest = 0, total = 0, absolute = 0, u = t->o->u, lse;
    int v, i, best = 0;
    for (v = 0; v < t->V; v++) {
        if (z[v] > max) { max = z[v]; best = v; }
        largest = fmax(largest, fabs(z[v]));
    }
    for (v = 0; v < t->V; v++) sum += exp(z[v] - max);
    lse = max + log(sum);
    check_oracle(t, t->operand[1].want[row], best, 0);
    for (i = (int)first[row]; i < (int)first[row + 1]; i++) {
        double loss = lse - z[(int)id[i]];
        losses->bound[i] = u * (8 + 2 * largest + fabs(loss));
        check_oracle(t, losses->want[i], loss, 1 + largest);
        total += weight[i];
        absolute += fabs(weight[i]);
    }
    for (v = 0; t->flag && v < t->V; v++) {
        double p = exp(z[v] - lse), d = total * p, at_id = 0;
        for (i = (int)first[row]; i < (int)first[row + 1]; i++)
            if (id[i] == v) {
                d -= weight[i];
                at_id += fabs(weight[i]);
            }
        logits->bound[(size_t)row * t->V + v]
            = fabs(t->scale) * (absolute * (p * u * (12 + 4 * largest) + TINY) + 4 * u * at_id);
        check_oracle(t, logits->want[(size_t)row * t->V + v], t->scale * d, fabs(t->scale) * absolute + 1e-300);
    }
}

static void cross_entropy_bounds(struct trial *t)
{
    int row;
    untouched(&t->operand[0]);
    for (row = 0; row < t->N; row++) cross_entropy_row(t, row);
}

/* Rows with no target, one, several of the same; ties of the largest logit; huge logits. */
static void cross_entropy_cases(struct oracle *o)
{
    static const int shapes[][2] = { { 0, 5 }, { 1, 1 }, { 1, 2 }, { 2, 3 }, { 3, 7 }, { 5, 8 }, { 8, 17 }, { 9, 33 }, { 17, 100 },
                                     { 4, 1030 }, { 3, 5003 }, { 700, 31 }, { 3, 20011 } };
    struct trial t;
    size_t i, j;
    int variant, u;
    for (i = 0; i < COUNT(shapes); i++) {
        for (variant = 0; variant < 6; variant++) {
            int U = shapes[i][0], V = shapes[i][1], grad = variant & 1;
            double *z, *first;
            trial_begin(&t, o, "cross_entropy", call_cross_entropy, "U %d V %d variant %d", U, V, variant);
            t.N = U;
            t.V = V;
            t.C = 1;
            t.flag = grad;
            t.scale = 0.125 + 0.3 * variant;
            add_operand(&t, OUT, 3 * (size_t)U + 2, NORMAL);
            add_ints(&t, OUT, (size_t)U, 0);
            z = add_operand(&t, grad ? INOUT : IN, (size_t)U * V, NORMAL);
            first = add_ints(&t, IN, (size_t)U + 1, 1);
            add_ints(&t, IN, 3 * (size_t)U + 2, V);
            add_operand(&t, IN, 3 * (size_t)U + 2, NORMAL);
            if (o->arena.failed) { o->no_memory = 1; return; }
            for (j = 0; j < (size_t)U * V; j++) {
                if (variant / 2 == 1) z[j] = fmin(floor(z[j] * 2), 2);      /* ties of the largest, too */
                if (variant / 2 == 2) z[j] = rounded(z[j] * (j % 3 ? 40 : 400));
            }
            first[0] = 2;                                   /* a chunk of a longer list */
            for (u = 0; u < U; u++) first[u + 1] = first[u] + (u * 5 + variant) % 4;
            for (u = 0; u < U; u++) if (first[u + 1] > 3 * U + 2) first[u + 1] = first[u];
            trial_end(&t, cross_entropy_bounds);
        }
    }
}

/* ---- optimizer ---- */

CALL(adamw, x->b[0], x->b[1], x->b[2], x->b[3], t->n, &t->step)

static void adamw_bounds(struct trial *t)
{
    struct operand *p = t->operand, *m = p + 1, *v = p + 2, *g = p + 3;
    size_t i;
    for (i = 0; i < t->n; i++) {
        struct stepped r = step_number(p->start[i], m->start[i], v->start[i], g->start[i], &t->step, t->o->u);
        p->bound[i] = r.p_error;
        m->bound[i] = r.m_error;
        v->bound[i] = r.v_error;
        check_oracle(t, p->want[i], r.p, fabs(p->start[i]) + fabs(r.p - p->start[i]));
        check_oracle(t, m->want[i], r.m, 10);
        check_oracle(t, v->want[i], r.v, 10);
    }
}

/* The first, from zeros; any other; one with an m that is the gradient. */
static const struct adamw_step adamw_steps[] = {
    { 1e-3, 0.9, 0.999, 1e-8, 0, 0.1, 0.001, 1 },
    { 2e-2, 0.9, 0.95, 1e-8, 0.1, 1 - 0.9 * 0.9 * 0.9, 1 - 0.95 * 0.95 * 0.95, 0.37 },
    { 1e-3, 0, 0.95, 1e-8, 0, 1, 1 - 0.95 * 0.95, 1 }
};

static void adamw_cases(struct oracle *o)
{
    struct trial t;
    size_t i, j, k;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        for (k = 0; k < 2; k++) {
            double *m, *v;
            trial_begin(&t, o, "adamw", call_adamw, "n %d, step of kind %d", flat_sizes[i], (int)k);
            t.n = (size_t)flat_sizes[i];
            t.step = adamw_steps[k];
            add_operand(&t, INOUT, t.n, NORMAL);
            m = add_operand(&t, INOUT, t.n, NORMAL);
            v = add_operand(&t, INOUT, t.n, NORMAL);
            for (j = 0; m && v && j < t.n; j++) {
                v[j] = k ? rounded(v[j] * v[j]) : 0;
                if (!k) m[j] = 0;
            }
            add_operand(&t, IN, t.n, NORMAL);
            trial_end(&t, adamw_bounds);
        }
    }
}

/* Codes are operands of an int each; the table gets them as bytes, and must leave what is behind them. */
static unsigned char *codes_up(struct call *x, const buf *codes, size_t n)
{
    unsigned char *p = x->k->alloc(x->c, n + 64), *host = malloc(n + 64);
    int *whole = malloc((n + 1) * sizeof *whole);
    size_t i;
    if (p && host && whole) {
        x->k->down_ints(x->c, whole, (const ints *)codes, n);
        for (i = 0; i < n; i++) host[i] = (unsigned char)whole[i];
        memset(host + n, 0xa5, 64);
        x->k->up_bytes(x->c, p, host, n + 64);
    } else if (p) {
        x->k->release(x->c, p);
        p = NULL;
    }
    free(host);
    free(whole);
    return p;
}

static int codes_down(struct call *x, buf *codes, unsigned char *p, size_t n)
{
    unsigned char *host = malloc(n + 64);
    int *whole = malloc((n + 1) * sizeof *whole), bad = !host || !whole;
    size_t i;
    if (!bad) {
        x->k->down_bytes(x->c, host, p, n + 64);
        for (i = 0; i < n; i++) whole[i] = host[i];
        for (i = n; i < n + 64; i++) if (host[i] != 0xa5 && n) whole[n - 1] = -1;
        x->k->up_ints(x->c, (ints *)codes, whole, n);
    }
    x->k->release(x->c, p);
    free(host);
    free(whole);
    return bad ? -1 : 0;
}

static int call_adamw8bit(struct call *x, const struct trial *t)
{
    unsigned char *m = codes_up(x, x->b[1], t->n), *v = codes_up(x, x->b[3], t->n);
    int bad = !m || !v;
    if (!bad) x->k->adamw8bit(x->c, x->b[0], m, x->b[2], v, x->b[4], x->b[5], t->n, &t->step);
    if (m && codes_down(x, x->b[1], m, t->n)) bad = 1;
    if (v && codes_down(x, x->b[3], v, t->n)) bad = 1;
    return bad ? -1 : 0;
}

/* A block of one moment: x[n] with errors. The oracle's codes are held against a search in double. */
static void code_bounds(struct trial *t, int operand, size_t block, const double *x, const double *error, int n,
                        const float *map)
{
    struct operand *codes = &t->operand[operand], *absmax = codes + 1;
    int code[MOMENT_BLOCK], slack[MOMENT_BLOCK], i;
    double largest = encode_numbers(code, slack, &absmax->bound[block], x, error, n, 1, map);
    if (!(fabs(absmax->want[block] - largest) <= ldexp(1, -24) * largest)) t->fault = "the oracle is wrong";
    for (i = 0; i < n; i++) {
        size_t at = block * MOMENT_BLOCK + (size_t)i;
        codes->bound[at] = slack[i];
        if (!(fabs(codes->want[at] - code[i]) <= slack[i])) t->fault = "the oracle is wrong";
    }
}

static void adamw8bit_bounds(struct trial *t)
{
    struct operand *o = t->operand;
    float m_map[256], v_map[256];
    double x[2][MOMENT_BLOCK], error[2][MOMENT_BLOCK];
    size_t i;
    dynamic_map(m_map, 1);
    dynamic_map(v_map, 0);
    for (i = 0; i < t->n; i++) {
        size_t b = i / MOMENT_BLOCK;
        int k = (int)(i % MOMENT_BLOCK);
        float m = m_map[(int)o[1].start[i]] * (float)o[2].start[b], v = v_map[(int)o[3].start[i]] * (float)o[4].start[b];
        struct stepped r = step_number(o[0].start[i], m, v, o[5].start[i], &t->step, t->o->u);
        o[0].bound[i] = r.p_error;
        check_oracle(t, o[0].want[i], r.p, fabs(o[0].start[i]) + fabs(r.p - o[0].start[i]));
        x[0][k] = r.m; error[0][k] = r.m_error;
        x[1][k] = r.v; error[1][k] = r.v_error;
        if (k < MOMENT_BLOCK - 1 && i + 1 < t->n) continue;
        code_bounds(t, 1, b, x[0], error[0], k + 1, m_map);
        code_bounds(t, 3, b, x[1], error[1], k + 1, v_map);
    }
}

/* Gradients of all sizes; a block that has neither them nor a state; and, with the last kind of step, the midpoints of
 * the map themselves beside a 1, where the lower code is right. */
static void adamw8bit_cases(struct oracle *o)
{
    float map[256];
    static const int sizes[] = { 0, 1, 3, 8, 17, 33, 255, 256, 257, 300, 511, 512, 1023, 4099, 20011 };
    struct trial t;
    size_t i, j, k;
    dynamic_map(map, 1);
    for (i = 0; i < COUNT(sizes); i++) {
        for (k = 0; k < COUNT(adamw_steps); k++) {
            size_t n = (size_t)sizes[i], blocks = block_count(n, MOMENT_BLOCK);
            double *codes[2], *absmax[2], *g;
            int moment;
            trial_begin(&t, o, "adamw8bit", call_adamw8bit, "n %d, step of kind %d", sizes[i], (int)k);
            t.n = n;
            t.step = adamw_steps[k];
            add_operand(&t, INOUT, n, NORMAL);
            for (moment = 0; moment < 2; moment++) {
                codes[moment] = add_ints(&t, INOUT, n, 0);
                absmax[moment] = add_operand(&t, INOUT, blocks, NORMAL);
            }
            g = add_operand(&t, IN, n, i % 2 ? WILD : NORMAL);
            if (o->arena.failed) { o->no_memory = 1; return; }
            for (moment = 0; moment < 2; moment++) {
                for (j = 0; j < n; j++) codes[moment][j] = k ? random_below(&t, 2 * j + (size_t)moment, 256) : 0;
                for (j = 0; j < blocks; j++) absmax[moment][j] = k && j != 1 ? fabs(absmax[moment][j]) : 0;
            }
            for (j = 256; j < 512 && j < n; j++) g[j] = 0;
            for (j = 0; k == 2 && j < n; j++) g[j] = j % 256 < 255 ? (float)((map[j % 256] + map[j % 256 + 1]) / 2) : 1;
            trial_end(&t, adamw8bit_bounds);
        }
    }
}

static int call_sum_squares(struct call *x, const struct trial *t)
{
    x->returned = x->k->sum_squares(x->c, x->b[0], t->n);
    return 0;
}

/* Squares of floats are exact in double: n additions of 2^-53 at most. */
static void sum_squares_bounds(struct trial *t)
{
    double length = norm(t->operand[0].start, (int)t->n, 1);
    t->returned_bound = (double)t->n * ldexp(1, -52) * length * length;
    check_oracle(t, t->returned, length * length, length * length);
}

static void sum_squares_cases(struct oracle *o)
{
    struct trial t;
    size_t i;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        trial_begin(&t, o, "sum_squares", call_sum_squares, "n %d", flat_sizes[i]);
        t.n = (size_t)flat_sizes[i];
        add_operand(&t, IN, t.n, i & 1 ? WILD : NORMAL);
        trial_end(&t, sum_squares_bounds);
    }
}

static int call_not_finite(struct call *x, const struct trial *t)
{
    x->returned = (double)x->k->not_finite(x->c, x->b[0], t->n);
    return 0;
}

/* t->M: where the first of them lies, -1: nowhere. */
static void not_finite_bounds(struct trial *t)
{
    t->returned_bound = 0;
    check_oracle(t, t->returned, t->M, 0);
}

static void not_finite_cases(struct oracle *o)
{
    static const double bad[] = { NAN, INFINITY, -INFINITY };
    struct trial t;
    size_t i, k;
    for (i = 0; i < COUNT(flat_sizes); i++) {
        for (k = 0; k < 4; k++) {
            int n = flat_sizes[i], first = k == 0 ? 0 : k == 1 ? n - 1 : k == 2 ? n / 2 : n;
            double *x;
            trial_begin(&t, o, "not_finite", call_not_finite, "n %d, at %d", n, first);
            t.n = (size_t)n;
            x = add_operand(&t, IN, t.n, WILD);
            if (x && n) x[n / 3] = 3.4e38;                              /* large, and finite */
            if (x && n) x[n / 3] = rounded(x[n / 3]);
            if (x && first >= 0 && first < n) x[first] = bad[(i + k) % 3];
            if (x && k == 2 && first + 1 < n) x[n - 1] = NAN;           /* not the first */
            t.M = first < n ? first : -1;
            trial_end(&t, not_finite_bounds);
        }
    }
}
