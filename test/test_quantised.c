/* test_quantised.c - models whose linears are NF4, FP4 or INT8: checkpoints that Transformers saved with
 * bitsandbytes (ours, and those of ../shared), models quantised here, both ways of writing, and files
 * that lie.
 *
 * The figures are float64 ones of the numbers that a checkpoint stands for; bounds as in test_goldens.c. */
#include "golden.h"
#include "tiny.h"

#include <unistd.h>

#define OWN "test/goldens/data/bnb/checkpoints"


/* ---- checkpoints of Transformers ---- */

static void checkpoint_case(const struct kernels *k, const char *root, const char *name)
{
    struct model *m = NULL;
    struct safetensors ref = {0}, batch = {0};
    struct json_document json = {0};
    struct golden_rows rows = {0};
    struct pack p = {0};
    struct worst loss = {0}, logit = {0};
    struct lora *l;
    double *losses, total = 0;
    char file[128];
    int i, t, at = 0, N = 1, V, quantised = 0;
    CHECK_DONE(model_open(&m, path_of(root, name), &err));
    snprintf(file, sizeof file, "%s.ref.safetensors", name);
    CHECK_DONE(safetensors_open(&ref, path_of(root, file), &err));
    CHECK_DONE(safetensors_open(&batch, path_of(root, "batch.safetensors"), &err));
    snprintf(file, sizeof file, "%s.ref.json", name);
    CHECK_DONE(json_read(&json, path_of(root, file), &err));
    if (!m || !ref.n || !batch.n || !json.root) return;
    for (i = 0; i < T_COUNT; i++) quantised += m->weights[i].q != NULL;
    CHECK(quantised > 0, "no weight is quantised");
    rows_of_tensors(&rows, &batch);
    for (i = 0; i < rows.n; i++) {
        N += rows.row[i].n;
        pack_whole(&p, &rows.row[i], -1);
    }
    CHECK_DONE(pack_finish(&p, &err));
    V = m->config.V;
    l = open_lora(k, m, NULL, 0, 0, N);
    losses = calloc((size_t)N, sizeof *losses);
    CHECK_DONE(lora_eval(l, &p, losses, NULL, &err));
    CHECK_DONE(lora_forward(l, &p, &err));
    for (i = 0; i < rows.n; i++) {
        size_t n, count;
        double *want = sequence_numbers(&ref, i, "loss_dequantised_float64", &n);
        double *logits = sequence_numbers(&ref, i, "logits_dequantised_float64", &count);
        float got[512];
        CHECK(want && (int)n == rows.row[i].n - 1 && V <= 512 && count == (n + 1) * (size_t)V, "the golden of sequence %d", i);
        for (t = 0; want && t < (int)n; t++, at++) {
            worst_add(&loss, fabs(losses[at] - want[t]), LOSS_BOUND * factor(k), (size_t)t);
            if (rows.row[i].mask[t + 1]) total += losses[at];
        }
        for (t = 0; logits && t < rows.row[i].n; t++) {
            int row = p.segments[i].q_start + t, v;
            CHECK_DONE(lora_logits(l, &row, 1, got, &err));
            for (v = 0; v < V; v++)     /* floats: half an ulp of a logit below 16 is 4.8e-7 */
                worst_add(&logit, fabs(got[v] - logits[t * V + v]), k->elem == 8 ? 1e-6 : LOGIT_BOUND, (size_t)v);
        }
        free(want);
        free(logits);
    }
    total /= count_targets(&rows);
    CHECK(fabs(total - number_at(json.root, "mean_loss_dequantised_float64")) <= MEAN_LOSS_BOUND * factor(k), "mean loss %.12g", total);
    CHECK_WORST(loss, "loss of each token");
    CHECK_WORST(logit, "logits");
    free(losses);
    lora_close(l);
    pack_free(&p);
    free_rows(&rows);
    json_free(&json);
    safetensors_close(&ref);
    safetensors_close(&batch);
    model_close(m);
}

