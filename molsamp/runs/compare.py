"""`molsamp compare RUN RUN ...`: free energies of several runs against the first, as a table and a page.

Contract: reads fes.dat, result.json and, where they are, config.toml and the figures' data of each folder; writes one
HTML file and nothing else. What the figures are, with their errors, is in `molecular.free_energy.comparison`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from molsamp.engine.estimates import Z95, Estimate
from molsamp.molecular.free_energy import comparison
from molsamp.molecular.free_energy.comparison import Comparison, Distance
from molsamp.molecular.free_energy.surface import Surface
from molsamp.runs import figures_compare as figures
from molsamp.runs import summary
from molsamp.runs.checkpoint import write_text
from molsamp.runs.page import grouped, panel
from molsamp.runs.reading import Finished, read
from molsamp.runs.report import OWN, asset

if TYPE_CHECKING:
    from molsamp.molecular.grids import Grid

MARK = "comparison · molsamp</title>"  # by which a page of ours is known
WORDS = (
    "Every run is set against the first. The mean |ΔF| is over the nodes below a free energy of the reference, after "
    "the best constant; the Jensen-Shannon and Kullback-Leibler divergences are those of exp(−F/kT), in nats. What the "
    "errors alone would make is given beside each: between two runs of one free energy the value is on average at most "
    "that. The ± is at most the standard error, whatever the correlations between nodes; bands of profiles are 95 %. "
    "The floor of the JSD is what so many effective samples would make if they were independent."
)
Row = list[str]


@dataclass(frozen=True)
class Compared:
    """A finished run of free energies, as it is compared.

    Args:
        name: short, of the folder.
        run: what its folder holds.
        surface: F over all its CVs.
        kT: kJ/mol.
    """

    name: str
    run: Finished
    surface: Surface
    kT: float

    @property
    def ess(self) -> float:
        """Effective samples; without end where F is an integral, and 0 where result.json does not say."""
        if self.run.result.get("method") == "quadrature":
            return math.inf
        return self.run.result["results"].get("ess", {}).get("value") or 0.0

    @cached_property
    def profiles(self) -> list[Surface]:
        """F of each CV alone: the run's own, with errors of its walkers, or from the surface."""
        grid, table = self.surface.grid, self.run.tables["profiles"]
        found = []
        for axis, name in enumerate(grid.names):
            one = comparison.profile(self.surface, axis, self.kT)
            rows = [i for i, cv in enumerate(table.get("cv", [])) if cv == name]
            if len(rows) == grid.shape[axis]:
                F, high = (np.array([float(table[k][i] or "nan") for i in rows]) for k in ("F", "high"))
                half = np.where(np.isfinite(high), high, math.inf) - np.where(np.isfinite(F), F, 0)
                one = Surface(one.grid, F, half / Z95, half)
            found.append(one)
        return found

    def difference(self, name: str) -> Estimate:
        """One of the differences of result.json; NaN where it could not be told."""
        number = self.run.result["results"].get(name) or {}
        low, high = (a if a is not None else math.nan for a in number.get("interval") or (None, None))
        value = number.get("value")
        half = 0.5 * (high - low) if math.isfinite(high - low) else math.inf
        value = math.nan if value is None else value
        return Estimate(value, (value - half, value + half), "kJ/mol", number.get("n", 0))


