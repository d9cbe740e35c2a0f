"""CVs of a system.toml beyond indices: PLUMED actions and mdtraj selections, with their units and their errors."""

import re
import shutil

import pytest
import torch

from molsamp.molecular import schema
from molsamp.molecular.cvs import Angle, Combination, CoordinationNumber, Distance, Switching, Torsion
from molsamp.molecular.system import bundled, load

EXTRA = """
[cvs.ends]
distance = ["resid 0 and name CH3", "resSeq 3 and name C"]
[cvs.cn]
plumed = "COORDINATION GROUPA=5,7 GROUPB=9-15:3 SWITCH={RATIONAL R_0=0.4 NN=6 MM=10}"
[cvs.mix]
plumed = "COMBINE ARG=phi,cn COEFFICIENTS=2,-1 PERIODIC=NO"
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Alanine dipeptide in a folder of its own, its CVs replaced by others and states by RMSD unless `metric`."""

    def write(cvs, metric="rmsd"):
        folder = tmp_path_factory.mktemp("ala")
        shutil.copytree(bundled() / "alanine-dipeptide", folder, dirs_exist_ok=True)
        text = (folder / "system.toml").read_text()
        text = re.sub(r"\[cvs.*?(?=\[settings)", lambda _: cvs + "\n", text, flags=re.S)
        text = re.sub(r"channel.*", "", text)
        if metric == "rmsd":
            text = text.replace("radius = 0.75", 'radius = 0.02\nmetric = "rmsd"')
        (folder / "system.toml").write_text(text)
        return folder

    return write


def test_selections_and_plumed_actions(own):
    phi = '[cvs.phi]\ntorsion = [4, "resid 1 and name N", 8, "resid 1 and name C"]\n'
    system = load(own(phi + EXTRA))
    names = {atom.index: (atom.residue.index, atom.name) for atom in system.topology.atoms()}
    assert system.cvs["phi"].atoms == (4, 6, 8, 14) and isinstance(system.cvs["phi"], Torsion)
    assert [names[i] for i in system.cvs["ends"].atoms] == [(0, "CH3"), (2, "C")]
    x = torch.stack([state.x for state in system.states.values()])
    cn = CoordinationNumber((4, 6), (8, 11, 14), Switching(0.4, 0.0, 6, 10), "cn")
    torch.testing.assert_close(system.cvs["cn"](x), cn(x))
    mix = Combination([Torsion((4, 6, 8, 14), "phi"), cn], [2, -1])
    torch.testing.assert_close(system.cvs["mix"](x), mix(x))
    assert [cv.unit for cv in system.cvs.values()] == [("rad",), ("nm",), ("1",), ("1",)]
    values = system.values(x)
    assert list(system.states["C5"].values.values()) == pytest.approx(values[0].tolist())


def test_a_path_becomes_two_cvs(own):
    path = '[cvs.path]\nplumed = "PATHMSD REFERENCE=path.pdb LAMBDA=2000"\n'
    folder = own(path + '[cvs.both]\nplumed = "COMBINE ARG=path.sss,path.zzz PERIODIC=NO"\n')
    models = [
        "".join(
            f"{line[:54]}  1.00  1.00\n" for line in (folder / f"{name}.pdb").read_text().splitlines() if "ATOM" in line
        )
        for name in ("C5", "C7eq", "C7ax")
    ]
    (folder / "path.pdb").write_text("END\n".join(models))
    system = load(folder)
    assert list(system.cvs) == ["path.sss", "path.zzz", "both"]
    progress = [system.states[name].values["path.sss"] for name in ("C5", "C7eq", "C7ax")]
    assert progress == pytest.approx([1, 2, 3], abs=1e-3)
    assert system.states["C5"].values["both"] == pytest.approx(sum([*system.states["C5"].values.values()][:2]))


def test_cvs_of_one_unit_span_the_states_whoever_defines_them(own):
    plumed = '[cvs.phi]\nplumed = "TORSION ATOMS=5,7,9,15"\n[cvs.psi]\ntorsion = [6, 8, 14, 16]\n'
    system = load(own(plumed, "cvs"))
    original = load("alanine-dipeptide")
    assert system.states["C5"].values == original.states["C5"].values
    x = original.states["C7ax"].x[None]
    assert torch.equal(system.distance(x, "C5"), original.distance(x, "C5"))
    mixed = plumed + '[cvs.cn]\nplumed = "COORDINATION GROUPA=1-4 R_0=0.3"\n'
    with pytest.raises(
        ValueError, match=r"system.toml: key 'states': metric 'cvs' needs CVs of one unit, got CVs in 1 "
    ):
        load(own(mixed, "cvs"))


TABLE = "[cvs.s]\n"
CASES = [
    ('distance = ["name CA", "name H"]', "'cvs.s.distance': got 'name H'; it selects 2 atoms, 0-based (7, 17)"),
    ('distance = ["name CA", "name XX"]', "'cvs.s.distance': got 'name XX'; it selects no atom"),
    ('distance = ["name CA", "nane CB"]', "'cvs.s.distance': got 'nane CB'; it is no mdtraj selection"),
    ('distance = ["name CA", 8]', "'cvs.s.distance': got atoms [8, 8] (0-based); the atoms must be distinct"),
    ('distance = ["name CA", 1.5]', "'cvs.s.distance.1': got 1.5; should be a 0-based atom index or an mdtraj"),
    ("distance = [true, 2]", "'cvs.s.distance.0': got True; should be a 0-based atom index"),
    ('distance = ["name CA", 22]', "'cvs.s.distance': atom 22 does not exist; TOML indices are 0-based"),
    (
        'plumed = "DISTANCE ATOMS=1,23"',
        "'cvs.s.plumed', line 1: DISTANCE: key 'ATOMS': got '23'",
        "from 1 to 22",
        "1-based",
    ),
    ('plumed = "s: DISTANCE ATOMS=1,2"', "'cvs.s.plumed', line 1: DISTANCE: key 'LABEL': got 's'; allowed is none"),
    ('plumed = "COMBINE ARG=s PERIODIC=NO"', "key 'ARG': got 's'; allowed is the CVs defined before it: none"),
    ('plumed = "DISTANCE ATOMS=1,2"\nangle = [1, 2, 3]', "'cvs.s': got angle and plumed; exactly one is allowed of:"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_errors(own, case):
    table, *parts = case
    with pytest.raises(ValueError) as error:
        load(own(TABLE + table))
    message = str(error.value)
    assert "system.toml" in message and "\n" not in message
    for part in parts:
        assert part in message, message


def test_a_toy_takes_no_plumed(tmp_path):
    text = (bundled() / "double-well" / "system.toml").read_text()
    (tmp_path / "system.toml").write_text(re.sub(r"coordinate = 0", 'plumed = "DISTANCE ATOMS=1,2"', text, count=1))
    with pytest.raises(ValueError, match="a toy potential has no CV of kind 'plumed'"):
        load(tmp_path)


def test_units_of_tables():
    def unit(**table):
        return schema.CVTable(**table).unit

    assert (unit(torsion=(0, 1, 2, 3)), unit(angle=(0, "name CA", 2)), unit(coordinate=1)) == (
        "rad",
        "rad",
        "reduced units",
    )
    assert unit(distance=("name CA", "name CB")) == "nm" and unit(plumed="ANGLE ATOMS=1,2,3") is None
    assert Angle((0, 1, 2)).unit == ("rad",) and Distance((0, 1)).unit == ("nm",)