static void gradient_case(const struct kernels *k, const char *root, const char *name)
{
    struct model *m = NULL;
    struct adapter *a = NULL;
    struct safetensors ref = {0}, batch = {0};
    struct golden_rows rows = {0};
    struct pack p = {0};
    struct worst gradient = {0};
    struct lora *l;
    double losses[256];
    char file[128];
    int targets;
    snprintf(file, sizeof file, "%s-lora/adapter", name);
    CHECK_DONE(model_open(&m, path_of(root, name), &err));
    if (m) CHECK_DONE(adapter_read(&a, path_of(root, file), &m->config, &err));
    snprintf(file, sizeof file, "%s-lora/ref.safetensors", name);
    CHECK_DONE(safetensors_open(&ref, path_of(root, file), &err));
    CHECK_DONE(safetensors_open(&batch, path_of(root, "batch.safetensors"), &err));
    if (!a || !ref.n || !batch.n) return;
    rows_of_tensors(&rows, &batch);
    targets = count_targets(&rows);
    l = open_lora(k, m, &a, 0, 1, 256);
    pack_masked(&p, &rows, 0);
    CHECK_DONE(lora_train(l, &p, 1.0 / targets, losses, NULL, &err));
    compare_gradients(&gradient, l, &ref, "grad_dequantised_float64.", factor(k));
    CHECK_WORST(gradient, "gradients");
    lora_close(l);
    pack_free(&p);
    free_rows(&rows);
    safetensors_close(&ref);
    safetensors_close(&batch);
    adapter_free(a);
    model_close(m);
}

static void checkpoints(const char *set, const char *root, const char *const *names)
{
    const struct kernels *const *k;
    char title[160], why[256];
    for (k = kernels_all; *k; k++) {
        const char *const *name;
        if (!(*k)->usable(why, sizeof why)) continue;
        for (name = names; *name; name++) {
            snprintf(title, sizeof title, "%s: %s over %s", set, *name, (*k)->name);
            test_begin(title);
            checkpoint_case(*k, root, *name);
        }
        snprintf(title, sizeof title, "%s: gradients of LoRA on nf4-dq over %s", set, (*k)->name);
        test_begin(title);
        gradient_case(*k, root, "nf4-dq");
    }
}

/* ---- quantised here ---- */

static const struct quantise kinds[] = {
    { TYPE_NF4, 64, 0 }, { TYPE_NF4, 64, 1 }, { TYPE_NF4, 4096, 1 }, { TYPE_FP4, 32, 0 }, { TYPE_FP4, 128, 1 }, { TYPE_INT8, 0, 0 }
};
#define KINDS (sizeof kinds / sizeof *kinds)

/* Every number of both models. */
static int same_models(const struct model *a, const struct model *b)
{
    int id, layer, r;
    float x[512], y[512];
    for (layer = 0; layer < a->config.L; layer++)
        for (id = 0; id < T_COUNT; id++) {
            const struct weight *w = tensor_present(&a->config, id) ? model_weight(a, id, layer) : NULL, *v;
            if (!w) continue;
            v = model_weight(b, id, layer);
            if ((v->q || w->q) && v->type != w->type) return 0;
            for (r = 0; r < w->rows; r++) {
                weight_decode(w, r, 0, w->cols, x);
                weight_decode(v, r, 0, w->cols, y);
                if (memcmp(x, y, (size_t)w->cols * sizeof *x)) return 0;
            }
        }
    return 1;
}

/* What is quantised and what is left, of a model that model_quantise() changed. */
static void check_quantised(const struct model *m, const struct quantise *how)
{
    int id, layer;
    for (layer = 0; layer < m->config.L; layer++)
        for (id = 0; id < T_COUNT; id++) {
            const struct weight *w = &m->weights[(size_t)layer * T_COUNT + (size_t)id];
            if (!w->rows) continue;
            CHECK((w->q != NULL) == tensor_specs[id].linear, "%s", tensor_specs[id].name);
            if (w->q) CHECK(w->type == how->type && !w->head_rows && !w->offset, "%s", tensor_specs[id].name);
        }
}

