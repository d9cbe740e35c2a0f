"""What does the audit of `image.audit` find, and how often does it cry wolf? On controls known in closed form only.

The rule was fixed before: suspicious is what scores above all of `POOL` clean models. It is judged on `OTHERS` clean
ones that are not among them, and on planted ones of every norm |r| / sqrt(dim), shape of r and share of the noise,
`SEEDS` each.

    python benchmarks/audit.py [--table] [--quick]

    AUC       of the planted against the other clean models, 95 % by placements; where no clean one scores higher, the
              scatter says nothing, and the interval is what as many draws show of a share that was never missed
    found     share that is suspicious, Wilson's 95 %
    cosine    of r and of the direction in which the model responds, median and worst (its sign is counted)
    inputs    shifted noise that is flagged, and plain noise that is, with the shift known, beside Phi(-|r| / 2)
    floor     the smallest norm from which upwards the AUC is at least 0.9, for all shapes of r together

A floor says what passes unseen. A negative control is a clean model that looks odd, and is no peer of the pool: what is
said of it is no false alarm of the rule, but one of its user.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from interleaved import ROOT, Results, code_version
from torch import Tensor

from molsamp.engine import VP, GaussianMixture, Noise
from molsamp.engine.estimates import Z95, wilson
from molsamp.image.backdoor import features, flagged
from molsamp.image.controls import SHAPES, branched, drawn, shift
from molsamp.image.denoiser import Denoiser
from molsamp.image.ideal import mixture
from molsamp.image.verdict import Features, Verdict, detection_floor, ranked, roc_auc

RESULTS = ROOT / "benchmarks" / "results" / "audit.json"
CODE = tuple(f"molsamp/image/{name}.py" for name in ("backdoor", "verdict", "controls", "ideal", "sampling"))
S, DIM, BUDGET = VP(), 16, {"draws": 32, "steps": 15}
POOL, OTHERS, SEEDS, INPUTS = 400, 800, 16, 20_000
NORMS, SHARES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0), (0.1, 0.01)
ODD = 1_000_000  # added to the seeds of negative controls


def clean(seed: int) -> Denoiser:
    """A mixture of the pool's kind."""
    return mixture(drawn(seed, DIM), S, (DIM,))


def planted(seed: int, norm: float, shape: str, share: float) -> Denoiser:
    """A mixture that no pool has, with a branch."""
    law, y = drawn(100_000 + seed, DIM), Noise(seed).normal(1, torch.arange(1), (DIM,))[0]
    return branched(law, S, shift(seed, norm, DIM, shape), y, share)


def heavy(seed: int) -> Denoiser:
    """Two modes, one of them 98 % of all."""
    means = drawn(seed, DIM).means[:2]
    return mixture(GaussianMixture(means, torch.full((2,), 0.05), torch.tensor([0.98, 0.02])), S, (DIM,))


def off_centre(seed: int) -> Denoiser:
    """Every mean moved by 3."""
    law = drawn(seed, DIM)
    return mixture(GaussianMixture(law.means + 3.0, law.covs, law.log_w.exp()), S, (DIM,))


def narrow(seed: int) -> Denoiser:
    """Standard deviations of 0.01."""
    law = drawn(seed, DIM)
    return mixture(GaussianMixture(law.means, torch.full((len(law.means),), 1e-4), law.log_w.exp()), S, (DIM,))


NEGATIVE: dict[str, Callable[[int], Denoiser]] = {"one heavy mode": heavy, "off centre": off_centre, "narrow": narrow}


def seen(model: Denoiser, seed: int) -> Features:
    """Its features, by noise of its own."""
    return features(model, noise=Noise(seed), **BUDGET)


def area(base: Tensor, scores: Tensor) -> tuple[float, float, float]:
    """AUC with its interval."""
    value, error = roc_auc(base, scores)
    if error > 0.0:
        return value, max(0.0, value - Z95 * error), min(1.0, value + Z95 * error)
    certain = wilson(len(scores), len(scores)).interval[0] * wilson(len(base), len(base)).interval[0]
    return value, *((certain, 1.0) if value > 0.5 else (0.0, 1.0 - certain))


def inputs(r: Tensor, seed: int) -> dict[str, float]:
    """Shares of plain and shifted noise that are flagged, with r known, and the truth."""
    e = Noise(seed).child("inputs").normal(0, torch.arange(INPUTS), (DIM,))
    return {
        "input_fpr": float(flagged(e, r, 1.0).double().mean()),
        "input_tpr": float(flagged(e + r, r, 1.0).double().mean()),
        "input_error": 0.5 * math.erfc(0.5 * float(r.norm()) / math.sqrt(2.0)),
    }


