"""How good pictures are: distance to the model's own fine trajectory, and distances between two sets of pictures.

Every score has a 95 % interval by the jackknife over pictures. Distances between sets are biased upwards by the number
of pictures: the interval is about what is expected for sets of this size, so compare equal sizes, and look at what two
halves of the data score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.estimates import Estimate, student95
from molsamp.engine.noise import Noise

GROUPS = 20  # parts of a set that the jackknife leaves out one by one

Pictures = Float[Tensor, "n *event"]


def rmse_to_fine(x: Pictures, fine: Pictures) -> Estimate:
    """Root of the mean squared difference, over pictures and pixels, to the ends of fine trajectories from the same noise.

    Raises:
        ValueError: for two shapes, or fewer than two pictures.
    """
    square = _squares(x, fine)
    return jackknife(lambda kept: float(square[kept].mean().sqrt()), len(square), len(square))


def rmse_ratio(x: Pictures, y: Pictures, fine: Pictures) -> Estimate:
    """RMSE of x over RMSE of y, both to the same fine ends; noise that is common to both does not widen the interval.

    Raises:
        ValueError: for two shapes, or fewer than two pictures.
    """
    a, b = _squares(x, fine), _squares(y, fine)
    log = jackknife(lambda kept: 0.5 * float((a[kept].mean() / b[kept].mean()).log()), len(a), len(a))
    return replace(log, value=math.exp(log.value), interval=(math.exp(log.interval[0]), math.exp(log.interval[1])))


def sliced_wasserstein(a: Pictures, b: Pictures, noise: Noise, directions: int = 256) -> Estimate:
    """Sliced 2-Wasserstein distance: the root of the mean, over directions, of W_2^2 of the projections, in pixels.

    Args:
        a, b: two sets of pictures.
        noise: keys of the directions, uniform on the sphere.
        directions: how many.

    Raises:
        ValueError: if the pictures have two shapes, or a set has fewer than two.

    Source: Bonneel, Rabin, Peyre, Pfister, "Sliced and Radon Wasserstein barycenters of measures", 2015.
    """
    _comparable(a, b)
    theta = noise.normal(0, torch.arange(directions), (a[0].numel(),))
    theta = theta / theta.norm(dim=1, keepdim=True)
    p, q = (c.flatten(1).double().cpu() @ theta.T for c in (a, b))

    def distance(part: tuple[Tensor, Tensor]) -> float:
        u, v = (c.sort(0).values for c in part)
        level = torch.arange(n := max(len(u), len(v)))
        u, v = (c[(level * len(c) + len(c) // 2) // n] for c in (u, v))  # both at the n middles of equal shares
        return float((u - v).square().mean().sqrt())

    return _of_two(distance, p, q)


def frechet(a: Pictures, b: Pictures, features: Callable[[Tensor], Tensor]) -> Estimate:
    """Frechet distance in the space of `features`: |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    It is not the FID, which takes another network's features; name the space beside the figure.

    Args:
        a, b: two sets of pictures.
        features: pictures -> (n, f), for example `features("mnist")`; fewer pictures than f are a singular covariance.

    Raises:
        ValueError: if the pictures have two shapes, or a set has fewer than two.

    Source: Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017, eq. 6.
    """
    _comparable(a, b)
    with torch.no_grad():
        p, q = features(a).double().cpu(), features(b).double().cpu()

    def distance(part: tuple[Tensor, Tensor]) -> float:
        (m, S), (l, T) = ((c.mean(0), c.T.cov(correction=1).view(c.shape[1], -1)) for c in part)
        w, Q = torch.linalg.eigh(S)
        root = Q * w.clamp(min=0.0).sqrt() @ Q.T
        cross = torch.linalg.eigvalsh(root @ T @ root).clamp(min=0.0).sqrt().sum()
        return float((m - l).square().sum() + S.trace() + T.trace() - 2.0 * cross)

    return _of_two(distance, p, q)


def jackknife(statistic: Callable[[Tensor], float], n: int, groups: int = GROUPS) -> Estimate:
    """A statistic of n items with the interval that its values without one group of items at a time give.

    Args:
        statistic: indices of the items kept -> value.
        n: items.
        groups: every `groups`-th item is a group.

    Raises:
        ValueError: for fewer than two items.

    Source: Efron, Tibshirani, "An introduction to the bootstrap", 1993, chapter 11.
    """
    if n < 2:
        raise ValueError(f"an interval needs two pictures or more, got {n}")
    G, every = min(groups, n), torch.arange(n)
    without = torch.tensor([statistic(every[every % G != g]) for g in range(G)], dtype=torch.float64)
    error = math.sqrt((G - 1) / G * float((without - without.mean()).square().sum()))
    value, half = statistic(every), student95(G - 1) * error
    return Estimate(value, (value - half, value + half), n=n)


def _of_two(distance: Callable[[tuple[Tensor, Tensor]], float], p: Tensor, q: Tensor) -> Estimate:
    """A distance of two sets; a group is left out of one of them at a time, and the two variances add."""
    first = jackknife(lambda kept: distance((p[kept], q)), len(p))
    second = jackknife(lambda kept: distance((p, q[kept])), len(q))
    half = math.hypot(*(e.interval[1] - e.value for e in (first, second)))
    return replace(first, interval=(max(0.0, first.value - half), first.value + half), n=min(len(p), len(q)))


def _squares(x: Tensor, fine: Tensor) -> Float[Tensor, " n"]:
    """Mean squared difference of each picture."""
    if x.shape != fine.shape:
        raise ValueError(f"pictures of shape {tuple(x.shape)} and {tuple(fine.shape)} cannot be compared one by one")
    return (x.double() - fine.double()).square().flatten(1).mean(1)


def _comparable(a: Tensor, b: Tensor) -> None:
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"sets of pictures of shape {tuple(a.shape[1:])} and {tuple(b.shape[1:])} cannot be compared")
