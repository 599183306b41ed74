/* test_chat.c - templates against their written-out texts, target marks turn by turn, recognition by
 * the model's own text, messages from JSON. */
#include "../jobs/identity.c"
#include "test.h"

#include <ctype.h>

static const struct chat_template *find(const char *name)
{
    struct lora_error err = { { 0 }, { 0 }, { 0 }, { 0 }, { 0 } };
    const struct chat_template *t = chat_find(name, &err);
    CHECK(t != NULL, "%s: %s", name, err.where);
    return t;
}

/* The text with its targets between [ and ]. */
static const char *marked(const struct chat_text *c)
{
    static struct text out;
    size_t i, at = 0;
    out.n = 0;
    text_puts(&out, "");
    for (i = 0; i < c->n_targets; i++) {
        text_add(&out, c->text.s + at, c->targets[i].start - at);
        text_puts(&out, "[");
        text_add(&out, c->text.s + c->targets[i].start, c->targets[i].end - c->targets[i].start);
        text_puts(&out, "]");
        at = c->targets[i].end;
    }
    text_add(&out, c->text.s + at, c->text.n - at);
    return out.s;
}

static void check_text(const char *name, const struct message *m, size_t n, int ask, const char *wanted)
{
    struct chat_text c = { { 0 }, NULL, 0, 0 };
    struct lora_error err = { { 0 }, { 0 }, { 0 }, { 0 }, { 0 } };
    const struct chat_template *t = find(name);
    if (!t) return;
    CHECK(!chat_render(t, m, n, ask, "<s>", "</s>", &c, &err), "%s: %s %s", name, err.expected, err.found);
    CHECK(!strcmp(marked(&c), wanted), "%s gives %s", name, marked(&c));
    chat_text_free(&c);
}

static const struct message talk[] = {
    { "system", "Be brief." }, { "user", "Hi" }, { "assistant", "Hello.\n" }, { "user", " 2+2? " }, { "assistant", "4" }
};

static void test_texts(void)
{
    test_begin("what each template makes of a talk");
    check_text("chatml", talk + 1, 2, 0, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Hello.\n<|im_end|>]\n");
    check_text("chatml", talk, 2, 1, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                                     "<|im_start|>assistant\n");
    check_text("smollm2", talk + 1, 1, 1, "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
               "Hugging Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    check_text("smollm2", talk, 5, 0, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
               "<|im_start|>assistant\n[Hello.\n<|im_end|>]\n<|im_start|>user\n 2+2? <|im_end|>\n"
               "<|im_start|>assistant\n[4<|im_end|>]\n");
}

static void test_other_texts(void)
{
    test_begin("what the other templates make of it");
    check_text("llama2", talk, 4, 1, "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST][ Hello. </s>]<s>[INST] 2+2? [/INST]");
    check_text("llama3", talk, 3, 1, "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
               "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
               "[Hello.<|eot_id|>]<|start_header_id|>assistant<|end_header_id|>\n\n");
    check_text("llama3.1", talk + 1, 2, 0, "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: "
               "December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
               "<|start_header_id|>assistant<|end_header_id|>\n\n[Hello.<|eot_id|>]");
    check_text("mistral-v1", talk, 4, 1, "<s> [INST] Be brief.\n\nHi [/INST][ Hello.\n</s>] [INST]  2+2?  [/INST]");
    check_text("mistral-v3", talk, 4, 1, "<s>[INST] Hi[/INST][ Hello.</s>][INST] Be brief.\n\n 2+2? [/INST]");
    check_text("mistral-tekken", talk, 3, 0, "<s>[INST]Be brief.\n\nHi[/INST][Hello.\n</s>]");
    check_text("qwen2", talk + 1, 1, 1, "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi"
               "<|im_end|>\n<|im_start|>assistant\n");
    check_text("qwen2.5", talk + 1, 1, 0, "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
               "assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
    check_text("qwen3", talk + 1, 4, 0, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Hello.\n<|im_end|>]\n"
               "<|im_start|>user\n 2+2? <|im_end|>\n<|im_start|>assistant\n[<think>\n\n</think>\n\n4<|im_end|>]\n");
    check_text("zephyr", talk, 3, 1, "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n[Hello.\n</s>]\n<|assistant|>\n");
    check_text("tinyllama", talk + 1, 2, 0, "<|user|>\nHi</s>\n<|assistant|>\n[Hello.\n</s>]\n");
    check_text("phi3", talk, 3, 0, "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n[Hello.\n<|end|>]\n</s>");
    check_text("phi3.5", talk + 1, 1, 1, "<|user|>\nHi<|end|>\n<|assistant|>\n");
    check_text("vicuna", talk + 1, 3, 1, "<s>A chat between a curious user and an artificial intelligence assistant. The "
               "assistant gives helpful, detailed, and polite answers to the user's questions. USER: Hi ASSISTANT:[ Hello.\n</s>]"
               "USER:  2+2?  ASSISTANT:");
    check_text("alpaca", talk, 3, 0, "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\n[Hello.\n</s>]\n\n");
}

