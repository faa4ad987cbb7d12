"""What the browser gets, once: the photo at display size and the raw maps, as plain JSON data.

Layout (everything the canvas in ``static/`` draws comes from it)::

    id          names this payload
    photo       data: address of the photo, longest side at most 1280 pixels, JPEG (PNG for small pictures)
    geometry    Geometry.to_dict(): original, resized, offset, input
    model, trained, note
    classes     names, in the order of the logits
    prediction  [{index, label, probability}, ...], most probable first; empty for a segmentation model
    layers      [{name, stride, shape, kept, error, coefficients, statistics, attention, projector}, ...]; empty for a
                model without tokens
    lineage     {joint, tokens, links}: Lineage.to_dict() without its attention; None for a model without tokens
    segmentation  None for a classifier, else:
        classes     [{index, name, colour, area, iou}, ...] in the order of the logits; colour (r, g, b) of 0-255; area
                    the share of the pixels that the model saw; iou, with a mask only, None for a class in neither
        labels      data: address of an 8-bit palette PNG of the photo's size as sent: one class index per pixel, 255
                    where a crop cut off. Its palette is grey i = index i, as a browser gives back colours only
        confidence  the same of an 8-bit grey PNG: the probability of each pixel's class x 255, at no more than the
                    model input's resolution
        matrix      [layer][token][class]: the share of the token's mass in the class
        names       [layer][token]: index of the class that names the token, or None
        miou        mean of the IoUs, with a mask only
        given       {labels, areas, matrix, names} by the uploaded mask, or None

``coefficients`` is A, (heads, tokens, h, w) = ``shape``, base64 of little-endian float32: bit for bit the maps of the
API (a VT-ResNet-18's take 150 KB, a VT-FPN's 600 KB). ``statistics`` holds the heads' mean first and then each head, so
that choosing a head asks nothing of the server. ``attention`` (heads, L, L_key) and ``projector``, the heads' mean
(L, h, w), are {shape, data}, or None where the model has none: shares of 1 as unsigned 16-bit integers, 65535 = 1,
which is finer than anything that is shown (40 KB of a VT-ResNet-18, 300 KB of a VT-FPN). Logits are not sent: a
segmentation's would take megabytes.
"""

from __future__ import annotations

import base64
import io
import math
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vtviz.card import Card
from vtviz.explain.lineage import lineage
from vtviz.explain.token_classes import segmentation_scores, token_classes
from vtviz.geometry import Geometry
from vtviz.segmentation import UNSEEN, Segmentation
from vtviz.statistics import LayerStatistics, stack_statistics
from vtviz.tokens import LayerMaps, Prediction, TokenMaps

PHOTO_SIDE = 1280
"""Longest side of the photo that is sent, in pixels."""
THUMBNAIL_SIDE = 160
"""The same for an example's thumbnail."""
LOSSLESS_PIXELS = 256**2
"""Pictures up to this size are sent as PNG: JPEG would blur their few pixels."""


def encode_photo(image: np.ndarray, side: int = PHOTO_SIDE) -> str:
    """(H, W, 3) uint8 RGB -> a ``data:`` address of it, made smaller where its longest side exceeds ``side``."""
    height, width = _sent_size(image.shape, side)
    if (height, width) != image.shape[:2]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    lossless = image.shape[0] * image.shape[1] <= LOSSLESS_PIXELS and side == PHOTO_SIDE
    kind, options = ("png", []) if lossless else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, 90])
    _, data = cv2.imencode(f".{kind}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def _sent_size(shape: Sequence[int], side: int = PHOTO_SIDE) -> tuple[int, int]:
    """(H, W) of an image of ``shape`` once its longest side is at most ``side``."""
    scale = min(1.0, side / max(shape[:2]))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def encode_array(array: np.ndarray) -> str:
    """Base64 of an array's bytes, float32 little-endian or uint8."""
    kind = "<f4" if array.dtype.kind == "f" else "u1"
    return base64.b64encode(np.ascontiguousarray(array, dtype=kind).tobytes()).decode()


def encode_shares(array: np.ndarray | None) -> dict[str, Any] | None:
    """Values of 0 to 1 in 16 bits each, little-endian, as base64 with their shape; None stays None."""
    if array is None:
        return None
    whole = np.rint(np.clip(array, 0, 1) * 65535).astype("<u2")
    return {"shape": list(array.shape), "data": base64.b64encode(whole.tobytes()).decode()}


def decode_layer(layer: dict[str, Any]) -> np.ndarray:
    """A layer's coefficients, (heads, tokens, h, w) float32, as the server had them."""
    return np.frombuffer(base64.b64decode(layer["coefficients"]), "<f4").reshape(layer["shape"])


def encode(
    maps: TokenMaps | None,
    segmentation: Segmentation | None,
    card: Card | None,
    truth: np.ndarray | None = None,
    *,
    photo: str | None = None,
) -> dict[str, Any]:
    """The payload of a model's tokens and classes.

    Args:
        maps: None for a model without tokens.
        segmentation: None for a classifier. At least one of the two is there, and has its image.
        card: of the model.
        truth: (H, W) uint8, the given class of each pixel (255: none), to compare the segmentation with.
        photo: from :func:`encode_photo`, where that was done already.

    Raises:
        DataError: for a truth that does not fit.
    """
    result = maps or segmentation
    if result is None or result.image is None:
        raise ValueError("the result came without its image")
    prediction = maps.topk(5) if maps and not segmentation else []
    address = photo or encode_photo(result.image)
    payload = _payload(address, result.geometry, result.model, card, prediction, result.classes)
    payload["layers"] = [_encode_layer(layer) for layer in maps.layers] if maps else []
    if maps:
        descent = lineage(maps).to_dict()
        payload["lineage"] = {key: descent[key] for key in ("joint", "tokens", "links")}
    payload["segmentation"] = _encode_segmentation(segmentation, maps, truth) if segmentation else None
    return payload


def encode_prediction(image: np.ndarray, prediction: list[Prediction], model: str, card: Card | None) -> dict[str, Any]:
    """The payload of a classifier without tokens: (H, W, 3) uint8 photo and prediction alone."""
    size = (image.shape[0], image.shape[1])
    geometry = Geometry(size, size, (0, 0), size)
    return _payload(encode_photo(image), geometry, model, card, prediction, card.classes if card else ())


def _payload(
    photo: str,
    geometry: Geometry,
    model: str,
    card: Card | None,
    prediction: list[Prediction],
    classes: Sequence[str],
) -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex,
        "photo": photo,
        "geometry": geometry.to_dict(),
        "model": model,
        "trained": card is None or card.trained,
        "note": accuracy_note(card),
        "classes": list(classes),
        "prediction": [asdict(each) for each in prediction],
        "layers": [],
        "lineage": None,
        "segmentation": None,
    }


