/* optim.c - see optim.h. */
#include "optim.h"

#include <math.h>

double schedule_rate(int schedule, double lr, long long step, long long warmup, long long total)
{
    double span = (double)(total - warmup > 1 ? total - warmup : 1);
    double progress = (double)(step - warmup) / span, factor = 1;
    if (step < warmup) return lr * ((double)step / (double)warmup);
    if (schedule == SCHEDULE_LINEAR) factor = (double)(total - step) / span;
    if (schedule == SCHEDULE_COSINE) factor = 0.5 * (1 + cos(3.14159265358979323846 * progress));
    return factor > 0 ? lr * factor : 0;
}

long long warmup_steps(double ratio, long long total) { return (long long)ceil(ratio * (double)total); }

void shuffle_rows(int *order, int n, uint64_t seed, long long epoch)
{
    uint64_t key = random_bits(random_key(seed, "order of rows"), (uint64_t)epoch);
    int i;
    for (i = 0; i < n; i++) order[i] = i;
    for (i = n - 1; i > 0; i--) {
        /* 32 random bits times i + 1: the bias is below n / 2^32 */
        int j = (int)(((random_bits(key, (uint64_t)i) >> 32) * ((uint64_t)i + 1)) >> 32), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}
