/* test_amx.c - gemm_amx.c over an emulation of AMX's tiles, on machines without: alone, and under the whole
 * product, whose tile it is here (this program's functions go before the library's). */
#include "test.h"
#include "../verify/oracle.h"
#include "../vectors/bf16.h"

/* ---- the emulation, as Intel's manual has the instructions (SDM, volume 2: TILELOADD ... TDPBF16PS) ---- */

struct tile { int rows, bytes; unsigned char data[16][64]; };
static struct tile tiles[8];            /* of one thread: a team has one each */
#ifdef _OPENMP
#pragma omp threadprivate(tiles)
#endif
static enum { NO_FAULT, LAST_TILE, PANEL_TURNED, NOT_CLEARED, FAULTS } fault;

static void _tile_loadconfig(const void *p)
{
    const unsigned char *c = p;
    int i;
    if (c[0] != 1) abort();             /* the one palette */
    memset(tiles, 0, sizeof tiles);
    for (i = 0; i < 8; i++) {
        tiles[i].bytes = c[16 + 2 * i] + 256 * c[17 + 2 * i];
        tiles[i].rows = c[48 + i];
        if (tiles[i].bytes > 64 || tiles[i].rows > 16) abort();
    }
}

static void _tile_release(void) { memset(tiles, 0, sizeof tiles); }

static struct tile *configured(int t)
{
    if (!tiles[t].rows || !tiles[t].bytes) abort();     /* as the processor's fault */
    return &tiles[t];
}

static void _tile_zero(int t) { if (fault != NOT_CLEARED) memset(configured(t)->data, 0, sizeof tiles[t].data); }

static void _tile_loadd(int t, const void *p, size_t stride)
{
    struct tile *to = configured(t);
    int r;
    for (r = 0; r < to->rows; r++) memcpy(to->data[r], (const char *)p + (size_t)r * stride, (size_t)to->bytes);
}

static void _tile_stored(int t, void *p, size_t stride)
{
    struct tile *from = configured(t);
    int r;
    for (r = 0; r < from->rows; r++) memcpy((char *)p + (size_t)r * stride, from->data[r], (size_t)from->bytes);
}

/* Denormals are 0, in and out. */
static float flushed(float x) { return fabsf(x) < 1.17549435e-38f ? 0 : x; }

static void numbers_of(float x[16][32], const struct tile *t)
{
    uint16_t h;
    int r, i;
    for (r = 0; r < t->rows; r++)
        for (i = 0; i < t->bytes / 2; i++) {
            memcpy(&h, t->data[r] + 2 * i, sizeof h);
            x[r][i] = flushed(bf16_to_f32(h));
        }
}

/* c[m][n] += sum over k of a[m][2k] b[k][2n], and of a[m][2k+1] b[k][2n+1], one chain each. A product of two
 * numbers of bf16 is exact, so that it makes no difference that the processor fuses. */
static void _tile_dpbf16ps(int c_, int a_, int b_)
{
    struct tile *c = configured(c_), *a = configured(a_), *b = configured(b_);
    float x[16][32], y[16][32];
    int m, n, k;
    numbers_of(x, a);
    numbers_of(y, b);
    if (c->rows != a->rows || a->bytes / 4 != b->rows || c->bytes != b->bytes) abort();
    for (m = 0; m < c->rows; m++)
        for (n = 0; n < c->bytes / 4; n++) {
            float even = 0, odd = 0, sum;
            for (k = 0; k < a->bytes / 4; k++) {
                even = flushed(x[m][2 * k] * y[k][2 * n] + even);
                odd = flushed(x[m][2 * k + 1] * y[k][2 * n + (fault != PANEL_TURNED)] + odd);
            }
            memcpy(&sum, c->data[m] + 4 * n, sizeof sum);
            sum = flushed(sum + flushed(even + odd));
            memcpy(c->data[m] + 4 * n, &sum, sizeof sum);
        }
}

