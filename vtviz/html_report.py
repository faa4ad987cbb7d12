"""A report of one image: a single HTML file that opens from disk without a network, with its arrays beside it.

It receives finished results and computes nothing but pictures of them. Whatever text comes from users (names of files,
models and classes) is escaped, and a Content-Security-Policy allows the report's own script and style and no request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

import vtviz
from vtviz.card import Card
from vtviz.data.classes import make_palette
from vtviz.drawing import data_address
from vtviz.errors import ConfigError
from vtviz.explain.lineage import KEPT, MADE, Lineage, lineage
from vtviz.explain.lineage_picture import lineage_svg
from vtviz.explain.origin import check_origin, repeated
from vtviz.export import clear_extraction, publish, staged
from vtviz.html_tables import tables
from vtviz.render import COLORMAPS
from vtviz.render_labels import label_overlay
from vtviz.segmentation import Segmentation, from_maps
from vtviz.tokens import LayerMaps, TokenMaps

STATIC = Path(__file__).parent / "static"
PHOTO_SIDE = 1280
"""Longest side of the pictures in the report, in pixels."""
FILES = ("report.html", "maps.npz", "manifest.json")
"""What a report consists of."""
ZIP = "report.zip"


class Result(Protocol):
    """A finished analysis."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""


@dataclass(frozen=True)
class Section:
    """One analysis in a report.

    Attributes:
        title: its heading.
        result: shown as tables of what its ``to_dict`` gives, or of the same as it was stored in a JSON file.
        note: a sentence for people on what was measured and how to read it.
        pictures: (H, W, 3) uint8 RGB, shown before the tables.
    """

    title: str
    result: Result | Mapping[str, Any]
    note: str = ""
    pictures: Sequence[np.ndarray] = ()

    @property
    def data(self) -> Mapping[str, Any]:
        """Plain JSON data."""
        return self.result if isinstance(self.result, Mapping) else self.result.to_dict()


