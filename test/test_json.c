/* JSON: what is read, what is refused and where, lookup, writing, size. */
#include "test.h"
#include "../formats/json.h"

#include <stdint.h>
#include <time.h>

static int parse(struct json_document *d, const char *text, struct lora_error *err)
{
    memset(err, 0, sizeof *err);
    return json_parse(d, text, strlen(text), "FILE", err);
}

/* The same bytes at the very end of a block, so that a sanitizer sees one read too many. */
static int parse_exact(struct json_document *d, const char *text, size_t n, struct lora_error *err)
{
    char *copy = malloc(n ? n : 1);
    int status;
    memcpy(copy, text, n);
    memset(err, 0, sizeof *err);
    status = json_parse(d, copy, n, "FILE", err);
    free(copy);
    return status;
}

static void test_accepted(void)
{
    /* text, and the same as json_put writes it (NULL: the same text) */
    static const char *const cases[][2] = {
        { "null" }, { "true" }, { "false" }, { "0" }, { "-0" }, { "12" }, { "-1.5e+3" }, { "0.25E-7" }, { "1e-400" },
        { "\"\"" }, { "[]" }, { "{}" }, { " \t\r\n[ 1 , 2 ]\n", "[1,2]" },
        { "{ \"a\" : { \"b\" : [ ] } , \"\" : null }", "{\"a\":{\"b\":[]},\"\":null}" },
        { "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\\"\\\\/\\b\\f\\n\\r\\t\"" },
        { "\"\\u0041\\u00e9\\u20AC\\ud83d\\ude00\\u0000\\u001f\"", "\"A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\\u0000\\u001f\"" },
        { "\"\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\"" },
        { "[1,\"a\",[2,[3,{\"k\":[true,false,null]}]],{}]" },
    };
    size_t i;
    test_begin("what is JSON is read, and written back");
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct json_document d;
        struct lora_error err;
        struct text t = { 0 };
        int status = parse_exact(&d, cases[i][0], strlen(cases[i][0]), &err);
        CHECK(!status, "%s: %s, %s", cases[i][0], err.expected, err.found);
        if (status) continue;
        json_put(&t, d.root);
        CHECK(!t.failed && !strcmp(t.s, cases[i][1] ? cases[i][1] : cases[i][0]), "%s became %s", cases[i][0], t.s);
        text_free(&t);
        json_free(&d);
    }
}