static const struct message thoughts[] = {
    { "user", "a" }, { "assistant", "<think>\nx\n</think>\n\nb" }, { "user", "c" }, { "assistant", "<think>y</think>d" }
};

static void test_thoughts(void)
{
    test_begin("Qwen3: the last answer shows its thought, earlier ones do not");
    check_text("qwen3", thoughts, 4, 0, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]\n<|im_start|>user\nc"
               "<|im_end|>\n<|im_start|>assistant\n[<think>\ny\n</think>\n\nd<|im_end|>]\n");
}

/* What may follow an answer that ends the talk: what parts turns, EOS of all, or what asks for another. */
static int is_rest(const char *s)
{
    static const char *const rests[] = { "", "\n", "\n\n", "\n</s>", "<|start_header_id|>assistant<|end_header_id|>\n\n" };
    size_t i;
    for (i = 0; i < sizeof rests / sizeof *rests; i++)
        if (!strcmp(s, rests[i])) return 1;
    return 0;
}

/* The messages before the i-th with a generation prompt are the text up to its target; with it, the text up
 * to its end: what generation is given is what training saw, and what it is to say up to its end of turn. */
static void check_turns(const struct chat_template *t, const struct message *m, size_t n, const char *label)
{
    struct chat_text all = { { 0 }, NULL, 0, 0 }, part = { { 0 }, NULL, 0, 0 };
    const char *end = chat_end_of_turn(t);
    size_t i, k = 0;
    if (!end[0]) end = "</s>";
    CHECK(!chat_render(t, m, n, 0, "<s>", "</s>", &all, NULL), "%s", label);
    for (i = 0; i < n; i++) {
        const struct span *s = &all.targets[k];
        if (strcmp(m[i].role, "assistant")) continue;
        if (k++ >= all.n_targets) break;
        CHECK(i && !chat_render(t, m, i, 1, "<s>", "</s>", &part, NULL), "%s", label);
        CHECK(part.text.n == s->start && !memcmp(part.text.s, all.text.s, s->start), "%s, answer %zu: %s", label, k, part.text.s);
        CHECK(s->end >= s->start + strlen(end) && !memcmp(all.text.s + s->end - strlen(end), end, strlen(end)), "%s, answer %zu", label, k);
        CHECK(!chat_render(t, m, i + 1, 0, "<s>", "</s>", &part, NULL) && part.n_targets == k, "%s", label);
        if (i + 1 < n && !strcmp(chat_name(t), "qwen3")) continue;      /* an answer that ends the talk shows a thought */
        CHECK(part.text.n >= s->end && !memcmp(part.text.s, all.text.s, s->end), "%s, answer %zu: %s", label, k, part.text.s);
        CHECK(is_rest(part.text.s + s->end), "%s, answer %zu: %s", label, k, part.text.s + s->end);
    }
    CHECK(k == all.n_targets, "%s: %zu answers, %zu targets", label, k, all.n_targets);
    chat_text_free(&all);
    chat_text_free(&part);
}

