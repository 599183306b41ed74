/* test_tokenizer.c - ids against a plain second merger, hand-made cases, others' vectors; files that
 * are refused by name; time. */
#include "../tokenizer.h"
#include "../formats/gguf.h"
#include "../formats/json.h"
#include "../pretoken.h"
#include "../unicode.h"
#include "test.h"

#include <time.h>
#include <unistd.h>

static char temporary[64];

static char *in_temporary(const char *name)
{
    static char path[2][256];
    static int which;
    which = !which;
    snprintf(path[which], sizeof path[which], "%s/%s", temporary, name);
    return path[which];
}

/* Not by the library, which waits for the disk; nor by cutting a file, which some file systems wait for. */
static void put_bytes(const char *name, const char *text, size_t n)
{
    const char *path = in_temporary(name);
    FILE *f;
    remove(path);
    f = fopen(path, "wb");
    CHECK(f && fwrite(text, 1, n, f) == n, "%s", name);
    if (f) fclose(f);
}

static void put_file(const char *name, const char *text) { put_bytes(name, text, strlen(text)); }

static struct tokenizer *open_or_fail(const char *path)
{
    struct tokenizer *t = NULL;
    struct lora_error err = { { 0 }, { 0 }, { 0 }, { 0 }, { 0 } };
    int bad = tokenizer_open(&t, path, &err);
    CHECK(!bad, "%s: %s: expected %s, found %s", err.what, err.where, err.expected, err.found);
    return bad ? NULL : t;
}

/* ids of the text as "1 2 3". */
static const char *encode(const struct tokenizer *t, const char *text, size_t n, int flags)
{
    static struct text out[2];
    static int which;
    struct ids ids = { 0 };
    struct lora_error err;
    struct text *o = &out[which = !which];
    size_t i;
    o->n = 0;
    text_puts(o, "");
    if (tokenizer_encode(t, text, n, flags, &ids, &err)) text_puts(o, "error");
    for (i = 0; i < ids.n; i++) text_printf(o, "%s%d", i ? " " : "", ids.v[i]);
    ids_free(&ids);
    return o->s;
}

static void check_ids(const struct tokenizer *t, const char *text, int flags, const char *wanted)
{
    const char *got = encode(t, text, strlen(text), flags);
    CHECK(!strcmp(got, wanted), "\"%s\": %s, expected %s", text, got, wanted);
}

static void check_round_trip(const struct tokenizer *t, const char *text, size_t n)
{
    struct ids ids = { 0 };
    struct text out = { 0 };
    int bad = tokenizer_encode(t, text, n, TOKENIZE_TEXT_ONLY, &ids, NULL)
        || tokenizer_decode(t, ids.v, ids.n, 0, &out, NULL);
    CHECK(!bad && out.n == n && !memcmp(out.s ? out.s : "", text, n), "\"%.*s\"", n > 40 ? 40 : (int)n, text);
    ids_free(&ids);
    text_free(&out);
}

/* ---- small vocabularies of our own ---- */

/* The characters that stand for bytes in a byte-level vocabulary, written down a second time: the
 * printable ones of Latin-1, then U+0100 and on. */
static void put_byte(struct text *out, int byte)
{
    char s[4];
    uint32_t c = (uint32_t)byte;
    int b, rest = 0;
    if (!((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174)) {
        for (b = 0; b < byte; b++) rest += !((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174);
        c = 256u + (uint32_t)rest;
    }
    text_add(out, s, utf8_put(s, c));
}

#define MOST 400
struct vocabulary {
    int n, n_merges;
    struct { unsigned char bytes[64]; int n; } token[MOST];
    int left[MOST], right[MOST], joined[MOST];
};

static int find_token(const struct vocabulary *v, const unsigned char *s, int n)
{
    int i;
    for (i = 0; i < v->n; i++)
        if (v->token[i].n == n && !memcmp(v->token[i].bytes, s, (size_t)n)) return i;
    return -1;
}

/* 256 bytes in a scrambled order, then joins of random tokens made of the letters a to d and space. */
static void make_vocabulary(struct vocabulary *v, uint64_t seed, int merges)
{
    static const char letters[] = "abcd ";
    uint64_t i, key = random_key(seed, "vocabulary");
    memset(v, 0, sizeof *v);
    for (i = 0; i < 256; i++) {
        v->token[i].n = 1;
        v->token[i].bytes[0] = (unsigned char)(i * 167 + 13);
    }
    v->n = 256;
    for (i = 0; v->n_merges < merges && i < 100000; i++) {
        uint64_t r = random_bits(key, i), pool = (uint64_t)(v->n - 256) + 5;
        int pair[2], k, old;
        for (k = 0; k < 2; k++, r >>= 24) {
            int at = (int)(r % 65536 % pool);
            pair[k] = at < 5 ? find_token(v, (const unsigned char *)letters + at, 1) : 256 + at - 5;
        }
        if (v->token[pair[0]].n + v->token[pair[1]].n > 12) continue;
        for (old = 0; old < v->n_merges && (v->left[old] != pair[0] || v->right[old] != pair[1]);) old++;
        if (old < v->n_merges) continue;
        memcpy(v->token[v->n].bytes, v->token[pair[0]].bytes, (size_t)v->token[pair[0]].n);
        memcpy(v->token[v->n].bytes + v->token[pair[0]].n, v->token[pair[1]].bytes, (size_t)v->token[pair[1]].n);
        v->token[v->n].n = v->token[pair[0]].n + v->token[pair[1]].n;
        k = find_token(v, v->token[v->n].bytes, v->token[v->n].n);     /* another way to the same token */
        v->left[v->n_merges] = pair[0];
        v->right[v->n_merges] = pair[1];
        v->joined[v->n_merges++] = k < 0 ? v->n : k;
        if (k < 0) v->n++;
    }
}

static void put_token_text(struct text *out, const struct vocabulary *v, int id)
{
    struct text raw = { 0 };
    int i;
    for (i = 0; i < v->token[id].n; i++) put_byte(&raw, v->token[id].bytes[i]);
    json_put_string(out, raw.s, raw.n);
    text_free(&raw);
}

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}"
#define BYTES_ALONE "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false}"
#define SEQUENCE(a, b) "{\"type\":\"Sequence\",\"pretokenizers\":[" a "," b "]}"
#define DIGITS "{\"type\":\"Digits\",\"individual_digits\":true}"

/* Writes DIR/tokenizer.json under the temporary folder and opens it. */
static struct tokenizer *make_tokenizer(const struct vocabulary *v, const char *dir, const char *pre, const char *added,
                                        const char *post, const char *model)
{
    struct text s = { 0 };
    char name[128];
    int i;
    text_printf(&s, "{\"version\":\"1.0\",\"added_tokens\":%s,\"normalizer\":null,\"pre_tokenizer\":%s,"
                    "\"post_processor\":%s,\"decoder\":" BYTE_LEVEL ",\"model\":{\"type\":\"BPE\",%s\"vocab\":{",
                added, pre, post, model);
    for (i = 0; i < v->n; i++) {
        if (i) text_puts(&s, ",");
        put_token_text(&s, v, i);
        text_printf(&s, ":%d", i);
    }
    text_puts(&s, "},\"merges\":[");
    for (i = 0; i < v->n_merges; i++) {     /* both spellings of a merge */
        text_puts(&s, i ? "," : "");
        if (i % 2) {
            struct text pair = { 0 };
            int k;
            for (k = 0; k < v->token[v->left[i]].n; k++) put_byte(&pair, v->token[v->left[i]].bytes[k]);
            text_puts(&pair, " ");
            for (k = 0; k < v->token[v->right[i]].n; k++) put_byte(&pair, v->token[v->right[i]].bytes[k]);
            json_put_string(&s, pair.s, pair.n);
            text_free(&pair);
        } else {
            text_puts(&s, "[");
            put_token_text(&s, v, v->left[i]);
            text_puts(&s, ",");
            put_token_text(&s, v, v->right[i]);
            text_puts(&s, "]");
        }
    }
    text_puts(&s, "]}}");
    make_directory(in_temporary(dir), NULL);
    snprintf(name, sizeof name, "%s/tokenizer.json", dir);
    put_file(name, s.s);
    text_free(&s);
    return open_or_fail(in_temporary(dir));
}

/* The textbook merger: look at all pairs, join the leftmost of the lowest rank, begin again. */
static void merge_plainly(const struct vocabulary *v, const char *text, size_t n, struct text *out)
{
    int *ids = malloc((n + 1) * sizeof *ids), i, r, best;
    size_t k, at = 0;
    for (k = 0; k < n; k++) ids[k] = find_token(v, (const unsigned char *)text + k, 1);
    for (;;) {
        best = v->n_merges;
        for (k = 0; k + 1 < n; k++)
            for (r = 0; r < best; r++)
                if (v->left[r] == ids[k] && v->right[r] == ids[k + 1]) {
                    best = r;
                    at = k;
                }
        if (best == v->n_merges) break;
        ids[at] = v->joined[best];
        memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof *ids);
        n--;
    }
    out->n = 0;
    text_puts(out, "");
    for (i = 0; i < (int)n; i++) text_printf(out, "%s%d", i ? " " : "", ids[i]);
    free(ids);
}