def _encode_segmentation(result: Segmentation, maps: TokenMaps | None, truth: np.ndarray | None) -> dict[str, Any]:
    rows = zip(result.classes, result.palette, result.areas().tolist(), strict=True)
    classes = [{"index": i, "name": n, "colour": list(c), "area": a} for i, (n, c, a) in enumerate(rows)]
    data: dict[str, Any] = {"classes": classes, "confidence": _encode_confidence(result), "given": None}
    if truth is not None:
        scores = segmentation_scores(result.labels, truth, len(classes))
        data["miou"] = scores.miou
        for each, iou in zip(classes, scores.iou.tolist(), strict=True):
            each["iou"] = None if math.isnan(iou) else iou
        seen = np.where(result.labels == UNSEEN, np.uint8(UNSEEN), truth)
        areas = replace(result, labels=seen).areas().tolist()
        data["given"] = {"areas": areas} | _encode_labels(seen, maps)
    return data | _encode_labels(result.labels, maps)


def _encode_labels(labels: np.ndarray, maps: TokenMaps | None) -> dict[str, Any]:
    """The picture of the labels, and what the tokens have of each class."""
    layers = [token_classes(maps, labels, layer=i) for i in range(len(maps.layers))] if maps else []
    names = [
        [None if name is None else best for name, best in zip(each.names, most.tolist(), strict=True)]
        for each in layers
        for most in [(each.mass - each.area).argmax(axis=1)]
    ]
    picture = Image.fromarray(_sample(labels, _sent_size(labels.shape))).convert("P")
    return {"labels": _encode_png(picture), "matrix": [each.mass.round(4).tolist() for each in layers], "names": names}


def _encode_confidence(result: Segmentation) -> str:
    height, width = (min(pair) for pair in zip(_sent_size(result.labels.shape), result.geometry.resized, strict=True))
    # of the small image from the start: the logits are resampled C times
    labels = _sample(result.labels, (height, width))
    small = replace(result, labels=labels, geometry=replace(result.geometry, original=(height, width)))
    values = np.nan_to_num(small.confidence() * 255).round().astype(np.uint8)
    return _encode_png(Image.fromarray(values))


def _sample(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour, with both images' edges on one another."""
    rows, columns = (
        ((np.arange(n) + 0.5) * side / n).astype(np.intp) for n, side in zip(size, labels.shape, strict=True)
    )
    return labels[np.ix_(rows, columns)]


def _encode_png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _encode_layer(layer: LayerMaps) -> dict[str, Any]:
    statistics = stack_statistics(np.concatenate((layer.of_head(None)[None], layer.coefficients)))
    return {
        "name": layer.name,
        "stride": layer.stride,
        "shape": list(layer.coefficients.shape),
        "kept": layer.kept,
        "error": layer.error,
        "coefficients": encode_array(layer.coefficients),
        "statistics": [encode_statistics(each) for each in statistics],
        "attention": encode_shares(layer.attention),
        "projector": encode_shares(None if layer.projector is None else layer.projector.mean(axis=0)),
    }


def encode_statistics(values: LayerStatistics) -> dict[str, Any]:
    """A layer's statistics and those of each of its tokens."""
    columns = zip(values.token_peak, values.token_entropy_normalized, values.token_top10, strict=True)
    return values.summary() | {
        "tokens": [{"peak": float(p), "entropy": float(e), "top10": float(t)} for p, e, t in columns]
    }


def accuracy_note(card: Card | None) -> str:
    """One line on how far the prediction can be trusted; empty where the card does not say."""
    if card is None or not card.trained:
        return ""
    n = card.accuracy.get("n")
    photos = f"{n:,} validation photos" if isinstance(n, int) else "its validation photos"
    anything = f"It knows {len(card.classes)} classes (see About) and gives"
    if isinstance(top1 := card.accuracy.get("top1"), int | float):
        return f"Its first guess is right for {top1:.0%} of {photos}. {anything} a photo of anything else one of them."
    if isinstance(miou := card.accuracy.get("miou"), int | float):
        return (
            f"The mean IoU of its classes is {miou:.2f} on {photos} (1 = all right). "
            f"{anything} every pixel one of them, also of photos unlike those it learned from."
        )
    return ""
