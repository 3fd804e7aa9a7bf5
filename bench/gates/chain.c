/* The Gibbs sampler of skilltune.gate.effects, draw for draw: the same arithmetic in the same order, from the same state of
   the Mersenne Twister. A run of the simulation takes seconds with it and a minute in Python. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS = 624, SHIFT = 397, MOST_VALUES = 64 };

typedef struct { uint32_t word[WORDS]; int next; double spare; int has_spare; } Random;

static uint32_t twisted(uint32_t a, uint32_t b) {
    uint32_t y = (a & 0x80000000u) | (b & 0x7fffffffu);
    return (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
}

static uint32_t bits(Random *r) {
    if (r->next >= WORDS) {
        for (int k = 0; k < WORDS; k++)
            r->word[k] = r->word[(k + SHIFT) % WORDS] ^ twisted(r->word[k], r->word[(k + 1) % WORDS]);
        r->next = 0;
    }
    uint32_t y = r->word[r->next++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

static double uniform(Random *r) {
    uint32_t high = bits(r) >> 5, low = bits(r) >> 6;
    return (high * 67108864.0 + low) * (1.0 / 9007199254740992.0);
}

static double gauss(Random *r, double mean, double sd) {
    if (r->has_spare) {
        r->has_spare = 0;
        return mean + r->spare * sd;
    }
    double angle = uniform(r) * (2 * M_PI), radius = sqrt(-2.0 * log(1.0 - uniform(r)));
    r->spare = sin(angle) * radius;
    r->has_spare = 1;
    return mean + cos(angle) * radius * sd;
}

/* random.gammavariate(shape, 1) for shapes of 1 and more: Cheng (1977). */
static double gamma_variate(Random *r, double shape) {
    if (shape == 1.0) return -log(1.0 - uniform(r));
    double root = sqrt(2.0 * shape - 1.0), b = shape - log(4.0), c = shape + root, magic = 1.0 + log(4.5);
    for (;;) {
        double u = uniform(r);
        if (!(1e-7 < u && u < 0.9999999)) continue;
        double w = 1.0 - uniform(r), v = log(u / (1.0 - u)) / root, x = shape * exp(v);
        double z = u * u * w, s = b + c * v - x;
        if (s + magic - 4.5 * z >= 0.0 || s >= log(z)) return x;
    }
}

typedef struct { const int *start, *trial; } Lists; /* of trials, one for each sample or edit */

static int drawn(Random *r, const int *values, int n, double *mass) {
    double top = mass[0], total = 0;
    for (int v = 1; v < n; v++) top = fmax(top, mass[v]);
    for (int v = 0; v < n; v++) {
        if (mass[v] - top > -40) total += exp(mass[v] - top); /* less does not change the sum */
        mass[v] = total;
    }
    double at = uniform(r) * total;
    int v = 0;
    while (v < n - 1 && at >= mass[v]) v++;
    return values[v];
}

static int base(Random *r, Lists of, int item, int old, const int *values, int n, const double *prior,
                const double *tables, int row, const int *score, int *sums) {
    const int *trial = of.trial + of.start[item], count = of.start[item + 1] - of.start[item];
    double mass[MOST_VALUES];
    memcpy(mass, prior, n * sizeof *mass);
    for (int t = 0; t < count; t++) {
        const double *at = tables + (long)score[trial[t]] * row + row / 2 + sums[trial[t]] - old;
        for (int v = 0; v < n; v++) mass[v] += at[values[v]];
    }
    int value = drawn(r, values, n, mass);
    for (int t = 0; t < count && value != old; t++) sums[trial[t]] += value - old;
    return value;
}

/* The trials of one score and one sum have one likelihood; `counted` is all zero before and after. */
static int effect_of(Random *r, Lists of, int item, int old, const int *values, int n, const double *prior,
                     const double *tables, int row, int scores, const int *score, int *sums, int *counted) {
    const int *trial = of.trial + of.start[item], count = of.start[item + 1] - of.start[item];
    double mass[MOST_VALUES];
    memcpy(mass, prior, n * sizeof *mass);
    for (int kind = 0; kind < scores; kind++) {
        int low = row, high = -1;
        for (int t = 0; t < count; t++)
            if (score[trial[t]] == kind) {
                int at = sums[trial[t]] + row / 2;
                counted[at]++;
                if (at < low) low = at;
                if (at > high) high = at;
            }
        for (int at = low; at <= high; at++)
            if (counted[at]) {
                const double *likely = tables + (long)kind * row + at - old;
                for (int v = 0; v < n; v++) mass[v] += counted[at] * likely[values[v]];
                counted[at] = 0;
            }
    }
    int value = drawn(r, values, n, mass);
    for (int t = 0; t < count && value != old; t++) sums[trial[t]] += value - old;
    return value;
}

/* `values` holds the bases of the samples, then the general, then the claimed effects of the edits, as they are at the
   beginning; `out` gets each draw of them. `tables` holds the log-likelihoods of the distinct scores by sum of effects,
   each 2·reach + 1 long; `score` which of them a trial has, `sums` its sum at the beginning. */
void chain(const uint32_t *state, int samples, int edits, int active, int resting, int trials, const double *tables,
           int reach, int scores, const int *score, int *sums, int *values, Lists of_sample, Lists general,
           Lists claimed, const int *bases, int n_bases, double base_sd, const int *const grids[2],
           const int *const class_of[2], const int sizes[2], const double *const weights[2], const int classes[2],
           const double *const counts[2], double rarest, double level, double *const rates[2], int burn_in, int draws,
           int *out) {
    Random r = {.next = (int)state[WORDS]};
    memcpy(r.word, state, sizeof r.word);
    const Lists of_edit[2] = {general, claimed};
    int row = 2 * reach + 1, width = samples + 2 * edits, *counted = calloc(row, sizeof *counted);
    double prior[MOST_VALUES];
    for (int sweep = 0; sweep < burn_in + draws; sweep++) {
        int number = sweep < burn_in ? sweep : sweep - burn_in, last = number % resting ? active : edits;
        double sum = 0;
        for (int b = 0; b < n_bases; b++)
            prior[b] = -((bases[b] - level) * (bases[b] - level)) / (2 * base_sd * base_sd);
        for (int j = 0; j < samples; j++)
            sum += values[j] = base(&r, of_sample, j, values[j], bases, n_bases, prior, tables, row, score, sums);
        int n = samples ? samples : 1;
        level = gauss(&r, sum / n, base_sd / sqrt(n));
        for (int kind = 0; kind < 2; kind++) {
            int *effect = values + samples + kind * edits, found[MOST_VALUES] = {0};
            for (int v = 0; v < sizes[kind]; v++)
                prior[v] = log(fmax(rates[kind][class_of[kind][v]], rarest) * weights[kind][v]);
            for (int i = 0; i < last; i++)
                effect[i] = effect_of(&r, of_edit[kind], i, effect[i], grids[kind], sizes[kind], prior, tables, row,
                                      scores, score, sums, counted);
            for (int i = 0; i < edits; i++) {
                int v = 0;
                while (grids[kind][v] != effect[i]) v++;
                found[class_of[kind][v]]++;
            }
            double all = 0;
            for (int c = 0; c < classes[kind]; c++)
                all += rates[kind][c] = gamma_variate(&r, counts[kind][c] + found[c]);
            for (int c = 0; c < classes[kind]; c++) rates[kind][c] /= all;
        }
        if (sweep >= burn_in) {
            memcpy(out, values, width * sizeof *out);
            out += width;
        }
    }
    free(counted);
}