static void test_merges(void)
{
    static struct vocabulary v;
    struct text wanted = { 0 };
    uint64_t seed, i;
    test_begin("merges in the order of their ranks, against a plain merger");
    for (seed = 0; seed < 6; seed++) {
        struct tokenizer *t;
        make_vocabulary(&v, seed, 20 * (int)seed + 4);
        if (!(t = make_tokenizer(&v, "merges", BYTES_ALONE, "[]", "null", ""))) continue;
        for (i = 0; i < 120; i++) {
            char text[64];
            size_t n = (size_t)(random_bits(seed, i) % sizeof text), k;
            for (k = 0; k < n; k++) text[k] = "abcd "[random_bits(seed + 100, i * 64 + k) % 5];
            merge_plainly(&v, text, n, &wanted);
            CHECK(!strcmp(encode(t, text, n, 0), wanted.s), "seed %d, \"%.*s\"", (int)seed, (int)n, text);
        }
        tokenizer_close(t);
    }
    text_free(&wanted);
}

static void test_bytes(void)
{
    static struct vocabulary v;
    struct tokenizer *t;
    int a, b;
    char s[2];
    test_begin("every sequence of one or two bytes comes back");
    make_vocabulary(&v, 3, 60);
    if (!(t = make_tokenizer(&v, "bytes", SEQUENCE(DIGITS, BYTE_LEVEL), "[]", "null", ""))) return;
    for (a = 0; a < 256; a++) {
        s[0] = (char)a;
        check_round_trip(t, s, 1);
        for (b = 0; b < 256; b++) {
            s[1] = (char)b;
            check_round_trip(t, s, 2);
        }
    }
    tokenizer_close(t);
    test_begin("a million random code points come back");
    if (!(t = open_or_fail(in_temporary("bytes")))) return;
    for (a = 0; a < 100; a++) {
        struct text text = { 0 };
        for (b = 0; b < 10000; b++) {
            char c[4];
            uint32_t x = (uint32_t)(random_bits(7, (uint64_t)(a * 10000 + b)) % 0x10f800);
            text_add(&text, c, utf8_put(c, x < 0xd800 ? x : x + 0x800));
        }
        check_round_trip(t, text.s, text.n);
        text_free(&text);
    }
    tokenizer_close(t);
}

/* ---- pieces ---- */

/* `wanted` has | where the rule cuts. */
static void check_pieces(const struct split_rule *rule, const char *wanted)
{
    struct text text = { 0 }, got = { 0 };
    size_t i, n;
    for (i = 0; wanted[i]; i++)
        if (wanted[i] != '|') text_add(&text, wanted + i, 1);
    for (i = 0; i < text.n; i += n) {
        n = rule->next(text.s + i, text.n - i);
        if (!n || n > text.n - i) break;
        if (i) text_puts(&got, "|");
        text_add(&got, text.s + i, n);
    }
    CHECK(got.s && !strcmp(got.s, wanted), "%s: \"%s\", expected \"%s\"", rule->name, got.s ? got.s : "", wanted);
    text_free(&text);
    text_free(&got);
}

static void test_pieces(void)
{
    static const char *const gpt2[] = {
        "Hello| world", "Hello|,| world|!", "a|  | b", "  | a", "  ", "a|  ", "a| \n", " |\n|x", "\n|\n|x", "\t|x",
        "I|'m", "we|'ll| they|'re| you|'ve", "he|'d| it|'s| can|'t", "I|'|M", "'s|top", " '|quoted|'",
        "abc|123|def", "x| 12| y|12", "\xc3\xa9t\xc3\xa9", "\xd9\xa3\xd9\xa4|x", "x|\xc2\xbd", "\xe4\xb8\xad\xe6\x96\x87",
        "a|\xc2\xa0|b", "a|\xe3\x80\x80|\xe3\x80\x80|b", "!!!| ???", "a|\xcc\x81", " \xf0\x9f\x99\x82|x", "\xff\xfe", "a|\xff|b",
        "a|\xc2|b", "\xe2\x80\x8b|x", "x| |\xc2\x85|y", NULL
    };
    static const char *const digits[] = { "ab|1|2| c", "1|2", "x", "a|\xc2\xbd|\xc2\xb2|b", "  |3", NULL };
    static const char *const llama3[] = {
        "Hello| world", "a| | b", "we|'LL| it|'S| x|'\xc5\xbf", "123|456|7", " |12", "\tfoo|\t|1", "(foo|)", "!\r\n\n|x", " !?\n| x",
        "  \n| | x", "a|\n\n  \n| | b", "\n|\t", "x|  ", "\xcc\x81" "abc|\xcc\x81|1", "\xc2\xa0" "a", "a|  |\xe3\x80\x80" "b", NULL
    };
    static const char *const qwen2[] = { "1|2|3", "x| |1", "it|'s", "a|\r\n|b", NULL };
    static const char *const tekken[] = {
        "Hello|World", "HELLO| world", "hello|WORLD", "a|Bc", "XMLHttp", "it|'s", "//\n/|x", "1|2", "\xe4\xb8\xad" "ABc", "\xe4\xb8\xad|AB| ",
        "A\xcc\x81" "Bc", " \n", "\xcc\x81|AB", "(Ab|)", "\xca\xb0" "Ab|A", NULL
    };
    int i;
    test_begin("the pieces of Llama-3's, Qwen's and Tekken's rules");
    for (i = 0; llama3[i]; i++) check_pieces(&split_llama3, llama3[i]);
    for (i = 0; qwen2[i]; i++) check_pieces(&split_qwen2, qwen2[i]);
    for (i = 0; tekken[i]; i++) check_pieces(&split_tekken, tekken[i]);
    check_pieces(&split_punctuation, "a |.,$|b |<=>| |~");
    check_pieces(&split_triples, "ab|123|45 |678|9");
    test_begin("the pieces of GPT-2's rule and of digits");
    for (i = 0; gpt2[i]; i++) check_pieces(&split_gpt2, gpt2[i]);
    for (i = 0; digits[i]; i++) check_pieces(&split_digits, digits[i]);
    check_pieces(&split_digit_runs, "ab|12| c|3");
    CHECK(split_by_pattern(split_gpt2.pattern) == &split_gpt2);
    CHECK(!split_by_pattern("\\w+"));
}

