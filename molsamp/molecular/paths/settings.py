"""Settings of the path samplers, one table a method, with the presets of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from molsamp.schema import Strict, Temperature, validate


class TargetSettings(Strict):
    """The relaxed indicator of the end state.

    Args:
        kind: "rmsd" (default), "basin" or "centre", see `target.Target`.
        sigma: width, nm for "rmsd", the state's own unit otherwise; by default the system's.
        sigma_start: width to anneal from, geometrically over `heat_share` of the training.
        mode: how the frames of a path are combined.
        reward_scale: factor on log rho; the reference implementation has rows x degrees of freedom here.
    """

    kind: Literal["rmsd", "basin", "centre"] = "rmsd"
    sigma: float | None = Field(default=None, gt=0)
    sigma_start: float | None = Field(default=None, gt=0)
    mode: Literal["max", "final", "softmax"] = "max"
    reward_scale: float = Field(default=1.0, gt=0)


class NetworkSettings(Strict):
    """The control's network.

    Args:
        kind: "mlp" on the body frame, or an equivariant one, "painn" or "e3nn".
        head: what the network answers (see `control`, `tangent`).
        widths: hidden layers; by default (64, 64), (16, 16) for painn, (8, 8) for e3nn.
        activation: of the mlp.
        time: whether t / T is an input (always, for the torsion head).
        scale: control in noise units for an answer of 1.
        length: nm, unit of the mlp's inputs.
    """

    kind: Literal["mlp", "painn", "e3nn"] = "mlp"
    head: Literal["force", "scale", "potential", "torsion"] = "force"
    widths: tuple[int, ...] | None = None
    activation: Literal["silu", "relu", "tanh"] = "silu"
    time: bool = False
    scale: float = Field(default=0.05, gt=0)
    length: float = Field(default=0.1, gt=0)


class LearnedSettings(Strict):
    """TPS-DPS: training of a control by an off-policy loss on its own rollouts.

    Args:
        rollouts: units of work; each draws `samples` paths and takes `gradient_steps` on batches of `batch`.
        buffer: newest paths kept for training.
        hold: rows for which one control is kept; exact, and cheaper by that factor in training.
        loss, control_variate, trust_region_ess: see `learn.objectives`.
        loss_scale: factor on the loss.
        learning_rate, learning_rate_log_z, decay, clip: Adam; rates fall linearly to `decay` of their start.
        temperature_start: K, of the first rollouts' noise; by default `heat_start` times the temperature.
        heat_share: share of the training over which the noise cools down to the temperature.
        candidates, validation: best controls kept, and fresh paths each is judged on at the end.
        hit_goal: judged by hits up to this rate, then by least log dP_b/dP_0.
        target, network: see their tables.
    """

    rollouts: int = Field(default=150, ge=1)
    samples: int = Field(default=64, ge=2)
    gradient_steps: int = Field(default=20, ge=1)
    batch: int = Field(default=64, ge=2)
    buffer: int = Field(default=512, ge=2)
    hold: int = Field(default=10, ge=1)
    loss: Literal["log-variance", "cross-entropy", "relative-entropy", "trust-region"] = "log-variance"
    control_variate: Literal["local", "global", "zero"] = "local"
    loss_scale: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    learning_rate_log_z: float = Field(default=1e-3, gt=0)
    decay: float = Field(default=0.1, gt=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    temperature_start: Temperature | None = None
    heat_start: float = Field(default=2.0, ge=1)
    heat_share: float = Field(default=0.7, ge=0, le=1)
    trust_region_ess: float = Field(default=0.2, gt=0, lt=1)
    candidates: int = Field(default=3, ge=1)
    validation: int = Field(default=128, ge=2)
    hit_goal: float = Field(default=0.85, gt=0, le=1)
    target: TargetSettings = TargetSettings()
    network: NetworkSettings = NetworkSettings()


class SteeredSettings(Strict):
    """A fixed untrained pull of every atom ("pull"), or a moving harmonic restraint with its work recorded.

    Args:
        kind: "pull", or the variable the restraint moves: the system's CVs ("cv") or the RMSD to the end ("rmsd").
        stiffness: kJ/mol per squared unit of what is pulled: nm ("pull", "rmsd"; "rmsd" wants 1e4) or CV units.
        hold: rows for which one pull is kept ("pull" only).
        equilibrate: rows at the fixed first centre before the restraint moves, so that work starts in equilibrium.
    """

    kind: Literal["pull", "cv", "rmsd"] = "pull"
    stiffness: float = Field(default=300.0, gt=0)
    hold: int = Field(default=10, ge=1)
    equilibrate: int = Field(default=1000, ge=0)


class TreeSettings(Strict):
    """A tree of short pieces of dynamics that explores the CVs (see `exploration`).

    Args:
        lanes: pieces side by side.
        rows: of a piece.
        look: rows between two frames that may become a node.
        goal_bias: probability that a piece is sent to the end state, not to anywhere in the box of the CVs.
        stiffness: of the pull towards where a piece is sent, kJ/mol per squared unit of the CVs; 0 leaves the dynamics
            as it is.
        keep: the node at the end of a piece: its frame "nearest" to where it was sent, or its "last".
        evaluations: energy evaluations, about, before giving up.
    """

    lanes: int = Field(default=64, ge=1)
    rows: int = Field(default=50, ge=1)
    look: int = Field(default=5, ge=1)
    goal_bias: float = Field(default=0.1, ge=0, le=1)
    stiffness: float = Field(default=0.0, ge=0)
    keep: Literal["nearest", "last"] = "nearest"
    evaluations: int = Field(default=2_000_000, ge=1)


class ShootingSettings(Strict):
    """Shooting moves between the thermal start state and the end state.

    Args:
        kind: "two-way" draws a fresh velocity and both branches; "one-way" redraws one branch and keeps the velocity.
        length: "fixed", or "flexible": from the last frame in the start state to the first in the end state.
        arrival: what a fixed-length path must do: visit the end state in "any" frame, or be there in the "final" one.
        chains: run side by side.
        moves: of every chain after the burn-in.
        burn_in: moves before it; the first paths are not draws from the ensemble and have to be forgotten.
        initial: the first paths: an untrained "pull", or shots from the branch of a "tree" that explores the CVs,
            which may lie in a channel that the dynamics hardly ever takes.
        tree: how that grows.
    """

    kind: Literal["one-way", "two-way"] = "one-way"
    length: Literal["flexible", "fixed"] = "flexible"
    arrival: Literal["any", "final"] = "any"
    chains: int = Field(default=64, ge=1)
    moves: int = Field(default=60, ge=1)
    burn_in: int = Field(default=20, ge=0)
    initial: Literal["pull", "tree"] = "pull"
    tree: TreeSettings = TreeSettings()


class ViBiDSettings(Strict):
    """Proposals of whole paths by a Gaussian model of them, asked from both ends in turn, and a Metropolis test.

    Args:
        chains: run side by side.
        moves: of every chain after the burn-in.
        burn_in: one-way shots before it; the model is fitted to the paths of the second half.
        arrival: what a path must do: visit the end state in "any" frame, or be there in the "final" one.
        frames: of the model, at most; the frames between are filled in. Its cost grows with their cube.
        levels: of noise that a path is taken up to, in units of the root mean variance of the model; they take turns.
        rows: of the alternation down from there; 0 draws from the model's own bridge, which a network does not have.
        floor: share of the level where it ends and the rest is drawn.
    """

    kind: ClassVar = "one-way"
    length: ClassVar = "fixed"
    initial: ClassVar = "pull"
    chains: int = Field(default=64, ge=2)
    moves: int = Field(default=1000, ge=1)
    burn_in: int = Field(default=60, ge=1)
    arrival: Literal["any", "final"] = "any"
    frames: int = Field(default=101, ge=2)
    levels: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(0.5, 1.0, 4.0), min_length=1)
    rows: int = Field(default=2, ge=0)
    floor: float = Field(default=0.5, gt=0, lt=1)


class ChainSettings(Strict):
    """Markov chains on the noise with a fixed start, through levels of the end-state distance.

    Args:
        chains: run side by side, the same number in every group.
        groups: independent groups of chains, each with its own levels; their scatter is the error of log P_0(hit).
        moves: of every chain once the end state is reached.
        level_moves: moves between two levels.
        levels: most levels before a group gives up.
        quantile: share of the chains that lies beyond the next level.
        mixing: b of xi' = sqrt(1 - b^2) xi + b eta.
        window: rows of a window redraw.
        arrival: a hit is "any" frame in the end state, or the "final" one.
    """

    chains: int = Field(default=128, ge=2)
    groups: int = Field(default=4, ge=2)
    moves: int = Field(default=100, ge=1)
    level_moves: int = Field(default=15, ge=1)
    levels: int = Field(default=40, ge=1)
    quantile: float = Field(default=0.3, gt=0, lt=1)
    mixing: float = Field(default=0.15, gt=0, le=1)
    window: int = Field(default=100, ge=1)
    arrival: Literal["any", "final"] = "any"


class TwistedSettings(Strict):
    """Twisted sequential Monte Carlo: populations guided by a learned log h, which they teach in turn.

    Args:
        particles: of a population.
        populations: of the production; their scatter is every error bar.
        ripe: share of the particles that the distinct starts behind a level must be before the next one is taught.
        dwell: most refinements at a level on the way that are spent on that.
        refinements, patience: least number of them at the end state before populations count, and how many more at
            most until it is ripe.
        levels: most populations on the way to the end state before giving up.
        share: of the weight that lies beyond the next level.
        ancestors: distinct starts behind that share; the level is farther off where there are fewer.
        kappa: weight of P_0 in the twist psi = h + kappa E_0[h]: kappa / (1 + kappa) of the particles explore.
        every, hold: rows between boundaries, and for which one control is kept.
        pool: start velocities drawn for each particle that starts.
        heat: temperature of that draw over the problem's, in the directions that matter most; weights make up for it.
        widths, fine: hidden layers of the two networks.
        pairs: particles a boundary that teach.
        horizons: boundaries to the frames that tell log h of a frame; lessons of the refinement take turns.
        replay: populations of the refinement that teach together, the last ones.
        classify_steps, refine_steps, batch, learning_rate: Adam's, on the way and in the refinement.
        arrival: a hit is "any" frame in the end state, or the "final" one.
    """

    particles: int = Field(default=8192, ge=2)
    populations: int = Field(default=8, ge=2)
    ripe: float = Field(default=1 / 64, ge=0, le=1)
    dwell: int = Field(default=3, ge=0)
    refinements: int = Field(default=4, ge=0)
    patience: int = Field(default=4, ge=0)
    levels: int = Field(default=80, ge=1)
    share: float = Field(default=0.15, gt=0, lt=1)
    ancestors: int = Field(default=16, ge=1)
    every: int = Field(default=20, ge=1)
    hold: int = Field(default=10, ge=1)
    pool: int = Field(default=8, ge=1)
    heat: float = Field(default=4.0, ge=1)
    kappa: float = Field(default=1.0, ge=0)
    widths: tuple[int, ...] = (64, 64)
    fine: tuple[int, ...] = (128, 64)
    pairs: int = Field(default=2048, ge=2)
    horizons: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 5), min_length=1)
    replay: int = Field(default=3, ge=1)
    classify_steps: int = Field(default=300, ge=1)
    refine_steps: int = Field(default=200, ge=1)
    batch: int = Field(default=8192, ge=2)
    learning_rate: float = Field(default=3e-3, gt=0)
    arrival: Literal["any", "final"] = "any"


class FreeSettings(Strict):
    """Unbiased dynamics.

    Args:
        heat: sampling temperature over the problem's; above 1 the paths are not draws from P_0.
        batch: paths carried side by side.
    """

    heat: float = Field(default=1.0, ge=1)
    batch: int = Field(default=64, ge=1)


METHODS: dict[str, type[pydantic.BaseModel]] = {
    "tps-dps": LearnedSettings,
    "shooting": ShootingSettings,
    "steered": SteeredSettings,
    "md": FreeSettings,
    "chain": ChainSettings,
    "twisted": TwistedSettings,
    "vibid": ViBiDSettings,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {},
    "full": {
        "tps-dps": {"rollouts": 300, "buffer": 1024},
        "shooting": {"moves": 600, "burn_in": 100},
        "chain": {"moves": 1000, "chains": 256},
        "twisted": {"populations": 10},
        "vibid": {"moves": 10_000, "burn_in": 200},
    },
}


def method_settings(method: str, own: Mapping[str, Mapping[str, Any]], preset: str = "demo") -> Any:
    """Settings of a method for a system: the method's defaults < the system's own (`System.methods`) < the preset."""
    given = {**own.get(method, {}), **PRESETS[preset].get(method, {})}
    return validate(METHODS[method], given, f"methods.{method} of the system")
