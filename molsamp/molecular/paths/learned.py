"""TPS-DPS: transition paths from a learned control (Seong et al., "Transition path sampling with improved
off-policy training of diffusion path samplers", ICLR 2025), with the control in the noise step.

One unit of work is one rollout with the present control on hot noise and a few gradient steps on stored paths:

    log dP_u/dP_0 = sum_j [ u_j R_j - H |u_j|^2 / 2 ],   R_j = sum of (u + xi) over block j of H rows,

where u is held for H rows. R_j and the frames at block starts are all that is stored.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from molsamp.engine.dynamics import Controlled
from molsamp.engine.measures import log_mean_exp
from molsamp.engine.noise import Noise
from molsamp.engine.rollout import rollout
from molsamp.engine.state import Path, Status
from molsamp.learn.buffer import Ring
from molsamp.learn.fit import FitResult, fit
from molsamp.learn.networks import flatten_state, load_optimiser, optimiser_state, with_prefix
from molsamp.learn.objectives import cross_entropy, log_variance, moderate, relative_entropy, trust_region_target
from molsamp.molecular.paths.networks import build_control
from molsamp.molecular.paths.paths import Paths
from molsamp.molecular.paths.sampler import Sampler
from molsamp.molecular.paths.settings import LearnedSettings
from molsamp.molecular.paths.target import Target
from molsamp.molecular.system import kB

SIGMA = 0.0025  # nm, the width of the target where neither the settings nor the system name one


class LearnedPaths(Sampler):
    """The learned sampler; arguments as in `Sampler`, settings as in `LearnedSettings`."""

    name = "tps-dps"
    Settings = LearnedSettings

    def _begin(self) -> None:
        problem, settings, noise = self.problem, self.settings, self.noise
        if problem.steps % settings.hold:
            raise ValueError(f"hold = {settings.hold} does not divide the {problem.steps} steps of a path")
        self.total = settings.rollouts
        self.control = build_control(problem, settings.network, noise.child("network"))
        self.log_z = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.optimiser = torch.optim.Adam(
            [
                {"params": list(self.control.parameters()), "lr": settings.learning_rate},
                {"params": [self.log_z], "lr": settings.learning_rate_log_z},
            ]
        )
        self.rates = [g["lr"] for g in self.optimiser.param_groups]
        self.ring = Ring(settings.buffer)
        self.kept: list[tuple[float, dict[str, Tensor]]] = []

    # ---------------------------------------------------------------- training

    def _advance(self) -> dict[str, Any]:
        """One rollout and its gradient steps; returns the metrics of the rollout."""
        s = self.settings
        path = self.run(s.samples, self.noise.child("training"), first_id=self.k * s.samples, heat=self.heat())
        metrics = self._measure(path)
        self._keep(metrics)
        dropped = self.ring.push(self._items(path))
        result = self._learn()
        self.k += 1
        return metrics | {
            "loss": result.loss,
            "gradient": result.gradient,
            "dropped": dropped,
            "skipped": result.skipped,
        }

    def run(self, n: int, noise: Noise, *, first_id: int = 0, heat: float = 1.0, save: Any = None) -> Path:
        """Roll out n paths under the present control; saved at block starts unless told otherwise."""
        ids = torch.arange(first_id, first_id + n)
        dyn = Controlled(self.problem.dynamics, self.control.drive, self.settings.hold)
        self.network_calls += n * self.problem.steps // self.settings.hold
        self.control.eval()
        start = self.problem.initial(noise, ids)
        save = save or self.settings.hold
        return rollout(
            dyn, self.problem.integrator, start, self.problem.times, noise=noise, save=save, heat=math.sqrt(heat)
        )

    def heat(self) -> float:
        """Sampling temperature over target temperature: linear down to 1 over the first `heat_share` of training.

        Always 1 for the losses whose weights need the density of the paths' own sampler, which hot paths do not have.
        """
        s = self.settings
        if s.loss in ("cross-entropy", "relative-entropy"):
            return 1.0
        top = s.heat_start if s.temperature_start is None else s.temperature_start * kB / self.problem.kT
        done = self.k / max(1.0, s.heat_share * self.total)
        return max(1.0, top + (1.0 - top) * done)

    def target(self) -> Target:
        """The relaxed indicator at the present width (annealed geometrically when `sigma_start` is given)."""
        t, own = self.settings.target, self.problem.system.settings
        end = t.sigma or own.sigma or SIGMA
        start = t.sigma_start or end
        share = min(1.0, self.k / max(1.0, self.settings.heat_share * self.total))
        return Target(self.problem, t.kind, start * (end / start) ** share, t.mode)

    def _items(self, path: Path) -> dict[str, Tensor]:
        """Path-first items of the ring: what the control's `gain` needs of every block, reward, behaviour."""
        assert path.z is not None
        blocks, n = path.z.shape[:2]
        starts = path.x[:-1].flatten(0, 1)
        v = None if path.v is None else path.v[:-1].flatten(0, 1)
        t = path.times[:-1].to(starts.dtype).repeat_interleave(n)
        with torch.no_grad():
            encoding = self.control.encode(t, starts, v)
            stored = self.control.stored(encoding, path.z.flatten(0, 1))

        def path_first(a: Tensor) -> Tensor:
            return a.unflatten(0, (blocks, n)).transpose(0, 1)

        items = {k: path_first(a) for k, a in stored.items()}
        bad = path.final.status == Status.DIVERGED
        behaviour = path.log_ratio.masked_fill(bad, math.nan)
        return items | {"reward": self._frames_of_reward(path), "behaviour": behaviour}

    def _frames_of_reward(self, path: Path) -> Tensor:
        """What the reward is made of and does not depend on its width: per-frame -sigma^2 log rho, (n, F)."""
        target = self.target()
        return (target.frames(path.x) * target.sigma**2).T

    def _stored_reward(self, stored: Tensor) -> Tensor:
        target = self.target()
        return self.settings.target.reward_scale * target.combine((stored / target.sigma**2).T)

    def log_rn(self, batch: dict[str, Tensor]) -> Tensor:
        """log dP_u/dP_0 of stored paths under the present control, (batch,), float64."""
        stored = {k: a.flatten(0, 1) for k, a in batch.items() if k not in ("reward", "behaviour")}
        return self.control.gain(stored, self.settings.hold).view(len(batch["reward"]), -1).double().sum(1)

    def _learn(self) -> FitResult:
        """`gradient_steps` steps of the chosen loss on the ring.

        Relative entropy takes the newest rollout alone, so it is on-policy in the first of its steps.
        """
        s = self.settings
        share = 1.0 + (s.decay - 1.0) * self.k / self.total
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        self.control.train()
        if not len(self.ring):
            return FitResult(math.nan, math.nan, 0)
        old = self._freeze_policy() if s.loss == "trust-region" else None
        first, count = 0, len(self.ring)
        if s.loss == "relative-entropy":
            count = min(s.samples, count)
            first = self.ring.pushed - count
        keys = self.noise.child("batches")

        def draw(step: int) -> dict[str, Tensor]:
            at = torch.tensor([self.k * s.gradient_steps + step])
            index = (first + keys.integers(0, at, (s.batch,), count)[0]) % self.ring.capacity
            batch = self.ring.take(index)
            return batch if old is None else batch | {"old": old[index]}

        return fit(self._loss, draw, self.optimiser, steps=s.gradient_steps, clip=s.clip)

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        s = self.settings
        goal = batch.pop("old", None)
        log_rn, log_reward = self.log_rn(batch), self._stored_reward(batch["reward"])
        if s.loss == "cross-entropy":
            loss = cross_entropy(log_rn, log_reward, batch["behaviour"])
        elif s.loss == "relative-entropy":
            loss = relative_entropy(log_rn, log_reward)
        else:
            variate = {"local": None, "global": self.log_z, "zero": torch.zeros(())}[s.control_variate]
            loss = log_variance(log_rn, log_reward if goal is None else goal, variate)
        return s.loss_scale * loss

    @torch.no_grad()
    def _freeze_policy(self) -> Tensor:
        """Trust-region goals log dQ_lam/dP_0 of all stored paths, from the control as it stands."""
        count = len(self.ring)
        chunks = torch.arange(count).split(self.settings.batch)
        log_old = torch.cat([self.log_rn(self.ring.take(i)) for i in chunks])
        reward = self._stored_reward(self.ring.items["reward"][:count])
        newest = (self.ring.pushed - 1 - torch.arange(min(count, self.settings.samples))) % self.ring.capacity
        _, lam = trust_region_target(log_old[newest], reward[newest], self.settings.trust_region_ess)
        tilt = lam * (reward - log_old)
        return log_old + moderate(tilt, log_mean_exp(tilt[newest])[0])

    # ---------------------------------------------------------------- keep-best

    def _measure(self, path: Path) -> dict[str, Any]:
        return super()._measure(path) | {
            "heat": self.heat(),
            "rmsd": float(self.problem.deviation(path.x).amin(0).mean()),
        }

    def score(self, hit_rate: float, log_rn: float) -> float:
        """What keep-best compares: hits up to `hit_goal` first, then the fewest nats."""
        if not math.isfinite(log_rn):
            return -math.inf
        return min(hit_rate, self.settings.hit_goal) - 1e-4 * log_rn

    def _keep(self, metrics: dict[str, Any]) -> None:
        """Remember the control that drove this rollout, if it is among the best at the target temperature."""
        if self.heat() > 1.0:
            return
        score = self.score(metrics["hit_rate"], metrics["log_rn"])
        self.kept.append((score, {k: v.clone() for k, v in self.control.state_dict().items()}))
        self.kept = sorted(self.kept, key=lambda c: -c[0])[: self.settings.candidates]

    def choose(self) -> None:
        """Load the kept control that does best on fresh validation paths."""
        if not self.kept:
            return
        scores = []
        for c, (_, weights) in enumerate(self.kept):
            self.control.load_state_dict(weights)
            m = self._measure(self.run(self.settings.validation, self.noise.child(f"validation {c}")))
            scores.append(self.score(m["hit_rate"], m["log_rn"]))
        self.control.load_state_dict(self.kept[max(range(len(scores)), key=scores.__getitem__)][1])

    # ---------------------------------------------------------------- sampling

    def sample(self, n: int, noise: Noise) -> Paths:
        """Draw n paths with the present control, saved at every row."""
        with self._timed():
            path = self.run(n, noise, save="all")
        return Paths(self.problem, path, path.log_ratio, self.name, cost=self.cost)

    def paths(self) -> Paths:
        """Choose among the kept controls and draw the evaluation paths."""
        with self._timed():
            self.choose()
        return self.sample(self.n, self.noise.child("evaluation"))

    # ---------------------------------------------------------------- checkpoints

    def _state(self) -> dict[str, Tensor]:
        flat = {
            "log_z": self.log_z.detach().clone(),
            "scores": torch.tensor([s for s, _ in self.kept], dtype=torch.float64),
        }
        flat |= flatten_state("control", self.control.state_dict())
        flat |= optimiser_state("optimiser", self.optimiser)
        flat |= flatten_state("ring", self.ring.state())
        for c, (_, weights) in enumerate(self.kept):
            flat |= flatten_state(f"kept{c}", weights)
        return flat

    def _load(self, state: dict[str, Tensor]) -> None:
        self.log_z.data.copy_(state["log_z"])
        self.control.load_state_dict(with_prefix("control", state))
        load_optimiser("optimiser", self.optimiser, state)
        self.ring.load(with_prefix("ring", state))
        self.kept = [(float(s), with_prefix(f"kept{c}", state)) for c, s in enumerate(state["scores"])]