static void test_unicode(void)
{
    static const struct { uint32_t c; enum unicode_class k; } cases[] = {
        { 'A', CLASS_UPPER }, { 'z', CLASS_LOWER }, { '0', CLASS_NUMBER }, { ' ', CLASS_SPACE }, { 0x85, CLASS_SPACE },
        { 0x1c, CLASS_OTHER }, { '!', CLASS_PUNCTUATION }, { '$', CLASS_OTHER }, { 0xaa, CLASS_LETTER },
        { 0x1c5, CLASS_UPPER }, { 0x301, CLASS_MARK }, { 0xbd, CLASS_NUMBER }, { 0x4e2d, CLASS_LETTER },
        { 0x200b, CLASS_OTHER }, { 0x3000, CLASS_SPACE }, { 0x1f642, CLASS_OTHER }, { 0x10ffff, CLASS_OTHER },
        { 0x20000, CLASS_LETTER }, { 0x1e900, CLASS_UPPER }, { UTF8_BAD, CLASS_OTHER }, { 0, CLASS_OTHER }
    };
    uint32_t c, back;
    size_t i;
    char s[4];
    test_begin("UTF-8 and classes");
    for (i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK(unicode_class(cases[i].c) == cases[i].k, "U+%04X: %d", (unsigned)cases[i].c, unicode_class(cases[i].c));
    for (c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 0x101) {
        size_t n = utf8_put(s, c);
        int surrogate = c >= 0xd800 && c < 0xe000;
        CHECK(utf8_next(s, n, &back) == (surrogate ? 1 : n) && back == (surrogate ? UTF8_BAD : c), "U+%04X", (unsigned)c);
        if (!surrogate) CHECK(utf8_whole(s, n) == n && (n == 1 || utf8_whole(s, n - 1) == 0), "U+%04X", (unsigned)c);
    }
    CHECK(utf8_whole("a\xff", 2) == 2 && utf8_whole("\x80\x80\x80\x80", 4) == 4 && utf8_whole("\xf0\x80", 2) == 2);
    CHECK(utf8_next("\xc0\x80", 2, &c) == 1 && c == UTF8_BAD);
    CHECK(utf8_next("\xf4\x90\x80\x80", 4, &c) == 1 && c == UTF8_BAD);
}

/* ---- added and special tokens, BOS and EOS ---- */

#define ADDED(id, content, special, more) "{\"id\":" id ",\"content\":\"" content "\",\"special\":" special more "}"
#define PLAIN ",\"normalized\":false,\"lstrip\":false,\"rstrip\":false,\"single_word\":false"
#define LEFT ",\"normalized\":false,\"lstrip\":true"
#define RIGHT ",\"normalized\":false,\"rstrip\":true"

static void make_letters(struct vocabulary *v)
{
    int i;
    memset(v, 0, sizeof *v);
    for (i = 0; i < 256; i++) {
        v->token[i].n = 1;
        v->token[i].bytes[0] = (unsigned char)i;
    }
    v->n = 256;
}

static void test_added(void)
{
    static struct vocabulary v;
    static const char added[] = "[" ADDED("300", "<s>", "true", PLAIN) "," ADDED("301", "<s>x", "true", PLAIN) ","
        ADDED("302", "<t>", "false", PLAIN) "," ADDED("303", "<l>", "true", LEFT) "," ADDED("304", "<r>", "true", RIGHT)
        "," ADDED("305", "<n>", "false", "") "," ADDED("306", "xy", "false", ",\"normalized\":true") "]";
    static const int all[] = { 300, 'a', 302 };
    struct text out = { 0 };
    struct tokenizer *t;
    test_begin("added tokens: longest at the leftmost place, white space taken along, text only");
    make_letters(&v);
    if (!(t = make_tokenizer(&v, "added", BYTE_LEVEL, added, "null", ""))) return;
    check_ids(t, "a<s>b", 0, "97 300 98");
    check_ids(t, "<s>x<s>", 0, "301 300");
    check_ids(t, "<s<s>", 0, "60 115 300");
    check_ids(t, "a<s>b", TOKENIZE_TEXT_ONLY, "97 60 115 62 98");
    check_ids(t, "<t>", TOKENIZE_TEXT_ONLY, "302");
    check_ids(t, "a \n<l> b", 0, "97 303 32 98");
    check_ids(t, "a <r> \n\xc2\xa0" "b", 0, "97 32 304 98");
    check_ids(t, "<r> <l>", 0, "304 303");
    check_ids(t, "<s> <l>", 0, "300 303");
    check_ids(t, "<n>xy<s>xy", 0, "305 306 301 121");      /* the raw ones first, over the whole text */
    check_ids(t, "", TOKENIZE_SPECIAL, "");
    CHECK(tokenizer_size(t) == 307 && tokenizer_id(t, "<t>") == 302 && tokenizer_id(t, "<q>") == -1);
    CHECK(tokenizer_is_special(t, 300) && !tokenizer_is_special(t, 302) && !tokenizer_is_special(t, 97));
    CHECK(!strcmp(tokenizer_token(t, 304), "<r>") && !tokenizer_token(t, 260) && !tokenizer_token(t, -1));
    CHECK(!tokenizer_decode(t, all, 3, 0, &out, NULL) && !strcmp(out.s, "<s>a<t>"), "%s", out.s);
    out.n = 0;
    CHECK(!tokenizer_decode(t, all, 3, 1, &out, NULL) && !strcmp(out.s, "a<t>"), "%s", out.s);
    CHECK(tokenizer_decode(t, (int[]){ 260 }, 1, 0, &out, NULL) == -1);
    CHECK(tokenizer_decode(t, (int[]){ 307 }, 1, 0, &out, NULL) == -1);
    CHECK(tokenizer_decode(t, (int[]){ -1 }, 1, 0, &out, NULL) == -1);
    text_free(&out);
    tokenizer_close(t);
}

#define TEMPLATE "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}}," \
    "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[300]," \
    "\"tokens\":[\"<s>\"]}}}"

static void check_rule(const char *config, const char *post, int bos, int eos, const char *wanted)
{
    static struct vocabulary v;
    struct tokenizer *t;
    make_letters(&v);
    make_directory(in_temporary("rule"), NULL);
    put_file("rule/tokenizer_config.json", config);
    t = make_tokenizer(&v, "rule", BYTE_LEVEL, "[" ADDED("300", "<s>", "true", PLAIN) ","
                       ADDED("301", "</s>", "true", PLAIN) "]", post, "");
    if (!t) return;
    CHECK(tokenizer_bos(t) == bos && tokenizer_eos(t) == eos, "%s", config);
    CHECK(tokenizer_adds_bos(t) == (wanted[0] == '3'), "%s", config);
    check_ids(t, "a", TOKENIZE_SPECIAL, wanted);
    check_ids(t, "a", 0, "97");
    tokenizer_close(t);
}

static void test_bos(void)
{
    static const char both[] = "{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"</s>\"},\"add_bos_token\":true,"
                               "\"add_eos_token\":true}";
    struct tokenizer *t;
    test_begin("BOS and EOS: the post-processor's rule, else the configuration's");
    check_rule("{}", "null", -1, -1, "97");
    check_rule("{\"bos_token\":\"<s>\",\"eos_token\":null}", "null", 300, -1, "97");
    check_rule(both, "null", 300, 301, "300 97 301");
    check_rule(both, TEMPLATE, 300, 301, "300 97");
    check_rule(both, BYTE_LEVEL, 300, 301, "97");
    check_rule("{\"bos_token\":\"<s>\"}", "{\"type\":\"Sequence\",\"processors\":[" BYTE_LEVEL "," TEMPLATE "]}", 300, -1,
               "300 97");
    test_begin("the chat template: jinja file, text, the default of several");
    make_directory(in_temporary("rule"), NULL);
    put_file("rule/tokenizer_config.json", "{\"chat_template\":[{\"name\":\"x\",\"template\":\"a\"},"
                                           "{\"name\":\"default\",\"template\":\"b\"}]}");
    if ((t = open_or_fail(in_temporary("rule")))) CHECK(!strcmp(tokenizer_chat_template(t), "b"));
    tokenizer_close(t);
    put_file("rule/chat_template.jinja", "c");
    if ((t = open_or_fail(in_temporary("rule")))) CHECK(!strcmp(tokenizer_chat_template(t), "c"));
    tokenizer_close(t);
    remove(in_temporary("rule/chat_template.jinja"));
    put_file("rule/tokenizer_config.json", "{\"chat_template\":\"d\"}");
    put_file("rule/config.json", "{\"bos_token_id\":300,\"eos_token_id\":[301,300]}");
    if ((t = open_or_fail(in_temporary("rule")))) {
        CHECK(!strcmp(tokenizer_chat_template(t), "d"));
        CHECK(tokenizer_bos(t) == 300 && tokenizer_eos(t) == 301);
    }
    tokenizer_close(t);
    remove(in_temporary("rule/config.json"));
}

static void test_stream(void)
{
    static const char text[] = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82\xff z\xe2\x82";
    static struct vocabulary v;
    struct text pending = { 0 }, out = { 0 };
    struct tokenizer *t;
    size_t i, last = 0;
    uint32_t c;
    test_begin("streaming never splits a character and holds back nothing that is no character");
    make_letters(&v);
    if (!(t = make_tokenizer(&v, "stream", BYTE_LEVEL, "[]", "null", ""))) return;
    for (i = 0; i + 1 < sizeof text; i++) {
        CHECK(!tokenizer_stream(t, (unsigned char)text[i], &pending, &out, NULL));
        CHECK(out.n + pending.n == i + 1 && pending.n < 4, "%zu", pending.n);
        for (; last < out.n; last += utf8_next(out.s + last, out.n - last, &c)) { }
        CHECK(last == out.n, "cut inside a character");
    }
    CHECK(pending.n == 2 && !memcmp(out.s, text, out.n) && !memcmp(pending.s, "\xe2\x82", 2));
    text_free(&pending);
    text_free(&out);
    tokenizer_close(t);
}

/* ---- what is refused ---- */

#define SMALL(added, normalizer, pre, post, decoder, model) "{\"added_tokens\":" added ",\"normalizer\":" normalizer \
    ",\"pre_tokenizer\":" pre ",\"post_processor\":" post ",\"decoder\":" decoder ",\"model\":" model "}"
#define SMALL_MODEL(more) "{\"type\":\"BPE\"" more ",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"

static void test_refused(void)
{
    static const struct { const char *json, *named; } cases[] = {
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"type\":\"Unigram\",\"vocab\":[]}"), "Unigram" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, SMALL_MODEL(",\"dropout\":0.1")), "dropout" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, SMALL_MODEL(",\"end_of_word_suffix\":\"</w>\"")), "suffix" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, SMALL_MODEL(",\"unk_token\":\"<u>\"")), "<u>" },
        { SMALL("[]", "{\"type\":\"Lowercase\"}", BYTE_LEVEL, "null", BYTE_LEVEL, SMALL_MODEL("")), "Lowercase" },
        { SMALL("[]", "null", "{\"type\":\"Whitespace\"}", "null", BYTE_LEVEL, SMALL_MODEL("")), "Whitespace" },
        { SMALL("[]", "null", SEQUENCE(BYTE_LEVEL, DIGITS), "null", BYTE_LEVEL, SMALL_MODEL("")), "Digits" },
        { SMALL("[]", "null", SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a-z]+\"},\"behavior\":\"Isolated\","
                "\"invert\":false}", BYTE_LEVEL), "null", BYTE_LEVEL, SMALL_MODEL("")), "[a-z]+" },
        { SMALL("[]", "null", SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}\"},\"behavior\":"
                "\"MergedWithNext\",\"invert\":false}", BYTE_LEVEL), "null", BYTE_LEVEL, SMALL_MODEL("")), "MergedWithNext" },
        { SMALL("[]", "null", BYTE_LEVEL, "{\"type\":\"RobertaProcessing\"}", BYTE_LEVEL, SMALL_MODEL("")), "Roberta" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", "{\"type\":\"WordPiece\"}", SMALL_MODEL("")), "WordPiece" },
        { SMALL("[" ADDED("9", "w", "false", ",\"single_word\":true") "]", "null", BYTE_LEVEL, "null", BYTE_LEVEL,
                SMALL_MODEL("")), "single_word" },
        { SMALL("[" ADDED("9", "a", "false", PLAIN) "]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, SMALL_MODEL("")), "model.vocab" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}"), "once" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"vocab\":{\"a\":0.5},\"merges\":[]}"), "an id" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"vocab\":{\"a\":99999999},\"merges\":[]}"), "an id" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}"), "joined" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"vocab\":{\"a\":0},\"merges\":[\"a\"]}"), "merges" },
        { SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, "{\"vocab\":{},\"merges\":[]}"), "vocabulary" },
        { "[]", "object" },
    };
    struct tokenizer *t;
    struct lora_error err;
    size_t i;
    test_begin("what is not implemented or wrong is refused by name");
    make_directory(in_temporary("refused"), NULL);
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        char all[2048];
        put_file("refused/tokenizer.json", cases[i].json);
        memset(&err, 0, sizeof err);
        CHECK(tokenizer_open(&t, in_temporary("refused"), &err) == -1 && !t, "case %zu", i);
        snprintf(all, sizeof all, "%s: %s: %s: %s", err.what, err.where, err.expected, err.found);
        CHECK(strstr(all, cases[i].named) != NULL, "case %zu: \"%s\" does not name %s", i, all, cases[i].named);
    }
    CHECK(tokenizer_open(&t, in_temporary("nothing"), &err) == -1 && strstr(err.found, "no such directory"));
    put_file("refused/tokenizer.json", SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL, SMALL_MODEL("")));
    put_file("refused/tokenizer_config.json", "{\"bos_token\":\"<q>\"}");
    CHECK(tokenizer_open(&t, in_temporary("refused"), &err) == -1 && strstr(err.found, "<q>"), "%s", err.found);
    remove(in_temporary("refused/tokenizer_config.json"));
    if (!(t = open_or_fail(in_temporary("refused")))) return;
    check_ids(t, "aab", 0, "0 2");
    CHECK(tokenizer_encode(t, "ac", 2, 0, &(struct ids){ 0 }, &err) == -1 && strstr(err.where, "0x63"), "%s", err.where);
    tokenizer_close(t);
    put_file("refused/tokenizer.json", SMALL("[]", "null", BYTE_LEVEL, "null", BYTE_LEVEL,
                                             SMALL_MODEL(",\"unk_token\":\"b\",\"fuse_unk\":true")));
    if (!(t = open_or_fail(in_temporary("refused")))) return;
    check_ids(t, "accccd", 0, "2");     /* unknown ones are one token, which merges like any other */
    tokenizer_close(t);
}

