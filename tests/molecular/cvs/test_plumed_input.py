"""PLUMED lines: what they mean, in 0-based CVs built by hand, and what is said of lines that mean nothing."""

import math

import pytest
import torch

from molsamp.molecular.cvs import (
    RMSD,
    Angle,
    Combination,
    Component,
    CoordinationNumber,
    Distance,
    PathCV,
    Switching,
    Torsion,
)
from molsamp.molecular.cvs.plumed import parse, parse_action

A = 20


def frames(n, seed=0):
    x = torch.randn(n, A, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (x * 1000).round() / 1e4  # three decimals in angstrom, as a PDB file holds


def pdb(file, structures, atoms, weights="  1.00  1.00", end="END"):
    lines = []
    for x in structures:
        for i in atoms:
            xyz = "".join(f"{10 * c:8.3f}" for c in x[i].tolist())
            lines.append(f"ATOM  {i + 1:5d}  C   XXX A   1    {xyz}{weights}")
        lines.append(end)
    file.write_text("\n".join(lines) + "\n")


def same(cv, expected):
    x = frames(4, seed=3)
    assert type(cv) is type(expected) and cv.period == expected.period and cv.unit == expected.unit
    torch.testing.assert_close(cv(x), expected(x), rtol=1e-12, atol=1e-12)


MEANINGS = {
    "TORSION ATOMS=5,7,9,15": Torsion((4, 6, 8, 14)),
    "TORSION ATOMS=5-8": Torsion((4, 5, 6, 7)),
    "DISTANCE ATOMS=1,20 NOPBC": Distance((0, 19)),
    "ANGLE ATOMS=1-5:2": Angle((0, 2, 4)),
    "COORDINATION GROUPA=1-3 GROUPB=3,5-10:2 R_0=0.3": CoordinationNumber(
        (0, 1, 2), (2, 4, 6, 8), Switching(0.3, 0.0, 6, 12)
    ),
    "COORDINATION GROUPA=1-10 R_0=0.1 D_0=0.05 NN=8 MM=14": CoordinationNumber(
        range(10), None, Switching(0.1, 0.05, 8, 14)
    ),
    "COORDINATION GROUPA=1 GROUPB=2 SWITCH={RATIONAL R_0=0.3 D_0=0.1 NN=4 MM=10}": CoordinationNumber(
        (0,), (1,), Switching(0.3, 0.1, 4, 10)
    ),
    "COORDINATION GROUPA=1 GROUPB=2 SWITCH={ GAUSSIAN R_0=0.3 }": CoordinationNumber(
        (0,), (1,), Switching(0.3, shape="GAUSSIAN")
    ),
}


@pytest.mark.parametrize("line", MEANINGS)
def test_one_action(line, tmp_path):
    [(label, cv)] = parse(f"s: {line}", A, tmp_path).items()
    assert label == "s" and cv.names == ("s",)
    same(cv, MEANINGS[line])
    [(label, again)] = parse(f"{line} LABEL=other", A, tmp_path).items()
    assert label == "other" and again.names == ("other",)
    same(parse_action(line, "s", A, tmp_path), MEANINGS[line])


def test_a_whole_file(tmp_path):
    found = parse(
        """
        # comments, default units, labels in both places
        UNITS LENGTH=nm TIME=ps
        phi: TORSION ATOMS=5,7,9,15   # C N CA C
        DISTANCE ...
          LABEL=d
          ATOMS=1,2  # inside too
        ... DISTANCE

        cn: COORDINATION ...
          GROUPA=1-4
          SWITCH={RATIONAL
                  R_0=0.2}
        ...
        sum: COMBINE ARG=phi,d,cn COEFFICIENTS=1,2,3 PARAMETERS=0.1,0.2,0.3 POWERS=1,2,1 PERIODIC=NO
        twice: COMBINE ARG=phi COEFFICIENTS=2 PERIODIC=-2*pi,2pi
        """,
        A,
        tmp_path,
    )
    assert list(found) == ["phi", "d", "cn", "sum", "twice"]
    phi, d, cn = (
        Torsion((4, 6, 8, 14), "phi"),
        Distance((0, 1), "d"),
        CoordinationNumber(range(4), None, Switching(0.2)),
    )
    same(found["sum"], Combination([phi, d, cn], [1, 2, 3], [0.1, 0.2, 0.3], [1, 2, 1]))
    same(found["twice"], Combination([phi], [2], domain=(-2 * math.pi, 2 * math.pi)))
    assert found["twice"].period == (4 * math.pi,) and found["twice"].unit == ("rad",)


def test_references_are_angstrom_and_serials_are_1_based(tmp_path):
    atoms, structures = (2, 5, 7, 11, 12), frames(3)
    pdb(tmp_path / "one.pdb", structures[:1], atoms)
    pdb(tmp_path / "path.pdb", structures, atoms, end="ENDMDL")
    found = parse(
        "r: RMSD REFERENCE=one.pdb TYPE=OPTIMAL\n"
        "p: PATHMSD REFERENCE=path.pdb LAMBDA=50\n"
        "far: COMBINE ARG=p.zzz,r COEFFICIENTS=1,2 PERIODIC=NO",
        A,
        tmp_path,
    )
    same(found["r"], RMSD(structures[0], atoms))
    path = PathCV.of_frames(structures, 50, atoms, "p")
    same(found["p"], path)
    assert found["p"].names == ("p.sss", "p.zzz")
    same(found["far"], Combination([Component(path, "p.zzz"), RMSD(structures[0], atoms)], [1, 2]))


ERRORS = [
    ("phi: TORSIO ATOMS=1", "line 1: action 'TORSIO' is unknown; did you mean 'TORSION'? Allowed: TORSION, ANGLE,"),
    ("METAD ARG=phi", "line 1: action 'METAD' is unknown;", "Allowed: TORSION, ANGLE, DISTANCE, RMSD, COORDINATION"),
    (
        "\n\nphi: TORSION ATOM=1,2,3,4",
        "line 3: TORSION: key 'ATOM=' is unknown; did you mean 'ATOMS='? Allowed: ATOMS=",
    ),
    ("phi: TORSION NOPBC", "TORSION: key 'ATOMS' is missing; got no keys; allowed are ATOMS"),
    ("phi: TORSION ATOMS=1,2,3", "TORSION: key 'ATOMS': got '1,2,3'; allowed is 4 atoms, and it names 3"),
    ("phi: TORSION ATOMS=0,1,2,3", "key 'ATOMS': got '0'; allowed is an atom from 1 to 20"),
    ("phi: TORSION ATOMS=1,2,3,21", "key 'ATOMS': got '21'; allowed is an atom from 1 to 20"),
    ("phi: TORSION ATOMS=8-5", "key 'ATOMS': got '8-5'; allowed is an atom from 1 to 20, or a range such as 5-8"),
    ("phi: TORSION ATOMS=1-9:0", "key 'ATOMS': got '1-9:0'"),
    ("phi: TORSION ATOMS=@phi-2", "key 'ATOMS': got '@phi-2'"),
    ("d: DISTANCE ATOMS=3,3", "key 'ATOMS': got '3,3'; allowed is a list of distinct atoms"),
    ("d: DISTANCE ATOMS=1,2 ATOMS=1,2", "DISTANCE: key 'ATOMS': got it twice; allowed is once"),
    ("d: DISTANCE ATOMS=1,2 COMPONENTS", "DISTANCE: key 'COMPONENTS' is unknown; Allowed: ATOMS=, NOPBC"),
    ("d: DISTANCE ATOMS=1,2\nd: DISTANCE ATOMS=1,3", "line 2: DISTANCE: key 'LABEL': got 'd'; allowed is a new label"),
    ("d: DISTANCE ATOMS=1,2 LABEL=e", "key 'LABEL': got 'e'; allowed is one label; this action already has 'd'"),
    ("DISTANCE ATOMS=1,2", "key 'LABEL': got ''; allowed is a word of letters"),
    ("c: COORDINATION GROUPA=1-3", "COORDINATION: key 'R_0' is missing; got GROUPA; allowed are GROUPA, GROUPB, R_0"),
    ("c: COORDINATION GROUPA=1-3 R_0=x", "key 'R_0': got 'x'; allowed is 1 finite number, by commas"),
    ("c: COORDINATION GROUPA=1-3 R_0=0", "COORDINATION: switching function: got r0 = 0.0"),
    ("c: COORDINATION GROUPA=1-3 R_0=1 NN=6.5", "key 'NN': got '6.5'; allowed is a whole number"),
    ("c: COORDINATION GROUPA=1-3 R_0=1 NN=6 MM=6", "got exponents 6 and 6; allowed are 0 < n < m"),
    ("c: COORDINATION GROUPA=3 R_0=1", "allowed are groups with a pair of different atoms"),
    ("c: COORDINATION GROUPA=1-3 SWITCH={CUBIC D_0=1}", "key 'SWITCH': got 'CUBIC'; allowed is one of RATIONAL, EXP"),
    ("c: COORDINATION GROUPA=1-3 SWITCH={EXP R_0=1 NN=2}", "key 'NN=' is unknown; Allowed: R_0=, D_0="),
    ("c: COORDINATION GROUPA=1-3 SWITCH={EXP R_0=1 D_MAX=2}", "key 'D_MAX=' is unknown"),
    ("c: COORDINATION GROUPA=1-3 R_0=1 SWITCH={EXP R_0=1}", "key 'R_0': got '1'; allowed is either SWITCH={...} or"),
    ("c: COORDINATION GROUPA=1-3 SWITCH={EXP R_0=1", "allowed is 'label: ACTION KEY=VALUE KEY={WORD KEY=VALUE} FLAG"),
    ("c: COMBINE ARG=phi PERIODIC=NO", "COMBINE: key 'ARG': got 'phi'; allowed is the CVs defined before it: none"),
    ("d: DISTANCE ATOMS=1,2\nc: COMBINE ARG=e PERIODIC=NO", "line 2: COMBINE: key 'ARG': got 'e'", "before it: d"),
    ("d: DISTANCE ATOMS=1,2\nc: COMBINE ARG=d", "key 'PERIODIC' is missing; got ARG"),
    ("d: DISTANCE ATOMS=1,2\nc: COMBINE ARG=d PERIODIC=MAYBE", "key 'PERIODIC': got 'MAYBE'; allowed is 2 finite"),
    ("d: DISTANCE ATOMS=1,2\nc: COMBINE ARG=d PERIODIC=1,0", "COMBINE: CV 'c': domain: got (1.0, 0.0)"),
    (
        "d: DISTANCE ATOMS=1,2\nc: COMBINE ARG=d,d PERIODIC=NO",
        "key 'ARG': got 'd,d'; allowed is a list of distinct CVs",
    ),
    ("d: DISTANCE ATOMS=1,2\nc: COMBINE ARG=d POWERS=1,2 PERIODIC=NO", "key 'POWERS': got '1,2'; allowed is 1 finite"),
    ("r: RMSD REFERENCE=a.pdb", "RMSD: key 'TYPE': got 'SIMPLE'; allowed is OPTIMAL (PLUMED's default"),
    ("r: RMSD REFERENCE=none.pdb TYPE=OPTIMAL", "got 'none.pdb'; allowed is a PDB file; it cannot be read (No such"),
    ("r: RMSD REFERENCE=path.pdb TYPE=OPTIMAL", "allowed is a file of one structure; it has 3"),
    ("r: RMSD REFERENCE=flat.pdb TYPE=OPTIMAL", "flat.pdb with occupancy and beta [(1.0, 0.0)]", "one positive pair"),
    ("r: RMSD REFERENCE=far.pdb TYPE=OPTIMAL", "far.pdb, line 1: ATOM     21", "serial 1 to 20"),
    ("r: RMSD REFERENCE=empty.pdb TYPE=OPTIMAL", "got 'empty.pdb with 0 structures'"),
    ("p: PATHMSD REFERENCE=a.pdb LAMBDA=5", "PATHMSD: key 'REFERENCE': got 'a.pdb'; allowed is a file of two or more"),
    ("p: PATHMSD REFERENCE=mixed.pdb LAMBDA=5", "a PDB file of structures of the same atoms"),
    ("p: PATHMSD REFERENCE=path.pdb LAMBDA=0", "key 'LAMBDA': got '0'; allowed is a positive number in 1/nm^2"),
    ("UNITS LENGTH=A", "line 1: UNITS: key 'LENGTH': got 'A'; allowed is only PLUMED's default, nm"),
    ("UNITS NATURAL", "UNITS: key 'NATURAL': got ''; allowed is only PLUMED's default, LENGTH=nm"),
    ("d: DISTANCE ...\nATOMS=1,2", "line 1: 'd: DISTANCE' goes on after '...'; no line '...' ends it"),
    (
        "d: DISTANCE ...\nATOMS=1,2\n... TORSION",
        "line 3: got '... TORSION'; allowed is '...' to end ['d:', 'DISTANCE']",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plumed")
    x = frames(3)
    pdb(folder / "a.pdb", x[:1], range(5))
    pdb(folder / "path.pdb", x, range(5))
    pdb(folder / "flat.pdb", x[:1], range(5), "  1.00  0.00")
    pdb(folder / "far.pdb", torch.cat([x[0], x[0]])[None], [A])
    (folder / "empty.pdb").write_text("REMARK\nEND\n")
    (folder / "mixed.pdb").write_text((folder / "a.pdb").read_text() + (folder / "a.pdb").read_text()[67:])
    return folder


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case[0].replace("\n", "|"))
def test_errors_say_line_action_key_and_what_is_allowed(case, folder):
    text, *parts = case
    with pytest.raises(ValueError) as error:
        parse(text, A, folder, source="plumed.dat")
    message = str(error.value)
    for part in parts:
        assert part in message, message
    assert message.startswith("plumed.dat, line ") and message.endswith("; PLUMED atoms are 1-based")
    assert "\n" not in message


def test_an_action_of_a_table_has_no_label_of_its_own(tmp_path):
    with pytest.raises(
        ValueError, match=r"line 1: DISTANCE: key 'LABEL': got 'd'; allowed is none, since the CV's own"
    ):
        parse_action("d: DISTANCE ATOMS=1,2", "e", A, tmp_path)
    with pytest.raises(ValueError, match="key 'LABEL': got 'd'"):
        parse_action("DISTANCE ATOMS=1,2 LABEL=d", "e", A, tmp_path)
    with pytest.raises(ValueError, match="got 0 PLUMED actions; allowed is one; PLUMED atoms are 1-based"):
        parse_action("# nothing", "e", A, tmp_path)
