/* test_goldens.c - the whole model against figures from PyTorch, Transformers and PEFT, over every
 * table of kernels that runs here: test/goldens (ours), ../shared/goldens (the same layout; skipped
 * when absent), and SmolLM2 where the environment variable LORA_MODEL names its GGUF file.
 *
 * Bounds in single precision are those that the goldens' README files state; PyTorch's own float32
 * error on the same figures is 10 to 1000 times smaller. In double they are a millionth of that:
 * weights are exact in both, so only the order of sums differs. GGUF stores epsilon as a float,
 * which moves a loss by up to 1e-9, so there the double bound is 1e-4 of the single one. */
#include "golden.h"
#include "../optim.h"

#define NORM_BOUND 1e-4         /* relative */
#define WEIGHT_BOUND 1e-4       /* after the trajectory */

/* A case's own model, or the one that it shares with the cases beside it. */
static const char *model_of(const char *dir)
{
    const char *own = path_of(dir, "model");
    return is_directory(own) ? own : path_of(dir, "../model");
}

/* One JSON array of {"ids","mask"}. */
static void rows_of_json(struct golden_rows *rows, const struct json *batch)
{
    const struct json *j, *id, *m;
    int t;
    for (j = batch->child; j; j = j->next) {
        struct golden_row *r = add_row(rows, (int)json_get(j, "ids")->n);
        for (t = 0, id = json_get(j, "ids")->child; id; id = id->next) r->ids[t++] = (int)id->number;
        for (t = 0, m = json_get(j, "mask")->child; m; m = m->next) r->mask[t++] = m->number != 0;
    }
}

static double element(const struct json *array, int i)
{
    const struct json *v = array ? array->child : NULL;
    while (v && i--) v = v->next;
    return v ? v->number : NAN;
}

/* Logits at the golden's positions of sequence s, whose first row in the pack is `start`. */
static void check_logits(struct worst *w, struct lora *l, const struct safetensors *ref, int s, int start,
                         int n, int V, double bound)
{
    size_t np, nl, i, v;
    double *at = sequence_numbers(ref, s, "logit_positions", &np);
    double *want = sequence_numbers(ref, s, "logits", &nl);
    float *got = malloc((size_t)V * sizeof *got);
    if (!want) {                                /* GGUF's goldens have the last position only */
        want = sequence_numbers(ref, s, "logits_last", &nl);
        np = 1;
    } else if (!at) {
        np = nl / (size_t)V;
    }
    CHECK(want && nl == np * (size_t)V, "logits of sequence %d", s);
    for (i = 0; want && i < np; i++) {
        int row = start + (at ? (int)at[i] : np == 1 ? n - 1 : (int)i);
        CHECK_DONE(lora_logits(l, &row, 1, got, &err));
        for (v = 0; v < (size_t)V; v++) worst_add(w, fabs(got[v] - want[i * (size_t)V + v]), bound, v);
    }
    free(at);
    free(want);
    free(got);
}

