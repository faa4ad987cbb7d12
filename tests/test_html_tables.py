import re

import pytest

from vtviz.html_tables import LONG, cell, table, tables


def rows(markup: str) -> list[list[str]]:
    """Texts of every row's cells, in the order of the page."""
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", markup)]


def test_facts_stand_line_by_line_whatever_their_depth():
    markup = tables({"model": "m", "target": {"index": 3, "right": True}, "iou": None, "share": 0.123456})
    assert rows(markup) == [
        ["model", "m"], ["target index", "3"], ["target right", "yes"], ["iou", "–"], ["share", "0.123"],
    ]  # fmt: skip


def test_lists_of_one_length_stand_side_by_side():
    markup = tables({"effects": {"absent": {"logit": [0.5, None], "top_1": [1, 2]}, "random": {"logit": [0.25, 1e-7]}}})
    assert rows(markup) == [
        ["", "absent logit", "absent top 1", "random logit"],
        ["0", "0.5", "1", "0.25"],
        ["1", "–", "2", "1e-07"],
    ]
    assert rows(tables({"a": {"b": [1, 2]}})) == [["", "a b"], ["0", "1"], ["1", "2"]]


def test_results_are_rows_where_they_are_flat_and_chapters_where_not():
    flat = tables({"methods": [{"method": "x", "auc": 0.5}, {"method": "y", "error": 2}]})
    assert "<h4>methods</h4>" in flat
    assert rows(flat) == [["method", "auc", "error"], ["x", "0.5", "–"], ["y", "–", "2"]]
    deep = tables({"layers": [{"name": "block0", "values": [1, 2]}, {"values": [3, 4, 5]}]})
    assert re.findall("<h5>(.*?)</h5>", deep) == ["block0", "1"]
    assert ["2", "5"] in rows(deep)


def test_a_matrix_is_a_table():
    assert rows(tables({"agreement": [[1.0, 0.5], [0.5, 1.0]]})) == [
        ["", "0", "1"],
        ["0", "1", "0.5"],
        ["1", "0.5", "1"],
    ]
    assert rows(tables({"ragged": [[1], 2]})) == [["", "0"], ["0", "1"], ["1", "2"]]
    assert tables({"nothing": [], "none": {}}) == ""


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b"])
def test_all_text_is_escaped(hostile):
    data = {hostile: hostile, "list": [{"name": hostile, hostile: [hostile, hostile]}], "flat": [{hostile: hostile}]}
    markup = tables({**data, "deep": {hostile: [hostile, 1]}, "matrix": [[hostile], [1]]})
    assert hostile not in markup
    assert "<script" not in markup
    assert "<img" not in markup


def test_long_tables_are_folded():
    def markup(count):
        return table(["n"], [[str(i)] for i in range(count)])

    assert markup(LONG).startswith("<div")
    assert markup(LONG + 1).startswith(f"<details><summary>{LONG + 1} rows</summary>")


def test_values_as_text():
    values = {float("nan"): "–", None: "–", False: "no", 12: "12", 1234.5: "1.23e+03", "x": "x"}
    assert list(map(cell, values)) == list(values.values())
