/* test_tokenizer.c - text to ids and back: a plain second merger, pieces, added tokens, streams; time. */
#include "tokenizer_small.h"
#include "../text/pretoken.h"

#include <time.h>

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
    struct tokenizer *t;
    uint64_t seed, i;
    test_begin("merges in the order of their ranks, against a plain merger");
    for (seed = 0; seed < 6; seed++) {
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
    make_vocabulary(&v, 6, 100);        /* long ones, which are merged in another way than words */
    if ((t = make_tokenizer(&v, "merges", BYTES_ALONE, "[]", "null", "")))
        for (i = 0; i < 40; i++) {
            char text[400];
            size_t n = 10 + (size_t)(random_bits(50, i) % (sizeof text - 10)), k;
            uint64_t letters = 1 + i % 5;
            for (k = 0; k < n; k++) text[k] = "abcd "[random_bits(200, i * 400 + k) % letters];
            merge_plainly(&v, text, n, &wanted);
            CHECK(!strcmp(encode(t, text, n, 0), wanted.s), "\"%.*s\"", (int)n, text);
        }
    tokenizer_close(t);
    text_free(&wanted);
}

/* Every sequence of one or two bytes, UTF-8 or not; then a million code points. */
static void check_bytes(const struct tokenizer *t, uint64_t code_points)
{
    uint64_t i, k;
    int a, b;
    char s[2];
    for (a = 0; a < 256; a++) {
        s[0] = (char)a;
        check_round_trip(t, s, 1);
        for (b = 0; b < 256; b++) {
            s[1] = (char)b;
            check_round_trip(t, s, 2);
        }
    }
    for (i = 0; i < code_points; i += 10000) {
        struct text text = { 0 };
        for (k = 0; k < 10000; k++) {
            char c[4];
            uint32_t x = (uint32_t)(random_bits(7, i + k) % 0x10f800);
            if (x != 0x2581) text_add(&text, c, utf8_put(c, x < 0xd800 ? x : x + 0x800));
        }
        check_round_trip(t, text.s, text.n);
        text_free(&text);
    }
}

/* Characters with a mark for the space (which as text comes back as a space), the others by their bytes. */
static struct tokenizer *make_characters(const char *normalizer, const char *strip)
{
    struct text s = { 0 };
    struct tokenizer *t;
    int i;
    text_printf(&s, "{\"added_tokens\":[],\"normalizer\":%s,\"pre_tokenizer\":null,\"post_processor\":null,\"decoder\":"
                "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\u2581\"},\"content\":"
                "\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}%s]},\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,"
                "\"vocab\":{\"\u2581\":256,\"a\":257,\"\u2581a\":258,\"\u4e2d\":259,\"a\u4e2d\":260,\"\u2581\u2581\":261", normalizer, strip);
    for (i = 0; i < 256; i++) text_printf(&s, ",\"<0x%02X>\":%d", (unsigned)i, i);
    text_puts(&s, "},\"merges\":[\"\u2581 a\",\"a \u4e2d\",\"\u2581 \u2581\"]}}");
    make_directory(in_folder("characters"), NULL);
    put_file("characters/tokenizer.json", s.s);
    text_free(&s);
    if ((t = open_or_fail(in_folder("characters")))) check_ids(t, "  a\xe4\xb8\xad\xff", TOKENIZE_CONTINUE, "256 258 259 255");
    return t;
}

static void test_bytes(void)
{
    static const char replace[] = "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}";
    static struct vocabulary v;
    struct tokenizer *t;
    char both[256];
    test_begin("every sequence of one or two bytes and a million random code points come back: bytes");
    make_vocabulary(&v, 3, 60);
    if ((t = make_tokenizer(&v, "bytes", SEQUENCE(DIGITS, BYTE_LEVEL), "[]", "null", ""))) check_bytes(t, 1000000);
    tokenizer_close(t);
    test_begin("... the tokenizer of data/model");
    if ((t = open_or_fail("data/model"))) check_bytes(t, 1000000);
    tokenizer_close(t);
    test_begin("... characters, with and without a space in front");
    if ((t = make_characters(replace, ""))) check_bytes(t, 1000000);
    tokenizer_close(t);
    snprintf(both, sizeof both, "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"},%s]}", replace);
    if ((t = make_characters(both, ",{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}"))) check_bytes(t, 100000);
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

static void check_nfc(const char *text, const char *wanted)
{
    struct text out = { 0 };
    CHECK(!unicode_nfc(&out, text, strlen(text), NULL) && !strcmp(out.s, wanted), "\"%s\" gives \"%s\"", text, out.s);
    text_free(&out);
}

static void test_nfc(void)
{
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
}

/* ---- added and special tokens, BOS and EOS ---- */

