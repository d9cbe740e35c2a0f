"""The engine's steering on a molecule: native Langevin walkers of alanine dipeptide, against weighing at the end."""

import torch

from molsamp.engine import Noise, annealed, steer, unforeseen
from molsamp.molecular import Problem, load


def test_walkers_of_a_peptide_are_steered_without_bias():
    """120 fs from C5, tilted by -12 times the distance to C7ax, rad: log Z of 24 populations of 16 and of as many
    weighed at the end agree within 4 of their standard errors (alarm 6e-5), and so do the tilted mean distances; the
    effective size at the end is more than twice as large.
    """
    task = Problem.of(load("alanine-dipeptide"), start="C5", end="C7ax", temperature=300)
    times = task.times[:121]

    def reward(x):
        return -12.0 * task.distance(x).double()

    found = []
    for value, noise in ((annealed(reward, times[0], times[-1]), Noise(1)), (unforeseen, Noise(2))):
        start = task.initial(noise.child("start"), torch.arange(384))
        options = {"noise": noise, "value": value, "every": 20, "groups": 24}
        found.append(steer(task.dynamics, task.integrator, start, times, reward, **options))
    for e, f in ((found[0].pooled_log_z(), found[1].pooled_log_z()), (mean(found[0], task), mean(found[1], task))):
        half = ((e.interval[1] - e.value) ** 2 + (f.interval[1] - f.value) ** 2) ** 0.5
        assert abs(e.value - f.value) < 2.0 * half < 2.0, (e, f)
    ess = [float(f.effective[-1].mean()) for f in found]
    assert ess[0] > 2.0 * ess[1], ess
    free = float(task.distance(found[1].particles.x).double().mean())
    assert mean(found[0], task).interval[1] < free


def mean(found, task):
    return found.pooled(task.distance(found.particles.x), "rad")
