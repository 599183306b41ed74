/* job.h - what the jobs share: options from words, status on stderr, errors as the contract has them.
 * Jobs are the only code that prints for users. */
#ifndef JOB_H
#define JOB_H

#include "../util.h"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

enum option_type {
    OPTION_FLAG,        /* int: --name, --name=true|false|on|off; config: true */
    OPTION_INT,         /* int */
    OPTION_LONG,        /* long long */
    OPTION_NUMBER,      /* double */
    OPTION_SIZE,        /* size_t: 500M, 4G, 1.5GiB, 123456 */
    OPTION_TEXT,        /* const char * */
    OPTION_CHOICE,      /* int: index into choices "a|b|c" */
    OPTION_CHARACTER,   /* char: one, or the word tab */
    OPTION_LIST,        /* struct option_list: may be given several times */
    OPTION_LATER        /* a name of the contract that a later version has: refused by name */
};

struct option_list { const char **v; int n; };

/* One row an option. A job has a static table of these, over a struct of its settings; defaults are
 * what the struct holds before parsing. */
struct option {
    const char *name;           /* "lora-r": typed as --lora-r, --lora_r */
    const char *aliases;        /* "r|rank": other names, | between, or NULL */
    int type;
    size_t offset;              /* offsetof(struct SETTINGS, field) */
    const char *choices;        /* OPTION_CHOICE: "error|truncate|drop" */
    const char *value;          /* what stands for the value in the help: "DIR", "N" */
    const char *help;           /* one line */
    double low, high;           /* numbers: inclusive bounds, when low < high */
};

struct job {
    const char *name;           /* "train" */
    const char *summary;        /* one line for `lora help` */
    const char *usage;          /* "--model M --data D --out DIR [options]" */
    const struct option *options;   /* ended by a row with name NULL; or NULL: it has none */
    const struct option *more;      /* a second table over the same struct (shared options), or NULL */
    size_t size;                    /* of that struct, the settings, */
    const void *defaults;           /* and what it holds where the user says nothing */
    /* The work, with settings of its own to change. The exit status, or -1 with an error, which is printed then. */
    int (*run)(void *settings, struct lora_error *err);
};
extern const struct job job_train, job_eval, job_generate, job_tokenize, job_render, job_gradients,
    job_inspect, job_plan, job_verify, job_init, job_quantize, job_merge, job_export, job_backends, job_bench;

/* Reads the words after the job's name, and --config FILE's lines (the command line wins), into settings; runs the
 * job; prints what went wrong as the contract has it ("lora: WHAT: WHERE: expected X, found Y", then the hint).
 * The exit status: EXIT_USAGE also where WHAT is "cannot use the option" or "wrong value", which is what library code
 * calls a value that cannot be right, and 130 or 143 where it is stop_check()'s. --help and -h need no row. --config is
 * the row of common_options. */
int job_run(const struct job *job, int argc, char **argv);

/* The quantisation of the frozen base: -1, for the block 0, is what the user left open. */
struct base_settings { int in_4bit, in_8bit, quant_type, double_quant, block_size; };
#define BASE_DEFAULTS { -1, -1, -1, -1, 0 }

/* The options that all jobs over a model share: a part of their settings, laid as the FIRST member
 * so that common_options[] offsets fit. */
struct common {
    const char *model, *backend, *config;
    const char *chat_template, *prompt_template;
    int compute;                /* enum compute of kernels.h */
    int threads;                /* 0: the cores this process may use */
    long long seed;
    size_t max_memory;          /* 0: three quarters of what is available */
    struct base_settings base;
};
#define COMMON_DEFAULTS { NULL, "auto", NULL, NULL, NULL, 0, 0, 0, 0, BASE_DEFAULTS }
extern const struct option common_options[];

/* Word i of an option's choices, and its length; NULL: there is none of that number. */
const char *option_choice(const struct option *o, int i, size_t *n);
/* The word of words[n] that is nearest to name, for "did you mean"; NULL if n is 0. */
const char *nearest_word(const char *name, const char *const *words, int n);
/* -1 where no table can have this name. A backend that is known, or a path, but not usable here is no wrong usage. */
int job_check_backend(const char *name, struct lora_error *err);
/* A usage error: the same form, EXIT_USAGE. */
int job_usage_error(const struct job *job, const char *format, ...) PRINTF_LIKE(2, 3);
/* A line of status on stderr. */
void status(const char *format, ...) PRINTF_LIKE(1, 2);
/* A progress line that replaces itself on a terminal and is nothing elsewhere. done: ends it. */
void progress(const char *format, ...) PRINTF_LIKE(1, 2);
void progress_done(void);

int usable_threads(int asked);          /* 0 -> cores of this process's affinity mask */
/* max_memory, or three quarters of what is available where the table's buffers lie: 0 where that is not known. */
struct kernels;
size_t memory_limit(const struct common *c, const struct kernels *k);

/* SIGINT, SIGTERM and SIGHUP, unless that is ignored, set a flag and write note to stderr, unless it is NULL; a second one, two seconds later or more, ends the
 * program. stop_signal(): 0, or which, stop_name() its name. stop_check(): -1 with an error, for work that is
 * left through its errors, so that what is half written goes; job_run() knows it. */
void stop_install(const char *note);
int stop_signal(void);
const char *stop_name(void);
int stop_check(struct lora_error *err);

/* A directory that appears whole or not at all. begin: DIR must be new or empty; write into o->temporary, which is
 * DIR.unfinished; commit makes it durable and gives it its name; end frees, and removes what was not committed. */
#define UNFINISHED ".unfinished"
struct output { char *path, *temporary; };
int output_begin(struct output *o, const char *dir, struct lora_error *err);
int output_check(const char *dir, struct lora_error *err);      /* new or empty? For jobs that work long before they begin */
int output_commit(struct output *o, struct lora_error *err);
void output_end(struct output *o);
/* An OUT that is INPUT itself, which is being read, is refused; INPUT may be several with commas between them, and either NULL.
 * what: what INPUT is ("model"); instead: what is expected ("file for --out"). */
int output_spares(const char *input, const char *what, const char *out, const char *instead, struct lora_error *err);
/* So is a DIR for a run that has INPUT among the files that the run writes, or clears from an older one. */
int output_spares_run(const char *input, const char *what, const char *dir, struct lora_error *err);
/* DIR is this run's until unlock, or until the process ends: a descriptor, or -1 where another run has it. */
int output_lock(const char *dir, struct lora_error *err);
void output_unlock(const char *dir, int fd);
/* A file of results that has the name of what models, adapters and runs are made of, and is there, is refused too; NULL is fine.
 * own: names that end like this are what the job writes (".gguf"), or NULL. */
int output_spares_models(const char *out, const char *own, struct lora_error *err);
/* What a run leaves in its directory beside checkpoints, NULL at the end; the first RUN_RECORDS are of runs alone. */
extern const char *const run_files[];
enum { RUN_RECORDS = 2 };

/* The error of a write to stdout, with errno's reason; -1. */
int stdout_failed(struct lora_error *err);
/* JSON for --json: writes text to FILE, or to stdout for "-". */
int job_write_json(const char *path, const struct text *json, struct lora_error *err);

#endif
