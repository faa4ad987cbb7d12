import re

import pytest

from app.about import TOKENS, About, card_html


def test_a_token_takes_five_sentences():
    assert len(re.findall(r"\.(?:\s|$)", TOKENS)) == 5


def test_a_card_is_shown_whole_and_escaped(shelf):
    page = About(shelf).card("own")
    for text in (
        "top1",
        "0.625",
        "5450",
        "num tokens",
        shelf.get("own").card.sha256,
        "tabby cat",
        "about 224 × 224 px",
    ):
        assert text in page
    assert "&lt;i&gt;photos&lt;/i&gt;" in page
    assert "&lt;b&gt;cup&lt;/b&gt;, rocket" in page
    assert "flag &amp; pole" in page
    assert "<i>" not in page
    assert "Not trained" not in page


def test_an_untrained_model_is_called_so(shelf):
    assert '<p class="vtx-warning">Not trained' in About(shelf).card("blank")


@pytest.mark.parametrize(
    ("name", "line"), [(None, "No model."), ("<nope>", "this page has no model &#x27;&lt;nope&gt;")]
)
def test_no_model_is_one_line(shelf, name, line):
    assert About(shelf).card(name).startswith(f"<p>{line}")


def test_values_of_every_kind_are_readable(tiny_card, tiny_model):
    card = tiny_card(
        tiny_model(),
        recipe={"lr": 0.00123456, "ema": True, "sizes": [96, 128], "steps": 1234567, "schedule": {"name": "cosine"}},
        notes="<script>alert(1)</script>",
    )
    page = card_html(card)
    for text in ("0.001235", "yes", "96, 128", "1,234,567", "<th>name</th><td>cosine</td>"):
        assert text in page
    assert "<script>" not in page
