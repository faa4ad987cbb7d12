"""Token maps: the frozen result of an extraction, data and arithmetic only.

Shapes: h heads, L tokens, (h, w) cells, (H, W) pixels of the original image. A token coefficient map A (Eq. 1) is
float32, non-negative and sums to 1 over its cells. What is shown is A x h w, "times uniform": 1 is what a token that
looked everywhere alike would have, so values compare over tokens, layers, images and resolutions.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import operator
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vtviz import geometry as geo
from vtviz import images
from vtviz.errors import ConfigError, DataError
from vtviz.files import spare, write
from vtviz.hooks import Layer
from vtviz.statistics import DEAD_PEAK, LayerStatistics, map_statistics

__all__ = [
    "DEAD_PEAK",
    "LayerMaps",
    "LayerStatistics",
    "Prediction",
    "TokenMaps",
    "check_index",
    "layer_maps",
    "map_statistics",
    "topk",
]

FORMAT = "vtviz token maps 1"
"""What :meth:`TokenMaps.save` calls its layout in the manifest."""
UNREADABLE = OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError
"""What reading damaged files raises; RuntimeError comes of lists within lists without end, and of a zip's cipher."""
UNITS = {
    "coefficients": "share, summing to 1 over each map (heads, tokens, h, w); times h w it is in x uniform",
    "tokens_in": "activation before the transformer (L, C_T)",
    "tokens_out": "activation after the transformer (L, C_T)",
    "attention": "share, summing to 1 over the last axis (heads, L_query, L_key)",
    "projector": "share, summing to 1 over L in each cell (heads, L, h, w)",
    "logits": "logit of each class",
}
"""What the saved arrays hold, by the last part of their names."""


@dataclass(frozen=True)
class Prediction:
    """One class of a classifier's answer."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True, eq=False)
class LayerMaps:
    """What the tokens of one layer looked at, for one image.

    Attributes:
        name: "block0", "block1", ... of a VT-ResNet; "p2" ... "p5" of a VT-FPN.
        stride: model-input pixels per cell; cell i is centred at pixel ``stride * i``.
        coefficients: A, (heads, tokens, h, w) float32, each map summing to 1 over its cells.
        tokens_in: (L, C_T) float32, before the transformer. The last ``num_tokens`` are those that these maps gathered;
            the ``kept`` ones before them (T_b of Eq. 5) come from the previous block.
        tokens_out: (L, C_T) float32, after the transformer.
        attention: of the transformer, (heads, L, L_key) float32, rows summing to 1; L_key counts the tokens of all
            levels in a VT-FPN. None where the model has no transformer.
        projector: coefficients of the projector, (heads, L, h, w) float32, summing to 1 over L in each cell; None in a
            classifier's last block, which has none.
        error: max |A^T V - T|, Eq. 1 recomputed in float64 from these maps and the layer's values V.
    """

    name: str
    stride: int
    coefficients: np.ndarray
    tokens_in: np.ndarray
    tokens_out: np.ndarray
    attention: np.ndarray | None
    projector: np.ndarray | None
    error: float

    @property
    def num_heads(self) -> int:
        """Heads of the tokenizer: 1 where it is static."""
        return self.coefficients.shape[0]

    @property
    def num_tokens(self) -> int:
        """Tokens that this layer gathered anew, one map (per head) each."""
        return self.coefficients.shape[1]

    @property
    def kept(self) -> int:
        """Tokens taken over from the previous block."""
        return len(self.tokens_in) - self.num_tokens

    def of_head(self, head: int | None = None) -> np.ndarray:
        """A of one head, or the heads' mean: (tokens, h, w) float32.

        Raises:
            ConfigError: for a head that is not there.
        """
        if head is None:
            return self.coefficients.mean(axis=0)
        return self.coefficients[check_index("head", head, self.num_heads)]

    def times_uniform(self, head: int | None = None) -> np.ndarray:
        """The maps in x uniform, (tokens, h, w) float32: of one head, or the heads' mean."""
        maps = self.of_head(head)
        return maps * np.float32(maps.shape[-2] * maps.shape[-1])

    def statistics(self, head: int | None = None) -> LayerStatistics:
        """Statistics of the maps of one head, or of the heads' mean."""
        return map_statistics(self.of_head(head))


def layer_maps(layers: Sequence[Layer], names: Sequence[str], strides: Sequence[int], image: int) -> list[LayerMaps]:
    """Copy what the layers computed for one image of the batch out of the model, as NumPy arrays on the CPU.

    Args:
        layers: what a forward pass computed, from a recorder or from ``return_maps=True``.
        names: of the layers.
        strides: of the layers, in model-input pixels per cell.
        image: index within the batch.
    """
    return [_layer_maps(*parts, image) for parts in zip(layers, names, strides, strict=True)]