/* Losses of every token and logits of all sequences of one reference file, in one pack. */
static void forward_case(const struct kernels *k, const char *model_path, const char *ref_path,
                         double mean_loss, double share)
{
    struct model *m = NULL;
    struct safetensors ref = {0};
    struct golden_rows rows = {0};
    struct pack p = {0};
    struct worst loss = {0}, logit = {0};
    struct lora *l;
    double *losses, total = 0;
    int i, t, at = 0, N = 1, targets;

    CHECK_DONE(model_open(&m, model_path, &err));
    CHECK_DONE(safetensors_open(&ref, ref_path, &err));
    if (!m || !ref.n) return;
    rows_of_tensors(&rows, &ref);
    CHECK(rows.n > 0, "%s has no sequences", ref_path);
    for (i = 0; i < rows.n; i++) {
        N += rows.row[i].n;
        pack_whole(&p, &rows.row[i], -1);
    }
    CHECK_DONE(pack_finish(&p, &err));
    l = open_lora(k, m, NULL, 0, 0, N);
    losses = calloc((size_t)N, sizeof *losses);
    CHECK_DONE(lora_eval(l, &p, losses, NULL, &err));
    for (i = 0; i < rows.n; i++) {
        size_t n;
        double *want = sequence_numbers(&ref, i, "loss", &n);
        CHECK(want && (int)n == rows.row[i].n - 1, "losses of sequence %d", i);
        for (t = 0; want && t < (int)n; t++, at++) {
            worst_add(&loss, fabs(losses[at] - want[t]), LOSS_BOUND * share, (size_t)t);
            if (rows.row[i].mask[t + 1]) total += losses[at];
        }
        free(want);
    }
    targets = count_targets(&rows);
    if (mean_loss > 0)
        CHECK(fabs(total / targets - mean_loss) <= MEAN_LOSS_BOUND * share, "mean loss %.12g, expected %.12g",
              total / targets, mean_loss);
    CHECK_DONE(lora_forward(l, &p, &err));
    for (i = 0; i < rows.n; i++)
        check_logits(&logit, l, &ref, i, p.segments[i].q_start, rows.row[i].n, m->config.V,
                     /* lora_logits gives floats: half an ulp of a logit below 16 is 4.8e-7 */
                     k->elem == 8 ? 1e-6 : LOGIT_BOUND);
    CHECK_WORST(loss, "loss of each token");
    CHECK_WORST(logit, "logits");
    free(losses);
    lora_close(l);
    pack_free(&p);
    free_rows(&rows);
    safetensors_close(&ref);
    model_close(m);
}

/* Loss, gradients by name and logits of one adapter over one batch. */
static void gradient_case(const struct kernels *k, const char *dir, const char *name)
{
    char base[1024];
    struct model *m = NULL;
    struct adapter *a = NULL;
    struct safetensors ref = {0}, batch = {0};
    struct json_document json = {0};
    struct golden_rows rows = {0};
    struct pack p = {0};
    struct lora *l;
    struct worst gradient = {0}, logit = {0};
    struct lora_hyper still = {0};
    double *losses, norm = NAN, loss, want_loss, want_norm;
    int i, n, targets, tensors = 0;

    join(base, dir, "", name);
    CHECK_DONE(model_open(&m, path_of(dir, "model"), &err));
    if (!m) return;
    CHECK_DONE(adapter_read(&a, path_of(base, "adapter"), &m->config, &err));
    CHECK_DONE(safetensors_open(&ref, path_of(base, "ref.safetensors"), &err));
    CHECK_DONE(safetensors_open(&batch, path_of(dir, "batch.safetensors"), &err));
    CHECK_DONE(json_read(&json, path_of(base, "ref.json"), &err));
    if (!a || !ref.n || !batch.n || !json.root) return;
    rows_of_tensors(&rows, &batch);
    targets = count_targets(&rows);
    l = open_lora(k, m, &a, 0, 1, 256);
    losses = calloc(256, sizeof *losses);
    pack_masked(&p, &rows, 0);
    CHECK(p.T == targets, "%d targets, the golden has %d", p.T, targets);
    CHECK_DONE(lora_train(l, &p, 1.0 / targets, losses, NULL, &err));
    loss = sum(losses, targets) / targets;
    want_loss = number_at(json.root, "loss");
    CHECK(fabs(loss - want_loss) <= MEAN_LOSS_BOUND * factor(k), "loss %.12g, expected %.12g", loss, want_loss);

    n = compare_gradients(&gradient, l, &ref, "grad.", factor(k));
    for (i = 0; i < ref.n; i++) tensors += !strncmp(ref.tensors[i].name, "grad.", 5);
    CHECK(n == tensors, "%d tensors are trained, the golden has %d", n, tensors);
    CHECK_WORST(gradient, "gradients");

    CHECK_DONE(lora_step(l, &still, &norm, &err));       /* rate 0: only the norm is wanted */
    want_norm = number_at(json.root, "grad_global_norm");
    CHECK(fabs(norm - want_norm) <= NORM_BOUND * factor(k) * want_norm, "norm %.12g, expected %.12g", norm, want_norm);

    pack_clear(&p);
    for (i = 0; i < rows.n; i++) pack_whole(&p, &rows.row[i], 0);
    CHECK_DONE(pack_finish(&p, &err));
    CHECK_DONE(lora_forward(l, &p, &err));
    for (i = 0; i < rows.n; i++)
        check_logits(&logit, l, &ref, i, p.segments[i].q_start, rows.row[i].n, m->config.V,
                     k->elem == 8 ? 1e-6 : LOGIT_BOUND);
    CHECK_WORST(logit, "logits");
    free(losses);
    lora_close(l);
    pack_free(&p);
    free_rows(&rows);
    json_free(&json);
    safetensors_close(&ref);
    safetensors_close(&batch);
    adapter_free(a);
    model_close(m);
}

