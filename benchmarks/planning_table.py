"""What benchmarks/planning.py has measured, in words: tables, paired comparisons, and what was to be shown.

Intervals of success are Wilson's, over runs; those of differences and ratios are bootstraps over problems, whose seeds
stay together. A run that found nothing counts with the time limit, and with the edges and steps it had spent.
Success within s steps asks which planner is better at equal steps; b pairs (problem, seed) solved by the first alone
and c by the second alone are compared by McNemar's exact test, p = P(Bin(b + c, 1/2) >= b).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from molsamp.engine import Noise
from molsamp.engine.estimates import Estimate, wilson

SECONDS, STEPS = 20.0, 2_000_000  # limits of a run
WITHIN = (10_000, 100_000, 1_000_000, STEPS)
SUITES = {"maze": "maze", "boxes": "boxes", "corridor": "corridor", "medium": "layouts", "u-maze": "layouts"}
RESAMPLES, LEVEL = 2000, 0.05
TIMES = {
    "ompl python rrt": 3.0,
    **dict.fromkeys(("ompl c++ rrt", "ompl c++ rrt in cells", "ompl c++ sst", "rrt", "sst")),
}
COLUMNS = ("cpu_seconds", "edges", "steps", "calls", "nodes", "length_ratio", "effort")
HEAD = (
    f"{'planner':40} {'runs':>4} {'success % [95 %]':>18} {'late':>4} {'time s':>7} {'edges':>8} {'steps':>9} "
    f"{'calls':>7} {'nodes':>7} {'length':>6} {'effort':>7}"
)


class Runs(NamedTuple):
    """A planner's runs, (problems, seeds) each; a quantity that is not there is NaN."""

    problems: list[tuple[str, int]]
    solved: Tensor
    of: dict[str, Tensor]

    def at(self, rows: list[int]) -> Runs:
        """Those of some problems, by number."""
        chosen = torch.tensor(rows, dtype=torch.int64)
        of = {name: column[chosen] for name, column in self.of.items()}
        return Runs([self.problems[i] for i in rows], self.solved[chosen], of)

    def suite(self, name: str) -> Runs:
        """Those of a suite."""
        return self.at([i for i, (family, _) in enumerate(self.problems) if SUITES[family] == name])

    @property
    def seconds(self) -> Tensor:
        """To a plan, the limit where there is none."""
        return torch.where(self.solved, self.of["cpu_seconds"], SECONDS)

    def within(self, steps: int) -> Tensor:
        """Whether there was a plan by then."""
        return self.solved & (self.of["steps"] <= steps)


def runs(entries: list[dict]) -> Runs:
    """Entries of one planner and car."""

    def column(name: str) -> Tensor:
        return torch.tensor([[math.nan if v is None else v for v in e[name]] for e in entries], dtype=torch.float64)

    problems = [(e["family"], e["problem"]) for e in entries]
    return Runs(problems, column("solved") > 0, {name: column(name) for name in COLUMNS})


def paired(a: Runs, b: Runs) -> tuple[Runs, Runs]:
    """The problems that both were given, in one order."""
    both = sorted(set(a.problems) & set(b.problems))
    return a.at([a.problems.index(p) for p in both]), b.at([b.problems.index(p) for p in both])


def bootstrap(statistic: Callable[..., Tensor], *columns: Tensor) -> Estimate:
    """A statistic of runs, taken along the last axis, with its 95 % interval over problems."""
    n = len(columns[0])
    if not n:
        return Estimate(math.nan, (math.nan, math.nan))
    rows = Noise(0).child("bootstrap").integers(0, torch.arange(RESAMPLES), (n,), n)
    value = float(statistic(*(c.flatten() for c in columns)))
    spread = statistic(*(c[rows].flatten(1) for c in columns))
    ends = torch.nanquantile(spread, torch.tensor([LEVEL / 2, 1 - LEVEL / 2], dtype=torch.float64))
    return Estimate(value, (float(ends[0]), float(ends[1])), n=n)


def median(a: Tensor) -> Tensor:
    """Along the last axis, of what is there."""
    return torch.nanquantile(a, 0.5, dim=-1)


def gain(a: Tensor, b: Tensor) -> Tensor:
    """Points of success that a is ahead of b."""
    return 100.0 * (a.double().mean(-1) - b.double().mean(-1))


def less(a: Tensor, b: Tensor) -> Tensor:
    """How many times less a's median is than b's."""
    return median(b) / median(a)


def mcnemar(a: Tensor, b: Tensor) -> float:
    """One-sided p of a being better than b no more than by chance."""
    first, second = int((a & ~b).sum()), int((b & ~a).sum())
    n = first + second
    return sum(math.comb(n, k) for k in range(first, n + 1)) / 2**n


def line(name: str, r: Runs) -> str:
    """A planner's row."""
    n = r.solved.numel()
    share = wilson(int(r.solved.sum()), n)
    late = int((~r.solved & (r.of["steps"] < STEPS)).sum())
    low, high = share.interval
    success = f"{100 * share.value:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
    numbers = {c: float(median(r.of[c].flatten())) for c in COLUMNS}
    return (
        f"{name:40} {n:4} {success:>18} {late:4} {float(median(r.seconds.flatten())):7.2f} {numbers['edges']:8.0f} "
        f"{numbers['steps']:9.3g} {numbers['calls']:7.0f} {numbers['nodes']:7.0f} {numbers['length_ratio']:6.2f} "
        f"{numbers['effort']:7.0f}"
    )


