"""The one canvas component: a ``gr.HTML`` that draws a payload (:mod:`app.payload`) in the browser.

Its script and style are the plain files in ``static/``, read at start and put into the page by ``launch``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from app.payload import encode_array
from vtviz.render import COLORMAPS

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    "maps.js",
    "labels.js",
    "draw.js",
    "panel.js",
    "dom.js",
    "options.js",
    "picture.js",
    "rows.js",
    "legend.js",
    "matrix.js",
    "view.js",
    "page.js",
)
"""In the order in which they need each other."""
STYLES = ("page.css", "segmentation.css", "train.css")


def canvas(payload: dict[str, Any] | None, **options: Any) -> gr.HTML:
    """The component. Its value is a payload.

    It triggers ``arrays`` when the user asks for the arrays, ``unmask`` when an uploaded mask is to be forgotten. The
    value only ever goes to the browser: give the component to no event as an input.
    """
    return gr.HTML(
        payload,
        html_template='<div class="vtx"></div>',
        js_on_load='vtviz.mount(element, props, (name) => trigger(name), watch); // "arrays", "unmask"',
        apply_default_css=False,
        colormaps={name: encode_array(table) for name, table in COLORMAPS.items()},
        **options,
    )


def head() -> str:
    """The scripts, for the page's head."""
    script = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return f"<script>\n{script}\n</script>"


def style() -> str:
    """The style sheet of the page."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in STYLES)
