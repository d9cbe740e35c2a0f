"""Bad input to `load`: each fault gives one line that names file, line, atom or key, what was got and what is allowed.

The files are alanine dipeptide's own with one small edit each, so that nothing else can be wrong with them.
"""

import re
import shutil

import pytest

from molsamp.molecular.system import bundled, load


@pytest.fixture
def folder(tmp_path):
    """A copy of the vacuum alanine dipeptide's folder."""
    shutil.copytree(bundled() / "alanine-dipeptide", tmp_path, dirs_exist_ok=True)
    return tmp_path


def edit(file, pattern, replacement, count=1):
    """Replace a pattern that must be there."""
    text = file.read_text()
    assert re.search(pattern, text, flags=re.M), f"{pattern!r} is not in {file.name}"
    file.write_text(re.sub(pattern, replacement, text, count=count, flags=re.M))


def move(file, atom, residue, **xyz):
    """Set coordinates (angstrom) of one atom of a PDB file; values may be text."""
    lines = file.read_text().splitlines()
    for k, line in enumerate(lines):
        if line[12:16].strip() == atom and line[17:20] == residue:
            for axis, value in xyz.items():
                start = 30 + 8 * "xyz".index(axis)
                value = f"{value:8.3f}" if isinstance(value, float) else f"{value:>8}"
                line = line[:start] + value + line[start + 8 :]
            lines[k] = line
            file.write_text("\n".join(lines) + "\n")
            return
    raise AssertionError(f"no {atom} {residue}")


def refused(path, *parts):
    """`load` refuses in one line that holds every part."""
    with pytest.raises(ValueError) as error:
        load(path)
    message = str(error.value)
    assert "\n" not in message.strip()
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


# --- names, files, TOML ---------------------------------------------------------------------------------------------


def test_unknown_name():
    refused("alanin-dipeptide", "'alanin-dipeptide' is unknown", "did you mean 'alanine-dipeptide'?", "chignolin")


def test_folder_without_system_toml(tmp_path):
    refused(tmp_path, str(tmp_path), "is unknown", "a folder that holds a system.toml")


def test_a_pdb_alone(folder):
    refused(folder / "C5.pdb", "C5.pdb", "molsamp systems --template")


def test_broken_toml(folder):
    edit(folder / "system.toml", r"^title = ", "title : ")
    refused(folder, "system.toml", "is not a TOML file", "line 1")


@pytest.mark.parametrize(
    ("pattern", "replacement", "parts"),
    [
        ("temperature", "temperatur", ["'settings.temperatur' is unknown", "did you mean 'settings.temperature'?"]),
        (r"^torsion", "dihedral", ["'cvs.phi.dihedral' is unknown", "torsion"]),
        (r"^radius", "radus", ["'states.C5.radus' is unknown", "did you mean 'states.C5.radius'?"]),
        (r"^log_p_hit", "constraints = 'HBonds'\nlog_p_hit", ["'settings.constraints' is unknown", "Allowed:"]),
        (r"^steps = .*", "", ["'settings.steps' is missing"]),
        (r'"1 fs"', '"-1 fs"', ["settings.timestep", "-1 fs", "greater than 0"]),
        (r'"1 fs"', "0", ["settings.timestep", "greater than 0"]),
        (r'"1 fs"', '"1 K"', ["settings.timestep", "1 K", "fs, ps"]),
        (r'"300 K"', '"-300 K"', ["settings.temperature", "greater than 0"]),
        (r'"300 K"', "0", ["settings.temperature", "greater than 0"]),
        (r'"300 K"', "nan", ["settings.temperature", "nan"]),
        (r'"1 /ps"', "-1", ["settings.friction", "greater than 0"]),
        (r"^steps = .*", "steps = -5", ["settings.steps", "-5", "greater than 0"]),
        (r"^steps = .*", "steps = 10.5", ["settings.steps", "10.5"]),
        (r"radius = 0.75", "radius = 0", ["states.C5.radius", "greater than 0"]),
        (r'^end = "C7ax"', 'end = "c7ax"', ["settings.end", "'c7ax'", "did you mean 'C7ax'?", "C5, C7ax, C7eq"]),
        (r'^end = "C7ax"', 'end = "C5"', ["settings.end", "also the start"]),
        (r'cv = "phi"', 'cv = "fi"', ["settings.channel.cv", "'fi'", "phi, psi"]),
        (r'"underdamped"', '"overdamped"', ["overdamped", "takes no friction"]),
        (r"^friction.*", "", ["underdamped", "needs friction"]),
        (r"^temperature.*", "temperature = 300\nkT = 2.5", ["temperature and kT", "exactly one"]),
        (r"^force_field.*", "", ["energy", "exactly one", "force_field, system, potential"]),
        (r"amber99sbildn.xml", "amber98.xml", ["energy.force_field", "amber98.xml"]),
        (r"\[4, 6, 8, 14\]", "[4, 6, 8, 22]", ["cvs.phi.torsion", "atom 22", "0-based", "0 to 21"]),
        (r"\[4, 6, 8, 14\]", "[4, 6, 8, -1]", ["cvs.phi.torsion", "-1", "greater than or equal to 0"]),
        (r"\[4, 6, 8, 14\]", "[4, 6, 8, 8]", ["cvs.phi", "distinct"]),
        (r"\[4, 6, 8, 14\]", "[4, 6, 8]", ["cvs.phi.torsion"]),
        (r"^torsion = \[4.*", "distance = [4, 6]", ["CVs in nm and rad", "metric = 'rmsd'"]),
        (r"^torsion = \[4.*", "coordinate = 0", ["cvs.phi", "a molecule has no CV of kind 'coordinate'"]),
        (r'^file = "C5.pdb"', "x = [0.0, 0.0]", ["states.C5", "a molecule needs 'file'"]),
        (r'^file = "C5.pdb"', 'file = "C5.pdb"\nmetric = "rmsd"', ["one metric"]),
        (r'^file = "C5.pdb"', 'file = "C5.pdb"\nmetric = "euclid"', ["states.C5.metric", "'cvs' or 'rmsd'"]),
        (r'^file = "C5.pdb"', 'file = "C6.pdb"', ["C6.pdb", "cannot be read", "No such file"]),
    ],
)
def test_bad_values_in_toml(folder, pattern, replacement, parts):
    edit(folder / "system.toml", pattern, replacement)
    refused(folder, str(folder), *parts)


