/* chat.h - chat templates: messages to text, with the spans that are trained. */
#ifndef CHAT_H
#define CHAT_H

#include "formats/json.h"

struct message {
    const char *role, *content;     /* "system" "user" "assistant" */
};

struct span { size_t start, end; }; /* bytes of the text */

struct chat_text {
    struct text text;
    struct span *targets;           /* every assistant turn's content with its end of turn */
    size_t n_targets, capacity;
};
void chat_text_free(struct chat_text *t);

struct chat_template;
/* By a name of the contract, or by the model's own template text, which is compared in a normal form
 * (white space, quotes and the two ways to write a key do not matter); NULL with an error that lists
 * the names this build has. */
const struct chat_template *chat_find(const char *name, struct lora_error *err);
const struct chat_template *chat_recognise(const char *template_text, struct lora_error *err);
const char *chat_name(const struct chat_template *t);
/* Models have several texts of one name, with and without a BOS: number n of them from 0, as chat_find()
 * has it, or NULL after the last. */
const struct chat_template *chat_variant(const char *name, int n);
/* The text that ends an assistant's turn ("<|im_end|>"); "": the tokenizer's EOS. */
const char *chat_end_of_turn(const struct chat_template *t);

/* bos and eos: the tokenizer's, as text; "" without a model. A role that the template does not know
 * is an error. out must be zero-initialised or reused. */
int chat_render(const struct chat_template *t, const struct message *messages, size_t n,
                int add_generation_prompt, const char *bos, const char *eos,
                struct chat_text *out, struct lora_error *err);

/* Messages from JSON: an array of {"role","content"}, or an object with such an array as "messages".
 * Anything else in a message that has a value (tool calls, a name, parts in place of a text) is refused.
 * *out is an array owned by the caller; its strings are the document's. `file` is for errors. */
int chat_read_messages(const struct json *v, const char *file, struct message **out, size_t *n,
                       struct lora_error *err);

#endif
