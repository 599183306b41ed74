/* bench_generate.c - lora bench --generate: how fast a prompt is read and new tokens come, one sequence at a time and
 * several, with the bytes of weights that a token reads as a share of what reading memory gives in the same round. */
#include "bench.h"
#include "generation.h"
#include "measure.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct runner {
    struct session s;
    struct model *made;             /* of random weights; NULL: the session's model is the file's */
    struct generator g;
    struct sequence *all;           /* [batch] */
    struct sequence **list;
    double bytes;                   /* of weights that a token reads */
    double prompt[MAX_ROUNDS], token[MAX_ROUNDS], batch[MAX_ROUNDS];    /* seconds of one token */
    double share[MAX_ROUNDS];       /* of the bandwidth, of a token alone */
};

/* All but the embedding, of which a row is read, unless it is the head. */
static double weights_read(const struct model *m)
{
    double sum = 0;
    int id = -1, layer = 0;
    while (tensor_next(&m->config, &id, &layer))
        if (id != T_EMBED || m->config.tied) sum += (double)base_bytes(model_weight(m, id, layer));
    return sum;
}

static int prepare(struct runner *r, const struct bench *b, int type, struct model *file, struct lora_error *err)
{
    int i, length = b->prompt > b->new_tokens + 1 ? b->prompt : b->new_tokens + 1;
    if (!file && bench_model(&r->made, b, &b->types[type], err)) return -1;
    r->s = (struct session){
        .model = file ? file : r->made, .kernels = b->kernels, .threads = b->threads, .max_memory = memory_limit(&b->common, b->kernels)
    };
    r->bytes = weights_read(r->s.model);
    r->all = new_array((size_t)b->batch, sizeof *r->all, err);
    r->list = new_array((size_t)b->batch, sizeof *r->list, err);
    if (!r->all || !r->list) return -1;
    for (i = 0; i < b->batch; i++) {
        r->all[i].slot = i;
        r->list[i] = &r->all[i];
    }
    return generator_open(&r->g, &r->s, b->batch, length, NULL, 0, err);
}

/* n random ids in each of `count` sequences; nothing of them is cached. */
static int begin(struct runner *r, int count, int n, struct lora_error *err)
{
    int i, t;
    for (i = 0; i < count; i++) {
        r->all[i].cached = r->all[i].ids.n = 0;
        for (t = 0; t < n; t++) {
            int id = (int)(random_bits(5, (uint64_t)(i * n + t)) % (uint64_t)r->s.model->config.V);
            if (ids_add(&r->all[i].ids, id, err)) return -1;
        }
    }
    return 0;
}

/* So many tokens more in each of `count` sequences; *seconds of one of them. */
static int go_on(struct runner *r, int count, int tokens, double *seconds, struct lora_error *err)
{
    static const struct sampling greedy = SAMPLING_GREEDY;
    double start = seconds_now();
    int i, t;
    for (t = 0; t < tokens; t++) {
        if (generator_feed(&r->g, r->list, count, err)) return -1;
        for (i = 0; i < count; i++) {
            int id = generator_choose(&r->g, &r->all[i], &greedy);
            if (ids_add(&r->all[i].ids, id, err)) return -1;
        }
    }
    *seconds = (seconds_now() - start) / ((double)tokens * count);
    return 0;
}

static int measure_round(struct runner *r, const struct bench *b, int to, double bandwidth, struct lora_error *err)
{
    if (begin(r, 1, b->prompt, err) || go_on(r, 1, 1, &r->prompt[to], err)) return -1;
    r->prompt[to] /= b->prompt;
    if (begin(r, 1, 1, err) || go_on(r, 1, b->new_tokens, &r->token[to], err)) return -1;
    r->share[to] = 1e-9 * r->bytes / r->token[to] / bandwidth;
    return begin(r, b->batch, 1, err) || go_on(r, b->batch, b->new_tokens, &r->batch[to], err) ? -1 : 0;
}

static int measure(struct runner *all, const struct bench *b, int n, double *bandwidths, struct lora_error *err)
{
    int round, i, bad = 0;
    for (round = -1; round < b->rounds && !bad; round++) {  /* round -1 warms up */
        int to = round < 0 ? 0 : round;
        progress("round %d of %d", to + 1, b->rounds);
        bandwidths[to] = bench_bandwidth(b);
        for (i = 0; i < n && !bad; i++) bad = measure_round(&all[i], b, to, bandwidths[to], err);
    }
    progress_done();
    return bad ? -1 : 0;
}

static void show(struct runner *all, const struct bench *b, int n, int from_file, double bandwidth, struct text *json)
{
    int i;
    fprintf(b->out, "%-30s %.1f GB/s\n\n", b->kernels->own_memory ? "copying in its memory" : "reading memory", bandwidth);
    fprintf(b->out, "%-10s %10s %16s %14s %8s %16s %14s\n", "weights", "MB read", "prompt tokens/s", "new tokens/s", "GB/s", "of the bandwidth", "new, together");
    text_printf(json, "\"prompt\":%d,\"new\":%d,\"batch\":%d,\"read_gb_per_s\":%.9g,\"generation\":[", b->prompt, b->new_tokens, b->batch, bandwidth);
    for (i = 0; i < n; i++) {
        struct runner *r = &all[i];
        const char *name = from_file ? "the file's" : b->types[i].name;
        double prompt = median(r->prompt, b->rounds), token = median(r->token, b->rounds), batch = median(r->batch, b->rounds),
               share = median(r->share, b->rounds);
        fprintf(b->out, "%-10s %10.1f %16.1f %14.1f %8.1f %14.1f %% %14.1f\n", name, 1e-6 * r->bytes, 1 / prompt, 1 / token, 1e-9 * r->bytes / token,
               100 * share, 1 / batch);
        text_printf(json, "%s{\"weights\":\"%s\",\"bytes\":%.0f,\"prompt_tokens_per_s\":%.9g,\"new_tokens_per_s\":%.9g,\"share\":%.9g,"
                          "\"batch_tokens_per_s\":%.9g}", i ? "," : "", name, r->bytes, 1 / prompt, 1 / token, share, 1 / batch);
    }
    text_puts(json, "]");
}

static void close_runner(struct runner *r, int batch)
{
    int i;
    generator_close(&r->g);
    for (i = 0; r->all && i < batch; i++) ids_free(&r->all[i].ids);
    free(r->all);
    free(r->list);
    bench_model_free(r->made);
}

int bench_generate(const struct bench *b, struct model *file, struct text *json, struct lora_error *err)
{
    int n = file ? 1 : b->n_types, i, bad;
    struct runner *all = new_array((size_t)n, sizeof *all, err);
    double *bandwidths = new_array((size_t)b->rounds, sizeof *bandwidths, err);
    bad = !all || !bandwidths;
    for (i = 0; i < n && !bad; i++) {
        progress("weights: %s", file ? file->path : b->types[i].name);
        bad = prepare(&all[i], b, i, file, err);
    }
    bad = bad || measure(all, b, n, bandwidths, err);
    if (!bad) show(all, b, n, file != NULL, median(bandwidths, b->rounds), json);
    for (i = 0; all && i < n; i++) close_runner(&all[i], b->batch);
    free(all);
    free(bandwidths);
    return bad ? -1 : 0;
}
