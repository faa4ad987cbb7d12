"""Pictures of a lineage: each line of descent is one row, through every layer and transformer, as PNG or SVG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np
from PIL import Image

from vtviz.drawing import Colour, Figure, Group, Part, Picture, Shape, Words, box, to_png, to_svg
from vtviz.explain.lineage import KEPT, MADE, Lineage, LineageToken
from vtviz.explain.lineage import lineage as find_lineage
from vtviz.export import publish, staged
from vtviz.lettering import lettering
from vtviz.render import COLORMAPS, colorize, value_range
from vtviz.thumbnails import thumbnails
from vtviz.tokens import TokenMaps

ATTENTION_CMAP = "magma"
"""Colours of attention, others than those of the maps."""
KEPT_COLOUR: Colour = (128, 132, 142)
MADE_COLOUR: Colour = (37, 99, 235)
MARGIN, ROW, CELL = 16, 38, 14
"""Pixels around everything; from row to row; the width of a cell of a transformer's matrix."""
NAMES, GAP, BANDS = 52, 8, 120
"""Width of the tokens' names; between thumbnail and matrix; of the bands between two layers."""
TOP, LEVEL_GAP = 74, 12
"""Height of the headings; room between two levels of a VT-FPN."""


def lineage_figure(maps: TokenMaps, lineage: Lineage | None = None) -> Figure:
    """Lay out the lineage of an image's tokens.

    From left to right: each layer's tokens as their maps over the photo, what each reads in the layer's transformer
    (heads' mean), and a band to what becomes of it. Below, or beside where one transformer relates all layers, every
    head on its own. A kept token shows the map that gathered it.

    Args:
        maps: of all layers, with their image.
        lineage: of these maps, where it is known already.

    Raises:
        ConfigError: for maps without their image or of some layers only.
    """
    return _Layout(maps, lineage or find_lineage(maps)).figure()


def lineage_png(maps: TokenMaps, lineage: Lineage | None = None) -> np.ndarray:
    """:func:`lineage_figure` as (height, width, 3) uint8 RGB on white, two pixels for each of the figure's."""
    return to_png(lineage_figure(maps, lineage))


def lineage_svg(maps: TokenMaps, lineage: Lineage | None = None) -> str:
    """:func:`lineage_figure` as one SVG element; the pointer, or the Tab key, lights up one line of descent.

    It has no script: style rules do it. See :func:`vtviz.drawing.to_svg`.
    """
    layout = _Layout(maps, lineage or find_lineage(maps))
    style = ".vl-token{cursor:default;outline:none}" + "".join(
        f".vl:has(.vl-{row}:is(:hover,:focus-visible)) .vl-line:not(.vl-{row}){{opacity:.15}}"
        for row in range(layout.num_rows)
    )
    return to_svg(layout.figure(), "Lineage of the tokens", name="vl", style=style)


@dataclass(frozen=True)
class _Column:
    """The tokens that one transformer relates, from top to bottom."""

    tokens: list[LineageToken]
    attention: np.ndarray | None
    """(heads, L, L) in x uniform, in the order of ``tokens``."""


