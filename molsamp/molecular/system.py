"""Systems: a molecule or a toy with its energy, its states, its collective variables and its default settings.

`load` reads a folder with a system.toml (see `schema`), checks the structures (see `checks`), relaxes them and
returns a `System`. PDB files hold 0.0001 nm, which leaves forces of tens of kJ/mol/nm, so every structure is relaxed
again at each load: OpenMM's L-BFGS on the Reference platform in float64, deterministic, to the stated tolerance.
"""

from __future__ import annotations

import copy
import itertools
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molsamp.molecular import checks, schema, sources
from molsamp.molecular import cvs as variables
from molsamp.molecular.ase_energy import ASEEnergy, Calculator
from molsamp.molecular.cvs import tables
from molsamp.molecular.energies import Energy
from molsamp.molecular.geometry import rmsd
from molsamp.molecular.restraints import Restraint
from molsamp.molecular.schema import Settings, SystemFile
from molsamp.schema import nearest

if TYPE_CHECKING:
    import openmm
    from openmm import app

kB = 0.00831446261815324
"""Boltzmann's constant, kJ/mol/K."""


@dataclass(frozen=True)
class State:
    """A metastable state: the disc of `radius` around one minimum.

    Args:
        name: as in system.toml.
        x: the relaxed minimum, (*event), float64, nm.
        values: CV values at x.
        radius: CV units with metric "cvs", nm with metric "rmsd".
        metric: "cvs" = wrapped Euclidean distance in all CVs; "rmsd" = heavy atoms after superposition.
    """

    name: str
    x: Float[Tensor, "*event"]
    values: dict[str, float]
    radius: float
    metric: str


