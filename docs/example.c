/* example.c - the shortest complete program over lora.h: it fine-tunes a model on rows of ids and writes
 * an adapter that PEFT loads. `make test` builds and runs it. By hand, after `make` (without OpenMP no -fopenmp):
 *
 *     cc -std=c99 -I. -o example docs/example.c build/liblora.a -fopenmp -lm -ldl
 *     ./example MODEL ROWS.jsonl OUT      rows: {"input_ids": [...], "labels": [...]}  */
#include "data.h"
#include "lora.h"

#include <stdio.h>
#include <stdlib.h>

/* All rows of the set in one pack, twenty times. Each call that fails has filled err. */
static int train(struct lora *l, const struct dataset *rows, double *losses, struct lora_error *err)
{
    static const struct lora_hyper hyper = { 1e-2, 0.9, 0.999, 1e-8, 0, 1 };
    struct pack pack = { 0 };
    struct row row = { 0 };
    double norm;
    int step, i, bad = 0;
    for (step = 0; step < 20 && !bad; step++) {
        double sum = 0;
        pack_clear(&pack);
        for (i = 0; i < rows->n && !bad; i++) {
            if ((bad = data_row(rows, i, &row, err))) break;            /* from the file, and rendered */
            const struct pack_input in = { row.ids, row.mask, row.n, 0, row.labels };
            bad = pack_rows(&pack, &in, 1, 0, 0, err);
        }
        bad = bad || pack_finish(&pack, err)
           || lora_train(l, &pack, 1.0 / pack.T, losses, NULL, err)     /* gradients of the mean loss */
           || lora_step(l, &hyper, &norm, err);                         /* AdamW; gradients are zero again */
        for (i = 0; i < pack.T && !bad; i++) sum += losses[i];
        if (!bad) printf("step %d, loss %.4f\n", step + 1, sum / pack.T);
    }
    row_free(&row);
    pack_free(&pack);
    return bad;
}

int main(int argc, char **argv)
{
    static const struct adapter_settings settings = { .r = 8, .alpha = 16, .target_modules = "all-linear" };
    static struct lora_error err;
    struct lora_setup setup = { .threads = 1, .sizes = { .S = 64, .backward = 1, .keep = -1 } };
    struct data_options options = { 0 };
    struct dataset rows = { 0 };
    struct model *model = NULL;
    struct adapter *adapter = NULL;
    struct lora *lora = NULL;
    float *values = NULL;
    double *losses = NULL;
    int bad;

    if (argc != 4) return fprintf(stderr, "usage: example MODEL ROWS.jsonl OUT\n"), 2;
    bad = model_open(&model, argv[1], &err);                            /* the base, mapped */
    if (!bad) {
        options.vocab = model->config.V;
        bad = data_read(&rows, argv[2], &options, &err)
           || adapter_new(&adapter, &model->config, &settings, &err)    /* which linears, what rank */
           || adapter_init(adapter, 0, &err);                           /* A random, B zero */
    }
    if (!bad) {
        setup.model = model;
        setup.adapters = &adapter;
        setup.n_adapters = 1;
        setup.sizes.N = setup.sizes.T = setup.sizes.U = (int)rows.report.tokens;
        setup.sizes.positions = rows.report.longest;
        bad = !(setup.kernels = kernels_find("auto", &err))             /* the fastest here */
           || lora_open(&lora, &setup, &err)                            /* all memory, in one piece */
           || !(losses = new_array((size_t)rows.report.tokens, sizeof *losses, &err))
           || !(values = new_array(adapter->size, sizeof *values, &err))
           || train(lora, &rows, losses, &err);
    }
    if (!bad) {
        lora_get(lora, LORA_PARAMETERS, values);
        bad = make_directory(argv[3], &err) || adapter_write(adapter, values, argv[3], argv[1], &err);
    }
    if (bad) fprintf(stderr, "example: %s: %s: expected %s, found %s\n", err.what, err.where, err.expected, err.found);
    free(values);
    free(losses);
    lora_close(lora);
    adapter_free(adapter);
    model_close(model);
    data_free(&rows);
    return bad != 0;
}
