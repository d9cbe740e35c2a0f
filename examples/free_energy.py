"""How much of alanine dipeptide is at phi > 0? Well-tempered metadynamics, then a frozen bias (about 3 minutes)."""

import math
import sys

import molsamp as ms

share = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0  # of the usual time

ala = ms.load("alanine-dipeptide")
task = ms.molecular.Task.of(ala, ["phi", "psi"])
job = ms.molecular.Metadynamics(task, noise=ms.Noise(1), build=1500 * share, production=3000 * share).fit()

phi = job.histogram.profile(0)
for s, F, half in list(zip(phi.grid.nodes(0), phi.F, phi.half, strict=True))[::3]:
    bar = "#" * round(F) if math.isfinite(F) else "not seen"
    print(f"{s:6.2f} rad {F:6.1f} +- {half:.1f} kJ/mol {bar}")
for name, estimate in job.differences().items():
    print(f"{name} {estimate}; {job.evaluations:.2g} energies, {job.cpu:.0f} CPU s")
