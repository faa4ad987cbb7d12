"""What takes long in Explore: ablation, attribution and its test, the report, in steps that can be watched and stopped.

Every call is a generator of small JSON answers: ``{job, done, total}`` while it works, and at its end ``{job,
result}``, ``{job, error}`` (one line) or ``{job, cancelled}``. The browser names the job, so that it knows which answer
is whose and can cancel it by that name; nobody else can, whatever they call theirs.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from app.payload import encode_array
from app.shelf import Shelf
from app.shown import EXPIRED, Shown, crop_of, open_photo, open_truth
from app.stops import Cancelled, deadline
from vtviz.errors import ConfigError, ImageError, VtvizError
from vtviz.explain.ablation import Ablation, ablate
from vtviz.explain.attribution import Attribution, Attributions, attribute
from vtviz.explain.attribution_picture import attribution_png, scale_end
from vtviz.explain.curves import area
from vtviz.explain.explainer import METHODS, STEPS
from vtviz.explain.faithfulness import BASELINES, Faithfulness, measure_faithfulness
from vtviz.geometry import Geometry
from vtviz.html_report import ZIP, Section, report

ANALYSES = "analysis"
"""Analyses take seconds: they wait for one another, and nothing else waits for them."""
FINEST = 160
"""An attribution is sent in so many cells a side at most."""
MOST_PIXELS = 20_000_000
"""Of a photo that is attributed: each method's map has the photo's size, 4 bytes a pixel."""
Progress = Callable[[int, int], None]
FAILED = "Something went wrong on the server; its log says what."
ABLATION_NOTE = (
    "Each token is taken out (absent), or gathered again with its map's cells shuffled (random) or with a centred "
    "Gaussian map. Only what absence changes beyond these two baselines is due to where the token looks."
)
ATTRIBUTION_NOTE = (
    "What speaks for the class, in red, and what against it, in blue. Two methods go through the tokens, the others "
    "through the pixels; where they disagree, none should be trusted alone."
)
FAITHFULNESS_NOTE = (
    "The pixels that a map ranks highest are blurred away first (deletion: the class's probability should fall at "
    "once, a low area is good), or come back first into the blurred photo (insertion: it should rise at once, a high "
    "area is good). A random map and one that marks the middle are the baselines. This is one photo, so there is no "
    "interval: vtviz faithfulness measures many."
)
BASELINE_TITLES = dict(zip(BASELINES, ("A random map", "The photo's middle"), strict=True))


class Job(NamedTuple):
    """A piece of work: whose it is, and what the session calls it."""

    session: str
    name: str


class Analyses:
    """The handlers. They keep nothing but which jobs were cancelled.

    Args:
        shelf: the models.
        seconds: that one job may take; by default any time.
    """

    def __init__(self, shelf: Shelf, seconds: float | None = None) -> None:
        self.shelf, self.seconds = shelf, seconds
        self._cancelled: deque[Job] = deque(maxlen=256)

    def cancel(self, event: gr.EventData, request: gr.Request) -> None:
        """Stop a job of the session's, or keep it from starting."""
        self._cancelled.append(_job(event, request))

    def analyse(self, shown: Shown | None, event: gr.EventData, request: gr.Request) -> Iterator[dict[str, Any]]:
        """An ``event.kind`` of analysis of what is shown, for the class ``event.label``; None for the likeliest.

        Kinds are ``ablation``, ``attribution`` and ``faithfulness``.
        """
        kind, label = getattr(event, "kind", None), getattr(event, "label", None)

        def work(shown: Shown, progress: Progress) -> dict[str, Any]:
            if kind == "ablation":
                return self.ablation(shown, label, progress).to_dict()
            if kind == "attribution":
                return encode_attributions(self.attributions(shown, label, progress))
            if kind == "faithfulness":
                return encode_faithfulness(self.faithfulness(shown, label, progress))
            raise ConfigError(f"there is no analysis {str(kind)[:40]!r}")

        yield from self._run(_job(event, request), shown, work)

    def report(
        self, shown: Shown | None, event: gr.EventData, request: gr.Request
    ) -> Iterator[tuple[dict[str, Any], str | None]]:
        """A report's ZIP file, with the analyses of ``event.sections``, {kind: class}, made again."""
        sections = getattr(event, "sections", None)
        wanted = sections if isinstance(sections, dict) else {}
        job = _job(event, request)
        for answer in self._run(job, shown, lambda shown, progress: {"file": self.pack(shown, wanted, progress)}):
            yield answer, answer.get("result", {}).get("file")

    def ablation(self, shown: Shown, label: Any, progress: Progress) -> Ablation:
        """Every token of every layer changed; of a segmentation model scored against the mask where there is one."""
        predictor, crop, photo = self.shelf.get(shown.model), crop_of(shown), open_photo(shown)
        segmentation = predictor.palette is not None
        truth = (
            open_truth(Path(shown.mask), photo.shape[:2], len(predictor.classes))
            if segmentation and shown.mask
            else None
        )
        target = None if segmentation else label
        return ablate(predictor, photo, target=target, truth=truth, crop=crop, progress=progress)

    def attributions(self, shown: Shown, label: Any, progress: Progress) -> Attributions:
        """What every method that the model can do says."""
        predictor, crop, photo = self.shelf.get(shown.model), crop_of(shown), _open_small(shown)
        return attribute(predictor, photo, target=label, crop=crop, progress=progress)

    def faithfulness(self, shown: Shown, label: Any, progress: Progress) -> Faithfulness:
        """How the maps of :meth:`attributions` do in deletion and insertion on this photo, beside the baselines.

        They are made again, in the same steps: the maps of a minute ago are no longer here.
        """
        predictor, crop, photo = self.shelf.get(shown.model), crop_of(shown), _open_small(shown)
        found = measure_faithfulness(
            predictor, [photo], target=label, steps=STEPS, randomize=False, crop=crop, progress=progress
        )
        return replace(found, images=(shown.name,))

    def pack(self, shown: Shown, wanted: dict[str, Any], progress: Progress) -> str:
        """Write a report where Gradio serves and later deletes it; the file's path."""
        predictor, crop = self.shelf.get(shown.model), crop_of(shown)
        maps = replace(predictor.extract(open_photo(shown), crop=crop), source=shown.name)
        sections = []
        if "ablation" in wanted:
            ablated = self.ablation(shown, wanted["ablation"], progress)
            sections.append(Section("Does a token matter?", ablated, ABLATION_NOTE))
        if "attribution" in wanted:
            found = self.attributions(shown, wanted["attribution"], progress)
            sections.append(Section(f"Attribution: {found.label}", found, ATTRIBUTION_NOTE, [attribution_png(found)]))
        if "faithfulness" in wanted:
            tested = encode_faithfulness(self.faithfulness(shown, wanted["faithfulness"], progress))
            sections.append(Section("Do the maps point at what counts?", tested, FAITHFULNESS_NOTE))
        stem = re.sub(r"\W+", "_", f"{Path(shown.photo).stem[:40]}_{shown.model}")
        with tempfile.TemporaryDirectory() as folder:
            made = report(maps, folder, card=predictor.card, sections=sections, pack=True)[ZIP]
            file = made.rename(Path(folder) / f"{stem}_report.zip")
            return str(self.file.move_resource_to_block_cache(str(file)))

    def build(self, main: gr.HTML, state: gr.State) -> None:
        """Answer the canvas's ``analyse``, ``report`` and ``cancel``, in the current Blocks."""
        self.file = gr.File(visible=False)
        answers = gr.HTML(
            None,
            html_template="<span></span>",
            js_on_load="watch('value', () => vtviz.hear(props.value));",
            visible="hidden",
        )
        # "once" would drop a call that comes while a cancelled one is ending
        common: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "trigger_mode": "multiple",
        }
        long = common | {"concurrency_id": ANALYSES, "concurrency_limit": 1}
        asked = main.analyse(self.analyse, [state], [answers], **long)
        packed = main.report(self.report, [state], [answers, self.file], **long)
        for each in (asked, packed):
            each.failure(None, None, None, js="() => vtviz.lost()", api_visibility="private")
        packed.then(None, [self.file], None, js="(file) => vtviz.offer(file)", api_visibility="private")
        main.cancel(self.cancel, None, None, queue=False, **common)

    def _run(
        self, job: Job, shown: Shown | None, work: Callable[[Shown, Progress], dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Do ``work`` beside the generator, and tell what becomes of it. A visitor who leaves closes the generator."""
        if shown is None:
            yield {"job": job.name, "error": EXPIRED}
            return
        answers: SimpleQueue[dict[str, Any]] = SimpleQueue()
        check = deadline(self.seconds)

        def progress(done: int, total: int) -> None:
            check()
            if job in self._cancelled:
                raise Cancelled
            answers.put({"done": done, "total": total})

        def run() -> None:
            try:
                progress(0, 1)
                answers.put({"result": work(shown, progress)})
            except Cancelled:
                answers.put({"cancelled": True})
            except VtvizError as error:
                answers.put({"error": str(error)})
            except Exception:
                logging.getLogger(__name__).exception("an analysis failed")
                answers.put({"error": FAILED})

        Thread(target=run, daemon=True).start()
        ended = False
        try:
            while not ended:
                answer = answers.get()
                while not answers.empty():  # only the latest is news
                    answer = answers.get()
                ended = "done" not in answer
                yield {"job": job.name, **answer}
        finally:
            if not ended:
                self._cancelled.append(job)  # nobody waits for it any more


def _job(event: gr.EventData, request: gr.Request) -> Job:
    return Job(str(request.session_hash), str(getattr(event, "job", ""))[:64])


def _open_small(shown: Shown) -> np.ndarray:
    """The photo. Raises ImageError for one that is too large to be attributed."""
    photo = open_photo(shown)
    pixels = photo.shape[0] * photo.shape[1]
    if pixels > MOST_PIXELS:
        raise ImageError(
            f"{shown.name} has {pixels / 1e6:.0f} megapixels, and attribution on this page takes photos of at most "
            f"{MOST_PIXELS / 1e6:.0f}: make it smaller"
        )
    return photo


def encode_faithfulness(found: Faithfulness) -> dict[str, Any]:
    """What :class:`Faithfulness` has of one photo, as plain JSON data: areas and curves, and no intervals."""
    return {
        "target": found.targets[0],
        "probability": float(found.methods[0].deletion[0, 0]),
        "probability_blurred": float(found.methods[0].deletion[0, -1]),
        "methods": [
            {
                "method": each.method,
                "title": BASELINE_TITLES.get(each.method) or METHODS[each.method].title,
                "baseline": each.method in BASELINES,
                "deletion": float(area(each.deletion[0])),
                "insertion": float(area(each.insertion[0])),
            }
            for each in found.methods
        ],
        "deletion_curves": {each.method: each.deletion[0].tolist() for each in found.methods},
        "insertion_curves": {each.method: each.insertion[0].tolist() for each in found.methods},
    }


def encode_attributions(found: Attributions) -> dict[str, Any]:
    """:meth:`Attributions.to_dict` with the geometry and each method's title and map, at most 160 cells a side.

    A map's cells are bytes: 128 + 127 v / end, where ``end`` is the value of the full colours. Cell i is centred at
    pixel ``stride * i + (stride - 1) / 2`` of the model's input, as in a plain resize.
    """
    data = found.to_dict()
    for item, sent in zip(found.items, data["methods"], strict=True):
        sent.update(title=METHODS[item.method].title, **_encode_map(item, found.geometry))
    return data | {"geometry": found.geometry.to_dict()}


def _encode_map(item: Attribution, fitted: Geometry) -> dict[str, Any]:
    stride = 1
    while max(fitted.input) / stride > FINEST:
        stride *= 2
    height, width = (side // stride for side in fitted.input)
    places = fitted.to_original(np.arange(height * stride), np.arange(width * stride))
    rows, columns = (np.clip(np.rint(p).astype(int), 0, n - 1) for p, n in zip(places, item.map.shape, strict=True))
    values = np.nan_to_num(item.map[np.ix_(rows, columns)]).reshape(height, stride, width, stride).mean(axis=(1, 3))
    end = scale_end(item)
    cells = np.rint(128 + 127 * np.clip(values / end, -1, 1)).astype(np.uint8)
    return {"end": end, "stride": stride, "shape": [height, width], "cells": encode_array(cells)}