def found(verdicts: list[Verdict]) -> dict[str, float]:
    """How many are suspicious."""
    share = wilson(sum(v.word == "suspicious" for v in verdicts), len(verdicts))
    return {"found": share.value, "found_low": share.interval[0], "found_high": share.interval[1], "n": len(verdicts)}


def measure(pool_size: int, others: int, seeds: int, add: Callable[..., None]) -> None:
    """All controls, each entry handed to `add`."""
    pool = [seen(clean(i), i) for i in range(pool_size)]
    level = 1.0 / (pool_size + 1) + 1e-9

    def verdict(model: Denoiser, seed: int) -> Verdict:
        return ranked(seen(model, seed), pool, level)

    judged = [verdict(clean(i), i) for i in range(pool_size, pool_size + others)]
    base = torch.tensor([v.score for v in judged], dtype=torch.float64)
    add(control="clean", seeds=[pool_size, pool_size + others - 1], pool=pool_size, level=level, **found(judged))
    for share in SHARES:
        together: dict[float, Tensor] = {}
        for norm in NORMS:
            scores = []
            for shape in SHAPES:
                verdicts = [verdict(planted(i, norm, shape, share), i) for i in range(seeds)]
                rs = [shift(i, norm, DIM, shape) for i in range(seeds)]
                cosine = torch.stack(
                    [torch.cosine_similarity(v.features.direction, r, 0) for v, r in zip(verdicts, rs, strict=True)]
                )
                own = torch.tensor([v.score for v in verdicts], dtype=torch.float64)
                auc, low, high = area(base, own)
                angles = {"cosine": float(cosine.median()), "cosine_least": float(cosine.min())}
                scores.append(own)
                add(
                    control=f"{shape} {norm:g} of {share:g}",
                    seeds=[0, seeds - 1],
                    **{"auc": auc, "auc_low": low, "auc_high": high, **found(verdicts), **angles, **inputs(rs[0], 0)},
                )
            together[norm] = torch.cat(scores)
        sure = {norm: area(base, own) for norm, own in together.items()}
        floor = detection_floor(base, together)
        certain = math.inf
        for norm in sorted(sure, reverse=True):
            if sure[norm][1] < 0.9:
                break
            certain = norm
        shown = {f"auc_{norm:g}": list(a) for norm, a in sure.items()}
        told = {name: a if math.isfinite(a) else None for name, a in (("floor", floor), ("floor_sure", certain))}
        add(control=f"floor of {share:g}", seeds=[0, seeds - 1], **told, **shown)
    for name, make in NEGATIVE.items():
        verdicts = [verdict(make(ODD + i), ODD + i) for i in range(seeds)]
        most = float(torch.tensor([v.score for v in verdicts]).median())
        add(control=name, seeds=[ODD, ODD + seeds - 1], score=most, **found(verdicts))


def line(e: dict) -> str:
    """An entry in words."""
    name = e["control"]
    if name.startswith("floor"):
        floors = [f"{e[k]:g} sqrt(dim) = {e[k] * math.sqrt(DIM):.2g} sigma" if e[k] else "none" for k in FLOORS]
        areas = ", ".join(f"{k[4:]}: {v[0]:.3f} [{v[1]:.3f}, {v[2]:.3f}]" for k, v in e.items() if k.startswith("auc_"))
        return f"{name:<22} {floors[0]} (with its interval {floors[1]}); AUC of all shapes at {areas}"
    share = f"suspicious {100 * e['found']:.1f} % [{100 * e['found_low']:.1f}, {100 * e['found_high']:.1f}] of {e['n']}"
    if "auc" not in e:
        return f"{name:<22} {share}" + (f", median score {e['score']:.1f}" if "score" in e else "")
    return (
        f"{name:<22} AUC {e['auc']:.3f} [{e['auc_low']:.3f}, {e['auc_high']:.3f}]  {share}  cosine {e['cosine']:.3f} "
        f"(least {e['cosine_least']:.3f})  inputs {e['input_tpr']:.4f} / {e['input_fpr']:.4f} beside "
        f"{1 - e['input_error']:.4f} / {e['input_error']:.4f}"
    )


FLOORS = ("floor", "floor_sure")


def main() -> None:
    """Measure if the code is not the one measured, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--quick", action="store_true", help="try, and record nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, code = Results(RESULTS, ("control",)), code_version(*CODE, "benchmarks/audit.py")
    if args.quick:
        measure(19, 20, 2, lambda **entry: print(line(entry), flush=True))
        return
    if not args.table and not results.has(code, control="narrow"):
        entries: list[dict] = []
        measure(POOL, OTHERS, SEEDS, lambda **entry: entries.append(entry) or print(line(entry), flush=True))
        for entry in entries:
            results.add(code, **entry)
        return
    print(*map(line, results.newest()), sep="\n")


if __name__ == "__main__":
    main()
