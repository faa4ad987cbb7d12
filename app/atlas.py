"""The tab Atlas: what each token of a model stood for over a data set, beside what chance gives."""

from __future__ import annotations

import base64
import tempfile
import uuid
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np

from app.datasets import DataRoot, has_masks, has_photos
from app.explore import KEEP_SECONDS, MODEL_CALLS, message
from app.shelf import Shelf
from app.shown import hidden, refusing
from app.stops import Stops
from vtviz import images
from vtviz.errors import ConfigError, ImageError, VtvizError
from vtviz.explain.atlas import Atlas, LayerAtlas, mean_of_pairs
from vtviz.explain.atlas_file import SUFFIX, find_atlas, load_atlas, save_atlas
from vtviz.explain.dissection import dissect
from vtviz.render import overlay, value_range
from vtviz.thumbnails import shrink
from vtviz.tokens import check_index

SHOWN = 3
"""So many photos of a token are shown before it is opened."""
THUMBNAIL_SIDE, OPENED_SIDE = 96, 168
"""Longest side of a photo, in pixels, before and after its token is opened."""
PHOTOS, MOST_PHOTOS = 200, 5000
"""A dissection looks at so many photos if not told otherwise, and at no more."""
NO_MASKS = "none"
DISSECTIONS = "dissect"
"""Dissections wait for one another, and for nothing else."""
COST = "Looks at a random choice of the validation photos, with the model and with the same one untrained."
NO_ATLAS = (
    "No atlas of {model} yet. It shows what each token stands for over a data set: dissect photos of your own to make "
    "one, or put the atlas.json that vtviz dissect writes beside the model's weights, as {file}."
)
NO_ROOT = (
    "These are file names only: no photo comes with the page. To see the photos, start it with --data-root DIR, where "
    "DIR holds your copy of the data set {name}."
)
NO_COPY = (
    "These are file names only: below the data root there is no folder called {name}. Put your copy of that data set "
    "there to see the photos."
)


@dataclass(frozen=True, eq=False)
class Opened:
    """What a session looks at."""

    atlas: Atlas
    model: str
    copy: str | None
    """The data set below the data root that holds the photos; None where there is none."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """By which the browser knows of which atlas a token's photos are."""