/* Quantised while loading, and written from the plain model and read again: the same numbers; and the
 * floats of the file lie aligned. */
static void round_trip(const char *path, const char *about)
{
    char title[160];
    size_t i;
    int id, layer;
    snprintf(title, sizeof title, "quantised while loading, and written and read: %s", about);
    test_begin(title);
    for (i = 0; i < KINDS; i++) {
        struct model *plain = NULL, *made = NULL, *read = NULL;
        uint64_t hash;
        CHECK_DONE(model_open(&plain, path, &err));
        CHECK_DONE(model_open(&made, path, &err));
        if (!plain || !made) return;
        hash = made->hash;
        CHECK_DONE(model_quantise(made, &kinds[i], 2, &err));
        CHECK(made->hash != hash, "the hash does not say that it is another model");
        check_quantised(made, &kinds[i]);
        for (layer = 0; layer < made->config.L; layer++)
            for (id = 0; id < T_COUNT; id++) {
                struct weight_error e;
                const struct weight *w = &plain->weights[(size_t)layer * T_COUNT + (size_t)id];
                if (!w->rows || !tensor_specs[id].linear) continue;
                CHECK_DONE(weight_difference(&e, w, model_weight(made, id, layer), 1, &err));
                CHECK(e.snr > (kinds[i].type == TYPE_INT8 ? 35 : kinds[i].type == TYPE_FP4 || kinds[i].block > 64 ? 14 : 19), "%s: %.1f dB",
                      tensor_specs[id].name, e.snr);
            }
        CHECK_DONE(model_write_quantised(&plain->config, folder, TYPE_F32, &kinds[i], model_row, plain, 2, &err));
        CHECK_DONE(model_open(&read, folder, &err));
        if (read) {
            CHECK(same_models(made, read), "%s, block %d: other numbers", weight_types[kinds[i].type].name, kinds[i].block);
            check_quantised(read, &kinds[i]);
            CHECK(read->ignored.n == 0, "%s", read->ignored.s);
            for (layer = 0; layer < read->config.L; layer++)
                for (id = 0; id < T_COUNT; id++) {
                    const struct weight *w = &read->weights[(size_t)layer * T_COUNT + (size_t)id];
                    if (w->q && w->rows * w->cols % 8 == 0) CHECK(w->q->heap == 0, "%s is copied", tensor_specs[id].name);
                }
            CHECK(model_quantise(read, &kinds[i], 1, &err) == -1 && strstr(err.where, "proj.weight"), "quantised twice: %s", err.where);
        }
        model_close(read);
        model_close(made);
        model_close(plain);
    }
}

/* Bytes of mapped files that this process holds in memory; -1 where the system does not say. */
static long long resident_files(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    long long kb = -1;
    while (f && fgets(line, sizeof line, f)) sscanf(line, "RssFile: %lld kB", &kb);
    if (f) fclose(f);
    return kb < 0 ? -1 : kb * 1024;
}

static int noise(void *ctx, int id, int layer, int row, float *out, struct lora_error *e)
{
    const struct config *c = ctx;
    uint64_t key = random_key((uint64_t)(id * 100 + layer), "noise");
    int i, cols = tensor_cols(c, id);
    (void)e;
    for (i = 0; i < cols; i++) out[i] = (float)random_uniform(key, (uint64_t)row * (uint64_t)cols + (uint64_t)i);
    return 0;
}

/* 12 MB of file: after it was read through, at most the tables that stay as they are (and what the
 * system maps around them) are in memory. */
static void pages(void)
{
    struct config c = tiny_config();
    struct model *m = NULL;
    long long before, after;
    if (resident_files() < 0) {
        test_skip("pages of the file are given back while quantising", "the system does not say what is in memory");
        return;
    }
    test_begin("pages of the file are given back while quantising");
    c.C = 256;
    c.F = 1280;
    c.L = 3;
    CHECK_DONE(model_write(&c, folder, TYPE_F32, noise, &c, &err));
    CHECK_DONE(model_open(&m, folder, &err));
    if (!m) return;
    before = resident_files();
    CHECK_DONE(model_quantise(m, &kinds[1], 2, &err));
    after = resident_files();
    CHECK(after - before < 3 << 20, "%lld bytes of the file are in memory", after - before);
    model_close(m);
}