def grouped(entries: list[dict]) -> dict[str, dict[str, Runs]]:
    """{car: {planner: runs}}."""
    found: dict[str, dict[str, list[dict]]] = {}
    for e in entries:
        found.setdefault(e["car"], {}).setdefault(e["planner"], []).append(e)
    return {car: {name: runs(rows) for name, rows in planners.items()} for car, planners in found.items()}


def summary(entries: list[dict]) -> str:
    """A row a planner, over all problems, the best first."""
    lines = []
    for car, planners in grouped(entries).items():
        lines += [f"{car} car, {SECONDS:g} CPU s and {STEPS:g} steps at most", HEAD]
        order = sorted(planners, key=lambda name: (-int(planners[name].solved.sum()), name))
        lines += [line(name, planners[name]) for name in order]
    return "\n".join(lines)


def table(entries: list[dict]) -> str:
    """Everything."""
    lines = []
    for car, planners in grouped([e for e in entries if e["set"] == "test"]).items():
        for suite in dict.fromkeys(SUITES.values()):
            lines += ["", f"{car} car, {suite}", HEAD]
            parts = {name: r.suite(suite) for name, r in planners.items()}
            lines += [line(name, r) for name, r in parts.items() if r.problems]
        lines += ["", f"{car} car, all", HEAD, *(line(name, r) for name, r in planners.items())]
        lines += ["", f"{car} car, compared", *compared(car, planners)]
    audits = [e for e in entries if e["set"] == "audit"]
    if audits:
        touches, misses = sum(e["touches"] for e in audits), sum(e["misses"] for e in audits)
        plans, deviation = sum(e["plans"] for e in audits), max(e["deviation"] for e in audits)
        told = (
            f"{plans} plans, {touches} touch a wall, {misses} miss the goal, they deviate by {1000 * deviation:.2g} mm"
        )
        lines += ["", f"audit at a tenth of the step: {told}: {verdict(touches == misses == 0)}"]
    return "\n".join([*lines, "", "late: runs without a plan that ended by the clock, before their steps were spent"])


def verdict(met: bool) -> str:
    """In a word."""
    return "met" if met else "MISSED"


def compared(car: str, planners: dict[str, Runs]) -> list[str]:
    """DiTree against the others, pair by pair, with what was to be shown."""
    if "ditree" not in planners:
        return ["ditree was not measured"]
    ours, lines = planners["ditree"], []
    if "rrt" in planners:
        lines += against_uniform(car, *paired(ours, planners["rrt"]))
    if "policy" in planners:
        a, b = paired(ours, planners["policy"])
        ahead = bootstrap(gain, a.solved, b.solved)
        wanted = f", to be >= 20: {verdict(ahead.value >= 20)}" if car == "hard" else ""
        lines.append(f"ditree minus the policy alone: {ahead} points{wanted}")
    length = bootstrap(median, ours.of["length_ratio"])
    lines.append(f"length over grid distance: ditree {length}, to be <= 1.5: {verdict(length.value <= 1.5)}")
    for name, least in TIMES.items():
        if name in planners:
            a, b = paired(ours, planners[name])
            ratio = bootstrap(less, a.seconds, b.seconds)
            wanted = "" if least is None else f", to be >= {least:g}: {verdict(ratio.value >= least)}"
            lines.append(f"median time to a plan, {name} / ditree: {ratio}{wanted}")
    return lines


def against_uniform(car: str, a: Runs, b: Runs) -> list[str]:
    """DiTree and the uniform tree at equal steps."""
    lines = []
    for steps in WITHIN:
        x, y = a.within(steps), b.within(steps)
        ahead = bootstrap(gain, x, y)
        told = f"within {steps:.0e} steps: ditree {100 * float(x.double().mean()):.0f} %, rrt "
        told += f"{100 * float(y.double().mean()):.0f} %: {ahead} points, p = {mcnemar(x, y):.2g}"
        lines.append(told + (f", to be >= 30: {verdict(ahead.value >= 30)}" if car == "hard" else ""))
    for suite in dict.fromkeys(SUITES[family] for family, _ in a.problems):
        s, t = a.suite(suite), b.suite(suite)
        worse = {steps: mcnemar(t.within(steps), s.within(steps)) for steps in WITHIN}
        points = {steps: float(gain(s.within(steps).flatten(), t.within(steps).flatten())) for steps in WITHIN}
        told = ", ".join(f"{points[n]:+.0f} (p {p:.2g})" for n, p in worse.items())
        fine = verdict(min(worse.values()) > LEVEL)
        lines.append(f"  {suite}: points at these steps (p of no more than chance below): {told}; not below: {fine}")
    edges = bootstrap(less, a.of["edges"], b.of["edges"])
    lines.append(f"median edges, rrt / ditree: {edges}, to be >= 10: {verdict(edges.value >= 10)}")
    lengths = bootstrap(less, a.of["length_ratio"], b.of["length_ratio"])
    own = bootstrap(median, b.of["length_ratio"])
    lines.append(f"median length over grid distance, rrt / ditree: {lengths}; rrt {own}")
    return lines
