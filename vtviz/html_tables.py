"""Plain JSON data as HTML tables, whatever its shape; all text in it is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

TITLES = ("name", "label", "method", "title")
"""Keys that name one of several results, the first that there is."""
LONG = 16
"""Tables of more rows are folded."""


def tables(data: Mapping[str, Any]) -> str:
    """Facts first, then columns of numbers side by side, then matrices, then what is itself a list of results.

    Args:
        data: as a result's ``to_dict`` gives it: mappings, lists, text, numbers, None.
    """
    leaves = dict(_leaves(data))
    facts = {key: value for key, value in leaves.items() if _is_scalar(value)}
    columns: dict[int, dict[str, Sequence[Any]]] = {}
    for key, value in leaves.items():
        if _is_list(value) and value and all(map(_is_scalar, value)):
            columns.setdefault(len(value), {})[key] = value
    parts = [_rows([(key, cell(value)) for key, value in facts.items()])] if facts else []
    for count, some in columns.items():
        rows = [[str(i), *(cell(v[i]) for v in some.values())] for i in range(count)]
        parts.append(table(["", *_without_common_words(list(some))], rows))
    for key, value in leaves.items():
        if not _is_list(value) or not value or all(map(_is_scalar, value)):
            continue
        parts.append(f"<h4>{escape(_words(key))}</h4>")
        if all(isinstance(item, Mapping) for item in value):
            parts.append(_results(value))
        else:
            rows = [item if _is_list(item) else [item] for item in value]
            widest = max(map(len, rows))
            parts.append(table(["", *map(str, range(widest))], [[str(i), *map(cell, r)] for i, r in enumerate(rows)]))
    return "".join(parts)


def _results(items: Sequence[Mapping[str, Any]]) -> str:
    """Results of one kind: a row each where they are flat, otherwise one after the other under their names."""
    if all(_is_scalar(value) for item in items for value in item.values()):
        keys = list(dict.fromkeys(key for item in items for key in item))
        return table(list(map(_words, keys)), [[cell(item.get(key)) for key in keys] for item in items])
    parts = []
    for index, item in enumerate(items):
        key = next((key for key in TITLES if isinstance(item.get(key), str)), None)
        rest = {name: value for name, value in item.items() if name != key}
        parts.append(f"<h5>{escape(item[key] if key else str(index))}</h5>{tables(rest)}")
    return "".join(parts)


def _leaves(data: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, str(key)))
        else:
            yield " ".join((*path, str(key))), value


def _without_common_words(names: Sequence[str]) -> list[str]:
    """Names of columns without the words that they all begin with."""
    words = [name.split(" ") for name in names]
    while len(words) > 1 and all(len(each) > 1 for each in words) and len({each[0] for each in words}) == 1:
        words = [each[1:] for each in words]
    return [" ".join(each) for each in words]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, Mapping) and not _is_list(value)


def cell(value: Any) -> str:
    """One value as text, not yet escaped: numbers to three digits, None and NaN as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a heading; a long one is folded."""
    head = "".join(f'<th scope="col">{escape(_words(text))}</th>' for text in heading)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    whole = f'<div class="wide"><table class="grid"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return whole if len(rows) <= LONG else f"<details><summary>{len(rows)} rows</summary>{whole}</details>"


def _rows(pairs: Sequence[tuple[str, str]]) -> str:
    body = "".join(f'<tr><th scope="row">{escape(_words(k))}</th><td>{escape(v)}</td></tr>' for k, v in pairs)
    return f'<table class="facts">{body}</table>'


def _words(key: str) -> str:
    return key.replace("_", " ")
