"""The tokens of a run as they form: the maps of its fixed photo after each epoch, one panel at a time."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vtviz.train.jobs import Job, Jobs
from vtviz.train.probe import ANIMATION, PROBE, SCALE, list_panels

PLAY_SECONDS = 0.4
QUALITY = 88
"""Of the JPEG that is sent; the PNG on the disk is about three times as large."""

Known = tuple[Any, ...] | None
"""What a session knows of the panels: job, newest epoch, whether there is an animation."""


class Probe:
    """The part of the tab Train that shows a run's panels; hidden where it has none.

    Attributes:
        parts: the components that :meth:`look` is for.
        epoch: the one whose value is the epoch shown.
    """

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.parts: list[gr.blocks.Block] = []

    def look(self, job: Job | None, epoch: Any, known: Known) -> tuple[list[Any], Known]:
        """Show a job's newest panel, or leave the epoch that was chosen, when there is something new.

        Args:
            job: the job that is shown.
            epoch: the slider's value.
            known: what this returned last.

        Returns:
            What is new for box, panel, slider, Play and Save; what is known now.
        """
        panels = list_panels(job.folder) if job else {}
        newest = max(panels, default=0)
        saved = job is not None and not job.active and (job.folder / PROBE / ANIMATION).is_file()
        now = (job and job.name, newest, saved)
        if known == now:
            return [gr.skip()] * 5, now
        follow = known is None or known[0] != now[0] or whole(epoch) >= known[1]
        slider: dict[str, Any] = {"maximum": max(2, newest), "visible": newest > 1}
        return [
            gr.Column(visible=newest > 0),
            panel(panels[newest], newest) if follow and newest else gr.skip(),
            gr.Slider(**slider, value=newest) if follow and newest else gr.Slider(**slider),
            gr.Button(visible=newest > 1),
            gr.Button(visible=saved),
        ], now

    def turn(self, name: str | None, epoch: Any) -> Any:
        """The panel of an epoch, or of the last one before it."""
        panels = self._panels(name)
        chosen = max((number for number in panels if number <= whole(epoch)), default=min(panels, default=0))
        return panel(panels[chosen], chosen) if chosen else gr.skip()

    def play(self, name: str | None, epoch: Any, playing: bool) -> tuple[Any, ...]:
        """Start, from the first epoch where the last is shown, or stop: slider, panel, clock, button, state."""
        if playing:
            return gr.skip(), gr.skip(), *_switch(False)
        panels = self._panels(name)
        first = min(panels, default=0) if whole(epoch) >= max(panels, default=0) else whole(epoch)
        return first, self.turn(name, first), *_switch(True)

    def step(self, name: str | None, epoch: Any) -> tuple[Any, ...]:
        """The next epoch, or the end, of what :meth:`play` started."""
        later = [number for number in self._panels(name) if number > whole(epoch)]
        if not later:
            return gr.skip(), gr.skip(), *_switch(False)
        return later[0], self.turn(name, later[0]), *([gr.skip()] * 3 if later[1:] else _switch(False))

    def save(self, name: str | None) -> Any:
        """The animation's copy where Gradio serves it."""
        file = self._folder(name) / PROBE / ANIMATION
        return self.file.move_resource_to_block_cache(file) if file.is_file() else gr.skip()

    def build(self, chosen: gr.State) -> None:
        """Lay it out, in the current Blocks; ``chosen`` holds the job's name."""
        with gr.Column(visible=False, elem_id="train-probe") as box:
            gr.HTML(
                "<h4>Tokens by epoch</h4><p>Where each token looks in one validation photo. Colours mean the same in "
                f"every epoch: {SCALE[0]:.0f} to {SCALE[1]:.0f} × uniform (1 = looks everywhere alike).</p>",
                apply_default_css=False,
            )
            view = gr.HTML(apply_default_css=False, elem_id="train-panel")
            with gr.Row(elem_id="train-turn"):
                play = gr.Button("Play", size="sm", min_width=80)
                slider = self.epoch = gr.Slider(1, 2, 1, step=1, label="Epoch", buttons=[], min_width=200)
                save = gr.Button("Save animation", size="sm", min_width=120)
        self.file = gr.File(visible=False)
        clock, playing = gr.Timer(PLAY_SECONDS, active=False), gr.State(False)
        self.parts = [box, view, slider, play, save]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        moved = [slider, view, clock, play, playing]
        # preprocess=False: a server that was restarted would hold the slider to the end that it began with
        slider.input(self.turn, [chosen, slider], [view], trigger_mode="always_last", preprocess=False, **quiet)
        play.click(self.play, [chosen, slider, playing], moved, preprocess=False, **quiet)
        clock.tick(self.step, [chosen, slider], moved, preprocess=False, **quiet)
        made = save.click(self.save, [chosen], [self.file], **quiet)
        made.then(None, [self.file], None, js="(file) => vtviz.offer(file)", api_visibility="private")

    def _folder(self, name: str | None) -> Path:
        """The run folder of a job; for one that is gone, one that is not there."""
        return next((job.folder for job in self.jobs.all() if job.name == name), self.jobs.root / "none")

    def _panels(self, name: str | None) -> dict[int, Path]:
        return list_panels(self._folder(name))


def whole(epoch: Any) -> int:
    """A slider's value, which comes from a browser; 0 for what is no number."""
    return int(epoch) if isinstance(epoch, int | float) and math.isfinite(epoch) else 0


def panel(file: Path, epoch: int) -> str:
    """A panel as HTML that holds the picture, some 150 kB; empty where the run is just being deleted."""
    packed = io.BytesIO()
    try:
        with Image.open(file) as image:
            size = f'width="{image.width}" height="{image.height}"'
            image.convert("RGB").save(packed, "jpeg", quality=QUALITY, subsampling=0)
    except OSError:
        return ""
    data = base64.b64encode(packed.getvalue()).decode("ascii")
    alt = f"Maps of every token after epoch {epoch}"
    return f'<div class="vtx-panel" tabindex="0"><img {size} alt="{alt}" src="data:image/jpeg;base64,{data}"></div>'


def _switch(on: bool) -> tuple[Any, Any, bool]:
    """Clock, button and state of an animation that runs or does not."""
    return gr.Timer(active=on), gr.Button("Pause" if on else "Play"), on
