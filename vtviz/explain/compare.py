"""Which token of one model, image or epoch is which of another: tokens matched by the overlap of their maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch

from vtviz import checkpoints, images
from vtviz.errors import ConfigError, DataError
from vtviz.explain.origin import origin
from vtviz.geometry import Geometry, upsample
from vtviz.models.registry import model_from_config
from vtviz.statistics import map_overlaps
from vtviz.tokens import UNREADABLE, TokenMaps

CANVAS = 56
"""Maps of two grids are compared on a canvas of so many rows and columns, which stand for the whole photo."""
CHANCE_DRAWS = 20


@dataclass(frozen=True, eq=False)
class SideLayer:
    """The maps of one layer.

    Attributes:
        name: of the layer.
        stride: model-input pixels per cell.
        values: (L, h, w) float32 in x uniform; of several heads their mean.
    """

    name: str
    stride: int
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two that are compared: what one model saw in one image.

    Attributes:
        label: what it is called.
        image: (H, W, 3) uint8 RGB.
        geometry: how the image became the model's input.
        layers: in the order of the forward pass.
        model: name of the checkpoint.
        weights: sha256 of the checkpoint's weights; empty where they are not known, as those of an epoch.
        source: where the image came from, if from a file.
    """

    label: str
    image: np.ndarray
    geometry: Geometry
    layers: tuple[SideLayer, ...]
    model: str = ""
    weights: str = ""
    source: str | None = None


def side_of_maps(maps: TokenMaps, label: str | None = None) -> Side:
    """Token maps as one side of a comparison.

    Args:
        maps: with their image.
        label: the model's name by default.

    Raises:
        ConfigError: for maps without their image.
    """
    if maps.image is None:
        raise ConfigError(f"the maps of {maps.source or maps.model} do not hold their image")
    layers = tuple(SideLayer(layer.name, layer.stride, layer.times_uniform()) for layer in maps.layers)
    return Side(label or maps.model, maps.image, maps.geometry, layers, maps.model, maps.weights, maps.source)


def side_of_epoch(run: str | Path, epoch: int, label: str | None = None) -> Side:
    """What a run's model saw in the run's probe image after an epoch.

    Args:
        run: the run folder; see :mod:`vtviz.train.probe` for what lies in it.
        epoch: from 1.
        label: the run folder's name and the epoch by default.

    Raises:
        CheckpointError: for a ~user that there is not, or a run without weights, whose card says where the cells are.
        DataError: where the run has no maps of that epoch, or they are damaged.
    """
    folder = checkpoints.at_home(run) / "probe"
    known = list_epochs(run)
    if epoch not in known:
        span = f"it has {len(known)}, {known[0]} to {known[-1]}" if known else "it has none of any"
        raise DataError(f"{run}: no token maps of epoch {epoch}; {span}")
    card = checkpoints.read_card(checkpoints.find(folder.parent))
    try:
        with torch.device("meta"):
            model: Any = model_from_config(card.model, card.config)
        with np.load(folder / f"epoch{epoch:04d}.npz", allow_pickle=False) as stored:
            arrays = {name: stored[name].astype(np.float32) for name in stored.files}
    except (*UNREADABLE, ValueError, TokenError) as error:  # the last of an array's header, which is Python
        raise DataError(f"{folder}: epoch {epoch} is damaged: {' '.join(str(error).split())}") from None
    strides = dict(zip(arrays, model.token_strides, strict=False))
    if len(arrays) != len(model.token_strides) or any(array.ndim != 3 for array in arrays.values()):
        raise DataError(f"{folder}: epoch {epoch} does not hold the maps of {len(model.token_strides)} layers")
    source = folder / "image.png"
    image = images.load(source)
    name, array = next(iter(arrays.items()))
    height, width = (side * strides[name] for side in array.shape[1:])
    geometry = Geometry((image.shape[0], image.shape[1]), (height, width), (0, 0), (height, width))
    layers = tuple(SideLayer(name, strides[name], values) for name, values in arrays.items())
    label = label or f"{folder.parent.resolve().name}, epoch {epoch}"
    return Side(label, image, geometry, layers, model=card.name, source=str(source))


def list_epochs(run: str | Path) -> list[int]:
    """The epochs of which a run has token maps, rising. Raises CheckpointError for a ~user that there is not."""
    files = (checkpoints.at_home(run) / "probe").glob("epoch[0-9]*.npz")
    return sorted(int(file.stem[5:]) for file in files if file.stem[5:].isdecimal())


@dataclass(frozen=True)
class TokenPair:
    """A token of each side.

    Attributes:
        first: index of the map in the first side's layer.
        second: likewise in the second's.
        overlap: share of their mass that the two maps have in common, 0 to 1.
    """

    first: int
    second: int
    overlap: float


