/* rounding.c - see rounding.h. */
#include "rounding.h"
#include "session.h"
#include "../formats/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NF4, FP4, INT8, INT4, COLUMNS };     /* quant_types[], and INT4 */
static const char *const names[COLUMNS] = { "nf4", "fp4", "int8", "int4" };

/* Sums over numbers: of a tensor, of all. */
struct sums {
    double numbers, signal;             /* how many, and their squares */
    double noise[COLUMNS], largest[COLUMNS];
};

static struct weight_error error_of(const struct sums *s, int column)
{
    return (struct weight_error){
        .mean_square = s->numbers > 0 ? s->noise[column] / s->numbers : 0, .largest = s->largest[column],
        .snr = s->noise[column] > 0 ? 10 * log10(s->signal / s->noise[column]) : INFINITY
    };
}

/* ---- int4 ---- */

/* The block's numbers as -7 .. 7 times absmax / 7. */
static void add_block(struct sums *s, const float *x, int n)
{
    double most = 0;
    int i;
    for (i = 0; i < n; i++) if (fabs((double)x[i]) > most) most = fabs((double)x[i]);
    for (i = 0; i < n; i++) {
        double step = most / 7, d = step > 0 ? rint(x[i] / step) * step - x[i] : 0;
        s->signal += (double)x[i] * x[i];
        s->noise[INT4] += d * d;
        if (fabs(d) > s->largest[INT4]) s->largest[INT4] = fabs(d);
    }
    s->numbers += n;
}

/* Blocks run on across the ends of rows. */
static int add_int4(struct sums *s, const struct weight *w, int block, struct lora_error *err)
{
    float *row = new_array((size_t)w->cols, sizeof *row, err), *part = new_array((size_t)block, sizeof *part, err);
    int r, i, n = 0;
    for (r = 0; row && part && r < w->rows; r++) {
        weight_decode(w, r, 0, w->cols, row);
        for (i = 0; i < w->cols; i++) {
            part[n++] = row[i];
            if (n == block) add_block(s, part, n), n = 0;
        }
    }
    if (row && part) add_block(s, part, n);
    free(row);
    free(part);
    return row && part ? 0 : -1;
}

/* ---- a tensor ---- */

static int add_tensor(struct sums *s, const struct weight *w, const struct quantise *how, int threads, const char *name,
                      struct lora_error *err)
{
    struct weight_error e;
    int i;
    memset(s, 0, sizeof *s);
    if (add_int4(s, w, how->block, err)) return -1;
    for (i = NF4; i <= INT8; i++) {
        struct quantise one = *how;
        one.type = quant_types[i];
        if (i == INT8) one.block = one.double_quant = 0;
        if (weight_quantise_error(&e, w, &one, threads, name, err)) return -1;
        s->noise[i] = e.mean_square * s->numbers;
        s->largest[i] = e.largest;
    }
    return 0;
}

static void add_sums(struct sums *all, const struct sums *s)
{
    int i;
    all->numbers += s->numbers;
    all->signal += s->signal;
    for (i = 0; i < COLUMNS; i++) {
        all->noise[i] += s->noise[i];
        if (s->largest[i] > all->largest[i]) all->largest[i] = s->largest[i];
    }
}

/* ---- what is shown ---- */

static void put_line(struct text *t, const char *name, const struct sums *s)
{
    int i;
    text_printf(t, "%-36s", name);
    for (i = 0; i < COLUMNS; i++) {
        struct weight_error e = error_of(s, i);
        text_printf(t, "  %9.3e %9.3e %6.2f", e.mean_square, e.largest, e.snr);
    }
    text_puts(t, "\n");
}

static void put_head(struct text *t)
{
    int i;
    text_printf(t, "%-36s", "");
    for (i = 0; i < COLUMNS; i++) text_printf(t, i < COLUMNS - 1 ? "  %-26s" : "  %s", names[i]);
    text_printf(t, "\n%-36s", "");
    for (i = 0; i < COLUMNS; i++) text_puts(t, "  mean sq.  largest   S/N dB");
    text_puts(t, "\n");
}

static void put_errors(struct text *t, const struct sums *s)
{
    int i;
    for (i = 0; i < COLUMNS; i++) {
        struct weight_error e = error_of(s, i);
        text_printf(t, "%s\"%s\": {\"mean_square\": ", i ? ", " : "{", names[i]);
        json_put_number(t, e.mean_square, 9);
        text_puts(t, ", \"largest\": ");
        json_put_number(t, e.largest, 9);
        text_puts(t, ", \"snr_db\": ");
        json_put_number(t, e.snr, 9);
        text_puts(t, "}");
    }
    text_puts(t, "}");
}

/* "model.layers.3.mlp.up_proj.weight" -> "layers.3.mlp.up_proj" */
static void put_tensor(struct text *lines, struct text *json, const char *name, const struct weight *w, const struct sums *s)
{
    char brief[128];
    const char *from = strncmp(name, "model.", 6) ? name : name + 6;
    size_t n = strlen(from);
    if (n > 7 && !strcmp(from + n - 7, ".weight")) n -= 7;
    snprintf(brief, sizeof brief, "%.*s", (int)n, from);
    put_line(lines, brief, s);
    text_puts(json, json->n ? ",\n  {\"name\": " : "\n  {\"name\": ");
    json_put_text(json, name);
    text_printf(json, ", \"shape\": [%d, %d], \"errors\": ", w->rows, w->cols);
    put_errors(json, s);
    text_puts(json, "}");
}

int rounding_table(struct text *lines, struct text *json, const struct model *m, const struct quantise *how,
                   int threads, struct lora_error *err)
{
    struct quantise settings = *how;
    struct sums all, one;
    struct text list = { 0 };
    char name[128];
    int id = -1, layer = 0, bad = 0;
    memset(&all, 0, sizeof all);
    if (!settings.block) settings.block = 64;
    put_head(lines);
    while (!bad && tensor_next(&m->config, &id, &layer)) {
        const struct weight *w = model_weight(m, id, layer);
        if (!tensor_specs[id].linear) continue;
        tensor_name(name, sizeof name, id, layer);
        progress("errors: %s", name);
        if ((bad = stop_check(err) || add_tensor(&one, w, &settings, threads, name, err))) break;
        put_tensor(lines, &list, name, w, &one);
        add_sums(&all, &one);
    }
    progress_done();
    put_line(lines, "all", &all);
    text_puts(json, ",\n \"errors\": ");
    put_errors(json, &all);
    text_puts(json, ",\n \"tensors\": [");
    text_puts(json, list.s ? list.s : "");
    text_puts(json, "]");
    if (!bad) bad = text_check(&list, err) || text_check(lines, err) || text_check(json, err);
    text_free(&list);
    return bad ? -1 : 0;
}
