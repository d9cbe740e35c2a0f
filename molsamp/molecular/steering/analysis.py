"""From finished steering to the numbers of result.json, the same of the free ones, and the tables of the figures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from molsamp.engine.estimates import Estimate, mean
from molsamp.engine.lineage import Steered
from molsamp.engine.measures import log_mean_exp
from molsamp.engine.particles import live_weights, sizes
from molsamp.engine.state import Status
from molsamp.molecular.steering.annealing import difference
from molsamp.molecular.steering.job import Steering
from molsamp.molecular.steering.populations import average, gain, joined
from molsamp.molecular.steering.rewards import Near
from molsamp.molecular.steering.tables import Table, distribution, effective, ends, genealogy
from molsamp.molecular.trajectories import pdb, player, save_dcd, write, write_csv, write_tables

FRAMES = 24  # structures in the player
FEW = 2.0  # lineages or effective replicas below which a reader is warned


@dataclass(frozen=True)
class Analysis:
    """What finished steering says."""

    job: Steering

    @cached_property
    def steered(self) -> Steered:
        """All replicas."""
        return joined(self.job.steered)

    @cached_property
    def weighed(self) -> Steered:
        """The free walkers, weighed by the reward at the end."""
        return joined(self.job.free)

    @cached_property
    def before(self) -> Steered:
        """The free ones, for the law that is tilted."""
        return self.job.before(self.weighed)

    @property
    def shown(self) -> int:
        """The replica of the greatest weight, which is drawn."""
        return int(torch.tensor([log_mean_exp(a)[0] for a in self.steered.logw]).argmax())

    def summary(self) -> dict[str, Any]:
        """What result.json says: engine, costs, results, the same of the free walkers, warnings."""
        job, task = self.job, self.job.aim.task
        return {
            "engine": task.energy.tier,
            "energy_evaluations": job.cost.energy_evaluations,
            "network_calls": job.cost.network_calls,
            "results": {name: e.as_dict() for name, e in self._results(self.steered, self.steered).items()},
            "null": {name: e.as_dict() for name, e in self._results(self.weighed, self.before).items()},
            "warnings": self.warnings(),
            "kT": task.kT,
        }

    def _results(self, weights: Steered, law: Steered) -> dict[str, Estimate]:
        """log Z and effective sizes by `weights`; averages over `law`."""
        task, aim = self.job.aim.task, self.job.aim
        x, log_z = law.particles.x, gain(weights, self.before)
        energy = "1" if task.system.masses is None else "kJ/mol"
        found = {
            "dF:free->tilted": difference(log_z, task.kT, energy),
            "dF_kT:free->tilted": difference(log_z, 1.0, "kT"),
            "log_z": log_z,
        }
        s, cvs = aim.quantities(x), aim.quantities
        for j, (name, period, unit) in enumerate(zip(cvs.names, cvs.period, cvs.unit, strict=True)):
            found[f"mean:{name}"] = average(law, s[:, j], period, "1" if unit == "reduced units" else unit)
        for state in task.system.states:
            share = law.pooled(task.system.inside(x, state))
            low, high = (min(max(a, 0.0), 1.0) for a in share.interval)
            found[f"inside:{state}"] = replace(share, interval=(low, high))
        all_of = float(sizes(live_weights(weights.particles)[None])[0])
        shares = float(sizes(weights.logw.new_tensor([[log_mean_exp(a)[0] for a in weights.logw]]))[0])
        return (
            found
            | self._learned()
            | {
                "reward": law.pooled(aim.tilt(x), "nats"),
                "ess": Estimate(all_of, (all_of, all_of), n=len(x)),
                "ess_population": mean(sizes(weights.logw)),
                "lineages": mean(torch.tensor([float(len(a.unique())) for a in weights.starts()])),
                "replicas_ess": Estimate(shares, (shares, shares), n=weights.groups),
            }
        )

    def _learned(self) -> dict[str, Estimate]:
        """What the free draws of a sampler say of it: log of the integral of exp(-E/kT), and how many count."""
        if self.job.clock is None:
            return {}
        return {"log_partition": self.before.pooled_log_z(), "ess_sampler": mean(sizes(self.before.logw))}

    def warnings(self) -> list[str]:
        """What to doubt: collapse, one replica that outweighs the rest, two log Z that differ, walkers lost."""
        job, found = self.job, []
        m, R = job.settings.particles, job.settings.replicas
        results, null = (self._results(a, a) for a in (self.steered, self.weighed))
        lineages, shares = (results[name].value for name in ("lineages", "replicas_ess"))
        advice = job.advice
        if single := sum(p.collapsed for p in job.steered):
            found.append(
                f"{single} of {R} replicas were once resampled from a single one of its {job.movers}. {advice}"
            )
        elif lineages < FEW:
            found.append(
                f"The {m} {job.movers} of a replica descend from {lineages:.1f} starts on average: this is a search "
                f"for high rewards, not yet a sample of the tilted law. {advice}"
            )
        if shares < max(FEW, 0.2 * R):
            told = "it has no upper bound" if math.isinf(results["log_z"].interval[1]) else "its interval is too narrow"
            found.append(
                f"Few replicas carry the weight ({shares:.1f} of {R} in effect): log Z is likely too low, and {told}. "
                f"{advice}"
            )
        if job.clock is not None and (own := null["ess_sampler"].value) < max(FEW, 0.02 * m):
            found.append(
                f"By the sampler's own weights {own:.1f} of {m} free samples count: it has not learnt this law, and "
                "what it has missed no weight can tell. Let it learn for longer, or take more `steps`."
            )
        a, b = results["log_z"], null["log_z"]
        if a.interval[1] < b.interval[0]:  # the other way is what steering is for
            found.append(f"Free {job.movers} weighed at the end found more than steered ones: log Z {b} against {a}.")
        elif _half(b) < 0.7 * _half(a) and a.interval[0] < b.interval[1]:
            found.append(
                f"Weighing the free {job.movers} at the end tells log Z more closely, {b} against {a}: {job.sooner}."
            )
        gone = sum(int((p.status == Status.DIVERGED).sum()) for p in (*job.steered, *job.free))
        if gone:
            found.append(f"{gone} {job.movers} diverged and were left out.")
        return found

    # ---------------------------------------------------------------- files

    def figures(self, folder: Path) -> dict[str, Any]:
        """What the pictures need besides the tables: the quantities, the rewards, where they want them."""
        aim, cvs = self.job.aim, self.job.aim.quantities
        axes = zip(cvs.names, cvs.period, cvs.unit, strict=True)
        near = [t for t in aim.tilt.terms if isinstance(t, Near)]
        return {
            "quantities": [{"name": name, "period": period, "unit": unit} for name, period, unit in axes],
            "wanted": [{"name": t.cv.names[0], "value": t.value, "width": t.width} for t in near],
            "particles": self.job.settings.particles,
            "replicas": self.job.settings.replicas,
            "length": self.job.boundaries[-1],
            "from": self.job.origin,
            "clock": self.job.clock,
            "shown": self.shown,
        }

    def save(self, folder: str | Path) -> None:
        """Write the tables of the figures, particles.csv, free.csv, and of a molecule the structures.

        Raises:
            OSError: if the folder cannot be written.
        """
        folder = Path(folder)
        write_tables(folder, self._tables())
        for name, found in (("particles", self.steered), ("free", self.weighed)):
            write_csv(folder / f"{name}.csv", *ends(found, self.job.aim))
        if self.job.aim.task.system.masses is not None:
            self._structures(folder)

    def _tables(self) -> dict[str, Table]:
        job = self.job
        return {
            "effective": effective(self.steered, job.boundaries),
            "genealogy": genealogy(job.steered[self.shown], job.boundaries),
            "distribution": distribution([self.before, self.weighed, self.steered], job.aim.quantities),
        }

    def _structures(self, folder: Path) -> None:
        """Steered walkers by their weights and the free ones as DCDs, and some of both for the report."""
        system = self.job.aim.task.system
        drawn = {
            "steered": self.steered.resampled(self.job.noise.child("shown")).x,
            "free": self.weighed.particles.x,
        }
        write(folder / "topology.pdb", lambda f: f.write_text(pdb(system, [system.states[self.job.aim.start].x])))
        write(folder / "samples.dcd", lambda f: save_dcd(drawn["steered"], f))
        write(folder / "free.dcd", lambda f: save_dcd(drawn["free"], f))
        tracks = {name: x[:: max(1, len(x) // FRAMES)][:FRAMES] for name, x in drawn.items()}
        reference = tracks["steered"][0].double()
        write(folder / "player.pdb", lambda f: f.write_text(player(system, tracks, reference)))


def _half(e: Estimate) -> float:
    """Half the width of an interval."""
    return 0.5 * (e.interval[1] - e.interval[0])


def analyse(job: Steering) -> Analysis:
    """The analysis of finished steering."""
    return Analysis(job)