static void test_turn_by_turn(void)
{
    static const char *const names[] = {
        "chatml", "smollm2", "llama2", "llama3", "llama3.1", "mistral-v1", "qwen2", "qwen2.5", "qwen3", "zephyr", "tinyllama",
        "phi3", "phi3.5", "vicuna", "alpaca", "mistral-v3", "mistral-tekken"
    };
    size_t i;
    test_begin("targets are what follows a generation prompt, turn by turn");
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        const struct chat_template *t = find(names[i]);
        /* these two move a system message to the last question, so the turns before it lose it */
        size_t first = !strcmp(names[i], "mistral-v3") || !strcmp(names[i], "mistral-tekken");
        if (t) check_turns(t, talk + first, 5 - first, names[i]);
        if (t && first) check_turns(t, talk, 3, names[i]);
    }
}

/* What the real templates give, by Jinja (goldens/make_chat.py). Ours refuse a role that is none. */
static void test_jinja(void)
{
    struct json_document d;
    struct lora_error err;
    const struct json *e, *c, *r;
    const char *last = "";
    int variant = 0;
    test_begin("the texts of real templates, as Jinja renders them, and their targets turn by turn");
    if (json_read(&d, "test/goldens/data/chat.json", &err)) { CHECK(0, "%s", err.where); return; }
    for (e = json_get(d.root, "templates")->child; e; e = e->next) {
        const char *name = json_get(e, "name")->string;
        const struct chat_template *t;
        int ask, moves = !strcmp(name, "mistral-v3") || !strcmp(name, "mistral-tekken"), number = 0;
        variant = strcmp(name, last) ? 0 : variant + 1;
        last = name;
        if (!(t = chat_variant(name, variant))) { CHECK(0, "%s %d", name, variant); continue; }
        r = json_get(e, "rendered")->child;
        for (c = json_get(d.root, "talks")->child; c; c = c->next, number++) {
            struct message *m = NULL;
            size_t n = 0, i;
            int robot = 0, drops;
            char label[64];
            snprintf(label, sizeof label, "%s %d, talk %d", name, variant, number);
            if (chat_read_messages(c, "talks", &m, &n, &err)) { CHECK(0, "%s", err.where); break; }
            for (i = 0; i < n; i++) robot |= !strcmp(m[i].role, "robot");
            /* where an answer comes last the original drops the system message: see chat.c */
            drops = moves && !strcmp(m[0].role, "system") && !strcmp(m[n - 1].role, "assistant");
            for (ask = 0; ask < 2; ask++, r = r->next) {
                struct chat_text out = { { 0 }, NULL, 0, 0 };
                int bad = chat_render(t, m, n, ask, "<s>", "</s>", &out, &err);
                if (drops) CHECK(!bad && strstr(out.text.s, m[0].content) && !strstr(r->string, m[0].content), "%s", label);
                else if (robot || r->type == JSON_NULL) CHECK(bad && err.where[0] && err.found[0], "%s is rendered", label);
                else CHECK(!bad && !strcmp(out.text.s, r->string), "%s: %s", label, bad ? err.expected : out.text.s);
                if (!bad && !ask && strcmp(m[0].role, "assistant") && !(moves && n > 3 && !strcmp(m[0].role, "system")))
                    check_turns(t, m, n, label);
                chat_text_free(&out);
            }
            free(m);
        }
    }
    json_free(&d);
}