class AtlasTab:
    """The handlers of the tab.

    Args:
        shelf: the models.
        data: what photos are shown of, and what may be dissected; None shows file names only.
        seconds: that one dissection may take; by default any time.
    """

    def __init__(self, shelf: Shelf, data: DataRoot | None = None, seconds: float | None = None) -> None:
        self.shelf, self.data = shelf, data
        self.stops = Stops(seconds)
        self._thumbnail = lru_cache(maxsize=2048)(encode_thumbnail)

    def open(self, model: Any) -> tuple[Any, Opened | None, str]:
        """The atlas that lies beside a model: view, state, message."""
        try:
            opened = self.find(str(model))
        except VtvizError as error:
            return gr.HTML(None, token=None), None, message(self.plain(error))
        return gr.HTML(self.describe(opened), token=None), opened, ""

    def find(self, model: str) -> Opened:
        """Raises VtvizError where the model has no atlas that fits it."""
        source = self.shelf.source(model)
        path = find_atlas(source)
        if not path.is_file():
            raise ConfigError(NO_ATLAS.format(model=model, file=path.name))
        with hidden(path):
            atlas = load_atlas(source)
        return Opened(atlas, model, self.copy_of(atlas))

    def copy_of(self, atlas: Atlas) -> str | None:
        """The data set below the root that an atlas was made of, or a copy: the one whose folder has its name."""
        if self.data is None:
            return None
        names = [name for name in self.data.names(has_photos) if (self.data.root / name).name == atlas.data.name]
        first = next((peaks[0].file for layer in atlas.layers for peaks in layer.photos if peaks), "")
        return next((name for name in names if self.data.file(name, first)), None)

    def open_token(self, opened: Opened | None, event: gr.EventData) -> tuple[Any, str]:
        """All photos of one token, with its map over them: for the view, and a message."""
        if opened is None:
            return gr.skip(), message("This atlas is no longer on the server; choose the model again.")
        try:
            return gr.HTML(
                token=self.describe_token(opened, getattr(event, "layer", None), getattr(event, "token", None))
            ), ""
        except VtvizError as error:
            return gr.skip(), message(self.plain(error))

    def describe(self, opened: Opened) -> dict[str, Any]:
        """An atlas for ``static/atlas.js``."""
        atlas = opened.atlas
        note = "" if opened.copy else (NO_COPY if self.data else NO_ROOT).format(name=atlas.data.name)
        return {
            "id": opened.id,
            "model": opened.model,
            "data": {"name": atlas.data.name, "split": atlas.data.split, "n": atlas.data.n},
            "masks": atlas.masks and {"name": atlas.masks.name, "n": atlas.masks.n, "split": atlas.masks.split},
            "skipped": atlas.skipped,
            "threshold": atlas.threshold,
            "note": note,
            "layers": [self._describe_layer(opened, i) for i in range(len(atlas.layers))],
        }

    def _describe_layer(self, opened: Opened, index: int) -> dict[str, Any]:
        layer, names = opened.atlas.layers[index], opened.atlas.token_names(index)
        shared, untrained, shuffled = (
            _shared(overlap) for overlap in (layer.trained.overlap, layer.untrained.overlap, layer.shuffled_overlap)
        )
        best = _best_classes(opened.atlas, layer)
        return {
            "name": layer.name,
            "redundancy": layer.trained.redundancy,
            "untrained": layer.untrained.redundancy,
            "shuffled": mean_of_pairs(layer.shuffled_overlap),
            "tokens": [
                {
                    "name": names[token],
                    "dead": token in layer.trained.dead,
                    "peak": [float(layer.trained.peak[token]), float(layer.untrained.peak[token])],
                    "entropy": [float(layer.trained.entropy[token]), float(layer.untrained.entropy[token])],
                    "shared": [float(shared[token]), float(untrained[token]), float(shuffled[token])],
                    "best": best[token],
                    "photos": [
                        {"file": p.file, "peak": p.peak, "y": p.y, "x": p.x, "photo": self._photo(opened.copy, p.file)}
                        for p in peaks[:SHOWN]
                    ],
                }
                for token, peaks in enumerate(layer.photos)
            ],
        }

    def _photo(self, copy: str | None, file: str) -> str | None:
        path = self.data.file(copy, file) if self.data and copy else None
        return self._thumbnail(path) if path else None

    def describe_token(self, opened: Opened, layer: Any, token: Any) -> dict[str, Any]:
        """All photos of a token: with its map over them where there is a copy of the data, else their names."""
        index = check_index("layer", layer, len(opened.atlas.layers))
        chosen = opened.atlas.layers[index]
        place = check_index("token", token, len(chosen.photos))
        peaks = np.array([peak.peak for each in chosen.photos for peak in each[:SHOWN]])
        limits = value_range(peaks, "shared")
        photos = []
        for peak in chosen.photos[place]:
            path = self.data.file(opened.copy, peak.file) if self.data and opened.copy else None
            drawn = path and self._draw(opened, path, index, place, limits)
            photos.append({"file": peak.file, "peak": peak.peak, "photo": drawn or None})
        return {
            "id": uuid.uuid4().hex,  # Gradio tells the browser of no answer that equals the last one
            "atlas": opened.id,
            "layer": index,
            "token": place,
            "limits": limits,
            "photos": photos,
        }

    def _draw(self, opened: Opened, path: Path, layer: int, token: int, limits: tuple[float, float]) -> str | None:
        try:
            image = images.load(path)
        except ImageError:
            return None
        predictor = self.shelf.get(opened.model)
        maps = predictor.extract(image, layers=[layer], size=opened.atlas.size)
        return encode_jpeg(overlay(shrink(maps, OPENED_SIDE), 0, token, opacity=0.45, scale=limits))

    def examine(
        self, model: str, data: str, masks: str, n: float, request: gr.Request, progress: gr.Progress
    ) -> Opened:
        """Dissect a data set below the root.

        Raises:
            VtvizError: for what cannot work, and where it was cancelled.
        """
        if self.data is None:
            raise ConfigError("no data root was given: start the page with --data-root DIR")
        if not isinstance(n, int | float) or n % 1 or not 2 <= n <= MOST_PHOTOS:
            raise ConfigError(
                f"the number of photos must be a whole number from 2 to {MOST_PHOTOS}, got {str(n)[:40]!r}"
            )
        predictor = self.shelf.get(model)
        folder = self.data.path(data, has_photos)
        outlines = self.data.path(masks, has_masks) if masks and masks != NO_MASKS else None
        with self.stops.watch(request, progress, "Photos looked at") as tell:
            atlas = dissect(predictor, folder, masks=outlines, limit=int(n), progress=tell)
        return Opened(atlas, model, data)

    def run(
        self,
        model: str,
        data: str,
        masks: str,
        n: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio hands one over
    ) -> tuple[Any, ...]:
        """The button Dissect: the model, for another may have been chosen meanwhile; view, state, message, file."""
        try:
            opened = self.examine(model, data, masks, n, request, progress)
            file = self._save(opened.atlas, model)
        except VtvizError as error:
            return *[gr.skip()] * 3, message(self.plain(error)), gr.skip()
        view = gr.HTML(self.describe(opened), token=None)
        return model, view, opened, "", gr.DownloadButton(value=file, visible=True)

    def atlas(self, model: str) -> dict[str, Any]:
        """Read the atlas of a model: what each of its tokens stood for over a data set.

        Returns what `vtviz dissect --json` prints: for each layer and token the mean peak (in x uniform) and entropy (0
        to 1), the overlap with the other tokens, the file names of the photos that it peaks on most and, where there
        were masks, the IoU with each class; each beside the same of the untrained model and of shuffled photos.
        """
        with refusing(self.plain):
            return self.find(model).atlas.to_dict()

    def dissect(
        self,
        model: str,
        data: str,
        masks: str,
        n: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[dict[str, Any], str]:
        """Make an atlas from photos below the page's data root, as `vtviz dissect` does.

        Returns the atlas as /atlas has it, and the same as a file to keep beside the model's weights.
        """
        with refusing(self.plain):
            atlas = self.examine(model, data, masks, n, request, progress).atlas
            return atlas.to_dict(), self._save(atlas, model)

    def _save(self, atlas: Atlas, model: str) -> str:
        """Write an atlas where Gradio serves and later deletes it; the file's path."""
        with tempfile.TemporaryDirectory() as folder:
            path = save_atlas(Path(folder) / f"{Path(model).name}{SUFFIX}", atlas)
            return str(self.file.move_resource_to_block_cache(str(path)))

    def plain(self, error: VtvizError) -> str:
        """An error's line without where the data lies on the server."""
        return str(error).replace(f"{self.data.root}/", "") if self.data else str(error)

    def build(self, tab: gr.Tab) -> None:
        """Lay the tab out, in the current Blocks."""
        names = self.shelf.with_tokens
        state = gr.State(None, time_to_live=KEEP_SECONDS)
        with gr.Row(elem_id="atlas-strip", equal_height=True):
            model = gr.Dropdown(
                names, value=names[0] if names else None, label="Model", elem_id="atlas-model", filterable=False
            )
            with gr.Accordion("Dissect photos of your own", open=False, elem_id="atlas-own"):
                controls = self._build_form()
        note = gr.HTML(elem_id="atlas-message", apply_default_css=False)
        view = gr.HTML(
            None,
            html_template='<div class="vtx-atlas"></div>',
            js_on_load="vtviz.atlas(element, props, (event) => trigger('pick', event), watch);",
            apply_default_css=False,
            elem_id="atlas",
            token=None,
        )
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
        busy = quiet | {"show_progress": "minimal", "show_progress_on": view}
        tab.select(lambda: gr.Dropdown(choices=self.shelf.with_tokens), None, [model], queue=False, **quiet)
        first = tab.select(lambda seen: None if seen else gr.skip(), [state], [note], **quiet)
        first.then(self.follow, [model, state], [view, state, note], **busy)
        model.change(self.follow, [model, state], [view, state, note], **busy)
        shared = {"concurrency_id": MODEL_CALLS, "concurrency_limit": 1}
        # "multiple": by default Gradio drops a click that comes before the last one's answer
        view.pick(self.open_token, [state], [view, note], trigger_mode="multiple", **quiet, **shared)
        if controls:
            *form, go, cancel, self.file, bar = controls
            go.click(self.stops.expect, None, None, queue=False, **quiet)
            go.click(
                self.run,
                [model, *form],
                [model, view, state, note, self.file],
                concurrency_id=DISSECTIONS,
                concurrency_limit=1,
                **quiet | {"show_progress": "full", "show_progress_on": bar},
            )
            cancel.click(self.stops.cancel, None, None, queue=False, **quiet)
            tab.select(self.choices, None, form[:2], queue=False, **quiet)
            gr.Button(visible=False).click(
                self.dissect,
                [model, *form],
                [gr.JSON(visible=False, label="The atlas"), gr.File(visible=False, label="NAME.atlas.json")],
                api_name="dissect",
                concurrency_id=DISSECTIONS,
                concurrency_limit=1,
                preprocess=False,
            )
        gr.Button(visible=False).click(
            self.atlas, [model], gr.JSON(visible=False, label="The atlas"), api_name="atlas", preprocess=False
        )

    def follow(self, model: Any, opened: Opened | None) -> tuple[Any, ...]:
        """Open the atlas of the model that is chosen, unless one of it is open, as after a dissection."""
        return (gr.skip(),) * 3 if opened and opened.model == model else self.open(model)

    def choices(self) -> tuple[Any, Any]:
        """Data sets and masks as they now are, for the form's two lists."""
        names, outlined = (self.data.names(suits) if self.data else [] for suits in (has_photos, has_masks))
        return gr.Dropdown(choices=names), gr.Dropdown(choices=[("No masks", NO_MASKS), *outlined])

    def _build_form(self) -> list[Any] | None:
        if self.data is None:
            gr.HTML(
                "<p class='vtx-cost'>Start the page with <code>--data-root DIR</code>; then any folder of photos below "
                "it can be dissected here.</p>",
                apply_default_css=False,
            )
            return None
        sets, outlined = self.data.names(has_photos), self.data.names(has_masks)
        with gr.Row(elem_classes="vtx-pair"):
            data = gr.Dropdown(sets, value=sets[0] if sets else None, label="Photos", min_width=90)
            masks = gr.Dropdown([("No masks", NO_MASKS), *outlined], value=NO_MASKS, label="Masks", min_width=90)
            count = gr.Number(PHOTOS, label="How many", min_width=70, precision=0)
        with gr.Row(elem_classes="vtx-pair"):
            go = gr.Button("Dissect", variant="primary", size="sm", elem_id="atlas-go", min_width=90)
            cancel = gr.Button("Cancel", size="sm", elem_id="atlas-cancel", min_width=90)
            file = gr.DownloadButton("Save atlas", visible=False, size="sm", min_width=90)
        bar = gr.HTML(f'<p class="vtx-cost">{COST}</p>', elem_id="atlas-progress", apply_default_css=False)
        return [data, masks, count, go, cancel, file, bar]


def encode_thumbnail(path: Path) -> str | None:
    """A photo as a ``data:`` address of a small JPEG; None for a file that is no image."""
    try:
        image = images.load(path)
    except ImageError:
        return None
    scale = min(1.0, THUMBNAIL_SIDE / min(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return encode_jpeg(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def encode_jpeg(image: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB -> a ``data:`` address."""
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def _shared(overlap: np.ndarray) -> np.ndarray:
    """Of each token the mean overlap with the others: (L, L) -> (L,); 0 for a single one."""
    count = len(overlap)
    return (overlap.sum(axis=1) - np.diag(overlap)) / max(1, count - 1)


def _best_classes(atlas: Atlas, layer: LayerAtlas) -> list[dict[str, Any] | None]:
    """Of each token the class that it covers most beyond the masks of other photos, and how well, beside baselines."""
    if atlas.masks is None or layer.classes is None:
        return [None] * len(layer.photos)
    classes = layer.classes
    rows: list[dict[str, Any] | None] = []
    for token, index in enumerate((classes.iou - classes.shuffled).argmax(axis=1).tolist()):
        values = [float(each[token, index]) for each in (classes.iou, classes.untrained, classes.shuffled)]
        rows.append({"class": atlas.masks.classes[index], "iou": values})
    return rows