class _Layout:
    def __init__(self, maps: TokenMaps, lineage: Lineage) -> None:
        self.lineage = lineage
        self.rows = _rows(lineage)
        self.num_rows = 1 + max(max(rows) for rows in self.rows)
        self.thumbnails = thumbnails(maps)
        height, width = self.thumbnails.pictures[0][0].shape[:2]
        scale = min((ROW - 4) / height, 64 / width)
        self.height, self.width = height * scale, width * scale
        self.columns = self._columns()
        peaks = [each.attention.max(axis=2).ravel() for each in self.columns if each.attention is not None]
        self.limits = value_range(np.concatenate(peaks), "shared") if peaks else None

    def _columns(self) -> list[_Column]:
        layers = [list(layer) for layer in self.lineage.tokens]
        groups = [list(chain(*layers))] if self.lineage.joint else layers
        columns = []
        for tokens, attention in zip(groups, self.lineage.attention, strict=True):
            order = sorted(range(len(tokens)), key=lambda i: self._row(tokens[i]))
            shown = None if attention is None else attention[:, order][:, :, order] * np.float32(len(order))
            columns.append(_Column([tokens[i] for i in order], shown))
        return columns

    def _row(self, token: LineageToken) -> int:
        return self.rows[token.layer][token.slot]

    def _y(self, token: LineageToken) -> float:
        """The middle of a token's row."""
        gaps = token.layer * LEVEL_GAP if self.lineage.joint else 0
        return TOP + (self._row(token) + 0.5) * ROW + gaps

    def figure(self) -> Figure:
        parts: list[Part] = []
        x = float(MARGIN)
        for index, column in enumerate(self.columns):
            if index:
                parts += self._bands(index, x - BANDS)
            parts += self._headings(column, x)
            parts += [self._token(column, place, x) for place in range(len(column.tokens))]
            x += self._matrix_left + self._matrix_width(column) + (BANDS if index < len(self.columns) - 1 else 0)
        bottom = float(TOP + self.num_rows * ROW)
        width = max(x, 640.0)
        if self.lineage.joint:
            bottom += (len(self.lineage.tokens) - 1) * LEVEL_GAP
            heads, width, lower = self._heads(self.columns[0], "its heads", x + 2 * MARGIN, TOP, per_line=2, size=124)
            parts, bottom = parts + heads, max(bottom, lower)
        else:
            size = (width - MARGIN - 15 * 6) / 16
            for layer, column in zip(self.lineage.layers, self.columns, strict=True):
                if column.attention is not None:
                    heads, _, bottom = self._heads(
                        column, f"{layer}, its heads", MARGIN, bottom + 28, per_line=16, size=size
                    )
                    parts += heads
        parts += self._legend(bottom + 40)
        return Figure(width + MARGIN, bottom + 70, parts)

    @property
    def _matrix_left(self) -> float:
        """From a column's left edge to its matrix."""
        return NAMES + self.width + GAP

    def _matrix_width(self, column: _Column) -> float:
        return 0 if column.attention is None else CELL * len(column.tokens)

    def _headings(self, column: _Column, x: float) -> list[Part]:
        tokens, size = column.tokens, len(column.tokens)
        first = x + NAMES
        if self.lineage.joint:
            name = f"{self.lineage.layers[0]} to {self.lineage.layers[-1]}"
            what = f"{size} tokens of {len(self.lineage.layers)} levels, all from learned filters"
        else:
            name, kept = self.lineage.layers[tokens[0].layer], sum(token.kind == KEPT for token in tokens)
            what = f"{size - kept} new tokens" if any(token.kind == MADE for token in tokens) else ""
            what = (what or f"{size - kept} tokens from learned filters") + (f", {kept} kept" if kept else "")
        parts: list[Part] = [Words(first, 16, name, 16), Words(first, 36, what, 13, muted=True)]
        if column.attention is None:
            return parts
        left = x + self._matrix_left
        for place, token in enumerate(tokens):
            if self.lineage.joint and token.slot == 0:
                parts.append(Words(left + CELL * place, TOP - 8, self.lineage.layers[token.layer], 11))
            elif not self.lineage.joint:
                number, middle = str(token.gathered[1]), left + CELL * (place + 0.5)
                parts.append(Words(middle, TOP - 8, number, 9, "middle", muted=token.kind == KEPT))
        return [*parts, Words(left, TOP - 22, "which tokens it reads", 11, muted=True)]

    def _token(self, column: _Column, place: int, x: float) -> Group:
        """A token's name, its map, and its row of the transformer's matrix."""
        token = column.tokens[place]
        layer, index = token.gathered
        y, top = self._y(token), self._y(token) - self.height / 2
        kind = self.lineage.layers[token.layer] if self.lineage.joint else {KEPT: "kept", MADE: "new"}.get(token.kind)
        if kind is None and token.layer:
            kind = "new"
        name = f"{kind} {index}" if kind else str(index)
        parts: list[Part] = [
            Words(x + NAMES - 7, y, name, 12, "end", muted=token.kind == KEPT),
            Picture(x + NAMES, top, self.width, self.height, self.thumbnails.pictures[layer][index]),
        ]
        title = self._told(token)
        if column.attention is not None:
            values = column.attention.mean(axis=0)[place]
            left, width = x + self._matrix_left, self._matrix_width(column)
            parts.append(Picture(left, top, width, self.height, self._colours(values[None]), cells=True))
            most = np.argsort(-values, kind="stable")[:2]
            read = " and ".join(f"{self._name(column.tokens[i])} ({values[i]:.1f}×)" for i in most)
            title += f". It reads most of {read}"
        return Group(parts, f"vl-line vl-token vl-{self._row(token)}", title)

    def _name(self, token: LineageToken) -> str:
        layer, index = token.gathered
        return f"{self.lineage.layers[layer]} token {index}"

    def _told(self, token: LineageToken) -> str:
        here, name = self.lineage.layers[token.layer], self._name(token)
        if token.kind == KEPT:
            return f"{name}, kept in {here}"
        if token.kind == MADE:
            before = self.lineage.tokens[token.layer - 1][token.origin or 0]
            return f"{name}, gathered with the filter that {self._name(before)} became"
        return f"{name}, gathered with a learned filter"

    def _bands(self, layer: int, left: float) -> list[Part]:
        """What becomes of the tokens of the layer before."""
        parts: list[Part] = []
        for token in self.lineage.tokens[layer]:
            if token.origin is None:
                continue
            y, half = self._y(token), self.height / 2 - 5
            x0, x1 = left + GAP, left + BANDS + NAMES - 60
            if token.kind == KEPT:
                band = box(x0, y - half, x1 - x0, 2 * half, KEPT_COLOUR, 0.45)
            else:
                band = Shape(_funnel(x0, x1, y, half), MADE_COLOUR, 0.55)
            parts.append(Group([band], f"vl-line vl-{self._row(token)}"))
        return parts

    def _colours(self, values: np.ndarray) -> np.ndarray:
        low, high = self.limits or (0.0, 2.0)
        return colorize(values, ATTENTION_CMAP, low, high)

    def _heads(
        self, column: _Column, title: str, x: float, y: float, *, per_line: int, size: float
    ) -> tuple[list[Part], float, float]:
        """Every head's matrix; what there is ends at the second value to the right, at the third below."""
        parts: list[Part] = [Words(x, y, title, 12)]
        matrices, pitch = column.attention if column.attention is not None else (), size + 6
        for head, values in enumerate(matrices):
            line, place = divmod(head, per_line)
            left, top = x + place * pitch, y + 14 + line * (pitch + 12)
            parts.append(Picture(left, top, size, size, self._colours(values), cells=True))
            parts.append(Words(left + size / 2, top + size + 7, str(head), 9, "middle", muted=True))
        lines = -(-len(matrices) // per_line)
        return parts, x + min(len(matrices), per_line) * pitch, y + 14 + lines * (pitch + 12)

    def _legend(self, y: float) -> list[Part]:
        """Colours of the bands, and the scales of maps and attention."""
        parts: list[Part] = []
        x = float(MARGIN)
        kinds = {link.kind for link in self.lineage.links}
        for kind, colour, text in ((KEPT, KEPT_COLOUR, "kept (T_b)"), (MADE, MADE_COLOUR, "becomes a filter (T_a)")):
            if kind in kinds:
                parts += [box(x, y - 6, 22, 12, colour, 0.5), Words(x + 28, y, text, 12)]
                x += 46 + _width(text)
        for name, cmap, limits in (
            ("maps:", self.thumbnails.cmap, self.thumbnails.limits),
            ("attention:", ATTENTION_CMAP, self.limits),
        ):
            if limits is not None:
                low, high = f"{name} {limits[0]:g}", f"{limits[1]:.1f}× uniform"
                colours = np.ascontiguousarray(COLORMAPS[cmap][None, ::4])
                left = x + _width(low) + 6
                parts += [Words(x, y, low, 12), Picture(left, y - 6, 70, 12, colours, cells=True)]
                parts += [Words(left + 76, y, high, 12)]
                x = left + 96 + _width(high)
        return parts


def _width(text: str) -> float:
    """Room for text of size 12, also in the wider letters of some browsers."""
    return 1.2 * lettering(text, 12).width


def _rows(lineage: Lineage) -> list[list[int]]:
    """[layer][slot] -> the row of the token's line of descent: its origin's, or a new one."""
    rows: list[list[int]] = []
    fresh = count()
    for layer in lineage.tokens:
        rows.append([next(fresh) if token.origin is None else rows[-1][token.origin] for token in layer])
    return rows


def _funnel(x0: float, x1: float, y: float, half: float) -> Sequence[tuple[float, float]]:
    """A band that narrows to a point: a token that goes on as a filter."""
    steps = np.linspace(0, 1, 17)
    widths = half * (0.5 + 0.5 * np.cos(np.pi * steps)) * 0.94 + half * 0.06
    upper = [(x0 + s * (x1 - x0), y - w) for s, w in zip(steps.tolist(), widths.tolist(), strict=True)]
    lower = [(x0 + s * (x1 - x0), y + w) for s, w in zip(steps.tolist(), widths.tolist(), strict=True)]
    return [*upper, *reversed(lower)]


def save_lineage(maps: TokenMaps, lineage: Lineage, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write ``lineage.png``, ``lineage.svg``, ``attention.npz`` and ``lineage.json`` into ``folder``.

    Returns:
        File name -> path of each file written.

    Raises:
        ConfigError: for maps without their image.
        DataError: where the disk refuses.
    """
    with staged(folder) as stage:
        Image.fromarray(lineage_png(maps, lineage)).save(stage / "lineage.png")
        (stage / "lineage.svg").write_text(lineage_svg(maps, lineage), encoding="utf-8", errors="backslashreplace")
        pictures = publish(stage, folder, ("lineage.png", "lineage.svg"), images=[maps.source])
    return pictures | lineage.save(folder)