/* One step over its micro-batches; the mean loss over all its targets. */
static double train_step(struct lora *l, const struct json *step, int adapter, const struct lora_hyper *h,
                         double *norm, int eval)
{
    struct golden_rows rows = {0};
    struct pack p = {0};
    const struct json *batch;
    double losses[4096], loss = 0;
    int targets = 0;
    for (batch = step->child; batch; batch = batch->next) {
        rows_of_json(&rows, batch);
        targets += count_targets(&rows);
        free_rows(&rows);
    }
    for (batch = step->child; batch; batch = batch->next) {
        rows_of_json(&rows, batch);
        pack_masked(&p, &rows, adapter);
        if (eval) CHECK_DONE(lora_eval(l, &p, losses, NULL, &err));
        else CHECK_DONE(lora_train(l, &p, 1.0 / targets, losses, NULL, &err));
        loss += sum(losses, p.T);
        free_rows(&rows);
    }
    pack_free(&p);
    if (!eval) CHECK_DONE(lora_step(l, h, norm, &err));
    return loss / targets;
}

static void check_final(struct lora *l, const char *path, double bound)
{
    struct safetensors final = {0};
    struct worst w = {0};
    const struct trained *trained;
    double *values = calloc(lora_trained_size(l) + 1, sizeof *values);
    int i, n = lora_trained(l, &trained);
    CHECK_DONE(safetensors_open(&final, path, &err));
    CHECK(n == final.n, "%d tensors are trained, the golden has %d", n, final.n);
    lora_get64(l, LORA_PARAMETERS, values);
    for (i = 0; i < n; i++) {
        size_t count, j;
        double *want = numbers(&final, trained[i].name, &count);
        CHECK(want && count == (size_t)trained[i].rows * (size_t)trained[i].cols, "%s", trained[i].name);
        for (j = 0; want && j < count; j++)
            worst_add(&w, fabs(values[trained[i].offset + j] - want[j]), bound, j);
        free(want);
    }
    CHECK_WORST(w, "final weights");
    safetensors_close(&final);
    free(values);
}

/* Twenty steps: loss, norm and rate of each, the loss after the last, the final weights. */
static void train_case(const struct kernels *k, const char *dir)
{
    struct model *m = NULL;
    struct adapter *a = NULL;
    struct json_document json = {0}, batches = {0};
    const struct json *settings, *log, *step;
    const char *schedule = "cosine", *trainable = "";
    struct worst loss = {0}, norm = {0};
    struct lora *l;
    struct lora_hyper h;
    double rate, after;
    long long s = 0, steps, warmup;
    int full;

    CHECK_DONE(model_open(&m, model_of(dir), &err));
    CHECK_DONE(json_read(&json, path_of(dir, "ref.json"), &err));
    CHECK_DONE(json_read(&batches, path_of(dir, "batches.json"), &err));
    if (!m || !json.root || !batches.root) return;
    settings = json_get(json.root, "settings");
    log = json_get(json.root, "float64");
    CHECK_DONE(json_get_string(settings, "schedule", &schedule, "ref.json", &err));
    CHECK_DONE(json_get_string(settings, "trainable", &trainable, "ref.json", &err));
    full = !strcmp(trainable, "all weights");
    if (!full) CHECK_DONE(adapter_read(&a, path_of(dir, "initial_adapter"), &m->config, &err));
    l = open_lora(k, m, a ? &a : NULL, full, 1, 512);
    rate = number_at(settings, "lr");
    steps = (long long)number_at(settings, "steps");
    warmup = (long long)number_at(settings, "warmup_steps");
    h.beta1 = element(json_get(settings, "betas"), 0);
    h.beta2 = element(json_get(settings, "betas"), 1);
    h.eps = number_at(settings, "eps");
    h.weight_decay = number_at(settings, "weight_decay");
    h.max_grad_norm = number_at(settings, "clip");
    for (step = json_get(batches.root, "steps")->child; step; step = step->next, s++) {
        double want = element(json_get(log, "lr"), (int)s), got, n = NAN;
        h.learning_rate = schedule_rate(strstr(schedule, "cosine") ? SCHEDULE_COSINE : SCHEDULE_LINEAR,
                                        rate, s, warmup, steps);
        CHECK(fabs(h.learning_rate - want) <= 1e-12 * rate, "rate of step %lld: %.15g, expected %.15g",
              s, h.learning_rate, want);
        got = train_step(l, step, full ? -1 : 0, &h, &n, 0);
        worst_add(&loss, fabs(got - element(json_get(log, "loss"), (int)s)), MEAN_LOSS_BOUND * factor(k), (size_t)s);
        want = element(json_get(log, "grad_norm"), (int)s);
        worst_add(&norm, fabs(n - want), NORM_BOUND * factor(k) * want, (size_t)s);
        if (!step->next) {
            after = train_step(l, step, full ? -1 : 0, &h, &n, 1);
            worst_add(&loss, fabs(after - number_at(log, "loss_last_batch_after")),
                      MEAN_LOSS_BOUND * factor(k), (size_t)s + 1);
        }
    }
    CHECK(s == steps && s > 0, "%lld steps of %lld", s, steps);
    CHECK_WORST(loss, "loss of each step");
    CHECK_WORST(norm, "gradient norm of each step");
    check_final(l, path_of(dir, "final_float64.safetensors"), WEIGHT_BOUND * factor(k));
    lora_close(l);
    adapter_free(a);
    json_free(&json);
    json_free(&batches);
    model_close(m);
}

