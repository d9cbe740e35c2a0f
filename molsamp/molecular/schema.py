"""What a system.toml may say: the energy, the states, the collective variables and the default settings.

TOML holds times as "1 fs" or plain ps, energies in kJ/mol, lengths in nm, angles in rad; atom indices are 0-based.
Every key is checked here, before OpenMM is imported; what needs the molecule itself is checked in `checks`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from molsamp.schema import Length, Mass, Rate, Strict, Temperature, Time, nearest, validate


class MixtureTable(Strict):
    """A mixture of isotropic Gaussians, which is the Boltzmann density at the kT of the settings.

    Args:
        weights: one a Gaussian; their sum does not matter.
        centres: one list a Gaussian; coordinates that are not given are 0.
        widths: standard deviation of each Gaussian along every coordinate.
        dimension: number of coordinates.
    """

    weights: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    centres: tuple[tuple[float, ...], ...]
    widths: tuple[PositiveFloat, ...]
    dimension: PositiveInt = 2

    @model_validator(mode="after")
    def _one_of_each(self) -> MixtureTable:
        n = len(self.weights), len(self.centres), len(self.widths)
        if len(set(n)) > 1:
            raise ValueError(f"got {n[0]} weights, {n[1]} centres and {n[2]} widths; allowed is one of each a Gaussian")
        for k, centre in enumerate(self.centres):
            check_fits(f"centres[{k}]", centre, self.dimension)
        return self


class EnergyTable(Strict):
    """Where the energy comes from: exactly one of force_field, system, potential and calculator.

    Args:
        force_field: OpenMM force field files, OpenMM's own names or files beside the system.toml.
        system: a serialised openmm.System (XML), beside the system.toml; flexible bonds, no CMMotionRemover.
        potential: a toy.
        mixture: of "gaussian-mixture", see `MixtureTable`.
        calculator: quantum chemistry: "tblite", or "module:callable" that returns a calculator of ASE. The module is
            imported and the callable called, so a system.toml with this key is to be trusted like a script.
        calculator_settings: for tblite `method` and others (see `calculators.TbliteRows`), else keyword arguments.
        charge, multiplicity: of the molecule, for the calculator.
        tolerance: root mean square force in kJ/mol/nm at which the relaxation of a structure ends.
    """

    force_field: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    system: str | None = None
    potential: Literal["double-well", "mueller-brown", "gaussian-mixture"] | None = None
    mixture: MixtureTable | None = None
    calculator: Annotated[str, Field(pattern=r"^(tblite|[\w.]+:[\w.]+)$")] | None = None
    calculator_settings: dict[str, Any] = Field(default_factory=dict)
    charge: int = 0
    multiplicity: PositiveInt | None = None
    tolerance: PositiveFloat = 1e-3

    @model_validator(mode="after")
    def _one_source(self) -> EnergyTable:
        _exactly_one(self, ("force_field", "system", "potential", "calculator"))
        for key in ("calculator_settings", "charge", "multiplicity"):
            if key in self.model_fields_set and self.calculator is None:
                raise ValueError(f"key '{key}' belongs to a calculator, and there is none")
        if (self.mixture is not None) != (self.potential == "gaussian-mixture"):
            raise ValueError("the table 'mixture' and potential = 'gaussian-mixture' belong together")
        return self


class StateTable(Strict):
    """One state: a structure (molecules: a PDB file; toys: x) and the radius of the disc around its minimum.

    Args:
        file: PDB file beside the system.toml.
        x: coordinates of a toy; those that are not given are 0.
        radius: of the disc: CV units with metric "cvs", nm with metric "rmsd".
        metric: "cvs" = Euclidean distance in all CVs (wrapped), "rmsd" = heavy atoms after superposition;
            by default "cvs" where the file defines CVs.
    """

    file: str | None = None
    x: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    radius: PositiveFloat
    metric: Literal["cvs", "rmsd"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> StateTable:
        _exactly_one(self, ("file", "x"))
        return self


def _atom(value: Any) -> Any:
    """A 0-based index, or an mdtraj selection of one atom."""
    index = isinstance(value, int) and not isinstance(value, bool)
    if not (index or isinstance(value, str)):
        raise ValueError("should be a 0-based atom index or an mdtraj selection of one atom")
    if index and value < 0:
        raise ValueError("should be greater than or equal to 0")
    return value


Atom = Annotated[Any, PlainValidator(_atom)]


KINDS = ("torsion", "angle", "distance", "coordinate", "plumed")


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise ValueError(f"a range is [low, high] with low < high, got {list(ends)}")
    return ends


Ends = Annotated[tuple[float, float], AfterValidator(_ascending)]


class CVTable(Strict):
    """One collective variable: exactly one of torsion, angle, distance, coordinate (toys) and plumed.

    Atoms are 0-based indices, or mdtraj selections such as "resid 0 and name CA" of exactly one atom each.

    Args:
        torsion, angle, distance: atoms.
        coordinate: axis of a toy.
        plumed: a PLUMED action without label (atoms 1-based), such as "COORDINATION GROUPA=1-4 GROUPB=9 R_0=0.3"; the
            table's name is its label, and COMBINE may name CVs that stand before it in the file.
        range: [low, high] that a free energy along it spans unless told otherwise; a periodic CV has its period.
    """

    torsion: tuple[Atom, Atom, Atom, Atom] | None = None
    angle: tuple[Atom, Atom, Atom] | None = None
    distance: tuple[Atom, Atom] | None = None
    coordinate: NonNegativeInt | None = None
    plumed: str | None = None
    range: Ends | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> CVTable:
        _exactly_one(self, KINDS)
        if len(set(self.atoms)) < len(self.atoms):
            raise ValueError(f"got {list(self.atoms)}; the atoms must be distinct")
        return self

    @property
    def kind(self) -> str:
        """Which of the five it is."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def atoms(self) -> tuple[int | str, ...]:
        """Indices and selections, as given; none for a coordinate or a PLUMED action."""
        return self.torsion or self.angle or self.distance or ()

    @property
    def unit(self) -> str | None:
        """Unit of its values; None for a PLUMED action, whose CV knows it."""
        units = {"torsion": "rad", "angle": "rad", "distance": "nm", "coordinate": "reduced units", "plumed": None}
        return units[self.kind]


