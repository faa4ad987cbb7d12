"""The one canvas component: a ``gr.HTML`` that draws a payload (:mod:`app.payload`) in the browser.

Its script and style are the plain files in ``static/``, and one of the package's, read at start and put into the page
by ``launch``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from app.payload import encode_array
from vtviz import html_report
from vtviz.render import COLORMAPS

STATIC = Path(__file__).parent / "static"
_OURS = (
    "labels.js",
    "draw.js",
    "panel.js",
    "dom.js",
    "query.js",
    "descent.js",
    "options.js",
    "picture.js",
    "thumb.js",
    "rows.js",
    "legend.js",
    "matrix.js",
    "lineage.js",
    "pixel.js",
    "jobs.js",
    "ablation.js",
    "shares.js",
    "faithfulness.js",
    "attribution.js",
    "views.js",
    "link.js",
    "view.js",
    "page.js",
    "atlas.js",
    "compare.js",
    "video.js",
)
SCRIPTS = (html_report.STATIC / "maps.js", *(STATIC / name for name in _OURS))
"""Paths, in the order in which they need each other; the first one is the report's too."""
EVENTS = ("arrays", "unmask", "analyse", "report", "cancel")
"""What the canvas triggers; Gradio finds their names in its script."""
STYLES = ("page.css", "segmentation.css", "views.css", "train.css", "atlas.css", "compare.css", "video.css")


def canvas(payload: dict[str, Any] | None, **options: Any) -> gr.HTML:
    """The component. Its value is a payload.

    It triggers ``arrays`` when the user asks for the arrays, ``unmask`` when an uploaded mask is to be forgotten, and
    ``analyse``, ``report`` and ``cancel`` for what takes long (:mod:`app.analyses`). The value only ever goes to the
    browser: give the component to no event as an input.
    """
    return gr.HTML(
        payload,
        html_template='<div class="vtx"></div>',
        js_on_load=f"vtviz.mount(element, props, trigger, watch); // {EVENTS}",
        apply_default_css=False,
        colormaps={name: encode_array(table) for name, table in COLORMAPS.items()},
        **options,
    )


def head() -> str:
    """The scripts, for the page's head."""
    script = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    return f"<script>\n{script}\n</script>"


def style() -> str:
    """The style sheet of the page."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in STYLES)
