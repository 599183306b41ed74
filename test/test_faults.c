/* test_faults.c - the n-th allocation or write fails, for every n; files end early or are damaged. What
 * must come back is an error, with nothing leaked and nothing half-written under a final name.
 *
 * Where the linker has --wrap (GNU's and LLVM's, not Apple's) calls to malloc, write and their kin in the
 * library come here first; elsewhere those tests are skipped by name. */
#include "test.h"
#include "../data.h"
#include "../jobs/job.h"
#include "../lora.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define GOLDENS "test/goldens/data/"

static char scratch[512];       /* a directory of this run's own */

static const char *in_scratch(const char *name)
{
    static char paths[4][1024];
    static int next;
    char *p = paths[next++ % 4];
    snprintf(p, sizeof paths[0], "%s/%s", scratch, name);
    return p;
}

/* ---- what fails ---- */

#ifdef HAVE_WRAP
/* Calls of one kind are counted while `on`; the n-th fails, and with `after` all that follow too. */
struct fault { int on, after; long count, nth; };
static struct fault memory, writing;
static long live;               /* allocations less frees: what a scenario has leaked */
static long mappings;           /* of files, while memory faults are on */

static void fault_set(struct fault *f, long nth, int after)
{
    f->on = 1;
    f->count = 0;
    f->nth = nth;
    f->after = after;
}

static int fails(struct fault *f)
{
    if (!f->on) return 0;
    f->count++;
    if (!f->nth || (f->after ? f->count < f->nth : f->count != f->nth)) return 0;
    errno = f == &memory ? ENOMEM : ENOSPC;
    return 1;
}

/* ---- what a loss of power would leave ---- files and directories that were written through to the disk, by inode, and what got
 * its name before it was, or before the name of a directory was in the one that holds it. */
enum { SEEN = 512 };
static struct {
    int on, n, renames, early, waits, late;
    struct { dev_t device; ino_t inode; } seen[SEEN];
    struct stat parent;         /* waits: for it */
} through;

static int find_through(const struct stat *s)
{
    int i;
    for (i = 0; i < through.n; i++)
        if (through.seen[i].inode == s->st_ino && through.seen[i].device == s->st_dev) return i;
    return -1;
}

static void forget(const struct stat *s)
{
    int i = find_through(s);
    if (i >= 0) through.seen[i] = through.seen[--through.n];
}

static void note_written(int fd)
{
    struct stat s;
    if (through.on && !fstat(fd, &s)) forget(&s);
}

static void note_through(int fd)
{
    struct stat s;
    if (!through.on || fstat(fd, &s)) return;
    if (find_through(&s) < 0 && through.n < SEEN) {
        through.seen[through.n].device = s.st_dev;
        through.seen[through.n++].inode = s.st_ino;
    }
    if (s.st_ino == through.parent.st_ino && s.st_dev == through.parent.st_dev) through.waits = 0;
}

/* It, and all that a directory holds. */
static int is_through(const char *path)
{
    struct stat s;
    struct dirent *e;
    char inside[1200];
    int yes = !stat(path, &s) && find_through(&s) >= 0;
    DIR *d = yes && S_ISDIR(s.st_mode) ? opendir(path) : NULL;
    while (d && (e = readdir(d))) {
        if (e->d_name[0] == '.') continue;
        snprintf(inside, sizeof inside, "%s/%s", path, e->d_name);
        yes &= is_through(inside);
    }
    if (d) closedir(d);
    return yes;
}

/* With a checkpoint the lines of its steps are there too, which the next one's must be again. */
static void note_rename(const char *from, const char *to)
{
    char parent[1024], lines[1100];
    struct stat s;
    if (!through.on) return;
    through.renames++;
    through.early += !is_through(from);
    if (!is_directory(from) || strlen(to) >= sizeof parent) return;
    through.late += through.waits;
    strcpy(parent, to);
    *strrchr(parent, '/') = 0;
    through.waits = !stat(parent, &through.parent);
    snprintf(lines, sizeof lines, "%s/metrics.jsonl", parent);
    if (stat(lines, &s)) return;
    through.early += !is_through(lines);
    forget(&s);
}