static void try_damaged(const char *text, size_t n)
{
    struct tokenizer *t = NULL;
    struct lora_error err;
    memset(&err, 0, sizeof err);
    put_bytes("damaged/tokenizer.json", text, n);
    if (tokenizer_open(&t, in_temporary("damaged"), &err)) CHECK(err.what[0] && !t);
    else encode(t, "ab <s>", 6, TOKENIZE_SPECIAL);
    tokenizer_close(t);
}

static void test_damaged(void)
{
    static const char file[] = SMALL("[" ADDED("3", "<s>", "true", PLAIN) "]", "null", SEQUENCE(DIGITS, BYTE_LEVEL),
        "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}],"
        "\"special_tokens\":{\"<s>\":{\"ids\":[3]}}}", "{\"type\":\"ByteLevel\"}", SMALL_MODEL(""));
    static const char other[] = { 0, '"', '{', '}', ',', '9', '-', ' ' };
    char damaged[sizeof file];
    size_t i, k, n = sizeof file - 1;
    struct tokenizer *t;
    test_begin("a tokenizer.json cut anywhere or with any byte changed is an error or is read");
    make_directory(in_temporary("damaged"), NULL);
    put_file("damaged/tokenizer.json", file);
    if ((t = open_or_fail(in_temporary("damaged")))) check_ids(t, "ab<s>", TOKENIZE_SPECIAL, "3 2 3");
    tokenizer_close(t);
    for (i = 0; i < n; i++) try_damaged(file, i);
    for (i = 0; i < n; i++)
        for (k = 0; k < sizeof other; k++) {
            memcpy(damaged, file, n);
            damaged[i] = other[k];
            try_damaged(damaged, n);
        }
    CHECK(1);
}

