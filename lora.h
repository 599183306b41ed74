/* lora.h - the way in: load a model, adapt it, step, save, free.
 *
 * A program that trains (docs/ has the shortest complete one):
 *
 *     model_open(&m, "path", &err);                              the base, mapped
 *     adapter_new(&a, &m->config, &settings, &err);              which linears, what rank
 *     adapter_init(a, seed, &err);
 *     lora_open(&l, &setup, &err);                               memory, on a table of kernels
 *     for each step:
 *         for each pack: pack_row(...)..., pack_finish(...), lora_train(l, &pack, 1.0 / targets, ...)
 *         lora_step(l, &hyper, &norm, &err);
 *     lora_get(l, LORA_PARAMETERS, values); adapter_write(a, values, "out", ...);
 *     lora_close(l); adapter_free(a); model_close(m);
 *
 * In C++ it is included between extern "C" { and }.
 *
 * Who owns what. A lora uses the model's bytes where they lie: close it before its model. Of the setup all else is copied
 * when it is opened, the adapters' values too, so that these are as before after training: lora_get() brings the new
 * ones. Packs, losses and lists of values are the caller's. A lora is for one thread at a time, which starts others itself.
 *
 * Errors. A function with `err` (may be NULL) returns 0, or fills it and returns -1, or NULL for a pointer. Checked is what
 * data, settings and earlier failures may bring: sizes, ids, numbers of enums, kernels, a model or adapters that are NULL,
 * adapters of another model. Not checked, as usual in C: other pointers, lengths of arrays, what was closed already. */
#ifndef LORA_H
#define LORA_H

#include "adapter.h"
#include "kernels.h"
#include "model.h"
#include "pack.h"

#define LORA_VERSION "0.1.0"

/* The largest that will be asked for; what the plan is made from. */
struct lora_sizes {
    int N;              /* tokens of a pack */
    int S, T, U;        /* segments, targets, rows with a target */
    int positions;      /* largest position + 1 */
    int keys;           /* rows of the key/value cache, 0: keys live in the pack (training, eval) */
    int backward;       /* 0: forward only */
    int keep;           /* layers whose activations are kept for the backward pass of a pack of N tokens (the
                           topmost ones); the others are computed again. A smaller pack keeps more. -1: all */
};

/* Raises N, S, T, U and positions to what this finished pack needs. */
void lora_sizes_raise(struct lora_sizes *sizes, const struct pack *p);

/* How the moments of AdamW are kept.
 * OPTIM_ADAMW8BIT: in 8 bits (kernels.h: adamw8bit), as bitsandbytes does: a tensor of fewer than
 * MOMENT_8BIT_LEAST numbers keeps its moments as they are.
 * OPTIM_PAGED_ADAMW: OPTIM_ADAMW to the bit, but the moments lie in a mapped file, so that the system
 * can write them out when memory is short. The file has no name while it is used. Not on tables with
 * memory of their own. */
enum lora_optim { OPTIM_ADAMW, OPTIM_ADAMW8BIT, OPTIM_PAGED_ADAMW };
#define MOMENT_8BIT_LEAST 4096

struct lora_setup {
    const struct kernels *kernels;      /* of kernels_find(); copied, but not what its `below` points at */
    int threads;                        /* from 1 */
    int compute;                        /* enum compute of kernels.h; adapters, and all weights under `full`, are f32 */
    const struct model *model;
    struct adapter *const *adapters;    /* [n_adapters] of this model, what segments name by index; values must be there */
    int n_adapters;                     /* training: exactly 1 adapter, or 0 with full; else any number */
    int full;                           /* every weight is trained */
    uint64_t seed;                      /* of dropout masks */
    int optim;                          /* enum lora_optim */
    const char *page_directory;         /* of the file of OPTIM_PAGED_ADAMW; NULL: $TMPDIR, or /tmp */
    struct lora_sizes sizes;
    size_t max_memory;                  /* bytes the arena may take, 0: no limit but what a backend's own memory has */
};

/* Bytes by purpose. The same code that carves the arena fills it in. */
struct lora_plan {
    size_t weights;         /* copies of norms and biases (of all tensors on a backend with its own memory),
                             * and the rotary tables; under `full` the tensors are trainable */
    size_t trainable, gradients, moments;
    size_t activations;     /* kept for the backward pass */
    size_t workspace;       /* the rest of the working memory */
    size_t cache;           /* keys and values of generation */
    size_t total;           /* the arena: the sum */
    size_t mapped;          /* bytes of the model's files that are used where they lie; on a backend with its own
                             * memory, that are copied from there */
    size_t paged;           /* moments in a file of their own; then `moments` is 0 */
};

/* One trained tensor: where it lies in the flat buffers. */
struct trained {
    char name[128];         /* as in the file it is saved to */
    int id, layer, is_b;    /* is_b: 0 A, 1 B of LoRA; -1 a whole tensor (full) */
    int rows, cols;
    size_t offset;
};

struct lora;

