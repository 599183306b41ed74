/* tokenizer.h - text to ids and back, exactly as the original tokenizer does it. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "util.h"

struct tokenizer;

/* A list that grows; zero-initialise. After an error it is as before. */
struct ids {
    int *v;
    size_t n, capacity;
};
void ids_free(struct ids *ids);
int ids_add(struct ids *ids, int id, struct lora_error *err);
int ids_append(struct ids *ids, const int *v, size_t n, struct lora_error *err);

enum { TOKENIZE_SPECIAL = 1,    /* add BOS (and EOS) where the tokenizer's own rule does */
       TOKENIZE_TEXT_ONLY = 2,  /* special tokens written in the text are text */
       TOKENIZE_CONTINUE = 4 }; /* the text goes on where another ended: no space is put before it */

/* From a Hugging Face directory (tokenizer.json, or where there is none tokenizer.model or *.tiktoken;
 * tokenizer_config.json) or a .gguf file. A rule in it that is not implemented is refused by name.
 * After an error *t is NULL. */
int tokenizer_open(struct tokenizer **t, const char *path, struct lora_error *err);
/* Does the directory have such a file? 1, 0, or -1. */
int tokenizer_is_there(const char *directory, struct lora_error *err);
void tokenizer_close(struct tokenizer *t);
size_t tokenizer_memory(const struct tokenizer *t);     /* bytes of its tables; 0 for NULL */

/* Appends the ids of text[n] to out. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, int flags,
                     struct ids *out, struct lora_error *err);
/* Appends the text of the ids. skip_special: special tokens give nothing. An id outside the
 * vocabulary is an error. */
int tokenizer_decode(const struct tokenizer *t, const int *ids, size_t n, int skip_special,
                     struct text *out, struct lora_error *err);

/* Streaming: bytes of one more id are appended to pending, whole characters move on to out. A pending
 * that is all zero begins a text: some tokenizers take a space from its front. */
int tokenizer_stream(const struct tokenizer *t, int id, struct text *pending, struct text *out,
                     struct lora_error *err);

int tokenizer_size(const struct tokenizer *t);          /* ids are below this */
int tokenizer_bos(const struct tokenizer *t);           /* -1: none */
int tokenizer_eos(const struct tokenizer *t);
int tokenizer_id(const struct tokenizer *t, const char *token); /* of a whole token's text, or -1 */
/* The text of a token as templates use it ("<|im_end|>"), or NULL. Owned by the tokenizer. */
const char *tokenizer_token(const struct tokenizer *t, int id);
int tokenizer_adds_bos(const struct tokenizer *t);      /* the rule of TOKENIZE_SPECIAL */
/* The model's own chat template text (chat_template.jinja, tokenizer_config.json, GGUF), or NULL. */
const char *tokenizer_chat_template(const struct tokenizer *t);
uint64_t tokenizer_hash(const struct tokenizer *t);     /* of all that decides ids */
/* Copies the tokenizer's files of a directory, or writes them from a GGUF, into dir. */
int tokenizer_save(const struct tokenizer *t, const char *dir, struct lora_error *err);

#endif
