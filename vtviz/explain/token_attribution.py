"""What each token adds to a class's score, and where: a number per token, and the map that these numbers weight.

Tokens are attributed where a layer's transformer first reads them. With f the score as a function of a layer's tokens
T (C_T, L), the numbers a (L,) are

- gradient x token: a_l = sum_c T_cl df/dT_cl;
- integrated gradients (Sundararajan et al. 2017) on the straight path from zero tokens to T. They are complete: the sum
  of a is f(T) - f(0).

The baseline is zero, a token that carries nothing: gradient x token is the same path in one step. It needs no other
images, and leaves nothing unexplained, whereas the mean of an image's tokens keeps most of the score. (On 40 images the
last layer of vt_resnet18_in109 has its tokens in the order that ablation gives, rank correlation 0.84; from the mean
token of the training data it is 0.85, and for gradient x token 0.75.)

The pixel map is sum_l a_l A_l with A in x uniform (heads' mean), so its mean over the cells is the sum of a; nearly so
in a VT-FPN, whose coarser levels are interpolated. A token that was kept from the previous block has the map that it
was gathered with there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtviz.explain.onward import Onward
from vtviz.explain.target import Target, images_at_once
from vtviz.geometry import interpolation
from vtviz.models.visual_transformer import BlockOutput, Edit
from vtviz.models.vt_fpn import VTFPN


class TokenAttribution(NamedTuple):
    """What a layer's tokens add to the score; of a VT-FPN, those of all levels."""

    tokens: list[np.ndarray]
    """For each layer of the model a, (L,) float64, in the score's unit."""
    values: np.ndarray
    """The map of the last layer, (h, w) float32; of a VT-FPN the sum of all levels' maps."""
    stride: int
    """Model-input pixels per cell of the map."""
    total: float
    """Sum of the a that make up the map."""
    difference: float | None
    """f(T) - f(0), to which the total should come; None for gradient x token, which promises nothing."""


def layer_groups(model: Any) -> list[range]:
    """Layers whose tokens are attributed together, in the order of the forward pass.

    A classifier's blocks make each other's tokens, so each is a path of its own; a VT-FPN's levels are read at once.
    """
    count = len(model.token_strides)
    return [range(count)] if isinstance(model, VTFPN) else [range(i, i + 1) for i in range(count)]


class TokenSpace:
    """One image's tokens, and a class's score as a function of them.

    Args:
        model: with tokens, in eval mode, without gradients of its weights.
        x: (1, 3, h, w), normalised.
        target: the class.

    Attributes:
        tokens: of each layer, (1, C_T, L).
        maps: that they were gathered with, for each layer (L, h, w) float32: the heads' mean in x uniform.
        rows: steps of a path that go through the model at once.
    """

    def __init__(self, model: Any, x: Tensor, target: Target) -> None:
        self.model, self._target = model, target
        self.rows = images_at_once(x)
        with torch.no_grad():
            self._onward = Onward(model, x)
            outputs = self._onward.forward([])[1]
        self.tokens = [out.tokenizer.tokens for out in outputs]
        self.maps = _maps(outputs)

    def score(self, layers: range, tokens: Sequence[Tensor]) -> Tensor:
        """The score with these layers' tokens, each (N, C_T, L), in the place of their own: (N,)."""
        edits = [None] * layers.start + [Edit(tokens=t) for t in tokens]
        return self._target.score(self._onward.forward(edits, len(tokens[0]))[0])

    def gradients(self, layers: range, tokens: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of the score, at these tokens: for each layer (N, C_T, L)."""
        tokens = [t.detach().requires_grad_() for t in tokens]
        with torch.enable_grad():
            return torch.autograd.grad(self.score(layers, tokens).sum(), tokens)


def _maps(outputs: Sequence[BlockOutput]) -> list[np.ndarray]:
    maps: list[np.ndarray] = []
    for out in outputs:
        ours = out.tokenizer.coefficients[0].mean(dim=0).float().cpu().numpy()
        ours = ours * np.float32(ours.shape[1] * ours.shape[2])
        if kept := out.tokens.shape[2] - len(ours):
            ours = np.concatenate([maps[-1][-kept:], ours])
        maps.append(ours)
    return maps


def gradient_x_token(space: TokenSpace, tick: Callable[[int], None] = lambda _: None) -> TokenAttribution:
    """Gradient x token of every layer. ``tick`` is called with the rows that went through the model."""
    found: list[np.ndarray] = []
    for layers in layer_groups(space.model):
        tokens = [space.tokens[i] for i in layers]
        found += [_per_token(t * g) for t, g in zip(tokens, space.gradients(layers, tokens), strict=True)]
        tick(1)
    return _result(space, found, None)


def token_integrated_gradients(
    space: TokenSpace, steps: int, tick: Callable[[int], None] = lambda _: None
) -> TokenAttribution:
    """Integrated gradients of every layer's tokens, by Gauss-Legendre quadrature with ``steps`` points."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on (-1, 1)
    found: list[np.ndarray] = []
    difference = 0.0
    for layers in layer_groups(space.model):
        tokens = [space.tokens[i] for i in layers]
        total = [torch.zeros_like(t) for t in tokens]
        for start in range(0, steps, space.rows):
            shares, weighted = (
                torch.from_numpy(values[start : start + space.rows] / 2).to(tokens[0])[:, None, None]
                for values in (nodes + 1, weights)
            )
            gradients = space.gradients(layers, [shares * t for t in tokens])
            total = [t + (weighted * g).sum(dim=0) for t, g in zip(total, gradients, strict=True)]
            tick(len(shares))
        found += [_per_token(t * g) for t, g in zip(tokens, total, strict=True)]
        with torch.no_grad():
            ends = space.score(layers, [torch.cat((t, torch.zeros_like(t))) for t in tokens])
        difference = float(ends[0] - ends[1])  # the last group's is the map's
    return _result(space, found, difference)


def _per_token(products: Tensor) -> np.ndarray:
    return products[0].double().sum(dim=0).cpu().numpy()


def _result(space: TokenSpace, tokens: list[np.ndarray], difference: float | None) -> TokenAttribution:
    """The map of the last group of layers, in its finest layer's cells."""
    layers, strides = layer_groups(space.model)[-1], space.model.token_strides
    finest = min(layers, key=lambda i: strides[i])
    values = np.zeros(space.maps[finest].shape[1:], np.float32)
    for i in layers:
        own = np.einsum("l,lhw->hw", tokens[i].astype(np.float32), space.maps[i])
        ratio = strides[finest] / strides[i]
        rows, columns = (interpolation(np.arange(values.shape[k]) * ratio, own.shape[k]) for k in (0, 1))
        values += rows @ own @ columns.T
    total = float(sum(tokens[i].sum() for i in layers))
    return TokenAttribution(tokens, values, strides[finest], total, difference)
