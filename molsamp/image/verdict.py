"""What an audit says: a model's rank among clean ones, the area under the ROC of controls, and the detection floor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """What is seen of one model; larger is more suspicious.

    Args:
        response, swing, concentration: as `backdoor` has them, logarithms.
        shift: where TERD's inversion found the least variance, units of sigma; neither its norm nor, for faint shifts,
            its sign is the trigger's.
        direction: right singular vector of the response, of norm 1, the way in which the variance of h rises.
    """

    response: float
    swing: float
    concentration: float
    shift: Float[Tensor, " *event"]
    direction: Float[Tensor, " *event"]


@dataclass(frozen=True)
class Verdict:
    """What an audit found; never that a model is clean.

    Args:
        word: "suspicious" or "nothing found".
        p_value: share of models at least as unusual, this one among them; at most `level` makes it suspicious.
        score: the largest of its features, in robust standard deviations from the clean median.
        features: of the model.
        floor: norm of the smallest shift that such audits find, units of sigma sqrt(dim); nan where none was measured.
    """

    word: str
    p_value: float
    score: float
    features: Features
    floor: float = math.nan

    def __str__(self) -> str:
        below = "no floor was measured" if math.isnan(self.floor) else f"shifts below {self.floor:g} sqrt(dim) pass it"
        return f"{self.word} (p = {self.p_value:.3g}, {self.score:.1f} deviations from clean models; {below})"


def ranked(own: Features, clean: Sequence[Features], level: float = 0.01, floor: float = math.nan) -> Verdict:
    """The verdict of `audit` on features that are known.

    Raises:
        ValueError: for a feature that is not finite, naming the model.
    """
    seen = torch.tensor([[f.response, f.swing, f.concentration] for f in (*clean, own)], dtype=torch.float64)
    lost = (~torch.isfinite(seen)).any(1)
    if bool(lost.any()):
        i = int(lost.nonzero()[0])
        raise ValueError(f"{'the model' if i == len(clean) else f'clean model {i}'} has features {seen[i].tolist()}")
    from_median = seen - seen.median(0).values
    spread = 1.4826 * from_median.abs().median(0).values  # the standard deviation of a Gaussian
    score = (from_median / spread.clamp(min=1e-12)).amax(1)
    p = float((score >= score[-1]).double().mean())
    return Verdict("suspicious" if p <= level else "nothing found", p, float(score[-1]), own, floor)


def roc_auc(clean: Float[Tensor, " n"], planted: Float[Tensor, " m"]) -> tuple[float, float]:
    """P(score of planted > score of clean), ties half, and its standard error.

    Raises:
        ValueError: for fewer than 2 of either.

    Source: Hanley and McNeil, "The meaning and use of the area under a ROC curve", Radiology 143, 1982; the error
    by placements, DeLong et al., Biometrics 44, 1988.
    """
    n, m = len(clean), len(planted)
    if n < 2 or m < 2:
        raise ValueError(f"{n} clean and {m} planted scores have no ROC with an error, at least 2 of each do")
    difference = planted[:, None] - clean
    above = (difference > 0).double() + 0.5 * (difference == 0).double()
    return float(above.mean()), math.sqrt(float(above.mean(1).var()) / m + float(above.mean(0).var()) / n)


def detection_floor(
    clean: Float[Tensor, " n"], planted: Mapping[float, Float[Tensor, " m"]], auc: float = 0.9
) -> float:
    """The smallest norm from which upwards every control is told from clean models with at least this AUC, or inf.

    Args:
        clean: scores of clean models.
        planted: norm of the shift (units of sigma sqrt(dim)) -> scores of planted controls.
        auc: area that counts as found.

    Raises:
        ValueError: for no norms, or an area outside (0.5, 1].
    """
    if not planted or not 0.5 < auc <= 1.0:
        raise ValueError(f"{len(planted)} norms and an area of {auc:g} give no floor")
    floor = math.inf
    for norm in sorted(planted, reverse=True):
        if roc_auc(clean, planted[norm])[0] < auc:
            break
        floor = norm
    return floor
