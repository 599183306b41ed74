/* session.h - what the jobs over a model open: model, tokenizer, chat template, adapter, kernels. */
#ifndef SESSION_H
#define SESSION_H

#include "job.h"
#include "../data.h"
#include "../lora.h"

/* The options of rows, a member of the settings of train, eval and gradients. */
struct data_settings {
    const char *data, *text_column, *label_column;
    char csv_delimiter;         /* 0: a comma */
    int max_length, on_overlong;
};
#define DATA_DEFAULTS { NULL, NULL, NULL, 0, 0, OVERLONG_ERROR }
/* Rows of an option table for the member `field` of struct S. */
#define DATA_OPTIONS(S, field) \
    { "data", "train-data|dataset", OPTION_TEXT, offsetof(S, field.data), NULL, "FILE[,FILE]", \
      "rows: JSONL, JSON, CSV or text", 0, 0 }, \
    { "text-column", NULL, OPTION_TEXT, offsetof(S, field.text_column), NULL, "NAME", \
      "key or column of the text (default: text, or document)", 0, 0 }, \
    { "label-column", NULL, OPTION_TEXT, offsetof(S, field.label_column), NULL, "NAME", \
      "key or column of the label (default: label, or summary)", 0, 0 }, \
    { "csv-delimiter", NULL, OPTION_CHARACTER, offsetof(S, field.csv_delimiter), NULL, "C", \
      "what parts the columns of a .csv file: one character, or tab (default: a comma)", 0, 0 }, \
    { "max-length", "max-seq-length|cutoff-len", OPTION_INT, offsetof(S, field.max_length), NULL, "N", \
      "most tokens of a row (default: the model's positions)", 0, 1 << 30 }, \
    { "on-overlong", NULL, OPTION_CHOICE, offsetof(S, field.on_overlong), "error|truncate|drop", NULL, \
      "what to do with longer rows", 0, 0 }

struct session {
    struct model *model;
    struct quantise base;               /* how its linears are quantised; type 0: they are not */
    int base_given;                     /* the options say how, so run.json does not */
    int quantised_here;                 /* while loading: the file has the original weights */
    struct tokenizer *tokenizer;        /* NULL: the model has none, rows of input_ids work */
    const struct chat_template *chat;   /* NULL: the model has no template and none was named */
    struct adapter *adapter;            /* NULL: none. Several are joined into one */
    const struct kernels *kernels;
    int compute;                        /* how they multiply */
    const char *prompt_template;        /* NULL: the form's default */
    char **labels;                      /* of the adapter's run.json, or NULL */
    int n_labels;
    int threads;
    uint64_t seed;
    size_t max_memory;
    char *from_run;                     /* owned: the prompt template when it is run.json's */
};

/* SESSION_RAW: no chat template is needed; SESSION_SHAPE: config.json stands for the model, there are no weights. */
enum { SESSION_RAW = 1, SESSION_SHAPE = 2 };
/* Opens all of it. adapters: words DIR or DIR=SCALE, or NULL. The first adapter's run.json, if there
 * (that of a checkpoint is the one beside it), gives what the options leave open: "base_quantization", "chat_template" (a name), "prompt_template" and
 * "labels" (an array); what was taken is said on stderr. A model's own chat template that is not known is refused
 * unless it is raw or --chat-template is given. An adapter that changes nothing is warned of, and one that was
 * trained with other weights, another tokenizer or another template. Close it also after a failure. */
int session_open(struct session *s, const struct common *c, const struct option_list *adapters,
                 int how, struct lora_error *err);
void session_close(struct session *s);
/* The tokenizer that the model brings; NULL: it has none. */
int session_tokenizer(struct tokenizer **t, const struct model *m, struct lora_error *err);
/* What goes beside the weights of a model that was made of m: its tokenizer, if there is one, and generation_config.json. */
int session_save_beside(const struct model *m, const struct tokenizer *t, const char *dir, struct lora_error *err);
/* A warning of keys of its patterns that match nothing; and adapter_read() with all warnings. */
void warn_unmatched(const struct adapter *a, const char *dir);
int session_read_adapter(struct session *s, struct adapter **a, const char *dir, struct lora_error *err);

