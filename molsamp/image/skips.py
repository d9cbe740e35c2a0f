"""Skip-Tuning: what a U-Net's decoder gets from its encoder is scaled while it samples; nothing is trained.

Skip i enters as rho_i skip_i, with rho linear in depth from `bottom` at the deepest to `top` at the shallowest; all 1
is the network as it is, bit for bit. `tuned` does it for the U-Nets here, `Scaled` for any that joins by `torch.cat`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from molsamp.engine.schedules import Schedule
from molsamp.image.denoiser import Denoiser
from molsamp.image.models import Model
from molsamp.image.networks import Edit, UNet
from molsamp.schema import nearest


def over_depth(bottom: float, top: float, skips: int) -> tuple[float, ...]:
    """Factors of so many skips, the deepest first: linear from `bottom` to `top`; a single skip has `bottom`."""
    return tuple(bottom + (top - bottom) * k / max(1, skips - 1) for k in range(skips))


def tuned(
    model: Model,
    bottom: float | Callable[[float], float],
    top: float = 1.0,
    schedule: Schedule | None = None,
) -> Denoiser:
    """A trained U-Net with its skips scaled.

    Args:
        model: as `molsamp.image.network` reads it.
        bottom: factor of the deepest skip, or of the time, t -> factor.
        top: factor of the shallowest.
        schedule: VP unless given.

    Raises:
        ValueError: for a network that is no U-Net.

    Source: Ma et al., "The surprising effectiveness of skip-tuning in diffusion sampling", ICML 2024, section 3.
    """
    net = getattr(model.net, "F", None)
    if not isinstance(net, UNet):
        raise ValueError(f"skips are those of a U-Net, this network is of kind {model.architecture['kind']!r}")
    skips = net.skips

    def edit(t: float) -> Edit:
        return Edit(skip_scale=over_depth(bottom if isinstance(bottom, float | int) else bottom(t), top, skips))

    return model.denoiser(schedule, edit)


class Scaled(nn.Module):
    """Any network, with the last tensor of every `torch.cat` along channels inside some of its modules scaled.

    The decoder blocks of U-Nets (`up_blocks.0` and so on of diffusers) join (what comes from below, the skip) in this
    order. Calls of `torch.cat` elsewhere, along another axis, or of tensors without height and width are left alone.

    Args:
        net: the network; it is called with the same arguments and is not changed.
        factors: names of modules, as in `net.named_modules()`, and their factors; an inner module's goes before.

    Raises:
        ValueError: for a name that is none of its modules.
    """

    def __init__(self, net: nn.Module, factors: Mapping[str, float]):
        super().__init__()
        modules = dict(net.named_modules())
        for name in factors:
            if name not in modules:
                raise ValueError(
                    f"module {name!r} is unknown;{nearest(name, modules)} see named_modules() of the network"
                )
        self.net, self.factors = net, dict(factors)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network answers with its skips scaled."""
        inside: list[float] = []
        hooks = []
        for name, rho in self.factors.items():
            module = self.net.get_submodule(name)
            hooks.append(module.register_forward_pre_hook(lambda *_, rho=rho: inside.append(rho)))
            hooks.append(module.register_forward_hook(lambda *_: inside.pop() and None, always_call=True))
        try:
            with _Joins(inside):
                return self.net(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()


class _Joins(TorchFunctionMode):
    """`torch.cat` of pictures along channels, its last tensor times the newest of `inside`."""

    def __init__(self, inside: list[float]):
        super().__init__()
        self.inside = inside

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.cat, torch.concat, torch.concatenate) and self.inside and self.inside[-1] != 1.0:
            tensors, dim = _of_cat(*args, **kwargs)
            if len(tensors) > 1 and tensors[-1].dim() == 4 and dim in (1, -3):
                return func([*tensors[:-1], self.inside[-1] * tensors[-1]], dim)
        return func(*args, **kwargs)


def _of_cat(tensors: Any, dim: int = 0) -> tuple[list[Tensor], int]:
    return list(tensors), dim