/* ---- time ---- */

static double seconds_for(const struct tokenizer *t, const char *text, size_t n)
{
    double best = 1e9;
    int i;
    for (i = 0; i < 3; i++) {
        struct ids ids = { 0 };
        clock_t start = clock();        /* the processor's time: other programs run beside */
        double seconds;
        CHECK(!tokenizer_encode(t, text, n, 0, &ids, NULL) && ids.n);
        seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        if (seconds < best) best = seconds;
        ids_free(&ids);
    }
    return best;
}

static void test_time(void)
{
    enum { SHORT = 1 << 15, LONG = 1 << 19 };
    static struct vocabulary v;
    static const char *const names[] = { "one letter", "random letters", "spaces", "words" };
    char *text = malloc(LONG);
    struct tokenizer *t;
    int kind, i;
    test_begin("16 times the text takes no more than 64 times as long (n squared: 256)");
    make_vocabulary(&v, 5, 120);
    if (!(t = make_tokenizer(&v, "time", BYTE_LEVEL, "[" ADDED("500", "aaaaaaaab", "true", PLAIN) "]", "null", ""))) return;
    for (kind = 0; kind < 4; kind++) {
        double one, many;
        for (i = 0; i < LONG; i++)
            text[i] = kind == 0 ? 'a' : kind == 2 ? ' ' : "abcd "[random_bits(9, (uint64_t)i) % (kind == 1 ? 4 : 5)];
        one = seconds_for(t, text, SHORT);
        many = seconds_for(t, text, LONG);
        CHECK(many <= 64 * one, "%s: %.4f s, then %.4f s", names[kind], one, many);
    }
    tokenizer_close(t);
    free(text);
}

/* ---- GGUF and saving ---- */

static void put_le(struct text *t, uint64_t v, int bytes)
{
    for (; bytes--; v >>= 8) {
        char c = (char)(v & 255);
        text_add(t, &c, 1);
    }
}

static void put_gguf_string(struct text *t, const char *s)
{
    put_le(t, strlen(s), 8);
    text_puts(t, s);
}

static void put_key(struct text *t, const char *key, int type)
{
    put_gguf_string(t, key);
    put_le(t, (uint64_t)type, 4);
}

/* The vocabulary with <s> (control) and <u> (user defined) behind it, as a GGUF without tensors. */
static void put_gguf(const struct vocabulary *v, const char *name, const char *pre, int add_bos)
{
    struct text t = { 0 };
    int i, k;
    text_puts(&t, "GGUF");
    put_le(&t, 3, 4);
    put_le(&t, 0, 8);
    put_le(&t, 9, 8);
    put_key(&t, "general.architecture", GGUF_STRING), put_gguf_string(&t, "llama");
    put_key(&t, "tokenizer.ggml.model", GGUF_STRING), put_gguf_string(&t, "gpt2");
    put_key(&t, "tokenizer.ggml.pre", GGUF_STRING), put_gguf_string(&t, pre);
    put_key(&t, "tokenizer.ggml.bos_token_id", GGUF_U32), put_le(&t, (uint64_t)v->n, 4);
    put_key(&t, "tokenizer.ggml.add_bos_token", GGUF_BOOL), put_le(&t, (uint64_t)add_bos, 1);
    put_key(&t, "tokenizer.chat_template", GGUF_STRING), put_gguf_string(&t, "{{ \"x\" }}\n");
    put_key(&t, "tokenizer.ggml.tokens", GGUF_ARRAY), put_le(&t, GGUF_STRING, 4), put_le(&t, (uint64_t)v->n + 2, 8);
    for (i = 0; i < v->n; i++) {
        struct text raw = { 0 };
        for (k = 0; k < v->token[i].n; k++) put_byte(&raw, v->token[i].bytes[k]);
        put_gguf_string(&t, raw.s);
        text_free(&raw);
    }
    put_gguf_string(&t, "<s>"), put_gguf_string(&t, "<u>");
    put_key(&t, "tokenizer.ggml.token_type", GGUF_ARRAY), put_le(&t, GGUF_I32, 4), put_le(&t, (uint64_t)v->n + 2, 8);
    for (i = 0; i < v->n + 2; i++) put_le(&t, i < v->n ? 1 : i == v->n ? 3 : 4, 4);
    put_key(&t, "tokenizer.ggml.merges", GGUF_ARRAY), put_le(&t, GGUF_STRING, 4), put_le(&t, (uint64_t)v->n_merges, 8);
    for (i = 0; i < v->n_merges; i++) {
        struct text raw = { 0 };
        for (k = 0; k < v->token[v->left[i]].n; k++) put_byte(&raw, v->token[v->left[i]].bytes[k]);
        text_puts(&raw, " ");
        for (k = 0; k < v->token[v->right[i]].n; k++) put_byte(&raw, v->token[v->right[i]].bytes[k]);
        put_gguf_string(&t, raw.s);
        text_free(&raw);
    }
    put_bytes(name, t.s, t.n);
    text_free(&t);
}

/* Both give the same ids for random texts, and know the same of themselves. */
static void check_same(const struct tokenizer *a, const struct tokenizer *b)
{
    const char *x = tokenizer_chat_template(a), *y = tokenizer_chat_template(b);
    uint64_t i;
    CHECK(tokenizer_hash(a) == tokenizer_hash(b));
    CHECK(tokenizer_size(a) == tokenizer_size(b) && tokenizer_bos(a) == tokenizer_bos(b));
    CHECK(tokenizer_eos(a) == tokenizer_eos(b) && tokenizer_adds_bos(a) == tokenizer_adds_bos(b));
    CHECK(!x == !y && (!x || !strcmp(x, y)), "templates");
    for (i = 0; i < 200; i++) {
        struct text text = { 0 };
        uint64_t n = random_bits(11, i) % 40, k;
        for (k = 0; k < n; k++) {
            static const char *const parts[] = { "a", "b", "ca", "d", " ", "1", "12", "<s>", "<u>", "\xc3\xa9", "\n", "'s" };
            text_puts(&text, parts[random_bits(12, i * 64 + k) % 12]);
        }
        CHECK(!strcmp(encode(a, text.s ? text.s : "", text.n, (int)(i % 4)), encode(b, text.s ? text.s : "", text.n, (int)(i % 4))),
              "\"%s\"", text.s);
        text_free(&text);
    }
}

static void check_saved(const char *path, const char *dir)
{
    struct tokenizer *t = open_or_fail(path), *again;
    struct lora_error err;
    if (!t) return;
    make_directory(in_temporary(dir), NULL);
    CHECK(tokenizer_save(t, in_temporary(dir), &err) == 0);
    if ((again = open_or_fail(in_temporary(dir)))) check_same(t, again);
    tokenizer_close(again);
    tokenizer_close(t);
}

static void test_gguf(void)
{
    static struct vocabulary v;
    struct tokenizer *t;
    struct lora_error err;
    int add_bos;
    test_begin("a GGUF's tokenizer: pre rules, special tokens, BOS; saved and read again it is the same");
    make_vocabulary(&v, 8, 40);
    for (add_bos = 0; add_bos < 2; add_bos++) {
        put_gguf(&v, "t.gguf", add_bos ? "smollm" : "gpt-2", add_bos);
        if (!(t = open_or_fail(in_temporary("t.gguf")))) return;
        CHECK(tokenizer_bos(t) == v.n && tokenizer_eos(t) == -1 && tokenizer_adds_bos(t) == add_bos);
        CHECK(tokenizer_is_special(t, v.n) && !tokenizer_is_special(t, v.n + 1));
        CHECK(!strcmp(tokenizer_chat_template(t), "{{ \"x\" }}\n"));
        tokenizer_close(t);
        check_saved(in_temporary("t.gguf"), add_bos ? "saved1" : "saved0");
        check_saved(in_temporary(add_bos ? "saved1" : "saved0"), "copied");
    }
    put_gguf(&v, "t.gguf", "deepseek", 0);
    CHECK(tokenizer_open(&t, in_temporary("t.gguf"), &err) == -1 && strstr(err.found, "deepseek"), "%s", err.found);
}

