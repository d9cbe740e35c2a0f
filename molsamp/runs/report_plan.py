"""What the report of `molsamp plan` shows."""

from __future__ import annotations

from html import escape
from typing import Any

from molsamp.runs import figures_plan as figures
from molsamp.runs.page import Page, grouped, panel, table
from molsamp.runs.reading import Finished
from molsamp.runs.summary import numbers, tabulated

FOUND = ("path_length_ratio", "duration", "first_plan", "edges", "nodes")
MISSED = ("nearest", "coverage", "planning", "edges", "nodes")
NAMES = {"rrt": "RRT", "sst": "SST", "ditree": "DiTree", "policy": "the policy alone"}
VEHICLES = {
    "car": "the 1:43 race car of DiTree, C₂ = 15.5 /m",
    "hard-car": "the 1:43 race car of DiTree with wide turns, C₂ = 4 /m",
    "unicycle": "a unicycle with bounded accelerations",
    "trailer": "a car that pulls a trailer",
}
TREE = (
    "There is no formula that steers this vehicle from one state to another, so the tree is grown by driving: a point "
    "x<sub>rand</sub> is drawn among the cells that can be reached, the node x<sub>near</sub> next to it is chosen, "
    "controls u are applied from there, and the motion joins the tree unless it touches a wall. "
)
FIRST = " The first branch that ends in the goal’s disc is the plan."
CHEAPEST = " After the first plan the tree goes on, up to its limits, wherever a cheaper one may still come of it."
PLANNERS = {
    "rrt": TREE + "RRT (LaValle and Kuffner, 2001) draws one uniform control and holds it for a random time. Nodes at "
    "the rim have the largest Voronoi cells and so are chosen most often; if there is a plan with room to spare, the "
    "probability of missing it falls to zero exponentially in the number of edges. Nothing here makes a plan short.",
    "sst": TREE
    + "SST (Li, Littlefield and Bekris, 2016) draws its controls as RRT does, but grows from the cheapest node "
    "within δ<sub>near</sub> of x<sub>rand</sub>, and keeps only the cheapest node within δ<sub>s</sub> of each "
    "witness. So the tree stays sparse, and with the number of edges its plans come near the cheapest.",
    "ditree": TREE + "DiTree (Hassidof, Jurgenson and Solovey, 2025) asks a learned policy for the controls: "
    "u = u<sub>1:H</sub> is drawn from p<sub>θ</sub>(u | x<sub>near</sub>, target, walls nearby) by flow matching, "
    "da/ds = v<sub>θ</sub>(a, s, o) from noise, its first steps are driven, and it is asked again. A share ε of the "
    "edges has a uniform control as in RRT, so that RRT’s guarantee holds with εk in place of k edges.",
    "policy": "The policy of DiTree alone, as a receding horizon: u<sub>1:H</sub> is drawn from "
    "p<sub>θ</sub>(u | x, goal, walls nearby), its first steps are driven, and it is asked again. Every lane drives on "
    "from its own last edge, and begins at the start again where that touched a wall, or after many. "
    "There is no search: a dead end that faces the goal catches every lane.",
}
"""What each planner does; a planner of another name has `TREE`."""
HONEST = (
    " One tree is one draw: another seed needs another time, so no number here has an interval. The grid distance is "
    "the shortest way through the sides of free cells. CPU seconds are the planner’s own, on this machine."
)
KEPT = "kept as nodes"
FATES = {
    "hit": "touched a wall",
    "pruned": "ended near a cheaper node",
    "costly": "no cheaper than the best plan",
    "diverged": "diverged",
}


def page(run: Finished) -> Page:
    """The plan or why there is none, the tree and its animation, how it grew and what became of its edges."""
    r, s = run.result, run.states
    found, solved = numbers(r), bool(r["results"]["success"]["value"])
    headings, rows = tabulated(r)
    return Page(
        eyebrow="planning",
        heading=f"{s['title']}: " + ("a way to the goal" if solved else "no way found"),
        lead=_lead(run),
        tiles={name: _beside(name, run) for name in (FOUND if solved else MISSED) if name in found},
        question="How the way was found" if solved else "What was tried",
        words=PLANNERS.get(r["method"], TREE) + (CHEAPEST if s["planner"]["improve"] else FIRST) + HONEST,
        left=[
            panel(
                "Tree and plan" if solved else "Tree", figures.world(run), _caption(run, solved), "tree.npz is missing"
            ),
            panel(
                "Growth",
                figures.progress(run),
                "Over all edges tried, whether kept or not; the dotted line is the radius of the goal.",
                "the tree took less than two batches",
            ),
        ],
        right=[
            _player(run, solved),
            panel("Edges", _edges(r["counts"], s["planner"]["keep_prefix"]), _stuck(r["counts"]), ""),
        ],
        table=table(headings, [[escape(cell) for cell in row] for row in rows]),
        data=figures.animation(run),
    )


