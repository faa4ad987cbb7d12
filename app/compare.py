"""The tab Compare: two models, two photos or two epochs of a run side by side, their tokens matched."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from app.examples import load_examples
from app.explore import MODEL_CALLS, message
from app.payload import encode_array, encode_photo, encode_statistics
from app.shelf import Shelf
from app.shown import open_example, open_upload, path_of, refusing
from vtviz.errors import ConfigError, VtvizError
from vtviz.explain.compare import Comparison, Side, SideLayer, compare, list_epochs, side_of_epoch, side_of_maps
from vtviz.render import COLORMAPS, value_range
from vtviz.statistics import map_statistics
from vtviz.tokens import Prediction

EPOCH = "@epoch"
"""Between a run's name and an epoch, in the value of a choice."""
UPLOAD, SAME = "upload:", "same"
"""Of a photo's choice: how the value of an uploaded one begins; the first side's photo."""
LABELS = ("Left", "Right")


class Looked(NamedTuple):
    """What one side shows, and by whom: a value of :meth:`CompareTab.choices`."""

    who: str
    side: Side
    prediction: list[Prediction]
    trained: bool


class CompareTab:
    """The handlers of the tab. They keep nothing: a session's choice stands in its form."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def choices(self) -> list[tuple[str, str]]:
        """What a side can be: a model, or the state of a run's model after an epoch; (label, value)."""
        models = self.shelf.with_tokens
        epochs = [
            (f"{name}, epoch {epoch} (on its own photo)", f"{name}{EPOCH}{epoch}")
            for name in models
            for epoch in self._epochs(name)
        ]
        return [*((name, name) for name in models), *epochs]

    def _epochs(self, name: str) -> list[int]:
        source = Path(self.shelf.source(name))
        return list_epochs(source) if source.is_dir() else []

    def look(self, who: Any, photo: np.ndarray | None) -> Looked:
        """One side: what a model sees in a photo, or what it saw after an epoch in its run's own.

        Args:
            who: value of one of :meth:`choices`.
            photo: (H, W, 3) uint8 RGB; an epoch needs none.

        Raises:
            VtvizError: for a model that is not offered or has no tokens, an epoch without maps, or no photo.
        """
        name, _, epoch = str(who).partition(EPOCH)
        if epoch:
            if epoch not in map(str, self._epochs(name)):
                raise ConfigError(f"there are no token maps of {str(who)[:80]!r}")
            side = side_of_epoch(self.shelf.source(name), int(epoch), f"{name}, epoch {epoch}")
            return Looked(str(who), replace(side, source=None), [], trained=True)  # no path of the server's goes out
        predictor = self.shelf.get(name)
        if photo is None:
            raise ConfigError("a photo is needed")
        maps = predictor.extract(photo)
        side = side_of_maps(maps, name)
        card = predictor.card
        return Looked(name, side, maps.topk(5) if predictor.palette is None else [], card is None or card.trained)

    def run(self, first: Any, photo: Any, upload: Any, second: Any, other: Any, upload2: Any) -> tuple[Any, str]:
        """Compare what the form says: view, message.

        Args:
            first: who looks at the left.
            photo: at which photo.
            upload: the file, where that is an uploaded one.
            second: likewise at the right.
            other: likewise; :data:`SAME` for the left's photo.
            upload2: likewise.
        """
        try:
            image = open_choice(photo, upload)
            sides = self.look(first, image), self.look(second, image if other == SAME else open_choice(other, upload2))
        except VtvizError as error:
            return gr.skip(), message(str(error))
        return describe(sides, compare(*(each.side for each in sides))), ""

    def first(self, opened: bool, *form: Any) -> tuple[Any, str]:
        """What the tab shows when it is opened for the first time."""
        return (gr.skip(), "") if opened else self.run(*form)

    def compare(self, photo: Any, model: str, second_photo: Any, second_model: str) -> dict[str, Any]:
        """Match the tokens of two models, or of one model in two photos, by the overlap of their maps.

        Returns for each layer the pairs (first, second, overlap: the share of their weight that both maps have in
        common), the tokens left over, the mean overlap and what maps of these shapes share by chance. Without a second
        photo both models look at the first.
        """
        with refusing():
            image = open_upload(path_of(photo))
            other = image if second_photo is None else open_upload(path_of(second_photo))
            return compare(self.look(model, image).side, self.look(second_model, other).side).to_dict()

    def build(self, tab: gr.Tab) -> None:
        """Lay the tab out, in the current Blocks."""
        found = self.choices()
        shown = [(example.title, key) for key, example in load_examples().items()]
        sides: list[list[Any]] = []
        with gr.Row(elem_id="compare-strip"):
            for number, label in enumerate(LABELS):
                with gr.Column(min_width=280, elem_classes="vtx-side-form"):
                    who = gr.Dropdown(
                        found,
                        value=found[0][1] if found else None,
                        label=f"{label}: model or epoch",
                        elem_id=f"compare-who-{number}",
                    )
                    with gr.Row(elem_classes="vtx-pair"):
                        offered = [*([("The left's photo", SAME)] if number else []), *shown]
                        photo = gr.Dropdown(
                            offered,
                            value=offered[-number][1],  # the first, and the last: two that differ
                            label=f"{label}: photo",
                            filterable=False,
                            elem_id=f"compare-photo-{number}",
                            min_width=140,
                        )
                        upload = gr.UploadButton(
                            "Upload …",
                            file_types=["image"],
                            size="sm",
                            elem_id=f"compare-upload-{number}",
                            min_width=90,
                        )
                    sides.append([who, photo, upload])
        note = gr.HTML(elem_id="compare-message", apply_default_css=False)
        view = gr.HTML(
            None,
            html_template='<div class="vtx-compare"></div>',
            js_on_load="vtviz.compare(element, props, watch);",
            apply_default_css=False,
            elem_id="compare",
            colormaps={name: encode_array(table) for name, table in COLORMAPS.items()},
        )
        opened = gr.State(False)
        form = [*sides[0], *sides[1]]
        # preprocess=False: what is wrong is told in a line, and Gradio checks that a path is its upload
        common: dict[str, Any] = {
            "api_visibility": "private",
            "preprocess": False,
            "show_progress": "minimal",
            "show_progress_on": view,
            "concurrency_id": MODEL_CALLS,
            "concurrency_limit": 1,
            "trigger_mode": "always_last",
        }
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
        for (who, photo, upload), kept in zip(sides, ([], [("The left's photo", SAME)]), strict=True):
            tab.select(lambda: gr.Dropdown(choices=self.choices()), None, [who], queue=False, **quiet)
            for control in (who, photo):  # a choice has one change event, but two of input
                control.change(self.run, form, [view, note], **common)
            upload.upload(partial(offer_upload, shown=[*kept, *shown]), [upload], [photo], **quiet)
        first = tab.select(self.first, [opened, *form], [view, note], **common)
        first.then(lambda: True, None, [opened], **quiet)
        self._build_endpoint()

    def _build_endpoint(self) -> None:
        """``/compare`` for gradio_client: two photos and models, plain JSON as output."""
        photos = [
            gr.Image(type="filepath", image_mode=None, visible=False, label=label)
            for label in ("The photo", "Another photo, or none")
        ]
        names = self.shelf.with_tokens
        models = [gr.Dropdown(names, value=names[0] if names else None, visible=False, label="Model") for _ in photos]
        gr.Button(visible=False).click(
            self.compare,
            [photos[0], models[0], photos[1], models[1]],
            gr.JSON(visible=False, label="The comparison"),
            preprocess=False,
            api_name="compare",
            concurrency_id=MODEL_CALLS,
            concurrency_limit=1,
        )


