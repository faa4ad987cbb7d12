"""The tab About: what a token is, and the model's card."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from app.shelf import Shelf
from vtviz.card import Card
from vtviz.errors import VtvizError

TOKENS = """\
A visual token is a short list of numbers that stands for one idea in the photo (a face, the sky, the ground) rather
than for one place in it. To make it, the model gives every place of its feature map a weight and averages the features
with these weights; the coloured pictures on this page are those weights. A transformer then relates the few tokens to
each other, and a projector writes what they learned back into the feature map. The first layer's weights come from
learned filters that are the same for every photo (a static tokenizer); later layers make their filters from the tokens
before them, so that they depend on the photo (a dynamic tokenizer). Weights are shown in times uniform: 1× everywhere
would mean that a token looks at nothing in particular, and at 10× a place counts ten times as much as the average one.
"""
"""What a token is, in five sentences."""
PAPER = (
    'From <a href="https://arxiv.org/abs/2006.03677" target="_blank" rel="noopener">Visual Transformers: Token-based '
    "Image Representation and Processing for Computer Vision</a> (Wu et al., 2020)."
)
SECTIONS = {
    "accuracy": "Accuracy",
    "tokens": "Tokens",
    "data": "Training data",
    "recipe": "Recipe",
    "config": "Configuration",
}
"""Fields of a card that hold tables, in the order shown."""
FACTS = ("model", "task", "licence", "date", "teacher", "epochs", "seed", "sha256")
"""Fields of a card that hold one value."""


class About:
    """The handlers of the tab."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def card(self, name: str | None) -> str:
        """The card of a model as HTML; one line where there is none."""
        if not name:
            return "<p>No model.</p>"
        try:
            card = self.shelf.get(name).card
        except VtvizError as error:
            return f"<p>{escape(str(error))}</p>"
        return card_html(card) if card else "<p>This model has no card.</p>"

    def build(self, model: gr.Dropdown) -> None:
        """Lay the tab out, in the current Blocks; it follows the model chosen in Explore."""
        gr.HTML(
            f'<article class="vtx-about"><h2>What is a visual token?</h2><p>{TOKENS}</p><p>{PAPER}</p></article>',
            apply_default_css=False,
        )
        card = gr.HTML(self.card(self.shelf.names[0] if self.shelf.names else None), apply_default_css=False)
        model.change(self.card, [model], [card], preprocess=False, show_progress="hidden", api_visibility="private")


def card_html(card: Card) -> str:
    """A model card as HTML, everything in it escaped."""
    data = card.to_dict()
    facts = {key: data[key] for key in FACTS if data[key] not in (None, "")}
    facts |= {"classes": len(card.classes), "input": f"about {card.preprocessing.size} × {card.preprocessing.size} px"}
    warning = "" if card.trained else '<p class="vtx-warning">Not trained: random weights.</p>'
    notes = f"<p>{escape(card.notes)}</p>" if card.notes else ""
    tables = "".join(
        f"<section><h3>{title}</h3>{_table(data[key])}</section>" for key, title in SECTIONS.items() if data[key]
    )
    names = ", ".join(escape(name) for name in card.classes)
    return (
        f'<article class="vtx-about"><h2>{escape(card.name)}</h2>{warning}{notes}'
        f'<div class="vtx-cards"><section><h3>Model card</h3>{_table(facts)}</section>{tables}</div>'
        f"<details><summary>The {len(card.classes)} classes</summary><p>{names}</p></details></article>"
    )


def _table(values: dict[str, Any]) -> str:
    return f"<table>{_rows(values)}</table>"


def _rows(values: dict[str, Any]) -> str:
    """A row per value; a group of values follows its name, at the same width however deep it lies."""
    rows = []
    for key, value in values.items():
        name = escape(key.replace("_", " "))
        if isinstance(value, dict):
            rows.append(f'<tr><th colspan="2"><b>{name}</b></th></tr>{_rows(value)}')
        elif value not in (None, ""):
            rows.append(f"<tr><th>{name}</th><td>{_value(value)}</td></tr>")
    return "".join(rows)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value(each) for each in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    return escape(str(value))
