"""Generalised Born: the models are recognised whole or refused; tables, constants, swallowed atoms."""

from dataclasses import replace

import builders
import numpy as np
import openmm
import pytest
import reference
import torch
from openmm import app

from molsamp.molecular.native.probe import coulomb_constant
from molsamp.molecular.native.reading import read
from molsamp.molecular.openmm_energy import OpenMMEnergy

CUSTOM = [builders.obc1, builders.obc2, builders.gbn, builders.gbn2]


def _openmm(system, x):
    return OpenMMEnergy(system, "Reference").energy(torch.tensor(x)).numpy()


def _judge(force, x):
    system = builders.system(openmm.XmlSerializer.clone(force))
    E = _openmm(system, x)
    assert abs(reference.energies(read(system), x) - E).max() < 1e-11 * abs(E).max()


@pytest.mark.parametrize("make", CUSTOM, ids=lambda make: make.__name__)
@pytest.mark.parametrize("SA", ["ACE", None])
def test_models_with_any_dielectrics_with_and_without_surface(make, SA):
    """The force has been through XML, so nothing but the serialised text can matter."""
    for solvent, solute in ((78.5, 1.0), (60.0, 2.5), (78.3553, 1e0)):
        force = make(np.random.default_rng(1), SA=SA, solventDielectric=solvent, soluteDielectric=solute)
        _judge(force, builders.frames(10))


@pytest.mark.parametrize("make", builders.BORN, ids=lambda make: make.__name__)
def test_atoms_inside_one_another(make):
    """Frames shrunk until half of the pairs lie inside each other; the two classes differ there."""
    force, x = make(np.random.default_rng(2)), 0.15 * builders.frames(40)
    b = read(builders.system(openmm.XmlSerializer.clone(force))).born
    r = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1) + np.eye(8)
    assert (b.s - r > b.o[:, None]).sum() > 20 and (r + b.s < b.o[:, None]).sum() > 20
    _judge(force, x)


def test_gbsa_obc_and_custom_obc2_differ_where_the_card_says():
    b = read(builders.system(builders.gbsa_obc(np.random.default_rng(0)))).born
    c = read(builders.system(builders.obc2(np.random.default_rng(0)))).born
    assert b.swallowed and not c.swallowed
    assert b.tau == coulomb_constant() * (1 / 1.5 - 1 / 60.0) and c.tau == 138.935485 * (1 - 1 / 78.5)
    assert b.surface == pytest.approx(4 * np.pi * 3.1, rel=1e-15) and c.surface == 28.3919551
    assert b.alpha.tolist() == c.alpha.tolist() and b.gamma.tolist() == c.gamma.tolist()


@pytest.mark.parametrize("make", [builders.gbn, builders.gbn2], ids=lambda make: make.__name__)
def test_neck_tables_are_not_symmetric(make):
    system, x = builders.system(make(np.random.default_rng(3))), builders.frames(5)
    terms = read(system)
    turned = replace(terms, born=replace(terms.born, neck=terms.born.neck.transpose(0, 2, 1)))
    E = _openmm(system, x)
    assert abs(reference.energies(turned, x) / E - 1).max() > 1e-6
    assert abs(reference.energies(terms, x) / E - 1).max() < 1e-12


# ---- recognition ----


def _edited(force, old, new):
    """The same force with `old` replaced in its expressions."""
    force, count = openmm.XmlSerializer.clone(force), 0
    for k in range(force.getNumComputedValues()):
        name, text, kind = force.getComputedValueParameters(k)
        force.setComputedValueParameters(k, name, text.replace(old, new), kind)
        count += old in text
    for k in range(force.getNumEnergyTerms()):
        text, kind = force.getEnergyTermParameters(k)
        force.setEnergyTermParameters(k, text.replace(old, new), kind)
        count += old in text
    assert count
    return force


@pytest.mark.parametrize(
    ("old", "new"),
    [("138.935485", "138.9354576444"), ("28.3919551", "31"), (";", " ; "), ("Dielectric=78.5", "Dielectric=7.85e1")],
)
def test_constants_come_from_the_text_and_spaces_do_not_matter(old, new):
    _judge(_edited(builders.obc2(np.random.default_rng(0)), old, new), builders.frames(5))