/* The linker's names: __wrap_X stands for X in the library, __real_X is the true one. */
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
int __real_posix_memalign(void **p, size_t alignment, size_t n);
void __real_free(void *p);
void *__real_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *p, size_t n);
ssize_t __real_write(int fd, const void *data, size_t n);
int __real_rename(const char *from, const char *to);

void *__wrap_malloc(size_t n)
{
    void *p = fails(&memory) ? NULL : __real_malloc(n);
    live += p != NULL;
    return p;
}

void *__wrap_calloc(size_t n, size_t size)
{
    void *p = fails(&memory) ? NULL : __real_calloc(n, size);
    live += p != NULL;
    return p;
}

void *__wrap_realloc(void *old, size_t n)
{
    void *p = fails(&memory) ? NULL : __real_realloc(old, n);
    live += p && !old;
    return p;
}

int __wrap_posix_memalign(void **p, size_t alignment, size_t n)
{
    int bad = fails(&memory) ? ENOMEM : __real_posix_memalign(p, alignment, n);
    live += !bad;
    return bad;
}

void __wrap_free(void *p)
{
    live -= p != NULL;
    __real_free(p);
}

void *__wrap_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset)
{
    void *p;
    mappings += memory.on;
    p = fails(&memory) ? MAP_FAILED : __real_mmap(at, n, protection, flags, fd, offset);
    live += p != MAP_FAILED;
    return p;
}

int __wrap_munmap(void *p, size_t n)
{
    live--;
    return __real_munmap(p, n);
}

/* A write that fails has first put down half: a full disk does that. */
ssize_t __wrap_write(int fd, const void *data, size_t n)
{
    note_written(fd);
    if (!fails(&writing)) return __real_write(fd, data, n);
    if (n > 1 && __real_write(fd, data, n / 2) > 0) errno = ENOSPC;
    return -1;
}

/* What a disk does on fsync is not waited for: there are thousands. */
int __wrap_fsync(int fd)
{
    note_through(fd);
    return fails(&writing) ? -1 : 0;
}

int __wrap_rename(const char *from, const char *to)
{
    note_rename(from, to);
    return fails(&writing) ? -1 : __real_rename(from, to);
}
#endif

/* ---- scenarios: 0, or -1 with an error; everything released either way ---- */

typedef int scenario(const char *out, struct lora_error *err);

static int fill_pack(struct pack *p, int adapter, struct lora_error *err)
{
    static const int ids[] = {1, 26, 50, 58, 60, 9, 26, 50, 58, 3};
    static const unsigned char mask[] = {0, 0, 0, 1, 1, 0, 0, 1, 1, 1};
    pack_clear(p);
    return pack_row(p, ids, mask, 10, adapter, 0, err)
        || pack_row(p, ids + 2, mask + 2, 7, adapter, 1, err) || pack_finish(p, err) ? -1 : 0;
}

static void setup_for(struct lora_setup *s, const char *backend, const struct model *m, struct adapter *const *a)
{
    memset(s, 0, sizeof *s);
    s->kernels = kernels_find(backend, NULL);
    s->threads = 1;
    s->model = m;
    s->adapters = a;
    s->n_adapters = a ? 1 : 0;
    s->full = a == NULL;
    s->sizes.N = s->sizes.T = s->sizes.U = s->sizes.positions = 32;
    s->sizes.S = 4;
    s->sizes.backward = 1;
    s->sizes.keep = 1;
}