#define AMX_EMULATED
#define amx_sums sums_of_tiles
#include "../vectors/gemm_amx.c"
#undef amx_sums

/* What gemm_bf16.c calls: counted, and with the fault of the moment. */
static long long asked;
int amx_ready(void) { return 1; }
void amx_sums(float *out, const uint16_t *a, size_t tile, const uint16_t *panel, int n, int terms)
{
#pragma omp atomic
    asked++;
    sums_of_tiles(out, a, tile, panel, fault == LAST_TILE && n == 4 ? 3 : n, terms);
}

/* ---- tiles of whole numbers: every sum is exact ---- */

static void test_tiles(void)
{
    enum { TERMS = 96, TILE = BF16_ROWS * TERMS };
    static uint16_t a[4 * TILE], panel[TILE];
    static float out[4 * 256 + 1];
    int n, i, k;
    test_begin("tiles: one to four of them, against plain loops");
    for (i = 0; i < 4 * TILE; i++) a[i] = f32_to_bf16((float)((int)(random_bits(1, (uint64_t)i) % 17) - 8));
    for (i = 0; i < TILE; i++) panel[i] = f32_to_bf16((float)((int)(random_bits(2, (uint64_t)i) % 17) - 8));
    amx_begin();
    for (n = 1; n <= 4; n++) {
        for (i = 0; i <= 4 * 256; i++) out[i] = -1234.5f;
        amx_sums(out, a, TILE, panel, n, TERMS);
        for (i = 0; i < n * 256; i++) {
            int tile = i / 256, row = i / 16 % 16, column = i % 16;
            double sum = 0;
            for (k = 0; k < TERMS; k++)
                sum += (double)bf16_to_f32(a[tile * TILE + k / 32 * PART + row * 32 + k % 32])
                       * (double)bf16_to_f32(panel[k / 2 * 32 + column * 2 + k % 2]);
            CHECK(out[i] == (float)sum, "%d tiles, %d: %g, not %g", n, i, out[i], sum);
        }
        CHECK(out[n * 256] == -1234.5f, "wrote behind %d tiles", n);
    }
    amx_end();
}

/* ---- under the product ---- */

static int count_faults(void *context, const struct oracle_result *r)
{
    *(int *)context += r->fault != NULL;
    if (r->fault && !fault) printf("  %s, %s: %s\n", r->op, r->label, r->fault);
    return 0;
}

static int one_fault(void *context, const struct oracle_result *r) { return *(int *)context += r->fault != NULL; }

static void test_products(void)
{
    static const char *const names[] = { "nothing", "leaves out the fourth tile", "takes one term of a pair twice", "does not clear its sums" };
    const struct kernels *k = kernels_find("auto", NULL);
    char why[256] = "";
    int f, faults = 0;
    if (!k->has_bf16 || !k->has_bf16(why, sizeof why)) {
        test_skip("products on AMX's tiles", k->has_bf16 ? why : "the table has f32 alone");
        return;
    }
    test_begin("products on AMX's tiles, emulated");
    CHECK(!strcmp(why, "AMX-BF16"), "%s", why);
    CHECK(!oracle_run_some(k, COMPUTE_BF16, 1, &kernels_ref64, "matmul", count_faults, &faults, NULL), "%d cases", faults);
    CHECK(!oracle_run_some(k, COMPUTE_BF16, 1, &kernels_ref64, "matmul_dx", count_faults, &faults, NULL), "%d cases", faults);
    CHECK(asked > 1000, "the tiles were asked %lld times", asked);
    for (f = 1; f < FAULTS; f++) {
        fault = f;
        faults = 0;
        oracle_run_some(k, COMPUTE_BF16, 1, &kernels_ref64, "matmul", one_fault, &faults, NULL);
        CHECK(faults, "an emulation that %s passes", names[f]);
    }
    fault = NO_FAULT;
}

int main(void)
{
    test_tiles();
    test_products();
    return test_end();
}
