/* Makes a process deterministic: getrandom() gives the numbers of a generator that PPSW_SIM_SEED seeds.
 * Preloaded by `ppsw-chaos sim`. Everything random in the simulated nodes comes from there in the end: election
 * time-outs, thread_rng, the order of hash maps, select!. Not for secrets. */

#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>

static uint64_t state;
static int seeded;

/* SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014. */
static uint64_t next(void) {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

ssize_t getrandom(void *buffer, size_t length, unsigned int flags) {
    unsigned char *to = buffer;
    size_t i;
    uint64_t bits = 0;
    (void)flags;
    if (!seeded) {
        const char *seed = getenv("PPSW_SIM_SEED");
        state = seed ? strtoull(seed, NULL, 10) : 0;
        seeded = 1;
    }
    for (i = 0; i < length; i++) {
        if (i % 8 == 0)
            bits = next();
        to[i] = (unsigned char)(bits >> (i % 8 * 8));
    }
    return (ssize_t)length;
}
