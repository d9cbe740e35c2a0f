"""The bundled systems load, are what system.toml says, and their states are sound; a user's own folder works alike."""

import math
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

from molsamp.molecular import checks, schema
from molsamp.molecular.sources import relax
from molsamp.molecular.system import bundled, kB, load, systems, template

NAMES = [name for name, _ in systems()]
TOYS = ["double-well", "mueller-brown"]
ALANINE = [name for name in NAMES if name.startswith("alanine-dipeptide")]
MIXTURES = [name for name in NAMES if name.startswith("gaussians")]
REACTIONS = [name for name in NAMES if name.startswith("sn2")]
PEPTIDES = [name for name in NAMES if name not in (*TOYS, *MIXTURES, *REACTIONS)]


@pytest.fixture(scope="module")
def loaded():
    """Each system, loaded once."""
    cache = {}

    def get(name):
        if name not in cache:
            cache[name] = load(name)
        return cache[name]

    return get


def test_the_list_of_systems():
    assert set(TOYS) < set(NAMES)
    assert set(ALANINE) == {f"alanine-dipeptide{tail}" for tail in ("", "-obc", "-obc1", "-gbn2")}
    assert "chignolin" in NAMES
    assert all(title for _, title in systems())


@pytest.mark.parametrize("name", NAMES)
def test_states_lie_in_their_own_disc_and_in_no_other(loaded, name):
    system = loaded(name)
    for state in system.states.values():
        assert state.x.dtype == torch.float64
        inside = {other for other in system.states if system.inside(state.x[None], other).item()}
        assert inside == {state.name}
        assert system.distance(state.x[None], state.name).item() < 1e-6
        assert list(state.values.values()) == pytest.approx(system.values(state.x[None])[0].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_energies_are_finite_and_counted(loaded, name):
    system = loaded(name)
    x = torch.stack([state.x for state in system.states.values()])
    tier = "openmm:Reference" if name in PEPTIDES else "auto"
    energy = system.energy(tier)
    E, F = energy.energy_force(x)
    assert energy.evaluations == len(x) and E.isfinite().all() and F.isfinite().all()
    assert system.energy(tier).evaluations == 0, "every call gives a new counter"
    tolerance = schema.read(system.folder / "system.toml").energy.tolerance
    rms = F.square().flatten(1).mean(1).sqrt()
    assert (rms < (1e-8 if name in TOYS else 1e-4 if name in MIXTURES else tolerance)).all()  # tails of the others


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source(name):
    spec = schema.read(bundled() / name / "system.toml")
    assert {"states" if name != "double-well" else "potential", "settings" if name in ALANINE else "sigma"} <= set(
        spec.sources
    )
    assert all(len(text) > 20 for text in spec.sources.values())


def test_kT_is_kB_T_or_given(loaded):
    assert loaded("alanine-dipeptide").kT == pytest.approx(0.0083144626 * 300) and kB == 0.00831446261815324
    assert loaded("double-well").kT == 0.1034


def test_double_well_is_the_cards(loaded):
    system = loaded("double-well")
    s = system.settings
    assert (s.kind, s.timestep, s.steps, s.start, s.end) == ("overdamped", 0.01, 1000, "left", "right")
    assert [state.radius for state in system.states.values()] == [0.5, 0.5]
    assert system.states["right"].x.tolist() == pytest.approx([math.sqrt(5) / 2, 0])
    assert system.energy().energy(system.states["left"].x[None]).item() == pytest.approx(-1 / 12)
    assert system.masses is None and system.topology is None and system.event == (2,)
    assert system.heavy.tolist() == [0, 1]
    with pytest.raises(ValueError, match="no OpenMM System"):
        system.forcefield_system()


@pytest.mark.parametrize("name", ALANINE)
def test_alanine_dipeptide_has_the_standard_atoms_and_torsions(loaded, name):
    md = pytest.importorskip("mdtraj")
    system = loaded(name)
    atoms = [(a.residue.name, a.element.symbol) for a in system.topology.atoms()]
    assert len(atoms) == 22 and system.event == (22, 3)
    assert [atoms[i] for i in (4, 6, 8, 14, 16)] == [
        ("ACE", "C"), ("ALA", "N"), ("ALA", "C"), ("ALA", "C"), ("NME", "N"),
    ]  # fmt: skip
    assert [list(system.topology.atoms())[i].name for i in (4, 6, 8, 14, 16)] == ["C", "N", "CA", "C", "N"]
    assert system.heavy.tolist() == [1, 4, 5, 6, 8, 10, 14, 15, 16, 18]
    assert system.masses.sum().item() == pytest.approx(144.17, abs=0.05)  # C6 H12 N2 O2
    x = torch.stack([state.x for state in system.states.values()])
    frames = md.Trajectory(x.numpy(), md.Topology.from_openmm(system.topology))
    for k, compute in enumerate((md.compute_phi, md.compute_psi)):
        atoms_k, values = compute(frames, periodic=False)
        assert atoms_k.tolist() == [list(system.cvs[("phi", "psi")[k]].atoms)]
        torch.testing.assert_close(system.values(x)[:, k], torch.tensor(values[:, 0]).double(), atol=1e-5, rtol=0)


def test_vacuum_minima_are_those_of_the_literature(loaded):
    states = loaded("alanine-dipeptide").states
    for name, phi, psi in (("C5", -147, 159), ("C7ax", 60, -41)):
        got = [math.degrees(value) for value in states[name].values.values()]
        assert got == pytest.approx([phi, psi], abs=1)


def test_chignolin_is_a_folded_hairpin_and_an_extended_chain(loaded):
    system = loaded("chignolin")
    three = {"G": "GLY", "Y": "TYR", "D": "ASP", "P": "PRO", "E": "GLU", "T": "THR", "W": "TRP"}
    assert [r.name for r in system.topology.residues()] == [three[letter] for letter in "GYDPETGTWG"]
    assert system.event == (138, 3) and len(system.heavy) == 77
    atoms = list(system.topology.atoms())
    names = {name: [(atoms[i].residue.index + 1, atoms[i].name) for i in cv.atoms] for name, cv in system.cvs.items()}
    assert names == {
        "d38": [(3, "N"), (8, "O")],
        "d73": [(7, "N"), (3, "O")],
        "d101": [(10, "N"), (1, "O")],
    }
    assert all(value < 0.35 for value in system.states["folded"].values.values()), "native hydrogen bonds"
    assert all(value > 1 for value in system.states["unfolded"].values.values())
    moved = system.states["folded"].x - torch.from_numpy(checks.read_pdb(system.folder / "folded.pdb").x)
    assert moved.abs().max() < 1e-3


@pytest.mark.parametrize("name", PEPTIDES)
def test_systems_are_flexible_and_unbounded(loaded, name):
    import openmm

    system = loaded(name)
    source = system.forcefield_system()
    checks.check_system(source, name)
    assert not source.usesPeriodicBoundaryConditions()
    elements = [a.element.mass.value_in_unit(openmm.unit.dalton) for a in system.topology.atoms()]
    hydrogen = system.settings.hydrogen_mass or 1.008
    moving = [hydrogen if mass < 1.5 else mass for mass in elements]
    assert system.masses.tolist() == pytest.approx(moving, abs=0.01), "true masses but where the settings say so"
    source.addForce(openmm.CMMotionRemover())
    checks.check_system(system.forcefield_system(), name)  # the copy above was a copy


def test_loading_twice_gives_the_same_bits():
    a, b = load("alanine-dipeptide"), load("alanine-dipeptide")
    for name in a.states:
        assert torch.equal(a.states[name].x, b.states[name].x)


def test_comment_in_toml_holds_the_relaxed_energies(loaded):
    system = loaded("alanine-dipeptide")
    text = (system.folder / "system.toml").read_text()
    energies = [float(e) for e in re.findall(r"deg, (-[\d.]+) kJ/mol", text)]
    x = torch.stack([state.x for state in system.states.values()])
    assert system.energy("openmm:Reference").energy(x).tolist() == pytest.approx(energies, abs=6e-4)


def test_distance_wraps_around(loaded):
    system = loaded("alanine-dipeptide")
    d = system.distance(system.states["C5"].x[None], "C7ax").item()
    a, b = (list(system.states[name].values.values()) for name in ("C5", "C7ax"))
    assert d == pytest.approx(math.hypot(*(math.remainder(p - q, 2 * math.pi) for p, q in zip(a, b, strict=True))))


def test_tiers_agree_on_vacuum_alanine(loaded):
    system = loaded("alanine-dipeptide")
    x = torch.stack([state.x for state in system.states.values()])
    lanes, other, reference = (system.energy(tier) for tier in ("auto", "torch", "openmm:Reference"))
    assert (lanes.tier, other.tier, reference.tier) == ("lanes-float64", "torch-float64", "openmm-Reference")
    for native in (lanes, other):
        torch.testing.assert_close(native.energy(x), reference.energy(x), rtol=0, atol=1e-9)


def test_unknown_tier_and_state_are_refused(loaded):
    system = loaded("alanine-dipeptide")
    with pytest.raises(ValueError, match="energy tier 'cuda' is unknown"):
        system.energy("cuda")
    with pytest.raises(ValueError, match="no state 'C7axx'; did you mean 'C7ax'"):
        system.inside(system.states["C5"].x[None], "C7axx")
    with pytest.raises(ValueError, match="a toy potential has no tier 'openmm'"):
        loaded("double-well").energy("openmm")


# --- a user's own folder --------------------------------------------------------------------------------------------


def own(folder, changes=lambda text: text):
    """A copy of alanine dipeptide's folder with an edited system.toml."""
    shutil.copytree(bundled() / "alanine-dipeptide", folder, dirs_exist_ok=True)
    file = folder / "system.toml"
    file.write_text(changes(file.read_text()))
    return file


def test_own_folder_by_folder_and_by_file(tmp_path, loaded):
    file = own(tmp_path)
    for path in (tmp_path, str(tmp_path), file, str(file)):
        system = load(path)
        assert system.name == tmp_path.name and system.folder == tmp_path
        assert torch.equal(system.states["C5"].x, loaded("alanine-dipeptide").states["C5"].x)


def test_without_cvs_states_are_discs_in_rmsd(tmp_path):
    def no_cvs(text):
        text = re.sub(r"\[cvs.*?(?=\[settings)", "", text, flags=re.S).replace("radius = 0.75", "radius = 0.02")
        return re.sub(r"channel.*", "", text)

    system = load(own(tmp_path, no_cvs))
    assert system.cvs == {} and {s.metric for s in system.states.values()} == {"rmsd"}
    x = torch.stack([system.states["C5"].x, system.states["C7ax"].x])
    assert system.values(x).shape == (2, 0)
    assert system.distance(x, "C7ax").tolist() == pytest.approx([0.165, 0], abs=0.002)  # card: 1.65 angstrom
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 1, 2], [-1, 0, 3], [-2, -3, 0]], dtype=torch.float64))
    assert system.distance(x @ turn + 5, "C7ax").tolist() == pytest.approx(
        system.distance(x, "C7ax").tolist(), abs=1e-7
    )
    assert system.inside(x, "C7ax").tolist() == [False, True]


