/* pack.c - draws the pack of docs/one-row.md, as pack_rows() lays it and the reference's attention sees it, and holds
 * the page to it (page.h). `make test` builds and runs it. */
#include "page.h"
#include "pack.h"

enum { ROWS = 3, MOST = 8 };

/* Ids are places in this list. */
static const char *const words[] = { "the", "cat", "sat", "down", "here", "up", "dog", "ran" };
static const struct { int ids[5], n; } rows[ROWS] = { { { 0, 1, 2, 3, 4 }, 5 }, { { 0, 1, 2, 5 }, 4 }, { { 0, 6, 7 }, 3 } };
static const unsigned char all_targets[5] = { 1, 1, 1, 1, 1 };      /* the first is ignored: nothing predicts it */

/* What goes wrong leaves a block that the page does not have. */
static void make_pack(struct pack *p)
{
    struct pack_input in[ROWS];
    int r;
    memset(p, 0, sizeof *p);
    for (r = 0; r < ROWS; r++) in[r] = (struct pack_input){ rows[r].ids, all_targets, rows[r].n, 0, NULL };
    if (pack_rows(p, in, ROWS, 0, 1, NULL) || pack_finish(p, NULL) || p->N > MOST) pack_clear(p);
}

static void put_rows(struct text *t)
{
    int r, i;
    for (r = 0; r < ROWS; r++) {
        text_printf(t, "row %c ", 'A' + r);
        for (i = 0; i < rows[r].n; i++) text_printf(t, " %5s", words[rows[r].ids[i]]);
        text_puts(t, "\n");
    }
}

/* Each segment on a line, its words below their positions. */
static void put_segments(struct text *t)
{
    struct pack p;
    int s, i;
    make_pack(&p);
    text_puts(t, "position      0     1     2     3      q_start  q_len  prefix\n");
    for (s = 0; s < p.S; s++) {
        const struct segment *g = &p.segments[s];
        text_printf(t, "segment %d", s);
        for (i = 0; i < 4; i++) text_printf(t, " %5s", i < g->pos || i >= g->pos + g->q_len ? "" : words[p.ids[g->q_start + i - g->pos]]);
        text_printf(t, "    %5d  %5d    %4d\n", g->q_start, g->q_len, g->prefix);
    }
    pack_free(&p);
}

/* Attention with scores of 0 and a value of its own for each key: out says which keys a query saw. */
static void put_sees(struct text *t)
{
    struct pack p;
    struct kernel_ctx c = { 0 };
    double none[MOST * MOST] = { 0 }, own[MOST * MOST] = { 0 }, out[MOST * MOST] = { 0 }, lse[MOST];
    int n, j;
    c.threads = 1;
    make_pack(&p);
    for (n = 0; n < p.N; n++) own[n * p.N + n] = 1;
    kernels_ref64.attention(&c, (buf *)out, (buf *)lse, (const buf *)none, (const buf *)none, (const buf *)own,
                            (const ints *)p.segments, p.S, 1, 1, p.N, 1, 0);
    text_puts(t, "row of the pack ");
    for (n = 0; n < p.N; n++) text_printf(t, " %5d", n);
    text_puts(t, "\nids, as words   ");
    for (n = 0; n < p.N; n++) text_printf(t, " %5s", words[p.ids[n]]);
    text_puts(t, "\npos             ");
    for (n = 0; n < p.N; n++) text_printf(t, " %5d", p.pos[n]);
    text_puts(t, "\n\n");
    for (n = 0; n < p.N; n++) {
        text_printf(t, "row %d, %5s sees", n, words[p.ids[n]]);
        for (j = 0; j < p.N; j++) text_printf(t, " %5s", out[n * p.N + j] > 0 ? words[p.ids[j]] : ".");
        text_puts(t, "\n");
    }
    pack_free(&p);
}

static void put_targets(struct text *t)
{
    struct pack p;
    double sum = 0;
    int u, i;
    make_pack(&p);
    for (u = 0; u < p.U; u++) {
        int row = p.logit_row[u];
        text_printf(t, "row %d, %5s is to predict ", row, words[p.ids[row]]);
        for (i = p.first[u]; i < p.first[u + 1]; i++) {
            text_printf(t, "%s%s, weight %g", i > p.first[u] ? "; " : "", words[p.id_by_row[i]], (double)p.weight_by_row[i]);
            sum += (double)p.weight_by_row[i];
        }
        text_puts(t, "\n");
    }
    text_printf(t, "N = %d, T = %d, U = %d; the weights add up to %g\n", p.N, p.T, p.U, sum);
    pack_free(&p);
}

int main(int argc, char **argv)
{
    static const struct page_block blocks[] = {
        { "rows", put_rows }, { "segments", put_segments }, { "sees", put_sees }, { "targets", put_targets },
    };
    return page_main(argc, argv, blocks, sizeof blocks / sizeof *blocks, 0);
}
