"""Floor 0: particles, keyed noise, dynamics, integrators as tables of rows, the one rollout, path measures."""

from molsamp.engine.climbing import Climb
from molsamp.engine.conjugate_gradients import conjugate_gradients
from molsamp.engine.dynamics import (
    Controlled,
    Ito,
    LinearSDE,
    Overdamped,
    Underdamped,
    centred,
    flow,
    reverse,
)
from molsamp.engine.exponential import DDIM, DPMSolverPP2M, Exponential
from molsamp.engine.grids import time_grid
from molsamp.engine.guides import Chain, Guided, Prediction, Uphill
from molsamp.engine.integrators import EulerMaruyama, Heun, LangevinMiddle, SemiImplicitEuler, log_prob, step
from molsamp.engine.lineage import Steered
from molsamp.engine.measures import ess, girsanov, log_mean_exp, log_ratio
from molsamp.engine.mixtures import GaussianMixture
from molsamp.engine.neighbours import Neighbours
from molsamp.engine.noise import Noise, Tape
from molsamp.engine.operators import check_adjoint
from molsamp.engine.particles import resample, smc
from molsamp.engine.renoising import Renoising
from molsamp.engine.rollout import residuals, rollout
from molsamp.engine.schedules import EDM, VP, Cosine, Discrete, Flow, MeanReverting
from molsamp.engine.singlestep import DPMSolver, RungeKutta
from molsamp.engine.state import Particles, Path, Status
from molsamp.engine.steering import annealed, foreseen, steer, unforeseen
from molsamp.engine.trees import Tree
from molsamp.engine.witnesses import Witnesses

__all__ = [
    "DDIM",
    "EDM",
    "VP",
    "Chain",
    "Climb",
    "Controlled",
    "Cosine",
    "DPMSolver",
    "DPMSolverPP2M",
    "Discrete",
    "EulerMaruyama",
    "Exponential",
    "Flow",
    "GaussianMixture",
    "Guided",
    "Heun",
    "Ito",
    "LangevinMiddle",
    "LinearSDE",
    "MeanReverting",
    "Neighbours",
    "Noise",
    "Overdamped",
    "Particles",
    "Path",
    "Prediction",
    "Renoising",
    "RungeKutta",
    "SemiImplicitEuler",
    "Status",
    "Steered",
    "Tape",
    "Tree",
    "Underdamped",
    "Uphill",
    "Witnesses",
    "annealed",
    "centred",
    "check_adjoint",
    "conjugate_gradients",
    "ess",
    "flow",
    "foreseen",
    "girsanov",
    "log_mean_exp",
    "log_prob",
    "log_ratio",
    "resample",
    "residuals",
    "reverse",
    "rollout",
    "smc",
    "steer",
    "step",
    "time_grid",
    "unforeseen",
]
