/* gradients.c - `lora gradients`: the gradient of the loss over a whole file, tensor by tensor. */
#include "train.h"
#include "../formats/safetensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct settings {
    struct common common;
    struct data_settings data;
    struct option_list adapters;
    const char *out;
    int tokens_per_pack;
};

static const struct option options[] = {
    DATA_OPTIONS(struct settings, data),
    { "adapter", NULL, OPTION_LIST, offsetof(struct settings, adapters), NULL, "DIR", "the adapter to train", 0, 0 },
    { "out", NULL, OPTION_TEXT, offsetof(struct settings, out), NULL, "FILE.safetensors", "where the gradients go", 0, 0 },
    { "tokens-per-pack", NULL, OPTION_INT, offsetof(struct settings, tokens_per_pack), NULL, "N",
      "cuts the rows into packs", 1, 1 << 28 },
    { NULL, NULL, 0, 0, NULL, NULL, NULL, 0, 0 }
};

struct work {
    const struct settings *set;
    struct session session;
    struct data_options rows;
    struct dataset data;
    struct steps steps;
    struct lora *lora;
    struct pack pack;
    double *losses, loss, norm;
};

static int open_work(struct work *w, struct lora_error *err)
{
    struct lora_setup u;
    if (session_open(&w->session, &w->set->common, &w->set->adapters, 0, err)) return -1;
    session_data_options(&w->session, &w->set->data, &w->rows);
    if (data_read(&w->data, w->set->data.data, &w->rows, err)) return -1;
    if (w->session.adapter->dropout > 0) {
        status("dropout %g of the adapter is left out", w->session.adapter->dropout);
        w->session.adapter->dropout = 0;
    }
    u = session_setup(&w->session, &w->session.adapter);
    u.sizes.backward = 1;
    u.sizes.keep = -1;
    w->steps = (struct steps){ .data = &w->data, .per_step = w->data.n, .tokens_per_pack = w->set->tokens_per_pack, .share = 1 };
    return steps_open(&w->steps, err) || step_sizes(&u.sizes, &w->steps, 1, err)
           || !(w->losses = new_array((size_t)u.sizes.T, sizeof *w->losses, err))
           || lora_open(&w->lora, &u, err) ? -1 : 0;
}

static int run_packs(struct work *w, struct lora_error *err)
{
    double targets = (double)w->data.report.targets;
    int i, got;
    steps_seek(&w->steps, 0);
    while ((got = step_pack(&w->steps, &w->pack, err)) > 0) {
        if (lora_train(w->lora, &w->pack, 1 / targets, w->losses, NULL, err)) return -1;
        for (i = 0; i < w->pack.T; i++) w->loss += w->pack.target_weight[i] * w->losses[i];
    }
    if (got) return -1;
    w->loss /= targets;
    return w->loss - w->loss == 0 ? 0 : lora_find_not_finite(w->lora, &w->pack, err);
}

/* Elements of `elem` bytes: F32 or F64. */
static int put_tensors(struct st_writer *out, const char *path, const struct trained *list, int n, const char *g, size_t elem,
                       struct lora_error *err)
{
    int i;
    for (i = 0; i < n; i++) {
        const size_t dims[] = { (size_t)list[i].rows, (size_t)list[i].cols };
        if (st_writer_add(out, list[i].name, elem == sizeof(double) ? TYPE_F64 : TYPE_F32, dims, 2, err)) return -1;
    }
    if (st_writer_begin(out, path, err)) return -1;
    for (i = 0; i < n; i++)
        if (st_writer_put(out, g + list[i].offset * elem, (size_t)list[i].rows * (size_t)list[i].cols * elem, err)) return -1;
    return 0;
}

static int write_gradients(struct work *w, struct lora_error *err)
{
    const struct trained *list;
    int n = lora_trained(w->lora, &list), doubles = w->session.kernels->elem == sizeof(double), bad;
    size_t elem = doubles ? sizeof(double) : sizeof(float), size = lora_trained_size(w->lora), i;
    char *g = new_array(size, elem, err);
    struct st_writer out;
    if (!g) return -1;
    memset(&out, 0, sizeof out);
    if (doubles) lora_get64(w->lora, LORA_GRADIENTS, (double *)g);
    else lora_get(w->lora, LORA_GRADIENTS, (float *)g);
    for (i = 0; i < size; i++) {
        double x = doubles ? ((double *)g)[i] : ((float *)g)[i];
        w->norm += x * x;
    }
    bad = lora_check(w->lora, err) || put_tensors(&out, w->set->out, list, n, g, elem, err);
    if (bad) st_writer_abandon(&out);
    else bad = st_writer_commit(&out, err);
    free(g);
    return bad ? -1 : 0;
}

static int run(void *settings, struct lora_error *err)
{
    const struct settings *set = settings;
    struct work w;
    int bad;
    if (!set->common.model || !set->data.data || set->adapters.n != 1 || !set->out)
        return job_usage_error(&job_gradients, "--model, one --adapter, --data and --out are needed");
    memset(&w, 0, sizeof w);
    w.set = set;
    bad = output_spares(set->common.model, "model", set->out, "file for --out", err)
          || output_spares(set->data.data, "data", set->out, "file for --out", err)
          || output_spares_models(set->out, ".safetensors", err) || open_work(&w, err)
          || run_packs(&w, err) || write_gradients(&w, err);
    if (!bad) {
        int digits = w.session.kernels->elem == sizeof(double) ? 17 : 9;
        printf("loss %.*g\ngrad_norm %.*g\n", digits, w.loss, digits, sqrt(w.norm));
    }
    lora_close(w.lora);
    pack_free(&w.pack);
    free(w.losses);
    steps_close(&w.steps);
    data_free(&w.data);
    session_close(&w.session);
    return bad ? -1 : EXIT_DONE;
}

static const struct settings defaults = { .common = COMMON_DEFAULTS, .data = DATA_DEFAULTS, .tokens_per_pack = 2048 };

const struct job job_gradients = {
    "gradients", "the gradient of the loss over a file, for every trained tensor",
    "--model M --adapter DIR --data FILE --out FILE.safetensors", options, common_options,
    sizeof defaults, &defaults, run
};