static void test_refused(void)
{
    static const char *const cases[] = {
        "", " ", "nul", "nulll", "True", "NaN", "Infinity", "-Infinity", "-", "+1", "01", "-01", "1.", ".5", "1e", "1e+",
        "0x10", "1 2", "1,", "1e999", "-1e999", "--1", "[", "]", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "{", "}", "{\"a\"", "{\"a\":",
        "{\"a\":1", "{\"a\":1,", "{\"a\":1,}", "{a:1}", "{'a':1}", "{\"a\" 1}", "{1:1}", "{\"a\":1 \"b\":2}", "[1}", "{\"a\":1]",
        "\"", "\"a", "\"\\", "\"\\\"", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\\u123", "\"\n\"", "\"\t\"", "\"\x01\"",
        "// c\n1", "/* c */ 1", "1 // c", "\xef\xbb\xbf{}", "{\"a\":1,\"a\":2}", "{\"a\":1,\"\\u0061\":2}", "{\"a\\u0000\":1}",
        "\"\\ud800\"", "\"\\udc00\"", "\"\\udc00\\udc00\"", "\"\\ud800x\"", "\"\\ud800\\n\"", "\"\\ud800\\ud800\"", "\"\\ud800\\u0041\"", "\"\\ud800\\u",
        "\"\x80\"", "\"\xc0\x80\"", "\"\xc1\xbf\"", "\"\xc3\"", "\"\xc3", "\"\xe0\x9f\xbf\"", "\"\xed\xa0\x80\"", "\"\xe2\x82\"", "\"\xe2\x82",
        "\"\xf0\x8f\xbf\xbf\"", "\"\xf4\x90\x80\x80\"", "\"\xf5\x80\x80\x80\"", "\"\xff\"", "\x80", "\f1", "[1]]", "{}{}",
    };
    size_t i;
    test_begin("what is not JSON is refused");
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct json_document d;
        struct lora_error err;
        CHECK(parse_exact(&d, cases[i], strlen(cases[i]), &err) == -1, "case %d: %s", (int)i, cases[i]);
        CHECK(err.what[0] && !strncmp(err.where, "FILE, line ", 11) && err.expected[0], "case %d: %s", (int)i, err.where);
        CHECK(!d.root && !d.memory, "case %d", (int)i);
    }
    test_begin("an error says the line, what was expected and what stands there");
    {
        struct json_document d;
        struct lora_error err;
        parse(&d, "{\n\"a\": 1,\n\"b\": oops }", &err);
        CHECK(!strcmp(err.where, "FILE, line 3") && !strcmp(err.expected, "a value") && !strcmp(err.found, "'o'"),
              "%s: %s, %s", err.where, err.expected, err.found);
        parse(&d, "{\"a\": 1,\n\n\"a\": 2}", &err);
        CHECK(!strcmp(err.where, "FILE, line 3") && !strcmp(err.found, "\"a\" again"), "%s: %s", err.where, err.found);
        parse(&d, "\xef\xbb\xbf{}", &err);
        CHECK(!strcmp(err.found, "a byte order mark"), "%s", err.found);
        CHECK(json_read(&d, "no/such/file.json", &err) == -1 && strstr(err.where, "no/such/file.json"), "%s", err.where);
    }
}

static void test_depth(void)
{
    char text[500];
    int depth;
    test_begin("depth: 200 levels, no more");
    for (depth = 199; depth <= 201; depth++) {
        struct json_document d;
        struct lora_error err;
        int status;
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        status = parse_exact(&d, text, 2 * (size_t)depth, &err);
        CHECK(status == (depth > 200 ? -1 : 0), "%d: %s", depth, err.expected);
        json_free(&d);
    }
}

static void test_get(void)
{
    static const char text[] = "{\"i\":7,\"f\":1.5,\"s\":\"text\",\"t\":true,\"z\":null,\"big\":3e9,\"neg\":-2147483647,"
        "\"e\":2e3,\"a\":[1,2],\"nul\":\"a\\u0000b\"}";
    struct json_document d;
    struct lora_error err = { "", "", "", "", "" };
    int i = -1;
    double x = -1;
    const char *s = "none";
    test_begin("typed lookup");
    CHECK(!parse(&d, text, &err), "%s", err.expected);
    CHECK(!json_get_int(d.root, "i", &i, "F", &err) && i == 7, "%d", i);
    CHECK(!json_get_int(d.root, "e", &i, "F", &err) && i == 2000, "%d", i);
    CHECK(!json_get_int(d.root, "neg", &i, "F", &err) && i == -2147483647, "%d", i);
    CHECK(!json_get_number(d.root, "f", &x, "F", &err) && x == 1.5, "%g", x);
    CHECK(!json_get_number(d.root, "big", &x, "F", &err) && x == 3e9, "%g", x);
    CHECK(!json_get_string(d.root, "s", &s, "F", &err) && !strcmp(s, "text"), "%s", s);
    i = 0;
    CHECK(!json_get_bool(d.root, "t", &i, "F", &err) && i == 1, "%d", i);
    i = 5, x = 6, s = "kept";
    CHECK(!json_get_int(d.root, "absent", &i, "F", &err) && !json_get_int(d.root, "z", &i, "F", &err) && i == 5, "%d", i);
    CHECK(!json_get_bool(d.root, "z", &i, "F", &err) && i == 5, "%d", i);
    CHECK(!json_get_number(d.root, "z", &x, "F", &err) && x == 6, "%g", x);
    CHECK(!json_get_string(d.root, "z", &s, "F", &err) && !strcmp(s, "kept"), "%s", s);
    CHECK(!json_get_int(NULL, "i", &i, "F", &err) && i == 5, "%d", i);
    CHECK(json_get_int(d.root, "big", &i, "F", &err) == -1 && !strcmp(err.found, "3e9"), "%s", err.found);
    CHECK(json_get_int(d.root, "f", &i, "F", &err) == -1, "1.5 is no integer");
    CHECK(json_get_int(d.root, "t", &i, "F", &err) == -1, "true is no integer");
    CHECK(json_get_int(d.root, "s", &i, "F", &err) == -1 && strstr(err.where, "F, line 1, \"s\"") && !strcmp(err.found, "a string"),
          "%s: %s", err.where, err.found);
    CHECK(json_get_number(d.root, "t", &x, "F", &err) == -1 && json_get_bool(d.root, "i", &i, "F", &err) == -1, "types");
    CHECK(json_get_string(d.root, "a", &s, "F", &err) == -1 && !strcmp(err.found, "an array"), "%s", err.found);
    CHECK(json_get_string(d.root, "nul", &s, "F", &err) == -1, "a string with NUL");
    CHECK(json_get(d.root, "nul")->n == 3 && !memcmp(json_get(d.root, "nul")->string, "a\0b", 4), "its bytes are there");
    CHECK(json_get(d.root, "a")->n == 2 && json_get(d.root, "a")->child->next->number == 2, "children in order");
    CHECK(!json_get(json_get(d.root, "a"), "a") && !json_get(d.root, "A"), "absent");
    json_free(&d);
}