/* ---- SentencePiece ---- */

static void put_varint(struct text *t, uint64_t v)
{
    for (; v > 127; v >>= 7) put_le(t, (v & 127) | 128, 1);
    put_le(t, v, 1);
}

static void put_field(struct text *t, int number, const char *data, size_t n)
{
    put_varint(t, (uint64_t)number << 3 | 2);
    put_varint(t, n);
    text_add(t, data, n);
}

static void put_piece(struct text *t, const char *piece, float score, int type)
{
    struct text m = { 0 };
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    put_field(&m, 1, piece, strlen(piece));
    put_le(&m, 2 << 3 | 5, 1);
    put_le(&m, bits, 4);
    put_le(&m, 3 << 3, 1);
    put_varint(&m, (uint64_t)type);
    put_field(t, 1, m.s, m.n);
    text_free(&m);
}

/* <unk> 0, <s> 1, </s> 2, <0x00> 3 to 258, U+2581 259, a 260, b 261, ab 262, U+2581 a 263, two marks 264. */
static void put_sentencepiece(struct text *t, const char *trainer, const char *normalizer, size_t n)
{
    char byte[8];
    int i;
    put_piece(t, "<unk>", 0, 2);
    put_piece(t, "<s>", 0, 3);
    put_piece(t, "</s>", 0, 3);
    for (i = 0; i < 256; i++) {
        sprintf(byte, "<0x%02X>", (unsigned)i);
        put_piece(t, byte, 0, 6);
    }
    put_piece(t, "\xe2\x96\x81", -9, 1);
    put_piece(t, "a", -9, 1);
    put_piece(t, "b", -9, 1);
    put_piece(t, "ab", -1, 1);
    put_piece(t, "\xe2\x96\x81" "a", -2, 1);
    put_piece(t, "\xe2\x96\x81\xe2\x96\x81", -3, 1);
    put_field(t, 2, trainer, strlen(trainer));
    put_field(t, 3, normalizer, n);
}

static void test_sentencepiece(void)
{
    static const char keep[] = "\x20\x00";      /* remove_extra_whitespaces: 0 */
    static const char *const wrong[] = { "\x18\x01", "\x18\x02\xc0\x01\x01", NULL };
    static const int ids[] = { 1, 263, 260, 3 + 0xc3, 3 + 0xa9 };
    struct text t = { 0 }, out = { 0 }, pending = { 0 };
    struct lora_error err;
    struct tokenizer *k, *again;
    char piece[1026] = "";
    size_t i, n;
    test_begin("tokenizer.model: merges by score, the mark for spaces, bytes of unknown characters");
    make_directory(in_temporary("spm"), NULL);
    put_sentencepiece(&t, "\x18\x02", keep, 2);
    put_bytes("spm/tokenizer.model", t.s, t.n);
    if ((k = open_or_fail(in_temporary("spm")))) {
        check_ids(k, "a", TOKENIZE_SPECIAL, "1 263");
        check_ids(k, "ab", 0, "259 262");              /* ab before the mark and a */
        check_ids(k, "aab a", 0, "263 262 263");
        check_ids(k, " a  b", 0, "259 263 264 261");
        check_ids(k, "a\xc3\xa9\n", 0, "263 198 172 13");
        check_ids(k, "a<s>a", 0, "263 1 263");
        check_ids(k, "ab<s>a", TOKENIZE_CONTINUE, "262 1 263");
        check_ids(k, " a", TOKENIZE_CONTINUE, "263");
        check_ids(k, "", TOKENIZE_SPECIAL, "1");
        check_ids(k, "<s>", TOKENIZE_TEXT_ONLY, "259 63 118 65");
        CHECK(tokenizer_bos(k) == 1 && tokenizer_eos(k) == 2 && tokenizer_adds_bos(k));
        CHECK(!tokenizer_decode(k, ids, 5, 0, &out, NULL) && !strcmp(out.s, "<s> aa\xc3\xa9"), "%s", out.s);
        out.n = 0;
        CHECK(!tokenizer_decode(k, ids, 5, 1, &out, NULL) && !strcmp(out.s, "aa\xc3\xa9"), "%s", out.s);
        for (i = 1, out.n = 0; i < 5; i++) CHECK(!tokenizer_stream(k, ids[i], &pending, &out, NULL));
        CHECK(!strcmp(out.s, "aa\xc3\xa9") && !pending.n, "%s", out.s);
        make_directory(in_temporary("spm2"), NULL);
        CHECK(!tokenizer_save(k, in_temporary("spm2"), &err));
        remove(in_temporary("spm2/tokenizer.model"));
        put_file("spm2/tokenizer_config.json", "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}");
        if ((again = open_or_fail(in_temporary("spm2")))) check_same(k, again);
        tokenizer_close(again);
    }
    tokenizer_close(k);
    t.n = 0;
    put_sentencepiece(&t, "\x18\x02", "", 0);
    put_bytes("spm/tokenizer.model", t.s, t.n);
    if ((k = open_or_fail(in_temporary("spm")))) check_ids(k, "  a   b ", 0, "263 259 261");
    tokenizer_close(k);
    for (i = 0; wrong[i]; i++) {
        t.n = 0;
        put_sentencepiece(&t, wrong[i], "", 0);
        put_bytes("spm/tokenizer.model", t.s, t.n);
        CHECK(tokenizer_open(&k, in_temporary("spm"), &err) == -1, "case %zu", i);
    }
    t.n = 0;
    memset(piece, 'a', sizeof piece - 1);
    put_sentencepiece(&t, "\x18\x02", "", 0);
    put_piece(&t, piece, -1, 1);
    put_bytes("spm/tokenizer.model", t.s, t.n);
    CHECK(tokenizer_open(&k, in_temporary("spm"), &err) == -1 && strstr(err.expected, "at most 1024 bytes"), "%s", err.expected);
    t.n = 0;
    put_sentencepiece(&t, "\x18\x02", "\x12\x01x", 3);
    put_bytes("spm/tokenizer.model", t.s, t.n);
    CHECK(tokenizer_open(&k, in_temporary("spm"), &err) == -1 && strstr(err.found, "table of characters"), "%s", err.found);
    test_begin("a tokenizer.model cut anywhere or with any byte changed is an error or is read");
    t.n = 0;
    put_sentencepiece(&t, "\x18\x02", keep, 2);
    for (i = 0, n = t.n; i < n; i += i < n - 150 && i > 100 ? 37 : 1) {
        put_bytes("spm/tokenizer.model", t.s, i);
        if (!tokenizer_open(&k, in_temporary("spm"), &err)) encode(k, "a b", 3, 0);
        else CHECK(err.what[0] != 0);
        tokenizer_close(k);
        t.s[i] ^= 0x5a;
        put_bytes("spm/tokenizer.model", t.s, n);
        t.s[i] ^= 0x5a;
        if (!tokenizer_open(&k, in_temporary("spm"), &err)) encode(k, "a b", 3, 0);
        else CHECK(err.what[0] != 0);
        tokenizer_close(k);
    }
    put_file("spm/tokenizer.model", "IQ== 0\nIg== 1\n");
    CHECK(tokenizer_open(&k, in_temporary("spm"), &err) == -1 && !strcmp(err.found, "2"), "%s", err.found);
    put_file("spm/tokenizer.model", "IQ== 0\nIg= 1\n");
    CHECK(tokenizer_open(&k, in_temporary("spm"), &err) == -1 && strstr(err.where, "line 2"), "%s", err.where);
    text_free(&t);
    text_free(&out);
    text_free(&pending);
}

static void check_nfc(const char *text, const char *wanted)
{
    struct text out = { 0 };
    CHECK(!unicode_nfc(&out, text, strlen(text), NULL) && !strcmp(out.s, wanted), "\"%s\" gives \"%s\"", text, out.s);
    text_free(&out);
}

