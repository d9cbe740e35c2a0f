"""The command line. Exit codes: 0 done, 1 failed loudly, 2 bad input, 130 or 143 interrupted after a checkpoint.

Nothing slow is imported before a command runs, so that `molsamp --help` is immediate.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Transition paths, free energies, rates and steered walkers of molecules and toys, with error bars; pictures "
    "of diffusion models; ways of vehicles through mazes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
UsageError: type[Any] = typer.BadParameter.__mro__[1]  # typer shows no other public name for it
Context: type[Any] = typer.Context.__mro__[1]  # what typer hands over is none of its own subclass


@app.callback()
def _verbs() -> None:
    """Keep `molsamp VERB` as the form of every command."""


SystemName = Annotated[str | None, typer.Argument(help="Bundled name, folder, or a system.toml.")]
Preset = Annotated[str | None, typer.Option(help="demo | full (default: demo).")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same bytes (default: 0).")]
Out = Annotated[Path | None, typer.Option(help="Run folder (default: runs/SYSTEM-VERB-TIME).")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings from a TOML file.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]
Threads = Annotated[int | None, typer.Option("--workers", help="Threads (default: 1).")]
Device = Annotated[str | None, typer.Option(help="cpu; for OpenMM forces on a GPU use --set energy=openmm:CUDA.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="digits | mnist | ideal:digits | ideal:mnist | a .safetensors file | a folder of diffusers "
        "(default: digits).",
        metavar="NAME",
    ),
]
Grid = Annotated[str | None, typer.Option(help="Times: uniform | quadratic | log-snr | karras (default: the model's).")]
Guidance = Annotated[
    float | None, typer.Option(help="Classifier-free guidance: 0 unconditional, 1 conditional, above 1 stronger.")
]
Class = Annotated[int | None, typer.Option("--class", help="Class of every picture (default: none, or all in turn).")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no table.")]


@app.command()
def paths(
    system: SystemName = None,
    method: Annotated[
        str | None, typer.Option(help="tps-dps | twisted | chain | shooting | vibid | steered | md (default: tps-dps).")
    ] = None,
    preset: Preset = None,
    seed: Seed = None,
    out: Out = None,
    sets: Sets = None,
    config: ConfigFile = None,
    resume: Resume = False,
    threads: Threads = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Draw transition paths between two states, with error bars and a report."""
    from molsamp.runs.verbs import PATHS

    options = dict(system=system, method=method, preset=preset, seed=seed, threads=threads, device=device)
    _work(PATHS, options, sets, out, config, resume, quiet)