/* ---- base.c: how the linears of the base are quantised; struct quantise with type 0: they are not ---- */

/* The types that options choose, in the order of the choices. */
#define DTYPES "f32|bf16|f16"
#define QUANT_TYPES "nf4|fp4|int8"
extern const int dtypes[], quant_types[];
/* What the options ask for; those that contradict each other are wrong usage. */
int base_asked(struct quantise *how, const struct base_settings *b, struct lora_error *err);
/* That type, with the block size and double quantisation of the options. */
int base_quantise(struct quantise *how, int type, const struct base_settings *b, struct lora_error *err);
void base_of(struct quantise *how, const struct model *m);      /* what the model has */
int base_same(const struct quantise *a, const struct quantise *b);
struct json;
int base_take(struct quantise *how, const struct json *run, const char *path, struct lora_error *err);  /* of run.json */
void base_put(struct text *t, const struct quantise *how);      /* as it stands there */
/* Quantises the model and says so. One that is quantised already stays: options that ask for something
 * else are wrong usage, an adapter that was trained over something else is warned of. */
int base_load(struct model *m, const struct quantise *asked, const struct base_settings *b, int threads,
              struct lora_error *err);
/* The linears that are or would be quantised: how many, their elements and bytes. */
size_t base_linears(const struct model *m, size_t *elements, size_t *bytes);
size_t base_heap(const struct model *m);        /* bytes of its weights that lie in the heap: not used in the file */
size_t base_bytes(const struct weight *w);                      /* with its scales */
char *base_text(char *text, size_t n, const struct quantise *how);     /* for people; 80 bytes do */

/* ---- shape.c: a model of which there is only a config.json ---- */

/* Is the path such a file, or a directory with one and without weights? */
int shape_alone(const char *path);
/* The model without weights: rows and columns of its tensors, said to be BF16 (linears: as base says, if
 * it is not NULL), their data NULL, and what their q points at never to be read. */
int shape_open(struct model **m, const char *path, const struct quantise *base, struct lora_error *err);

/* ---- identity.c: what travels with an adapter, as hashes of what it does and not of a file's bytes, so
 * that one model as a directory and as GGUF has the same ---- */

/* Of the tokens' texts, EOS, and the ids of texts that tokenizers cut differently. */
int tokenizer_identity(const struct tokenizer *t, uint64_t *hash, struct lora_error *err);
/* Of talks as they are rendered with the BOS and EOS of t, which may be NULL. */
int chat_identity(const struct chat_template *chat, const struct tokenizer *t, uint64_t *hash, struct lora_error *err);
/* Of the model's own template, which *own is if it is a known one (else the hash is of its text); NULL and
 * 0 without one. */
int template_identity(const struct tokenizer *t, const struct chat_template **own, uint64_t *hash,
                      struct lora_error *err);

/* What lora_open() takes from the session, over this adapter or, where it is NULL, none; sizes are left to be said. */
struct lora_setup session_setup(const struct session *s, struct adapter *const *adapter);
/* The memory to run it forwards (sizes.backward 0), with the adapter as number 0 if there is one. */
int session_lora(const struct session *s, const struct lora_sizes *sizes, struct lora **l, struct lora_error *err);
/* The adapter that segments name: 0, or -1 without one. */
int session_adapter(const struct session *s);

/* Reading rows as the session and its options say. */
void session_data_options(const struct session *s, const struct data_settings *d, struct data_options *o);
/* Says so where rows that were read have no use for the prompt template. */
void session_note_prompt(const struct session *s, const struct dataset *d);
/* Lines of status: how many rows, what was left out, how many tokens are targets. */
void report_rows(const char *name, const struct data_report *r);

#endif
