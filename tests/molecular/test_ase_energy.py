"""ASEEnergy: units, GFN2-xTB, faults in their own row, the same bits for any number of workers, and system.toml."""

import math
import os

import numpy as np
import pytest
import torch

from molsamp.molecular import ase_energy
from molsamp.molecular.ase_energy import ASEEnergy, Calculator, minimise
from molsamp.molecular.potentials import Harmonic

pytest.importorskip("ase", reason='ASE is not installed: pip install "molsamp[reactions]"')
needs_tblite = pytest.mark.skipif(
    ase_energy.find_spec("tblite") is None, reason='tblite is not installed: pip install "molsamp[reactions]"'
)
EV, HARTREE = 96.485332, 2625.4996  # kJ/mol, CODATA
CHLORIDES = (6, 1, 1, 1, 17, 17)  # CH3Cl and Cl-
COMPLEX = 0.1 * torch.tensor(
    [[0, 0, 0], [1.03, 0, -0.36], [-0.515, 0.89, -0.36], [-0.515, -0.89, -0.36], [0, 0, 1.79], [0, 0, -3.0]],
    dtype=torch.float64,
)


def shaken(n, by=0.003):
    return COMPLEX + by * torch.tensor(np.random.default_rng(0).standard_normal((n, 6, 3)))


@pytest.fixture(scope="module")
def xtb():
    return ASEEnergy(Calculator(CHLORIDES, settings={"accuracy": 0.01}, charge=-1))


def test_lennard_jones_by_hand_in_kj_per_mol_and_nm():
    """E = 4 e ((s/r)^12 - (s/r)^6) with e = 0.01 eV and s = 3.4 angstrom; F = -dE/dr along the axis."""
    settings = {"epsilon": 0.01, "sigma": 3.4, "rc": 1e4, "smooth": False}
    energy = ASEEnergy(Calculator((18, 18), "ase.calculators.lj:LennardJones", settings))
    r = torch.tensor([0.33, 0.4, 0.5], dtype=torch.float64)
    x = torch.zeros(3, 2, 3, dtype=torch.float64)
    x[:, 1, 0] = r
    E, F = energy.energy_force(x)
    u = (0.34 / r) ** 6
    assert torch.allclose(E, 0.04 * EV * (u**2 - u), rtol=1e-6)
    assert torch.allclose(F[:, 1, 0], 0.04 * EV * (12 * u**2 - 6 * u) / r, rtol=1e-6)
    assert torch.allclose(F[:, 0], -F[:, 1]) and energy.evaluations == 3 and energy.tier == "ase-LennardJones"
    assert energy.energy(x.float()).dtype == torch.float32


def test_metals_too():
    """EMT of three copper atoms: central differences at 1e-5 nm."""
    energy, h = ASEEnergy(Calculator((29, 29, 29), "ase.calculators.emt:EMT")), 1e-5
    x = torch.tensor([[[0, 0, 0], [0.25, 0, 0], [0.1, 0.23, 0.01]]], dtype=torch.float64)
    step = torch.zeros_like(x)
    step[0, 2, 1] = h
    E, F = energy.energy_force(torch.cat([x, x + step, x - step]))
    assert F[0, 2, 1].item() == pytest.approx((E[2] - E[1]).item() / (2 * h), rel=1e-6)


@needs_tblite
def test_gfn2_of_water_is_that_of_tblites_manual():
    """-137.967776 eV at the geometry of ase.build.molecule("H2O"), tblite's documentation."""
    from ase.build import molecule

    water = molecule("H2O")
    energy = ASEEnergy(Calculator(tuple(water.numbers.tolist())))
    E = energy.energy(torch.tensor(water.positions[None] / 10))
    assert E.item() == pytest.approx(-137.967776 * EV, rel=1e-7) and energy.tier == "tblite-GFN2-xTB"
    first = ASEEnergy(Calculator((8, 1, 1), settings={"method": "GFN1-xTB"}))
    assert first.energy(torch.tensor(water.positions[None] / 10)).item() == pytest.approx(-156.967506 * EV, rel=1e-7)


@needs_tblite
def test_gfn2_force_is_minus_the_gradient(xtb):
    """Central differences along five random directions, h = 2e-5 nm; a field of accuracy 0.01 leaves 1e-6."""
    x, h = shaken(1), 2e-5
    d = torch.tensor(np.random.default_rng(1).standard_normal((5, 6, 3)))
    F = xtb.force(x)
    slope = (xtb.energy(x + h * d) - xtb.energy(x - h * d)) / (2 * h)
    assert torch.allclose(-(F * d).sum((1, 2)), slope, rtol=1e-5, atol=1e-5 * F.norm().item())


