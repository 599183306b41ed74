/* oracle_attention.c - the cases of attention: every kind of table of segments. Part of oracle.c. */

/* ---- attention ---- */

/* q_start, q_len, k_start, k_len, prefix, pos: what a table of segments looks like. */
struct layout {
    const char *name;
    int rows, keys, S;          /* rows of q and of k */
    int segment[5][6];
};
static const struct layout layouts[] = {
    { "nothing", 3, 3, 0, { { 0 } } },
    { "one", 1, 1, 1, { { 0, 1, 0, 1, -1, 0 } } },
    { "seven", 7, 7, 1, { { 0, 7, 0, 7, -1, 0 } } },
    { "three apart, a row of none", 21, 21, 3,
      { { 0, 5, 0, 5, -1, 0 }, { 6, 1, 6, 1, -1, 0 }, { 8, 13, 8, 13, -1, 0 } } },
    { "two continue one, one continues one of them", 26, 26, 5,
      { { 0, 6, 0, 6, -1, 0 }, { 6, 4, 6, 4, 0, 6 }, { 10, 8, 10, 8, 0, 6 }, { 18, 3, 18, 3, 2, 14 },
        { 21, 5, 21, 5, -1, 0 } } },
    { "last rows of a cache", 4, 40, 3,
      { { 0, 1, 20, 9, -1, 0 }, { 1, 2, 0, 17, -1, 3 }, { 3, 1, 33, 1, -1, 0 } } },
    { "prefixes in a cache, without queries", 5, 50, 5,
      { { 0, 0, 8, 12, -1, 0 }, { 0, 0, 30, 5, 0, 12 }, { 0, 3, 20, 7, 0, 12 }, { 3, 2, 40, 2, 1, 17 },
        { 0, 0, 2, 4, -1, 0 } } },
    { "long", 133, 133, 2, { { 0, 70, 0, 70, -1, 0 }, { 70, 63, 70, 63, 0, 70 } } },
    { "33 and 31", 64, 64, 2, { { 0, 33, 0, 33, -1, 0 }, { 33, 31, 33, 31, -1, 0 } } },
    { "a prefix of 70, which windows hide", 2, 72, 2, { { 0, 0, 0, 70, -1, 0 }, { 0, 2, 70, 2, 0, 70 } } },
    { "850 keys", 150, 850, 2, { { 0, 0, 0, 700, -1, 0 }, { 0, 150, 700, 150, 0, 700 } } }
};
enum { MANY_KEYS = sizeof layouts / sizeof *layouts - 1, MOST_KEYS = 850 };

/* Is key j of segment b seen by query i of segment a? Said by positions, where the kernels walk. */
static int is_seen(const struct layout *l, int a, int i, int b, int j, int window)
{
    int own = l->segment[a][3] - l->segment[a][1] + i, s = a;
    int at_query = l->segment[a][5] + own, at_key = l->segment[b][5] + j;
    if (a == b) return j <= own && (window <= 0 || at_key > at_query - window);
    while (s >= 0 && s != b) s = l->segment[s][4];
    return s == b && (window <= 0 || at_key > at_query - window);
}

/* The keys that a query sees, with softmax: what the bounds are made of. */
struct seen_keys {
    int n, row[MOST_KEYS];
    double z[MOST_KEYS], p[MOST_KEYS];
    double lse, z_error;        /* z_error: how far off a z can be in the table under test */
};

static const struct layout *layout_of(const struct trial *t) { return &layouts[t->flag]; }

