/* checkpoint.c - what a run leaves on disk to go on from, whole or not at all.
 *
 *     checkpoint-STEP/adapter_*       the weights, in PEFT's form (under `full`: a model directory, F32)
 *     checkpoint-STEP/optimizer.safetensors   both moments, those in 8 bits as codes and absmax; on a table
 *                                             of doubles the parameters too
 *     checkpoint-STEP/trainer_state.json      step, best, the options that decide the numbers, and a
 *                                             hash of each file; its last bytes are a hash of itself
 *
 * The directory is made as any output is (job.h): under another name, made durable, and renamed. */
#include "train.h"
#include "../formats/json.h"
#include "../formats/safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define STATE "trainer_state.json"
#define MOMENTS "optimizer.safetensors"

/* ---- weights ---- */

/* Where each trained tensor of a full run lies, by id and layer. */
struct full_source {
    const struct trained *list;
    int n;
    const float *values;
};

static int full_row(void *ctx, int id, int layer, int row, float *out, struct lora_error *err)
{
    const struct full_source *s = ctx;
    int i;
    for (i = 0; i < s->n; i++) {
        const struct trained *t = &s->list[i];
        if (t->id != id || (tensor_layered(id) && t->layer != layer)) continue;
        memcpy(out, s->values + t->offset + (size_t)row * (size_t)t->cols, (size_t)t->cols * sizeof *out);
        return 0;
    }
    return fail(err, "a tensor is not trained", "%s", tensor_specs[id].name);
}

const float *run_floats(const struct run *r, int buffer, float **copy, struct lora_error *err)
{
    const float *there = lora_floats(r->lora, buffer);
    *copy = NULL;
    if (there) return there;
    if (!(*copy = new_array(lora_buffer_size(r->lora, buffer), sizeof **copy, err))) return NULL;
    lora_get(r->lora, buffer, *copy);
    if (!lora_check(r->lora, err)) return *copy;
    free(*copy);
    return *copy = NULL;
}

int weights_write(struct run *r, const char *dir, int dtype, struct lora_error *err)
{
    const struct model *m = r->session.model;
    float *copy;
    struct full_source s = { .values = run_floats(r, LORA_PARAMETERS, &copy, err) };
    int bad;
    if (!s.values) return -1;
    if (r->adapter) {
        bad = adapter_write(r->adapter, s.values, dir, m->path, err);
    } else {
        s.n = lora_trained(r->lora, &s.list);
        bad = model_write(&m->config, dir, dtype, full_row, &s, err) || session_save_beside(m, r->session.tokenizer, dir, err);
    }
    free(copy);
    return bad ? -1 : 0;
}

static const char *weights_file(const struct run *r)
{
    return r->adapter ? "adapter_model.safetensors" : "model.safetensors";
}

/* ---- moments ---- */

/* What the file may hold, wide types first; what has no numbers in this run is left out. On doubles the
 * parameters too: the adapter's file rounds them. */
static const struct { const char *name; int buffer, is_codes; } flats[] = {
    { "parameters", LORA_PARAMETERS, 0 }, { "moment1", LORA_MOMENT1, 0 }, { "moment2", LORA_MOMENT2, 0 },
    { "absmax1", LORA_ABSMAX1, 0 }, { "absmax2", LORA_ABSMAX2, 0 },
    { "codes1", LORA_CODES1, 1 }, { "codes2", LORA_CODES2, 1 }
};
enum { FLATS = sizeof flats / sizeof *flats };

static int is_double(const struct run *r) { return r->setup.kernels->elem == sizeof(double); }

/* How many numbers of it belong into the file. */
static size_t flat_size(const struct run *r, int i)
{
    return i || is_double(r) ? lora_buffer_size(r->lora, flats[i].buffer) : 0;
}