static void test_normalizers(void)
{
    static struct vocabulary v;
    struct tokenizer *t;
    test_begin("normalization form C");
    check_nfc("plain", "plain");
    check_nfc("e\xcc\x81", "\xc3\xa9");
    check_nfc("\xe1\xbb\x87", "\xe1\xbb\x87");                                  /* two marks */
    check_nfc("e\xcc\x82\xcc\xa3", "\xe1\xbb\x87");                             /* in the other order */
    check_nfc("\xe2\x84\xab", "\xc3\x85");                                      /* the Angstrom sign */
    check_nfc("\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81");          /* Hangul */
    check_nfc("\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc");                      /* excluded from composing */
    check_nfc("a\xff\xcc\x81\xc3", "a\xff\xcc\x81\xc3");                        /* what is no UTF-8 stays */
    check_nfc("\xcc\x81" "e\xcd\x8f\xcc\x81", "\xcc\x81" "e\xcd\x8f\xcc\x81");  /* a starter between */
    test_begin("normalizers and Metaspace of a tokenizer.json");
    make_letters(&v);
    make_directory(in_temporary("meta"), NULL);
    put_file("meta/tokenizer.json", SMALL("[" ADDED("9", "<s>", "true", PLAIN) "]", "null",
             "{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"first\",\"split\":false}", "null",
             "{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"first\",\"split\":false}",
             "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"\xe2\x96\x81\":2,\"\xe2\x96\x81" "a\":3},\"merges\":[\"\xe2\x96\x81 a\"]}"));
    if ((t = open_or_fail(in_temporary("meta")))) {
        struct text out = { 0 };
        check_ids(t, "a b<s>a", 0, "3 2 1 9 0");
        check_ids(t, " a", 0, "3");
        check_ids(t, "<s>a", 0, "9 0");
        CHECK(!tokenizer_decode(t, (int[]){ 3, 2, 1 }, 3, 0, &out, NULL) && !strcmp(out.s, "a b"), "%s", out.s);
        text_free(&out);
    }
    tokenizer_close(t);
    put_file("meta/tokenizer.json", SMALL("[" ADDED("9", "<s>", "true", ",\"normalized\":true") "]",
             "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"b\"},{\"type\":\"Replace\","
             "\"pattern\":{\"String\":\"bb\"},\"content\":\"a\"},{\"type\":\"NFC\"}]}", BYTES_ALONE, "null",
             "{\"type\":\"ByteLevel\"}", SMALL_MODEL("")));
    if ((t = open_or_fail(in_temporary("meta")))) {
        check_ids(t, "aa", 0, "1 0 0");
        check_ids(t, "bbb", 0, "0 0");
        check_ids(t, "<s>a", 0, "9 0");     /* looked for as b<s> */
    }
    tokenizer_close(t);
}

/* ---- vectors from elsewhere ---- */

/* An array of numbers as "1 2 3". */
static const char *numbers(const struct json *v, struct text *out)
{
    const struct json *x;
    out->n = 0;
    text_puts(out, "");
    for (x = v ? v->child : NULL; x; x = x->next) text_printf(out, "%s%.0f", x == v->child ? "" : " ", x->number);
    return out->s;
}

static char *shared_path(const char *name)
{
    static char path[2][1024];
    static int which;
    which = !which;
    snprintf(path[which], sizeof path[which], "%s/%s", shared_dir(), name);
    return path[which];
}

static void check_vector(const struct tokenizer *t, const struct json *text, const char *ids, int flags)
{
    const char *got = encode(t, text->string, text->n, flags);
    CHECK(!strcmp(got, ids), "\"%.60s\": %.80s, expected %.80s", text->string, got, ids);
}

/* Texts that end with a line of their own; ids a line. */
static void check_llamacpp(const struct tokenizer *t, const char *name)
{
    static const char mark[] = "\n__ggml_vocab_test__\n";
    struct file_map in, out;
    struct lora_error err;
    char path[256], *texts, *ids, *text, *line, *end;
    snprintf(path, sizeof path, "vectors/llamacpp-vocab/%s.inp", name);
    if (file_open(&in, shared_path(path), &err)) { CHECK(0, "%s", path); return; }
    snprintf(path, sizeof path, "vectors/llamacpp-vocab/%s.out", name);
    if (file_open(&out, shared_path(path), &err)) { CHECK(0, "%s", path); return; }
    text = texts = new_string_n((const char *)in.data, in.size, NULL);
    line = ids = new_string_n((const char *)out.data, out.size, NULL);
    for (; (end = strstr(text, mark)); text = end + strlen(mark)) {
        size_t n = strcspn(line, "\n");
        const char *got = encode(t, text, (size_t)(end - text), 0);
        while (*line == ' ') line++, n--;
        CHECK(strlen(got) == n && !memcmp(got, line, n), "\"%.*s\": %s", (int)(end - text), text, got);
        line += n + (line[n] != 0);
    }
    free(texts);
    free(ids);
    file_close(&in);
    file_close(&out);
}

/* 22 texts of inputs.json, and the ids that Transformers gives them. */
static void check_multilingual(const struct tokenizer *t, const char *name)
{
    struct json_document inputs, d;
    struct lora_error err;
    struct text ids = { 0 };
    const struct json *list, *e;
    if (json_read(&inputs, shared_path("vectors/hf-multilingual/inputs.json"), &err)
        || json_read(&d, shared_path(name), &err)) {
        CHECK(0, "%s", err.where);
        return;
    }
    list = json_get(inputs.root, "inputs");
    for (e = list ? list->child : NULL; e; e = e->next) {
        const struct json *id = json_get(e, "id"), *wanted = json_get(json_get(d.root, "entries"), id->string);
        check_vector(t, json_get(e, "text"), numbers(json_get(wanted, "input_ids"), &ids), TOKENIZE_SPECIAL);
    }
    text_free(&ids);
    json_free(&inputs);
    json_free(&d);
}

/* The texts of this model, and the long text whose ids are a file of their own. */
static void check_encoded(const struct tokenizer *t, const char *model, const char *long_text)
{
    struct json_document d, l;
    struct lora_error err;
    struct text ids = { 0 };
    const struct json *list, *e;
    if (json_read(&d, shared_path("vectors/hf-encoded-text/tokenizer_tests.json"), &err)
        || json_read(&l, shared_path(long_text), &err)) {
        CHECK(0, "%s", err.where);
        return;
    }
    list = json_get(d.root, model);
    for (e = list ? list->child : NULL; e; e = e->next)
        check_vector(t, json_get(e, "input"), numbers(json_get(json_get(e, "encoded"), "input_ids"), &ids), TOKENIZE_SPECIAL);
    check_vector(t, json_get(l.root, "text"), numbers(json_get(l.root, "token_ids"), &ids), TOKENIZE_SPECIAL);
    text_free(&ids);
    json_free(&d);
    json_free(&l);
}

static void test_gpt2(void)
{
    struct tokenizer *t;
    if (!shared_dir()) {
        test_skip("GPT-2's vectors", "no ../shared");
        return;
    }
    test_begin("GPT-2's vectors: llama.cpp's texts, 22 languages, tokenizer.json and GGUF alike");
    if (!(t = open_or_fail(shared_path("tokenizers/gpt2")))) return;
    check_llamacpp(t, "ggml-vocab-gpt-2.gguf");
    check_multilingual(t, "vectors/hf-multilingual/openai-community__gpt2.json");
    check_encoded(t, "distilgpt2", "vectors/hf-encoded-text/gpt2_encoded_tokens.json");
    tokenizer_close(t);
    if (!(t = open_or_fail(shared_path("vectors/llamacpp-vocab/ggml-vocab-gpt-2.gguf")))) return;
    check_llamacpp(t, "ggml-vocab-gpt-2.gguf");
    tokenizer_close(t);
    check_saved(shared_path("vectors/llamacpp-vocab/ggml-vocab-gpt-2.gguf"), "saved2");
}

