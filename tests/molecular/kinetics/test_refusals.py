"""What a search found makes no rate, also where no annotation is checked as it runs (as it is in the other tests)."""

import subprocess
import sys

SCRIPT = """
import torch
from molsamp.engine import Noise, Particles, Tree, forward_flux as ff, weighted_ensemble as we
from molsamp.engine.ensembles import Ensemble, Motion
from molsamp.molecular import Problem, load
from molsamp.molecular.paths.exploration import Exploration
from molsamp.molecular.paths.settings import TreeSettings

torch.set_num_threads(1)
grown = Exploration(Problem.of(load("double-well"), dtype=torch.float64), TreeSettings(lanes=4), Noise(0))
grown.advance()
zero, motion = torch.zeros(5).long(), Motion(None, None, 1.0, 1, None, Noise(0))
flux = ff.ForwardFlux((0.0,), 1, 1, 1, 1, 1, lambda ids, step: None)
scheme = we.Scheme(1, torch.zeros(1), 1)
uses = {
    "Ensemble": lambda t: Ensemble(t, zero.double(), zero, zero, zero),
    "Ensemble.of": lambda t: Ensemble.of(t, zero, zero),
    "advance": lambda t: scheme.advance(motion, t, 0, 1),
    "run": lambda t: scheme.run(motion, t, 1),
    "rate": we.rate,
    "brute_rate": lambda t: we.brute_rate(t, 1),
    "reactive_flux": we.reactive_flux,
    "committor": we.committor,
    "begin": flux.begin,
    "flux advance": lambda t: flux.advance(motion, t),
    "flux run": lambda t: flux.run(motion, t),
    "fluxes": ff.fluxes,
    "flux rate": ff.rate,
    "flux committor": ff.committor,
    "binomial_error": ff.binomial_error,
}
for name, use in uses.items():
    for kind in (grown, grown.tree, grown.branch(4)):
        try:
            use(kind)
            print(name, "takes", type(kind).__name__)
        except TypeError as e:
            if "statistical weight" not in str(e) or type(kind).__name__ not in str(e):
                print(name, "says", e)
print(len(uses), "asked")
"""


def test_no_estimator_takes_a_tree_or_an_exploration():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert found.stdout == "15 asked\n", found.stdout + found.stderr
