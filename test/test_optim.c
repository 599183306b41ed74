/* The schedules against Transformers' figures, and the order of rows. */
#include "../optim.h"
#include "test.h"

/* Rates of 20 steps, 3 of them warm-up, from 0.005: Transformers 5.23's get_cosine_schedule_with_warmup. */
static const double cosine[20] = {
    0.0, 0.0016666666666666666, 0.003333333333333333, 0.005, 0.0049574327492097545, 0.004831180573510889,
    0.0046255428393240355, 0.0043475222930516476, 0.0040065865909481415, 0.0036143458894413462,
    0.0031841574751802076, 0.002730670898658255, 0.0022693291013417454, 0.001815842524819793,
    0.0013856541105586545, 0.0009934134090518593, 0.0006524777069483526, 0.000374457160675965,
    0.00016881942648911075, 4.256725079024554e-05 };

static void check_rates(void)
{
    int s;
    test_begin("cosine as in Transformers");
    for (s = 0; s < 20; s++) {
        double rate = schedule_rate(SCHEDULE_COSINE, 0.005, s, 3, 20);
        CHECK(!!(fabs(rate - cosine[s]) <= 1e-17), "step %d: %.17g, not %.17g", s, rate, cosine[s]);
    }
    test_begin("linear as in Transformers");
    for (s = 0; s < 10; s++) {
        double want = s < 4 ? 2.0 * s / 4 : 2.0 * (10 - s) / 6;
        CHECK(!!(fabs(schedule_rate(SCHEDULE_LINEAR, 2, s, 4, 10) - want) <= 1e-15), "step %d", s);
    }
    CHECK(schedule_rate(SCHEDULE_LINEAR, 2, 12, 4, 10) == 0, "beyond the end the rate is 0");
    test_begin("constant, and edges");
    CHECK(schedule_rate(SCHEDULE_CONSTANT, 3, 0, 0, 5) == 3, "no warm-up");
    CHECK(schedule_rate(SCHEDULE_CONSTANT, 3, 0, 2, 5) == 0 && schedule_rate(SCHEDULE_CONSTANT, 3, 1, 2, 5) == 1.5,
          "warm-up");
    CHECK(schedule_rate(SCHEDULE_COSINE, 1, 0, 0, 1) == 1, "one step");
    CHECK(schedule_rate(SCHEDULE_LINEAR, 1, 0, 0, 1) == 1, "one step");
    CHECK(schedule_rate(SCHEDULE_COSINE, 1, 3, 3, 3) == 1, "all warm-up");
    CHECK(warmup_steps(0.03, 125) == 4 && warmup_steps(0.03, 100) == 3 && warmup_steps(0, 9) == 0
          && warmup_steps(0.5, 3) == 2, "a ratio is rounded up");
}

static void check_order(void)
{
    enum { N = 1000 };
    static int a[N], b[N];
    char seen[N] = { 0 };
    int i, same = 0, fixed = 0, n, first[5] = { 0 };
    long long epoch;
    test_begin("order of rows");
    shuffle_rows(a, N, 1, 0);
    shuffle_rows(b, N, 1, 0);
    CHECK(!memcmp(a, b, sizeof a), "the same seed and epoch, another order");
    for (i = 0; i < N; i++) CHECK(a[i] >= 0 && a[i] < N && !seen[a[i]]++, "row %d", a[i]);
    shuffle_rows(b, N, 1, 1);
    for (i = 0; i < N; i++) same += a[i] == b[i], fixed += a[i] == i;
    CHECK(same < 10 && fixed < 10, "%d rows stay between epochs, %d are where they were", same, fixed);
    shuffle_rows(b, N, 2, 0);
    for (same = i = 0; i < N; i++) same += a[i] == b[i];
    CHECK(same < 10, "another seed, the same order (%d rows)", same);
    /* each of 5 rows comes first in a fifth of 5000 epochs: 1000, standard deviation 28 */
    for (epoch = 0; epoch < 5000; epoch++) {
        shuffle_rows(b, 5, 7, epoch);
        first[b[0]]++;
    }
    for (i = 0; i < 5; i++) CHECK(abs(first[i] - 1000) < 140, "row %d comes first %d times", i, first[i]);
    for (n = 0; n < 3; n++) {
        shuffle_rows(b, n, 1, 0);
        CHECK(n == 0 || b[0] < n, "%d rows", n);
    }
}

int main(void)
{
    check_rates();
    check_order();
    return test_end();
}