static int put_flat(struct run *r, struct st_writer *w, int i, struct lora_error *err)
{
    size_t n = flat_size(r, i), elem = flats[i].is_codes ? 1 : (size_t)r->setup.kernels->elem;
    const float *there = flats[i].is_codes ? NULL : lora_floats(r->lora, flats[i].buffer);
    void *values;
    int bad;
    if (there) return st_writer_put(w, there, n * elem, err);
    if (!(values = new_array(n, elem, err))) return -1;
    if (flats[i].is_codes) lora_get_codes(r->lora, flats[i].buffer, values);
    else if (is_double(r)) lora_get64(r->lora, flats[i].buffer, values);
    else lora_get(r->lora, flats[i].buffer, values);
    bad = lora_check(r->lora, err) || st_writer_put(w, values, n * elem, err);
    free(values);
    return bad;
}

static int moments_write(struct run *r, const char *dir, struct lora_error *err)
{
    char *path = path_join(dir, MOMENTS, err);
    struct st_writer w;
    int i, bad = !path;
    memset(&w, 0, sizeof w);
    for (i = 0; i < FLATS && !bad; i++) {
        size_t size = flat_size(r, i);
        int type = flats[i].is_codes ? TYPE_U8 : is_double(r) ? TYPE_F64 : TYPE_F32;
        if (size) bad = st_writer_add(&w, flats[i].name, type, &size, 1, err);
    }
    bad = bad || st_writer_begin(&w, path, err);
    for (i = 0; i < FLATS && !bad; i++) if (flat_size(r, i)) bad = put_flat(r, &w, i, err);
    free(path);
    if (!bad) return st_writer_commit(&w, err);
    st_writer_abandon(&w);
    return -1;
}

/* One flat tensor of the file into its buffer. Parameters are there only from doubles. */
static int take_flat(struct run *r, const struct safetensors *s, int i, struct lora_error *err)
{
    const struct st_tensor *t = safetensors_find(s, flats[i].name);
    size_t n = lora_buffer_size(r->lora, flats[i].buffer);
    void *values;
    int bad = 0;
    if (!n || (!t && !i)) return 0;
    if (!t || t->count != n || (flats[i].is_codes ? t->type != TYPE_U8 : t->type != TYPE_F32 && t->type != TYPE_F64)) {
        fail(err, "cannot resume", "%s: %s", s->path, flats[i].name);
        return expected(err, "%zu numbers", n);
    }
    if (!(values = new_array(t->bytes, 1, err))) return -1;
    memcpy(values, t->data, t->bytes);      /* the file's bytes are not aligned */
    if (flats[i].is_codes) bad = lora_set_codes(r->lora, flats[i].buffer, values);
    else if (t->type == TYPE_F64) lora_set64(r->lora, flats[i].buffer, values);
    else lora_set(r->lora, flats[i].buffer, values);
    free(values);
    return bad ? fail(err, "cannot copy moments to the device", "%s", r->setup.kernels->name) : 0;
}

/* The trained tensors by name, from the adapter's or the model's file. */
static int take_weights(struct run *r, const char *dir, struct lora_error *err)
{
    const struct trained *list;
    int i, n = lora_trained(r->lora, &list), bad = -1;
    char *path = path_join(dir, weights_file(r), err);
    float *values = new_array(lora_trained_size(r->lora), sizeof *values, err);
    struct safetensors s;
    if (path && values && !safetensors_open(&s, path, err)) {
        for (i = 0; i < n; i++) {
            const struct st_tensor *t = safetensors_find(&s, list[i].name);
            size_t count = (size_t)list[i].rows * (size_t)list[i].cols;
            if (!t || t->count != count || t->type != TYPE_F32) {
                fail(err, "cannot resume", "%s: %s", path, list[i].name);
                expected(err, "%zu numbers in F32", count);
                break;
            }
            memcpy(values + list[i].offset, t->data, t->bytes);
        }
        bad = i < n ? -1 : 0;
        safetensors_close(&s);
    }
    if (!bad) lora_set(r->lora, LORA_PARAMETERS, values);
    free(path);
    free(values);
    return bad;
}