def _layer_maps(layer: Layer, name: str, stride: int, image: int) -> LayerMaps:
    def own(batch: torch.Tensor) -> torch.Tensor:
        return batch[image].detach().float().cpu()

    def copied(batch: torch.Tensor) -> np.ndarray:
        return np.array(own(batch).numpy(), order="C")  # never a view, which would keep the whole batch

    tokenizer, transformer, projector = layer
    # In PyTorch: the threads that NumPy's products leave waiting take the next forward pass's cores for milliseconds.
    weights, values, gathered = (own(t).double() for t in tokenizer[1:])
    recomputed = (weights.flatten(2) @ values.flatten(2).mT).mT  # Eq. 1; V A^T takes up to ten times as long
    return LayerMaps(
        name=name,
        stride=stride,
        coefficients=copied(tokenizer.coefficients),
        tokens_in=copied(tokenizer.tokens.mT),
        tokens_out=copied(transformer.tokens.mT),
        attention=None if transformer.attention is None else copied(transformer.attention),
        projector=None if projector is None else copied(projector.coefficients),
        error=float((recomputed - gathered).abs().max()),
    )


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """What a model saw in one image: the token maps of its layers, and its answer.

    Attributes:
        layers: the extracted layers, in the order of the forward pass.
        logits: (num_classes,) float32; of a segmentation model (num_classes, h, w) at the model's input size.
        classes: display names, in the order of the logits.
        geometry: how the image became the model's input.
        model: name of the checkpoint.
        weights: sha256 of the checkpoint's weights; empty for a model that came from none.
        source: where the image came from, if from a file.
        image: (H, W, 3) uint8 RGB, the original; None where maps were saved without it.
        versions: of the software that made the maps.
    """

    layers: tuple[LayerMaps, ...]
    logits: np.ndarray
    classes: tuple[str, ...]
    geometry: geo.Geometry
    model: str
    weights: str = ""
    source: str | None = None
    image: np.ndarray | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def layer(self, index: int) -> LayerMaps:
        """``layers[index]``, negative from the end. Raises ConfigError out of range."""
        return self.layers[check_index("layer", index, len(self.layers))]

    def times_uniform(self, layer: int, head: int | None = None) -> np.ndarray:
        """A layer's maps in x uniform, (tokens, h, w) float32: of one head, or the heads' mean.

        Raises:
            ConfigError: for a layer or head that is not there.
        """
        return self.layer(layer).times_uniform(head)

    def at_image_size(
        self, layer: int, token: int, head: int | None = None, align: str = "receptive_field"
    ) -> np.ndarray:
        """One map over the original image, (H, W) float32 in x uniform; NaN where a crop cut the image off.

        Args:
            layer: index into ``layers``, negative from the end.
            token: index of the map within the layer, negative from the end.
            head: of the tokenizer; None for the heads' mean.
            align: "receptive_field" draws each cell where the network looked; "resize" is the plain resize of other
                tools, half a cell off.

        Raises:
            ConfigError: for a layer, token or head that is not there, or an unknown alignment.
        """
        chosen = self.layer(layer)
        values = chosen.times_uniform(head)[check_index("token", token, chosen.num_tokens)]
        return geo.upsample(values, self.geometry, stride=chosen.stride, align=align)

    def topk(self, k: int = 5) -> list[Prediction]:
        """The ``k`` most probable classes (all, if there are fewer), most probable first.

        Raises:
            ConfigError: for k < 1, or maps of a segmentation model.
        """
        return topk(self.logits, self.classes, k)

    def statistics(self) -> dict[str, LayerStatistics]:
        """Layer name -> statistics of its maps, the heads' mean."""
        return {layer.name: layer.statistics() for layer in self.layers}

    def save(self, folder: str | os.PathLike[str], *, image: bool = False) -> dict[str, Path]:
        """Write ``maps.npz`` and ``manifest.json`` (geometry, units, shapes, versions, hashes) into ``folder``.

        Args:
            folder: made if it is not there.
            image: also write the original image, as ``image.png``.

        Returns:
            File name -> path of each file written.

        Raises:
            ConfigError: where ``image.png`` would replace the image that was looked at.
            DataError: where the disk refuses, or the image is asked for and not there.
        """
        photo = self.image if image else None
        if image and photo is None:
            raise DataError(f"{folder}: these maps were loaded without their image")
        arrays = {"logits": self.logits}
        layers = []
        for layer in self.layers:
            parts = {name: getattr(layer, name) for name in UNITS if getattr(layer, name, None) is not None}
            arrays |= {f"{layer.name}.{name}": array for name, array in parts.items()}
            layers.append({"name": layer.name, "stride": layer.stride, "error": layer.error})
        buffer = io.BytesIO()
        # not compressed: that takes as long as the model, and saves 8 %
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # typed as if names could clash with options
        files = {"maps.npz": buffer.getvalue()}
        if photo is not None:
            buffer = io.BytesIO()
            Image.fromarray(photo).save(buffer, "PNG")
            files["image.png"] = buffer.getvalue()
        manifest = {
            "format": FORMAT,
            "model": self.model,
            "weights": self.weights,
            "source": self.source,
            "versions": dict(self.versions),
            "geometry": self.geometry.to_dict(),
            "layers": layers,
            "arrays": {
                name: {"shape": list(a.shape), "dtype": str(a.dtype), "unit": UNITS[name.split(".")[-1]]}
                for name, a in arrays.items()
            },
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
            "classes": list(self.classes),
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        files["manifest.json"] = text.encode("utf-8", "backslashreplace")  # a file's name need not be UTF-8
        paths = {name: Path(folder) / name for name in files}
        spare([self.source], paths.values())
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                write(paths[name], data)
        except OSError as error:
            raise DataError(f"{folder}: cannot write: {error.strerror or error}") from None
        return paths

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TokenMaps:
        """Read what :meth:`save` wrote, arrays bit for bit.

        Raises:
            DataError: where a file is missing, damaged, or not the one that the manifest describes.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_bytes())
            if manifest["format"] != FORMAT:
                raise DataError(f"{folder}: expected {FORMAT!r}, got {manifest['format']!r}")
            files = {
                name: (folder / name).read_bytes() for name in ("maps.npz", "image.png") if name in manifest["sha256"]
            }
            for name, data in files.items():
                if hashlib.sha256(data).hexdigest() != manifest["sha256"][name]:
                    raise DataError(f"{folder / name}: sha256 is not the manifest's; the file was changed")
            photo = files.get("image.png")
            with np.load(io.BytesIO(files["maps.npz"]), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            if {name: list(a.shape) for name, a in arrays.items()} != {
                name: a["shape"] for name, a in manifest["arrays"].items()
            }:
                raise DataError(f"{folder}: the arrays of maps.npz are not those of the manifest")
            return cls(
                layers=tuple(_stored_layer(layer, arrays) for layer in manifest["layers"]),
                logits=arrays["logits"],
                classes=tuple(manifest["classes"]),
                geometry=geo.Geometry.from_dict(manifest["geometry"]),
                model=manifest["model"],
                weights=manifest["weights"],
                source=manifest["source"],
                image=None if photo is None else _own_photo(photo),
                versions=manifest["versions"],
            )
        except FileNotFoundError as error:
            raise DataError(f"{folder}: no {Path(error.filename).name}; not a folder of token maps") from None
        except (*UNREADABLE, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{folder}: not token maps: {' '.join(str(error).split())}") from None

    def _repr_html_(self) -> str:
        height, width = self.geometry.original
        title = f"{self.model}: {self.source or 'image'}, {width} × {height} px"
        answer = ", ".join(f"{p.label} {p.probability:.1%}" for p in self.topk()) if self.logits.ndim == 1 else ""
        rows = "".join(
            f"<tr><td>{html.escape(x.name)}</td><td>{x.num_tokens} × {x.num_heads}</td>"
            f"<td>{x.coefficients.shape[2]} × {x.coefficients.shape[3]}</td><td>{s.peak:.2f}</td>"
            f"<td>{s.correlation:.2f}</td><td>{s.dead}</td><td>{x.error:.1e}</td></tr>"
            for x, s in ((x, x.statistics()) for x in self.layers)
        )
        head = "".join(
            f"<th>{t}</th>"
            for t in ("layer", "tokens × heads", "cells", "peak (× uniform)", "correlation", "dead", "max |AᵀV − T|")
        )
        return f"<p><b>{html.escape(title)}</b><br>{html.escape(answer)}</p><table><tr>{head}</tr>{rows}</table>"


def _own_photo(data: bytes) -> np.ndarray:
    """As PNG a photo may well be larger than the file that came in, and what is too large to hold is held already."""
    return images.load(data, limits=replace(images.LIMITS, bytes=len(data)))


def _stored_layer(layer: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> LayerMaps:
    prefix = layer["name"] + "."
    parts: dict[str, Any] = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    return LayerMaps(**{"attention": None, "projector": None, **layer, **parts})


def topk(logits: np.ndarray, classes: Sequence[str], k: int = 5) -> list[Prediction]:
    """The ``k`` most probable of a classifier's classes, from its logits (num_classes,), most probable first.

    Raises:
        ConfigError: for k < 1, or logits of a segmentation model.
    """
    if logits.ndim != 1:
        raise ConfigError(f"top-k classes need a classifier's logits (num_classes,), got shape {logits.shape}")
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    best = np.argsort(-probabilities, kind="stable")[:k]
    return [Prediction(int(i), classes[i], float(probabilities[i])) for i in best]


def check_index(what: str, index: Any, count: int) -> int:
    """``index`` as a Python integer, checked against ``count``."""
    try:
        value = operator.index(index)
    except TypeError:
        raise ConfigError(f"{what} must be an integer, got {index!r}") from None
    if not -count <= value < count:
        raise ConfigError(f"there is no {what} {value}: this one has {count} (0 to {count - 1})")
    return value
