"""How does alanine dipeptide get from C5 to C7ax? Train a sampler, draw paths, read the numbers (about 5 minutes)."""

import sys

import molsamp as ms

rollouts = int(sys.argv[1]) if len(sys.argv) > 1 else 150

ala = ms.load("alanine-dipeptide")
task = ms.molecular.Problem.of(ala, start="C5", end="C7ax", temperature=300)
sampler = ms.molecular.LearnedPaths(task, rollouts=rollouts, noise=ms.Noise(7)).fit()
paths = sampler.sample(64, noise=ms.Noise(8))

for name, estimate in paths.results().items():
    print(f"{name:10} {estimate}")
for warning in paths.warnings():
    print(warning)