@app.command("free-energy")
def free_energy(
    system: SystemName = None,
    method: Annotated[
        str | None,
        typer.Option(help="metadynamics | opes | md | umbrella | as | asbs | wt-asbs (default: metadynamics)."),
    ] = None,
    cvs: Annotated[str | None, typer.Option(metavar="NAME[,NAME]", help="CVs (default: the first two).")] = None,
    preset: Preset = None,
    seed: Seed = None,
    out: Out = None,
    sets: Sets = None,
    config: ConfigFile = None,
    resume: Resume = False,
    threads: Threads = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Free energy along one or two collective variables, with error bars and a report."""
    from molsamp.runs.verbs import FREE_ENERGY

    options = dict(system=system, method=method, preset=preset, seed=seed, threads=threads, device=device)
    _work(FREE_ENERGY, {**options, "cvs": _words(cvs)}, sets, out, config, resume, quiet)


@app.command()
def rates(
    system: SystemName = None,
    method: Annotated[str | None, typer.Option(help="we | ffs | md (default: we).")] = None,
    preset: Preset = None,
    seed: Seed = None,
    out: Out = None,
    sets: Sets = None,
    config: ConfigFile = None,
    resume: Resume = False,
    threads: Threads = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Rate constants, mean first-passage time and committor between two states, with error bars and a report."""
    from molsamp.runs.verbs import RATES

    options = dict(system=system, method=method, preset=preset, seed=seed, threads=threads, device=device)
    _work(RATES, options, sets, out, config, resume, quiet)


@app.command()
def steer(
    system: SystemName = None,
    method: Annotated[
        str | None, typer.Option(help="fk: walkers | diffusion: draws of a trained sampler (default: by --from).")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="QUANTITY=VALUE+-WIDTH",
            help="Hold a quantity near a value, or raise it with QUANTITY*SLOPE; several add up. QUANTITY: a CV, "
            "state:NAME, noe:I-J,K-L or pocket:I,J,K-L/M,N.",
        ),
    ] = None,
    strength: Annotated[float | None, typer.Option(help="Factor of all rewards (default: 1).")] = None,
    trained: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Finished run of as, asbs or wt-asbs whose sampler is steered."),
    ] = None,
    preset: Preset = None,
    seed: Seed = None,
    out: Out = None,
    sets: Sets = None,
    config: ConfigFile = None,
    resume: Resume = False,
    threads: Threads = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Steer walkers, or draws of a trained sampler, towards a reward by weighing and resampling them.

    What law comes out, log Z, and a report.
    """
    from molsamp.runs.verbs import STEER

    options = dict(system=system, method=method, preset=preset, seed=seed, threads=threads, device=device)
    _work(
        STEER,
        {**options, "reward": tuple(reward or ()) or None, "strength": strength, "sampler": trained and str(trained)},
        sets,
        out,
        config,
        resume,
        quiet,
    )


SOLVERS = (
    "ddim, ddpm, euler, heun, edm, kutta, rk4, dpm-1, dpm-2, dpm-3, dpm++2s, dpm++3s, dpm++2m, dpm++3m, dpm++3m-exact, "
    "sde-dpm++1, sde-dpm++2m, deis-t1, deis-t2, deis-t3, deis-rho1, deis-rho2, deis-rho3, deis-lam1, deis-lam2, ipndm, "
    "unipc, unipc-1, unipc-2, unipc-3, unipc-4, unipc-1-bh1, unipc-2-bh1, unipc-3-bh1, unipc-4-bh1, dc"
)
"""Names of `image.solvers.SOLVERS`, which would bring torch; a test holds the two together."""

image = typer.Typer(invoke_without_command=True, no_args_is_help=False, epilog=f"Solvers: {SOLVERS}.")
app.add_typer(image, name="image")


@image.callback()
def draw(
    context: Context,
    model: Model = None,
    solver: Annotated[
        str | None, typer.Option(metavar="NAME", help="One of the solvers below (default: unipc; steered: see README).")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Network calls a picture (default: 10; steered 40).")] = None,
    guidance: Guidance = None,
    label: Class = None,
    guide: Annotated[
        str | None,
        typer.Option(metavar="NAME:W[,..]", help="cfg:W | cfg++:W | apg:W | threshold:Q, from left to right."),
    ] = None,
    reward: Annotated[
        str | None, typer.Option(metavar="NAME", help="brightness | digit:K, by Feynman-Kac particles.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="Of the reward (default: brightness 20, digit 1).")] = None,
    operator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:NUMBER]",
            help="inpaint | blur[:WIDTH] | downsample[:FACTOR] | radon[:VIEWS] | mri[:COILS], solved by DDS "
            "(--set mode=published|bayes).",
        ),
    ] = None,
    measurement: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="What was measured (default: simulated).")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Pictures (default: 256; steered 64).")] = None,
    grid: Grid = None,
    preset: Preset = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: runs/MODEL-image-TIME).")] = None,
    sets: Sets = None,
    config: ConfigFile = None,
    resume: Resume = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Draw pictures from a diffusion model, with their error, a PNG and a report; or steer them.

    With --guide, --reward or --operator the report shows them before and after, lineage and weights, or solutions.

    `molsamp image bench` compares all solvers on a model; `molsamp image bench --help` has its options.
    """
    options = dict(model=model, solver=solver, steps=steps, guidance=guidance, label=label, n=n, grid=grid)
    options |= dict(preset=preset, seed=seed, threads=threads, guide=guide, reward=reward, strength=strength)
    options |= dict(operator=operator, measurement=None if measurement is None else str(measurement))
    if (after := context.invoked_subcommand) is not None:  # type: ignore[attr-defined]
        given = {**options, "out": out, "config": config, "set": sets, "resume": resume or None, "quiet": quiet or None}
        if names := ["class" if name == "label" else name for name, value in given.items() if value is not None]:
            raise ValueError(f"--{names[0]}: options of `molsamp image {after}` come after the word {after}")
        return
    from molsamp.runs.verbs import IMAGE

    _work(IMAGE, options, sets, out, config, resume, quiet)


