/* test_chat.c - templates against their written-out texts, target marks turn by turn, recognition by
 * the model's own text, messages from JSON. */
#include "../chat.h"
#include "test.h"

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

/* A row up to an answer, with what asks for it, is where the answer's target starts: what generation
 * is given is what training saw. */
static void test_turn_by_turn(void)
{
    static const char *const names[] = { "chatml", "smollm2" };
    size_t i, n, k;
    test_begin("targets start where a generation prompt ends, turn by turn");
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        const struct chat_template *t = find(names[i]);
        struct chat_text all = { { 0 }, NULL, 0, 0 }, part = { { 0 }, NULL, 0, 0 };
        if (!t || chat_render(t, talk, 5, 0, "<s>", "</s>", &all, NULL)) continue;
        CHECK(all.n_targets == 2, "%s", names[i]);
        for (n = 2, k = 0; n < 5; n += 2, k++) {
            const char *end = chat_end_of_turn(t);
            const struct span *s = &all.targets[k];
            CHECK(!chat_render(t, talk, n, 1, "<s>", "</s>", &part, NULL));
            CHECK(part.text.n == s->start && !memcmp(part.text.s, all.text.s, s->start), "%s, answer %zu", names[i], k);
            if (!end[0]) end = "</s>";
            CHECK(s->end >= strlen(end) && !memcmp(all.text.s + s->end - strlen(end), end, strlen(end)), "%s", names[i]);
        }
        chat_text_free(&all);
        chat_text_free(&part);
    }
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
    CHECK(!chat_find("mistral", &err) && strstr(err.expected, "chatml smollm2") && !strcmp(err.found, "mistral"));
    {   /* the one with BOS begins with it, the named one does not */
        struct chat_text c = { { 0 }, NULL, 0, 0 };
        const struct chat_template *t = chat_recognise(cases[5].text, &err);
        CHECK(t && !chat_render(t, talk, 1, 0, "<s>", "</s>", &c, &err) && !strncmp(c.text.s, "<s><|im_start|>", 15));
        chat_text_free(&c);
    }
}

static void test_refused(void)
{
    static const struct message robot = { "robot", "x" };
    struct chat_text c = { { 0 }, NULL, 0, 0 };
    struct lora_error err;
    test_begin("an unknown role and no messages are errors");
    CHECK(chat_render(find("chatml"), &robot, 1, 0, "", "", &c, &err) == -1 && !strcmp(err.found, "robot"));
    CHECK(chat_render(find("chatml"), &robot, 0, 0, "", "", &c, &err) == -1);
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

int main(void)
{
    test_texts();
    test_turn_by_turn();
    test_recognised();
    test_refused();
    test_messages();
    test_smollm2();
    return test_end();
}
