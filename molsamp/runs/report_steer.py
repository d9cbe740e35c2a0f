"""What the report of `molsamp steer` shows."""

from __future__ import annotations

import tomllib
from html import escape
from typing import Any

from molsamp.runs import figures_steer as figures
from molsamp.runs.page import Page, grouped, panel, player
from molsamp.runs.reading import Finished
from molsamp.runs.summary import interval, value

LAW = """<p>All walkers start in the minimum of {start}{velocities} and run for {length}. Let p be the law in which
such walkers end when nothing is asked of them. What comes out here is the law p(x) exp(r(x)) / Z with the reward
r = {reward}{strength}, in the limit of many walkers; averages over {m} walkers a replica differ from it by an error
that falls like the inverse root of their number. p is the Boltzmann law only where walkers forget their start within
{length}; then dF = −kT log Z is the free energy that the reward, taken as an energy −kT r, would cost.</p>
<p>No force pulls. At every boundary walkers are weighed by what their reward has become, and where few carry the weight
they are drawn anew in proportion to it; the weights make up for that. The replicas share nothing, and the intervals
come from their scatter. The free walkers have the same starts and the same noise: their averages are those before
tilting, and their log Z, effective walkers and dF are what weighing them at the end alone would give; where the reward
is rare among them that log Z is too low, and their effective number cannot tell.</p>"""

LEARNT = """<p>All samples are drawn by the networks of <code>{sampler}</code>, in {length} steps from its {start}
source. Every draw has a weight for how likely the networks are to have made it, so that p, the law of the free samples
with these weights, is the Boltzmann law exp(−E / kT) and not what the networks take for it, as far as they reach all of
it: what they never draw no weight can tell. What comes out here is the law p(x) exp(r(x)) / Z with the reward
r = {reward}{strength}, in the limit of many samples; averages over {m} samples a replica differ from it by an error
that falls like the inverse root of their number. dF = −kT log Z is the free energy that the reward, taken as an energy
−kT r, would cost.</p>
<p>No force pulls. After every step samples are weighed by the reward that their likely ends promise, and where few
carry the weight they are drawn anew in proportion to it; the weights make up for that. The replicas share nothing, and
the intervals come from their scatter. The free samples have the same starts and the same noise: their averages are
those of p, and their log Z, effective samples and dF are what weighing them at the end alone would give.</p>"""


def page(run: Finished) -> Page:
    """The tilted law in numbers, the weights, the genealogy, the quantities before and after."""
    r, results, states = run.result, run.result["results"], run.states
    settings = tomllib.loads(run.settings)
    reward = " + ".join(f"<code>{escape(text)}</code>" for text in settings["reward"])
    strength, reduced = settings["strength"], bool(states.get("reduced"))
    learnt = states.get("clock") is not None
    words = (LEARNT if learnt else LAW).format(
        sampler=escape(str(settings.get("sampler"))),
        start=escape(str(states["from"])),
        velocities="" if reduced else ", with thermal velocities,",
        length=f"{states['length']:g}" + ("" if reduced or learnt else " ps"),
        reward=f"({reward})" if strength != 1.0 and len(settings["reward"]) > 1 else reward,
        strength="" if strength == 1.0 else f" times {strength:g}",
        m=states["particles"],
    )
    who = "samples" if learnt else "walkers"
    first = states["quantities"][0]["name"]
    return Page(
        eyebrow="steering",
        heading=f"{states.get('title') or r['system']}: {', '.join(settings['reward'])}",
        lead=f"{r['method']}, seed {r['seed']}; {states['replicas']} replicas of {states['particles']} {who}; "
        f"{grouped(r['energy_evaluations'])} energy evaluations, "
        + (f"{grouped(r['network_calls'])} network calls, " if learnt else "")
        + f"{grouped(round(r['cpu_seconds']))} CPU seconds.",
        tiles={
            f"mean:{first}": _band(f"mean:{first}", results),
            "log_z": f"{_band('log_z', results)}; dF {value('dF', results['dF:free->tilted'])}",
            "ess": f"of {grouped(results['ess']['n'])} {who}",
        },
        question="What distribution comes out",
        words=words,
        left=[
            panel(
                "Before and after",
                figures.distribution(run),
                "Densities at the end. Orange: where the reward wants it, one width to each side.",
                f"no {who}",
            ),
            panel(
                f"Effective {who}",
                figures.effective(run),
                "At every boundary, before resampling. Band: the least and the most of the replicas.",
                "no boundary",
            ),
        ],
        right=[
            panel(
                "Along the lines of descent",
                figures.trajectories(run),
                "The replica of the greatest weight. Lines that lead to the end, and those that died out.",
                "no boundary",
            ),
            panel("Genealogy", figures.genealogy(run), "The same replica: who descends from whom.", "no boundary"),
            player(run),
        ],
    )


def _band(name: str, results: dict[str, Any]) -> str:
    return f"95 %: {interval(name, results[name])}"