/* The model's own texts, in the spellings found in the wild. */
static void test_recognised(void)
{
#define ASK "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    static const struct { const char *text, *name; } cases[] = {
        { "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
          "+ '\n'}}{% endfor %}" ASK, "chatml" },
        { "{%- for message in messages %} \n    {{- \"<|im_start|>\" + message.role + \"\\n\" + message.content + \"<|im_end|>\\n\" -}}\n"
          "{%- endfor -%}\n{%- if add_generation_prompt -%}\n    {{- \"<|im_start|>assistant\\n\" -}}\n{%- endif -%}\n", "chatml" },
        { "{# for everyone #}{% for message in messages %}\n  {% if false %}{% endif %}{{'<|im_start|>'}}{% endfor %}", NULL },
        { "{% for message in messages %}\n{{'<|im_start|>' + message['role'] + '\n' + message['content']}}<|im_end|>\n"
          "{% endfor %}\n  " ASK "\n", "chatml" },
        { "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
          "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
          "+ '\n'}}{% endfor %}" ASK, "chatml" },
        { "{{bos_token}}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
          "'<|im_end|>' + '\n'}}{% endfor %}" ASK, "chatml" },
        { "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
          "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' "
          "+ message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}" ASK, "smollm2" },
        { "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
          "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
          "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ "
          "'<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}", "llama3" },
        { "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + "
          "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + "
          "'<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
          "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
          "phi3.5" },
        /* one thing in each that changes the text */
        { "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
          "You are a pirate<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
          "'<|im_end|>' + '\n'}}{% endfor %}" ASK, NULL },
        { "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'}}"
          "{% endfor %}" ASK, NULL },
        { "{% for message in messages %} {{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
          "+ '\n'}}{% endfor %}" ASK, NULL },
        { "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' "
          "+ '\n'}}{% endfor %}" ASK, NULL },
        { "{{ messages[0].content }}", NULL }, { "", NULL }, { "{{", NULL }, { "{% 'x %}", NULL }, { "{#", NULL },
        { "{{ 'x\\", NULL }, { "plain", NULL }, { "{%-", NULL }, { "{{-}}", NULL }, { "{%%}", NULL }
    };
    struct lora_error err;
    size_t i;
    test_begin("the model's own template text is recognised in any spelling, or refused with the names");
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct chat_template *t = chat_recognise(cases[i].text, &err);
        CHECK(!t == !cases[i].name, "case %zu", i);
        if (t) CHECK(!strcmp(chat_name(t), cases[i].name), "case %zu", i);
        else CHECK(strstr(err.expected, "chatml smollm2") != NULL, "case %zu: %s", i, err.expected);
    }
    CHECK(!chat_find("mistral", &err) && strstr(err.expected, "chatml smollm2 llama2 llama3 llama3.1 mistral-v1 mistral-v3 "
          "mistral-tekken qwen2 qwen2.5 qwen3 zephyr tinyllama phi3 phi3.5 vicuna alpaca") && !strcmp(err.found, "mistral"));
    {   /* the one with BOS begins with it, the named one does not */
        struct chat_text c = { { 0 }, NULL, 0, 0 };
        const struct chat_template *t = chat_recognise(cases[5].text, &err);
        CHECK(t && !chat_render(t, talk, 1, 0, "<s>", "</s>", &c, &err) && !strncmp(c.text.s, "<s><|im_start|>", 15));
        chat_text_free(&c);
    }
}

/* Each letter, digit and word-parting space of a known text changed: another template, never guessed. */
static void check_edits(const char *text, const char *label)
{
    char *edited = new_string(text, NULL);
    struct lora_error err;
    size_t i;
    int comment = 0, n = 0, taken = 0;
    for (i = 0; text[i]; i++) {
        int letter = isalnum((unsigned char)text[i]) != 0;
        if (!strncmp(text + i, "{#", 2)) comment = 1;
        if (!strncmp(text + i, "#}", 2)) comment = 0;
        if (comment || (!letter && !(text[i] == ' ' && i && isalnum((unsigned char)text[i - 1]) && isalnum((unsigned char)text[i + 1]))))
            continue;
        edited[i] = letter ? text[i] == 'x' ? 'y' : 'x' : '_';
        taken += chat_recognise(edited, &err) != NULL;
        edited[i] = text[i];
        n++;
    }
    CHECK(chat_recognise(edited, &err) != NULL && n > 50 && !taken, "%s: %d of %d edits are taken for it", label, taken, n);
    free(edited);
}

