"""The same schemes in diffusers on the same nodes: agreement in float32, and the differences that we mean.

Their schedulers keep log-SNR in float32, where a step near the end of a long grid has lost three digits: order 3 in
noise form is off by up to 1e-3 there. With tables of theirs in float64 it is within 1e-5 (their x stays float32).
"""

import math
import warnings

import pytest
import torch

from molsamp.engine import Discrete, Exponential, GaussianMixture, LinearSDE, Noise, Particles, RungeKutta, rollout
from molsamp.engine.exponential import ALWAYS

diffusers = pytest.importorskip("diffusers")
warnings.filterwarnings("ignore", module="diffusers")

D = Discrete()
MIXTURE = GaussianMixture(
    torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.5, -1.0]], dtype=torch.float64),
    torch.tensor([0.05, 0.02, 0.04], dtype=torch.float64),
)
BETAS = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=2e-2, beta_schedule="linear")
X = Noise(3).normal(0, torch.arange(64), (2,), torch.float32)
MULTI, UNI = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
SMALL = dict(final_sigmas_type="sigma_min")
CASES = {
    "ddim": (MULTI, dict(solver_order=1, **SMALL), Exponential()),
    "dpm++2m": (MULTI, dict(solver_order=2, **SMALL), Exponential(2)),
    "dpm++2m, exact": (MULTI, dict(solver_order=2, solver_type="heun", **SMALL), Exponential(2, rule="exact")),
    "dpm++3m": (MULTI, dict(solver_order=3, **SMALL), Exponential(3, rule="published")),
    "dpm 2m": (MULTI, dict(solver_order=2, algorithm_type="dpmsolver", **SMALL), Exponential(2, form="noise")),
    "unipc-1": (UNI, dict(solver_order=1, **SMALL), Exponential(1, corrects=1, short=ALWAYS)),
    "unipc-2": (UNI, dict(solver_order=2, **SMALL), Exponential(2, corrects=2, short=ALWAYS)),
    "unipc-2-bh1": (
        UNI,
        dict(solver_order=2, solver_type="bh1", **SMALL),
        Exponential(2, corrects=2, rule="bh1", short=ALWAYS),
    ),
    "unipc-3": (UNI, dict(solver_order=3, **SMALL), Exponential(3, corrects=3, short=ALWAYS)),
    "unipc-3-bh1": (
        UNI,
        dict(solver_order=3, solver_type="bh1", **SMALL),
        Exponential(3, corrects=3, rule="bh1", short=ALWAYS),
    ),
    "deis-lam1": ("DEISMultistepScheduler", dict(solver_order=2), Exponential(2, form="noise", rule="exact")),
    "deis-lam2": ("DEISMultistepScheduler", dict(solver_order=3), Exponential(3, form="noise", rule="exact")),
}


def eps(x, t):
    return (x - D.alpha(t) * MIXTURE.denoise(D, x, t)) / D.sigma(t)


def theirs(kind, settings, steps, double=False):
    """Their last x, their nodes as times of ours, and how often they called the model."""
    scheduler = getattr(diffusers, kind)(**BETAS, **settings)
    scheduler.set_timesteps(steps)
    if double:  # the same nodes, not rounded to float32
        index = [*map(int, scheduler.timesteps), 0]
        scheduler.sigmas = torch.tensor([D.sigma(i) / D.alpha(i) for i in index], dtype=torch.float64)
    x = X.double() if double else X
    for t in scheduler.timesteps:
        x = scheduler.step(eps(x, float(t)), t, x).prev_sample
    last = float(scheduler.sigmas[-1])
    nodes = sorted({float(t) for t in scheduler.timesteps}, reverse=True)
    return x, [*nodes, D.time(-math.log(last)) if last > 0 else -1.0], len(scheduler.timesteps)


def ours(integrator, times, x=X):
    form = "noise" if isinstance(integrator, RungeKutta) else integrator.form
    dyn = LinearSDE(D, lambda x, t: MIXTURE.denoise(D, x, t), form)
    return rollout(dyn, integrator, Particles.at(x), times, noise=Noise(0), save="last").final.x


@pytest.mark.parametrize("steps", [5, 8, 10, 14, 20, 50])
@pytest.mark.parametrize("name", CASES)
def test_same_scheme_same_numbers(name, steps):
    """1e-5 in float32; beyond 14 steps order 3 amplifies the rounding of tables, which are then in float64."""
    kind, settings, integrator = CASES[name]
    double = steps > 14 and settings["solver_order"] == 3
    x, times, calls = theirs(kind, settings, steps, double)
    assert calls == steps == len(times) - 1
    start = X.double() if double else X
    assert float((ours(integrator, times, start) - x).abs().max()) < 1e-5


def test_published_order_three_is_not_the_exact_one():
    """The test above can fail: with the whole second difference 3M differs by far more than rounding."""
    kind, settings, _ = CASES["dpm++3m"]
    x, times, _ = theirs(kind, settings, 10)
    assert float((ours(Exponential(3, rule="exact"), times) - x).abs().max()) > 1e-3