def offer_upload(file: Any, shown: Sequence[tuple[str, str]]) -> Any:
    """The choice of photos with an uploaded one, chosen. Its value is a new one each time, as the file is."""
    name = str((file or {}).get("orig_name") or "your photo")[:60]
    value = f"{UPLOAD}{uuid.uuid4().hex}"
    return gr.Dropdown(choices=[*shown, (name, value)], value=value)


def open_choice(photo: Any, upload: Any) -> np.ndarray:
    """The photo of a choice, (H, W, 3) uint8 RGB. Raises VtvizError."""
    if str(photo).startswith(UPLOAD):
        return open_upload(path_of(upload))
    return open_example(str(photo))


def describe(sides: Sequence[Looked], comparison: Comparison) -> dict[str, Any]:
    """A comparison for ``static/compare.js``: of each side a payload of the canvas component, and the matching.

    Attention, heads and a segmentation's classes are left out: maps are matched by the heads' mean, and so shown.
    """
    peaks = np.concatenate([layer.values.max(axis=(1, 2)) for each in sides for layer in each.side.layers])
    match = comparison.to_dict()
    for layer in match["layers"]:
        del layer["overlap"]
    return {
        "id": uuid.uuid4().hex,
        "sides": [_encode(each) for each in sides],
        "same": {
            "model": sides[0].who == sides[1].who,
            "photo": np.array_equal(sides[0].side.image, sides[1].side.image),
        },
        "match": match,
        "high": value_range(peaks, "shared")[1],
    }


def _encode(looked: Looked) -> dict[str, Any]:
    side = looked.side
    return {
        "id": uuid.uuid4().hex,
        "photo": encode_photo(side.image),
        "geometry": side.geometry.to_dict(),
        "model": side.label,
        "trained": looked.trained,
        "note": "",
        "classes": [],
        "prediction": [asdict(each) for each in looked.prediction],
        "layers": [_encode_layer(layer) for layer in side.layers],
        "lineage": None,
        "segmentation": None,
    }


def _encode_layer(layer: SideLayer) -> dict[str, Any]:
    """As :mod:`app.payload` has it, for maps of one head; ``error`` is not known of an epoch, and not shown here."""
    values = layer.values.astype(np.float32)
    maps = values / np.float32(values[0].size)
    found = encode_statistics(map_statistics(maps))
    return {
        "name": layer.name,
        "stride": layer.stride,
        "shape": [1, *maps.shape],
        "kept": 0,
        "error": 0.0,
        "coefficients": encode_array(maps),
        "statistics": [found] * 2,
        "attention": None,
        "projector": None,
    }
