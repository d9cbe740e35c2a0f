"""What does a solver step cost beyond the network, here and in diffusers?

A network that answers at once (with a stored tensor) is sampled in 20 steps by the same schemes, in turns in one
process; CPU milliseconds a step on one thread, with the making of tables and grids in it, medians of the turns.

    python benchmarks/image_overhead.py
"""

from __future__ import annotations

import pictures
import torch
from interleaved import ROOT, Results, code_version, rates

from molsamp.engine import Discrete, LinearSDE, Noise, Particles, rollout, time_grid
from molsamp.image.solvers import SOLVERS

RESULTS = ROOT / "benchmarks" / "results" / "image_overhead.json"
CODE = (*pictures.ENGINE, "molsamp/image/solvers.py", "benchmarks/image_overhead.py")
SHAPES, STEPS = ((1, 3, 64, 64), (64, 3, 64, 64)), 20
BETAS = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=2e-2, beta_schedule="linear")
PAIRS = {
    "dpm++2m": ("DPMSolverMultistepScheduler", dict(solver_order=2, final_sigmas_type="sigma_min")),
    "dpm++3m": ("DPMSolverMultistepScheduler", dict(solver_order=3, final_sigmas_type="sigma_min")),
    "unipc-2": ("UniPCMultistepScheduler", dict(solver_order=2, final_sigmas_type="sigma_min")),
    "unipc-3-bh1": ("UniPCMultistepScheduler", dict(solver_order=3, solver_type="bh1", final_sigmas_type="sigma_min")),
    "deis-lam1": ("DEISMultistepScheduler", dict(solver_order=2)),
    "ddim": ("DDIMScheduler", dict(clip_sample=False)),
}


def contestants(name: str, x: torch.Tensor, eps: torch.Tensor) -> dict:
    """Both sides, each doing whole samplings."""
    import diffusers

    kind, settings = PAIRS[name]
    scheduler, D = getattr(diffusers, kind)(**BETAS, **settings), Discrete()
    integrator, frame = SOLVERS[name].plan(STEPS)[0], SOLVERS[name].frame

    def denoise(x, t):
        return torch.add(x / D.alpha(t), eps, alpha=-D.sigma(t) / D.alpha(t))

    def ours(k: int) -> int:
        for _ in range(k):
            times = time_grid("uniform", D, STEPS)
            rollout(LinearSDE(D, denoise, frame), integrator, Particles.at(x), times, noise=Noise(0), save="last")
        return k * STEPS

    def theirs(k: int) -> int:
        for _ in range(k):
            scheduler.set_timesteps(STEPS)
            y = x
            for t in scheduler.timesteps:
                y = scheduler.step(eps, t, y).prev_sample
        return k * STEPS

    return {"ours": ours, "theirs": theirs}


def main() -> None:
    """The table."""
    torch.set_num_threads(1)
    results, code = Results(RESULTS, ("solver", "shape")), code_version(*CODE)
    print(f"{'solver':14} {'shape':>18} {'ours, ms':>9} {'diffusers, ms':>14} {'ratio':>6}")
    for name in PAIRS:
        for shape in SHAPES:
            if not results.has(code, solver=name, shape=list(shape)):
                x, eps = (Noise(0).normal(k, torch.arange(shape[0]), shape[1:], torch.float32) for k in (0, 1))
                ms = {side: 1e3 / rate for side, rate in rates(contestants(name, x, eps), turns=7).items()}
                results.add(code, solver=name, shape=list(shape), **ms)
            e = next(r for r in results.newest() if (r["solver"], r["shape"]) == (name, list(shape)))
            ratio = e["ours"] / e["theirs"]
            print(f"{name:14} {'x'.join(map(str, shape)):>18} {e['ours']:9.3f} {e['theirs']:14.3f} {ratio:6.2f}")


if __name__ == "__main__":
    main()
