"""The page as a whole: its tabs, and how it is served."""

from __future__ import annotations

from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from app.about import About
from app.armour import Armour
from app.atlas import AtlasTab
from app.canvas import head, style
from app.compare import CompareTab
from app.datasets import DataRoot
from app.endpoints import Endpoints
from app.explore import KEEP_SECONDS, Explore
from app.shelf import Shelf
from app.train import Train
from app.uploads import UploadsOnly
from app.video import UPLOAD_BYTES, VideoTab

TITLE = "vtviz: what visual tokens look at"
WAITING = 64
"""Calls that may wait; more are told at once that the page is full."""
SESSIONS = 500
"""Sessions remembered; each may hold one payload (half a megabyte to one)."""


PATIENCE = 300.0
"""Seconds that one piece of work may take where other machines reach the page."""


def build_page(
    shelf: Shelf, train: Train | None = None, data: DataRoot | None = None, *, seconds: float | None = None
) -> gr.Blocks:
    """The page over the models of ``shelf``, ready for ``launch(**launch_options())``.

    Args:
        shelf: the models.
        train: the tab that trains more of them; by default there is none.
        data: the photos that whoever opens the page may see and dissect; by default none.
        seconds: that one analysis, film or dissection may take; by default any time.
    """
    options: dict[str, Any] = {"analytics_enabled": False, "delete_cache": (600, KEEP_SECONDS), "fill_width": True}
    with UploadsOnly(title=TITLE, **options) as page:
        gr.HTML(
            '<header class="vtx-header"><h1>vtviz</h1><p>What does each visual token look at?</p></header>',
            apply_default_css=False,
        )
        explore, atlas = Explore(shelf, seconds), AtlasTab(shelf, data, seconds)
        endpoints = Endpoints(explore.analyses)
        video, about = VideoTab(shelf, seconds), About(shelf)
        with gr.Tab("Explore", id="explore") as exploring:
            explore.build()
            endpoints.build(explore.model)
        with gr.Tab("Compare", id="compare") as comparing:
            CompareTab(shelf).build(comparing)
        with gr.Tab("Atlas", id="atlas") as looking:
            atlas.build(looking)
        with gr.Tab("Video", id="video") as filming:
            video.build(filming)
        training = gr.Tab("Train", id="train", render=train is not None)
        with gr.Tab("About", id="about") as reading:
            about.build(explore.model)
        if train is not None:
            with training:
                train.build(training, explore.model, [exploring, comparing, looking, filming, reading])
        explore.welcome(page)
        for stops in (endpoints.stops, atlas.stops, video.stops):
            page.unload(stops.leave)
    return page.queue(max_size=WAITING, api_open=False)  # nobody passes by the queue


def launch_options(*, reachable: bool = False) -> dict[str, Any]:
    """What ``launch`` needs for this page: style, scripts, and nothing kept, sent out or served that should not be.

    Args:
        reachable: whether other machines can reach the page: see :class:`app.armour.Armour`.
    """
    font: list[Any] = [gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"]
    return {
        "theme": gr.themes.Default(primary_hue="blue", neutral_hue="zinc", font=font),
        "css": style(),
        "head": head(),
        "app_kwargs": {"middleware": [Middleware(Armour, reachable=reachable)]},
        "allowed_paths": [],
        "run_history": False,
        "max_file_size": UPLOAD_BYTES,  # of a video; images have their own limit
        "state_session_capacity": SESSIONS,
        "footer_links": ["api", "settings"],
        "ssr_mode": False,
        "enable_monitoring": False,
        "show_error": False,
    }