/* The bytes that lora_open() would take of this setup, whatever max_memory is. Takes none of them, and starts no backend. */
int lora_plan(struct lora_plan *plan, const struct lora_setup *setup, struct lora_error *err);
/* Takes the plan's memory and fills it: gradients, moments and steps begin at 0. After an error *l is NULL. */
int lora_open(struct lora **l, const struct lora_setup *setup, struct lora_error *err);
void lora_close(struct lora *l);        /* NULL: nothing to do */

/* A pack that is not finished, larger than sizes, or that names an id or an adapter that is not there, is refused, and
 * changes nothing. After another error losses, best and logits are not to be used, and gradients are to be zeroed. */

/* Forward and loss over a pack, without gradients and dropout: losses[T] = -log p(id | what its segment sees), in nats,
 * without the target's weight, in the order in which targets were added; best[T] (may be NULL): the id with the largest
 * logit there. T = 0: nothing is done. */
int lora_eval(struct lora *l, const struct pack *p, double *losses, int *best, struct lora_error *err);
/* The same with dropout, and adds grad_scale * d(sum of weight * loss) / d(parameter) to the gradients: 1 / T makes that of
 * the mean. A loss that is NaN is no error here: lora_step() refuses its gradients, lora_find_not_finite() says where it
 * began. */
int lora_train(struct lora *l, const struct pack *p, double grad_scale, double *losses, int *best,
               struct lora_error *err);
/* Forward, without dropout; then, and after nothing else, the logits [n,V] of the given rows (0 .. N - 1) of that pack: of
 * the token behind each. With sizes.keys > 0 the pack's segments are pack_cached() ones, and their keys and values are
 * written into the cache first. */
int lora_forward(struct lora *l, const struct pack *p, struct lora_error *err);
int lora_logits(struct lora *l, const int *rows, int n, float *logits, struct lora_error *err);

struct lora_hyper {
    double learning_rate, beta1, beta2, eps, weight_decay, max_grad_norm;   /* max_grad_norm 0: no clipping */
};
/* Clips, steps AdamW (kernels.h: adamw; the step count is the lora's own), zeroes the gradients. *norm: the root of the sum
 * of their squares, before clipping. After an error, as of a gradient that is not finite, nothing is changed but *norm:
 * gradients stay for a look, to be zeroed before the next pack. */
int lora_step(struct lora *l, const struct lora_hyper *h, double *norm, struct lora_error *err);
void lora_zero_gradients(struct lora *l);       /* without sizes.backward there are none */

/* The trained tensors (of several adapters those of the first), and flat copies in their order: an adapter's, adapter->size
 * numbers, in that of its modules. Returns how many; *list is the lora's. */
int lora_trained(const struct lora *l, const struct trained **list);
size_t lora_trained_size(const struct lora *l);     /* numbers; of several adapters all of theirs, one after the other */
/* Under OPTIM_ADAMW8BIT the moments are those of the small tensors alone, one after the other, and the
 * others' lie in the codes (bytes) and absmax (numbers): tensor by tensor, a new block with each. */
enum lora_buffer {
    LORA_PARAMETERS, LORA_GRADIENTS, LORA_MOMENT1, LORA_MOMENT2, LORA_ABSMAX1, LORA_ABSMAX2, LORA_CODES1, LORA_CODES2
};
/* Numbers, of codes: bytes; 0: there is none, and then those below do nothing, or are NULL. */
size_t lora_buffer_size(const struct lora *l, int buffer);
/* lora_buffer_size() numbers of any buffer but the codes, out of the lora or into it; 64: doubles, ref64's own. */
void lora_get(const struct lora *l, int buffer, float *out);
void lora_get64(const struct lora *l, int buffer, double *out);
void lora_set(struct lora *l, int buffer, const float *values);
void lora_set64(struct lora *l, int buffer, const double *values);
/* The same where it lies, if it lies here as floats: what the next step changes; else NULL. Good until lora_close(). */
const float *lora_floats(const struct lora *l, int buffer);
/* lora_buffer_size() bytes of LORA_CODES1 or LORA_CODES2 */
void lora_get_codes(const struct lora *l, int buffer, unsigned char *out);
int lora_set_codes(struct lora *l, int buffer, const unsigned char *codes);     /* -1: the backend could not */
/* -1 with an error when the backend says that something failed (kernels.h): ask it after what was brought back, and
 * before that is written. What lora_train(), lora_eval(), lora_logits() and lora_step() bring back they ask about. */
int lora_check(const struct lora *l, struct lora_error *err);
/* How many steps were taken: the t of AdamW's corrections. A run that goes on sets it, with its moments. */
long long lora_steps(const struct lora *l);
void lora_set_steps(struct lora *l, long long steps);

/* After a NaN or infinite loss: runs the pack again and names the first layer and tensor whose
 * values are not finite (fills err, returns -1). */
int lora_find_not_finite(struct lora *l, const struct pack *p, struct lora_error *err);

#endif