static int take_moments(struct run *r, const char *dir, int parameters_only, struct lora_error *err)
{
    char *path = path_join(dir, MOMENTS, err);
    struct safetensors s;
    int i, bad;
    if (!path) return -1;
    bad = safetensors_open(&s, path, err);
    if (!bad) {
        for (i = 0; i < (parameters_only ? 1 : FLATS) && !bad; i++) bad = take_flat(r, &s, i, err);
        safetensors_close(&s);
    }
    free(path);
    return bad;
}

/* ---- trainer_state.json ---- */

/* Read in pieces: mapped, a file as large as the moments would count as memory of the process. */
static int hash_file(uint64_t *hash, const char *dir, const char *name, struct lora_error *err)
{
    char *path = path_join(dir, name, err), piece[1 << 14];
    FILE *f = path ? fopen(path, "rb") : NULL;
    int bad = !f;
    size_t n;
    if (path && !f) {
        fail(err, "cannot open", "%s", path);
        found(err, "%s", strerror(errno));
    }
    *hash = HASH_START;
    while (f && (n = fread(piece, 1, sizeof piece, f)) > 0) *hash = hash_bytes(*hash, piece, n);
    if (f && ferror(f)) bad = fail(err, "cannot read", "%s", path);
    if (f) fclose(f);
    free(path);
    return bad ? -1 : 0;
}

#define SELF_HASH ",\"hash\":\"%016llx\"}\n"
#define SELF_HASH_BYTES 28

static int state_write(struct run *r, const char *dir, struct lora_error *err)
{
    const struct train_state *s = &r->state;
    const char *const files[] = { r->adapter ? "adapter_config.json" : "config.json", weights_file(r), MOMENTS };
    char *path = path_join(dir, STATE, err);
    struct text t = { 0 };
    int i, bad = !path;
    text_printf(&t, "{\"step\":%lld,\"epoch\":", s->step);
    json_put_number(&t, (double)s->step / (double)r->steps.per_epoch, 9);
    text_printf(&t, ",\"eval_step\":%lld,\"best_step\":%lld,\"best\":", s->eval_step, s->best_step);
    json_put_number(&t, s->best, 17);
    text_printf(&t, ",\"without_better\":%d,\"options\":", s->without_better);
    put_fingerprint(&t, r);
    text_puts(&t, ",\"files\":{");
    for (i = 0; i < 3 && !bad; i++) {
        uint64_t hash = 0;
        bad = hash_file(&hash, dir, files[i], err);
        text_printf(&t, "%s\"%s\":\"%016llx\"", i ? "," : "", files[i], (unsigned long long)hash);
    }
    text_puts(&t, "}");
    if (!bad) bad = text_check(&t, err);
    if (!bad) {
        text_printf(&t, SELF_HASH, (unsigned long long)hash_bytes(HASH_START, t.s, t.n));
        bad = text_check(&t, err) || file_write(path, t.s, t.n, err);
    }
    text_free(&t);
    free(path);
    return bad ? -1 : 0;
}

/* Is this the text that state_write ended with its hash? */
static int state_is_whole(const struct file_map *f)
{
    char end[SELF_HASH_BYTES + 1];
    size_t n = f->size < SELF_HASH_BYTES ? 0 : f->size - SELF_HASH_BYTES;
    if (!n) return 0;
    snprintf(end, sizeof end, SELF_HASH, (unsigned long long)hash_bytes(HASH_START, f->data, n));
    return !memcmp(end, f->data + n, SELF_HASH_BYTES);
}

static int changed(const char *dir, const char *name, struct lora_error *err)
{
    fail(err, "cannot resume", "%s/%s", dir, name);
    return found(err, "a file that was changed or cut");
}