/* The plan counts what lies in the file, and not what was made on the heap. */
static void plan_bytes(void)
{
    struct model *m = NULL;
    struct lora_setup setup;
    struct lora_plan plan;
    size_t bytes, plain = 0;
    int here = 0, i;
    test_begin("the plan: weights quantised while loading");
    CHECK_DONE(model_open(&m, "test/goldens/data/forward/untied/model", &err));
    if (!m) return;
    CHECK_DONE(model_quantise(m, &kinds[1], 1, &err));
    for (i = 0; i < m->config.L * T_COUNT; i++) {
        if (!m->weights[i].rows) continue;
        CHECK(!weight_bytes(&bytes, &m->weights[i]), "bytes");
        if (m->weights[i].q) here++;
        else if (m->weights[i].cols > 1) plain += bytes;
    }
    memset(&setup, 0, sizeof setup);
    setup.kernels = &kernels_ref;
    setup.threads = 1;
    setup.model = m;
    setup.sizes.N = setup.sizes.T = setup.sizes.U = setup.sizes.positions = 8;
    setup.sizes.S = 1;
    CHECK_DONE(lora_plan(&plan, &setup, &err));
    CHECK(here > 0 && plan.mapped == plain, "%zu of the file beside %d weights made here, expected %zu", plan.mapped, here, plain);
    model_close(m);
}

/* ---- files that lie ---- */

/* The checkpoint `from` in this program's directory, with `find` replaced by `put` of the same length
 * (in the file of tensors, each time that it comes), or NULL. */
static void put_copy(const char *from, const char *find, const char *put)
{
    struct file_map f;
    unsigned char *copy;
    size_t i, n = find ? strlen(find) : 0;
    CHECK_DONE(file_open(&f, path_of(from, "config.json"), &err));
    CHECK(!file_write(in_folder("config.json"), f.data, f.size, &err));
    file_close(&f);
    CHECK_DONE(file_open(&f, path_of(from, "model.safetensors"), &err));
    copy = malloc(f.size);
    memcpy(copy, f.data, f.size);
    CHECK(!n || strlen(put) == n, "%s", find);
    for (i = 0; n && i + n <= f.size; i++) if (!memcmp(copy + i, find, n)) memcpy(copy + i, put, n);
    CHECK(!n || memcmp(copy, f.data, f.size), "%s is not there", find);
    CHECK(!file_write(in_folder("model.safetensors"), copy, f.size, &err));
    free(copy);
    file_close(&f);
}

static void refused(const char *word)
{
    struct model *m = NULL;
    char all[2048];
    memset(&err, 0, sizeof err);
    CHECK(model_open(&m, folder, &err) == -1 && !m, "read, with %s wrong", word);
    snprintf(all, sizeof all, "%s: %s: expected %s, found %s", err.what, err.where, err.expected, err.found);
    CHECK(strstr(all, word) != NULL, "the error does not say \"%s\": %s", word, all);
    model_close(m);
}