static int train_over(const char *backend, const char *out, struct lora_error *err)
{
    static const struct adapter_settings settings = {
        2, 4, 0.1, 0, "all-linear", "{\"q_proj\": 1}", "o_proj=3", "0,1"};
    static const struct lora_hyper hyper = {1e-3, 0.9, 0.999, 1e-8, 0.01, 1};
    struct model *m = NULL;
    struct adapter *a = NULL;
    struct lora *l = NULL;
    struct lora_setup setup;
    struct pack p = {0};
    double losses[32], norm;
    float *values = NULL;
    int bad = model_open(&m, GOLDENS "train/model", err) || adapter_new(&a, &m->config, &settings, err)
           || adapter_init(a, 0, err);
    if (!bad) {
        setup_for(&setup, backend, m, &a);
        bad = lora_open(&l, &setup, err) || fill_pack(&p, 0, err)
           || lora_train(l, &p, 0.125, losses, NULL, err) || lora_step(l, &hyper, &norm, err)
           || lora_train(l, &p, 0.125, losses, NULL, err) || lora_step(l, &hyper, &norm, err)
           || !(values = new_array(a->size, sizeof *values, err));
    }
    if (!bad) {
        lora_get(l, LORA_PARAMETERS, values);
        bad = make_directory(out, err) || adapter_write(a, values, out, "base", err);
    }
    free(values);
    pack_free(&p);
    lora_close(l);
    adapter_free(a);
    model_close(m);
    return bad ? -1 : 0;
}

static int train_ref(const char *out, struct lora_error *err) { return train_over("ref", out, err); }
static int train_auto(const char *out, struct lora_error *err) { return train_over("auto", out, err); }

/* An adapter that PEFT wrote, with patterns, joined with itself, and the base with that. */
static int read_adapter(const char *out, struct lora_error *err)
{
    static const double factors[] = {1, -0.5};
    const struct adapter *twice[2];
    struct model *m = NULL;
    struct adapter *a = NULL, *joined = NULL;
    struct lora *l = NULL;
    struct lora_setup setup;
    struct pack p = {0};
    double losses[32];
    int best[32];
    int bad = model_open(&m, GOLDENS "lora-grad/llama/model", err)
           || adapter_read(&a, GOLDENS "lora-grad/llama/patterns/adapter", &m->config, err);
    (void)out;
    twice[0] = twice[1] = a;
    if (!bad) bad = adapter_join(&joined, twice, factors, 2, err);
    if (!bad) {
        setup_for(&setup, "auto", m, &joined);
        setup.sizes.backward = 0;
        bad = lora_open(&l, &setup, err) || fill_pack(&p, 0, err) || lora_eval(l, &p, losses, best, err);
    }
    pack_free(&p);
    lora_close(l);
    adapter_free(joined);
    adapter_free(a);
    model_close(m);
    return bad ? -1 : 0;
}

/* That adapter as llama.cpp's file. */
static int export_adapter(const char *out, struct lora_error *err)
{
    struct model *m = NULL;
    struct adapter *a = NULL;
    char *path = path_join(out, "adapter.gguf", err);
    int bad = !path || model_open(&m, GOLDENS "lora-grad/llama/model", err)
           || adapter_read(&a, GOLDENS "lora-grad/llama/patterns/adapter", &m->config, err)
           || make_directory(out, err) || adapter_write_gguf(a, &m->config, path, err);
    free(path);
    adapter_free(a);
    model_close(m);
    return bad ? -1 : 0;
}

static int source_row(void *ctx, int id, int layer, int row, float *out, struct lora_error *err)
{
    const struct weight *w = model_weight(ctx, id, layer);
    (void)err;
    weight_decode(w, row, 0, w->cols, out);
    return 0;
}

/* Every weight trained for a step, and a model directory written. */
static int train_optim(int optim, const char *out, struct lora_error *err)
{
    static const struct lora_hyper hyper = {1e-3, 0.9, 0.999, 1e-8, 0.01, 1};
    struct model *m = NULL;
    struct lora *l = NULL;
    struct lora_setup setup;
    struct pack p = {0};
    double losses[32], norm;
    int bad = model_open(&m, GOLDENS "forward/bf16-oldconfig/model", err);
    if (!bad) {
        setup_for(&setup, "auto", m, NULL);
        setup.optim = optim;
        setup.page_directory = scratch;
        bad = lora_open(&l, &setup, err) || fill_pack(&p, -1, err)
           || lora_train(l, &p, 0.125, losses, NULL, err) || lora_step(l, &hyper, &norm, err)
           || make_directory(out, err) || model_write(&m->config, out, TYPE_BF16, source_row, m, err);
    }
    pack_free(&p);
    lora_close(l);
    model_close(m);
    return bad ? -1 : 0;
}

