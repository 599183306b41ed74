/* main.c - finds the job by its word. */
#include "jobs/job.h"
#include "lora.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* In the order in which `lora help` lists them. */
static const struct job *const jobs[] = {
    &job_tokenize,
    &job_render,
    &job_inspect,
    &job_train,
    &job_plan,
    &job_eval,
    &job_generate,
    &job_gradients,
    &job_quantize,
    &job_merge,
    &job_export,
    &job_init,
    &job_verify,
    &job_backends,
    &job_bench,
    NULL
};

/* Words of the contract that a later version has. */
static const char *const later[] = { "data", "compare" };

static void list_jobs(FILE *f)
{
    int i;
    fputs("lora fine-tunes Llama-family models with LoRA on ordinary computers.\n\n"
          "usage: lora JOB [options]\n\n", f);
    for (i = 0; jobs[i]; i++) fprintf(f, "  %-10s %s\n", jobs[i]->name, jobs[i]->summary);
    fputs("\n`lora help JOB` lists a job's options; `lora --version` says which version this is.\n", f);
}

static const struct job *find_job(const char *name)
{
    int i;
    for (i = 0; jobs[i]; i++)
        if (!strcmp(jobs[i]->name, name)) return jobs[i];
    return NULL;
}

static int unknown_job(const char *name)
{
    const char *names[sizeof jobs / sizeof *jobs + 1];
    int n = 0;
    size_t i;
    for (i = 0; i < sizeof later / sizeof *later; i++)
        if (!strcmp(later[i], name)) {
            fprintf(stderr, "lora: a job that this version does not have yet: %s\n", name);
            return EXIT_USAGE;
        }
    for (; jobs[n]; n++) names[n] = jobs[n]->name;
    names[n++] = "help";
    list_jobs(stderr);
    fprintf(stderr, "\nlora: unknown job: %s\nhint: did you mean %s?\n", name, nearest_word(name, names, n));
    return EXIT_USAGE;
}

static int run(int argc, char **argv)
{
    const struct job *job;
    char help[] = "--help", *words[] = { help };
    if (argc < 2) {
        list_jobs(stderr);
        fputs("\nlora: no job\n", stderr);
        return EXIT_USAGE;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("lora %s\n", LORA_VERSION);
        return EXIT_DONE;
    }
    if (!strcmp(argv[1], "help") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        if (argc < 3 || !strcmp(argv[2], "help") || argv[2][0] == '-') {
            list_jobs(stdout);
            return EXIT_DONE;
        }
        job = find_job(argv[2]);
        return job ? job_run(job, 1, words) : unknown_job(argv[2]);
    }
    job = find_job(argv[1]);
    return job ? job_run(job, argc - 2, argv + 2) : unknown_job(argv[1]);
}

int main(int argc, char **argv)
{
    int code, lost;
#ifdef SIGXFSZ
    signal(SIGXFSZ, SIG_IGN);   /* a file that may not grow is an error of write(), which is said */
#endif
    code = run(argc, argv);
    lost = fflush(stdout) ? errno : 0;
    if ((lost || ferror(stdout)) && code == EXIT_DONE) {
        fprintf(stderr, "lora: cannot write: standard output%s%s\n", lost ? ": found " : "", lost ? strerror(lost) : "");
        code = EXIT_FAILED;
    }
    return code;
}