class WallTable(Strict):
    """A wall on the CV that the table is named after: E = stiffness / 2 (how far s is beyond low or high)^2.

    Args:
        low, high: in units of the CV; one of them may be left out where it has no period.
        stiffness: kJ/mol over the unit squared (reduced for toys).
    """

    low: float | None = None
    high: float | None = None
    stiffness: float = Field(default=1e5, gt=0)

    @model_validator(mode="after")
    def _somewhere(self) -> WallTable:
        if self.low is None and self.high is None:
            raise ValueError("got neither low nor high; allowed: one of them, or both with low < high")
        _ascending(self.ends)
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends, infinite where there is none."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high


class Channel(Strict):
    """How a path's channel is told: by the sign of `cv` at the highest frame, or by its winding (net change)."""

    cv: str
    rule: Literal["sign", "winding"]


class Settings(Strict):
    """Default settings of a system, in MD units (reduced units for toys).

    Args:
        kind: "underdamped" Langevin dynamics, or "overdamped" with unit mobility.
        temperature: K; or instead kT in reduced units (toys).
        friction: 1/ps, underdamped only.
        hydrogen_mass: Da, of hydrogens as they move; their own unless given. Heavier ones allow a longer timestep, and
            free energies know nothing of masses; times do.
        timestep: ps.
        steps: length of a path in steps.
        start, end: names of states; paths go from start to end.
        sigma: width of the relaxed target indicator, nm of root mean square over atoms and axes.
        channel: how to tell two channels apart, where there are two.
        log_p_hit: measured log P_0(hit) in nats for these settings, where it is known.
    """

    kind: Literal["underdamped", "overdamped"] = "underdamped"
    temperature: Annotated[Temperature, Field(gt=0)] | None = None
    kT: PositiveFloat | None = None
    friction: Annotated[Rate, Field(gt=0)] | None = None
    hydrogen_mass: Annotated[Mass, Field(gt=0)] | None = None
    timestep: Annotated[Time, Field(gt=0)]
    steps: PositiveInt
    start: str
    end: str
    sigma: Annotated[Length, Field(gt=0)] | None = None
    channel: Channel | None = None
    log_p_hit: float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        _exactly_one(self, ("temperature", "kT"))
        if (self.kind == "underdamped") != (self.friction is not None):
            word = "needs" if self.kind == "underdamped" else "(unit mobility) takes no"
            raise ValueError(f"kind '{self.kind}' {word} friction")
        if self.kind != "underdamped" and self.hydrogen_mass is not None:
            raise ValueError(f"kind '{self.kind}' (unit mobility) takes no hydrogen_mass")
        return self