static void test_added(void)
{
    static struct vocabulary v;
    static const char added[] = "[" ADDED("300", "<s>", "true", PLAIN) "," ADDED("301", "<s>x", "true", PLAIN) ","
        ADDED("302", "<t>", "false", PLAIN) "," ADDED("303", "<l>", "true", LEFT) "," ADDED("304", "<r>", "true", RIGHT)
        "," ADDED("305", "<n>", "false", "") "," ADDED("306", "xy", "false", ",\"normalized\":true") ","
        ADDED("307", "\\t\\t", "false", PLAIN) "]";
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
    check_ids(t, "<r> \t\t\t\tb", 0, "304 307 307 98");     /* Hugging Face's: found in the space taken along, too */
    check_ids(t, "<r>\t\t\tb", 0, "304 307 9 98");
    check_ids(t, "<s> <l>", 0, "300 303");
    check_ids(t, "<n>xy<s>xy", 0, "305 306 301 121");      /* the raw ones first, over the whole text */
    check_ids(t, "", TOKENIZE_SPECIAL, "");
    CHECK(tokenizer_size(t) == 308 && tokenizer_id(t, "<t>") == 302 && tokenizer_id(t, "<q>") == -1);
    CHECK(!strcmp(tokenizer_token(t, 304), "<r>") && !tokenizer_token(t, 260) && !tokenizer_token(t, -1));
    CHECK(!tokenizer_decode(t, all, 3, 0, &out, NULL) && !strcmp(out.s, "<s>a<t>"), "%s", out.s);
    out.n = 0;
    CHECK(!tokenizer_decode(t, all, 3, 1, &out, NULL) && !strcmp(out.s, "a<t>"), "%s", out.s);
    CHECK(tokenizer_decode(t, (int[]){ 260 }, 1, 0, &out, NULL) == -1);
    CHECK(tokenizer_decode(t, (int[]){ 308 }, 1, 0, &out, NULL) == -1);
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
    make_directory(in_folder("rule"), NULL);
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
    make_directory(in_folder("rule"), NULL);
    put_file("rule/tokenizer_config.json", "{\"chat_template\":[{\"name\":\"x\",\"template\":\"a\"},"
                                           "{\"name\":\"default\",\"template\":\"b\"}]}");
    if ((t = open_or_fail(in_folder("rule")))) CHECK(!strcmp(tokenizer_chat_template(t), "b"));
    tokenizer_close(t);
    put_file("rule/chat_template.jinja", "c");
    if ((t = open_or_fail(in_folder("rule")))) CHECK(!strcmp(tokenizer_chat_template(t), "c"));
    tokenizer_close(t);
    remove(in_folder("rule/chat_template.jinja"));
    put_file("rule/tokenizer_config.json", "{\"chat_template\":\"d\"}");
    put_file("rule/config.json", "{\"bos_token_id\":300,\"eos_token_id\":[301,300]}");
    if ((t = open_or_fail(in_folder("rule")))) {
        CHECK(!strcmp(tokenizer_chat_template(t), "d"));
        CHECK(tokenizer_bos(t) == 300 && tokenizer_eos(t) == 301);
    }
    tokenizer_close(t);
    remove(in_folder("rule/config.json"));
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

/* A vocabulary of all parts of a text, and every way to make the text of them. */
static void test_chunks(void)
{
    static const char text[] = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82\xff";
    enum { LENGTH = sizeof text - 1 };
    static struct vocabulary v;
    struct tokenizer *t;
    int start, end, ways;
    test_begin("streaming: every way to cut a text into tokens");
    make_letters(&v);
    for (start = 0; start < LENGTH; start++)
        for (end = start + 2; end <= LENGTH; end++, v.n++) {
            v.token[v.n].n = end - start;
            memcpy(v.token[v.n].bytes, text + start, (size_t)(end - start));
        }
    if (!(t = make_tokenizer(&v, "chunks", BYTE_LEVEL, "[]", "null", ""))) return;
    for (ways = 0; ways < 1 << (LENGTH - 1); ways++) {
        struct text pending = { 0 }, out = { 0 };
        for (start = 0; start < LENGTH; start = end) {
            for (end = start + 1; end < LENGTH && !(ways >> (end - 1) & 1);) end++;
            CHECK(!tokenizer_stream(t, find_token(&v, (const unsigned char *)text + start, end - start), &pending, &out, NULL));
            CHECK(out.n + pending.n == (size_t)end && pending.n < 4, "%d", ways);
            CHECK(utf8_whole(out.s ? out.s : "", out.n) == out.n, "cut inside a character: %d", ways);
        }
        CHECK(!pending.n && out.n == LENGTH && !memcmp(out.s, text, LENGTH), "%d", ways);
        text_free(&pending);
        text_free(&out);
    }
    tokenizer_close(t);
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

int main(void)
{
    if (folder_make()) return 1;
    test_unicode();
    test_pieces();
    test_nfc();
    test_merges();
    test_bytes();
    test_added();
    test_bos();
    test_stream();
    test_chunks();
    test_time();
    remove_tree(folder, NULL);
    return test_end();
}