def test_a_toy_needs_its_coordinates(folder):
    shutil.copy(bundled() / "double-well" / "system.toml", folder)
    edit(folder / "system.toml", r"(?s)\[cvs.x\].*?(?=\[settings)", "")
    edit(folder / "system.toml", r"^channel.*", "")
    refused(folder, "'cvs' is missing", "coordinates")


@pytest.mark.parametrize(
    ("pattern", "replacement", "parts"),
    [
        (r"^weights = .*", "weights = [1.0]", ["energy.mixture", "1 weights, 8 centres and 8 widths"]),
        (r"^weights = \[1.0", "weights = [0.0", ["energy.mixture.weights", "greater than 0"]),
        (r"^    \[2.0, 0.0\]", "    [2.0, 0.0, 1.0]", ["centres[0]", "3 coordinates", "at most 2"]),
        (r"^x = \[2.0, 0.0\]", "x = [2.0, 0.0, 1.0]", ["states.g1.x", "3 coordinates", "at most 2"]),
        (r"^coordinate = 1", "coordinate = 2", ["cvs.y.coordinate", "got 2", "0 to 1"]),
        (r"gaussian-mixture", "mueller-brown", ["mixture", "belong together"]),
        (r"^sigma = 0.05", "sigma = 0.05\nhydrogen_mass = 4", ["overdamped", "takes no hydrogen_mass"]),
    ],
)
def test_bad_values_of_a_mixture(folder, pattern, replacement, parts):
    shutil.copy(bundled() / "gaussians-2d" / "system.toml", folder)
    edit(folder / "system.toml", pattern, replacement)
    refused(folder, str(folder), *parts)


# --- structures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1.2.3", ""])
def test_coordinate_that_is_no_finite_number(folder, value):
    move(folder / "C7ax.pdb", "CA", "ALA", y=value)
    refused(folder, "C7ax.pdb, line 9:", "atom CA of ALA 2", f"y is {value!r}", "finite")


def test_no_pdb_at_all(folder):
    (folder / "C5.pdb").write_text("dear reader,\nthis is a letter.\n")
    refused(folder, "C5.pdb", "is no PDB file")


def test_binary_file(folder):
    (folder / "C5.pdb").write_bytes(bytes(range(256)))
    refused(folder, "C5.pdb", "is no PDB file")


def test_empty_and_unreadable_files(folder):
    (folder / "C5.pdb").write_text("")
    refused(folder, "C5.pdb", "is no PDB file")
    (folder / "C5.pdb").unlink()
    (folder / "C5.pdb").mkdir()
    refused(folder, "C5.pdb", "cannot be read")


def test_torn_line(folder):
    file = folder / "C5.pdb"
    lines = file.read_text().splitlines()
    lines[4] = lines[4][:40]
    file.write_text("\n".join(lines))
    refused(folder, "C5.pdb, line 5:", "atom C of ACE 1", "finite")


def test_alternate_locations(folder):
    file = folder / "C5.pdb"
    edit(file, r"^(ATOM      9  CA ) (.*)$", r"\1A\2\n\1B\2")
    refused(folder, "C5.pdb", "23 atom lines but 22", "alternate locations")


def test_overlapping_atoms(folder):
    file = folder / "C5.pdb"
    line = next(t for t in file.read_text().splitlines() if t[12:20] == " HB1 ALA")
    x, y, z = (float(line[30 + 8 * k : 38 + 8 * k]) for k in range(3))
    move(file, "HB2", "ALA", x=x + 0.3, y=y, z=z)
    refused(folder, "C5.pdb", "HB1 of ALA 2 (line 12)", "HB2 of ALA 2 (line 13)", "0.0300 nm", "0.05 nm or more")