/* An adapter with something that is not supported: refused, and the error names it. */
static void refused(const char *dir, const char *name, const char *word)
{
    char test[128], base[1024], all[2048];
    struct model *m = NULL;
    struct adapter *a = NULL;
    snprintf(test, sizeof test, "refused: %s", name);
    test_begin(test);
    join(base, dir, "", name);
    CHECK_DONE(model_open(&m, path_of(dir, "model"), &err));
    if (!m) return;
    memset(&err, 0, sizeof err);
    CHECK(adapter_read(&a, path_of(base, "adapter"), &m->config, &err) == -1, "%s was read", name);
    snprintf(all, sizeof all, "%s: %s: expected %s, found %s; %s", err.what, err.where, err.expected, err.found, err.hint);
    CHECK(strstr(all, word) != NULL, "the error does not say \"%s\": %s", word, all);
    model_close(m);
}

/* ---- SmolLM2 ---- */

/* Losses of each text; the fastest table alone, since the reference takes minutes here. */
static void smollm2_losses(const struct kernels *k, const struct model *m, const char *dir)
{
    struct json_document json = {0};
    struct worst w = {0};
    struct pack p = {0};
    struct golden_rows rows = {0};
    const struct json *j, *v, *texts;
    struct lora *l;
    double *losses;
    int i, t, at = 0, N = 0;
    test_begin("SmolLM2: losses");
    CHECK_DONE(json_read(&json, path_of(dir, "losses.json"), &err));
    if (!json.root) return;
    texts = json_get(json.root, "texts") ? json_get(json.root, "texts") : json.root;
    for (j = texts->child; j; j = j->next) {
        struct golden_row *r = add_row(&rows, (int)json_get(j, "ids")->n);
        for (t = 0, v = json_get(j, "ids")->child; v; v = v->next) r->ids[t++] = (int)v->number;
        pack_whole(&p, r, -1);
        N += r->n;
    }
    CHECK_DONE(pack_finish(&p, &err));
    l = open_lora(k, m, NULL, 0, 0, N);
    losses = calloc((size_t)N, sizeof *losses);
    CHECK_DONE(lora_eval(l, &p, losses, NULL, &err));
    for (i = 0, j = texts->child; j; j = j->next, i++)
        for (v = json_get(j, "loss_float64")->child; v; v = v->next, at++)
            worst_add(&w, fabs(losses[at] - v->number), LOSS_BOUND, (size_t)at);
    CHECK(at == p.T, "%d losses of %d", p.T, at);
    CHECK_WORST(w, "loss of each token");
    lora_close(l);
    free(losses);
    pack_free(&p);
    free_rows(&rows);
    json_free(&json);
}