static void test_edits(void)
{
    test_begin("a template's text changed in one place is not taken for it");
    check_edits("{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + eos_token }}\n"
                "{% elif message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == "
                "'assistant' %}{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and "
                "add_generation_prompt %}{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}", "zephyr");
}

static void test_refused(void)
{
    static const struct message robot = { "robot", "x" };
    struct chat_text c = { { 0 }, NULL, 0, 0 };
    struct lora_error err;
    test_begin("an unknown role and no messages are errors");
    CHECK(chat_render(find("chatml"), &robot, 1, 0, "", "", &c, &err) == -1 && !strcmp(err.found, "robot"));
    CHECK(chat_render(find("chatml"), &robot, 0, 0, "", "", &c, &err) == -1);
    CHECK(chat_render(find("mistral-v1"), talk + 2, 1, 0, "", "", &c, &err) == -1 && !strcmp(err.found, "assistant"));
    CHECK(chat_render(find("llama2"), talk, 1, 0, "", "", &c, &err) == -1 && !strcmp(err.found, "system"));
    chat_text_free(&c);
}

static void test_messages(void)
{
    static const struct { const char *json; int n; } cases[] = {
        { "[{\"role\":\"user\",\"content\":\"a\"},{\"content\":\"b\",\"role\":\"assistant\",\"name\":null}]", 2 },
        { "{\"id\":3,\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", 1 },
        { "[]", -1 }, { "{}", -1 }, { "3", -1 }, { "[3]", -1 }, { "{\"messages\":[]}", -1 },
        { "[{\"role\":\"user\"}]", -1 }, { "[{\"content\":\"a\"}]", -1 }, { "[{\"role\":3,\"content\":\"a\"}]", -1 },
        { "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]}]", -1 },
        { "[{\"role\":\"user\",\"content\":\"a\\u0000b\"}]", -1 },
        { "[{\"role\":\"assistant\",\"content\":\"a\",\"tool_calls\":[]}]", -1 }
    };
    struct lora_error err;
    size_t i;
    test_begin("messages from JSON");
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct json_document d;
        struct message *m = NULL;
        size_t n = 0;
        int bad;
        if (json_parse(&d, cases[i].json, strlen(cases[i].json), "m.json", &err)) { CHECK(0, "case %zu", i); continue; }
        bad = chat_read_messages(d.root, "m.json", &m, &n, &err);
        CHECK(bad == (cases[i].n < 0 ? -1 : 0) && (bad || (int)n == cases[i].n), "case %zu", i);
        if (bad) CHECK(strstr(err.where, "m.json, line 1") != NULL && !m, "case %zu: %s", i, err.where);
        else CHECK(!strcmp(m[0].role, "user") && !strcmp(m[0].content, "a"), "case %zu", i);
        free(m);
        json_free(&d);
    }
}

static void test_smollm2(void)
{
    char path[1024];
    struct json_document d;
    struct lora_error err;
    const struct json *list, *e;
    if (!shared_dir()) {
        test_skip("SmolLM2's chats", "no ../shared");
        return;
    }
    test_begin("SmolLM2's chats, as Transformers renders them");
    snprintf(path, sizeof path, "%s/goldens/smollm2/tokens.json", shared_dir());
    if (json_read(&d, path, &err)) { CHECK(0, "%s", path); return; }
    list = json_get(d.root, "chats");
    for (e = list ? list->child : NULL; e; e = e->next) {
        struct chat_text c = { { 0 }, NULL, 0, 0 };
        struct message *m = NULL;
        size_t n;
        int ask = 0;
        CHECK(!chat_read_messages(e, path, &m, &n, &err) && !json_get_bool(e, "add_generation_prompt", &ask, path, &err));
        CHECK(!chat_render(find("smollm2"), m, n, ask, "<|im_start|>", "<|im_end|>", &c, &err));
        CHECK(!strcmp(c.text.s, json_get(e, "text")->string), "%s", c.text.s);
        free(m);
        chat_text_free(&c);
    }
    json_free(&d);
}