@needs_tblite
def test_gfn2_is_blind_to_rotation_and_translation(xtb):
    x = shaken(1)
    Q = torch.linalg.qr(torch.tensor(np.random.default_rng(2).standard_normal((3, 3))))[0]
    E, F = xtb.energy_force(torch.cat([x, x @ Q.T + torch.tensor([0.3, -1.0, 2.0])]))
    assert E[1].item() == pytest.approx(E[0].item(), abs=1e-4)
    assert torch.allclose(F[1], F[0] @ Q.T, atol=1e-4 * F[0].abs().max().item())
    assert F[0].sum(0).abs().max() < 1e-4 * F[0].abs().max()


@needs_tblite
def test_an_ion_far_away_adds_its_own_energy():
    """E(CH3Cl ... Cl-) at 1 um is E(CH3Cl) + E(Cl-); at 0.3 nm the ion-dipole complex is bound.

    At 1 K: at the default 300 K the smeared occupation shares 1 % of an electron over any distance, -0.1 kJ/mol.
    """
    settings, x = {"accuracy": 0.01, "electronic_temperature": 1.0}, COMPLEX[None].clone()
    x[0, 5, 2] = -1000.0
    methyl = ASEEnergy(Calculator(CHLORIDES[:5], settings=settings)).energy(x[:, :5])
    ion = ASEEnergy(Calculator((17,), settings=settings, charge=-1)).energy(x[:, 5:])
    apart, together = ASEEnergy(Calculator(CHLORIDES, settings=settings, charge=-1)).energy(
        torch.cat([x, COMPLEX[None]])
    )
    assert apart.item() == pytest.approx((methyl + ion).item(), abs=1e-3)
    assert -60 < (together - apart).item() < -20


@needs_tblite
def test_the_same_bits_alone_or_in_company_and_for_any_number_of_workers():
    x = shaken(5)
    one = ASEEnergy(Calculator(CHLORIDES, charge=-1))
    E, F = one.energy_force(x)
    two = ASEEnergy(Calculator(CHLORIDES, charge=-1), workers=2)
    for rows in (slice(0, 5), slice(3, 4), slice(1, 3)):
        for energy in (one, two):
            found = energy.energy_force(x[rows])
            assert torch.equal(found[0], E[rows]) and torch.equal(found[1], F[rows])
    assert two.evaluations == 8


@needs_tblite
def test_through_ase_tblite_gives_the_same_bits():
    settings = {"method": "GFN1-xTB", "accuracy": 0.1, "verbosity": 0}
    ase = ASEEnergy(Calculator(CHLORIDES, "tblite.ase:TBLite", settings, charge=-1))
    del settings["verbosity"]
    own = ASEEnergy(Calculator(CHLORIDES, "tblite", settings, charge=-1))
    for a, b in zip(ase.energy_force(shaken(2)), own.energy_force(shaken(2)), strict=True):
        assert torch.equal(a, b)


@needs_tblite
def test_a_configuration_that_fails_is_nan_in_its_own_row():
    energy, x = ASEEnergy(Calculator(CHLORIDES, charge=-1), workers=2), shaken(5)
    good = energy.energy_force(x)
    bad = x.clone()
    bad[1, 1], bad[2, 0, 0] = bad[1, 0], torch.nan  # too close; no number
    E, F = energy.energy_force(bad)
    keep = [0, 3, 4]
    assert E[[1, 2]].isnan().all() and F[[1, 2]].isnan().all()
    assert torch.equal(E[keep], good[0][keep]) and torch.equal(F[keep], good[1][keep])
    hasty = ASEEnergy(Calculator(CHLORIDES, settings={"max_iterations": 1}, charge=-1))
    assert hasty.energy(x[:1]).isnan().all(), "a field that did not converge"


@needs_tblite
def test_settings_of_tblite_reach_it(xtb):
    E = xtb.energy(COMPLEX[None])
    for change in ({"electronic_temperature": 3000.0}, {"solvation": ["alpb", "water"]}, {"method": "GFN1-xTB"}):
        other = ASEEnergy(Calculator(CHLORIDES, settings={"accuracy": 0.01, **change}, charge=-1))
        assert (other.energy(COMPLEX[None]) - E).abs() > 0.01
    triplet = ASEEnergy(Calculator(CHLORIDES, charge=-1, multiplicity=3))
    assert triplet.energy(COMPLEX[None]) > E + 100


