/* verify.c - `lora verify`: a table of kernels held against the double reference, and the cases for people whose
 * kernels live elsewhere. The cases and their bounds are in verify/. */
#include "job.h"
#include "../formats/json.h"
#include "../formats/safetensors.h"
#include "../nf4.h"
#include "../verify/oracle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct settings {
    const char *backend, *op, *json, *dump;
    int compute;
};

static const struct option options[] = {
    { "backend", NULL, OPTION_TEXT, offsetof(struct settings, backend), NULL, "NAME|./FILE.so",
      "one of `lora backends`, cuda too, or a shared object that exports lora_kernels()", 0, 0 },
    { "op", NULL, OPTION_TEXT, offsetof(struct settings, op), NULL, "NAME", "one operation of kernels.h (default: all)", 0, 0 },
    { "compute", NULL, OPTION_CHOICE, offsetof(struct settings, compute), "f32|bf16", NULL,
      "the arithmetic of products with frozen weights, where the table has both (default: f32)", 0, 0 },
    { "json", NULL, OPTION_TEXT, offsetof(struct settings, json), NULL, "FILE", "the figures as JSON (- for stdout)", 0, 0 },
    { "dump", NULL, OPTION_TEXT, offsetof(struct settings, dump), NULL, "DIR",
      "write the cases instead: inputs, expected outputs and bounds, a safetensors file for each operation", 0, 0 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

static int check_op(const char *op, struct lora_error *err)
{
    int i;
    for (i = 0; op && oracle_op(i); i++) if (!strcmp(op, oracle_op(i))) return 0;
    if (!op) return 0;
    fail(err, "wrong value", "--op");
    expected(err, "an operation of kernels.h, as matmul or rmsnorm_backward");
    return found(err, "\"%s\"", op);
}

/* ---- a table ---- */

/* One operation's figures. */
struct figures {
    FILE *out;
    struct text *json;
    int cases, unsupported, failed;
    double share;               /* the worst error as a share of its bound */
    char worst[160];            /* the case that it was in */
};

static void show_failure(const struct figures *f, const struct oracle_result *r)
{
    fprintf(f->out, "  %s failed: %s, seed %llu: %s", r->op, r->label, (unsigned long long)r->seed, r->fault);
    if (r->operand)
        fprintf(f->out, "; worst of %d numbers: %s[%zu] expected %.9g, found %.9g, error %.3g of %.3g allowed", r->compared,
                r->operand, r->index, r->expected, r->found, r->err, r->bound);
    fputc('\n', f->out);
}

static void json_failure(const struct figures *f, const struct oracle_result *r)
{
    text_puts(f->json, f->failed == 1 ? "{" : ",{");
    json_put_pair(f->json, "case", r->label);
    text_printf(f->json, ",\"seed\":%llu", (unsigned long long)r->seed);
    json_put_pair(f->json, "fault", r->fault);
    if (r->operand) {
        json_put_pair(f->json, "operand", r->operand);
        text_printf(f->json, ",\"index\":%zu", r->index);
        json_put_figure(f->json, "expected", r->expected);
        json_put_figure(f->json, "found", r->found);
        json_put_figure(f->json, "error", r->err);
        json_put_figure(f->json, "bound", r->bound);
    }
    text_puts(f->json, "}");
}

static int take_result(void *context, const struct oracle_result *r)
{
    enum { SHOWN = 5 };
    struct figures *f = context;
    f->cases++;
    if (!r->supported) f->unsupported++;
    if (r->share > f->share) {
        f->share = r->share;
        snprintf(f->worst, sizeof f->worst, "%s", r->label);
    }
    if (!r->fault) return 0;
    if (f->failed++ < SHOWN) show_failure(f, r);
    json_failure(f, r);
    return 0;
}

static int verify_op(const struct settings *set, const struct kernels *k, const char *op, struct figures *f,
                     struct lora_error *err)
{
    text_printf(f->json, "%s\n{\"op\":\"%s\",\"failures\":[", f->json->s && f->json->s[f->json->n - 1] == '}' ? "," : "", op);
    if (oracle_run_some(k, set->compute, 1, &kernels_ref64, op, take_result, f, err) < 0) return -1;
    text_printf(f->json, "],\"cases\":%d,\"unsupported\":%d,\"failed\":%d", f->cases, f->unsupported, f->failed);
    json_put_figure(f->json, "worst_share", f->share);
    text_puts(f->json, "}");
    fprintf(f->out, "%-18s %6d %8d %8d  %9.2f %%  %s\n", op, f->cases, f->unsupported, f->failed, 100 * f->share, f->worst);
    fflush(f->out);
    return 0;
}

static int verify(const struct settings *set, struct lora_error *err)
{
    struct text json = { NULL, 0, 0, 0 };
    FILE *out = set->json && !strcmp(set->json, "-") ? stderr : stdout;
    const char *op;
    int i, all = 0, failed = 0, bad;
    const struct kernels *k = job_check_backend(set->backend, err) ? NULL : kernels_find(set->backend, err);
    if (!k || kernels_check_compute(k, set->compute, err)) return -1;
    text_printf(&json, "{\"backend\":\"%s\",\"operations\":[", k->name);
    fprintf(out, "%s, against ref64\n%-18s %6s %8s %8s  %11s  %s\n", k->name, "operation", "cases", "not read", "failed",
            "worst error", "(of its bound) in");
    for (i = 0, bad = 0; !bad && (op = oracle_op(i)); i++) {
        struct figures f = { .out = out, .json = &json };
        if (set->op && strcmp(op, set->op)) continue;
        bad = verify_op(set, k, op, &f, err);
        all += f.cases;
        failed += f.failed;
    }
    fprintf(out, "%d cases, %d failed\n", all, failed);
    text_puts(&json, "]}\n");
    if (!bad && set->json) bad = text_check(&json, err) || job_write_json(set->json, &json, err);
    text_free(&json);
    if (bad || !failed) return bad ? -1 : 0;
    fail(err, "the kernels are wrong", "%s", k->name);
    expected(err, "every case within its bound");
    return found(err, "%d of %d cases failed", failed, all);
}

/* ---- the cases as files ---- */

/* A file is gone through twice, as its header comes first. Tensors of 8 bytes a number, then of 4, then bytes. */
struct dump {
    struct st_writer *w;
    struct text *labels;
    struct lora_error *err;
    int writing, pass, number, failed;
};

/* Tensor number.NAMEPART, in the pass of its width. */
static int dump_tensor(struct dump *d, const char *name, const char *part, int type, const void *data, size_t n)
{
    static const int widths[] = { 8, 4, 1 };
    char key[96];
    if (weight_types[type].bytes != widths[d->pass] || !data) return 0;
    if (d->writing) return st_writer_put(d->w, data, n * (size_t)widths[d->pass], d->err);
    snprintf(key, sizeof key, "%04d.%s%s", d->number, name, part);
    return st_writer_add(d->w, key, type, &n, 1, d->err);
}

static int dump_integers(struct dump *d, const char *name, const char *part, const double *x, size_t n)
{
    int *whole = new_array(n, sizeof *whole, d->err), bad;
    size_t i;
    if (!whole) return -1;
    for (i = 0; i < n; i++) whole[i] = (int)x[i];
    bad = dump_tensor(d, name, part, TYPE_I32, whole, n);
    free(whole);
    return bad;
}

/* The bytes of a weight, and of a quantised one what its numbers are made with (weight.h). */
static int dump_weight(struct dump *d, const struct weight *w, size_t bytes)
{
    const struct quantised *q = w->q;
    if (dump_tensor(d, "w", "", TYPE_U8, w->data, bytes)) return -1;
    if (!q) return 0;
    return dump_tensor(d, "w", ".code", TYPE_F32, q->code, 16) || dump_tensor(d, "w", ".absmax", TYPE_F32, q->absmax, q->scales)
        || dump_tensor(d, "w", ".codes", TYPE_U8, q->codes, q->scales) || dump_tensor(d, "w", ".map", TYPE_F32, q->map, 256)
        || dump_tensor(d, "w", ".nested", TYPE_F32, q->nested, q->nested ? block_count(q->scales, q->nested_block) : 0)
        || dump_tensor(d, "w", ".offset", TYPE_F32, q->nested ? &q->offset : NULL, 1) ? -1 : 0;
}

/* A line of cases.json: what the case is, and where its weight begins and in what blocks its scales are. */
static void dump_label(struct dump *d, const struct oracle_result *r)
{
    text_printf(d->labels, "%s\n\"%s/%04d\":{\"case\":\"%s\"", d->labels->n > 1 ? "," : "", r->op, d->number, r->label);
    if (r->weight) text_printf(d->labels, ",\"first_element\":%zu", r->weight->offset);
    if (r->weight && r->weight->q)
        text_printf(d->labels, ",\"block\":%d,\"nested_block\":%d", r->weight->q->block, r->weight->q->nested_block);
    text_puts(d->labels, "}");
}

static int dump_case(void *context, const struct oracle_result *r)
{
    struct dump *d = context;
    int i, bad = 0;
    for (i = 0; !bad && i < r->n_operands; i++) {
        const struct oracle_operand *a = &r->operands[i];
        if (!a->n) continue;
        if (a->is_int) bad = dump_integers(d, a->name, "", a->before, a->n)
                             || (a->output && dump_integers(d, a->name, ".expected", a->expected, a->n));
        else bad = dump_tensor(d, a->name, "", TYPE_F64, a->before, a->n)
                   || (a->output && dump_tensor(d, a->name, ".expected", TYPE_F64, a->expected, a->n));
        if (!bad && a->output) bad = dump_tensor(d, a->name, ".bound", TYPE_F64, a->bound, a->n);
    }
    if (!bad && r->weight) bad = dump_weight(d, r->weight, r->weight_bytes);
    if (!d->writing && !d->pass) dump_label(d, r);
    d->number++;
    return d->failed = bad != 0;
}

static int dump_op(const struct settings *set, const char *op, struct text *labels, struct lora_error *err)
{
    struct st_writer w;
    struct dump d = { .w = &w, .labels = labels, .err = err };
    char name[64], *path;
    int bad;
    memset(&w, 0, sizeof w);
    snprintf(name, sizeof name, "%s.safetensors", op);
    if (!(path = path_join(set->dump, name, err))) return -1;
    for (d.writing = 0, bad = 0; !bad && d.writing < 2; d.writing++) {
        if (d.writing) bad = st_writer_begin(&w, path, err);
        for (d.pass = 0; !bad && d.pass < 3; d.pass++) {
            d.number = 0;
            bad = oracle_run(NULL, &kernels_ref64, op, dump_case, &d, err) < 0 || d.failed;
        }
    }
    if (bad) st_writer_abandon(&w);
    else bad = st_writer_commit(&w, err);
    free(path);
    return bad ? -1 : 0;
}

static int dump(const struct settings *set, struct lora_error *err)
{
    struct text labels = { NULL, 0, 0, 0 };
    const char *op;
    char *path = NULL;
    int i, bad = make_directory(set->dump, err);
    text_puts(&labels, "{");
    for (i = 0; !bad && (op = oracle_op(i)); i++) {
        if (set->op && strcmp(op, set->op)) continue;
        bad = dump_op(set, op, &labels, err);
    }
    text_puts(&labels, "\n}\n");
    if (!bad) bad = text_check(&labels, err) || !(path = path_join(set->dump, "cases.json", err))
                    || file_write(path, labels.s, labels.n, err);
    if (!bad) status("%s: the cases, and cases.json, which says what each one is", set->dump);
    free(path);
    text_free(&labels);
    return bad ? -1 : 0;
}

static int run(void *settings, struct lora_error *err)
{
    const struct settings *set = settings;
    if (set->dump && (set->json || set->compute || strcmp(set->backend, "auto")))
        return job_usage_error(&job_verify, "--dump writes the cases alone: no --backend, --compute or --json");
    return check_op(set->op, err) || (set->dump ? dump(set, err) : verify(set, err)) ? -1 : EXIT_DONE;
}

static const struct settings defaults = { .backend = "auto" };

const struct job job_verify = {
    "verify", "holds a table of kernels against the double reference, or writes the cases for others",
    "[--backend NAME|./FILE.so] [--op OP] [--dump DIR]", options, NULL, sizeof defaults, &defaults, run
};
