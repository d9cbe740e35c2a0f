"""Generalised Born forces: GBSAOBCForce, and the CustomGBForce of OpenMM's implicit/obc1, obc2, gbn and gbn2.

A CustomGBForce is recognised by its text. The templates below are the formulas that the tiers implement, as OpenMM
writes them; a force is accepted if every expression is a template up to spaces and the way numbers are written, with
nothing left over. So an edited force is refused, and so is that of an OpenMM which one day writes another formula.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import openmm
from jaxtyping import Float

from molsamp.molecular.native.probe import Refusal, coulomb_constant, md
from molsamp.molecular.native.terms import Born

_SINGLE, _PAIR = openmm.CustomGBForce.SingleParticle, openmm.CustomGBForce.ParticlePairNoExclusions
_ALLOWED = "GBSAOBCForce, or the CustomGBForce of implicit/obc1, obc2, gbn or gbn2, all without cutoff"
_OFFSET, _CURVE = 0.009, (1.0, 0.8, 4.85)  # of GBSAOBCForce, nm and none


@dataclass(frozen=True)
class _Model:
    """One member of the family: B = 1/(1/o - tanh(curve)/rho)."""

    name: str
    offset: float  # nm
    curve: str  # of psi, as OpenMM writes it
    numbers: tuple[float, float, float] | None  # alpha, beta, gamma of curve; None: of each particle
    neck: float | None = None  # neckScale

    @property
    def parameters(self) -> list[str]:
        curve = [] if self.numbers else ["alpha", "beta", "gamma"]
        return ["charge", "or", "sr", *curve, *(["radindex"] if self.neck else [])]


_MODELS = (
    _Model("obc1", 0.009, "0.8*psi+2.909125*psi^3", (0.8, 0.0, 2.909125)),
    _Model("obc2", 0.009, "psi-0.8*psi^2+4.85*psi^3", (1.0, 0.8, 4.85)),
    _Model(
        "gbn",
        0.009,
        "1.09511284*psi-1.907992938*psi^2+2.50798245*psi^3",
        (1.09511284, 1.907992938, 2.50798245),
        0.361825,
    ),
    _Model("gbn2", 0.0195141, "alpha*psi-beta*psi^2+gamma*psi^3", None, 0.826836),
)

# <name> is a number; everything else is itself
_HCT = "1/(1/or-I)"
_DESCREENING = (
    "select(step(r+sr2-or1), 0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r), 0);"
    "U=r+sr2; L=max(or1,D); D=abs(r-sr2)"
)
_NECK = (
    "Ivdw+neckScale*Ineck; Ineck=step(radius1+radius2+neckCut-r)*getm0(radindex1,radindex2)"
    "/(1+100*(r-getd0(radindex1,radindex2))^2+0.3*1000000*(r-getd0(radindex1,radindex2))^6);"
    f"Ivdw={_DESCREENING}; radius1=or1+offset; radius2=or2+offset;"
    "neckScale=<neck>; neckCut=<cut>; offset=<offset>"
)
_RADIUS = "1/(1/or-tanh(CURVE)/radius); psi=I*or; radius=or+offset; offset=<offset>"
_NUMBERS = "solventDielectric=<out>; soluteDielectric=<in>; kappa=<kappa>; offset=<offset>"
_SELF = f"-0.5*<K>*(1/soluteDielectric-1/solventDielectric)*charge^2/B; {_NUMBERS}"
_SURFACE = f"<surface>*(radius+0.14)^2*(radius/B)^6; radius=or+offset; {_NUMBERS}"
_CROSS = (
    f"-<K>*(1/soluteDielectric-1/solventDielectric)*charge1*charge2/f;f=sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2))); {_NUMBERS}"
)


def read_gbsa_obc(force: openmm.GBSAOBCForce) -> Born:
    """GBSAOBCForce: OBC2 with Coulomb's constant of NonbondedForce, its own surface energy, and swallowed atoms.

    Raises:
        Refusal: it has a cutoff.
    """
    if force.getNonbondedMethod() != openmm.GBSAOBCForce.NoCutoff:
        raise Refusal("a nonbonded method other than NoCutoff", _ALLOWED)
    rows = [md(force.getParticleParameters(k)) for k in range(force.getNumParticles())]
    charge, rho, scale = np.array(rows, dtype=float).reshape(-1, 3).T
    tau = coulomb_constant() * (1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric())
    surface = 4 * math.pi * md(force.getSurfaceAreaEnergy())
    return _born(charge, rho, rho - _OFFSET, scale * (rho - _OFFSET), np.array(_CURVE), tau, surface, None, True)


def read_custom_gb(force: openmm.CustomGBForce) -> Born:
    """One of the four models, from its own parameters, tables and constants.

    Raises:
        Refusal: it is none of them; quotes the first expression that fits no model.
    """
    model, numbers = _recognise(force)
    rows = [force.getParticleParameters(k) for k in range(force.getNumParticles())]
    columns = dict(zip(model.parameters, np.array(rows, dtype=float).reshape(len(rows), -1).T, strict=True))
    o, s = columns["or"], columns["sr"]
    curve = np.array(model.numbers or [columns[name] for name in ("alpha", "beta", "gamma")])
    tau = numbers["K"] * (1 / numbers["in"] - 1 / numbers["out"])
    neck = _neck(force, columns["radindex"], numbers["neck"]) if model.neck else None
    return _born(columns["charge"], o + model.offset, o, s, curve, tau, numbers.get("surface", 0.0), neck, False)


def _born(
    charge: np.ndarray,
    rho: np.ndarray,
    o: np.ndarray,
    s: np.ndarray,
    curve: np.ndarray,
    tau: float,
    surface: float,
    neck: np.ndarray | None,
    swallowed: bool,
) -> Born:
    alpha, beta, gamma = (np.broadcast_to(c, charge.shape).copy() for c in curve)
    return Born(charge, rho, o, s, alpha, beta, gamma, tau, surface, neck, swallowed)


def _recognise(force: openmm.CustomGBForce) -> tuple[_Model, dict[str, float]]:
    """The model and the numbers found in the places <name> of its templates."""
    if force.getNonbondedMethod() != openmm.CustomGBForce.NoCutoff:
        raise Refusal("a nonbonded method other than NoCutoff", _ALLOWED)
    if spare := force.getNumExclusions() + force.getNumGlobalParameters() + force.getNumEnergyParameterDerivatives():
        raise Refusal(f"{spare} exclusions, global parameters or parameter derivatives", _ALLOWED)
    found = list(_expressions(force))
    if any(re.search(r"kappa=0*[.]?0*[1-9]", text) for _, _, text in found):
        raise Refusal("an ionic strength (kappa > 0)", _ALLOWED)
    if ("value B", _SINGLE, _HCT) in found:
        raise Refusal("the model HCT", _ALLOWED)
    names = [force.getPerParticleParameterName(k) for k in range(force.getNumPerParticleParameters())]
    furthest, stranger = -1, ""
    for model in _MODELS:
        numbers, reached = _fit(found, list(_templates(model, len(found))), model)
        if numbers is not None and names == model.parameters and _functions(force) == (_TABLES if model.neck else []):
            return model, numbers
        if reached > furthest:
            furthest, stranger = reached, f"{found[reached][0]} = {found[reached][2]!r}" if reached < len(found) else ""
    raise Refusal(stranger or f"particle parameters {names} and functions {_functions(force)}", _ALLOWED)


_TABLES = [("getd0", "Discrete2DFunction"), ("getm0", "Discrete2DFunction")]


def _functions(force: openmm.CustomGBForce) -> list[tuple[str, str]]:
    return [
        (force.getTabulatedFunctionName(k), type(force.getTabulatedFunction(k)).__name__)
        for k in range(force.getNumTabulatedFunctions())
    ]


def _expressions(force: openmm.CustomGBForce) -> Iterator[tuple[str, int, str]]:
    """What it is, how it is summed, and its text without spaces, of every computed value and energy term."""
    for k in range(force.getNumComputedValues()):
        name, text, kind = force.getComputedValueParameters(k)
        yield f"value {name}", kind, _bare(text)
    for k in range(force.getNumEnergyTerms()):
        text, kind = force.getEnergyTermParameters(k)
        yield f"energy term {k}", kind, _bare(text)


def _templates(model: _Model, count: int) -> Iterator[tuple[str, int, str]]:
    """The same for a model; with five expressions it has the surface term."""
    yield "value I", _PAIR, _NECK if model.neck else _DESCREENING
    yield "value B", _SINGLE, _RADIUS.replace("CURVE", model.curve)
    terms = [(_SINGLE, _SELF), *([(_SINGLE, _SURFACE)] if count == 5 else []), (_PAIR, _CROSS)]
    for k, (kind, text) in enumerate(terms):
        yield f"energy term {k}", kind, text


def _fit(found: list, templates: list, model: _Model) -> tuple[dict[str, float] | None, int]:
    """Numbers of all templates, which must agree with each other and the model, or None; and how far they fitted."""
    numbers = {"offset": model.offset, "kappa": 0.0, "cut": 0.68, "neck": model.neck or 0.0}
    for k, ((name, kind, text), (expected, sort, template)) in enumerate(zip(found, templates, strict=False)):
        match = re.fullmatch(_pattern(template), text)
        if (name, kind) != (expected, sort) or not match:
            return None, k
        for key, value in match.groupdict().items():
            if not math.isclose(numbers.setdefault(key, float(value)), float(value), rel_tol=1e-14):
                return None, k
    return (numbers if len(found) == len(templates) else None), min(len(found), len(templates))


def _pattern(template: str) -> str:
    return re.sub(r"<(\w+)>", r"(?P<\1>[0-9.]+(?:[eE][-+]?[0-9]+)?)", re.escape(_bare(template)))


def _bare(text: str) -> str:
    return re.sub(r"\s", "", text).rstrip(";")


def _neck(force: openmm.CustomGBForce, radindex: np.ndarray, scale: float) -> Float[np.ndarray, "2 A A"]:
    """(neckScale m0, d0) of every ordered pair of atoms; the tables are not symmetric, and x runs fastest in them."""
    d0, m0 = (force.getTabulatedFunction(k).getFunctionParameters() for k in range(2))
    row = radindex.astype(int)
    tables = [np.array(values).reshape(ny, nx).T[np.ix_(row, row)] for nx, ny, values in (m0, d0)]
    return np.stack([scale * tables[0], tables[1]])