/* The parsed state, when it and the files it names are as they were written. */
static int state_read(struct json_document *d, const char *dir, struct lora_error *err)
{
    char *path = path_join(dir, STATE, err), hex[24];
    const struct json *v, *files;
    struct file_map f;
    int bad = !path || file_open(&f, path, err);
    if (!bad) {
        bad = json_parse(d, (const char *)f.data, f.size, path, err);
        if (!bad && !state_is_whole(&f)) bad = changed(dir, STATE, err);
        file_close(&f);
    }
    files = bad ? NULL : json_get(d->root, "files");
    for (v = files ? files->child : NULL; v && !bad; v = v->next) {
        uint64_t hash = 0;
        bad = hash_file(&hash, dir, v->key, err);
        snprintf(hex, sizeof hex, "%016llx", (unsigned long long)hash);
        if (!bad && (v->type != JSON_STRING || strcmp(hex, v->string))) bad = changed(dir, v->key, err);
    }
    free(path);
    return bad ? -1 : 0;
}

static void put_option(struct text *t, const struct json *v)
{
    if (v && v->type != JSON_NULL) json_put(t, v);
    else text_puts(t, "nothing");
}

static int same_option(const char *key, const struct json *then, const struct json *now, const char *dir, struct lora_error *err)
{
    struct text a = { 0 }, b = { 0 };
    int bad, rows = !strcmp(key, "data") || !strcmp(key, "eval-data");
    put_option(&a, then);
    put_option(&b, now);
    bad = text_check(&a, err) || text_check(&b, err);
    if (!bad && strcmp(a.s, b.s)) {
        fail(err, "cannot resume", "%s: %s has changed", dir, key);
        expected(err, "%s", a.s);
        found(err, "%s", b.s);
        bad = hint(err, "a resumed run goes on with the data and options it began with%s; --overwrite begins anew",
                   rows ? " (the rows as ids: their files, --eval-split, chat and prompt template)" : "");
    }
    text_free(&a);
    text_free(&b);
    return bad ? -1 : 0;
}

/* Every option that decides the numbers is as it was; the first that is not is named. */
static int same_options(const struct run *r, const struct json *then, const char *dir, struct lora_error *err)
{
    struct json_document now = { 0 };
    const struct json *v;
    struct text t = { 0 };
    int bad;
    put_fingerprint(&t, r);
    bad = text_check(&t, err) || json_parse(&now, t.s, t.n, "options", err);
    for (v = bad ? NULL : now.root->child; v && !bad; v = v->next)
        bad = same_option(v->key, json_get(then, v->key), v, dir, err);
    text_free(&t);
    json_free(&now);
    return bad ? -1 : 0;
}

static int take_number(const struct json *root, const char *key, long long *out, struct lora_error *err)
{
    double x = 0;
    if (json_get_number(root, key, &x, STATE, err)) return -1;
    *out = (long long)x;
    return 0;
}

static int take_state(struct run *r, const struct json *root, struct lora_error *err)
{
    struct train_state s = { 0 };
    if (take_number(root, "step", &s.step, err) || take_number(root, "eval_step", &s.eval_step, err)
        || take_number(root, "best_step", &s.best_step, err) || json_get_number(root, "best", &s.best, STATE, err)
        || json_get_int(root, "without_better", &s.without_better, STATE, err)) return -1;
    r->state = s;
    return 0;
}

/* ---- directories ---- */

static char *checkpoint_path(const char *dir, long long step, const char *end, struct lora_error *err)
{
    char name[64];
    snprintf(name, sizeof name, "checkpoint-%lld%s", step, end);
    return path_join(dir, name, err);
}

/* "checkpoint-12" -> 12; "checkpoint-12.unfinished" -> 12 with *temporary; else -1. */
static long long checkpoint_step(const char *name, int *temporary)
{
    char number[24];
    long long step;
    size_t n;
    if (strncmp(name, "checkpoint-", 11)) return -1;
    n = strspn(name + 11, "0123456789");
    if (!n || n >= sizeof number) return -1;
    *temporary = !strcmp(name + 11 + n, UNFINISHED);
    if (name[11 + n] && !*temporary) return -1;
    memcpy(number, name + 11, n);
    number[n] = 0;
    return parse_integer(number, &step) ? -1 : step;
}

