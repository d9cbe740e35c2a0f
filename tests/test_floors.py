"""The house rules that a reader of one file cannot see: who may import whom, and where randomness comes from."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "molsamp"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOOR = {"engine": 0, "schema": 0, "learn": 1, "molecular": 2, "planning": 2, "image": 2, "runs": 3, "__init__": 4}
ONLY_IN = {"openmm": "molecular", "mdtraj": "molecular", "typer": "runs", "rich": "runs", "ray": "runs"}
SLOW = {"e3nn", "torch_geometric", "deeptime", "pymbar", "numba", "ray"}
# Files made of numba kernels import it as they load; so they are themselves imported inside functions only.
KERNELS = {
    f"molecular/native/{name}.py" for name in ("alignment", "compiling", "lanes", "stepping", "tangents", "vector")
} | {"engine/compiling.py", "engine/kd.py", "planning/kernels.py"}
ENGINE_MAY = {"torch", "numpy", "jaxtyping", "numba", "llvmlite", "molsamp"} | set(sys.stdlib_module_names)
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "random"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "numpy.random", "torch.Generator", "torch.manual_seed"}
DRAWS = ["rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"]
FORBIDDEN_CALLS |= {f"torch.{draw}" for draw in DRAWS} | {f"torch.{d}_like" for d in ("rand", "randn", "randint")}
DRAWING_METHODS = {"normal_", "uniform_", "random_", "exponential_", "bernoulli_", "cauchy_", "log_normal_"}
# Where a global generator is inevitable: libraries that initialise weights from it. Seeded there from `Noise`, and
# put back afterwards.
MAY_SEED = {"learn/networks.py": {"torch.manual_seed"}}


def room(file: Path) -> str:
    """The room of a file: engine, learn, ..., or the name of a module that stands in the hall."""
    relative = file.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(tree: ast.AST) -> list[str]:
    """Dotted names of everything imported anywhere in a tree."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def top_level(tree: ast.Module) -> ast.Module:
    """A module without its functions and its TYPE_CHECKING blocks: what importing it runs."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        def visit_If(self, node):
            return None if "TYPE_CHECKING" in ast.dump(node.test) else self.generic_visit(node)

    return Prune().visit(tree)


def dotted(node: ast.AST) -> str:
    """`a.b.c` for an attribute chain or a name, with np spelled out; otherwise an empty string."""
    if isinstance(node, ast.Name):
        return "numpy" if node.id == "np" else node.id
    if isinstance(node, ast.Attribute) and (head := dotted(node.value)):
        return f"{head}.{node.attr}"
    return ""


def breaches(source: str, name: str = "engine/x.py") -> list[str]:
    """Forbidden modules, calls and draws in a source file."""
    tree = ast.parse(source)
    found = [m for m in imports(tree) if m.split(".")[0] in FORBIDDEN_MODULES or m.startswith("numpy.random")]
    for node in ast.walk(tree):
        reference = dotted(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        if reference in FORBIDDEN_CALLS - MAY_SEED.get(name, set()):
            found.append(reference)
        if isinstance(node, ast.Attribute) and node.attr in DRAWING_METHODS:
            found.append(node.attr)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_downward_and_stay_in_their_room(file):
    here, tree = room(file), ast.parse(file.read_text())
    for name in imports(tree):
        top, *rest = name.split(".")
        if top == "molsamp":
            there = rest[0] if rest and rest[0] in FLOOR else "__init__"
            assert here == there or FLOOR[there] < FLOOR[here], f"{here} may not import {name}"
        if top in ONLY_IN:
            assert here == ONLY_IN[top], f"{top} belongs to {ONLY_IN[top]}, not to {here}"
        if here == "engine":
            assert top in ENGINE_MAY, f"the engine may not import {top}"
    if str(file.relative_to(PACKAGE)) not in KERNELS:
        eager = {name.split(".")[0] for name in imports(top_level(tree))}
        eager |= {f"{'/'.join(name.split('.')[1:4])}.py" for name in imports(top_level(tree))}
        assert not eager & (SLOW | KERNELS), f"import {eager & (SLOW | KERNELS)} inside the function that needs it"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_no_pickle_no_eval_and_no_randomness_but_noise(file):
    assert breaches(file.read_text(), str(file.relative_to(PACKAGE))) == []


BREACHES = """import pickle
from random import gauss
import numpy.random
np.random.rand(3)
torch.randn(3)
torch.manual_seed(0)
torch.load('a')
eval('1')
x.normal_()"""


@pytest.mark.parametrize("source", BREACHES.splitlines())
def test_the_rule_sees_each_breach(source):
    assert breaches(source)


def test_the_floors_cover_every_room():
    assert {room(file) for file in FILES} <= set(FLOOR)


def loaded_by(statement: str) -> set[str]:
    """Top-level modules present after a statement in a fresh interpreter."""
    code = f"import sys; {statement}; print(*{{m.split('.')[0] for m in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_molsamp_is_light():
    heavy = {"openmm", "mdtraj", "typer", "rich", "matplotlib", "scipy", "pydantic"} | SLOW
    assert not loaded_by("import molsamp") & heavy
    assert not loaded_by("import molsamp.engine") & heavy


def test_the_command_line_answers_without_torch():
    assert not loaded_by("import molsamp.runs.cli") & ({"torch", "openmm", "mdtraj", "matplotlib"} | SLOW)


def test_every_public_name_is_where_it_is_said_to_be():
    import molsamp as ms

    for room in (ms, ms.molecular):
        assert all(hasattr(room, name) for name in room.__all__)