@needs_tblite
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"metod": "GFN2-xTB"}}, "tblite has no setting 'metod'; allowed: method, accuracy, "),
        ({"settings": {"method": "GFN9"}}, "tblite has no method 'GFN9'; allowed: GFN2-xTB, GFN1-xTB, IPEA1-xTB"),
        ({"settings": {"accuracy": "high"}}, "tblite: must be real number, not str"),
        ({"settings": {"solvation": ["alpb", "watr"]}}, "tblite: .*solvents"),
        ({"multiplicity": 2}, r"44 electrons \(charge -1\) cannot have multiplicity 2"),
        ({"numbers": (99,)}, "tblite: No support for elements"),
        ({"name": "os:nosuch"}, "calculator 'os:nosuch' is not to be found"),
        ({"name": "no.such:thing"}, "calculator 'no.such:thing' is not to be found"),
        ({"name": "os:environ"}, "calculator 'os:environ' is a _Environ; allowed are classes and functions"),
        ({"name": "os:getpid"}, "calculator 'os:getpid' returns a int, which is no calculator of ASE"),
        ({"name": "os:getpid", "settings": {"a": 1}}, r"calculator 'os:getpid' with \{'a': 1\}: "),
    ],
)
def test_what_cannot_be_calculated_is_refused_at_the_door(change, message):
    with pytest.raises(ValueError, match=message):
        ASEEnergy(Calculator(**{"numbers": CHLORIDES, "charge": -1, **change}))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ase_energy, "find_spec", lambda name: None if name == "tblite" else True)
    with pytest.raises(ValueError, match=r'tblite-GFN2-xTB needs tblite: pip install "molsamp\[reactions\]"'):
        ASEEnergy(Calculator(CHLORIDES))