static int train_full(const char *out, struct lora_error *err) { return train_optim(OPTIM_ADAMW, out, err); }
static int train_8bit(const char *out, struct lora_error *err) { return train_optim(OPTIM_ADAMW8BIT, out, err); }
static int train_paged(const char *out, struct lora_error *err) { return train_optim(OPTIM_PAGED_ADAMW, out, err); }

/* A tokenizer of bytes, and rows in every kind of file, under the scratch directory. */
static void put_words(void)
{
    static const char *const files[] = {
        "tokenizer_config.json", "{\"eos_token\":\"<|im_end|>\"}",
        "rows.jsonl", "{\"text\":\"a\",\"label\":\"ab\"}\n{\"text\":\"b\",\"label\":\"ba\"}\n{\"text\":\"c\",\"label\":\"a\"}\n",
        "rows.csv", "prompt,completion\n\"a, b\",ab\nb,\"a\"\nba,b\n",
        "rows.json", ("[{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]},"
                     "{\"messages\":[{\"role\":\"assistant\",\"content\":\"ab\"}]}]") };
    FILE *f;
    int i, rest = 0;
    make_directory(in_scratch("words"), NULL);
    for (i = 0; i < 8; i += 2) {
        char name[64];
        snprintf(name, sizeof name, "words/%s", files[i]);
        if (!(f = fopen(in_scratch(name), "wb"))) return;
        fputs(files[i + 1], f);
        fclose(f);
    }
    if (!(f = fopen(in_scratch("words/tokenizer.json"), "wb"))) return;
    fputs("{\"added_tokens\":[{\"id\":256,\"content\":\"<|im_start|>\",\"special\":true},{\"id\":257,\"content\":"
          "\"<|im_end|>\",\"special\":true}],\"normalizer\":null,\"post_processor\":null,\"pre_tokenizer\":{\"type\":"
          "\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},\"decoder\":{\"type\":\"ByteLevel\"},"
          "\"model\":{\"type\":\"BPE\",\"vocab\":{", f);
    for (i = 0; i < 256; i++) {             /* GPT-2's characters for bytes */
        int c = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174 ? i : 256 + rest++;
        fputs(i ? ",\"" : "\"", f);
        if (c == '"' || c == '\\') fputc('\\', f);
        if (c >= 128) fputc(0xc0 | c >> 6, f);
        fputc(c >= 128 ? 0x80 | (c & 63) : c, f);
        fprintf(f, "\":%d", i);
    }
    fputs("},\"merges\":[]}}", f);
    fclose(f);
}

/* Those rows, rendered and tokenised, a part of them split off, and what eval and generate ask for. */
static int read_rows(const char *out, struct lora_error *err)
{
    struct data_options o;
    struct tokenizer *t = NULL;
    struct dataset d, e;
    struct ids ids = {0};
    struct row row = {0};
    char paths[4000], *prompt = NULL;
    int i, bad;
    (void)out;
    memset(&o, 0, sizeof o);
    memset(&d, 0, sizeof d);
    memset(&e, 0, sizeof e);
    snprintf(paths, sizeof paths, "%s,%s,%s", in_scratch("words/rows.jsonl"), in_scratch("words/rows.csv"),
             in_scratch("words/rows.json"));
    o.prompt_template = "{labels} {text}";
    bad = tokenizer_open(&t, in_scratch("words"), err) || !(o.chat = chat_find("chatml", err));
    o.tokenizer = t;
    if (!bad) bad = data_read_split(&d, 0.5, &e, paths, &o, err) || data_label_ids(&o, "ab", &ids, err);
    o.labels = (const char *const *)d.labels;
    o.n_labels = d.n_labels;
    if (!bad) bad = !(prompt = data_prompt(&o, o.prompt_template, "b", err));
    for (i = 0; i < d.n && !bad; i++) bad = data_row(&d, i, &row, err);
    for (i = 0; i < e.n && !bad; i++) bad = data_row(&e, i, &row, err);
    row_free(&row);
    data_free(&e);
    data_free(&d);
    ids_free(&ids);
    free(prompt);
    tokenizer_close(t);
    return bad ? -1 : 0;
}

