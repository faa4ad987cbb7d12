"""The tab Video: what the tokens look at in a video or in several photos, as a film on one colour scale."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from app.explore import message
from app.shelf import Shelf
from app.shown import hidden, path_of, refusing
from app.stops import Stops
from vtviz.errors import ConfigError, ImageError, VtvizError
from vtviz.footage import Footage, open_footage
from vtviz.suffixes import IMAGE_SUFFIXES
from vtviz.video import FOLDER_FPS, KINDS, Film, write_film

VIDEOS = (".mp4", ".mov", ".webm", ".mkv", ".avi")
UPLOAD_BYTES = 100_000_000
"""Largest file that can be uploaded."""
MOST_FRAMES = 300
"""Frames of one film at most."""
COLUMNS = 4
"""Maps side by side: what the page has room for."""
EVERY, FRAMES = "One frame of", "Frames at most"
"""The two number fields."""
FILMS = "film"
"""Films wait for one another, and for nothing else."""
NAMED = {"webm": "WebM video", "webp": "Animated WebP picture"}
LIMITS_TEXT = (
    f"One video (MP4, MOV, WebM, MKV, AVI; at most {UPLOAD_BYTES / 1e6:g} MB), or several photos, which follow one "
    f"another in the order of their names. At most {MOST_FRAMES} frames are looked at; films are made one at a time."
)


class VideoTab:
    """The handlers of the tab.

    Args:
        shelf: the models.
        seconds: that one film may take; by default any time.
    """

    def __init__(self, shelf: Shelf, seconds: float | None = None) -> None:
        self.shelf = shelf
        self.stops = Stops(seconds)

    def measure(self, files: Any, every: Any, frames: Any) -> str:
        """What there is to look at, and how much of it would be, before any work is done."""
        if not files:
            return f'<p class="vtx-cost">{LIMITS_TEXT}</p>'
        try:
            with tempfile.TemporaryDirectory() as folder, hidden(source := gather(files, Path(folder))):
                text = describe_footage(open_footage(source), whole(every, EVERY), whole(frames, FRAMES))
        except VtvizError as error:
            return message(str(error))
        return f'<p class="vtx-cost">{text}</p>'

    def film(
        self,
        files: Any,
        model: Any,
        layer: Any,
        tokens: Any,
        every: Any,
        frames: Any,
        kind: Any,
        request: gr.Request,
        progress: Any,
    ) -> tuple[Film, list[str]]:
        """Make a film: what it is, and its files where Gradio serves them, the film, its arrays and what they are.

        Raises:
            VtvizError: for what cannot work, and where it was cancelled.
        """
        predictor = self.shelf.get(str(model))
        if layer not in predictor.layer_names:
            raise ConfigError(f"{model} has no layer {str(layer)[:40]!r}; it has {', '.join(predictor.layer_names)}")
        most = whole(frames, FRAMES)
        if most > MOST_FRAMES:
            raise ConfigError(f"at most {MOST_FRAMES} frames are looked at, got {most}")
        with tempfile.TemporaryDirectory() as folder:
            source = gather(files, Path(folder))
            name = Path(files[0]["path"]).stem[:40] if len(files) == 1 else "photos"
            with hidden(source), self.stops.watch(request, progress, "Frames looked at and drawn") as tell:
                made = write_film(
                    predictor,
                    source,
                    Path(folder) / "film",
                    name,
                    layer=predictor.layer_names.index(layer),
                    tokens=parse_tokens(tokens),
                    every=whole(every, EVERY),
                    most=most,
                    kind=str(kind),
                    columns=COLUMNS,
                    progress=tell,
                )
            return made, [str(self.file.move_resource_to_block_cache(str(path))) for path in made.files.values()]

    def run(
        self,
        files: Any,
        model: Any,
        layer: Any,
        tokens: Any,
        every: Any,
        frames: Any,
        kind: Any,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio hands one over
    ) -> tuple[Any, ...]:
        """The button Make the film: view, message, the three files."""
        try:
            made, paths = self.film(files, model, layer, tokens, every, frames, kind, request, progress)
        except VtvizError as error:
            return gr.skip(), message(str(error)), *[gr.skip()] * 3
        return describe_film(made), "", *(gr.DownloadButton(value=path, visible=True) for path in paths)

    def video(
        self,
        files: list[Any],
        model: str,
        layer: str,
        tokens: str,
        every: float,
        frames: float,
        kind: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[dict[str, Any], str, str]:
        """Look at a video, or at photos one after the other, and make a film of what a layer's tokens look at.

        `layer` is a name such as "block0" or "p2"; `tokens` are numbers such as "0,3,5", or nothing for all. Returns
        what the film is (frames, scale in x uniform, geometry of each frame), the film, and an .npz file with an array
        (tokens, h, w) float32 for each frame, every map summing to 1.
        """
        with refusing():
            made, (film, arrays, _) = self.film(files, model, layer, tokens, every, frames, kind, request, progress)
        told = made.to_dict() | {"source": Path(made.source).name}
        del told["files"]
        return told, film, arrays

    def layers(self, model: Any) -> Any:
        """The layers of a model, for the form."""
        try:
            names = list(self.shelf.get(str(model)).layer_names)
        except VtvizError:
            return gr.skip()
        return gr.Dropdown(choices=names, value=names[0])

    def build(self, tab: gr.Tab) -> None:
        """Lay the tab out, in the current Blocks."""
        names = self.shelf.with_tokens
        with gr.Row(elem_id="video-row"):
            with gr.Column(scale=2, min_width=300, elem_id="video-form"):
                files = gr.File(
                    label="A video, or several photos",
                    file_count="multiple",
                    file_types=[*VIDEOS, *sorted(IMAGE_SUFFIXES)],
                    height=150,
                    elem_id="video-files",
                )
                told = gr.HTML(self.measure(None, 1, 1), elem_id="video-told", apply_default_css=False)
                with gr.Row(elem_classes="vtx-pair"):
                    model = gr.Dropdown(
                        names, value=names[0] if names else None, label="Model", filterable=False, min_width=120
                    )
                    layer = gr.Dropdown([], label="Layer", filterable=False, min_width=90, elem_id="video-layer")
                tokens = gr.Textbox(label="Tokens", placeholder="all; or 0,3,5", max_lines=1, max_length=200)
                with gr.Row(elem_classes="vtx-pair"):
                    every = gr.Number(1, label=EVERY, precision=0, minimum=1, min_width=80)
                    frames = gr.Number(100, label=FRAMES, precision=0, minimum=1, min_width=80)
                kind = gr.Radio([(NAMED[name], name) for name in KINDS], value=KINDS[0], label="Film")
                with gr.Row(elem_classes="vtx-pair"):
                    go = gr.Button("Make the film", variant="primary", elem_id="video-go", min_width=120)
                    cancel = gr.Button("Cancel", elem_id="video-cancel", min_width=80)
                note = gr.HTML(elem_id="video-message", apply_default_css=False)
            with gr.Column(scale=3, min_width=300):
                view = gr.HTML(
                    None,
                    html_template='<div class="vtx-video"></div>',
                    js_on_load="vtviz.video(element, props, watch);",
                    apply_default_css=False,
                    elem_id="video",
                )
                with gr.Row(elem_classes="vtx-pair"):
                    saves = [
                        gr.DownloadButton(label, visible=False, size="sm", min_width=90)
                        for label in ("Save the film", "Arrays (NPZ)", "What they are (JSON)")
                    ]
        self.file = saves[0]
        form = [files, model, layer, tokens, every, frames, kind]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
        line: dict[str, Any] = {"concurrency_id": FILMS, "concurrency_limit": 1, "preprocess": False}
        tab.select(self.open, [model, layer], [model, layer], **quiet)
        model.change(self.layers, [model], [layer], **quiet)
        asked = [files, every, frames]
        changes = [files.change, every.change, frames.change]  # one event: the last change has the last answer
        gr.on(changes, self.measure, asked, [told], trigger_mode="always_last", **quiet)
        go.click(self.stops.expect, None, None, queue=False, **quiet)
        made = go.click(
            self.run,
            form,
            [view, note, *saves],
            api_visibility="private",
            show_progress="full",
            show_progress_on=view,
            **line,
        )
        made.then(None, [saves[0]], None, js="(file) => vtviz.play(file)", api_visibility="private")
        cancel.click(self.stops.cancel, None, None, queue=False, **quiet)
        outputs = [gr.JSON(visible=False, label="What the film is"), *(gr.File(visible=False) for _ in range(2))]
        gr.Button(visible=False).click(self.video, form, outputs, api_name="video", **line)

    def open(self, model: Any, layer: Any) -> tuple[Any, Any]:
        """The models as they now are, and the layers of the chosen one where there are none yet."""
        return gr.Dropdown(choices=self.shelf.with_tokens), gr.skip() if layer else self.layers(model)


def gather(files: Any, folder: Path) -> Path:
    """A video as it is, or a folder of several photos in the order of their names; Gradio has checked the paths.

    Raises:
        ImageError: where there is nothing, or a video among others.
    """
    paths = [path_of(file) for file in files or ()]
    if not paths or not all(path.is_file() for path in paths):
        raise ImageError("choose a video or photos; what was uploaded an hour ago is gone")
    videos = [path for path in paths if path.suffix.lower() not in IMAGE_SUFFIXES]
    if videos and len(paths) > 1:
        raise ImageError(f"{videos[0].name} is no photo: choose one video, or photos alone")
    if videos:
        return paths[0]
    photos = folder / "photos"
    photos.mkdir()
    for number, path in enumerate(paths):
        name = path.name if not (photos / path.name).exists() else f"{path.stem}~{number}{path.suffix}"
        (photos / name).symlink_to(path)
    return photos


def describe_footage(footage: Footage, every: int, frames: int) -> str:
    """How many frames there are, and how many of them a film would have."""
    most = min(frames, MOST_FRAMES)
    if footage.files is not None:
        there, rate = f"{len(footage.files)} photos", FOLDER_FPS
    else:
        rate = (footage.fps or FOLDER_FPS) / every
        known = "an unknown number of" if footage.count is None else f"{footage.count:,}"
        there = f"{known} frames" + (f" at {footage.fps:.3g} a second" if footage.fps else "")
    if footage.count is None:
        return f"A video with {there}; up to {most} are looked at."
    wanted = math.ceil(footage.count / every)
    seen = min(wanted, most)
    left = f" The rest is left out: take one frame of {math.ceil(footage.count / most)}." if wanted > seen else ""
    return f"{there}; {seen} are looked at, for a film of {seen / rate:.1f} s.{left}"


def describe_film(film: Film) -> dict[str, Any]:
    """A film for ``static/video.js``, but for its address, which Gradio gives."""
    low, high = film.scale
    return {
        "kind": "video" if next(iter(film.files)).endswith(".webm") else "picture",
        "width": film.size[1],
        "height": film.size[0],
        "text": (
            f"{film.model}, {film.layer}: {len(film.tokens)} tokens in {len(film.frames)} frames, {film.fps:.3g} a "
            f"second. Every token keeps its place, and colours mean the same in every frame: {low:g} to {high:.3g} × "
            "uniform."
        ),
    }


def parse_tokens(text: Any) -> list[int] | None:
    """Numbers of a text such as "0,3,5"; None for nothing or "all". Raises ConfigError."""
    cleaned = str(text or "").strip().lower()
    if cleaned in {"", "all"}:
        return None
    try:
        return [int(part) for part in cleaned.split(",")]
    except ValueError:
        raise ConfigError(f"tokens must be whole numbers such as 0,3,5, got {cleaned[:40]!r}") from None


def whole(value: Any, field: str) -> int:
    """A whole number from 1, of a number field; an empty one has None. Raises ConfigError."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value % 1 != 0 or value < 1:
        got = "nothing" if value is None else repr(str(value)[:40])
        raise ConfigError(f"{field}: must be a whole number from 1, got {got}")
    return int(value)