CALCULATORS = """
import os
from ase.calculators.calculator import Calculator, FileIOCalculator, all_changes

class Fragile(Calculator):
    '''Harmonic, with an energy that is not the free energy; fails, dies or talks where x says so.'''
    implemented_properties = ["energy", "free_energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x = self.atoms.positions
        print("talk")
        if x[0, 0] > 90:
            os._exit(3)
        if x[0, 0] > 9:
            raise KeyError("any exception at all")
        self.results = {"energy": 1e6, "free_energy": (x**2).sum(), "forces": -2 * x}
        self.results["free_energy"] += self.atoms.get_initial_charges().sum()
        self.results["free_energy"] += 100 * self.atoms.get_initial_magnetic_moments().sum()

class Files(FileIOCalculator):
    '''Counts the files that earlier calculations left in its folder.'''
    implemented_properties = ["energy", "forces"]

    def __init__(self):
        super().__init__(command="true")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super(FileIOCalculator, self).calculate(atoms, properties, system_changes)
        left = os.listdir(self.directory)
        open(os.path.join(self.directory, f"file{len(left)}"), "w").close()
        self.results = {"energy": float(len(left)), "forces": 0 * self.atoms.positions}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "some_calculators.py").write_text(CALCULATORS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "some_calculators"


def test_any_exception_is_nan_and_the_forces_go_with_the_free_energy(module):
    energy, x = ASEEnergy(Calculator((1, 1), f"{module}:Fragile"), workers=2), torch.ones(4, 2, 3).double()
    x[2, 0, 0] = 1.0  # 10 angstrom
    x[:2] *= 0.01
    E, F = energy.energy_force(x)
    assert E[2:].isnan().all() and F[2:].isnan().all()
    assert torch.allclose(E[:2], torch.tensor(0.06 * EV).double()) and torch.allclose(F[:2], -2 * EV * x[:2] * 100)
    assert torch.equal(energy.energy(x)[:2], E[:2])


def test_charge_and_spin_are_those_of_the_atoms(module):
    energy = ASEEnergy(Calculator((1, 1), f"{module}:Fragile", charge=-2, multiplicity=3))
    assert energy.energy(torch.zeros(1, 2, 3)).item() == pytest.approx((-2 + 200) * EV)


def test_a_crash_is_loud_and_the_next_call_works(module):
    energy, x = ASEEnergy(Calculator((1, 1), f"{module}:Fragile"), workers=2), torch.zeros(2, 2, 3).double()
    with pytest.raises(RuntimeError, match="died with exit status 3"):
        energy.energy(x + 9.5)
    assert torch.equal(energy.energy(x), torch.zeros(2).double())


def test_files_of_one_calculation_are_not_there_in_the_next(module):
    before = os.listdir()
    energy = ASEEnergy(Calculator((1, 1), f"{module}:Files"), workers=2)
    assert torch.equal(energy.energy(torch.zeros(5, 2, 3)), torch.zeros(5)) and os.listdir() == before


def test_minimise_finds_the_minimum_or_says_how_near_it_came(module):
    centre = torch.tensor([[0.1, 0.2, 0.3]]).double()
    x = minimise(Harmonic(50.0, centre), np.zeros((1, 3)), 1e-6)
    assert np.allclose(x, centre, atol=1e-7)
    noisy = ASEEnergy(Calculator((1, 1), f"{module}:Fragile"))
    with pytest.raises(
        ValueError, match=r"root mean square force of nan kJ/mol/nm on ase-Fragile; .* tolerance, 1e-06"
    ):
        minimise(noisy, np.full((2, 3), 2.0), 1e-6)


TOML = """
title = "Cl- + CH3Cl"
[energy]
calculator = "tblite"
calculator_settings = { accuracy = 0.01 }
charge = -1
tolerance = 0.05
[states.left]
file = "left.pdb"
radius = 0.05
[states.right]
file = "right.pdb"
radius = 0.05
[cvs.near]
distance = [0, 4]
[cvs.far]
distance = [0, 5]
[settings]
temperature = 300
friction = 1
timestep = "0.5 fs"
steps = 10
start = "left"
end = "right"
"""


def pdb(x, elements=("C", "H", "H", "H", "Cl", "Cl")):
    names = ("C", "H1", "H2", "H3", "CL1", "CL2")
    lines = (
        f"HETATM{i:5d} {name:<4} SN2     1    {a:8.3f}{b:8.3f}{c:8.3f}  1.00  0.00          {element:>2}"
        for i, (name, element, (a, b, c)) in enumerate(zip(names, elements, (10 * x).tolist(), strict=True), start=1)
    )
    return "\n".join([*lines, "END", ""])


@pytest.fixture
def reaction(tmp_path):
    mirror = COMPLEX * torch.tensor([1.0, 1.0, -1.0])
    (tmp_path / "system.toml").write_text(TOML)
    (tmp_path / "left.pdb").write_text(pdb(COMPLEX))
    (tmp_path / "right.pdb").write_text(pdb(mirror[[0, 1, 2, 3, 5, 4]]))
    return tmp_path


@needs_tblite
def test_a_system_toml_may_name_a_calculator(reaction):
    from molsamp.molecular.system import load

    system = load(reaction)
    x = torch.stack([system.states[name].x for name in ("left", "right")])
    energy = system.energy(workers=2)
    E, F = energy.energy_force(x)
    assert energy.tier == "tblite-GFN2-xTB" and energy.evaluations == 2
    assert E[0].item() == pytest.approx(E[1].item(), abs=1e-3), "the reaction is symmetric"
    assert F.square().mean().sqrt() < 0.1 and system.masses[4].item() == pytest.approx(35.45, abs=0.01)
    assert system.inside(x, "left").tolist() == [True, False]
    assert 0.17 < system.states["left"].values["near"] < 0.2 < system.states["left"].values["far"] < 0.4
    with pytest.raises(ValueError, match=r"is a calculator's \(tblite-GFN2-xTB\); allowed is auto"):
        system.energy("openmm")
    with pytest.raises(ValueError, match="has no OpenMM System"):
        system.forcefield_system()


@needs_tblite
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('calculator = "tblite"', "", "exactly one is allowed of: force_field, system, potential, calculator"),
        ('calculator = "tblite"', 'calculator = "import os"', "key 'energy.calculator': got 'import os'"),
        ('calculator = "tblite"', 'potential = "double-well"', "key 'calculator_settings' belongs to a calculator"),
        ("accuracy", "acuracy", "tblite has no setting 'acuracy'"),
        ("charge = -1", "charge = -1\nmultiplicity = 2", "44 electrons"),
        ("tolerance = 0.05", "tolerance = 1e-9", r"left.pdb: relaxing it reaches .* tolerance, 1e-09"),
    ],
)
def test_mistakes_in_a_system_toml(reaction, old, new, message):
    from molsamp.molecular.system import load

    assert old in TOML
    (reaction / "system.toml").write_text(TOML.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load(reaction)


@needs_tblite
def test_an_atom_without_an_element(reaction):
    from molsamp.molecular.system import load

    (reaction / "left.pdb").write_text(pdb(COMPLEX, ("C", "H", "H", "H", "Cl", "")).replace("CL2 ", "ZZ  "))
    with pytest.raises(ValueError, match=r"left.pdb: atom ZZ of SN2 1 \(line 6\) has no element"):
        (reaction / "right.pdb").write_text((reaction / "left.pdb").read_text())
        load(reaction)


def test_hartree_and_electronvolt_are_ases():
    from molsamp.molecular import calculators

    assert math.isclose(calculators.EV, EV, rel_tol=1e-6)
    assert math.isclose(calculators.EV * calculators.units.Hartree, HARTREE, rel_tol=1e-6)