/* The model's own text, recognised, against what the real Jinja made of it. */
static void check_golden(const char *template_path, const char *key, const char *context, const char *golden, const char *name)
{
    char path[1024];
    struct json_document d = { 0 }, config = { 0 };
    struct lora_error err = { { 0 }, { 0 }, { 0 }, { 0 }, { 0 } };
    struct chat_text c = { { 0 }, NULL, 0, 0 };
    struct message *m = NULL;
    struct file_map f, g;
    char *text = NULL;
    const struct chat_template *t;
    size_t n = 0;
    int ask = 0;
    snprintf(path, sizeof path, "%s/%s", shared_dir(), template_path);
    if (key && !json_read(&config, path, &err)) text = new_string(json_get(config.root, key)->string, &err);
    else if (!key && !file_open(&f, path, &err)) {
        text = new_string_n((const char *)f.data, f.size, &err);
        file_close(&f);
    }
    CHECK(text != NULL, "%s", path);
    t = text ? chat_recognise(text, &err) : NULL;
    CHECK(t && !strcmp(chat_name(t), name), "%s: %s", template_path, t ? chat_name(t) : err.found);
    if (t && (!context || !strcmp(context, "simple.json"))) check_edits(text, template_path);
    free(text);
    json_free(&config);
    if (!t || !context) return;
    snprintf(path, sizeof path, "%s/vectors/chat-goldens/contexts/%s", shared_dir(), context);
    CHECK(!json_read(&d, path, &err) && !chat_read_messages(d.root, path, &m, &n, &err)
          && !json_get_bool(d.root, "add_generation_prompt", &ask, path, &err), "%s", path);
    CHECK(!chat_render(t, m, n, ask, "<|startoftext|>", "<|endoftext|>", &c, &err), "%s: %s", golden, err.where);
    snprintf(path, sizeof path, "%s/vectors/chat-goldens/goldens/%s", shared_dir(), golden);
    if (!file_open(&g, path, &err)) {
        CHECK(c.text.n == g.size && !memcmp(c.text.s, g.data, g.size), "%s: %s", golden, c.text.s);
        file_close(&g);
    } else {
        CHECK(0, "%s", path);
    }
    free(m);
    chat_text_free(&c);
    json_free(&d);
}

static void test_goldens(void)
{
    static const struct { const char *model, *name; } models[] = {
        { "NousResearch-Hermes-2-Pro-Mistral-7B-default", "chatml" }, { "Qwen-Qwen2-7B-Instruct", "qwen2" },
        { "meta-llama-Meta-Llama-3.1-8B-Instruct", "llama3.1" }, { "mistralai-Mistral-7B-Instruct-v0.2", "mistral-v1" }
    };
    size_t i, k;
    if (!shared_dir()) {
        test_skip("chat goldens", "no ../shared");
        return;
    }
    test_begin("chat goldens, and the templates of real models' configurations");
    for (i = 0; i < 4; i++)
        for (k = 0; k < 2; k++) {
            char template_path[256], golden[256];
            snprintf(template_path, sizeof template_path, "vectors/chat-goldens/templates/%s.jinja", models[i].model);
            snprintf(golden, sizeof golden, "%s-%s.txt", models[i].model, k ? "system" : "simple");
            check_golden(template_path, NULL, k ? "system.json" : "simple.json", golden, models[i].name);
        }
    {   /* the one golden of a template that has no name here: like Llama 2's, with other spaces and no BOS */
        char path[1024];
        struct file_map f;
        struct lora_error err;
        snprintf(path, sizeof path, "%s/vectors/chat-goldens/templates/TheBloke-FusionNet_34Bx2_MoE-AWQ.jinja", shared_dir());
        if (!file_open(&f, path, &err)) {
            char *text = new_string_n((const char *)f.data, f.size, &err);
            CHECK(text && !chat_recognise(text, &err) && strstr(err.hint, "--chat-template"));
            free(text);
            file_close(&f);
        } else {
            CHECK(0, "%s", path);
        }
    }
    check_golden("vectors/chat-goldens/templates/Qwen-Qwen3-0.6B.jinja", NULL, NULL, NULL, "qwen3");
    check_golden("tokenizers/qwen/qwen3_tokenizer_config.json", "chat_template", NULL, NULL, "qwen3");
    check_golden("tokenizers/qwen/qwen2.5_tokenizer_config.json", "chat_template", NULL, NULL, "qwen2.5");
    check_golden("tokenizers/tinyllama-chat/tokenizer_config.json", "chat_template", NULL, NULL, "zephyr");
    check_golden("tokenizers/mistral/tokenizer_config.json", "chat_template", NULL, NULL, "chatml");
}