/* ---- the program's own training ---- */

#ifdef HAVE_WRAP
static void put_rows(const char *name)
{
    FILE *f = fopen(in_scratch(name), "w");
    if (!f) return;
    fputs("{\"input_ids\": [1, 26, 50, 58, 60, 9], \"labels\": [-100, -100, -100, 58, 60, 9]}\n"
          "{\"input_ids\": [1, 26, 33, 54, 54, 57, 3], \"labels\": [-100, -100, -100, -100, 54, 57, 3]}\n"
          "{\"input_ids\": [4, 8, 15, 16, 23, 42]}\n", f);
    fclose(f);
}

/* `lora train` in this process, its words to a file; the last lines there must be the contract's. */
static int train_job(const char *out, struct lora_error *err)
{
    static char words[][32] = {
        "--model", GOLDENS "train/model", "--data", "", "--eval-data", "", "--out", "", "--max-steps", "2",
        "--batch-size", "2", "--save-steps", "1", "--eval-steps", "1",
        "--lora-r", "256", "--optim", "adamw8bit", "--threads", "1", "--max-memory", "1G", "--load-best", "--tokens-per-pack", "8"};
    enum { WORDS = sizeof words / sizeof *words };
    char *argv[WORDS + 1], data[600], log[600], line[1024], last[1024] = "", target[600];
    int i, code, screen, to, was = memory.on, written = writing.on;
    FILE *f;
    memory.on = writing.on = 0;
    snprintf(data, sizeof data, "%s/rows.jsonl", scratch);
    snprintf(log, sizeof log, "%s/log", scratch);
    snprintf(target, sizeof target, "%s", out);
    for (i = 0; i < WORDS; i++) argv[i] = words[i];
    argv[WORDS] = NULL;
    argv[3] = argv[5] = data;
    argv[7] = target;
    fflush(stderr);
    screen = dup(2);
    remove(log);
    to = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(to, 2);
    close(to);
    memory.on = was;
    writing.on = written;
    code = job_run(&job_train, WORDS, argv);
    memory.on = writing.on = 0;
    fflush(stderr);
    dup2(screen, 2);
    close(screen);
    if (code == EXIT_DONE) return 0;
    f = fopen(log, "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, "hint: ", 6)) strcpy(last, line);
    if (f) fclose(f);
    if (code == EXIT_FAILED && !strncmp(last, "lora: ", 6)) return fail(err, "lora train", "%s", last);
    fail(err, "", "exit status %d, and last: %s", code, last);
    return -1;
}

/* ---- what must hold after a fault ---- */

/* A whole file's bytes, to be freed; NULL when it cannot be read. */
static unsigned char *bytes_of(const char *path, size_t *n)
{
    struct file_map f;
    unsigned char *copy;
    if (file_open(&f, path, NULL)) return NULL;
    copy = malloc(f.size + 1);
    if (copy) memcpy(copy, f.data, f.size);
    *n = f.size;
    file_close(&f);
    return copy;
}

/* Every file in `out` is the one that the undisturbed run wrote, and none is temporary (unless all
 * calls failed that would have removed it). metrics.jsonl grows by lines, and times stand in it and in
 * run.json: those are not compared. How many there are. */
static int whole_files(const char *out, const char *clean, long nth, int after)
{
    DIR *d = opendir(out);
    struct dirent *e;
    int files = 0;
    while (d && (e = readdir(d))) {
        char a[1024], b[1024];
        unsigned char *x, *y;
        size_t nx = 0, ny = 0;
        if (e->d_name[0] == '.') continue;
        if (strstr(e->d_name, ".tmp") || strstr(e->d_name, ".unfinished")) {
            CHECK(after, "fault %ld left %s", nth, e->d_name);
            continue;
        }
        if (snprintf(a, sizeof a, "%s/%s", out, e->d_name) >= (int)sizeof a
            || snprintf(b, sizeof b, "%s/%s", clean, e->d_name) >= (int)sizeof b) continue;
        if (is_directory(a)) {
            files += whole_files(a, b, nth, after);
            continue;
        }
        files++;
        if (!strcmp(e->d_name, "metrics.jsonl") || !strcmp(e->d_name, "run.json")) continue;
        x = bytes_of(a, &nx);
        y = bytes_of(b, &ny);
        CHECK(x && y && nx == ny && !memcmp(x, y, nx), "fault %ld: %s is not whole", nth, e->d_name);
        free(x);
        free(y);
    }
    if (d) closedir(d);
    return files;
}

static int lowest_descriptor(void)
{
    int fd = open("/dev/null", O_RDONLY);
    if (fd >= 0) close(fd);
    return fd;
}

/* One run with the n-th call failing; 1 when it succeeded all the same. */
static int run_with(struct fault *f, scenario *run, const char *out, const char *clean, long nth, int after)
{
    struct lora_error err;
    long before = live;
    int descriptor = lowest_descriptor(), bad, files;
    memset(&err, 0, sizeof err);
    fault_set(f, nth, after);
    bad = run(out, &err);
    f->on = 0;
    CHECK(live == before, "fault %ld leaks %ld allocations", nth, live - before);
    CHECK(lowest_descriptor() == descriptor, "fault %ld leaks a file descriptor", nth);
    CHECK(f->count >= nth, "call %ld was not reached", nth);
    CHECK(bad == 0 || (bad == -1 && err.what[0]), "fault %ld gives %d without an error", nth, bad);
    files = whole_files(out, clean, nth, after);
    if (!bad) CHECK(files == whole_files(clean, clean, nth, after), "fault %ld: success, and a file is missing", nth);
    remove_tree(out, NULL);
    return !bad;
}

/* Of more calls than this only every second, third ... fails, unless LORA_FAULTS is set. */
/* bitsandbytes' checkpoint read and evaluated; a plain one quantised in memory; and written as such. */
static int quantised(const char *out, struct lora_error *err)
{
    static const struct quantise nf4 = {TYPE_NF4, 64, 1}, int8 = {TYPE_INT8, 0, 0};
    struct model *m = NULL, *plain = NULL;
    struct lora *l = NULL;
    struct lora_setup setup;
    struct pack p = {0};
    double losses[32];
    int bad = model_open(&m, GOLDENS "bnb/checkpoints/nf4-dq", err)
           || model_open(&plain, GOLDENS "forward/bf16-oldconfig/model", err);
    if (!bad) {
        setup_for(&setup, "auto", m, NULL);
        setup.sizes.backward = 0;
        bad = lora_open(&l, &setup, err) || fill_pack(&p, -1, err) || lora_eval(l, &p, losses, NULL, err)
           || make_directory(out, err)
           || model_write_quantised(&plain->config, out, TYPE_F32, &nf4, source_row, plain, 2, err)
           || model_quantise(plain, &int8, 2, err);
    }
    pack_free(&p);
    lora_close(l);
    model_close(m);
    model_close(plain);
    return bad ? -1 : 0;
}

enum { MANY = 150 };

/* Each call alone, then each with all that follow it. A file that cannot be mapped is read into memory,
 * and a row that is only shown (in two allocations) may be left out; no other fault may be survived. */
enum { SHOWN = 2 };
static void every_call(const char *name, const char *kind, struct fault *f, scenario *run)
{
    char test[128], out[600], clean[600];
    struct lora_error err;
    long total, mapped, n, step;
    int after, survived = 0;
    snprintf(test, sizeof test, "%s: every %s fails", name, kind);
    snprintf(out, sizeof out, "%s/out", scratch);
    snprintf(clean, sizeof clean, "%s/clean", scratch);
    test_begin(test);
    memset(&err, 0, sizeof err);
    mappings = 0;
    fault_set(f, 0, 0);
    CHECK(run(clean, &err) == 0, "undisturbed: %s: %s", err.what, err.where);
    f->on = 0;
    total = f->count;
    mapped = mappings;
    CHECK(total > 0, "nothing can fail");
    step = getenv("LORA_FAULTS") || total < MANY ? 1 : total / MANY + 1;
    for (after = 0; after < 2; after++)
        for (n = 1; n <= total; n += step) survived += run_with(f, run, out, clean, n, after);
    CHECK(survived <= (f == &memory ? mapped + SHOWN : 0), "%d faults went unnoticed, %ld files were mapped", survived, mapped);
    printf("  %ld calls; of %ld faults %d were survived\n", total, 2 * ((total + step - 1) / step), survived);
    remove_tree(clean, NULL);
}

static void written_through(const char *name, scenario *run, int least)
{
    char test[128], out[600];
    struct lora_error err;
    snprintf(test, sizeof test, "%s: what gets a name is on the disk", name);
    snprintf(out, sizeof out, "%s/out", scratch);
    test_begin(test);
    memset(&err, 0, sizeof err);
    memset(&through, 0, sizeof through);
    through.on = 1;
    CHECK(run(out, &err) == 0, "%s: %s", err.what, err.where);
    through.on = 0;
    CHECK(through.renames >= least, "%d names", through.renames);
    CHECK(!through.early, "%d of %d names before what they name", through.early, through.renames);
    CHECK(!through.late && !through.waits, "%d names of directories that may be lost", through.late + through.waits);
    remove_tree(out, NULL);
}

static void faults(void)
{
    written_through("an adapter written", train_auto, 2);
    written_through("an adapter exported", export_adapter, 1);
    written_through("a model written", train_full, 2);
    written_through("a model quantised", quantised, 2);
    put_rows("rows.jsonl");
    written_through("lora train, with checkpoints", train_job, 14);
    every_call("LoRA over the reference", "allocation", &memory, train_ref);
    every_call("LoRA over the best table", "allocation", &memory, train_auto);
    every_call("an adapter read and evaluated", "allocation", &memory, read_adapter);
    every_call("an adapter exported", "allocation", &memory, export_adapter);
    every_call("every weight trained, a model written", "allocation", &memory, train_full);
    every_call("moments in 8 bits", "allocation", &memory, train_8bit);
    every_call("moments in a file", "allocation", &memory, train_paged);
    every_call("rows of every kind of file", "allocation", &memory, read_rows);
    every_call("models quantised", "allocation", &memory, quantised);
    every_call("an adapter written", "write", &writing, train_auto);
    every_call("an adapter exported", "write", &writing, export_adapter);
    every_call("a model written", "write", &writing, train_full);
    every_call("a model quantised", "write", &writing, quantised);
    every_call("moments in a file", "write", &writing, train_paged);
    put_rows("rows.jsonl");
    every_call("lora train", "allocation", &memory, train_job);
    every_call("lora train", "write", &writing, train_job);
}
#else
static void faults(void)
{
    static scenario *const built[] = {train_ref, train_auto, read_adapter, export_adapter, train_full, train_8bit, train_paged, read_rows};
    (void)built;
    test_skip("failing allocations and writes", "this linker has no --wrap");
}
#endif

/* ---- files that end early, and damaged ones ---- */

struct damaged {
    const char *name, *from, *file;         /* the file of directory `from` that is damaged */
    int is_adapter;
    int header;                             /* safetensors: bytes change in the header alone, the rest is data */
};

static int opens(const struct damaged *d, const struct config *config, struct lora_error *err)
{
    struct model *m = NULL;
    struct adapter *a = NULL;
    int bad;
    memset(err, 0, sizeof *err);
    if (d->is_adapter) bad = adapter_read(&a, in_scratch("damaged"), config, err);
    else bad = model_open(&m, in_scratch("damaged"), err);
    adapter_free(a);
    model_close(m);
    return bad;
}

static void put_file(const char *name, const unsigned char *data, size_t n)
{
    char path[1024];
    FILE *f;
    snprintf(path, sizeof path, "%s/damaged/%s", scratch, name);
    remove(path);           /* some file systems flush a file that is cut to nothing and written anew */
    f = fopen(path, "wb");
    CHECK(f && fwrite(data, 1, n, f) == n, "cannot write %s", path);
    if (f) fclose(f);
}

static void copy_file(const char *from, const char *name)
{
    char path[1024];
    struct file_map f;
    snprintf(path, sizeof path, "%s%s/%s", GOLDENS, from, name);
    if (file_open(&f, path, NULL)) return;          /* a directory of another kind has no such file */
    put_file(name, f.data, f.size);
    file_close(&f);
}

static void damage(const struct damaged *d)
{
    static const unsigned char changes[] = {'"', '9', 0xff};
    char path[1024], test[128];
    unsigned char *data;
    struct model *base = NULL;
    struct lora_error err;
    struct file_map f;
    size_t i, limit;
    int c, refused = 0, tried = 0;
    snprintf(test, sizeof test, "%s: cut anywhere, any byte changed", d->name);
    test_begin(test);
    CHECK(model_open(&base, GOLDENS "lora-grad/llama/model", &err) == 0, "%s", err.what);
    make_directory(in_scratch("damaged"), NULL);
    copy_file(d->from, "config.json");
    copy_file(d->from, "model.safetensors");
    copy_file(d->from, "adapter_config.json");
    copy_file(d->from, "adapter_model.safetensors");
    CHECK(opens(d, &base->config, &err) == 0, "undamaged: %s: %s", err.what, err.where);
    snprintf(path, sizeof path, "%s%s/%s", GOLDENS, d->from, d->file);
    CHECK(file_open(&f, path, &err) == 0, "%s", err.what);
    data = malloc(f.size);
    memcpy(data, f.data, f.size);
    /* JSON may end in a line feed that nothing needs */
    limit = d->header ? f.size : f.size - 2;
    for (i = 0; i < limit; i += i < 200 ? 1 : i < 4000 ? 13 : 1009) {
        put_file(d->file, data, i);
        CHECK(opens(d, &base->config, &err) == -1 && err.what[0], "%s cut to %d bytes was read", d->file, (int)i);
    }
    limit = d->header ? 8 + (size_t)data[0] + ((size_t)data[1] << 8) : f.size;
    for (i = 0; i < limit; i++)
        for (c = 0; c < (int)sizeof changes; c++) {
            unsigned char kept = data[i];
            int bad;
            data[i] = changes[c];
            put_file(d->file, data, f.size);
            data[i] = kept;
            bad = opens(d, &base->config, &err);
            CHECK(bad == 0 || (bad == -1 && err.what[0]), "byte %d: no error text", (int)i);
            refused += bad != 0;
            tried++;
        }
    CHECK(refused > tried / 4, "only %d of %d changes were refused", refused, tried);
    printf("  %d of %d changed bytes were refused\n", refused, tried);
    free(data);
    file_close(&f);
    remove_tree(in_scratch("damaged"), NULL);
    model_close(base);
}

int main(void)
{
    static const struct damaged files[] = {
        {"config.json", "forward/bf16-oldconfig/model", "config.json", 0, 0},
        {"model.safetensors", "forward/bf16-oldconfig/model", "model.safetensors", 0, 1},
        {"adapter_config.json", "lora-grad/llama/patterns/adapter", "adapter_config.json", 1, 0},
        {"adapter_model.safetensors", "lora-grad/llama/qv-rslora/adapter", "adapter_model.safetensors", 1, 1},
    };
    const char *base = getenv("TMPDIR");
    size_t i;
    snprintf(scratch, sizeof scratch, "%s/lora-faults-XXXXXX", base && base[0] ? base : "/tmp");
    if (!mkdtemp(scratch)) {
        test_begin("a scratch directory");
        CHECK(0, "%s cannot be made", scratch);
        return test_end();
    }
    put_words();
    faults();
    for (i = 0; i < sizeof files / sizeof *files; i++) damage(&files[i]);
    remove_tree(scratch, NULL);
    return test_end();
}