class SystemFile(Strict):
    """A whole system.toml.

    Args:
        title: one line.
        energy, settings: see `EnergyTable`, `Settings`.
        states: at least two, by name.
        cvs: collective variables, by name, in order; may be empty for molecules (then states use RMSD).
        walls: by CV, what keeps a molecule together; part of its energy.
        regions: by name, what belongs together in a free energy: ranges of CVs, [low, high] for each, where a periodic
            CV may wrap; the states' discs where there are none.
        methods: settings that this system needs, by method, over the methods' own defaults; what "asbs" has holds for
            "wt-asbs" too, which is the same with hills, and what "metadynamics" has but for its hills for "opes".
            Under a verb ("free-energy.md") they hold for it alone.
        sources: where each number comes from, in words.
    """

    title: str
    energy: EnergyTable
    settings: Settings
    states: Annotated[dict[str, StateTable], Field(min_length=2)]
    cvs: dict[str, CVTable] = Field(default_factory=dict)
    walls: dict[str, WallTable] = Field(default_factory=dict)
    regions: dict[str, dict[str, Ends]] = Field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    sources: dict[str, str] = Field(default_factory=dict)

    @field_validator("methods")
    @classmethod
    def _alike(cls, methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        hills = ("height", "width", "factor")
        without = {k: value for k, value in methods.get("metadynamics", {}).items() if k not in hills}
        inherited = {"wt-asbs": methods.get("asbs", {}), "opes": without}
        return methods | {name: {**own, **methods.get(name, {})} for name, own in inherited.items()}

    @model_validator(mode="after")
    def _names_exist(self) -> SystemFile:
        for key in ("start", "end"):
            check_known(f"settings.{key}", getattr(self.settings, key), self.states, "states")
        if self.settings.start == self.settings.end:
            raise ValueError(f"key 'settings.end': got '{self.settings.end}', which is also the start")
        if self.settings.channel is not None:
            table = self.settings.channel.cv.removesuffix(".sss").removesuffix(".zzz")  # components of a path CV
            check_known("settings.channel.cv", table, self.cvs, "CVs")
        for region, ranges in self.regions.items():
            for cv in ranges:
                check_known(f"regions.{region}", cv, self.cvs, "CVs")
        for cv in self.walls:
            check_known("walls", cv, self.cvs, "CVs")
        return self

    @model_validator(mode="after")
    def _toy_or_molecule(self) -> SystemFile:
        toy = self.energy.potential is not None
        what = "a toy potential" if toy else "a molecule"
        for name, state in self.states.items():
            if (state.x is not None) != toy:
                raise ValueError(f"key 'states.{name}': {what} needs '{'x' if toy else 'file'}'")
        for name, cv in self.cvs.items():
            if (cv.kind == "coordinate") != toy:
                raise ValueError(f"key 'cvs.{name}': {what} has no CV of kind '{cv.kind}'")
        if toy and not self.cvs:
            raise ValueError("key 'cvs' is missing; a toy potential needs its coordinates as CVs")
        return self

    @model_validator(mode="after")
    def _metrics_make_sense(self) -> SystemFile:
        if len({self.metric(name) for name in self.states}) > 1:
            raise ValueError("key 'states': all states must have one metric; got both 'cvs' and 'rmsd'")
        if self.metric(self.settings.start) == "cvs":
            if not self.cvs:
                raise ValueError("key 'states': metric 'cvs' needs CVs of one unit, got no CVs; use metric = 'rmsd'")
            check_one_unit(cv.unit for cv in self.cvs.values() if cv.unit is not None)
        return self

    def metric(self, state: str) -> Literal["cvs", "rmsd"]:
        """Metric of a state, the default resolved."""
        return self.states[state].metric or ("cvs" if self.cvs else "rmsd")


def read(file: Path) -> SystemFile:
    """Read and check a system.toml.

    Raises:
        ValueError: the file is missing, is no TOML (with the line), or has a wrong key or value (with the key).
    """
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: is not a TOML file: {error}") from None
    return validate(SystemFile, data, str(file))


def check_one_unit(units: Iterable[str]) -> None:
    """CVs that a Euclidean distance joins have one unit."""
    if len(different := sorted(set(units))) > 1:
        got = f"CVs in {' and '.join(different)}"
        raise ValueError(f"key 'states': metric 'cvs' needs CVs of one unit, got {got}; use metric = 'rmsd'")


def _exactly_one(table: Strict, keys: tuple[str, ...]) -> None:
    given = [key for key in keys if getattr(table, key) is not None]
    if len(given) != 1:
        raise ValueError(f"got {' and '.join(given) or 'none'}; exactly one is allowed of: {', '.join(keys)}")


def check_known(key: str, name: str, allowed: Iterable[str], what: str) -> None:
    """A name given under `key` is one of those allowed."""
    if name not in allowed:
        raise ValueError(
            f"key '{key}': got '{name}';{nearest(name, allowed)} Allowed are the {what}: {', '.join(allowed)}"
        )


def check_fits(key: str, x: tuple[float, ...], dimension: int) -> None:
    """No more coordinates than there are."""
    if len(x) > dimension:
        raise ValueError(f"{key}: got {len(x)} coordinates; allowed are at most {dimension}")


TEMPLATE = """\
# A system of your own: save as my/system.toml, put the two PDB files beside it, then: molsamp paths my/system.toml
# Times "1 fs" or plain ps; energies kJ/mol; lengths nm; angles rad; temperatures K. Atom indices are 0-based.
title = "My molecule"

[energy]
# OpenMM force field files (all atoms must be in the PDB files, hydrogens too); no cutoff, flexible bonds.
force_field = ["amber14/protein.ff14SB.xml", "implicit/gbn2.xml"]
# system = "system.xml"        # instead: a serialised openmm.System, without constraints and CMMotionRemover
# calculator = "tblite"        # instead: quantum chemistry; or "module:callable", any calculator of ASE (code is run)
# calculator_settings = { method = "GFN2-xTB", accuracy = 0.01 }
# charge = -1
tolerance = 1e-3               # the structures are relaxed to this root mean square force, kJ/mol/nm

[states.A]
file = "A.pdb"
radius = 0.75                  # of the disc around the relaxed structure: CV units here; nm where metric = "rmsd"

[states.B]
file = "B.pdb"
radius = 0.75

# Collective variables, in this order. Without any, states are discs in heavy-atom RMSD (radius in nm).
[cvs.phi]
torsion = [4, 6, 8, 14]
[cvs.psi]
torsion = [6, 8, 14, 16]       # also: angle = [i, j, k], distance = [i, j]
# [cvs.ends]                   # an atom may be an mdtraj selection of exactly one (resid from 0, resSeq as in the PDB)
# distance = ["resid 0 and name CH3", "resid 2 and name CH3"]
# range = [0.3, 0.8]           # nm; that a free energy along it spans
# [cvs.contacts]               # a PLUMED action: atoms 1-based, nm and rad, no label; COMBINE may name the CVs above it
# plumed = "COORDINATION GROUPA=5-8 GROUPB=15,17 R_0=0.3 NN=6 MM=12"

# [walls.ends]                 # keeps what could fly apart together: part of the energy from `high` (or below `low`) on
# high = 0.8
# stiffness = 1e5              # kJ/mol/nm^2

# What belongs together in a free energy: ranges of CVs, periodic ones may wrap. Without any: the discs of the states.
[regions.left]
phi = [2.0, 6.2832]
[regions.right]
phi = [0.0, 2.0]

[settings]
kind = "underdamped"
temperature = 300
friction = "1 /ps"
timestep = "1 fs"
steps = 1000                   # length of a path
start = "A"
end = "B"
sigma = 0.0025                 # width of the target in the learned sampler, nm
# channel = { cv = "phi", rule = "winding" }

[methods.tps-dps]              # what this system needs beyond the samplers' defaults; config.toml of a run lists all
rollouts = 150

[sources]
structures = "where they come from"
"""
