/* test_data.c - rows of every form: what is rendered, what is a target, what is refused and where. The
 * tokenizer is one of bytes, so that ids can be read; real ids are compared in the shared material. */
#include "../data.h"
#include "../pack.h"
#include "../formats/csv.h"
#include "../formats/json.h"
#include "test.h"

#include <unistd.h>

static struct tokenizer *bytes, *with_bos, *prepending;
static const struct chat_template *chatml, *smollm2;

static const char *put_file(const char *name, const char *text, size_t n)
{
    const char *path = in_folder(name);
    FILE *f;
    remove(path);     /* cutting a file waits for the disk on some file systems */
    f = fopen(path, "wb");
    CHECK(f && fwrite(text, 1, n, f) == n, "%s", path);
    if (f) fclose(f);
    return path;
}

/* GPT-2's characters for bytes: printable ones as they are, the others from U+0100 on. */
static void put_byte(struct text *t, int byte)
{
    int c = byte, b, rest = 0;
    if (!((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174)) {
        for (b = 0; b < byte; b++) rest += !((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174);
        c = 256 + rest;
    }
    if (c == '"' || c == '\\') text_puts(t, "\\");
    if (c < 128) text_printf(t, "%c", c);
    else text_printf(t, "%c%c", 0xc0 | c >> 6, 0x80 | (c & 63));
}

static struct tokenizer *make_tokenizer(const char *dir, const char *normalizer, const char *settings)
{
    struct text t = { NULL, 0, 0, 0 };
    struct tokenizer *made = NULL;
    struct lora_error err;
    char name[64];
    int i;
    text_printf(&t, "{\"added_tokens\":["
        "{\"id\":256,\"content\":\"<|im_start|>\",\"special\":true,\"normalized\":false},{\"id\":257,\"content\":\"<|im_end|>\",\"special\":true,\"normalized\":false},"
        "{\"id\":258,\"content\":\"<s>\",\"special\":true,\"normalized\":false}],\"normalizer\":%s,"
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},\"post_processor\":null,"
        "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{", normalizer);
    for (i = 0; i < 256; i++) {
        text_puts(&t, i ? ",\"" : "\"");
        put_byte(&t, i);
        text_printf(&t, "\":%d", i);
    }
    text_puts(&t, "},\"merges\":[]}}");
    make_directory(in_folder(dir), NULL);
    snprintf(name, sizeof name, "%s/tokenizer.json", dir);
    put_file(name, t.s, t.n);
    snprintf(name, sizeof name, "%s/tokenizer_config.json", dir);
    put_file(name, settings, strlen(settings));
    text_free(&t);
    memset(&err, 0, sizeof err);
    CHECK(!tokenizer_open(&made, in_folder(dir), &err), "%s: %s: %s", err.what, err.where, err.found);
    return made;
}

static struct data_options options(void)
{
    struct data_options o;
    memset(&o, 0, sizeof o);
    o.tokenizer = bytes;
    o.chat = chatml;
    o.vocab = 259;
    return o;
}

/* Row i, read again; the last few that were asked for stay. */
static struct row rows_asked[4];
static const struct row *row_at(const struct dataset *d, int i)
{
    static int next;
    struct row *row = &rows_asked[next++ % 4];
    struct lora_error err = { "", "", "", "", "" };
    int bad = data_row(d, i, row, &err);
    CHECK(!bad, "%s: %s: %s", err.what, err.where, err.found);
    return row;
}

/* A row's text with its targets between [ and ]; a bar where generation would begin. */
static const char *shown(const struct row *row)
{
    static struct text out[2];
    static int which;
    struct text *t = &out[which = !which];
    int i;
    t->n = 0;
    text_puts(t, "");
    for (i = 0; i < row->n; i++) {
        if (i == row->prompt_n && i) text_puts(t, "|");
        if (row->mask[i] && (!i || !row->mask[i - 1])) text_puts(t, "[");
        if (!row->mask[i] && i && row->mask[i - 1]) text_puts(t, "]");
        tokenizer_decode(bytes, &row->ids[i], 1, 0, t, NULL);
    }
    if (row->n && row->mask[row->n - 1]) text_puts(t, "]");
    return t->s;
}

static int read_text(struct dataset *d, const char *name, const char *text, const struct data_options *o,
                     struct lora_error *err)
{
    memset(err, 0, sizeof *err);
    return data_read(d, put_file(name, text, strlen(text)), o, err);
}

/* The file's rows, shown, are those of `want`; NULL-ended. */
static void check_rows(const char *name, const char *text, const struct data_options *o, const char *const *want)
{
    struct dataset d;
    struct lora_error err;
    int i, bad = read_text(&d, name, text, o, &err);
    CHECK(!bad, "%s: %s, expected %s, found %s", err.what, err.where, err.expected, err.found);
    if (bad) return;
    for (i = 0; i < d.n && want[i]; i++) CHECK(!strcmp(shown(row_at(&d, i)), want[i]), "%s, not %s", shown(row_at(&d, i)), want[i]);
    CHECK(i == d.n && !want[i], "%d rows", d.n);
    data_free(&d);
}

static void check_row(const char *text, const struct data_options *o, const char *want)
{
    const char *list[2];
    list[0] = want;
    list[1] = NULL;
    check_rows("row.jsonl", text, o, list);
}

/* Reading fails, and the parts of the error have these words. */
static void check_refused(const char *name, const char *text, const struct data_options *o, const char *where,
                          const char *words)
{
    struct dataset d;
    struct lora_error err;
    char all[1400];
    int bad = read_text(&d, name, text, o, &err);
    snprintf(all, sizeof all, "%s: expected %s, found %s; %s", err.what, err.expected, err.found, err.hint);
    CHECK(bad == -1, "%s was read", text);
    if (!bad) data_free(&d);
    else CHECK(strstr(err.where, where) && strstr(all, words), "%s | %s", err.where, all);
}

/* ---- forms ---- */

#define USER(text) "<|im_start|>user\n" text "<|im_end|>\n"
#define ASK "<|im_start|>assistant\n"

static void test_forms(void)
{
    struct data_options o = options();
    test_begin("messages: every assistant turn with its end of turn");
    check_row("{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"yo\"},"
              "{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b c\"}]}", &o,
              USER("hi") ASK "[yo<|im_end|>]\n" USER("a") ASK "|[b c<|im_end|>]");
    check_row("{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"yo\"},"
              "{\"role\":\"user\",\"content\":\"a\"}]}", &o, USER("hi") ASK "|[yo<|im_end|>]");
    o.chat = smollm2;
    check_row("{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"yo\"}]}", &o,
              "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
              USER("hi") ASK "|[yo<|im_end|>]");
    o.chat = chatml;
    test_begin("prompt and completion as messages: only the completion is trained");
    check_row("{\"prompt\":[{\"role\":\"user\",\"content\":\"1\"},{\"role\":\"assistant\",\"content\":\"2\"},"
              "{\"role\":\"user\",\"content\":\"3\"}],\"completion\":[{\"role\":\"assistant\",\"content\":\"4\"}]}", &o,
              USER("1") ASK "2<|im_end|>\n" USER("3") ASK "|[4<|im_end|>]");
    check_row("{\"prompt\":[{\"role\":\"user\",\"content\":\"3\"}],\"completion\":\"4\"}", &o,
              USER("3") ASK "|[4<|im_end|>]");
    test_begin("prompt and completion as raw text: BOS by the tokenizer's rule, EOS once");
    check_row("{\"prompt\":\"Q: 1\",\"completion\":\" A\"}", &o, "Q: 1|[ A<|im_end|>]");
    check_row("{\"prompt\":\"Q\",\"completion\":\"A<|im_end|>\"}", &o, "Q|[A<|im_end|>]");
    o.tokenizer = with_bos;
    check_row("{\"prompt\":\"Q: 1\",\"completion\":\" A\"}", &o, "<s>Q: 1|[ A<|im_end|>]");
    check_row("{\"text\":\"ab\"}", &o, "<s>|[ab<|im_end|>]");
    check_row("{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"yo\"}]}", &o,
              USER("hi") ASK "|[yo<|im_end|>]");
    check_refused("bos.jsonl", "{\"text\":\"<s>ab\"}", &o, "bos.jsonl, line 1", "two BOS");
    o.tokenizer = bytes;
    test_begin("a tokenizer that marks beginnings: none where a text goes on");
    o.tokenizer = prepending;
    check_row("{\"prompt\":\"Q: 1\",\"completion\":\" A\"}", &o, "_Q: 1|[ A<|im_end|>]");
    check_row("{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"yo\"},"
              "{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b c\"}]}", &o,
              "<|im_start|>_user\nhi<|im_end|>_\n<|im_start|>_assistant\n[yo<|im_end|>]_\n<|im_start|>_user\na<|im_end|>"
              "_\n<|im_start|>_assistant\n|[b c<|im_end|>]");
    o.tokenizer = bytes;
    test_begin("raw text: every token");
    check_row("{\"text\":\"ab\"}", &o, "[ab<|im_end|>]");
    test_begin("instructions: a user turn where there is a template, else Alpaca's text");
    check_row("{\"instruction\":\"Add.\",\"input\":\"1 2\",\"output\":\"3\"}", &o, USER("Add.\n1 2") ASK "|[3<|im_end|>]");
    check_row("{\"instruction\":\"Add.\",\"input\":\"\",\"output\":\"3\"}", &o, USER("Add.") ASK "|[3<|im_end|>]");
    o.chat = NULL;
    check_row("{\"instruction\":\"Add.\",\"input\":\"1 2\",\"output\":\"3\"}", &o,
              "Below is an instruction that describes a task, paired with an input that provides further context. "
              "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n"
              "### Input:\n1 2\n\n### Response:\n|[3<|im_end|>]");
    check_row("{\"instruction\":\"Add.\",\"output\":\"3\"}", &o,
              "Below is an instruction that describes a task. Write a response that appropriately completes the "
              "request.\n\n### Instruction:\nAdd.\n\n### Response:\n|[3<|im_end|>]");
    check_refused("m.jsonl", "\n{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}", &o, "m.jsonl, line 2",
                  "--chat-template");
}

static void test_templates(void)
{
    static const char two[] = "{\"text\":\"b {labels}\",\"label\":\"y\"}\n{\"text\":\"a\",\"label\":7}\n";
    struct data_options o = options();
    const char *want[3] = { USER("Classify the following text. Answer with the label alone.\n\nText: b {labels}") ASK "|[y<|im_end|>]",
                            USER("Classify the following text. Answer with the label alone.\n\nText: a") ASK "|[7<|im_end|>]", NULL };
    const char *given[3] = { USER("7, y?\nb {labels}") ASK "|[y<|im_end|>]", USER("7, y?\na") ASK "|[7<|im_end|>]", NULL };
    static const char *const others[] = { "p", "q" };
    static const char long_one[] = "{\"text\":\"a\",\"label\":\"y\"}\n{\"text\":\"one two three four five six seven eight nine ten "
                                   "eleven twelve thirteen\",\"label\":\"z\"}\n";
    struct dataset d;
    struct lora_error err;
    char *prompt;
    test_begin("labels and summaries: the default prompt, and one that is given");
    check_rows("label.jsonl", two, &o, want);
    check_row("{\"document\":\"long\",\"summary\":\"short\"}", &o,
              USER("Summarize the following text.\n\nlong") ASK "|[short<|im_end|>]");
    o.prompt_template = "{labels}?\\n{text}";
    check_rows("label.jsonl", two, &o, given);
    CHECK(!read_text(&d, "label.jsonl", two, &o, &err), "%s", err.where);
    CHECK(d.n_labels == 2 && !strcmp(d.labels[0], "7") && !strcmp(d.labels[1], "y"));
    CHECK(d.prompt_template && !strcmp(d.prompt_template, "{labels}?\\n{text}"));
    CHECK(row_at(&d, 0)->label && !strcmp(row_at(&d, 0)->label, "y") && !strcmp(row_at(&d, 0)->completion, "y"));
    data_free(&d);
    CHECK(!read_text(&d, "label.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}\n", &o, &err),
          "%s", err.where);
    CHECK(d.n_labels == 0, "%d labels of rows that have none", d.n_labels);
    data_free(&d);
    o.max_length = 40;
    o.on_overlong = OVERLONG_DROP;
    CHECK(!read_text(&d, "label.jsonl", long_one, &o, &err), "%s", err.where);
    CHECK(d.report.dropped_overlong == 1 && d.n_labels == 2 && !strcmp(d.labels[1], "z"), "%d: what the prompts say", d.n_labels);
    data_free(&d);
    o.prompt_template = "{text}?";
    CHECK(!read_text(&d, "label.jsonl", two, &o, &err), "%s", err.where);
    CHECK(d.n_labels == 2 && !strcmp(d.labels[0], "7") && !strcmp(d.labels[1], "y"));
    data_free(&d);
    CHECK(!read_text(&d, "label.jsonl", long_one, &o, &err), "%s", err.where);
    CHECK(d.report.dropped_overlong == 1 && d.n_labels == 1 && !strcmp(d.labels[0], "y"), "%d: those of rows that are used", d.n_labels);
    o.prompt_template = "{labels}?\\n{text}";
    data_free(&d);
    o.max_length = 0;
    o.labels = others;
    o.n_labels = 2;
    check_row("{\"text\":\"a\",\"label\":\"y\"}", &o, USER("p, q?\na") ASK "|[y<|im_end|>]");
    prompt = data_prompt(&o, "{document}\\n{labels}{text}", "T", &err);
    CHECK(prompt && !strcmp(prompt, "T\np, qT"), "%s", prompt ? prompt : "");
    free(prompt);
    o.labels = NULL;
    o.n_labels = 0;
    CHECK(!data_prompt(&o, "{labels}{text}", "T", &err) && !strcmp(err.what, "nothing for {labels} to stand for"), "%s", err.what);
    o.prompt_template = "{labels} {document}";
    check_refused("s.jsonl", "{\"document\":\"a\",\"summary\":\"y\"}", &o, "the prompt template", "text and label");
    o.prompt_template = "no place";
    check_refused("t.jsonl", two, &o, "--prompt-template", "{text}");
    test_begin("columns renamed; keys that are not used are named");
    o = options();
    CHECK(!read_text(&d, "k.csv", "id,text,category\n1,a,b\n", &o, &err), "%s", err.where);
    CHECK(!strcmp(d.report.form, "text") && !strcmp(d.report.unused, "id, category"), "%s; %s", d.report.form, d.report.unused);
    data_free(&d);
    o.text_column = "question";
    o.label_column = "intent";
    check_row("{\"question\":\"a\",\"intent\":\"y\",\"text\":\"no\"}", &o,
              USER("Classify the following text. Answer with the label alone.\n\nText: a") ASK "|[y<|im_end|>]");
    check_refused("c.jsonl", "{\"question\":\"a\"}", &o, "c.jsonl, line 1", "intent");
}

static void test_ids(void)
{
    struct data_options o = options();
    struct dataset d;
    struct lora_error err;
    int i;
    test_begin("input_ids as they are, no tokenizer needed");
    o.tokenizer = NULL;
    o.chat = NULL;
    CHECK(!read_text(&d, "i.jsonl", "{\"input_ids\":[1,2,3,4],\"labels\":[-100,-100,3,-100],\"attention_mask\":[1,1,1,1]}\n"
                                    "{\"input_ids\":[5,6,7]}\n", &o, &err), "%s %s", err.where, err.expected);
    CHECK(d.n == 2 && row_at(&d, 0)->n == 4 && row_at(&d, 0)->n_targets == 1 && row_at(&d, 0)->mask[2] && row_at(&d, 1)->n_targets == 2);
    for (i = 0; d.n == 2 && i < 4; i++) CHECK(row_at(&d, 0)->ids[i] == i + 1 && row_at(&d, 0)->mask[i] == (i == 2));
    data_free(&d);
    check_refused("i.jsonl", "{\"input_ids\":[1,2],\"labels\":[1]}", &o, "i.jsonl, line 1", "same length");
    check_refused("i.jsonl", "{\"input_ids\":[1,2],\"labels\":[1,259]}", &o, "line 1", "id below 259");
    check_refused("i.jsonl", "{\"input_ids\":[1,2],\"labels\":[1,-3]}", &o, "line 1", "-100, or an id");
    check_refused("i.jsonl", "{\"input_ids\":[1,2.5]}", &o, "line 1", "whole numbers");
    check_refused("i.jsonl", "{\"input_ids\":[1,1e99]}", &o, "line 1", "whole numbers");
    check_refused("i.jsonl", "{\"input_ids\":[1,-2]}", &o, "line 1", "negative");
    check_refused("i.jsonl", "{\"input_ids\":[1,259]}", &o, "line 1", "ids below 259");
    check_refused("i.jsonl", "{\"input_ids\":[1,2],\"attention_mask\":[1,0]}", &o, "line 1", "padding");
    check_refused("i.jsonl", "{\"text\":\"a\"}", &o, "line 1", "without a tokenizer");
}

/* labels[i] is what the logits at i - 1 are to give, whatever the next input is. */
static void test_labels(void)
{
    static const int wanted[][3] = {    /* position, id, weight: worked out by hand */
        { 0, 9, 1 }, { 0, 2, 1 }, { 1, 8, 1 }, { 1, 4, 1 }, { 2, 6, 1 }
    };
    struct data_options o = options();
    struct dataset d;
    struct pack p = { 0 };
    struct pack_input in[3];
    struct lora_error err;
    int i, k, share;
    test_begin("labels that are other ids than the row's are targets");
    CHECK(!read_text(&d, "i.jsonl", "{\"input_ids\":[1,2,3,5],\"labels\":[7,9,8,-100]}\n{\"input_ids\":[1,2,4],\"labels\":[-100,2,4]}\n"
                     "{\"input_ids\":[1,2,4,5],\"labels\":[-100,-100,-100,6]}\n", &o, &err), "%s %s", err.where, err.expected);
    CHECK(d.n == 3 && row_at(&d, 0)->labels && !row_at(&d, 1)->labels && row_at(&d, 2)->labels && row_at(&d, 0)->n_targets == 2, "%d rows", d.n);
    for (i = 0; i < d.n; i++) {
        const struct row *row = row_at(&d, i);      /* three of four stay */
        in[i].ids = row->ids;
        in[i].mask = row->mask;
        in[i].n = row->n;
        in[i].visit = i;
        in[i].labels = row->labels;
    }
    for (share = 0; share < 2 && d.n == 3; share++) {
        pack_clear(&p);
        CHECK(!pack_rows(&p, in, 3, 0, share, &err) && !pack_finish(&p, &err));
        CHECK(p.N == (share ? 3 : 7) && p.T == 5, "%d tokens, %d targets", p.N, p.T);
        for (i = 0; i < 5; i++) {
            for (k = 0; k < p.T; k++)
                if (p.pos[p.target_row[k]] == wanted[i][0] && p.target_id[k] == wanted[i][1] && p.target_weight[k] == 1) break;
            CHECK(k < p.T, "target %d of share %d", i, share);
        }
    }
    CHECK(data_entry(&d, 0)->hash != data_entry(&d, 1)->hash);
    pack_free(&p);
    data_free(&d);
}

/* ---- files ---- */

static void test_files(void)
{
    struct data_options o = options();
    const char *two[] = { "[a<|im_end|>]", "[b<|im_end|>]", NULL };
    const char *table[] = { USER("Classify the following text. Answer with the label alone.\n\nText: a, \"q\"\nline") ASK "|[x<|im_end|>]",
                            USER("Classify the following text. Answer with the label alone.\n\nText:  b") ASK "|[y z<|im_end|>]", NULL };
    test_begin("JSONL, a JSON array, text lines: the same rows");
    check_rows("a.jsonl", "{\"text\":\"a\"}\n\n{\"text\":\"b\"}", &o, two);
    check_rows("a.jsonl", "\xef\xbb\xbf{\"text\":\"a\"}\r\n{\"text\":\"b\"}\r\n", &o, two);
    check_rows("a.json", " \n[{\"text\":\"a\"},\n{\"text\":\"b\"}]", &o, two);
    check_rows("a.txt", "\xef\xbb\xbf" "a\r\n \t\nb", &o, two);
    test_begin("CSV: quotes, line breaks in them, CRLF, byte order mark, delimiters");
    check_rows("a.csv", "\xef\xbb\xbftext,label\r\n\"a, \"\"q\"\"\nline\",x\r\n\r\n b,\"y z\"", &o, table);
    o.csv_delimiter = ';';
    check_rows("a.CSV", "label;id;text\nx;1;\"a, \"\"q\"\"\nline\"\ny z;2; b\n", &o, table);
    test_begin("files that are refused, with the line");
    o = options();
    check_refused("b.jsonl", "{\"text\":\"a\"}\n\n{\"text\":1}", &o, "b.jsonl, line 3", "text");
    check_refused("b.jsonl", "{\"text\":\"a\"}\n{\"text\"", &o, "b.jsonl, line 2", "");
    check_refused("b.jsonl", "{\"text\":\"a\"}\n{\"prompt\":\"a\",\"completion\":\"b\"}", &o, "line 2", "another form");
    check_refused("b.jsonl", "{\"text\":\"a\",\"label\":\"b\"}\n{\"text\":\"a\"}", &o, "line 2", "another form");
    check_refused("b.jsonl", "{\"txt\":\"a\"}", &o, "line 1", "keys txt");
    check_refused("b.jsonl", "7", &o, "line 1", "no object");
    check_refused("b.jsonl", "{\"text\":\"a\\u0000b\"}", &o, "line 1", "NUL");
    check_refused("b.jsonl", "{\"messages\":[],\"tools\":[{}]}", &o, "line 1", "tools");
    check_refused("b.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"tool_calls\":[1]}]}", &o, "line 1", "tool_calls");
    check_refused("b.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}", &o, "line 1", "");
    check_refused("b.jsonl", "", &o, "b.jsonl", "no rows");
    check_refused("b.json", "[{\"text\":\"a\"},\n{\"txt\":\"a\"}]", &o, "b.json, line 2", "another form");
    check_refused("b.json", "[{\"text\":\"a\"},", &o, "b.json", "");
    check_refused("b.csv", "text,label\na,b\nc\n", &o, "b.csv, line 3", "2 fields");
    check_refused("b.csv", "text,label\nx,y\nx,\"a,b\nc,d\ne,f\n", &o, "b.csv, line 3", "closing quote");    /* where it opens */
    check_refused("b.csv", "\xff\xfet", &o, "b.csv", "found UTF-16; save the file as UTF-8");
    check_refused("b.jsonl", "\xfe\xff{", &o, "b.jsonl", "found UTF-16; save the file as UTF-8");
    check_refused("b.csv", "text,label\n\"a\"x,b\n", &o, "b.csv, line 2", "after a closing quote");
    check_refused("b.csv", "text,text\na,b\n", &o, "b.csv, line 1", "two columns");
    check_refused("b.csv", "text,label\ra,b\r", &o, "b.csv, line 1", "CR alone");
    check_refused("b.csv", "text,label\r\na\rb,c\r\n", &o, "b.csv, line 2", "CR alone");
    check_refused("b.csv", "text,label\n\"a\nb\",c\nd,\n", &o, "b.csv, line 4", "an empty one");
    check_refused("b.csv", "text,label\n", &o, "b.csv", "no rows");
}

static void test_damage(void)
{
    static const char *const files[] = {
        "a.csv", "text,label\r\n\"a, \"\"q\"\"\nline\",x\r\n b,\"y z\"\n",
        "a.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"h\\u00e9\"},{\"role\":\"assistant\",\"content\":\"y\"}]}\n",
        "a.json", "[{\"input_ids\":[1,2,3],\"labels\":[-100,2,3]}]", NULL };
    static const char other[] = { 0, '"', ',', '\n', '}', ']', '\\', '9', (char)0xff };
    struct data_options o = options();
    struct dataset d;
    struct lora_error err;
    int f, read = 0, refused = 0;
    size_t i, k;
    test_begin("files cut anywhere, or with any byte changed, are refused or read");
    for (f = 0; files[f]; f += 2) {
        size_t n = strlen(files[f + 1]);
        for (i = 0; i < n; i++)
            for (k = 0; k <= sizeof other; k++) {
                char copy[256];
                memcpy(copy, files[f + 1], n);
                if (k < sizeof other) copy[i] = other[k];
                memset(&err, 0, sizeof err);
                if (data_read(&d, put_file(files[f], copy, k < sizeof other ? n : i), &o, &err)) {
                    refused++;
                    if (!err.what[0]) CHECK(0, "no error for byte %d of %s", (int)i, files[f]);
                } else {
                    read++;
                    data_free(&d);
                }
            }
    }
    CHECK(read > 100 && refused > 100, "%d read, %d refused", read, refused);
}

/* ---- lengths, duplicates, splits ---- */

static void test_lengths(void)
{
    static const char rows[] = "{\"prompt\":\"abcdef\",\"completion\":\"g\"}\n{\"prompt\":\"a\",\"completion\":\"bcd\"}\n"
                               "{\"prompt\":\"a\",\"completion\":\"b\"}\n";
    static const char turns[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},"
                                "{\"role\":\"user\",\"content\":\"twelve\"},{\"role\":\"assistant\",\"content\":\"d\"}]}\n";
    struct data_options o = options();
    struct dataset d;
    struct lora_error err;
    test_begin("rows that are too long: refused, dropped or cut, and counted");
    o.max_length = 4;
    check_refused("l.jsonl", rows, &o, "l.jsonl, line 1", "at most 4 tokens");
    o.on_overlong = OVERLONG_DROP;
    CHECK(!read_text(&d, "l.jsonl", rows, &o, &err) && d.n == 1 && d.report.dropped_overlong == 2 && row_at(&d, 0)->source == 2);
    CHECK(!strcmp(d.report.form, "prompt and completion") && !d.report.unused[0], "%s; %s", d.report.form, d.report.unused);
    CHECK(d.report.rows == 3 && d.report.used == 1 && d.report.tokens == 3 && d.report.targets == 2 && d.report.longest == 3);
    data_free(&d);
    o.on_overlong = OVERLONG_TRUNCATE;
    CHECK(!read_text(&d, "l.jsonl", rows, &o, &err) && d.n == 2 && d.report.truncated == 2 && d.report.without_targets == 1);
    CHECK(d.n == 2 && !strcmp(shown(row_at(&d, 0)), "a|[bcd]") && row_at(&d, 0)->source == 1);
    data_free(&d);
    o.max_length = 8;           /* as many as the longest has */
    CHECK(!read_text(&d, "l.jsonl", rows, &o, &err) && d.n == 3 && d.report.longest == 8 && !d.report.truncated);
    data_free(&d);
    o.max_length = 1;
    check_refused("l.jsonl", rows, &o, "l.jsonl", "3 without targets");
    o.max_length = 40;          /* cut in its second question */
    CHECK(!read_text(&d, "l.jsonl", turns, &o, &err) && d.n == 1 && d.report.truncated == 1);
    CHECK(row_at(&d, 0)->n == 40 && row_at(&d, 0)->prompt_n == 40, "%d of %d", row_at(&d, 0)->prompt_n, row_at(&d, 0)->n);
    data_free(&d);
}

static void test_split(void)
{
    struct data_options o = options();
    struct dataset d, e;
    struct lora_error err;
    struct text t = { NULL, 0, 0, 0 };
    int i, k, both = 0, moved;
    test_begin("a split takes a share, keeps duplicates together, and stays in order");
    for (i = 0; i < 400; i++) text_printf(&t, "{\"text\":\"row %d\"}\n", i % 200);
    CHECK(!read_text(&d, "s.jsonl", t.s, &o, &err) && d.n == 400 && d.report.duplicates == 200);
    data_free(&d);
    CHECK(!data_read_split(&d, 0.25, &e, in_folder("s.jsonl"), &o, &err), "%s", err.what);
    moved = e.n;
    CHECK(e.n > 60 && e.n < 140 && d.n + e.n == 400, "%d of 400", e.n);
    CHECK(d.report.used == d.n && e.report.used == e.n && e.report.duplicates == e.n / 2);
    for (i = 0; i < d.n; i++)
        for (k = 0; k < e.n; k++) both += data_entry(&d, i)->hash == data_entry(&e, k)->hash;
    CHECK(both == 0, "%d rows on both sides", both);
    for (i = 1; i < e.n; i++) CHECK(data_entry(&e, i)->source > data_entry(&e, i - 1)->source);
    for (i = 0; i < e.n; i++) {
        char want[40];
        snprintf(want, sizeof want, "[row %d<|im_end|>]", data_entry(&e, i)->source % 200);
        CHECK(!strcmp(shown(row_at(&e, i)), want), "%s, not %s", shown(row_at(&e, i)), want);
    }
    data_free(&e);
    data_free(&d);
    CHECK(!data_read_split(&d, 0.25, &e, in_folder("s.jsonl"), &o, &err) && e.n == moved);
    data_free(&e);
    data_free(&d);
    put_file("s.jsonl", "{\"text\":\"one\"}", 14);
    CHECK(data_read_split(&d, 0.5, &e, in_folder("s.jsonl"), &o, &err) && !d.files && !e.blocks);
    text_free(&t);
}

static void test_parts(void)
{
    static const char row[] = "{\"text\":\"T\",\"label\":\"a b\"}";
    struct data_options o = options();
    struct dataset d;
    struct ids ids = { NULL, 0, 0 };
    struct lora_error err;
    int chat;
    test_begin("a label's ids and a prompt's are those of the row");
    for (chat = 0; chat < 2; chat++) {
        char user[100] = "Classify the following text. Answer with the label alone.\n\nText: T";
        o.chat = chat ? chatml : NULL;
        CHECK(!read_text(&d, "p.jsonl", row, &o, &err), "%s", err.where);
        ids.n = 0;
        CHECK(!data_prompt_ids(&o, user, &ids, &err) && (int)ids.n == row_at(&d, 0)->prompt_n, "%s", err.what);
        CHECK(!data_label_ids(&o, "a b", &ids, &err) && (int)ids.n == row_at(&d, 0)->n, "%s", err.what);
        CHECK(!memcmp(ids.v, row_at(&d, 0)->ids, ids.n * sizeof(int)));
        data_free(&d);
    }
    ids_free(&ids);
}

/* ---- others' ids ---- */

static void test_real(void)
{
    const char *dir = shared_dir(), *model = getenv("LORA_MODEL");
    struct data_options o = options();
    struct tokenizer *t = NULL;
    struct json_document j = { NULL, NULL };
    struct text rows = { NULL, 0, 0, 0 };
    struct dataset d;
    struct lora_error err;
    const struct json *step, *row, *id, *m;
    char path[1024];
    int i = 0, k;
    if (!dir || !model) {
        test_skip("rows of Banking77 as PEFT trained on them", "needs the shared goldens, and LORA_MODEL: SmolLM2's GGUF");
        return;
    }
    test_begin("rows of Banking77 as PEFT trained on them");
    snprintf(path, sizeof path, "%s/goldens/smollm2/lora/batches.json", dir);
    CHECK(!json_read(&j, path, &err) && !tokenizer_open(&t, model, &err), "%s: %s", err.what, err.where);
    for (step = json_get(j.root, "steps")->child; step; step = step->next)
        for (row = step->child; row; row = row->next) {
            text_puts(&rows, "{\"text\":");
            json_put(&rows, json_get(row, "text"));
            text_puts(&rows, ",\"label\":");
            json_put(&rows, json_get(row, "label"));
            text_puts(&rows, "}\n");
        }
    o.tokenizer = t;
    o.chat = chat_recognise(tokenizer_chat_template(t), &err);
    o.vocab = 49152;
    o.prompt_template = "Classify this customer message into one intent.\\nMessage: {text}";
    CHECK(!read_text(&d, "banking.jsonl", rows.s, &o, &err), "%s: %s", err.what, err.where);
    for (step = json_get(j.root, "steps")->child; step; step = step->next)
        for (row = step->child; row; row = row->next, i++) {
            CHECK(i < d.n && row_at(&d, i)->n == (int)json_get(row, "ids")->n, "row %d", i);
            for (id = json_get(row, "ids")->child, m = json_get(row, "mask")->child, k = 0; id && i < d.n && k < row_at(&d, i)->n;
                 id = id->next, m = m->next, k++)
                CHECK(row_at(&d, i)->ids[k] == (int)id->number && row_at(&d, i)->mask[k] == (int)m->number, "row %d, id %d", i, k);
        }
    CHECK(i == d.n);
    data_free(&d);
    tokenizer_close(t);
    json_free(&j);
    text_free(&rows);
}

int main(void)
{
    struct lora_error err;
    int i;
    if (folder_make()) return 1;
    test_begin("a tokenizer of bytes");
    bytes = make_tokenizer("bytes", "null", "{\"eos_token\":\"<|im_end|>\"}");
    prepending = make_tokenizer("prepend", "{\"type\":\"Prepend\",\"prepend\":\"_\"}", "{\"eos_token\":\"<|im_end|>\"}");
    with_bos = make_tokenizer("bos", "null", "{\"eos_token\":\"<|im_end|>\",\"bos_token\":\"<s>\",\"add_bos_token\":true}");
    CHECK((chatml = chat_find("chatml", &err)) != NULL);
    CHECK((smollm2 = chat_find("smollm2", &err)) != NULL);
    if (bytes && with_bos && prepending && chatml && smollm2) {
        test_forms();
        test_templates();
        test_ids();
        test_labels();
        test_files();
        test_damage();
        test_lengths();
        test_split();
        test_parts();
        test_real();
    }
    tokenizer_close(bytes);
    tokenizer_close(with_bos);
    tokenizer_close(prepending);
    for (i = 0; i < 4; i++) row_free(&rows_asked[i]);
    remove_tree(folder, NULL);
    return test_end();
}
