"""How rare is a crossing, by which channel, and how wrong is a learned sampler? The exact paths answer (a minute)."""

import sys

import molsamp as ms

populations = int(sys.argv[1]) if len(sys.argv) > 1 else 12

task = ms.molecular.Problem.of(ms.load("double-well"))
size = dict(particles=1024, pairs=512, batch=1024, refinements=1, populations=populations)
exact = ms.molecular.TwistedPaths(task, n=128, noise=ms.Noise(1), **size).fit()
paths = exact.paths()
print(f"log P_0(hit)    {exact.log_p_hit()}, a crossing in exp({-exact.log_p_hit().value:.1f}) trials")
print(f"first channel   {paths.channels()}")

driven = exact.sample(128, ms.Noise(2))  # the learned control alone, without resampling
print(f"control alone   {driven.hit_rate()} hits at {driven.divergence()}, ESS {driven.ess():.1f} of {len(driven)}")
for name, estimate in ms.molecular.score(driven, paths, exact.log_p_hit()).results().items():
    print(f"{name:15} {estimate}")