static void lies(void)
{
    static const struct { const char *from, *find, *put, *word; } edits[] = {
        { OWN "/nf4-dq", "\"blocksize\": 64", "\"blocksize\": 63", "63" },
        { OWN "/nf4-dq", "\"blocksize\": 64", "\"blocksize\": 32", "values of U8" },
        { OWN "/nf4-dq", "\"blocksize\": 64", "\"blocksizd\": 64", "blocksize" },
        { OWN "/nf4-dq", "\"blocksize\": 64", "\"blocksize\": -4", "-4" },
        { OWN "/nf4-dq", "\"quant_type\": \"nf4\"", "\"quant_type\": \"fp4\"", "quant_type nf4" },
        { OWN "/nf4-dq", "\"shape\": [32, 56]", "\"shape\": [56, 32]", "shape [32, 56]" },
        { OWN "/nf4-dq", "\"shape\": [32, 56]", "\"shape\": [1, 792]", "shape [32, 56]" },
        { OWN "/nf4-dq", "\"nested_offset\"", "\"nested_offzet\"", "nested_offset" },
        { OWN "/nf4-dq", "\"nested_blocksize\": 256", "\"nested_blocksize\":   0", "nested_blocksize" },
        { OWN "/nf4-dq", "\"nested_blocksize\": 256", "\"nested_blocksize\":   1", "nested_absmax" },
        { OWN "/nf4-dq", "{\"quant_type\"", "[\"quant_type\"", "quant_state.bitsandbytes__nf4" },
        { OWN "/nf4-dq", "bitsandbytes__nf4", "bitsandbytes__nf5", "unknown tensor" },
        { OWN "/nf4-dq", "bitsandbytes__nf4", "bitsandbytes__fp4", "quant_type fp4" },
        { OWN "/nf4-dq", "q_proj.weight.absmax", "q_proj.weight.absmin", "absm" },
        { OWN "/nf4-dq", "q_proj.weight.nested_absmax", "q_proj.weight.nexted_absmax", "absmax" },
        { OWN "/nf4-dq", "q_proj.weight.quant_map", "q_proj.weight.quant_mat", "quant_ma" },
        { OWN "/nf4-dq", "lm_head.weight\"", "lm_head.absmax\"", "lm_head.absmax" },
        { OWN "/nf4-dq", "\"dtype\":\"U8\",\"shape\":[512,1]", "\"dtype\":\"U8\",\"shape\":[1,512]", NULL },     /* flat all the same */
        { OWN "/nf4-dq", "\"dtype\":\"U8\",\"shape\":[512,1]", "\"dtype\":\"I16\",\"shape\":[256] ", NULL },   /* bnb_4bit_quant_storage */
        { OWN "/nf4-dq", "\"dtype\":\"U8\",\"shape\":[512,1]", "\"dtype\":\"I8\",\"shape\":[512,1]", "unknown tensor" },
        { OWN "/nf4-dq", "\x4d\xa2\x91\xbe", "\x4d\xa2\x91\x3e", "quant_map" },        /* NF4's fifth number */
        { OWN "/int8-skip", "q_proj.SCB", "q_proj.SCA", "SC" },
        { OWN "/int8-skip", "v_proj.weight_format", "v_proj.weight_farmot", "weight_farmot" },
        { OWN "/int8-skip", "\"dtype\":\"I8\",\"shape\":[32,32]", "\"dtype\":\"U8\",\"shape\":[32,32]", "unknown tensor" },
        { OWN "/int8-skip", "\"shape\":[56,32]", "\"shape\":[32,56]", "[56, 32]" },
    };
    size_t i;
    test_begin("refused: parts that are wrong or missing, by name");
    for (i = 0; i < sizeof edits / sizeof *edits; i++) {
        struct model *m = NULL, *whole = NULL;
        put_copy(edits[i].from, edits[i].find, edits[i].put);
        if (edits[i].word) {
            refused(edits[i].word);
            continue;
        }
        CHECK_DONE(model_open(&m, folder, &err));
        CHECK_DONE(model_open(&whole, edits[i].from, &err));
        CHECK(m && whole && same_models(m, whole), "case %zu: other numbers", i);
        model_close(m);
        model_close(whole);
    }
}

static void other_methods(void)
{
    static const char *const methods[] = { "gptq", "awq", "compressed-tensors", "hqq" };
    size_t i;
    test_begin("refused: other quantisations, by name");
    for (i = 0; i < sizeof methods / sizeof *methods; i++) {
        struct text t = { 0 };
        put_copy(OWN "/nf4-dq", NULL, NULL);
        text_printf(&t, "{\"model_type\": \"llama\", \"quantization_config\": {\"bits\": 4, \"quant_method\": \"%s\"}}", methods[i]);
        CHECK(!file_write(in_folder("config.json"), t.s, t.n, &err));
        text_free(&t);
        refused(methods[i]);
    }
}