@dataclass(frozen=True)
class System:
    """What moves: energy, states, collective variables, default settings.

    Args:
        name: of the folder.
        title: one line.
        folder: where system.toml lies.
        event: (A, 3), or (2,) for toys.
        masses: (A,) float64 Da, as the atoms move; None for toys.
        topology: openmm.app.Topology; None for toys.
        states, cvs: by name, in the order of system.toml.
        settings: defaults, see `schema.Settings`.
        regions: ranges of CVs by name, for free energies; may be empty.
        ranges: what a free energy along a CV spans, for some CVs.
        walls: on some CVs, part of the energy.
        methods: settings that this system needs, by method.
    """

    name: str
    title: str
    folder: Path
    event: tuple[int, ...]
    masses: Float[Tensor, " A"] | None
    topology: app.Topology | None
    states: dict[str, State]
    cvs: dict[str, variables.CV]
    settings: Settings
    regions: dict[str, dict[str, tuple[float, float]]]
    ranges: dict[str, tuple[float, float]]
    walls: dict[str, schema.WallTable]
    methods: dict[str, dict[str, Any]]
    _source: openmm.System | Calculator | Energy  # the OpenMM System, quantum chemistry, or a toy as it is

    def forcefield_system(self) -> openmm.System:
        """A fresh copy of the OpenMM System: no cutoff, flexible bonds, nothing but the physics.

        Raises:
            ValueError: for a toy or a calculator, which have none.
        """
        if isinstance(self._source, Energy):
            raise ValueError(f"{self.name}: a toy potential has no OpenMM System")
        if isinstance(self._source, Calculator):
            raise ValueError(f"{self.name}: a calculator's energy has no OpenMM System")
        return copy.deepcopy(self._source)

    def energy(self, tier: str = "auto", dtype: torch.dtype = torch.float64, workers: int = 1) -> Energy:
        """A new Energy with its own counter, walls included.

        Args:
            tier: "lanes" or "torch" = that tier of NativeEnergy; "openmm" or "openmm:PLATFORM" = OpenMMEnergy; "auto" =
                native where it can do every term of the System, otherwise OpenMM. Toys are analytic ("auto" or
                "torch"), and a calculator is what it is ("auto").
            dtype: arithmetic of the native tiers.
            workers: processes of an OpenMM tier or a calculator.
        Raises:
            ValueError: for an unknown tier, or one that cannot do this system.
        """
        kind, _, platform = tier.partition(":")
        if kind not in ("auto", "lanes", "torch", "openmm") or (platform and kind != "openmm"):
            raise ValueError(
                f"energy tier {tier!r} is unknown; allowed are auto, lanes, torch, openmm, openmm:PLATFORM"
            )
        bare = self._bare(kind, platform, dtype, workers)
        return bare if self.restraint is None else bare + self.restraint

    @cached_property
    def restraint(self) -> Restraint | None:
        """All walls together."""
        if not self.walls:
            return None
        low, high, stiffness = zip(*((*wall.ends, wall.stiffness) for wall in self.walls.values()), strict=True)
        return Restraint(variables.Stack([self.cvs[name] for name in self.walls]), low, high, stiffness, self.event)

    def _bare(self, kind: str, platform: str, dtype: torch.dtype, workers: int) -> Energy:
        if isinstance(self._source, Energy):
            if kind not in ("auto", "torch"):
                raise ValueError(f"{self.name}: a toy potential has no tier {kind!r}; allowed are auto and torch")
            return copy.copy(self._source)
        if isinstance(self._source, Calculator):
            if kind != "auto":
                raise ValueError(f"{self.name}: the energy is a calculator's ({self._source.tier}); allowed is auto")
            return ASEEnergy(self._source, workers)
        from molsamp.molecular.native.energy import NativeEnergy
        from molsamp.molecular.openmm_energy import OpenMMEnergy

        if kind != "openmm":
            try:
                return NativeEnergy.from_openmm(self._source, dtype=dtype, tier=kind)
            except ValueError:
                if kind != "auto":
                    raise
        return OpenMMEnergy(self._source, platform=platform or "auto", workers=workers)

    @property
    def kT(self) -> float:
        """Thermal energy, kJ/mol (reduced units where the settings give kT)."""
        return _kT(self.settings)

    @property
    def heavy(self) -> Int[Tensor, " k"]:
        """0-based indices of the heavy atoms; all coordinates for toys."""
        if self.topology is None:
            return torch.arange(self.event[0])
        return torch.nonzero(~_hydrogens(self.topology))[:, 0]

    @cached_property
    def _stack(self) -> variables.Stack:
        return variables.Stack(list(self.cvs.values()))

    def span(self, cv: str, period: float | None) -> tuple[float, float] | None:
        """What a CV spans: its period around 0, or its range in system.toml; None for one without both."""
        return self.ranges.get(cv) if period is None else (-0.5 * period, 0.5 * period)

    def values(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n k"]:
        """CV values, one column per CV in the order of `cvs`; no columns for a system without CVs."""
        return self._stack(x) if self.cvs else x.new_empty(len(x), 0)

    def distance(self, x: Float[Tensor, "n *event"], state: str) -> Float[Tensor, " n"]:
        """Distance to the minimum of a state in that state's metric: CV units, or nm for "rmsd".

        Raises:
            ValueError: for an unknown state.
        """
        if state not in self.states:
            raise ValueError(
                f"{self.name}: no state '{state}';{nearest(state, self.states)} Allowed: {', '.join(self.states)}"
            )
        s = self.states[state]
        if s.metric == "rmsd":
            return rmsd(x, s.x.to(x), self.heavy.to(x.device))
        centre = x.new_tensor(list(s.values.values()))
        return torch.linalg.vector_norm(variables.wrap(self.values(x) - centre, self._stack.period), dim=-1)

    def inside(self, x: Float[Tensor, "n *event"], state: str) -> Bool[Tensor, " n"]:
        """Whether each configuration lies in the disc of a state."""
        return self.distance(x, state) < self.states[state].radius


def load(name_or_path: str | Path) -> System:
    """Load a system, its structures checked and relaxed.

    Args:
        name_or_path: a bundled name (see `systems`), a folder that holds a system.toml, or the path of a TOML file.
    Raises:
        ValueError: anything wrong with the file or the structures, in one line (see `schema` and `checks`).
    """
    file = _locate(name_or_path)
    spec = schema.read(file)
    return _toy(file, spec) if spec.energy.potential else _molecule(file, spec)


def systems() -> list[tuple[str, str]]:
    """Names and titles of the bundled systems, sorted by name."""
    files = sorted(bundled().glob("*/system.toml"))
    return [(file.parent.name, tomllib.loads(file.read_text(encoding="utf-8"))["title"]) for file in files]


def reference(name_or_path: str | Path) -> Path | None:
    """The folder `reference` beside a system.toml: fes.dat and result.json of a long run of our own; None without one.

    Raises:
        ValueError: no such system.
    """
    folder = _locate(name_or_path).parent / "reference"
    return folder if folder.is_dir() else None


def template() -> str:
    """A commented system.toml to start from."""
    return schema.TEMPLATE


def bundled() -> Path:
    """The folder of the bundled systems: inside an installed package, or beside it in a source tree."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "systems"
    return installed if installed.is_dir() else package.parent / "systems"


def _locate(name_or_path: str | Path) -> Path:
    path = bundled() / name_or_path / "system.toml"
    if path.is_file():
        return path
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "system.toml"
    if path.is_file() and path.suffix != ".pdb":
        return path
    names = [name for name, _ in systems()]
    raise ValueError(
        f"system '{name_or_path}' is unknown;{nearest(path.name, names)} Allowed: {', '.join(names)}, "
        "a folder that holds a system.toml, or a TOML file (`molsamp systems --template` writes one)"
    )


def _toy(file: Path, spec: SystemFile) -> System:
    energy, minima = sources.potential(spec, _kT(spec.settings)), {}
    for name, table in spec.states.items():
        assert table.x is not None  # schema.SystemFile
        schema.check_fits(f"{file}: states.{name}.x", table.x, energy.event[0])
        minima[name] = sources.padded(table.x, energy.event[0])
    return _finish(file, spec, minima, None, None, energy)


def _kT(s: Settings) -> float:
    if s.kT is not None:
        return s.kT
    assert s.temperature is not None  # schema.Settings: exactly one of the two
    return kB * s.temperature


def _molecule(file: Path, spec: SystemFile) -> System:
    structures = {name: checks.read_pdb(file.parent / str(table.file)) for name, table in spec.states.items()}
    first, *others = structures.values()
    for other in others:
        checks.check_same_topology(first, other)
    source: openmm.System | Calculator
    if spec.energy.calculator is not None:  # no bonds to check: a reaction's states differ in them
        source, masses = sources.calculator(spec, first)
        energy = ASEEnergy(source)
        relaxed = [sources.minimised(s, energy, spec.energy.tolerance) for s in structures.values()]
    else:
        source = sources.openmm_system(file, spec, first)
        for structure in structures.values():
            checks.check_bonds(structure, source)
        masses = [source.getParticleMass(i)._value for i in range(source.getNumParticles())]
        relaxed = sources.relax(source, [s.x for s in structures.values()], spec.energy.tolerance)
    for structure in structures.values():
        checks.check_chirality(structure)
    minima = {name: torch.from_numpy(x) for name, x in zip(structures, relaxed, strict=True)}
    moving = torch.tensor(masses, dtype=torch.float64)
    if (heavier := spec.settings.hydrogen_mass) is not None:
        moving[_hydrogens(first.topology)] = heavier
    system = _finish(file, spec, minima, moving, first.topology, source)
    for name, structure in structures.items():
        _check_basin(system, name, structure)
    return system


def _hydrogens(topology: app.Topology) -> Bool[Tensor, " A"]:
    return torch.tensor([atom.element is not None and atom.element.atomic_number == 1 for atom in topology.atoms()])


def _finish(
    file: Path,
    spec: SystemFile,
    minima: dict[str, Tensor],
    masses: Tensor | None,
    topology: app.Topology | None,
    source: openmm.System | Calculator | Energy,
) -> System:
    """Put the parts together: CVs, states with their CV values, and the check that no two states overlap."""
    event = tuple(next(iter(minima.values())).shape)
    axes = tables.named(file, spec, event, topology)
    states = {
        name: State(
            name=name,
            x=x,
            values={key: float(cv(x[None])[0, 0]) for key, cv in axes.items()},
            radius=spec.states[name].radius,
            metric=spec.metric(name),
        )
        for name, x in minima.items()
    }
    name = file.parent.resolve().name
    system = System(
        name=name,
        title=spec.title,
        folder=file.parent,
        event=event,
        masses=masses,
        topology=topology,
        states=states,
        cvs=axes,
        settings=spec.settings,
        regions=spec.regions,
        ranges={key: table.range for key, table in spec.cvs.items() if table.range is not None},
        walls=spec.walls,
        methods=spec.methods,
        _source=source,
    )
    unit = "nm" if spec.metric(spec.settings.start) == "rmsd" else "in CV units"
    for a, b in itertools.combinations(states.values(), 2):
        apart = float(system.distance(a.x[None], b.name)[0])
        checks.check_apart(str(file), (a.name, b.name), apart, (a.radius, b.radius), unit)
    return system


def _check_basin(system: System, name: str, structure: checks.Structure) -> None:
    """The structure as written lies in the disc around its own relaxed minimum."""
    state = system.states[name]
    moved = float(system.distance(torch.from_numpy(structure.x)[None], name)[0])
    if not moved < state.radius:
        raise ValueError(
            f"{structure.file}: relaxing it leaves state '{name}': it moves by {moved:.4g} "
            f"({'nm' if state.metric == 'rmsd' else 'in CV units'}), allowed is its radius {state.radius:g}; "
            "give a structure nearer to a minimum of this energy"
        )