struct found_list {
    long long *v;       /* newest first */
    size_t n, capacity;
};

static int newest_first(const void *a, const void *b)
{
    long long x = *(const long long *)a, y = *(const long long *)b;
    return (x < y) - (x > y);
}

/* Checkpoints of DIR; with `clean`, which only the run that DIR is of may ask for, what was left half written is
 * removed. An absent DIR has none. */
static int checkpoint_list(struct found_list *list, const char *dir, int clean, struct lora_error *err)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    int bad = 0;
    if (!d && errno != ENOENT) {
        fail(err, "cannot read the directory", "%s", dir);
        bad = found(err, "%s", strerror(errno));
    }
    memset(list, 0, sizeof *list);
    while (d && !bad && (e = readdir(d))) {
        int temporary = 0;
        long long step = checkpoint_step(e->d_name, &temporary);
        if (step < 0 || (temporary && !clean)) continue;
        if (temporary) {
            char *path = path_join(dir, e->d_name, err);
            bad = !path || remove_tree(path, err);
            free(path);
        } else {
            bad = grow_array((void **)&list->v, &list->capacity, list->n + 1, sizeof *list->v, err);
            if (!bad) list->v[list->n++] = step;
        }
    }
    if (d) closedir(d);
    if (list->n) qsort(list->v, list->n, sizeof *list->v, newest_first);
    return bad ? -1 : 0;
}

/* Renamed first, so that nobody takes what is half removed for a checkpoint. */
static int checkpoint_remove(const char *dir, long long step, struct lora_error *err)
{
    char *path = checkpoint_path(dir, step, "", err), *temporary = checkpoint_path(dir, step, UNFINISHED, err);
    int bad = !path || !temporary || remove_tree(temporary, err);
    if (!bad && file_exists(path)) bad = rename(path, temporary) ? fail(err, "cannot name", "%s", path) : remove_tree(temporary, err);
    free(path);
    free(temporary);
    return bad ? -1 : 0;
}

/* The newest save_total_limit stay, and the best when it will be wanted. */
static int remove_old(const struct run *r, struct lora_error *err)
{
    struct found_list list;
    size_t i, kept = 0;
    int bad = checkpoint_list(&list, r->set->out, 1, err);
    for (i = 0; i < list.n && !bad && r->set->save_total_limit; i++) {
        int is_best = r->state.best_step && list.v[i] == r->state.best_step;
        if (kept < (size_t)r->set->save_total_limit || (is_best && r->set->load_best)) kept++;
        else bad = checkpoint_remove(r->set->out, list.v[i], err);
    }
    free(list.v);
    return bad;
}

/* The lines up to this step are to be there as long as the checkpoint is. */
static int metrics_sync(const struct run *r, struct lora_error *err)
{
    return fsync(fileno(r->metrics)) ? fail(err, "cannot write", "%s/metrics.jsonl", r->set->out) : 0;
}

int checkpoint_save(struct run *r, struct lora_error *err)
{
    char *path = checkpoint_path(r->set->out, r->state.step, "", err);
    struct output o = { NULL, NULL };
    int bad = !path || checkpoint_remove(r->set->out, r->state.step, err) || output_begin(&o, path, err)
              || weights_write(r, o.temporary, TYPE_F32, err) || moments_write(r, o.temporary, err)
              || state_write(r, o.temporary, err) || metrics_sync(r, err) || output_commit(&o, err) || remove_old(r, err);
    output_end(&o);     /* a full disk has use for the room */
    free(path);
    return bad ? -1 : 0;
}

int checkpoint_weights(struct run *r, long long step, struct lora_error *err)
{
    struct json_document d = { 0 };
    char *path = checkpoint_path(r->set->out, step, "", err);
    int bad = !path || state_read(&d, path, err) || take_weights(r, path, err) || take_moments(r, path, 1, err);
    json_free(&d);
    free(path);
    return bad ? -1 : 0;
}