/* Transformers' file moved by a byte, so that no float is aligned: the same numbers, from copies. */
static void misaligned(void)
{
    struct model *m = NULL, *moved = NULL;
    struct file_map f;
    unsigned char *copy;
    uint64_t header = 0;
    int i;
    test_begin("floats at odd addresses are copied");
    put_copy(OWN "/nf4-dq", NULL, NULL);
    CHECK_DONE(model_open(&m, folder, &err));
    CHECK_DONE(file_open(&f, path_of(OWN "/nf4-dq", "model.safetensors"), &err));
    for (i = 7; i >= 0; i--) header = header << 8 | f.data[i];
    copy = malloc(f.size + 1);
    memcpy(copy, f.data, 8 + header);
    copy[8 + header] = ' ';
    memcpy(copy + 9 + header, f.data + 8 + header, f.size - 8 - header);
    header++;
    for (i = 0; i < 8; i++) copy[i] = (unsigned char)(header >> 8 * i);
    CHECK(!file_write(in_folder("model.safetensors"), copy, f.size + 1, &err));
    free(copy);
    file_close(&f);
    CHECK_DONE(model_open(&moved, folder, &err));
    if (m && moved) {
        CHECK(same_models(m, moved), "other numbers");
        CHECK(m->weights[T_WQ].q->heap == 0 && moved->weights[T_WQ].q->heap >= 1024, "%zu, %zu", m->weights[T_WQ].q->heap,
              moved->weights[T_WQ].q->heap);
    }
    model_close(m);
    model_close(moved);
}

/* Cut anywhere: an error. Any byte of the header or of a state changed: an error or a model, no crash. */
static void damaged(void)
{
    struct file_map f;
    struct model *m;
    unsigned char *copy;
    uint64_t header = 0;
    size_t i, n;
    test_begin("cut files and changed bytes");
    put_copy(OWN "/nf4-dq", NULL, NULL);
    CHECK_DONE(file_open(&f, path_of(OWN "/nf4-dq", "model.safetensors"), &err));
    copy = malloc(f.size);
    memcpy(copy, f.data, f.size);
    for (i = 7; i < 8; i--) header = header << 8 | f.data[i];
    for (n = 0; n < f.size; n += 1 + f.size / 12) {
        CHECK(!file_write(in_folder("model.safetensors"), f.data, n, &err));
        refused("model.safetensors");
    }
    for (i = 8; i + 8 < f.size; i += i < 8 + header ? 233 : 1009) {
        copy[i] ^= (unsigned char)(1 + i % 7);
        CHECK(!file_write(in_folder("model.safetensors"), copy, f.size, &err));
        m = NULL;
        memset(&err, 0, sizeof err);
        CHECK(!model_open(&m, folder, &err) || err.what[0], "byte %zu: no reason is given", i);
        model_close(m);
        copy[i] = f.data[i];
    }
    free(copy);
    file_close(&f);
}

int main(void)
{
    static const char *const own[] = { "nf4-dq", "fp4-b32-sharded", "int8-skip", NULL };
    static const char *const shared[] = { "nf4", "nf4-dq", "fp4", "int8", NULL };
    char root[1024];
    if (folder_make()) return 1;
    checkpoints("own", OWN, own);
    if (shared_dir()) {
        snprintf(root, sizeof root, "%s/goldens/bnb/checkpoints", shared_dir());
        checkpoints("shared", root, shared);
        snprintf(root, sizeof root, "%s/goldens/gguf/tiny-mix.gguf", shared_dir());
        round_trip(root, "GGUF");
    } else {
        test_skip("checkpoints of ../shared", "the folder is not there");
    }
    round_trip("test/goldens/data/forward/untied/model", "f32");
    round_trip("test/goldens/data/forward/bf16-oldconfig/model", "bf16");
    round_trip("test/goldens/data/forward/phi3-sliding/model", "Phi-3");
    plan_bytes();
    pages();
    misaligned();
    lies();
    other_methods();
    damaged();
    CHECK(!remove_tree(folder, NULL));
    return test_end();
}