@dataclass(frozen=True, eq=False)
class LayerMatch:
    """How the tokens of two layers go together.

    Attributes:
        names: of the two layers.
        overlap: (L, M) float64 in [0, 1], of every map with every other; see :func:`vtviz.statistics.map_overlaps`.
        pairs: the matching of the largest overlap in all, from the best pair to the worst.
        unmatched: tokens of the first and of the second layer that are left over.
        mean: mean overlap of the pairs.
        chance: the same where the second side's maps are moved about at random, mean over 20 times: what maps of these
            shapes share wherever they lie.
    """

    names: tuple[str, str]
    overlap: np.ndarray
    pairs: tuple[TokenPair, ...]
    unmatched: tuple[tuple[int, ...], tuple[int, ...]]
    mean: float
    chance: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "names": list(self.names),
            "pairs": [{"first": p.first, "second": p.second, "overlap": p.overlap} for p in self.pairs],
            "unmatched": [list(tokens) for tokens in self.unmatched],
            "mean": self.mean,
            "chance": self.chance,
            "overlap": self.overlap.tolist(),
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models, images or epochs, layer by layer.

    Attributes:
        labels: of the two sides.
        sides: image, model and crop of each, as :func:`vtviz.explain.origin.origin` says them.
        layers: the first layers of both, the second ones, ... as far as both have them.
    """

    labels: tuple[str, str]
    sides: tuple[Mapping[str, Any], Mapping[str, Any]]
    layers: tuple[LayerMatch, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "labels": list(self.labels),
            "sides": [dict(side) for side in self.sides],
            "layers": [layer.to_dict() for layer in self.layers],
        }


def compare(first: TokenMaps | Side, second: TokenMaps | Side, *, seed: int = 0) -> Comparison:
    """Match the tokens of two models, images or epochs, layer by layer.

    Args:
        first: token maps, or an epoch of a run by :func:`vtviz.explain.compare.side_of_epoch`.
        second: likewise. Two images are laid over each other whole, whatever their sizes.
        seed: of the moves for ``chance``.

    Returns:
        The matching of each layer, the Hungarian one: the sum of the pairs' overlaps is the largest possible.

    Raises:
        ConfigError: for maps without their image, and for anything else.
    """
    first, second = _side(first), _side(second)
    rng = np.random.default_rng(seed)
    layers = []
    for one, other in zip(first.layers, second.layers, strict=False):
        ours, theirs = _common(one, first.geometry, other, second.geometry)
        overlap = map_overlaps(ours, theirs)
        pairs = _match(overlap)
        chance = [_match(map_overlaps(ours, _moved(theirs, rng))) for _ in range(CHANCE_DRAWS)]
        layers.append(
            LayerMatch(
                names=(one.name, other.name),
                overlap=overlap,
                pairs=pairs,
                unmatched=(
                    tuple(sorted(set(range(len(ours))) - {p.first for p in pairs})),
                    tuple(sorted(set(range(len(theirs))) - {p.second for p in pairs})),
                ),
                mean=_mean(pairs),
                chance=float(np.mean([_mean(drawn) for drawn in chance])),
            )
        )
    return Comparison((first.label, second.label), (origin(first), origin(second)), tuple(layers))


def _side(given: TokenMaps | Side) -> Side:
    if isinstance(given, TokenMaps):
        return side_of_maps(given)
    if not isinstance(given, Side):
        raise ConfigError(f"compare takes token maps or an epoch of a run, got {type(given).__name__}")
    return given


def _common(one: SideLayer, where: Geometry, other: SideLayer, there: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The maps of both, (L, h, w) and (M, h, w), each summing to 1, over the same places of the photo."""
    if where == there and one.values.shape[1:] == other.values.shape[1:]:
        ours, theirs = one.values, other.values
    else:
        ours, theirs = (
            np.nan_to_num(upsample(s.values, replace(g, original=(CANVAS, CANVAS)), stride=s.stride))
            for s, g in ((one, where), (other, there))
        )
    return _normalized(ours), _normalized(theirs)


def _normalized(maps: np.ndarray) -> np.ndarray:
    maps = maps.astype(np.float64)
    return maps / np.maximum(maps.sum(axis=(1, 2), keepdims=True), np.finfo(np.float64).tiny)


def _moved(maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each map shifted around the edges by a random way, and so no other than it was but for its place."""
    ways = rng.integers(0, maps.shape[1:], size=(len(maps), 2))
    return np.stack([np.roll(map_, tuple(way), axis=(0, 1)) for map_, way in zip(maps, ways, strict=True)])


def _match(overlap: np.ndarray) -> tuple[TokenPair, ...]:
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - takes half a second

    rows, columns = linear_sum_assignment(overlap, maximize=True)
    pairs = [TokenPair(int(i), int(j), float(overlap[i, j])) for i, j in zip(rows, columns, strict=True)]
    return tuple(sorted(pairs, key=lambda pair: (-pair.overlap, pair.first)))


def _mean(pairs: Sequence[TokenPair]) -> float:
    return float(np.mean([pair.overlap for pair in pairs]))
