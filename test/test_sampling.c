/* test_sampling.c - how the next token is chosen: how often each comes over many draws, against its probability. */
#include "test.h"
#include "../jobs/generation.h"
#include "../jobs/measure.h"

enum { V = 6, DRAWS = 20000 };

/* By id. Likeliest first: 3, 0, 5, 1, 4, 2. */
static const double probability[V] = { 0.3, 0.1, 0.01, 0.4, 0.04, 0.15 };

struct chooser {
    struct model model;
    struct session session;
    struct generator g;
    struct sequence q;
    float logits[2 * V];
    int at[2];
    struct { float p; int id; } candidates[V];
};

/* logit = log p + shift, in the second row, which is the slot's. */
static void chooser_open(struct chooser *c, double shift)
{
    int i;
    memset(c, 0, sizeof *c);
    c->model.config.V = V;
    c->session.model = &c->model;
    c->g.session = &c->session;
    c->g.logits = c->logits;
    c->g.at = c->at;
    c->g.candidates = c->candidates;
    c->at[1] = 1;
    c->q.slot = 1;
    for (i = 0; i < V; i++) {
        c->logits[i] = i == 2 ? 100 : 0;
        c->logits[V + i] = (float)(log(probability[i]) + shift);
    }
}

/* want[V]: of one, or of several in proportion. */
static void draw(const char *name, struct sampling how, const double *want)
{
    struct chooser c;
    int count[V] = { 0 }, i, id;
    double sum = 0;
    test_begin(name);
    for (i = 0; i < V; i++) sum += want[i];
    for (i = 0; i < DRAWS; i++) {
        chooser_open(&c, i % 2 ? 3 : -3);
        how.key = random_key((uint64_t)i, "draws");
        id = generator_choose(&c.g, &c.q, &how);
        CHECK(id >= 0 && id < V);
        count[id]++;
    }
    for (i = 0; i < V; i++) {
        double p = want[i] / sum, deviation = sqrt(DRAWS * p * (1 - p));
        CHECK(fabs(count[i] - DRAWS * p) <= 5 * deviation + 1e-9, "id %d comes %d times, not %.0f", i, count[i], DRAWS * p);
    }
}

static void test_draws(void)
{
    static const double two[V] = { 3, 0, 0, 4, 0, 0 }, three[V] = { 3, 0, 0, 4, 0, 1.5 }, four[V] = { 3, 1, 0, 4, 0, 1.5 }, one[V] = { 0, 0, 0, 1, 0, 0 };
    double flat[V];
    int i;
    for (i = 0; i < V; i++) flat[i] = sqrt(probability[i]);
    draw("drawn as often as they are likely", (struct sampling){ 1, 1, 0, 1, 0, 0 }, probability);
    draw("temperature 2: roots of probabilities", (struct sampling){ 1, 2, 0, 1, 0, 0 }, flat);
    draw("the three likeliest", (struct sampling){ 1, 1, 3, 1, 0, 0 }, three);
    draw("the fewest that have 0.75", (struct sampling){ 1, 1, 0, 0.75, 0, 0 }, three);
    draw("the fewest that have 0.69", (struct sampling){ 1, 1, 0, 0.69, 0, 0 }, two);
    draw("the fewest that have 0.39", (struct sampling){ 1, 1, 0, 0.39, 0, 0 }, one);
    draw("those a fifth as likely as the likeliest", (struct sampling){ 1, 1, 0, 1, 0.2, 0 }, four);
    draw("those 0.3 times as likely", (struct sampling){ 1, 1, 0, 1, 0.3, 0 }, three);
    draw("of the two likeliest the fewest that have 0.6", (struct sampling){ 1, 1, 2, 0.6, 0, 0 }, two);
    draw("of the two likeliest the fewest that have 0.55", (struct sampling){ 1, 1, 2, 0.55, 0, 0 }, one);
    flat[1] = flat[2] = flat[4] = 0;            /* 0.54 for two of them, 0.72 for three */
    draw("at temperature 2 the fewest that have 0.6", (struct sampling){ 1, 2, 0, 0.6, 0, 0 }, flat);
}

static void test_greedy(void)
{
    static const struct sampling greedy = SAMPLING_GREEDY;
    struct sampling how = greedy;
    struct chooser c;
    int seen[3] = { 3, 3, 0 };
    test_begin("greedy: the first of equals; what was said is less likely, once");
    chooser_open(&c, 0);
    CHECK(generator_choose(&c.g, &c.q, &greedy) == 3);
    c.logits[V + 5] = c.logits[V + 1] = c.logits[V + 3];
    CHECK(generator_choose(&c.g, &c.q, &greedy) == 1);
    how.repetition_penalty = 2;
    chooser_open(&c, 3);                        /* logits above 0 are divided: 2.08 / 2 below 1.10 of id 5 */
    c.q.ids.v = seen;
    c.q.ids.n = 3;
    CHECK(generator_choose(&c.g, &c.q, &how) == 5);
    CHECK(fabs(c.logits[V + 3] - (log(0.4) + 3) / 2) < 1e-6 && fabs(c.logits[V] - (log(0.3) + 3) / 2) < 1e-6
          && fabs(c.logits[V + 1] - (log(0.1) + 3)) < 1e-6);
    chooser_open(&c, 0);                        /* and below 0 multiplied */
    c.q.ids.v = seen;
    c.q.ids.n = 3;
    CHECK(generator_choose(&c.g, &c.q, &how) == 3 && fabs(c.logits[V + 3] - 2 * log(0.4)) < 1e-6);
}

/* What the benchmarks give. */
static void test_median(void)
{
    double odd[5] = { 5, 1, 4, 1, 3 }, even[4] = { 8, 1, 2, 4 }, one[1] = { 7 };
    test_begin("the median: the middle one, or the mean of the two");
    CHECK(median(odd, 5) == 3 && median(even, 4) == 3 && median(one, 1) == 7);
}

int main(void)
{
    test_draws();
    test_greedy();
    test_median();
    return test_end();
}