/* Twelve steps on real rows. README of the goldens: loss 5e-4, norm 2e-3, final adapter 1e-4 (rms). */
static void smollm2_training(const struct kernels *k, const struct model *m, const char *dir)
{
    struct json_document ref = {0}, batches = {0};
    struct adapter *a = NULL, *want = NULL;
    struct worst loss = {0}, norm = {0};
    const struct json *step, *log;
    struct lora *l;
    struct lora_hyper h = {0};
    float *values;
    double squares = 0;
    size_t i;
    int s = 0;
    test_begin("SmolLM2: twelve steps");
    CHECK_DONE(json_read(&ref, path_of(dir, "lora/ref.json"), &err));
    CHECK_DONE(json_read(&batches, path_of(dir, "lora/batches.json"), &err));
    CHECK_DONE(adapter_read(&a, path_of(dir, "lora/initial_adapter"), &m->config, &err));
    CHECK_DONE(adapter_read(&want, path_of(dir, "lora/final_adapter"), &m->config, &err));
    if (!ref.root || !batches.root || !a || !want) return;
    log = json_get(ref.root, "float64");
    h.learning_rate = number_at(json_get(ref.root, "settings"), "lr");
    h.beta1 = 0.9;
    h.beta2 = 0.999;
    h.eps = 1e-8;
    l = open_lora(k, m, &a, 0, 1, 1024);
    for (step = json_get(batches.root, "steps")->child; step; step = step->next, s++) {
        struct json one = {0};          /* a step here is one micro-batch */
        struct json batch = *step;
        double n = NAN, got;
        batch.next = NULL;
        one.child = &batch;
        got = train_step(l, &one, 0, &h, &n, 0);
        worst_add(&loss, fabs(got - element(json_get(log, "loss"), s)), 5e-4, (size_t)s);
        worst_add(&norm, fabs(n - element(json_get(log, "grad_norm"), s)), 2e-3, (size_t)s);
    }
    CHECK_WORST(loss, "loss of each step");
    CHECK_WORST(norm, "gradient norm of each step");
    values = calloc(a->size, sizeof *values);
    CHECK(a->size == want->size && lora_trained_size(l) == a->size, "sizes differ");
    lora_get(l, LORA_PARAMETERS, values);
    for (i = 0; i < a->size; i++) squares += ((double)values[i] - want->values[i]) * ((double)values[i] - want->values[i]);
    CHECK(sqrt(squares / (double)a->size) <= 1e-4, "rms %.3g", sqrt(squares / (double)a->size));
    printf("  final adapter: rms error %.3g (bound 1e-4)\n", sqrt(squares / (double)a->size));
    free(values);
    lora_close(l);
    adapter_free(a);
    adapter_free(want);
    json_free(&ref);
    json_free(&batches);
}

/* ---- the cases ---- */

static void begin(const char *set, const char *name, const struct kernels *k)
{
    char test[128];
    snprintf(test, sizeof test, "%s %s over %s", set, name, k->name);
    test_begin(test);
}

static void forward_cases(const char *set, const char *root, const char *const *names)
{
    for (; *names; names++) {
        const struct kernels *const *k;
        struct json_document json = {0};
        double mean;
        char dir[1024];
        join(dir, root, "forward", *names);
        CHECK_DONE(json_read(&json, path_of(dir, "ref.json"), &err));
        mean = json.root ? number_at(json_get(json.root, "mean_loss"), "all") : NAN;
        json_free(&json);
        for (k = kernels_all; *k; k++) {
            char why[256];
            if (!(*k)->usable(why, sizeof why)) continue;
            begin(set, *names, *k);
            CHECK(mean > 0, "%s", dir);
            forward_case(*k, path_of(dir, "model"), path_of(dir, "ref.safetensors"), mean, factor(*k));
        }
    }
}

static void gradient_cases(const char *set, const char *root, const char *family, const char *const *names)
{
    char dir[1024];
    join(dir, root, "lora-grad", family);
    for (; *names; names++) {
        const struct kernels *const *k;
        for (k = kernels_all; *k; k++) {
            char why[256];
            if (!(*k)->usable(why, sizeof why)) continue;
            begin(set, *names, *k);
            gradient_case(*k, dir, *names);
        }
    }
}