@image.command()
def bench(
    model: Model = None,
    solvers: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME]", help="Solvers (default: all that draw no noise).")
    ] = None,
    calls: Annotated[str | None, typer.Option(metavar="N[,N]", help="Network calls (default: 5,6,8,10,15,20).")] = None,
    guidance: Guidance = None,
    label: Class = None,
    n: Annotated[int | None, typer.Option("--n", help="Pictures (default: 64).")] = None,
    grid: Grid = None,
    preset: Preset = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: runs/MODEL-image-bench-TIME).")] = None,
    sets: Sets = None,
    config: ConfigFile = None,
    resume: Resume = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Compare solvers on one model: how far they end from its own fine trajectories, for so many network calls."""
    from molsamp.runs.verbs import IMAGE_BENCH

    options = dict(model=model, solvers=_words(solvers), calls=_words(calls), guidance=guidance, label=label, n=n)
    options |= dict(grid=grid, preset=preset, seed=seed, threads=threads)
    _work(IMAGE_BENCH, options, sets, out, config, resume, quiet)


@app.command()
def plan(
    world: Annotated[
        str | None,
        typer.Argument(
            help="maze | boxes | corridor | u-maze | medium | large, or a file: `type octile` if its name ends in "
            ".map, else a drawing of # (wall) and . (free)."
        ),
    ] = None,
    planner: Annotated[
        str | None,
        typer.Option("--planner", "--method", help="ditree | rrt | sst | policy (default: ditree for cars, else sst)."),
    ] = None,
    vehicle: Annotated[str | None, typer.Option(help="car | hard-car | unicycle | trailer (default: car).")] = None,
    start: Annotated[
        str | None, typer.Option(metavar="ROW,COLUMN", help="Cell, row 0 the lowest (default: drawn from the seed).")
    ] = None,
    goal: Annotated[str | None, typer.Option(metavar="ROW,COLUMN", help="Cell (default: drawn from the seed).")] = None,
    time_limit: Annotated[
        str | None, typer.Option(metavar="TIME", help="CPU time of the planner, such as 20s (default: 20s).")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Limit of dynamics steps (default: 2000000).")] = None,
    preset: Annotated[str | None, typer.Option(help="demo | full: use up the limits for cheaper plans.")] = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: runs/WORLD-plan-TIME).")] = None,
    sets: Sets = None,
    config: ConfigFile = None,
    resume: Resume = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Plan a way for a vehicle through walls, with the tree that found it, an animation and a report.

    Where no way is found, the run is finished all the same (exit code 0), and result.json and the report say why.
    """
    from molsamp.runs.verbs import PLAN

    cells = dict(start=_cell("start", start), goal=_cell("goal", goal))
    options = dict(world=world, method=planner, vehicle=vehicle, time_limit=time_limit, steps=steps)
    options |= dict(preset=preset, seed=seed, threads=threads)
    _work(PLAN, {**options, **cells}, sets, out, config, resume, quiet)


def _cell(option: str, text: str | None) -> tuple[int, ...] | None:
    """Row and column of "3,4"; None where nothing was given."""
    parts = _words(text) or ()
    if text is not None and not (len(parts) == 2 and all(part.isdecimal() for part in parts)):
        raise ValueError(f"--{option}: got '{text}'; allowed is ROW,COLUMN, counted from 0, row 0 the lowest")
    return tuple(map(int, parts)) or None


def _words(text: str | None) -> tuple[str, ...] | None:
    """The parts of "a,b"; None where nothing was given."""
    return None if text is None else tuple(word.strip() for word in text.split(","))


def _work(verb: Any, options: dict[str, Any], sets: Any, out: Any, config: Any, resume: bool, quiet: bool) -> None:
    from molsamp.runs.work import Request, work

    folder = work(verb, Request(options, sets or [], out, config, resume, quiet))
    if not quiet:
        from molsamp.runs.summary import show

        show(folder)


@app.command()
def systems(
    template: Annotated[bool, typer.Option("--template", help="Print a system.toml for your own molecule.")] = False,
) -> None:
    """List the systems that come with molsamp."""
    from molsamp.molecular import system

    if template:
        print(system.template())
        return
    rows = system.systems()
    width = max(len(name) for name, _ in rows)
    for name, title in rows:
        print(f"{name:{width}}  {title}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]) -> None:
    """Write report.html anew from the files of a run folder."""
    from molsamp.runs.report import write_report

    print(write_report(folder))


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders of free-energy; the reference first.")
    ],
    below: Annotated[float, typer.Option(help="kJ/mol of the reference below which |dF| is averaged.")] = 25.0,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("compare.html"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No table.")] = False,
) -> None:
    """Compare free energies of runs with the first, or of one run with the reference of its system."""
    from molsamp.runs import compare

    compare.compare(runs, out, below, quiet)


@app.command()
def doctor() -> None:
    """Show versions, platforms, GPU and compilers, and run a short self-check."""
    from molsamp.runs.doctor import examine

    raise typer.Exit(0 if examine() else 1)


def main() -> None:
    """Run the command line; every error is one line on stderr."""
    warnings.showwarning = _warn
    try:
        code = app(standalone_mode=False) or 0
    except BaseException as error:
        code = _explain(error)
    _flush()
    raise SystemExit(code)


def _explain(error: BaseException) -> int:
    """Say in one line what went wrong, and return the exit code."""
    from molsamp.runs.stopped import Stopped

    if isinstance(error, SystemExit):
        return int(error.code or 0)
    if isinstance(error, Stopped):
        return _say(str(error), error.code)
    if isinstance(error, UsageError):
        return _say(error.format_message().replace("Value error, ", ""), 2)
    if isinstance(error, OSError) and error.strerror:
        return _say(f"{error.filename or 'writing'}: {error.strerror}", 2)
    if isinstance(error, (ValueError, OSError)):
        return _say(" ".join(str(error).split()), 2)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return _say("interrupted", 130)
    raise error


def _say(text: str, code: int) -> int:
    if text:
        print(f"molsamp: {text}", file=sys.stderr)
    return code


def _warn(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Show our own warnings in one line, and those of libraries not at all."""
    if category is UserWarning:
        print(f"molsamp: warning: {message}", file=sys.stderr)


def _flush() -> None:
    """Flush stdout; a reader that has gone away (`molsamp systems | head -1`) is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
