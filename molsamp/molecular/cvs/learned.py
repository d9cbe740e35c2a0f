"""Collective variables learned from frames: TICA and Deep-TDA, over the features of another CV.

Both are kept as arrays in one safetensors file with a JSON header. The features are code and are not stored; `load`
takes them again and compares their names. A periodic feature s with period P enters as cos(2 pi s/P), sin(2 pi s/P).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from molsamp.engine.noise import Noise
from molsamp.learn.fit import fit
from molsamp.learn.networks import MLP
from molsamp.molecular.cvs.base import CV

HIDDEN = (24, 12)
"""Hidden widths of Deep-TDA's network, as in the paper's examples."""


class TICA(CV):
    """s = (f(x) - mean) matrix, the slowest linear combinations of features f (time-lagged independent components).

    Args:
        features: the CV that makes the features, periodic ones as cosine and sine.
        mean: (d,), of the features.
        matrix: (d, k).
        name: components are NAME.1, NAME.2, ..., slowest first.
    Source: Perez-Hernandez et al., J. Chem. Phys. 139, 015102 (2013); fitted by deeptime, scaled by kinetic map.
    """

    def __init__(self, features: CV, mean: Float[Tensor, "d"], matrix: Float[Tensor, "d k"], name: str = "tica"):
        self.features, self.mean, self.matrix, self.name = features, mean, matrix, name
        self.atoms, k = features.atoms, matrix.shape[1]
        self.names = tuple(f"{name}.{j}" for j in range(1, k + 1))
        self.period, self.unit = (None,) * k, ("1",) * k

    @classmethod
    def fit(
        cls,
        features: CV,
        trajectories: Sequence[Float[Tensor, "_ *event"]],
        lag: int,
        dim: int = 1,
        name: str = "tica",
    ) -> TICA:
        """Fit by deeptime.

        Args:
            features: any CV.
            trajectories: frames of each at equal intervals; lengths may differ.
            lag: in frames.
            dim: components to keep.
        Raises:
            ValueError: lag, dim or the length of a trajectory does not allow a fit, or a feature is not finite.
        """
        if lag < 1 or not trajectories or min(map(len, trajectories)) <= lag:
            shortest = min(map(len, trajectories), default=0)
            raise ValueError(
                f"TICA: got lag {lag} and a shortest trajectory of {shortest} frames; allowed is 1 <= lag < frames"
            )
        data = [_features(features, x).numpy() for x in trajectories]
        from deeptime.decomposition import TICA as Estimator

        model = Estimator(lagtime=lag).fit(data).fetch_model()
        allowed = model.output_dimension
        if not 1 <= dim <= allowed:
            raise ValueError(f"TICA: got dim {dim}; allowed are 1 to {allowed}, the rank of the features' covariance")
        matrix = torch.from_numpy(model.instantaneous_coefficients[:, :dim].copy())
        return cls(features, torch.from_numpy(model.mean_0.copy()), matrix, name)

    def __call__(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n k"]:
        f = embedded(self.features, x)
        return (f - self.mean.to(f)) @ self.matrix.to(f)

    def save(self, file: str | Path) -> None:
        """Write arrays and names; the same CV gives the same bytes."""
        _save(file, self, {"mean": self.mean, "matrix": self.matrix})

    @classmethod
    def load(cls, file: str | Path, features: CV) -> TICA:
        """Read what `save` wrote.

        Raises:
            ValueError: no such file, no TICA, or other features.
        """
        header, arrays = _load(file, cls, features)
        return cls(features, arrays["mean"], arrays["matrix"], header["name"])


class DeepTDA(CV):
    """s = network((f(x) - mean) / scale), trained so that each labelled state is a Gaussian of stated mean and width.

        loss = sum over states and components of alpha (mean - mu)^2 + beta (std - sigma)^2

    Args:
        features: the CV that makes the features f, periodic ones as cosine and sine.
        mean, scale: (d,), the standardisation of the features.
        network: from d features to k components.
        name: the one component, or NAME.1, NAME.2, ...
    Source: Bonati, Piccini, Parrinello, PNAS 118, e2113533118 (2021), Deep Targeted Discriminant Analysis.
    """

    def __init__(
        self, features: CV, mean: Float[Tensor, "d"], scale: Float[Tensor, "d"], network: MLP, name: str = "deep_tda"
    ):
        self.features, self.mean, self.scale, self.name = features, mean, scale, name
        self.network = network.requires_grad_(False)
        self.widths = [layer.in_features for layer in _linear(network)] + [_linear(network)[-1].out_features]
        self.atoms, k = features.atoms, self.widths[-1]
        self.names = (name,) if k == 1 else tuple(f"{name}.{j}" for j in range(1, k + 1))
        self.period, self.unit = (None,) * k, ("1",) * k

    @classmethod
    def fit(
        cls,
        features: CV,
        states: Sequence[Float[Tensor, "_ *event"]],
        centres: Sequence[Sequence[float]],
        widths: Sequence[Sequence[float]],
        *,
        noise: Noise,
        hidden: Sequence[int] = HIDDEN,
        steps: int = 1000,
        batch: int = 256,
        learning_rate: float = 1e-2,
        alpha: float = 1.0,
        beta: float = 250.0,
        name: str = "deep_tda",
    ) -> DeepTDA:
        """Train the network on labelled frames.

        Args:
            features: any CV.
            states: frames of each state.
            centres: mu of each state, one number per component, for example [[-7], [7]].
            widths: sigma of each state, likewise, for example [[1], [1]]; where the network cannot make a state so
                narrow, beta > alpha draws the centres together (watch the values of the frames).
            noise: keys of the initial weights and of the batches.
            hidden: hidden widths of the network.
            steps: gradient steps; the learning rate falls to 0 along half a cosine.
            batch: frames of each state in a step.
            learning_rate: of Adam, at the start.
            alpha, beta: weights of the two parts of the loss.
        Raises:
            ValueError: states, centres and widths do not fit each other, or a feature is not finite.
        """
        if len({len(states), len(centres), len(widths)}) > 1 or len(states) < 2 or min(map(len, states)) < 2:
            raise ValueError(
                f"DeepTDA: got {len(states)} states of {[len(x) for x in states]} frames, {len(centres)} centres and "
                f"{len(widths)} widths; allowed are two or more states of two or more frames, one of each per state"
            )
        if len({len(row) for row in (*centres, *widths)}) > 1 or not all(s > 0 for row in widths for s in row):
            raise ValueError(
                f"DeepTDA: got centres {centres} and widths {widths}; allowed is one number per component, widths > 0"
            )
        data = [_features(features, x) for x in states]
        mean, scale = torch.cat(data).mean(0), torch.cat(data).std(0)
        scale = torch.where(scale > 0, scale, 1.0)
        data = [(f - mean) / scale for f in data]
        mu, sigma = torch.tensor([centres, widths], dtype=mean.dtype)
        network = MLP([mean.shape[0], *hidden, mu.shape[1]], noise.child("weights")).double()
        _regress(network, data, mu)
        optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: (1 + math.cos(math.pi * k / steps)) / 2)
        slots = torch.arange(batch)

        def draw(k: int) -> dict[str, Tensor]:
            if k:
                schedule.step()
            return {str(i): f[noise.child(f"batch {i}").integers(k, slots, (), len(f))] for i, f in enumerate(data)}

        def loss(frames: dict[str, Tensor]) -> Tensor:
            s = torch.stack([network(f) for f in frames.values()])
            return (alpha * (s.mean(1) - mu) ** 2 + beta * (s.std(1) - sigma) ** 2).sum()

        fit(loss, draw, optimiser, steps=steps, clip=math.inf)
        return cls(features, mean, scale, network, name)

    def __call__(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n k"]:
        f = embedded(self.features, x)
        weights = {key: weight.to(f) for key, weight in self.network.state_dict().items()}
        return torch.func.functional_call(self.network, weights, ((f - self.mean.to(f)) / self.scale.to(f),))

    def save(self, file: str | Path) -> None:
        """Write arrays and names; the same CV gives the same bytes."""
        weights = {f"network.{key}": weight for key, weight in self.network.state_dict().items()}
        _save(file, self, {"mean": self.mean, "scale": self.scale, **weights}, widths=self.widths)

    @classmethod
    def load(cls, file: str | Path, features: CV) -> DeepTDA:
        """Read what `save` wrote.

        Raises:
            ValueError: no such file, no DeepTDA, or other features.
        """
        header, arrays = _load(file, cls, features)
        network = MLP(header["widths"], Noise(0)).double()
        network.load_state_dict({k.removeprefix("network."): a for k, a in arrays.items() if k.startswith("network.")})
        return cls(features, arrays["mean"], arrays["scale"], network, header["name"])


def embedded(features: CV, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n d"]:
    """Features without jumps: the values of a CV, then cosines and sines in the place of its periodic components."""
    s = features(x)
    plain = [j for j, P in enumerate(features.period) if P is None]
    turning = [j for j, P in enumerate(features.period) if P is not None]
    if not turning:
        return s
    angle = s[:, turning] * s.new_tensor([2 * math.pi / P for P in features.period if P is not None])
    return torch.cat([s[:, plain], angle.cos(), angle.sin()], dim=1)


def _features(features: CV, x: Tensor) -> Tensor:
    """Finite float64 features of frames, without gradient."""
    with torch.no_grad():
        f = embedded(features, x).double().cpu()
    if not (finite := f.isfinite().all(1)).all():
        raise ValueError(f"features {features.names}: frame {int((~finite).nonzero()[0, 0])} (0-based) is not finite")
    return f


def _regress(network: MLP, data: Sequence[Tensor], targets: Tensor) -> None:
    """Set the last layer by least squares from the hidden layer to the state's target, where training can start.

    MLP starts it at zero output, where a standard deviation has no slope.
    """
    with torch.no_grad():
        hidden = torch.cat(list(data))
        for layer in list(network)[:-1]:
            hidden = layer(hidden)
        y = targets.repeat_interleave(torch.tensor([len(f) for f in data]), dim=0)
        ones = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
        solution = torch.linalg.lstsq(ones, y, driver="gelsd").solution
        last = _linear(network)[-1]
        last.weight.copy_(solution[:-1].T)
        last.bias.copy_(solution[-1])


def _linear(network: torch.nn.Sequential) -> list[torch.nn.Linear]:
    return [layer for layer in network if isinstance(layer, torch.nn.Linear)]


def _save(file: str | Path, cv: TICA | DeepTDA, arrays: Mapping[str, Tensor], **more: Any) -> None:
    from safetensors.torch import save

    header = {"kind": type(cv).__name__, "name": cv.name, "features": cv.features.names, **more}
    data = save({k: a.contiguous() for k, a in arrays.items()}, {"molsamp": json.dumps(header, sort_keys=True)})
    file = Path(file)
    temporary = file.with_name(file.name + ".tmp")
    with temporary.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(file)


def _load(file: str | Path, cls: type, features: CV) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as f:
            header = json.loads((f.metadata() or {})["molsamp"])
            arrays = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror or 'no such file'})") from None
    except (SafetensorError, KeyError, ValueError):
        raise ValueError(f"{file}: is no {cls.__name__} file (safetensors with molsamp's header)") from None
    if header["kind"] != cls.__name__:
        raise ValueError(f"{file}: holds a {header['kind']}; allowed is {cls.__name__}")
    if header["features"] != list(features.names):
        raise ValueError(
            f"{file}: was fitted to other features: got {list(features.names)}; allowed is {header['features']}"
        )
    return header, arrays