def _lead(run: Finished) -> str:
    r, s = run.result, run.states
    limits = [f"{s['time_limit']:g} CPU seconds"]
    limits += [f"{grouped(s['steps'])} dynamics steps"] if s["steps"] is not None else []
    vehicle = VEHICLES.get(r["vehicle"], r["vehicle"])
    name = NAMES.get(r["method"], r["method"])
    return f"Planner: {name}, seed {r['seed']}; {vehicle}; limits {' and '.join(limits)}."


def _beside(name: str, run: Finished) -> str:
    found, counts = numbers(run.result), run.result["counts"]
    if name == "path_length_ratio":
        return f"{found['path_length']['value']:.1f} m over {found['grid_distance']['value']:.1f} m"
    if name == "duration":
        return f"{found['path_length']['value'] / found['duration']['value']:.2f} m/s on average"
    if name == "first_plan":
        return f"{found['planning']['value']:.2f} s in all"
    if name == "edges":
        return f"{grouped(counts['steps'])} dynamics steps" + (
            f", {grouped(counts['calls'])} calls of the policy" if counts["calls"] else ""
        )
    if name == "nodes":
        return f"in {100 * found['coverage']['value']:.0f} % of the cells that can be reached"
    if name == "nearest":
        return f"its disc has a radius of {run.states['radius']:g} m"
    return "of those that can be reached" if name == "coverage" else "the planner’s own"


def _caption(run: Finished, solved: bool) -> str:
    tree = "The tree, pale where it grew first; the disc is the goal"
    if not solved:
        return f"{tree}."
    audit = run.result["audit"]
    passed = "; simulated again in steps ten times finer, by other code, the plan "
    passed += (
        f"touches no wall and stays within {max(1e3 * audit['deviation'], 0.01):.1g} mm"
        if audit["passed"]
        else "<strong>does not hold</strong>"
    )
    return f"{tree}; outlines of the vehicle at even times{passed}."


def _player(run: Finished, solved: bool) -> str:
    if run.tree is None:
        return panel("Animation", None, "", "tree.npz is missing")
    width, height = figures.size(run.states)
    then = "then the vehicle drives the plan, colour by speed" if solved else "no branch reaches the goal"
    return f"""<figure class="panel"><h2>Animation</h2>
<canvas id="drive" class="drive" style="aspect-ratio: {width:g} / {height:g}" role="img"
aria-label="The tree grows"></canvas>
<div class="controls"><button type="button" id="play" aria-pressed="false">Play</button>
<input type="range" id="frame" min="0" max="1" value="0" aria-label="Time">
<output id="counter"></output></div>
<figcaption>The tree grows in the order of its nodes; {then}.</figcaption></figure>"""


def _edges(counts: dict[str, Any], prefixes: bool) -> str:
    """What became of the edges, as a table."""
    tried = counts["edges"]
    lost = counts["stuck"] if prefixes else counts["hit"]  # of kept prefixes the rest has touched a wall, and stands
    fates = {name: counts[name] for name in FATES if name != "hit"} | {"hit": lost}
    kept = tried - sum(fates.values())
    rows = [("tried", tried), (KEPT, kept), *((words, fates[name]) for name, words in FATES.items() if fates[name])]
    return table(
        ["", "edges", "share"],
        [[escape(words), grouped(n), f"{100 * n / tried:.1f} %" if tried else "–"] for words, n in rows],
    )


def _stuck(counts: dict[str, Any]) -> str:
    if not counts["stuck"]:
        return "What became of every edge that was tried."
    return (
        f"Of those that touched a wall, {grouped(counts['stuck'])} did so at their first step: from the nodes they "
        "began at hardly any way leads out."
    )