/* 1: not whole, so an older one may do; -1: whole, but not of this run, or no memory. */
static int checkpoint_read(struct run *r, long long step, struct lora_error *err)
{
    struct json_document d = { 0 };
    char *path = checkpoint_path(r->set->out, step, "", err);
    int result = path ? 1 : -1;
    if (path && !state_read(&d, path, err)) {
        result = same_options(r, json_get(d.root, "options"), path, err) || take_state(r, d.root, err)
                 || take_weights(r, path, err) || take_moments(r, path, 0, err) ? -1 : 0;
        if (!result) lora_set_steps(r->lora, r->state.step);
    }
    json_free(&d);
    free(path);
    return result;
}

int checkpoint_resume(struct run *r, struct lora_error *err)
{
    struct found_list list;
    size_t i;
    int result = checkpoint_list(&list, r->set->out, 1, err) ? -1 : 0;
    for (i = 0; i < list.n && !result; i++) {
        result = checkpoint_read(r, list.v[i], err);
        if (result <= 0) break;
        status("checkpoint-%lld is not whole (%s %s); looking for an older one", list.v[i], err->where, err->found);
        result = i + 1 < list.n ? 0 : -1;
    }
    free(list.v);
    return result;
}

/* ---- the rest of DIR ---- */

int checkpoint_any(const char *dir, struct lora_error *err)
{
    struct found_list list;
    int i, there, any = checkpoint_list(&list, dir, 0, err) ? -1 : list.n > 0;
    free(list.v);
    for (i = 0; any >= 0 && any != A_RUN && run_files[i]; i++)
        if ((there = file_in(dir, run_files[i], err))) any = there < 0 ? -1 : i < RUN_RECORDS ? A_RUN : NO_RUN;
    return any;
}

int checkpoint_clear(const char *dir, struct lora_error *err)
{
    struct found_list list;
    size_t i;
    int bad = checkpoint_list(&list, dir, 1, err);
    for (i = 0; i < list.n && !bad; i++) bad = checkpoint_remove(dir, list.v[i], err);
    free(list.v);
    for (i = 0; run_files[i] && !bad; i++) {
        char *path = path_join(dir, run_files[i], err);
        bad = !path || remove_tree(path, err);
        free(path);
    }
    return bad;
}

/* ---- metrics.jsonl ---- */

/* Lines of steps after the state's, of evaluations after its last one (which are made again), and a last line that
 * was cut, are left out. */
static void keep_lines(struct text *kept, const struct file_map *f, const struct train_state *s)
{
    size_t i = 0;
    while (i < f->size) {
        const char *line = (const char *)f->data + i, *end = memchr(line, '\n', f->size - i);
        struct json_document d = { 0 };
        double at = -1;
        if (!end) break;
        if (!json_parse(&d, line, (size_t)(end - line), "", NULL) && !json_get_number(d.root, "step", &at, "", NULL)
            && at >= 0 && at <= (double)(json_get(d.root, "eval_loss") ? s->eval_step : s->step))
            text_add(kept, line, (size_t)(end - line) + 1);
        json_free(&d);
        i += (size_t)(end - line) + 1;
    }
}

int metrics_open(struct run *r, struct lora_error *err)
{
    char *path = path_join(r->set->out, "metrics.jsonl", err);
    struct text kept = { 0 };
    struct file_map f;
    int bad = !path;
    if (path && file_exists(path) && !(bad = file_open(&f, path, err))) {
        keep_lines(&kept, &f, &r->state);
        file_close(&f);
    }
    if (!bad) bad = text_check(&kept, err) || file_write(path, kept.s ? kept.s : "", kept.n, err);
    if (!bad && !(r->metrics = fopen(path, "a"))) bad = fail(err, "cannot write", "%s", path);
    text_free(&kept);
    free(path);
    return bad ? -1 : 0;
}