static void test_put(void)
{
    static const struct { double x; int digits; const char *text; } cases[] = {
        { 0, 0, "0" }, { -0.0, 0, "-0" }, { 1, 0, "1" }, { -17, 0, "-17" }, { 123456789012345, 0, "123456789012345" },
        { 0.1, 0, "0.1" }, { 1e22, 0, "1e+22" }, { 5e-324, 0, "5e-324" }, { 1.7976931348623157e308, 0, "1.7976931348623157e+308" },
        { 0.30000000000000004, 0, "0.30000000000000004" }, { 2.5, 9, "2.5" }, { 0.12345678949, 9, "0.123456789" },
        { 1000000, 9, "1000000" }, { 1.0 / 3, 4, "0.3333" }, { HUGE_VAL, 0, "null" }, { -HUGE_VAL, 9, "null" },
    };
    static const char raw[] = "\x80 a\xc3\xa9\xe2\x82 \0\x1f\"\\/\n\xff";
    struct text t = { 0 };
    struct json_document d;
    struct lora_error err;
    size_t i;
    test_begin("numbers and strings written");
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        text_free(&t);
        json_put_number(&t, cases[i].x, cases[i].digits);
        CHECK(!strcmp(t.s, cases[i].text), "%s, not %s", t.s, cases[i].text);
    }
    text_free(&t);
    json_put_number(&t, NAN, 0);
    CHECK(!strcmp(t.s, "null"), "%s", t.s);
    for (i = 0; i < 20000; i++) {       /* random bits: back to the same number */
        uint64_t u = random_bits(3, i);
        double x;
        memcpy(&x, &u, 8);
        if (x - x != 0) continue;
        text_free(&t);
        json_put_number(&t, x, 0);
        CHECK(!parse(&d, t.s, &err) && d.root->number == x, "%s", t.s);
        json_free(&d);
    }
    text_free(&t);
    json_put_string(&t, raw, sizeof raw - 1);
    CHECK(!strcmp(t.s, "\"\xef\xbf\xbd a\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd \\u0000\\u001f\\\"\\\\/\\n\xef\xbf\xbd\""), "%s", t.s);
    CHECK(!parse(&d, t.s, &err), "%s", err.expected);
    json_free(&d);
    text_free(&t);
}

