"""From settings to a control: which network, which head."""

from __future__ import annotations

import math

from torch import nn

from molsamp.engine.noise import Noise
from molsamp.learn.networks import MLP
from molsamp.molecular.paths.control import Control, Features, NetworkControl
from molsamp.molecular.paths.problem import Problem
from molsamp.molecular.paths.settings import NetworkSettings
from molsamp.molecular.paths.tangent import TorsionTangents
from molsamp.molecular.torsions import turning

WIDTHS = {"mlp": (64, 64), "painn": (16, 16), "e3nn": (8, 8)}


def build_control(problem: Problem, settings: NetworkSettings, noise: Noise) -> Control:
    """The control that `settings` describe, its weights keyed by `noise`, its answer zero (scale head: a weak pull).

    Raises:
        ValueError: for a combination that does not exist, naming both keys.
    """
    widths = settings.widths or WIDTHS[settings.kind]
    if settings.head == "torsion":
        if settings.kind != "mlp":
            raise ValueError(f"network.head = 'torsion' needs network.kind = 'mlp', not {settings.kind!r}")
        c = len(turning(problem.system))
        mlp = MLP((3 * c + 1, *widths, c), noise, settings.activation)
        return TorsionTangents(problem, mlp.to(problem.dtype), settings.scale)
    event = problem.system.event
    net: nn.Module
    if settings.kind == "mlp":
        shape = {"force": event, "scale": event[:-1], "potential": ()}[settings.head]
        layers = (Features.inputs(event, settings.time), *widths, math.prod(shape))
        net = Features(MLP(layers, noise, settings.activation), settings.length, settings.time, shape)
    else:
        from molsamp.learn.equivariant import build_equivariant

        if not problem.molecular:
            raise ValueError(f"network.kind = {settings.kind!r} needs a molecule; {problem.system.name} is a toy")
        net = build_equivariant(settings.kind, problem.end.x, settings.head, widths, settings.time, noise)
    return NetworkControl(problem, net.to(problem.dtype), settings.head, settings.scale)
