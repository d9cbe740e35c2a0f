"""`molsamp doctor`: what is installed, what the machine offers, and whether the physics comes out right here."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

from molsamp.runs.machine import machine, versions

SYSTEM = "alanine-dipeptide"


class Check(NamedTuple):
    """One self-check: what was compared, the number found, the number allowed."""

    what: str
    found: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the number is within what is allowed (NaN is not)."""
        return self.found <= self.allowed


def examine() -> bool:
    """Print versions, platforms, GPU, compilers and the self-checks; return whether all checks passed."""
    from rich.console import Console

    console = Console(highlight=False)
    for title, facts in (("versions", versions()), ("machine", {**machine(), **tools()})):
        console.print(f"[bold]{title}[/bold]")
        for name, fact in facts.items():
            console.print(f"  {name:16} {fact}", soft_wrap=True)
    console.print("[bold]self-check[/bold]")
    began, passed = time.monotonic(), True
    for check in (energies_agree, density_is_the_samplers):
        passed &= _report(check, console.print)
    console.print(f"  {'all is well' if passed else 'something is wrong'} ({time.monotonic() - began:.1f} s)")
    return passed


def tools() -> dict[str, str]:
    """Return the OpenMM platforms, the GPU and the compilers that are here."""
    import torch

    from molsamp.molecular.openmm_energy import platforms

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none that torch can use"
    found = {name: _release(name) for name in ("c++", "nvcc") if shutil.which(name)}
    return {
        "OpenMM platforms": ", ".join(platforms()),
        "native lanes": lanes(),
        "GPU": gpu,
        **(found or {"compilers": "none"}),
    }


def lanes() -> str:
    """Return the width, the threads and the kernel cache of the CPU tier."""
    from molsamp.molecular.native.compiling import cache_folder
    from molsamp.molecular.native.executor import WIDTH, threads_here

    width = ", ".join(f"{w} x {str(dtype).removeprefix('torch.')}" for dtype, w in WIDTH.items())
    return f"{width}; {threads_here()} threads; kernels in {cache_folder() or 'no folder: compiled at each start'}"


def energies_agree() -> list[Check]:
    """Compare the native tiers with OpenMM Reference on four shaken structures, relative to the largest force."""
    import torch

    from molsamp.engine.noise import Noise
    from molsamp.molecular.system import load

    system = load(SYSTEM)
    ids = torch.arange(4)
    x = system.states[system.settings.start].x + 0.005 * Noise(0).normal(0, ids, system.event, torch.float64)
    e_ref, f_ref = system.energy("openmm:Reference").energy_force(x)
    checks = []
    for tier in ("lanes", "torch"):
        e, f = system.energy(tier).energy_force(x)
        errors = (e - e_ref).abs().max() / e_ref.abs().max(), (f - f_ref).abs().max() / f_ref.abs().max()
        for what, error in zip(("energy", "force"), errors, strict=True):
            checks.append(Check(f"{tier} {what} against OpenMM, relative", float(error), 1e-9))
    return checks


def density_is_the_samplers() -> list[Check]:
    """Draw short paths and solve their steps for the noise: mean square 1, else sampler and density disagree."""
    import torch

    from molsamp.engine.noise import Noise
    from molsamp.engine.rollout import residuals, rollout
    from molsamp.molecular.paths.problem import Problem
    from molsamp.molecular.system import load

    problem = Problem.of(load(SYSTEM), steps=50, dtype=torch.float64)
    start = problem.initial(Noise(0), torch.arange(8))
    path = rollout(problem.dynamics, problem.integrator, start, problem.times, noise=Noise(1))
    z, mismatch = residuals(path, problem.dynamics, problem.integrator)
    error = (2 / z.numel()) ** 0.5  # of a mean square of standard normals
    return [
        Check("mean square residual minus 1, in standard errors", abs(float(z.square().mean()) - 1) / error, 5.0),
        Check("noiseless part of a step, mismatch", float(mismatch.max()), 1e-9),
    ]


def _report(check: Callable[[], list[Check]], say: Callable[[str], None]) -> bool:
    """Run one check and say what came out; a check that cannot run counts as failed."""
    try:
        found = check()
    except Exception as error:
        say(f"  [red]FAILED[/red]  {check.__name__}: {type(error).__name__}: {error}")
        return False
    for one in found:
        mark = "[green]ok[/green]    " if one.passed else "[red]FAILED[/red]"
        say(f"  {mark}  {one.what}: {one.found:.2g} (allowed {one.allowed:.2g})")
    return all(one.passed for one in found)


def _release(command: str) -> str:
    """Return the line in which a compiler states its version."""
    answer = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=10, check=False)
    return next((line for line in answer.stdout.splitlines() if re.search(r"\d\.\d", line)), "does not answer")
