"""What the browser gets, once: the photo at display size and the raw maps, as plain JSON data.

Layout (everything the canvas in ``static/`` draws comes from it)::

    id          names this payload
    photo       data: address of the photo, longest side at most 1280 pixels, JPEG (PNG for small pictures)
    geometry    Geometry.to_dict(): original, resized, offset, input
    model, trained, note
    prediction  [{index, label, probability}, ...], most probable first; empty for a segmentation model
    layers      [{name, stride, shape, kept, error, coefficients, statistics}, ...]

``coefficients`` is A, (heads, tokens, h, w) = ``shape``, base64 of little-endian float32: bit for bit the maps of the
API (a VT-ResNet-18's take 150 KB). ``statistics`` holds the heads' mean first and then each head, so that choosing a
head asks nothing of the server.
"""

from __future__ import annotations

import base64
import uuid
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np

from vtviz.card import Card
from vtviz.geometry import Geometry
from vtviz.statistics import LayerStatistics, map_statistics
from vtviz.tokens import LayerMaps, Prediction, TokenMaps

PHOTO_SIDE = 1280
"""Longest side of the photo that is sent, in pixels."""
THUMBNAIL_SIDE = 160
"""The same for an example's thumbnail."""
LOSSLESS_PIXELS = 256**2
"""Pictures up to this size are sent as PNG: JPEG would blur their few pixels."""


def encode_photo(image: np.ndarray, side: int = PHOTO_SIDE) -> str:
    """(H, W, 3) uint8 RGB -> a ``data:`` address of it, made smaller where its longest side exceeds ``side``."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    lossless = image.shape[0] * image.shape[1] <= LOSSLESS_PIXELS and side == PHOTO_SIDE
    kind, options = ("png", []) if lossless else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, 90])
    _, data = cv2.imencode(f".{kind}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def encode_array(array: np.ndarray) -> str:
    """Base64 of an array's bytes, float32 little-endian or uint8."""
    kind = "<f4" if array.dtype.kind == "f" else "u1"
    return base64.b64encode(np.ascontiguousarray(array, dtype=kind).tobytes()).decode()


def decode_layer(layer: dict[str, Any]) -> np.ndarray:
    """A layer's coefficients, (heads, tokens, h, w) float32, as the server had them."""
    return np.frombuffer(base64.b64decode(layer["coefficients"]), "<f4").reshape(layer["shape"])


def encode_maps(maps: TokenMaps, card: Card | None) -> dict[str, Any]:
    """The payload of an extraction. ``maps.image`` must be there."""
    if maps.image is None:
        raise ValueError("the maps came without their image")
    prediction = maps.topk(5) if maps.logits.ndim == 1 else []
    layers = [_encode_layer(layer) for layer in maps.layers]
    return _payload(maps.image, maps.geometry, maps.model, card, prediction, layers)


def encode_prediction(image: np.ndarray, prediction: list[Prediction], model: str, card: Card | None) -> dict[str, Any]:
    """The payload of a model without tokens: (H, W, 3) uint8 photo and prediction alone."""
    size = (image.shape[0], image.shape[1])
    return _payload(image, Geometry(size, size, (0, 0), size), model, card, prediction, [])


def _payload(
    image: np.ndarray,
    geometry: Geometry,
    model: str,
    card: Card | None,
    prediction: list[Prediction],
    layers: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex,
        "photo": encode_photo(image),
        "geometry": geometry.to_dict(),
        "model": model,
        "trained": card is None or card.trained,
        "note": accuracy_note(card),
        "prediction": [asdict(each) for each in prediction],
        "layers": layers,
    }


def _encode_layer(layer: LayerMaps) -> dict[str, Any]:
    statistics = [layer.statistics(), *(map_statistics(maps) for maps in layer.coefficients)]
    return {
        "name": layer.name,
        "stride": layer.stride,
        "shape": list(layer.coefficients.shape),
        "kept": layer.kept,
        "error": layer.error,
        "coefficients": encode_array(layer.coefficients),
        "statistics": [_encode_statistics(each) for each in statistics],
    }


def _encode_statistics(values: LayerStatistics) -> dict[str, Any]:
    columns = zip(values.token_peak, values.token_entropy_normalized, values.token_top10, strict=True)
    return values.summary() | {
        "tokens": [{"peak": float(p), "entropy": float(e), "top10": float(t)} for p, e, t in columns]
    }


def accuracy_note(card: Card | None) -> str:
    """One line on how far the prediction can be trusted; empty where the card does not say."""
    if card is None or not card.trained or not isinstance(card.accuracy.get("top1"), int | float):
        return ""
    top1, n = card.accuracy["top1"], card.accuracy.get("n")
    of = f" of {n:,} validation photos" if isinstance(n, int) else " of its validation photos"
    return (
        f"Its first guess is right for {top1:.0%}{of}. "
        f"It knows {len(card.classes)} classes (see About) and gives a photo of anything else one of them."
    )
