"""Steering by attention: the logits of any attention layers seen, and changed, while a network runs as it is.

A layer that calls `scaled_dot_product_attention` (of torch, of diffusers, one's own) has logits L = scale q k' + mask,
pixels or tokens i in rows, what they look at in columns j. Inside `attending` a hook of the layer gets them before the
softmax. PrimeComposer's three are here (`composing.compose` is the rest of it):

    `Recorder`   in a pass on (composite, object): S = L[composite's rows, object's tokens in its mask]
    `Inject`     in the generator's pass: L[:, J] = S, then L[J, :] = S', J the place where the object is put
    `Confine`    L[i, j] = -inf for words j of the object and pixels i outside that place

No class is changed and no processor is swapped; nothing is left behind at the end, an error's included.

Source: Wang et al., "PrimeComposer: faster progressively combined diffusion for image composition with attention
steering", ACM MM 2024; arXiv 2403.05053.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from molsamp.schema import nearest

HEAVY = 1 << 30  # bytes of recorded logits that are warned of


class Memory(UserWarning):
    """Recorded logits take much memory."""


@dataclass(frozen=True)
class Attention:
    """One call of an attention layer, before its softmax.

    Args:
        layer: its name.
        q, k, v: queries, keys and values, (n, heads, N or M, d).
        scale: of the logits.
        logits: scale q k' + mask, (n, heads, N, M).
    """

    layer: str
    q: Float[Tensor, "n h N d"]
    k: Float[Tensor, "n h M d"]
    v: Float[Tensor, "n h M e"]
    scale: float
    logits: Float[Tensor, "n h N M"]


Hook = Callable[[Attention], Tensor]


@contextmanager
def attending(net: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Inside, hooks act on the logits of layers: `with attending(unet, {"mid_block.attentions.0": Confine(..)}): ..`.

    Args:
        net: the network.
        hooks: names of modules, as in `net.named_modules()`, and what acts on all attention inside each, the innermost
            name's alone. A hook that hands on `logits` itself leaves the network's own kernel, and so every bit.

    Raises:
        ValueError: for a name that is none of its modules; inside, for dropout, grouped queries or a hook that answers
            with another shape; at the end, for a layer that ran and called no `scaled_dot_product_attention` (as
            `nn.MultiheadAttention` that is asked for its weights, or processors with a softmax of their own).
    """
    modules = dict(net.named_modules())
    for name in hooks:
        if name not in modules:
            raise ValueError(f"module {name!r} is unknown;{nearest(name, modules)} see named_modules() of the network")
    inside: list[str] = []
    ran: set[str] = set()
    mode = _Attends(hooks, inside)

    def enter(name: str) -> None:
        inside.append(name)
        ran.add(name)

    def leave(*_: Any) -> None:
        inside.pop()

    handles = []
    for name in hooks:
        handles.append(modules[name].register_forward_pre_hook(lambda *_, name=name: enter(name)))
        handles.append(modules[name].register_forward_hook(leave, always_call=True))
    try:
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()
    unseen = sorted(ran - mode.seen)
    if unseen:
        raise ValueError(f"module {unseen[0]!r} ran without scaled_dot_product_attention, its hook saw nothing")


# torch's own function, but for its first question, whether a mode wants to run it in its place: this one is that answer
_MULTI_HEAD = FunctionType(
    multi_head_attention_forward.__code__,
    {**multi_head_attention_forward.__globals__, "has_torch_function": lambda tensors: False},
    argdefs=multi_head_attention_forward.__defaults__,
)


