/* output.c - a directory that appears whole or not at all: written under another name, then renamed; and what no output may
 * take the place of. */
#define _XOPEN_SOURCE 700           /* realpath() */
#include "job.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOCK ".lock"

static int is_empty(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    int empty = d != NULL;
    while (d && empty && (e = readdir(d))) empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
    if (d) closedir(d);
    return empty;
}

int output_check(const char *dir, struct lora_error *err)
{
    if (!file_exists(dir) || (is_directory(dir) && is_empty(dir))) return 0;
    fail(err, "cannot write over other files", "%s", dir);
    return expected(err, "a new or an empty directory for --out");
}

int output_begin(struct output *o, const char *dir, struct lora_error *err)
{
    size_t n = strlen(dir);
    memset(o, 0, sizeof *o);
    while (n > 1 && dir[n - 1] == '/') n--;
    if (output_check(dir, err)) return -1;
    if (!(o->path = new_string_n(dir, n, err))
        || !(o->temporary = new_array(n + sizeof UNFINISHED, 1, err))) return -1;
    sprintf(o->temporary, "%s" UNFINISHED, o->path);
    if (file_exists(o->temporary) && remove_tree(o->temporary, err)) return -1;
    return make_directory(o->temporary, err);
}

int output_commit(struct output *o, struct lora_error *err)
{
    const char *slash = strrchr(o->path, '/');
    char *parent = slash ? new_string_n(o->path, (size_t)(slash - o->path) + 1, err) : new_string(".", err);
    int bad = !parent || directory_sync(o->temporary, err);
    if (!bad && rename(o->temporary, o->path)) {
        fail(err, "cannot name", "%s", o->path);
        bad = found(err, "%s", strerror(errno));
    }
    if (!bad) {
        free(o->temporary);
        o->temporary = NULL;
        bad = directory_sync(parent, err);
    }
    free(parent);
    return bad ? -1 : 0;
}

void output_end(struct output *o)
{
    if (o->temporary) remove_tree(o->temporary, NULL);
    free(o->temporary);
    free(o->path);
    memset(o, 0, sizeof *o);
}

/* Is one of the inputs, a name or several with commas between them, taken by OUT? */
static int any_taken(const char *inputs, const char *out, int (*takes)(const char *out, const char *input), struct lora_error *err)
{
    int any = takes(out, inputs);
    for (; !any && strchr(inputs, ','); inputs += strcspn(inputs, ",") + 1) {
        char *name = new_string_n(inputs, strcspn(inputs, ","), err);
        if (!name) return -1;
        any = takes(out, name);
        free(name);
    }
    return any || takes(out, inputs);
}

static int spares(const char *input, const char *what, const char *out, const char *instead,
                  int (*takes)(const char *out, const char *input), struct lora_error *err)
{
    int any = input && out ? any_taken(input, out, takes, err) : 0;
    if (any <= 0) return any;
    fail(err, "cannot write over what is read", "%s", out);
    expected(err, "another %s", instead);
    return found(err, "the %s", what);
}

int output_spares(const char *input, const char *what, const char *out, const char *instead, struct lora_error *err)
{
    return spares(input, what, out, instead, same_file, err);
}

/* ---- a directory of a run ---- */

const char *const run_files[] = {
    "run.json", "metrics.jsonl",
    /* these are not of runs alone */
    "adapter_config.json", "adapter_model.safetensors", "model.safetensors", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "tokenizer.model", NULL
};

static int is_run_file(const char *name, size_t n)
{
    int i;
    for (i = 0; run_files[i]; i++) if (strlen(run_files[i]) == n && !strncmp(run_files[i], name, n)) return 1;
    return 0;
}

/* Is the input DIR itself, or among what a run there writes and clears? */
static int run_takes(const char *dir, const char *input)
{
    char in[PATH_MAX], out[PATH_MAX];
    const char *name = in;
    if (!realpath(input, in) || !realpath(dir, out) || strncmp(in, out, strlen(out))) return 0;
    name += strlen(out);
    return !*name || (*name == '/' && (!strncmp(name + 1, "checkpoint-", 11) || is_run_file(name + 1, strcspn(name + 1, "/"))));
}

int output_spares_run(const char *input, const char *what, const char *dir, struct lora_error *err)
{
    return spares(input, what, dir, "directory for --out", run_takes, err);
}

int output_lock(const char *dir, struct lora_error *err)
{
    struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    char *path = path_join(dir, LOCK, err);
    int fd = path ? open(path, O_RDWR | O_CREAT, 0666) : -1;
    if (path && fd < 0) {
        fail(err, "cannot write", "%s", path);
        found(err, "%s", strerror(errno));
    }
    free(path);
    if (fd < 0 || !fcntl(fd, F_SETLK, &whole) || (errno != EACCES && errno != EAGAIN)) return fd;  /* or it knows no locks */
    close(fd);
    fail(err, "another run is writing here", "%s", dir);
    return hint(err, "wait for it, stop it, or take another directory for --out");
}

void output_unlock(const char *dir, int fd)
{
    char path[PATH_MAX];        /* no allocation: it would leave the file where it fails */
    if (snprintf(path, sizeof path, "%s/" LOCK, dir) < (int)sizeof path) unlink(path);
    close(fd);
}

/* ---- a file of results ---- */

/* Does the name end like this? */
static int ends(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

int output_spares_models(const char *out, const char *own, struct lora_error *err)
{
    const char *slash = out ? strrchr(out, '/') : NULL, *name = slash ? slash + 1 : out;
    int is_one;
    if (!name) return 0;
    is_one = is_run_file(name, strlen(name)) || !strcmp(name, "optimizer.safetensors") || !strcmp(name, "trainer_state.json")
             || (ends(name, ".safetensors") && !strncmp(name, "model-", 6)) || ends(name, ".safetensors.index.json");
    if (!own || !ends(name, own)) is_one |= ends(name, ".safetensors") || ends(name, ".gguf");
    if (!is_one || !file_exists(out)) return 0;
    fail(err, "cannot write over a file of a model, an adapter or a run", "%s", out);
    return expected(err, "another file for the results");
}