/* What a template does is what is compared, not its name. */
static void test_identity(void)
{
    uint64_t all[32];
    int i, k, n = 0;
    const struct chat_template *t;
    struct lora_error err;
    static const char *const names[] = { "zephyr", "chatml", "smollm2", "llama2", "llama3", "llama3.1", "mistral-v1",
        "mistral-v3", "mistral-tekken", "qwen2", "qwen2.5", "qwen3", "phi3", "phi3.5", "vicuna", "alpaca" };
    test_begin("templates that render alike are the same, others are not");
    for (i = 0; i < (int)(sizeof names / sizeof *names); i++)
        for (k = 0; (t = chat_variant(names[i], k)); k++) CHECK(!chat_identity(t, NULL, &all[n++], &err));
    CHECK(n >= 16 && chat_variant("chatml", 0) == find("chatml") && !chat_variant("nonsense", 0));
    for (i = 0; i < n; i++)
        for (k = 0; k < i; k++)     /* without a tokenizer BOS is nothing: variants of chatml are alike */
            CHECK(all[i] != all[k] || (i == 2 && k == 1), "%d and %d", i, k);
    CHECK(!chat_identity(find("tinyllama"), NULL, &all[1], &err) && all[1] == all[0]);
}

static uint64_t tokenizer_at(const char *path)
{
    char full[1024];
    struct tokenizer *t;
    struct lora_error err;
    uint64_t hash = 0;
    snprintf(full, sizeof full, "%s/%s", shared_dir(), path);
    CHECK(!tokenizer_open(&t, full, &err) && !tokenizer_identity(t, &hash, &err), "%s: %s", full, err.where);
    tokenizer_close(t);
    return hash;
}

static void test_tokenizers(void)
{
    uint64_t llama;
    if (!shared_dir()) {
        test_skip("one tokenizer as directory and GGUF", "no ../shared");
        return;
    }
    test_begin("one tokenizer as directory and GGUF is the same, others are not");
    llama = tokenizer_at("tokenizers/llama2");
    CHECK(llama == tokenizer_at("vectors/llamacpp-vocab/ggml-vocab-llama-spm.gguf"));
    CHECK(llama == tokenizer_at("tokenizers/tinyllama-chat"));
    CHECK(llama != tokenizer_at("tokenizers/mistral") && llama != tokenizer_at("tokenizers/llama3")
          && llama != tokenizer_at("tokenizers/gpt2"));
}

int main(void)
{
    test_texts();
    test_identity();
    test_tokenizers();
    test_other_texts();
    test_thoughts();
    test_turn_by_turn();
    test_jinja();
    test_recognised();
    test_edits();
    test_refused();
    test_messages();
    test_smollm2();
    test_goldens();
    return test_end();
}
