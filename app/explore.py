"""The tab Explore: a photo in, its tokens and the prediction out."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from app.canvas import canvas
from app.examples import load_examples
from app.payload import THUMBNAIL_SIDE, encode_maps, encode_photo, encode_prediction
from app.shelf import Shelf
from vtviz import images
from vtviz.errors import ConfigError, ImageError, VtvizError, did_you_mean
from vtviz.tokens import TokenMaps

VIEWS = {"Whole photo": None, "Centre 224 px, as in the paper": "center"}
"""What is shown -> ``crop`` of :meth:`vtviz.Predictor.extract`."""
KEEP_SECONDS = 3600
"""How long the server remembers a session's choice and keeps its photo."""
EXPIRED = "This photo is no longer on the server; choose it again."
MODEL_CALLS = "model"
"""All model calls share one place in the queue: two at once on few cores are slower than one after the other."""


@dataclass(frozen=True)
class Shown:
    """What a session looks at: enough to compute it again, so that no maps stay on the server."""

    photo: str
    """Key of an example, or path of an upload."""
    uploaded: bool
    model: str
    view: str

    @classmethod
    def upload(cls, photo: dict[str, Any], model: Any, view: Any) -> Shown:
        """From what the browser sent, whatever that is; Gradio has checked that the path is one of its uploads."""
        return cls(str(photo.get("path") or ""), uploaded=True, model=str(model), view=str(view))


class Explore:
    """The handlers of the tab. They keep nothing but the examples' payloads; a session's state is a :class:`Shown`."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._example = lru_cache(maxsize=16)(self._encode)

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

    def open_upload(self, photo: dict[str, Any] | None, model: str, view: str) -> tuple[Any, Any, str, None]:
        """A new photo. The slot it came through is emptied again, so that the next one can come."""
        if photo is None:
            return gr.skip(), gr.skip(), "", None
        return *self._show(Shown.upload(photo, model, view)), None

    def open_example(self, model: str, view: str, event: gr.EventData) -> tuple[Any, Any, str]:
        """One of the examples."""
        return self._show(Shown(str(event.key), uploaded=False, model=model, view=view))

    def reopen(self, shown: Shown | None, model: str, view: str) -> tuple[Any, Any, str]:
        """The same photo with another model or crop."""
        if shown is None:
            return gr.skip(), gr.skip(), message(EXPIRED)
        return self._show(Shown(shown.photo, shown.uploaded, model, view))

    def arrays(self, shown: Shown | None) -> tuple[Any, str]:
        """The shown extraction's ``maps.npz``, computed anew: the same image, model and machine give the same bits."""
        if shown is None:
            return None, message(EXPIRED)
        try:
            maps = self.shelf.get(shown.model).extract(open_photo(shown), crop=crop_of(shown))
            return self._save(shown, maps), ""
        except VtvizError as error:
            return None, message(str(error))

    def extract(self, photo: dict[str, Any] | None, model: str, view: str) -> tuple[dict[str, Any], str]:
        """Extract the token maps of one photo.

        Returns the prediction, geometry and per-layer statistics as JSON, and a file ``maps.npz`` with the arrays of
        ``vtviz.extract_tokens``, bit for bit.
        """
        if photo is None:
            raise gr.Error("a photo is needed", print_exception=False)
        shown = Shown.upload(photo, model, view)
        try:
            predictor = self.shelf.get(shown.model)
            maps = predictor.extract(open_photo(shown), crop=crop_of(shown))
            payload, file = encode_maps(maps, predictor.card), self._save(shown, maps)
        except VtvizError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from None
        for layer in payload["layers"]:
            del layer["coefficients"]
        return {key: value for key, value in payload.items() if key not in {"id", "photo"}}, file

    def _show(self, shown: Shown) -> tuple[Any, Any, str]:
        """Canvas, state and message for what is asked; on bad input the first two stay as they are."""
        try:
            return (self._encode if shown.uploaded else self._example)(shown), shown, ""
        except VtvizError as error:
            return gr.skip(), gr.skip(), message(str(error))

    def _encode(self, shown: Shown) -> dict[str, Any]:
        predictor = self.shelf.get(shown.model)
        crop, photo = crop_of(shown), open_photo(shown)
        if predictor.strides:
            return encode_maps(predictor.extract(photo, crop=crop), predictor.card)
        return encode_prediction(photo, predictor.predict(photo, crop=crop), predictor.name, predictor.card)

    def _save(self, shown: Shown, maps: TokenMaps) -> str:
        """Write the arrays where Gradio serves and later deletes them; the file's path."""
        stem = re.sub(r"\W+", "_", f"{Path(shown.photo).stem[:40]}_{shown.model}")
        with tempfile.TemporaryDirectory() as folder:
            written = maps.save(folder)["maps.npz"].rename(Path(folder) / f"{stem}_tokens.npz")
            return str(self.file.move_resource_to_block_cache(str(written)))

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
        # preprocess=False: Gradio checks that the path is its upload, and would then open the image with Pillow
        slot.input(self.open_upload, [slot, model, view], [*answers, slot], preprocess=False, **common)
        strip.pick(self.open_example, [model, view], answers, **common)
        for control in (model, view):
            control.input(self.reopen, [state, model, view], answers, **common)
        made = main.arrays(self.arrays, [state], [self.file, note], **common)
        made.then(None, [self.file], None, js="(file) => vtviz.offer(file)", api_visibility="private")
        self._build_endpoint(slot, model, view)

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


def crop_of(shown: Shown) -> str | None:
    """``crop`` of the shown view. Raises ConfigError for a view that there is not."""
    if shown.view not in VIEWS:
        raise ConfigError(f"unknown view {shown.view!r}{did_you_mean(str(shown.view), VIEWS)}")
    return VIEWS[shown.view]


def open_photo(shown: Shown) -> np.ndarray:
    """The photo, (H, W, 3) uint8 RGB. Raises ImageError, which names an upload but does not tell where it lies."""
    if not shown.uploaded:
        examples = load_examples()
        if shown.photo not in examples:
            raise ConfigError(f"there is no example {shown.photo!r}{did_you_mean(shown.photo, examples)}")
        return examples[shown.photo].image
    path = Path(shown.photo)
    if not path.is_file():
        raise ImageError(EXPIRED)
    try:
        return images.load(path)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path.parent) + "/", "")) from None


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