/* A folder under the temporary one with copies of these files of the shared one, and a configuration. */
static const char *borrow(const char *dir, const char *from, const char *name, const char *config)
{
    struct file_map f;
    char path[256];
    make_directory(in_temporary(dir), NULL);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (file_open(&f, shared_path(from), NULL)) { CHECK(0, "%s", from); return ""; }
    put_bytes(path, (const char *)f.data, f.size);
    file_close(&f);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    if (config) put_file(path, config);
    return in_temporary(dir);
}

/* A conversation in Vicuna's form, piece by piece, EOS after each answer: ids and labels (Axolotl). */
static void check_conversation(const struct tokenizer *t)
{
    static const char system[] = "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. ";
    struct json_document d, w;
    struct lora_error err;
    struct ids ids = { 0 };
    struct text piece = { 0 };
    const struct json *m, *id, *label;
    size_t i = 0, answer = 0;
    if (json_read(&d, shared_path("vectors/sft-labels/conversation.json"), &err)
        || json_read(&w, shared_path("vectors/sft-labels/conversation.tokenized.json"), &err)) {
        CHECK(0, "%s", err.where);
        return;
    }
    id = json_get(w.root, "input_ids")->child;
    label = json_get(w.root, "labels")->child;
    CHECK(!tokenizer_encode(t, system, strlen(system), TOKENIZE_SPECIAL, &ids, &err));
    for (m = json_get(d.root, "conversations")->child; m; m = m->next) {
        const char *value = json_get(m, "value")->string;
        int asks = !strcmp(json_get(m, "from")->string, "human");
        piece.n = 0;
        if (asks) text_printf(&piece, "USER: %s ", value);
        else text_puts(&piece, "ASSISTANT:");
        CHECK(!tokenizer_encode(t, piece.s, piece.n, 0, &ids, &err));
        answer = ids.n;
        piece.n = 0;
        text_printf(&piece, "%s</s>", value);      /* this tokenizer takes </s> after a word for text */
        if (!asks) CHECK(!tokenizer_encode(t, piece.s, piece.n, 0, &ids, &err));
        if (!asks && !grow_array((void **)&ids.v, &ids.capacity, ids.n + 1, sizeof *ids.v, &err))
            ids.v[ids.n++] = tokenizer_eos(t);
        for (; i < ids.n && id && label; i++, id = id->next, label = label->next)
            CHECK((int)id->number == ids.v[i] && (int)label->number == (i < answer ? -100 : ids.v[i]), "id %zu", i);
    }
    CHECK(!id && i == ids.n, "%zu ids", i);
    ids_free(&ids);
    text_free(&piece);
    json_free(&d);
    json_free(&w);
}

static void test_llama(void)
{
    struct tokenizer *t;
    if (!shared_dir()) {
        test_skip("Llama's and Qwen's vectors", "no ../shared");
        return;
    }
    test_begin("Llama-2's and TinyLlama's vectors: tokenizer.json, tokenizer.model and GGUF alike");
    if ((t = open_or_fail(shared_path("tokenizers/llama2")))) {
        check_conversation(t);
        check_llamacpp(t, "ggml-vocab-llama-spm.gguf");
        check_encoded(t, "coreml-projects/Llama-2-7b-chat-coreml", "vectors/hf-encoded-text/llama_encoded.json");
        check_multilingual(t, "vectors/hf-multilingual/TinyLlama__TinyLlama-1.1B-Chat-v1.0.json");
    }
    tokenizer_close(t);
    if ((t = open_or_fail(shared_path("tokenizers/tinyllama-chat"))))
        check_multilingual(t, "vectors/hf-multilingual/TinyLlama__TinyLlama-1.1B-Chat-v1.0.json");
    tokenizer_close(t);
    if ((t = open_or_fail(borrow("llama2", "tokenizers/llama2/tokenizer.model", "tokenizer.model", NULL)))) {
        check_llamacpp(t, "ggml-vocab-llama-spm.gguf");
        check_encoded(t, "coreml-projects/Llama-2-7b-chat-coreml", "vectors/hf-encoded-text/llama_encoded.json");
        check_multilingual(t, "vectors/hf-multilingual/TinyLlama__TinyLlama-1.1B-Chat-v1.0.json");
    }
    tokenizer_close(t);
    if ((t = open_or_fail(shared_path("vectors/llamacpp-vocab/ggml-vocab-llama-spm.gguf")))) {
        check_llamacpp(t, "ggml-vocab-llama-spm.gguf");
        check_multilingual(t, "vectors/hf-multilingual/TinyLlama__TinyLlama-1.1B-Chat-v1.0.json");
    }
    tokenizer_close(t);
    check_saved(shared_path("vectors/llamacpp-vocab/ggml-vocab-llama-spm.gguf"), "saved4");
    test_begin("Qwen's vectors, from tiktoken's text; Llama-3's special tokens");
    if ((t = open_or_fail(borrow("qwen", "tokenizers/qwen/qwen.tiktoken", "qwen.tiktoken", NULL)))) {
        check_multilingual(t, "vectors/hf-multilingual/Qwen__Qwen2.5-0.5B.json");
        CHECK(tokenizer_size(t) == 151646 && tokenizer_id(t, "<|im_start|>") == 151644 && !tokenizer_adds_bos(t));
    }
    tokenizer_close(t);
    if ((t = open_or_fail(borrow("llama3", "tokenizers/llama3/tokenizer.model", "tokenizer.model", NULL)))) {
        CHECK(tokenizer_size(t) == 128256 && tokenizer_bos(t) == 128000 && tokenizer_adds_bos(t));
        check_ids(t, "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", TOKENIZE_SPECIAL,
                  "128000 128006 882 128007 271 13347 128009");
        check_ids(t, "<|reserved_special_token_250|>", 0, "128255");
    }
    tokenizer_close(t);
}

static void test_smollm2(void)
{
    const char *path = getenv("LORA_MODEL");
    struct json_document d;
    struct lora_error err;
    struct text ids = { 0 }, out = { 0 };
    const struct json *list, *e;
    struct tokenizer *t;
    if (!path) path = "model/SmolLM2-135M-Instruct.Q4_1.gguf";
    if (!shared_dir() || !file_exists(path)) {
        test_skip("SmolLM2's ids", shared_dir() ? "no model: `make model` fetches it" : "no ../shared");
        return;
    }
    test_begin("SmolLM2's ids: texts both ways, chats");
    if (json_read(&d, shared_path("goldens/smollm2/tokens.json"), &err)) { CHECK(0, "tokens.json"); return; }
    if (!(t = open_or_fail(path))) return;
    list = json_get(d.root, "strings");
    for (e = list ? list->child : NULL; e; e = e->next) {
        const struct json *text = json_get(e, "text"), *v = json_get(e, "ids_smollm"), *x, *part;
        int k;
        check_vector(t, text, numbers(v, &ids), TOKENIZE_SPECIAL);
        for (k = 0; k < 2; k++) {
            part = json_get(e, k ? "decoded_without_special" : "decoded");
            out.n = 0;
            text_puts(&out, "");
            for (x = v->child; x; x = x->next)
                CHECK(!tokenizer_decode(t, (int[]){ (int)x->number }, 1, k, &out, NULL));
            CHECK(out.n == part->n && !memcmp(out.s, part->string, out.n), "\"%.60s\"", text->string);
        }
    }
    list = json_get(d.root, "chats");
    for (e = list ? list->child : NULL; e; e = e->next)
        check_vector(t, json_get(e, "text"), numbers(json_get(e, "ids"), &ids), 0);
    text_free(&ids);
    text_free(&out);
    json_free(&d);
    tokenizer_close(t);
    check_saved(path, "saved3");
}

int main(void)
{
    snprintf(temporary, sizeof temporary, "/tmp/lora-test-tokenizer-%ld", (long)getpid());
    if (make_directory(temporary, NULL)) return 1;
    test_unicode();
    test_pieces();
    test_merges();
    test_bytes();
    test_added();
    test_bos();
    test_stream();
    test_refused();
    test_damaged();
    test_time();
    test_gguf();
    test_sentencepiece();
    test_normalizers();
    test_gpt2();
    test_llama();
    test_smollm2();
    remove_tree(temporary, NULL);
    return test_end();
}
