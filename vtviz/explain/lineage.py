"""Where each token comes from: kept from the layer before, made with a filter from there, or gathered anew."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtviz.errors import ConfigError
from vtviz.explain.origin import origin
from vtviz.export import publish, staged
from vtviz.geometry import Geometry
from vtviz.models.vt_fpn import LEVELS
from vtviz.tokens import TokenMaps

STATIC, MADE, KEPT = "static", "made", "kept"
"""Kinds of tokens: gathered by learned filters, gathered with a filter made from a token (T_a of Eq. 5), taken over
(T_b)."""


@dataclass(frozen=True)
class LineageToken:
    """One token of one layer.

    Attributes:
        layer: index of the layer.
        slot: place among the layer's tokens, those kept first; the row of ``tokens_in``, ``attention`` and
            ``projector``.
        kind: "static", "made" or "kept".
        map: index of its map in this layer; None for a kept token, which has none here.
        origin: slot in the layer before of the token that it was ("kept") or that became its filter ("made"); None for
            a static one.
        gathered: (layer, map) of the map that gathered it: of a kept token in an earlier layer.
    """

    layer: int
    slot: int
    kind: str
    map: int | None
    origin: int | None
    gathered: tuple[int, int]


@dataclass(frozen=True)
class LineageLink:
    """From a token of one layer to the one in the next that it is ("kept") or whose filter it becomes ("made").

    Attributes:
        layer: index of the layer that the link leads to; it starts in the one before.
        origin: slot where it starts.
        slot: slot where it ends.
        kind: "made" or "kept".
    """

    layer: int
    origin: int
    slot: int
    kind: str


@dataclass(frozen=True, eq=False)
class Lineage:
    """The descent of all tokens of one image.

    A token goes on in one token of the next layer at most, so that lines of descent never branch or meet.

    Attributes:
        layers: names of the layers.
        tokens: of each layer its tokens, by slot.
        attention: of each transformer, (heads, L, L) float32, rows (the token that reads) summing to 1 over the columns
            (those that it reads): one a layer, or one in all where ``joint``; None where the model has a 1x1
            convolution in its place.
        joint: the layers are levels of a VT-FPN: there are no links between them, but one transformer relates their
            tokens, those of the finest level first.
        geometry: how the image became the model's input.
        model: name of the checkpoint.
        weights: sha256 of the checkpoint's weights; empty for a model that came from none.
        source: where the image came from, if from a file.
    """

    layers: tuple[str, ...]
    tokens: tuple[tuple[LineageToken, ...], ...]
    attention: tuple[np.ndarray | None, ...]
    joint: bool
    geometry: Geometry
    model: str
    weights: str
    source: str | None

    @property
    def links(self) -> tuple[LineageLink, ...]:
        """From each layer to the next, in the order of the slots where they end."""
        return tuple(
            LineageLink(token.layer, token.origin, token.slot, token.kind)
            for layer in self.tokens
            for token in layer
            if token.origin is not None
        )

    def to_dict(self) -> dict[str, Any]:
        """Tokens, links and the heads' mean of the attention, as plain JSON data."""
        return {
            **origin(self),
            "layers": list(self.layers),
            "joint": self.joint,
            "tokens": [[vars(token) | {"gathered": list(token.gathered)} for token in layer] for layer in self.tokens],
            "links": [dict(vars(link)) for link in self.links],
            "attention": [None if each is None else each.mean(axis=0).tolist() for each in self.attention],
        }

    def save(self, folder: str | os.PathLike[str]) -> dict[str, Path]:
        """Write ``lineage.json`` and ``attention.npz``, the attention of all heads, into ``folder``.

        The arrays are named by their layer ("block0"), that of a joint transformer "joint".

        Returns:
            File name -> path of each file written.

        Raises:
            DataError: where the disk refuses.
        """
        names = ("joint",) if self.joint else self.layers
        arrays = {name: each for name, each in zip(names, self.attention, strict=True) if each is not None}
        with staged(folder) as stage:
            np.savez_compressed(stage / "attention.npz", **arrays)  # type: ignore[arg-type]
            text = json.dumps(self.to_dict(), indent=1) + "\n"
            (stage / "lineage.json").write_text(text, encoding="utf-8")
            return publish(stage, folder, ("attention.npz", "lineage.json"))


def slot_names(layers: Sequence[tuple[str, int, int]]) -> list[list[str]]:
    """What the tokens of each layer are called, in the order of their slots.

    Args:
        layers: (name, kept, new) of each: how many of its tokens come from the layer before, and how many it gathers.

    Returns:
        "3" for the one that the layer's map 3 gathered, "kept 12" for the one that map 12 of the layer before did. Just
        "kept" where that layer is not among them.
    """
    gathered = {name: new for name, _, new in layers}
    names = []
    for name, kept, new in layers:
        number = name.removeprefix("block")
        before = gathered.get(f"block{int(number) - 1}") if number.isdecimal() else None
        # T_b of Eq. 5 is the last of the layer before
        old = ["kept" if before is None else f"kept {before - kept + slot}" for slot in range(kept)]
        names.append([*old, *map(str, range(new))])
    return names


def lineage(maps: TokenMaps) -> Lineage:
    """Follow the tokens of an image through the layers of its model.

    A dynamic tokenizer (Eq. 5) makes filters of the first half of the layer before, T_a, and keeps the second half,
    T_b: the filter from slot j gathers the layer's new token j, and slot L / 2 + s goes on as slot s. Where a later
    tokenizer is static ("-DT" of Table 3), T_b is kept, T_a ends, and L tokens come from learned filters.

    Args:
        maps: of all layers, or of a VT-ResNet's first ones.

    Raises:
        ConfigError: where a layer is missing before the last one given, or one of a VT-FPN's.
    """
    names = tuple(layer.name for layer in maps.layers)
    joint = names[:1] == LEVELS[:1]
    if not names or names != (LEVELS if joint else tuple(f"block{i}" for i in range(len(names)))):
        raise ConfigError(f"a lineage needs the maps of all layers, got those of {', '.join(names) or 'none'}")
    tokens: list[tuple[LineageToken, ...]] = []
    for index, layer in enumerate(maps.layers):
        before = tokens[-1] if tokens and not joint else ()
        left = len(before) - layer.kept  # T_a, the first half
        kept = [LineageToken(index, s, KEPT, None, left + s, before[left + s].gathered) for s in range(layer.kept)]
        # a static tokenizer makes as many tokens as the first layer's, a dynamic one half as many
        dynamic = bool(before) and layer.num_tokens != maps.layers[0].num_tokens
        new = [
            LineageToken(index, layer.kept + j, MADE if dynamic else STATIC, j, j if dynamic else None, (index, j))
            for j in range(layer.num_tokens)
        ]
        tokens.append((*kept, *new))
    attention = [layer.attention for layer in maps.layers]
    if joint:
        rows = [each for each in attention if each is not None]
        attention = [np.concatenate(rows, axis=1) if len(rows) == len(attention) else None]
    return Lineage(names, tuple(tokens), tuple(attention), joint, maps.geometry, maps.model, maps.weights, maps.source)