def test_missing_hydrogen(folder):
    edit(folder / "C5.pdb", r"^ATOM.* HA  ALA.*\n", "")
    edit(folder / "C7ax.pdb", r"^ATOM.* HA  ALA.*\n", "")
    edit(folder / "C7eq.pdb", r"^ATOM.* HA  ALA.*\n", "")
    refused(folder, "C5.pdb", "residue ALA 2 (lines 7 to 15)", "missing HA", "addHydrogens")


def test_missing_atoms_of_a_cap(folder):
    for name in ("C5", "C7ax", "C7eq"):
        edit(folder / f"{name}.pdb", r"^HETATM.* (CH3|H2 ) ACE.*\n", "", count=2)
    refused(folder, "C5.pdb", "residue ACE 1 (lines 1 to 4)", "missing CH3, H2")


def test_unexpected_atom(folder):
    for name in ("C5", "C7ax", "C7eq"):
        edit(
            folder / f"{name}.pdb",
            r"^(ATOM .* )HB3 ALA(.*)",
            r"\1HB3 ALA\2\n\1HB4 ALA A   2       9.000   9.000   9.000",
        )
    refused(folder, "C5.pdb", "residue ALA 2", "unexpected HB4")


def test_shifted_atom(folder):
    move(folder / "C7ax.pdb", "O", "ALA", x=9.0)
    refused(folder, "C7ax.pdb", "the bond between", "atom O of ALA 2 (line 16)", "allowed is 0.0614 to 0.1843 nm")


def test_other_topology(folder):
    edit(folder / "C7ax.pdb", r"^ATOM.* HA  ALA.*\n", "")
    refused(folder, "C7ax.pdb", "C5.pdb", "atom CB of ALA 2 (line 10)", "atom HA of ALA 2 (line 10)", "same order")


def test_fewer_atoms_at_the_end(folder):
    edit(folder / "C7ax.pdb", r"^HETATM.* H3  NME.*\n", "")
    refused(folder, "C7ax.pdb", "21 atoms", "has 22", "atom H3 of NME 3 (line 22)")


def test_mirror_image_is_d(folder):
    file = folder / "C7ax.pdb"
    lines = file.read_text().splitlines()
    mirrored = [t[:30] + f"{-float(t[30:38]):8.3f}" + t[38:] if t.startswith(("ATOM", "HETATM")) else t for t in lines]
    file.write_text("\n".join(mirrored))
    refused(folder, "C7ax.pdb", "atom CA of ALA 2 (line 9) is D", "L-amino acids")


# --- states ---------------------------------------------------------------------------------------------------------


def test_same_structure_twice(folder):
    shutil.copy(folder / "C5.pdb", folder / "C7ax.pdb")
    refused(folder, "system.toml", "states overlap", "the centre of 'C5' lies inside 'C7ax'", "radii 0.75 and 0.75")


def test_discs_that_meet(folder):
    edit(folder / "system.toml", r"radius = 0.75", "radius = 1.5", count=0)
    refused(folder, "system.toml", "the discs of 'C5' and 'C7eq' meet", "allowed are discs that do not meet")


def test_structure_that_relaxes_out_of_its_disc(folder):
    edit(folder / "system.toml", r"amber99sbildn.xml", "amber96.xml")
    edit(folder / "system.toml", r"radius = 0.75", "radius = 0.01", count=0)
    refused(folder, "C5.pdb", "relaxing it leaves state 'C5'", "its radius 0.01")


# --- serialised systems ---------------------------------------------------------------------------------------------


def serialised(folder, change):
    """Replace the force field by a changed, serialised System."""
    import openmm

    source = load("alanine-dipeptide").forcefield_system()
    change(source)
    (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(source))
    edit(folder / "system.toml", r"force_field = .*", 'system = "system.xml"')


def test_constraints_are_refused(folder):
    serialised(folder, lambda source: source.addConstraint(1, 4, 0.15))
    refused(folder, "system.xml", "1 constraints", "atoms 1 and 4", "path density is undefined")


def test_cmmotionremover_is_refused(folder):
    import openmm

    serialised(folder, lambda source: source.addForce(openmm.CMMotionRemover()))
    refused(folder, "system.xml", "CMMotionRemover", "removeCMMotion=False")


def test_thermostat_inside_the_system_is_refused(folder):
    import openmm

    serialised(folder, lambda source: source.addForce(openmm.AndersenThermostat(300, 1)))
    refused(folder, "system.xml", "AndersenThermostat")


def test_massless_particle_is_refused(folder):
    serialised(folder, lambda source: source.setParticleMass(3, 0))
    refused(folder, "system.xml", "atom 3 (0-based) has no mass")


def test_system_of_other_size_is_refused(folder):
    serialised(folder, lambda source: source.addParticle(1.0))
    refused(folder, "system.xml", "no openmm.System of 22 atoms")


def test_system_that_is_none(folder):
    edit(folder / "system.toml", r"force_field = .*", 'system = "system.xml"')
    refused(folder, "system.xml", "cannot be read")
    (folder / "system.xml").write_text("<nothing/>")
    refused(folder, "system.xml", "is no serialised openmm.System")