static double dot_of(const double *a, const double *b, int n)
{
    double sum = 0;
    int i;
    for (i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* z is a dot product, scaled; its distance to the maximum or to lse is rounded once more. */
static void see(const struct trial *t, struct seen_keys *y, int a, int i, int h, const double *q, const double *k)
{
    const struct layout *l = layout_of(t);
    int g = h / (t->NH / t->NKV), HS = t->HS, b, j;
    const double *q_n = q + ((size_t)(l->segment[a][0] + i) * t->NH + h) * HS;
    double max = -INFINITY, sum = 0, largest = 0, longest = 0;
    y->n = 0;
    for (b = 0; b < l->S; b++) {
        for (j = 0; j < l->segment[b][3]; j++) {
            const double *k_j = k + ((size_t)(l->segment[b][2] + j) * t->NKV + g) * HS;
            if (!is_seen(l, a, i, b, j, t->window)) continue;
            y->row[y->n] = l->segment[b][2] + j;
            y->z[y->n] = t->scale * dot_of(q_n, k_j, HS);
            max = fmax(max, y->z[y->n]);
            largest = fmax(largest, fabs(y->z[y->n]));
            longest = fmax(longest, norm(k_j, HS, 1));
            y->n++;
        }
    }
    for (j = 0; j < y->n; j++) sum += exp(y->z[j] - max);
    y->lse = max + log(sum);
    for (j = 0; j < y->n; j++) y->p[j] = exp(y->z[j] - y->lse);
    y->z_error = t->o->u * (fabs(t->scale) * (2 * sqrt(HS) + 2) * norm(q_n, HS, 1) * longest + 4 * largest);
}

/* Relative error of a p: of z twice (its own and in the sum), of exp, of the sum, of a rounded lse. */
static double p_error(const struct trial *t, const struct seen_keys *y)
{
    return 2 * y->z_error + t->o->u * (12 + 3 * sqrt(y->n) + fabs(y->lse));
}

CALL(attention, x->b[0], x->b[1], x->b[2], x->b[3], x->b[4], (ints *)x->b[5], t->S, t->NH, t->NKV, t->HS, t->scale,
     t->window)

static void attention_bounds(struct trial *t)
{
    struct operand *out = t->operand, *lse = t->operand + 1;
    const double *q = t->operand[2].start, *k = t->operand[3].start, *v = t->operand[4].start;
    const struct layout *l = layout_of(t);
    struct seen_keys y;
    int a, i, h, d, j;
    untouched(out);
    untouched(lse);
    for (a = 0; a < l->S; a++) {
        for (i = 0; i < l->segment[a][1]; i++) {
            for (h = 0; h < t->NH; h++) {
                size_t nh = (size_t)(l->segment[a][0] + i) * t->NH + h;
                see(t, &y, a, i, h, q, k);
                lse->bound[nh] = y.z_error + t->o->u * (fabs(y.lse) + 4 + sqrt(y.n));
                check_oracle(t, lse->want[nh], y.lse, 1 + fabs(y.lse));
                for (d = 0; d < t->HS; d++) {
                    size_t at = nh * t->HS + d;
                    double sum = 0, absolute = 0;
                    for (j = 0; j < y.n; j++) {
                        double pv = y.p[j] * v[((size_t)y.row[j] * t->NKV + h / (t->NH / t->NKV)) * t->HS + d];
                        sum += pv;
                        absolute += fabs(pv);
                    }
                    out->bound[at] = (p_error(t, &y) + (2 * sqrt(y.n) + 2) * t->o->u) * absolute + y.n * 10 * TINY;
                    check_oracle(t, out->want[at], sum, absolute);
                }
            }
        }
    }
}

static const struct { int NH, NKV, HS; } head_shapes[] = {
    { 1, 1, 2 }, { 2, 1, 6 }, { 3, 3, 8 }, { 4, 2, 10 }, { 4, 4, 16 }, { 6, 2, 34 }, { 9, 3, 64 }, { 2, 1, 128 },
    { 100, 1, 3 }, { 1, 1, 257 }     /* more heads to a key head, and more numbers to a head, than blocks are made for */
};

/* The operands q, k, v and the table itself; queries `gain` times normal. */
static void add_qkv(struct trial *t, double gain)
{
    const struct layout *l = layout_of(t);
    double *q = add_operand(t, IN, (size_t)l->rows * t->NH * t->HS, NORMAL);
    size_t i, n = t->operand[t->operands - 1].n;
    for (i = 0; q && i < n; i++) q[i] = rounded(q[i] * gain);
    add_operand(t, IN, (size_t)l->keys * t->NKV * t->HS, NORMAL);
    add_operand(t, IN, (size_t)l->keys * t->NKV * t->HS, NORMAL);
}

static void add_segments(struct trial *t)
{
    const struct layout *l = layout_of(t);
    double *x = add_ints(t, IN, (size_t)l->S * 8, 1);
    int s, i;
    for (s = 0; x && s < l->S; s++) {
        for (i = 0; i < 6; i++) x[s * 8 + i] = l->segment[s][i];
        x[s * 8 + 6] = -1;
        x[s * 8 + 7] = s;
    }
}

static void attention_trial(struct trial *t, struct oracle *o, const char *op, caller *call, int layout, int shape,
                            int window, double gain)
{
    const struct layout *l = &layouts[layout];
    trial_begin(t, o, op, call, "%s, NH %d NKV %d HS %d window %d gain %g%s", l->name, head_shapes[shape].NH,
                head_shapes[shape].NKV, head_shapes[shape].HS, window, gain, shape % 2 ? " scale" : "");
    t->flag = layout;
    t->N = l->rows;
    t->S = l->S;
    t->NH = head_shapes[shape].NH;
    t->NKV = head_shapes[shape].NKV;
    t->HS = head_shapes[shape].HS;
    t->window = window;
    t->scale = (shape % 2 ? 0.8 : 1) / sqrt(t->HS);      /* it is an argument, not always this */
}

/* Calls try(o, layout, shape, window, gain) for what is worth trying. */
static void attention_variants(struct oracle *o, void (*try)(struct oracle *, int, int, int, double))
{
    static const int windows[] = { 0, 1, 3, 8, 40 };
    size_t layout, shape;
    for (layout = 0; layout < MANY_KEYS; layout++)
        for (shape = 0; shape < COUNT(head_shapes); shape++)
            try(o, (int)layout, (int)shape, windows[(layout + shape) % COUNT(windows)], shape == 4 ? 30 : 1);
    for (layout = 1; layout < MANY_KEYS; layout++)
        for (shape = 0; shape < COUNT(windows); shape++) try(o, (int)layout, 3, windows[shape], 3);
    for (shape = 1; shape < 3; shape++) try(o, 7, 4, windows[shape], 300);      /* far below what a block without keys starts from */
    for (shape = 0; shape < 3; shape++) try(o, MANY_KEYS, 1, (int)shape * 300, 1);
}

static void try_attention(struct oracle *o, int layout, int shape, int window, double gain)
{
    struct trial t;
    attention_trial(&t, o, "attention", call_attention, layout, shape, window, gain);
    add_operand(&t, OUT, (size_t)t.N * t.NH * t.HS, NORMAL);
    add_operand(&t, OUT, (size_t)t.N * t.NH, NORMAL);
    add_qkv(&t, gain);
    add_segments(&t);
    trial_end(&t, attention_bounds);
}

static void attention_cases(struct oracle *o) { attention_variants(o, try_attention); }

CALL(attention_backward, x->b[0], x->b[1], x->b[2], x->b[3], x->b[7], x->b[8], x->b[9], x->b[4], x->b[5], x->b[6],
     (ints *)x->b[10], t->S, t->N, t->NH, t->NKV, t->HS, t->scale, t->window)

/* What one query and head adds to the bounds (and to a second computation) of dq, dk and dv:
 *   e = p (p_error |dout.v - D| + (2 sqrt(HS) + 3) u |dout| (|v| + |out|))    the error of ds,
 *   and (2 sqrt(M) + 4) u of every term of a sum over M of them. */
static void attention_pairs_bounds(struct trial *t, const struct seen_keys *y, int n, int h, double *dq, double *dk,
                                   double *dv)
{
    const double *q = t->operand[4].start, *k = t->operand[5].start, *v = t->operand[6].start;
    int HS = t->HS, j, d;
    size_t nh = (size_t)n * t->NH + h;
    const double *q_n = q + nh * HS, *dout = t->operand[7].start + nh * HS, *out = t->operand[8].start + nh * HS;
    double D = dot_of(dout, out, HS), u = t->o->u, relative = p_error(t, y);
    double sums = (2 * sqrt(t->N * t->NH / t->NKV + y->n) + 4) * u;
    for (j = 0; j < y->n; j++) {
        size_t kv = ((size_t)y->row[j] * t->NKV + h / (t->NH / t->NKV)) * HS;
        double p = exp(y->z[j] - t->operand[9].start[nh]), back = dot_of(dout, v + kv, HS) - D;
        double e = p * (relative * fabs(back)
                        + (2 * sqrt(HS) + 3) * u * norm(dout, HS, 1) * (norm(v + kv, HS, 1) + norm(out, HS, 1)));
        double ds = fabs(t->scale) * (e + sums * p * fabs(back) + TINY * (1 + fabs(back)));
        for (d = 0; d < HS; d++) {
            t->operand[0].bound[nh * HS + d] += ds * fabs(k[kv + d]) + TINY;
            t->operand[1].bound[kv + d] += ds * fabs(q_n[d]) + TINY;
            t->operand[2].bound[kv + d] += ((relative + sums) * p + TINY) * fabs(dout[d]) + TINY;
            dq[nh * HS + d] += t->scale * p * back * k[kv + d];
            dk[kv + d] += t->scale * p * back * q_n[d];
            dv[kv + d] += p * dout[d];
        }
    }
}

static void check_whole(struct trial *t, const struct operand *a, const double *other)
{
    size_t j;
    double largest = 1;
    for (j = 0; j < a->n; j++) largest = fmax(largest, fabs(other[j]));
    for (j = 0; j < a->n; j++) if (a->bound[j] >= 0) check_oracle(t, a->want[j], other[j], 100 * largest);
}

/* Key rows of no segment, or of one without queries that nothing continues, are not touched; dq of
 * rows of no segment is not anybody's. */
static void attention_backward_bounds(struct trial *t)
{
    const struct layout *l = layout_of(t);
    struct seen_keys y;
    double *second[3];
    int a, b, s, i, h, j;
    size_t e;
    for (i = 0; i < 3; i++) {
        second[i] = numbers(t, t->operand[i].n);
        if (!second[i]) return;
        for (e = 0; e < t->operand[i].n; e++) {
            second[i][e] = 0;
            t->operand[i].bound[e] = i ? UNTOUCHED : IGNORED;
        }
    }
    for (a = 0; a < l->S; a++) {
        int named = l->segment[a][1] > 0;
        size_t width = (size_t)t->NKV * t->HS;
        for (b = 0; b < l->S; b++)
            for (s = l->segment[b][4]; s >= 0; s = l->segment[s][4]) named |= s == a;
        for (e = 0; e < (size_t)l->segment[a][1] * t->NH * t->HS; e++)
            t->operand[0].bound[(size_t)l->segment[a][0] * t->NH * t->HS + e] = 0;
        for (j = 0; named && j < l->segment[a][3]; j++)
            for (e = 0; e < width; e++)
                t->operand[1].bound[(l->segment[a][2] + j) * width + e]
                    = t->operand[2].bound[(l->segment[a][2] + j) * width + e] = 0;
    }
    for (a = 0; a < l->S; a++)
        for (i = 0; i < l->segment[a][1]; i++)
            for (h = 0; h < t->NH; h++) {
                see(t, &y, a, i, h, t->operand[4].start, t->operand[5].start);
                attention_pairs_bounds(t, &y, l->segment[a][0] + i, h, second[0], second[1], second[2]);
            }
    for (i = 0; i < 3; i++) check_whole(t, &t->operand[i], second[i]);
}

/* out and lse are those of the oracle's forward pass, rounded. */
static int forward_of(struct trial *t, double *out, double *lse)
{
    struct trial f = *t;
    double *got[MAX_OPERANDS], returned;
    int i;
    f.operands = 6;
    f.operand[0] = t->operand[8];
    f.operand[1] = t->operand[9];
    for (i = 0; i < 3; i++) f.operand[2 + i] = t->operand[4 + i];
    f.operand[5] = t->operand[10];
    f.call = call_attention;
    for (i = 0; i < 6; i++) got[i] = f.operand[i].want;
    if (t->o->arena.failed || run_on(&f, &t->o->truth, 1, 1, got, &returned)) return -1;
    for (i = 0; i < (int)t->operand[8].n; i++) out[i] = rounded(got[0][i]);
    for (i = 0; i < (int)t->operand[9].n; i++) lse[i] = rounded(got[1][i]);
    return 0;
}

static void try_attention_backward(struct oracle *o, int layout, int shape, int window, double gain)
{
    struct trial t;
    const struct layout *l = &layouts[layout];
    double *out, *lse;
    size_t rows, keys;
    attention_trial(&t, o, "attention_backward", call_attention_backward, layout, shape, window, gain);
    rows = (size_t)t.N * t.NH * t.HS;
    keys = (size_t)l->keys * t.NKV * t.HS;
    add_operand(&t, OUT, rows, NORMAL);
    add_operand(&t, OUT, keys, NORMAL);
    add_operand(&t, OUT, keys, NORMAL);
    add_operand(&t, SCRATCH, (size_t)t.N * t.NH, NORMAL);
    add_qkv(&t, gain);
    add_operand(&t, IN, rows, NORMAL);
    out = add_operand(&t, IN, rows, NORMAL);
    lse = add_operand(&t, IN, (size_t)t.N * t.NH, NORMAL);
    add_segments(&t);
    if (o->stopped) return;
    if (forward_of(&t, out, lse)) o->no_memory = 1;
    else trial_end(&t, attention_backward_bounds);
}

static void attention_backward_cases(struct oracle *o) { attention_variants(o, try_attention_backward); }