class _Attends(TorchFunctionMode):
    """Attention inside named modules, with the hook of the innermost."""

    def __init__(self, hooks: Mapping[str, Hook], inside: list[str]):
        super().__init__()
        self.hooks, self.inside, self.seen = hooks, inside, set[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is multi_head_attention_forward and self.inside:
            with self:
                return _MULTI_HEAD(*args, **kwargs)
        if func is not scaled_dot_product_attention or not self.inside:
            return func(*args, **kwargs)
        name = self.inside[-1]
        self.seen.add(name)
        call = _of_attention(name, *args, **kwargs)
        logits = self.hooks[name](call)
        if logits is call.logits:
            return func(*args, **kwargs)
        if logits.shape != call.logits.shape:
            raise ValueError(f"the hook of {name!r} made logits {tuple(logits.shape)} of {tuple(call.logits.shape)}")
        return torch.softmax(logits, -1) @ call.v


def _of_attention(
    layer: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Attention:
    """The logits of what torch was asked for, in its own order of arguments."""
    if dropout_p > 0.0 or enable_gqa or query.dim() != 4:
        raise ValueError(
            f"attention of {layer!r} has dropout {dropout_p:g}, grouped queries {enable_gqa} and {query.dim()} axes; "
            f"allowed are 0 (call eval()), False and 4"
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = query @ key.mT * scale
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    return Attention(layer, query, key, value, scale, logits)


@dataclass
class Recorder:
    """Keeps S = scale q_i.k_j of every layer, queries from one picture of a batch and keys of some tokens of another.

    `kept` holds one S of each layer, (heads, N, M), the newest; it takes 4 heads N M bytes in float32. Before one is
    made with which they all exceed 1 GiB, a `Memory` warning says so.

    Args:
        of: (picture of the queries, picture of the keys) in the batch.
        tokens: of the keys, for a layer of N of them, for example `partial(inside, mask)`.
    """

    of: tuple[int, int]
    tokens: Callable[[int], Int[Tensor, " M"]]
    kept: dict[str, Float[Tensor, "h N M"]] = field(default_factory=dict)

    def __call__(self, call: Attention) -> Tensor:
        """Changes nothing; masks of the layer are left out."""
        i, j = self.of
        some = call.k[j][:, self.tokens(call.k.shape[2]).to(call.k.device)]
        others = sum(S.nbytes for layer, S in self.kept.items() if layer != call.layer)
        own = call.q[i].shape[:-1].numel() * some.shape[1] * call.q.element_size()
        if others + own > HEAVY >= others:
            words = f"with layer {call.layer!r} recorded logits take {(others + own) / 2**30:.1f} GiB"
            warnings.warn(Memory(f"{words}; a smaller object or fewer layers take less"), stacklevel=2)
        self.kept[call.layer] = (call.q[i] @ some.mT * call.scale).detach()
        return call.logits


@dataclass(frozen=True)
class Inject:
    """L[:, J] = S and then, with `rows`, L[J, :] = S', in some pictures of the batch.

    S_ij = q_i.k_j, so that S' has in row j what key j says of query i and not what query j says of key i: with S of the
    same picture columns alone give L back, columns and rows only where L is symmetric.

    Args:
        kept: S of every layer, as `Recorder` keeps it.
        tokens: J for a layer of N tokens, as many as S has columns, in their order.
        pictures: of the batch; the conditional half of guidance.
        rows: as published.

    Raises:
        ValueError: when called, for a layer that is not self-attention, without S, or with S of another shape.
    """

    kept: Mapping[str, Float[Tensor, "h N M"]]
    tokens: Callable[[int], Int[Tensor, " M"]]
    pictures: slice = field(default_factory=lambda: slice(None))
    rows: bool = True

    def __call__(self, call: Attention) -> Tensor:
        """An empty place changes nothing: at coarse layers small masks vanish."""
        _, h, N, M = call.logits.shape
        J = self.tokens(M).to(call.logits.device)
        S = self.kept.get(call.layer)
        if not len(J):
            return call.logits
        if N != M or S is None or S.shape != (h, N, len(J)):
            known = "none" if S is None else tuple(S.shape)
            raise ValueError(f"layer {call.layer!r} of {N} x {M} tokens wants S of {(h, N, len(J))}, kept is {known}")
        logits = call.logits.clone()
        edited = logits[self.pictures]
        edited[:, :, :, J] = S.to(edited)
        if self.rows:
            edited[:, :, J, :] = S.mT.to(edited)
        return logits


@dataclass(frozen=True)
class Confine:
    """Logits of some words are -inf for every pixel outside a place: the object's words act inside it only.

    Args:
        words: columns of cross-attention.
        mask: the place, at any resolution that the layer's is a fraction of.

    Raises:
        ValueError: when called, for a word that the layer has not, or if no other word is left for pixels outside.
    """

    words: tuple[int, ...]
    mask: Bool[Tensor, "H W"]

    def __call__(self, call: Attention) -> Tensor:
        """Of a place that is empty at the layer's resolution, nothing is confined."""
        N, M = call.logits.shape[-2:]
        if not all(0 <= word < M for word in self.words) or len(set(self.words)) == M:
            raise ValueError(f"words {self.words} of layer {call.layer!r} must be some of its {M}, not all")
        within = inside(self.mask, N).to(call.logits.device)
        if not len(within):
            return call.logits
        outside = torch.ones(N, 1, dtype=torch.bool, device=call.logits.device)
        outside[within] = False
        words = torch.zeros(M, dtype=torch.bool, device=call.logits.device)
        words[list(self.words)] = True
        return call.logits.masked_fill(outside & words, -torch.inf)


def inside(mask: Bool[Tensor, "H W"], tokens: int) -> Int[Tensor, " M"]:
    """Which of a layer's tokens, row by row, are of a mask: those of whose pixels at least half are.

    Raises:
        ValueError: if the mask cannot be cut into so many equal squares.
    """
    H, W = mask.shape
    side = round((H * W / tokens) ** 0.5)
    if side < 1 or H % side or W % side or tokens * side**2 != H * W:
        raise ValueError(f"a mask of {H} x {W} pixels is not cut into {tokens} equal squares")
    share = mask.double().view(H // side, side, W // side, side).mean((1, 3))
    return (share.flatten() >= 0.5).nonzero()[:, 0]
