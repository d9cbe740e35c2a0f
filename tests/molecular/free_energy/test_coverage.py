"""Coverage: 400 runs of every method on a double well of two kT, whose F(x) and dF are integrals.

A method is watched in six cells (F against all of the grid) and in the difference of the two halves. By the exact
binomial tail at 1 % family-wise a right method fails once in a hundred; its intervals at 0.8 of their width must fail.
The 400 runs are one of 400 times as many walkers, whose scatter each run takes its intervals from: under one bias,
which is theirs to know and no estimate.
"""

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import binom
from test_walkers import exact

from molsamp.molecular import load
from molsamp.molecular.free_energy import make, walkers
from molsamp.molecular.free_energy.mbar import join
from molsamp.molecular.free_energy.settings import METHODS
from molsamp.molecular.free_energy.umbrella import Umbrella

RUNS, WALKERS, CELLS = 400, 32, (4, 8, 11, 14, 17, 21)
GRID = {"nodes": 26, "ranges": [[-1.75, 1.75]]}
TIMES = {
    "settle": 40.0,
    "production": 8.0,
    "frame": 0.2,
    "record": 1.0,
    "snapshots": 1,
    "walkers": RUNS * WALKERS,
    "grid": GRID,
}
HILLS = {"height": 0.05, "width": [0.3], "factor": 4.0}
SMALL = {
    "process": {"smin": 0.02, "smax": 2.0},
    "source": {"kind": "gaussian", "width": 0.5},
    "network": {"widths": [8]},
    "turn": None,
    "relax": None,
    "clip": 100.0,
    "warm": 0.8,
    "warm_steps": 0,
    "epochs": 2,
    "samples": 32,
    "draws": 2,
    "gradient_steps": 2,
    "batch": 32,
    "buffer": 64,
    "steps": 10,
}
CASES = {
    "md": TIMES,
    "metadynamics": TIMES | HILLS | {"build": 2.0, "stride": 0.1},
    "umbrella": TIMES | {"windows": 6, "width": 1.0, "settle": 2.0, "production": 2.0},
    "wt-asbs": TIMES | HILLS | SMALL,
}


@pytest.fixture(scope="module")
def well():
    system = load("double-well")
    return dataclasses.replace(system, settings=system.settings.model_copy(update={"timestep": 0.004, "kT": 0.5}))


def repetitions(job):
    """The histograms of RUNS repetitions: walkers are independent, so a run of many is many runs of a few."""
    for k in range(RUNS):
        mine = slice(k * WALKERS, (k + 1) * WALKERS)
        if isinstance(job, Umbrella):
            used = job.used
            windows = job.windows.only([job.visits[place].window for place in used])
            yield join(windows, job.s[used][:, :, mine], job.grid, job.f_k).histogram
        else:
            yield dataclasses.replace(job.histogram, weight=job.histogram.weight[mine])


@pytest.mark.slow
@pytest.mark.parametrize("method", CASES)
def test_intervals_cover(well, method, monkeypatch):
    monkeypatch.setattr(walkers, "BLOCKS", RUNS * WALKERS)
    job = make(well, method, METHODS[method](**CASES[method]), seed=1, cvs=["x"]).fit()
    p = np.exp(-exact(well, job.grid))
    F, middle = -well.kT * np.log(p / p.sum()), len(p) // 2
    left, right = np.arange(len(p)) < middle, np.arange(len(p)) >= middle
    dF = -well.kT * math.log(p[right].sum() / p[left].sum())
    z = []  # |value - exact| over half the interval
    for h in repetitions(job):
        ours = -h.kT * np.log((h.weight.sum(0) / h.weight.sum()).numpy())
        told = h.difference(left, right)
        off = (told.value - dF) / (told.interval[1] - told.value)
        z.append(np.abs([*((ours - F) / h.surface().half)[list(CELLS)], off]))
    hits = {scale: (np.array(z) < scale).sum(0) for scale in (1.0, 0.8)}
    tail = {scale: binom.cdf(h, RUNS, 0.95).min() * (len(CELLS) + 1) for scale, h in hits.items()}
    assert tail[1.0] > 0.01, hits
    assert hits[1.0].max() <= 0.995 * RUNS, hits
    assert tail[0.8] < 0.01, hits