def report(
    maps: TokenMaps,
    folder: str | os.PathLike[str],
    *,
    card: Card | None = None,
    segmentation: Segmentation | None = None,
    sections: Sequence[Section] = (),
    pack: bool = False,
) -> dict[str, Path]:
    """Write ``report.html``, ``maps.npz`` and ``manifest.json`` into ``folder``.

    The page shows the photo with every token map (layer, token, head, colours, scale and opacity to choose), the
    answer, the lineage where no layer is missing before others, the sections, the model's card, and the versions of the
    software. ``TokenMaps.load(folder)`` reads the arrays back. The files are made elsewhere first and moved in at the
    end, the manifest last; an extraction or report that was there before is replaced.

    Args:
        maps: with their image.
        folder: made if it is not there.
        card: of the model.
        segmentation: of a segmentation model; by default that of the maps' logits, in the card's colours.
        sections: finished analyses of the same image, in this order.
        pack: also write ``report.zip``, which holds the three files.

    Returns:
        File name -> path of each file written.

    Raises:
        ConfigError: for maps without their image.
        DataError: for an analysis of another image or model, and where the disk refuses.
    """
    folder = Path(folder)
    if maps.image is None:
        raise ConfigError("these maps do not hold their image; put it in with dataclasses.replace(maps, image=...)")
    for section in sections:
        check_origin(
            section.title,
            section.data,
            source=maps.source,
            model=maps.model,
            weights=maps.weights,
            geometry=maps.geometry,
        )
    if segmentation is None and maps.logits.ndim == 3:
        palette = card.palette if card and card.palette else make_palette(maps.classes)
        segmentation = from_maps(maps, palette)
    page = _page(maps, maps.image, card, segmentation, sections)
    with staged(folder) as stage:
        (stage / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")
        maps.save(stage)
        names = [name for name in FILES if name != "manifest.json"]
        if pack:
            with zipfile.ZipFile(stage / ZIP, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in FILES:
                    archive.write(stage / name, name)
            names.append(ZIP)
        clear_extraction(folder, maps.source)
        return publish(stage, folder, [*names, "manifest.json"])


def _page(
    maps: TokenMaps,
    image: np.ndarray,
    card: Card | None,
    segmentation: Segmentation | None,
    sections: Sequence[Section],
) -> str:
    title = Path(maps.source).name if maps.source else "image"
    (height, width), seen = maps.geometry.original, maps.geometry.input
    untrained = card is not None and not card.trained
    warning = '<p class="warning">Not trained: random weights. Neither maps nor answer mean anything.</p>'
    made = (
        f"{escape(maps.model)}, {width} × {height} pixels, seen as {seen[1]} × {seen[0]}. "
        f"Made with vtviz {vtviz.__version__}."
    )
    body = "".join(
        (
            f'<header><h1>{escape(title)}</h1><p class="soft">{made}</p>{warning if untrained else ""}</header>',
            _viewer(image, title),
            _classes(segmentation) if segmentation else _answer(maps),
            _lineage(maps),
            *(_section(section) for section in sections),
            _about(maps, card),
            _data(maps),
        )
    )
    style, *scripts = ((STATIC / name).read_text(encoding="utf-8") for name in ("report.css", "maps.js", "report.js"))
    script = "\n".join(scripts)
    styles = [style, *re.findall("<style>(.*?)</style>", body, re.DOTALL)]
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {' '.join(map(_hash, styles))}; script-src {_hash(script)}"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: visual tokens</title><style>{style}</style></head>"
        f"<body>{body}<script>{script}</script></body></html>\n"
    )


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


VIEWER = """
<main><p>A visual token is a weighted average of the photo's features. The colours are its weights in <b>× uniform</b>:
1× everywhere would be a token that looks at nothing in particular. Choose a token on the right or below.</p>
<div class="options" role="group" aria-label="Display options">
<label>Opacity<input id="opacity" type="range" min="0" max="1" step="0.01"></label>
<label>Colours<select id="colormap"></select></label>
<label>Scale<select id="scale"><option value="shared">shared by all</option>
<option value="map">each its own</option></select></label>
<label>Heads<select id="head"><option value="-1">mean</option></select></label></div>
<div class="view"><div class="side"><div class="stage" id="stage">
<img id="photo" src="{photo}" alt="{name}"><canvas id="map" role="img"></canvas></div>
<p class="caption"><b id="caption" aria-live="polite"></b><span id="here"></span></p>
<div class="scale"><span id="low"></span><canvas id="bar" width="256" height="1"></canvas><span id="high"></span>
<small>× uniform: 1 is the average over the photo</small></div></div><div id="rows"></div></div>
<noscript><p>The maps need JavaScript; the arrays beside this file do not.</p></noscript></main>
"""


def _viewer(image: np.ndarray, name: str) -> str:
    return VIEWER.format(photo=data_address(_small(image), quality=90), name=escape(name))


def _small(image: np.ndarray) -> np.ndarray:
    scale = PHOTO_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _answer(maps: TokenMaps) -> str:
    items = "".join(
        f"<li><span>{escape(p.label)}</span><span>{p.probability:.1%}</span>"
        f'<meter value="{p.probability:.4f}">{p.probability:.1%}</meter></li>'
        for p in maps.topk()
    )
    return f'<section><h2>Prediction</h2><ol class="answer">{items}</ol></section>'


def _classes(segmentation: Segmentation) -> str:
    areas = segmentation.areas().tolist()
    rows = sorted(
        zip(areas, segmentation.classes, segmentation.palette, strict=True), key=lambda row: row[0], reverse=True
    )
    items = "".join(
        f'<li{"" if area else " class=none"}><svg width="12" height="12"><rect width="12" height="12" '
        f'fill="rgb{tuple(colour)}"/></svg>{escape(name)} {area:.1%}</li>'
        for area, name, colour in rows
    )
    picture = data_address(_small(label_overlay(segmentation)), quality=90)
    return (
        '<section><h2>Classes</h2><p class="soft">The class of each pixel, and its share of those that the model '
        f'saw.</p><div class="classes"><img src="{picture}" alt="The photo under its classes">'
        f'<ul class="legend">{items}</ul></div></section>'
    )


def _lineage(maps: TokenMaps) -> str:
    try:
        found = lineage(maps)
    except ConfigError:  # of some layers only
        return ""
    return (
        f'<section><h2>Lineage</h2><p class="soft">{_told(found)} Point at a token to follow it.</p>'
        f'<div class="wide">{lineage_svg(maps, found)}</div></section>'
    )


def _told(found: Lineage) -> str:
    """How to read the picture of a lineage."""
    reads = "how much it reads of every token in the transformer (heads' mean, 1× would be all alike)"
    if found.joint:
        return f"The tokens of all levels meet in one transformer. Each row is a token: its map, and {reads}."
    parts = ["a token's map"]
    if any(each is not None for each in found.attention):
        parts.append(reads)
    if found.links:
        parts.append("what becomes of it")
    kinds = {link.kind for link in found.links}
    told = f"Each row is a line of descent. From left to right: {', and '.join(parts)}. "
    if MADE in kinds:
        told += "The first half of a layer's tokens (T_a) become filters that gather new tokens; the others are kept."
    elif KEPT in kinds:
        told += "The first half of a layer's tokens (T_a) end; the others are kept (T_b)."
    return told


def _section(section: Section) -> str:
    note = f'<p class="soft">{escape(section.note)}</p>' if section.note else ""
    pictures = "".join(
        f'<figure><img src="{data_address(_small(picture), lossless=True)}" alt="{escape(section.title)}"></figure>'
        for picture in section.pictures
    )
    data = section.data
    hidden = {*repeated(data), "sides"}  # of a comparison: it names its labels, and where the photos lie is nobody's
    data = {key: value for key, value in data.items() if key not in hidden}
    return f"<section><h2>{escape(section.title)}</h2>{note}{pictures}{tables(data)}</section>"


def _about(maps: TokenMaps, card: Card | None) -> str:
    origin = {
        "model": maps.model,
        "weights (sha256)": maps.weights or None,
        "photo (height, width)": " × ".join(map(str, maps.geometry.original)),
        "resized to": " × ".join(map(str, maps.geometry.resized)),
        "seen by the model": " × ".join(map(str, maps.geometry.input)),
        "Eq. 1 recomputed, largest error": max(layer.error for layer in maps.layers),
    }
    model = ""
    if card is not None:
        told = {key: value for key, value in card.to_dict().items() if key not in {"classes", "class_ids", "palette"}}
        facts = {key: value for key, value in told.items() if not isinstance(value, dict)}
        groups = "".join(
            f"<details><summary>{escape(key.capitalize())}</summary>{tables(_without_empty(value))}</details>"
            for key, value in _without_empty(told).items()
            if key not in facts
        )
        names = ", ".join(map(escape, card.classes))
        model = (
            f"<section><h2>Model card</h2>{tables(_without_empty(facts))}{groups}"
            f"<details><summary>Its {len(card.classes)} classes</summary><p>{names}</p></details></section>"
        )
    return (
        '<section><h2>Arrays</h2><p>Beside this file lie <a href="maps.npz" download>maps.npz</a>, every array, and '
        '<a href="manifest.json">manifest.json</a>, which says what they are. In Python: '
        '<code>vtviz.TokenMaps.load("folder")</code>, or <code>numpy.load("maps.npz")</code>.</p></section>'
        f"{model}<section><h2>How this was made</h2>{tables(_without_empty(origin) | dict(maps.versions))}</section>"
    )


def _without_empty(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value not in (None, "", {}, ())}


def _data(maps: TokenMaps) -> str:
    """What the script draws, as JSON that no text in it can break out of."""
    first = maps.layers[0]
    data = {
        "geometry": maps.geometry.to_dict(),
        "start": _strongest(first),
        "colormaps": {name: _base64(colours) for name, colours in COLORMAPS.items()},
        "layers": [
            {
                "name": layer.name,
                "stride": layer.stride,
                "shape": list(layer.coefficients.shape),
                "kept": layer.kept,
                "coefficients": _base64(layer.coefficients.astype("<f4")),
            }
            for layer in maps.layers
        ],
    }
    text = json.dumps(data).replace("<", "\\u003c")
    return f'<script type="application/json" id="data">{text}</script>'


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _strongest(layer: LayerMaps) -> int:
    """The token that peaks highest, of those that do so within the photo: the outermost cells see mostly padding."""
    values = layer.times_uniform()
    inner = values[:, 1:-1, 1:-1].reshape(len(values), -1)
    peaks = values.max(axis=(1, 2))
    within = inner.max(axis=1, initial=0) == peaks
    return int((np.where(within, peaks, 0) if within.any() else peaks).argmax())
