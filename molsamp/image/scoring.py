"""How good pictures are: distance to the model's own fine trajectory, and distances between two sets of pictures.

Every score has a 95 % interval by the jackknife over pictures. Distances between sets are biased upwards by the number
of pictures: the interval is about what is expected for sets of this size, so compare equal sizes, and look at what two
halves of the data score. It is wider than it need be, up to twice, where the two laws are nearly one.
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


def rmse_to_fine(x: Tensor, fine: Tensor) -> Estimate:
    """Root mean square of the pixels' differences to the ends of fine trajectories from the same noise.

    Raises:
        ValueError: for two shapes, or fewer than two pictures.
    """
    square = _squares(x, fine)
    return jackknife(lambda kept: float(square[kept].mean().sqrt()), len(square), len(square))


def rmse_ratio(x: Tensor, y: Tensor, fine: Tensor) -> Estimate:
    """RMSE of x over RMSE of y, both to the same fine ends; noise that is common to both does not widen the interval.

    Raises:
        ValueError: for two shapes, or fewer than two pictures.
    """
    a, b = _squares(x, fine), _squares(y, fine)
    log = jackknife(lambda kept: 0.5 * float((a[kept].mean() / b[kept].mean()).log()), len(a), len(a))
    return replace(log, value=math.exp(log.value), interval=(math.exp(log.interval[0]), math.exp(log.interval[1])))


def sliced_wasserstein(a: Tensor, b: Tensor, noise: Noise, directions: int = 256) -> Estimate:
    """Sliced 2-Wasserstein distance: the root of the mean, over directions, of W_2^2 of the projections, in pixels.

    Args:
        a, b: two sets of pictures, (n, *event) and (m, *event).
        noise: keys of the directions, uniform on the sphere.
        directions: how many.

    Raises:
        ValueError: if the pictures have two shapes, or a set has fewer than two.

    Source: Bonneel, Rabin, Peyre, Pfister, "Sliced and Radon Wasserstein barycenters of measures", 2015.
    """
    _comparable(a, b)
    theta = noise.normal(0, torch.arange(directions), (a[0].numel(),))
    theta = theta / theta.norm(dim=1, keepdim=True)
    p, q = ((theta @ c.flatten(1).double().cpu().T).sort(1) for c in (a, b))

    def distance(i: Tensor, j: Tensor) -> float:
        u, v = (_those(c.values, c.indices, kept) for c, kept in ((p, i), (q, j)))
        level = torch.arange(n := max(len(i), len(j)))
        u, v = (c[:, (level * c.shape[1] + c.shape[1] // 2) // n] for c in (u, v))  # at the middles of n equal shares
        return float((u - v).square().mean().sqrt())

    return _of_two(distance, len(a), len(b))


def frechet(a: Tensor, b: Tensor, features: Callable[[Tensor], Tensor]) -> Estimate:
    """Frechet distance in the space of `features`: |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    It is not the FID, which takes another network's features; name the space beside the figure.

    Args:
        a, b: two sets of pictures, (n, *event) and (m, *event).
        features: pictures -> (n, f), for example `features("mnist")`; fewer pictures than f are a singular covariance.

    Raises:
        ValueError: if the pictures have two shapes, or a set has fewer than two.

    Source: Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017, eq. 6.
    """
    _comparable(a, b)
    with torch.no_grad():
        p, q = features(a).double().cpu(), features(b).double().cpu()

    def distance(i: Tensor, j: Tensor) -> float:
        (m, S), (l, T) = ((c.mean(0), c.T.cov().view(c.shape[1], -1)) for c in (p[i], q[j]))
        w, Q = torch.linalg.eigh(S)
        root = Q * w.clamp(min=0.0).sqrt() @ Q.T
        cross = torch.linalg.eigvalsh(root @ T @ root).clamp(min=0.0).sqrt().sum()
        return float((m - l).square().sum() + S.trace() + T.trace() - 2.0 * cross)

    return _of_two(distance, len(a), len(b))


def jackknife(statistic: Callable[[Tensor], float], n: int, groups: int = GROUPS) -> Estimate:
    """A statistic of n items with the interval that its values without one group of items at a time give.

    Args:
        statistic: indices of the items kept -> value.
        n: items.
        groups: parts of equal size that the items are dealt to by a fixed shuffle, since sets may be ordered by class.

    Raises:
        ValueError: for fewer than two items.

    Source: Efron, Tibshirani, "An introduction to the bootstrap", 1993, chapter 11.
    """
    if n < 2:
        raise ValueError(f"an interval needs two pictures or more, got {n}")
    G, every = min(groups, n), torch.arange(n)
    group = Noise(0).uniform(0, every).argsort() % G
    without = torch.tensor([statistic(every[group != g]) for g in range(G)], dtype=torch.float64)
    error = math.sqrt((G - 1) / G * float((without - without.mean()).square().sum()))
    value, half = statistic(every), student95(G - 1) * error
    return Estimate(value, (value - half, value + half), n=n)


def _of_two(distance: Callable[[Tensor, Tensor], float], n: int, m: int) -> Estimate:
    """A distance of two sets; a group is left out of one of them at a time, and the two variances add."""
    first = jackknife(lambda kept: distance(kept, torch.arange(m)), n)
    second = jackknife(lambda kept: distance(torch.arange(n), kept), m)
    half = math.hypot(*(e.interval[1] - e.value for e in (first, second)))
    return replace(first, interval=(max(0.0, first.value - half), first.value + half), n=min(n, m))


def _those(values: Tensor, indices: Tensor, kept: Tensor) -> Float[Tensor, "directions k"]:
    """Sorted values (directions, n) of the pictures kept, still sorted."""
    if len(kept) == values.shape[1]:
        return values
    mask = torch.zeros(values.shape[1], dtype=torch.bool)
    mask[kept] = True
    return values[mask[indices]].view(len(values), -1)


def _squares(x: Tensor, fine: Tensor) -> Float[Tensor, " n"]:
    """Mean squared difference of each picture."""
    if x.shape != fine.shape:
        raise ValueError(f"pictures of shape {tuple(x.shape)} and {tuple(fine.shape)} cannot be compared one by one")
    return (x.double() - fine.double()).square().flatten(1).mean(1)


def _comparable(a: Tensor, b: Tensor) -> None:
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"sets of pictures of shape {tuple(a.shape[1:])} and {tuple(b.shape[1:])} cannot be compared")