static void train_cases(const char *set, const char *root, const char *const *names)
{
    char dir[1024];
    for (; *names; names++) {
        const struct kernels *const *k;
        for (k = kernels_all; *k; k++) {
            char why[256];
            if (!(*k)->usable(why, sizeof why)) continue;
            begin(set, *names, *k);
            join(dir, root, "train", *names);
            train_case(*k, dir);
        }
    }
}

static void own_goldens(void)
{
    static const char *const forward[] = {"tied-rope-llama3", "untied", "bf16-oldconfig", "phi3-sliding", NULL};
    static const char *const gradients[] = {"all-linear", "qv-rslora", "patterns", "regex", NULL};
    static const char *const fused[] = {"all-linear", "qkv", NULL};
    static const char *const train[] = {"adapter", "full", NULL};
    const char *root = "test/goldens/data";
    forward_cases("own: forward", root, forward);
    gradient_cases("own: gradients", root, "llama", gradients);
    gradient_cases("own: gradients, Phi-3", root, "phi3", fused);
    train_cases("own: training", root, train);
}

static void shared_goldens(void)
{
    static const char *const forward[] = {
        "llama-gqa-untied", "llama-tied-oldconfig", "llama-bf16-oldconfig", "llama-biases",
        "llama-sharded", "llama-rope-linear", "llama-rope-llama3", "llama-rope-yarn", "mistral-sliding", "qwen2",
        "qwen2-f16", "qwen3", NULL};
    static const char *const gradients[] = {"all-linear-r4", "qv-rslora-r8", "patterns", NULL};
    static const char *const train[] = {"plain", "decay-clip", "full", "full-tied", NULL};
    static const char *const gguf[] = {"tiny-f32", "tiny-mix", NULL};
    char root[1024], dir[1024];
    int i;
    if (!shared_dir()) {
        test_skip("the goldens of ../shared", "the folder is not there");
        return;
    }
    snprintf(root, sizeof root, "%s/goldens", shared_dir());
    forward_cases("shared: forward", root, forward);
    gradient_cases("shared: gradients", root, "llama", gradients);
    gradient_cases("shared: gradients, Qwen2", root, "qwen2", gradients);
    gradient_cases("shared: gradients, Qwen3", root, "qwen3", gradients);
    train_cases("shared: training", root, train);
    for (i = 0; gguf[i]; i++) {
        const struct kernels *const *k;
        for (k = kernels_all; *k; k++) {
            char why[256], file[64], ref[64];
            if (!(*k)->usable(why, sizeof why)) continue;
            snprintf(file, sizeof file, "gguf/%s.gguf", gguf[i]);
            snprintf(ref, sizeof ref, "gguf/%s.ref.safetensors", gguf[i]);
            begin("shared: GGUF", gguf[i], *k);
            forward_case(*k, path_of(root, file), path_of(root, ref), 0, (*k)->elem == 8 ? 1e-4 : 1);
        }
    }
    join(dir, root, "lora-grad", "llama");
    refused(dir, "dora-r4", "use_dora");
    refused(dir, "embed-head", "embed_tokens");
    refused(dir, "save-lm_head", "modules_to_save");
    refused(dir, "save-norm", "modules_to_save");
}

static void smollm2(void)
{
    const char *path = getenv("LORA_MODEL");
    const struct kernels *k;
    struct model *m = NULL;
    char dir[1024];
    if (!path || !shared_dir()) {
        test_skip("SmolLM2", path ? "../shared is not there" : "LORA_MODEL names no model file");
        return;
    }
    snprintf(dir, sizeof dir, "%s/goldens/smollm2", shared_dir());
    test_begin("SmolLM2: opens");
    k = kernels_find("auto", &err);
    CHECK_DONE(model_open(&m, path, &err));
    CHECK(k != NULL, "%s", err.what);
    if (m && k) {
        smollm2_losses(k, m, dir);
        smollm2_training(k, m, dir);
    }
    model_close(m);
}

int main(void)
{
    own_goldens();
    shared_goldens();
    smollm2();
    return test_end();
}