def test_serialised_system_gives_the_same_minima(tmp_path, loaded):
    import openmm

    bundled_one = loaded("alanine-dipeptide")
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(bundled_one.forcefield_system()))
    system = load(own(tmp_path, lambda text: re.sub(r"force_field = \[.*\]", 'system = "system.xml"', text, count=1)))
    for name, state in system.states.items():
        torch.testing.assert_close(state.x, bundled_one.states[name].x, rtol=0, atol=1e-9)


def test_relax_stops_at_its_tolerance(loaded):
    system = loaded("alanine-dipeptide")
    source = system.forcefield_system()
    x = checks.read_pdb(system.folder / "C5.pdb").x
    before = system.energy("openmm:Reference").force(torch.from_numpy(x)[None]).square().mean().sqrt().item()
    assert before > 1, "three decimals of an angstrom leave large forces"
    for tolerance in (0.1, 1e-3):
        [y] = relax(source, [x], tolerance)
        after = system.energy("openmm:Reference").force(torch.from_numpy(y)[None]).square().mean().sqrt().item()
        assert after < tolerance


def test_template_is_a_valid_system_file(tmp_path):
    data = tomllib.loads(template())
    (tmp_path / "system.toml").write_text(template())
    spec = schema.read(tmp_path / "system.toml")
    assert spec.settings.start == "A" and set(data) == set(schema.SystemFile.model_fields) - {"walls"}


def test_every_package_is_in_the_wheel():
    root = Path(__file__).resolve().parents[2]
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(f.parent.relative_to(root).parts) for f in (root / "molsamp").rglob("__init__.py")}
    assert set(listed) == found | {"molsamp.systems"}