/* A vocabulary of 150,000 keys and as many pairs. */
static void test_large(void)
{
    struct text t = { 0 };
    struct json_document d;
    struct lora_error err;
    char key[32];
    double seconds;
    clock_t start;
    int i, wrong = 0;
    const struct json *vocab, *v;
    test_begin("a large file: linear time");
    text_puts(&t, "{\"vocab\":{");
    for (i = 0; i < 150000; i++) text_printf(&t, "%s\"\\u0120tok%d\": %d", i ? ",\n  " : "", i, i);
    text_puts(&t, "},\"merges\":[");
    for (i = 0; i < 150000; i++) text_printf(&t, "%s[\"\xc4\xa0%d\", \"b%d\"]", i ? ",\n  " : "", i, i);
    text_puts(&t, "]}");
    start = clock();        /* of the processor: others may use it too */
    CHECK(!json_parse(&d, t.s, t.n, "FILE", &err), "%s", err.expected);
    vocab = json_get(d.root, "vocab");
    for (i = 0; i < 150000; i++) {
        sprintf(key, "\xc4\xa0tok%d", i);
        v = json_get(vocab, key);
        wrong += !v || v->number != i || v->line != i + 1;
    }
    seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    CHECK(!wrong && !json_get(vocab, "tok") && vocab->n == 150000, "%d wrong", wrong);
    CHECK(json_get(d.root, "merges")->n == 150000, "pairs");
    CHECK(seconds < 20, "%g s", seconds);       /* about 0.1, emulated 2; a quadratic search takes minutes */
    printf("  %.1f MB read and searched in %.3f s\n", (double)t.n / 1e6, seconds);
    json_free(&d);
    /* the last key again, far from the first */
    t.n = 0;
    text_puts(&t, "{");
    for (i = 0; i < 1000; i++) text_printf(&t, "\"k%d\":0,", i);
    text_puts(&t, "\n\"k500\":1}");
    CHECK(json_parse(&d, t.s, t.n, "FILE", &err) == -1 && !strcmp(err.found, "\"k500\" again")
          && !strcmp(err.where, "FILE, line 2"), "%s: %s", err.where, err.found);
    text_free(&t);
}

/* Cut anywhere: refused. Any byte changed: refused, or something that reads back the same. */
static void test_damage(void)
{
    static const char text[] = "{\"a\":[1,-2.5e3,\"x\\u00e9\\n\xc3\xa9\",true,null],\"bb\":{\"c\":{},\"d\":[[]]},"
        "\"k1\":1,\"k2\":2,\"k3\":3,\"k4\":4,\"k5\":5,\"k6\":6,\"k7\":7}";
    char copy[sizeof text];
    size_t n = sizeof text - 1, i;
    struct json_document d, e;
    struct lora_error err;
    int c, accepted = 0;
    test_begin("cut and damaged texts");
    for (i = 0; i < n; i++) CHECK(parse_exact(&d, text, i, &err) == -1, "cut at %d", (int)i);
    for (i = 0; i < n; i++)
        for (c = 0; c < 256; c++) {
            struct text t = { 0 }, again = { 0 };
            memcpy(copy, text, sizeof text);
            copy[i] = (char)c;
            if (parse_exact(&d, copy, n, &err)) {
                CHECK(err.where[0] && err.expected[0], "byte %d = %d: an error without a place", (int)i, c);
                continue;
            }
            accepted++;
            json_put(&t, d.root);
            CHECK(!parse(&e, t.s, &err), "byte %d = %d: %s", (int)i, c, t.s);
            if (e.root) json_put(&again, e.root);
            CHECK(e.root && !strcmp(again.s, t.s), "byte %d = %d: %s", (int)i, c, t.s);
            json_free(&d);
            json_free(&e);
            text_free(&t);
            text_free(&again);
        }
    CHECK(accepted > 1000, "%d accepted", accepted);     /* most changes of a letter are a right text */
}

int main(void)
{
    test_accepted();
    test_refused();
    test_depth();
    test_get();
    test_put();
    test_large();
    test_damage();
    return test_end();
}