def compare(folders: Sequence[Path], out: Path, below: float, quiet: bool) -> None:
    """Print the table and write the page.

    Args:
        folders: run folders, the reference first; one alone is set against the reference of its system.
        out: the page; a file of that name is replaced only if it is such a page.
        below: the mean |dF| is over nodes where the reference is below this, kJ/mol.
        quiet: no table.
    Raises:
        ValueError: a folder without a finished free energy, or runs that cannot be compared; says why.
        OSError: the page cannot be written.
    """
    if not below > 0:
        raise ValueError(f"--below: got {below:g}; allowed are free energies above 0 kJ/mol")
    if out.is_dir() or (out.exists() and MARK not in out.read_text(encoding="utf-8", errors="replace")[:1000]):
        raise ValueError(f"--out: {out} exists already and is no page of `molsamp compare`; choose another name")
    if len(folders) == 1:
        folders = [_reference_of(folders[0]), *folders]
    runs = [_open(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    for other in runs[1:]:
        _refuse_others(runs[0], other)
    found = [comparison.compare(runs[0].surface, r.surface, runs[0].kT, below, (runs[0].ess, r.ess)) for r in runs[1:]]
    table = rows(runs, found, below)
    if not quiet:
        _show(runs, table)
    write_text(out, _page(runs, found, table, below))
    if not quiet:
        print(f"page: {out}")


# -- what is compared -----------------------------------------------------------------------------


def _open(folder: Path, name: str) -> Compared:
    run = read(folder)
    verb = run.result.get("verb")
    if verb != "free-energy":
        raise ValueError(f"{folder}: is a run of `molsamp {verb}`; allowed are runs of `molsamp free-energy`")
    kT = run.result.get("kT") or run.states.get("kT")
    if run.surface is None or not isinstance(run.result.get("results"), dict):
        raise ValueError(f"{folder}: is not whole; fes.dat and result.json with its results are needed")
    if kT is None:
        raise ValueError(f"{folder}: kT is known neither to result.json nor to figures/states.json")
    if not np.isfinite(run.surface.F).any():
        raise ValueError(f"{folder}: fes.dat has no node with a free energy")
    return Compared(name, run, run.surface, float(kT))


def _reference_of(folder: Path) -> Path:
    """The reference run of a run's system."""
    from molsamp.molecular.system import reference

    name = read(folder).result.get("system", "")
    if (found := reference(name)) is None:
        raise ValueError(f"{folder}: system '{name}' has no reference run; name a second run to compare with")
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, whole paths where two are the same."""
    last = [f"reference of {f.parent.name}" if f.name == "reference" else f.resolve().name for f in folders]
    return last if len(set(last)) == len(last) else [str(f) for f in folders]


def _refuse_others(reference: Compared, other: Compared) -> None:
    """Raise if two runs are not about the same free energy on the same grid."""
    one, two = reference.surface.grid, other.surface.grid
    facts = {
        "system": (reference.run.result.get("system"), other.run.result.get("system")),
        "CVs": tuple(", ".join(g.names) for g in (one, two)),
        "kT": tuple(f"{r.kT:.6g} kJ/mol" for r in (reference, other)),
        "nodes": tuple(" x ".join(map(str, g.shape)) for g in (one, two)),
        "ranges": (_ranges(one), _ranges(two)),
    }
    if differ := [f"{what}: {a} and {b}" for what, (a, b) in facts.items() if a != b]:
        folders = f"{reference.run.folder} and {other.run.folder}"
        raise ValueError(f"{folders} cannot be compared; they differ in {'; '.join(differ)}")


def _ranges(grid: Grid) -> str:
    ends = zip(grid.ranges, grid.period, strict=True)
    return ", ".join(f"{lo:.9g} to {hi:.9g}{'' if period is None else ' (periodic)'}" for (lo, hi), period in ends)


# -- the table ------------------------------------------------------------------------------------


def rows(runs: Sequence[Compared], found: Sequence[Comparison], below: float) -> list[Row]:
    """The table: what each row is, then a cell for every run; those of the reference are empty but for dF."""
    table, reference = [], runs[0]
    names = dict.fromkeys(k for r in runs for k in r.run.result["results"] if k.startswith("dF:"))
    for name in names:
        table.append([f"{name} / kJ/mol", *(_interval(r.difference(name)) for r in runs)])
        contrasts = [comparison.contrast(reference.difference(name), r.difference(name)) for r in runs[1:]]
        table.append(["  difference", "", *(_contrast(*c) for c in contrasts)])

    def distance(title: str, picked: list[Distance]) -> None:
        table.append([title, "", *(_pm(d.value, d.error) for d in picked)])
        table.append(["  noise alone makes at most", "", *(_number(d.expected) for d in picked)])

    distance(f"mean |ΔF| below {below:g} kJ/mol", [c.mae for c in found])
    table.append(["  which is", "", *(c.mae.verdict for c in found)])
    table.append(["  nodes", "", *(f"{c.nodes[0]} of {c.nodes[1]}" for c in found)])
    distance("JSD / nats", [c.jsd for c in found])
    table.append(["  floor at this ESS", "", *(_number(c.floor) for c in found)])
    distance("KL(reference||run) / nats", [c.kl for c in found])
    table.append(["  left out, reference and run", "", *(" and ".join(map(_share, c.left_out)) for c in found)])
    return table


def _interval(e: Estimate) -> str:
    if not math.isfinite(e.value):
        return "too few crossings"
    number = e.as_dict()
    ends = summary.interval("dF", number)
    return summary.rounded("dF", e.value, number) + (f" ({ends})" if ends != "–" else " (error unknown)")


def _contrast(e: Estimate, z: float) -> str:
    if not math.isfinite(z):
        return "–"
    return f"{_pm(e.value, (e.interval[1] - e.value) / Z95)}, z = {z:.1f}".replace("-", "−")


def _pm(value: float, error: float) -> str:
    if not math.isfinite(value):
        return "–"
    digits = min(max(1 - math.floor(math.log10(error)), 0), 5) if 0 < error < math.inf else 3
    return f"{value:.{digits}f} ± {error:.{digits}f}".replace("-", "−")


def _number(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "–"


def _share(value: float) -> str:
    return f"{100 * value:.2g} %"


def _headings(runs: Sequence[Compared]) -> Row:
    return ["", f"{runs[0].name} (reference)", *(r.name for r in runs[1:])]


def _show(runs: Sequence[Compared], table: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = runs[0].run.result
    shown = Table(title=f"{first['system']}, {' and '.join(runs[0].surface.grid.names)}", title_justify="left")
    for heading in _headings(runs):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=not heading)
    for row in table:
        shown.add_row(*row)
    Console(highlight=False).print(shown)


# -- the page -------------------------------------------------------------------------------------


def _page(runs: Sequence[Compared], found: Sequence[Comparison], table: list[Row], below: float) -> str:
    first = runs[0].run
    title = runs[-1].run.states.get("title") or first.result["system"]
    drawn = [
        panel(f"Profile of {name}", figures.profiles(runs, axis, below), "The others after their best constant.", "")
        for axis, name in enumerate(runs[0].surface.grid.names)
    ]
    maps = panel(
        "Surfaces", figures.maps(runs, below), "Blank: error unknown. Differences after the best constant.",
        "there is one collective variable; see its profile",
    )  # fmt: skip
    return Template(asset("report.html")).substitute(
        title=escape(f"{first.result['system']} · comparison · molsamp"),
        css=asset("report.css"),
        eyebrow="comparison of free energies",
        heading=escape(f"{title}: {' against '.join([' and '.join(r.name for r in runs[1:]), runs[0].name])}"),
        lead=escape(f"The reference is {first.folder}."),
        tiles="\n".join(_tiles(r, c, below) for r, c in zip(runs[1:], found, strict=True)),
        warnings="",
        question="What these numbers are",
        words=WORDS,
        wide=f"<section>{maps}</section>" if len(drawn) > 1 else "",
        left=drawn[0],
        right=drawn[1] if len(drawn) > 1 else maps,
        table=_html(_headings(runs), table),
        settings=escape("\n\n".join(f"# {r.run.folder}\n{r.run.settings}" for r in runs)),
        versions=_html(_headings(runs), _facts(runs)),
        licence=OWN,
        scripts="",
    )


def _tiles(r: Compared, c: Comparison, below: float) -> str:
    """The MAE and the JSD of one run."""
    texts = [(f"{r.name}: mean |ΔF| below {below:g} kJ/mol", c.mae), (f"{r.name}: JSD", c.jsd)]
    return "".join(
        f'<article class="tile"><h3>{escape(title)}</h3><div class="value">{_number(d.value)} <small>{d.unit}</small>'
        f"</div><p>noise alone makes at most {_number(d.expected)}: {d.verdict}</p></article>"
        for title, d in texts
    )


def _facts(runs: Sequence[Compared]) -> list[Row]:
    results = [r.run.result for r in runs]
    return [
        ["method", *(str(a.get("method")) for a in results)],
        ["seed", *(str(a.get("seed")) for a in results)],
        ["molsamp", *(str(a.get("versions", {}).get("molsamp")) for a in results)],
        ["energy evaluations", *(grouped(a.get("energy_evaluations", 0)) for a in results)],
        ["CPU seconds", *(grouped(round(a.get("cpu_seconds", 0))) for a in results)],
        ["effective samples", *(grouped(round(r.ess)) if math.isfinite(r.ess) else "exact" for r in runs)],
    ]


def _html(headings: Row, table: list[Row]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{_indented(cell)}</td>" for cell in row) + "</tr>" for row in table)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _indented(cell: str) -> str:
    text = cell.lstrip()
    return "&emsp;" * (len(cell) > len(text)) + escape(text)
