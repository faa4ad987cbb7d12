"""The tab Explore: a photo in, its tokens and the prediction out."""

from __future__ import annotations

import re
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from app.analyses import Analyses
from app.canvas import canvas
from app.examples import load_examples
from app.payload import THUMBNAIL_SIDE, encode, encode_photo, encode_prediction
from app.shelf import Shelf
from app.shown import EXPIRED, VIEWS, Shown, crop_of, open_photo, open_truth, refusing
from app.uploads import told
from vtviz.errors import VtvizError
from vtviz.predictor import Predictor
from vtviz.segmentation import Segmentation, from_maps
from vtviz.tokens import TokenMaps

KEEP_SECONDS = 3600
"""How long the server remembers a session's choice and keeps its photo."""
MODEL_CALLS = "model"
"""All model calls share one place in the queue: two at once on few cores are slower than one after the other."""


class Explore:
    """The handlers of the tab. They keep nothing but the examples' payloads; a session's state is a :class:`Shown`.

    Args:
        shelf: the models.
        seconds: that one analysis may take; by default any time.
    """

    def __init__(self, shelf: Shelf, seconds: float | None = None) -> None:
        self.shelf = shelf
        self.analyses = Analyses(shelf, seconds)
        self._examples = lru_cache(maxsize=16)(lambda shown, _version: self._encode(shown))

    def first(self) -> tuple[dict[str, Any] | None, str]:
        """What a visitor sees before doing anything: the first example explained by the first model."""
        shown = self.remember()
        if shown is None:
            return None, message("No model found: put one into checkpoints/, or start with --model PATH.")
        try:
            return self._example(shown), ""
        except VtvizError as error:
            return None, message(str(error))

    def remember(self) -> Shown | None:
        """A new session's state. Not the state's default, which would come back when a session has expired."""
        if not self.shelf.names:
            return None
        return Shown(next(iter(load_examples())), uploaded=False, model=self.shelf.names[0], view=next(iter(VIEWS)))

    def arrive(self, request: gr.Request) -> tuple[Shown | None, str]:
        """The state of a session that may have come by a link (``?photo=cat&model=M&crop=center``), and a message.

        What a link asks for and is not there falls back to what everybody sees.
        """
        first, asked = self.remember(), dict(request.query_params)
        if first is None:
            return None, ""
        choices = {
            "photo": {key: key for key in load_examples()},
            "model": {name: name for name in self.shelf.names},
            "crop": {crop or "": name for name, crop in VIEWS.items()},
        }
        there = {key: each[asked[key]] for key, each in choices.items() if asked.get(key) in each}
        problems = [f"{key} {asked[key][:60]!r}" for key in choices if key in asked and key not in there]
        shown = replace(
            first,
            photo=there.get("photo", first.photo),
            model=there.get("model", first.model),
            view=there.get("crop", first.view),
        )
        line = f"This page does not have what the link asks for: {', '.join(problems)}."
        return shown, message(line) if problems else ""

    def open_link(self, shown: Shown | None) -> tuple[Any, ...]:
        """What a link asked for: canvas, state, message, and the controls for model and crop."""
        if shown is None or shown == self.remember():
            return (gr.skip(),) * 5
        canvas, state, problem = self._show(shown)
        return canvas, state, problem or gr.skip(), shown.model, shown.view

    def open_upload(self, photo: dict[str, Any] | None, model: str, view: str) -> tuple[Any, Any, str, None]:
        """A new photo. The slot it came through is emptied again, so that the next one can come."""
        if photo is None:
            return gr.skip(), gr.skip(), "", None
        return *self._show(Shown.upload(photo, model, view)), None

    def open_example(self, model: str, view: str, event: gr.EventData) -> tuple[Any, Any, str]:
        """One of the examples."""
        return self._show(Shown(told(event, "key"), uploaded=False, model=str(model), view=str(view)))

    def reopen(self, shown: Shown | None, model: str, view: str) -> tuple[Any, Any, Any]:
        """The same photo with another model or crop. A mask stays, unless the new model has other classes."""
        if shown is None:
            return gr.skip(), gr.skip(), message(EXPIRED)
        wanted = replace(shown, model=str(model), view=str(view))
        if wanted == shown:  # the control was set by a link, and is no new choice
            return gr.skip(), gr.skip(), gr.skip()
        try:
            kept = not wanted.mask or self._has_classes_of_mask(wanted)
        except VtvizError as error:
            return gr.skip(), gr.skip(), message(str(error))
        if kept:
            canvas, state, problem = self._show(wanted)
        else:
            problem = message(f"{wanted.model} has other classes than the mask, which was taken away.")
        if wanted.mask and problem:
            canvas, state, _ = self._show(replace(wanted, mask=""))
        return canvas, state, problem

    def _has_classes_of_mask(self, shown: Shown) -> bool:
        """Whether the mask's numbers mean the model's classes, as far as it has them. A classifier looks at no mask."""
        predictor, given = self.shelf.get(shown.model), self.shelf.get(shown.mask_of)
        alike = all(ours == theirs for ours, theirs in zip(predictor.classes, given.classes, strict=False))
        return predictor.palette is None or alike

    def open_mask(self, mask: dict[str, Any] | None, shown: Shown | None) -> tuple[Any, Any, str, None]:
        """The photo's true classes, to compare with. The slot is emptied as a photo's is."""
        if mask is None:
            return gr.skip(), gr.skip(), "", None
        if shown is None:
            return gr.skip(), gr.skip(), message(EXPIRED), None
        return *self._show(replace(shown, mask=str(mask.get("path") or "no file"), mask_of=shown.model)), None

    def unmask(self, shown: Shown | None) -> tuple[Any, Any, str]:
        """The same photo without its mask."""
        if shown is None:
            return gr.skip(), gr.skip(), message(EXPIRED)
        return self._show(replace(shown, mask=""))

    def arrays(self, shown: Shown | None) -> tuple[Any, str]:
        """The shown extraction's ``maps.npz``, computed anew: the same image, model and machine give the same bits."""
        if shown is None:
            return None, message(EXPIRED)
        try:
            predictor, crop, photo = self.shelf.get(shown.model), crop_of(shown), open_photo(shown)
            return self._save(shown, *run(predictor, photo, crop)), ""
        except VtvizError as error:
            return None, message(str(error))

    def extract(self, photo: dict[str, Any] | None, model: str, view: str) -> tuple[dict[str, Any], str]:
        """Extract the token maps of one photo.

        Returns the prediction, geometry and per-layer statistics as JSON, and a file ``maps.npz`` with the arrays of
        ``vtviz.extract_tokens``, bit for bit. A segmentation model adds the areas of its classes and each token's share
        of them to the JSON, and ``labels``, the class of every pixel, to the file.

        Args:
            photo: an image file.
            model: any of the page's with tokens or classes of pixels.
            view: the whole photo, or the paper's central square.
        """
        if photo is None:
            raise gr.Error("a photo is needed", print_exception=False)
        shown = Shown.upload(photo, model, view)
        with refusing():
            predictor, crop, image = self.shelf.get(shown.model), crop_of(shown), open_photo(shown)
            results = run(predictor, image, crop)
            payload, file = encode(*results, predictor.card), self._save(shown, *results)
        for layer in payload["layers"]:
            del layer["coefficients"]
        for picture in ("labels", "confidence", "given") if payload["segmentation"] else ():
            del payload["segmentation"][picture]
        return {key: value for key, value in payload.items() if key not in {"id", "photo"}}, file

    def _show(self, shown: Shown) -> tuple[Any, Any, str]:
        """Canvas, state and message for what is asked; on bad input the first two stay as they are."""
        try:
            return (self._encode if shown.uploaded or shown.mask else self._example)(shown), shown, ""
        except VtvizError as error:
            return gr.skip(), gr.skip(), message(str(error))

    def _example(self, shown: Shown) -> dict[str, Any]:
        """Computed once for each model, and anew where a model's weights are no longer those."""
        return self._examples(shown, self.shelf.version(shown.model))

    def _encode(self, shown: Shown) -> dict[str, Any]:
        predictor, crop, photo = self.shelf.get(shown.model), crop_of(shown), open_photo(shown)
        link = {"link": shown.link}
        if not predictor.strides and predictor.palette is None:
            return encode_prediction(photo, predictor.predict(photo, crop=crop), predictor.name, predictor.card) | link
        compared = shown.mask and predictor.palette is not None
        truth = open_truth(Path(shown.mask), photo.shape[:2], len(predictor.classes)) if compared else None
        with ThreadPoolExecutor(1) as beside:  # the photo is packed while it is shrunk for the model
            packed = beside.submit(encode_photo, photo)
            results = run(predictor, photo, crop)
        return encode(*results, predictor.card, truth, photo=packed.result()) | link

    def _save(self, shown: Shown, maps: TokenMaps | None, segmentation: Segmentation | None) -> str:
        """Write the arrays where Gradio serves and later deletes them; the file's path."""
        stem = re.sub(r"\W+", "_", f"{Path(shown.photo).stem[:40]}_{shown.model}")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{stem}_{'tokens' if maps else 'segmentation'}.npz"
            if maps is not None:
                maps.save(folder)["maps.npz"].rename(file)
            if segmentation is not None:
                arrays = {"labels": segmentation.labels} | ({} if maps else {"logits": segmentation.logits})
                with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:  # which is what an .npz is
                    for name, array in arrays.items():
                        with archive.open(f"{name}.npy", "w") as entry:
                            np.lib.format.write_array(entry, array)
            return str(self.file.move_resource_to_block_cache(str(file)))

    def build(self) -> None:
        """Lay the tab out, in the current Blocks."""
        payload, problem = self.first()
        state = self.state = gr.State(None, time_to_live=KEEP_SECONDS)
        names = self.shelf.names
        with gr.Row(elem_id="strip", equal_height=True):
            slot = gr.Image(
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard", "webcam"],
                elem_id="photo",
                show_label=False,
                placeholder="Drop a photo, or click to choose",
                buttons=[],
                height=132,
                scale=3,
                min_width=260,
                alt_text="Your photo",
            )
            with gr.Column(scale=4, min_width=300, elem_id="examples"):
                strip = examples_strip()
            with gr.Column(scale=3, min_width=260, elem_id="choice"):
                model = self.model = gr.Dropdown(
                    names, value=names[0] if names else None, label="Model", elem_id="model", filterable=False
                )
                view = gr.Dropdown(list(VIEWS), value=next(iter(VIEWS)), label="Crop", elem_id="view", filterable=False)
        note = gr.HTML(problem, elem_id="message", apply_default_css=False)
        mask = gr.File(elem_id="mask", file_types=[".png"], visible="hidden")  # the legend's button opens it
        main = canvas(payload, elem_id="explore")
        self.file = gr.File(visible=False)
        common: dict[str, Any] = {
            "concurrency_id": MODEL_CALLS,
            "concurrency_limit": 1,
            "show_progress": "minimal",
            "show_progress_on": main,
            "api_visibility": "private",
        }
        answers = [main, state, note]
        self._link = [*answers, model, view], common
        # Gradio checks that the path is its upload; it would then open the image with Pillow, and refuse a model that
        # is no longer offered before a line could say so
        common["preprocess"] = False
        # "multiple": of two photos in quick succession Gradio would throw the second away
        often: dict[str, Any] = {"trigger_mode": "multiple"}
        slot.input(self.open_upload, [slot, model, view], [*answers, slot], **often, **common)
        strip.pick(self.open_example, [model, view], answers, **often, **common)
        for control in (model, view):  # a choice has one change event, but two of input
            control.change(self.reopen, [state, model, view], answers, **common)
        mask.upload(self.open_mask, [mask, state], [*answers, mask], **common)
        main.unmask(self.unmask, [state], answers, **common)
        made = main.arrays(self.arrays, [state], [self.file, note], **common)
        made.then(None, [self.file], None, js="(file) => vtviz.offer(file)", api_visibility="private")
        self.analyses.build(main, state)
        self._build_endpoint(slot, model, view)

    def welcome(self, page: gr.Blocks) -> None:
        """Give each visitor of the page a state, and show what a link asked for."""
        outputs, common = self._link
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        arrived = page.load(self.arrive, None, outputs[1:3], **quiet)
        arrived.then(self.open_link, [self.state], outputs, **common)

    def _build_endpoint(self, slot: gr.Image, model: gr.Dropdown, view: gr.Dropdown) -> None:
        """``/extract`` for gradio_client: the page's inputs, plain JSON and a file as outputs."""
        door = gr.Button(visible=False)
        summary, arrays = gr.JSON(visible=False), gr.File(visible=False)
        door.click(
            self.extract,
            [slot, model, view],
            [summary, arrays],
            preprocess=False,
            api_name="extract",
            concurrency_id=MODEL_CALLS,
            concurrency_limit=1,
        )


def run(predictor: Predictor, photo: np.ndarray, crop: str | None) -> tuple[TokenMaps | None, Segmentation | None]:
    """What the model has of tokens and of classes, from one run. Raises ConfigError for one that has neither."""
    if predictor.palette is None:
        return predictor.extract(photo, crop=crop), None
    if not predictor.strides:
        return None, predictor.segment(photo, crop=crop)
    maps = predictor.extract(photo, crop=crop)
    return maps, from_maps(maps, predictor.palette)


def message(text: str) -> str:
    """One line for the page, escaped: it may hold a file's name."""
    return f'<p class="vtx-message" role="alert">{escape(text)}</p>'


def examples_strip() -> gr.HTML:
    """Thumbnails to click; it triggers ``pick`` with the example's key."""
    items = [
        {"key": e.key, "title": e.title, "credit": e.credit, "photo": encode_photo(e.image, THUMBNAIL_SIDE)}
        for e in load_examples().values()
    ]
    return gr.HTML(
        html_template='<div class="vtx-examples"></div>',
        js_on_load="vtviz.examples(element, props.items, (key) => trigger('pick', { key }));",
        apply_default_css=False,
        items=items,
    )