@pytest.mark.parametrize(
    ("make", "old", "new", "words"),
    [
        (builders.obc2, "0.8*psi^2", "0.81*psi^2", "value B = .*0.81"),
        (builders.obc1, "0.8*psi", "0.81*psi", "value B = .*0.81"),
        (builders.gbn, "1.09511284", "1.09511285", "value B = .*1.09511285"),
        (builders.gbn2, "gamma*psi^3", "gamma*psi^4", "value B = .*psi.4"),
        (builders.gbn2, "neckScale=0.826836", "neckScale=0.826837", "value I = .*0.826837"),
        (builders.gbn, "neckCut=0.68", "neckCut=0.67", "value I = .*0.67"),
        (builders.gbn, "0.3*1000000", "0.2*1000000", "value I = "),
        (builders.obc1, "offset=0.009", "offset=0.01", "value B = .*0.01"),
        (builders.obc2, "max(or1, D)", "max(or1, D+0.01)", "value I = "),
        (builders.obc2, "0.25*", "0.26*", "value I = "),
        (builders.obc2, "-0.5*138.935485", "-0.5*138.935486", "energy term 2 = "),  # no longer that of the pairs
        (builders.obc2, "(radius+0.14)", "(radius+0.15)", "energy term 1 = "),
        (builders.obc2, "(4*B1*B2)", "(2*B1*B2)", "energy term 2 = "),
    ],
)
def test_an_edited_expression_is_refused_and_quoted(make, old, new, words):
    force = _edited(make(np.random.default_rng(0)), old, new)
    with pytest.raises(ValueError, match=rf"force 0 \(CustomGBForce\): found {words}.*obc1.*use OpenMMEnergy"):
        read(builders.system(force))


def _summed(force, kind):
    """The cross term over another set of particles or pairs."""
    force.setEnergyTermParameters(2, force.getEnergyTermParameters(2)[0], kind)


def _cutoff(force):
    force.setNonbondedMethod(force.CutoffNonPeriodic)


@pytest.mark.parametrize(
    ("force", "change", "words"),
    [
        (builders.hct(np.random.default_rng(0)), None, "the model HCT"),
        (builders.obc2(np.random.default_rng(0), kappa=0.7), None, r"ionic strength \(kappa > 0\)"),
        (builders.gbn2(np.random.default_rng(0), kappa=1e-3), None, r"ionic strength \(kappa > 0\)"),
        (builders.obc2(np.random.default_rng(0), cutoff=1.0), None, "energy term 0 = .*cutoff=1"),
        (builders.obc2(np.random.default_rng(0)), _cutoff, "NoCutoff"),
        (builders.gbsa_obc(np.random.default_rng(0)), _cutoff, "NoCutoff"),
        (builders.obc2(np.random.default_rng(0)), lambda f: _summed(f, f.ParticlePair), "energy term 2 = "),
        (builders.obc2(np.random.default_rng(0)), lambda f: _summed(f, f.SingleParticle), "energy term 2 = "),
        (builders.obc2(np.random.default_rng(0)), lambda f: f.addExclusion(0, 1), "1 exclusions"),
        (builders.obc2(np.random.default_rng(0)), lambda f: f.addGlobalParameter("a", 1.0), "1 .*global"),
        (builders.obc2(np.random.default_rng(0)), lambda f: f.addEnergyTerm("B", f.SingleParticle), "energy term"),
        (builders.obc2(np.random.default_rng(0)), lambda f: f.setPerParticleParameterName(0, "q"), "'q', 'or', 'sr'"),
        (builders.obc2(np.random.default_rng(0)), lambda f: f.addPerParticleParameter("t"), "'or', 'sr', 't'"),
        (openmm.CustomGBForce(), None, "particle parameters"),
    ],
)  # fmt: skip
def test_what_fits_no_model_is_refused(force, change, words):
    force = openmm.XmlSerializer.clone(force)
    for _ in range(8 - force.getNumParticles()):
        force.addParticle([])
    if change:
        change(force)
    with pytest.raises(ValueError, match=rf"force 0 \({type(force).__name__}\): found .*{words}.*use OpenMMEnergy"):
        read(builders.system(force))


def test_swapped_tables_are_refused():
    """d0 under the name of m0: the text is that of the model, the functions are not."""
    force, other = builders.gbn(np.random.default_rng(0)), openmm.CustomGBForce()
    for k in range(force.getNumPerParticleParameters()):
        other.addPerParticleParameter(force.getPerParticleParameterName(k))
    for k in (1, 0):
        table = openmm.XmlSerializer.clone(force.getTabulatedFunction(k))
        other.addTabulatedFunction(force.getTabulatedFunctionName(k), table)
    for k in range(2):
        other.addComputedValue(*force.getComputedValueParameters(k))
    for k in range(3):
        other.addEnergyTerm(*force.getEnergyTermParameters(k))
    for k in range(8):
        other.addParticle(force.getParticleParameters(k))
    with pytest.raises(ValueError, match=r"functions \[\('getm0'"):
        read(builders.system(other))


def test_the_surface_method_lcpo_is_refused():
    files = builders.FORCE_FIELDS["ff14SB obc2"]
    topology, _ = builders._structure("GA")
    options = dict(nonbondedMethod=app.NoCutoff, rigidWater=False, removeCMMotion=False, sasaMethod="LCPO")
    system = app.ForceField(*files).createSystem(topology, **options)
    with pytest.raises(ValueError, match=r"force 5 \(LCPOForce\): found a class with no native form"):
        read(system)
