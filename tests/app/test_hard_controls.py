"""Every handler of the page, called with what a browser could send in the place of what its controls hold."""

import json
import logging
import random
import traceback
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from gradio.state_holder import SessionState
from PIL import Image

from app.analyses import FAILED
from app.datasets import DataRoot
from app.page import build_page
from app.train import Train

JUNK = (
    None,
    "",
    "own",
    "onw",
    "x" * 5000,
    "\ud800",
    "../../etc/passwd",
    "<img src=x onerror=alert(1)>",
    0,
    -1,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    True,
    [],
    [[]],
    [None],
    {},
    {"path": None},
    {"path": ""},
    {"path": "/etc/passwd"},
    {"path": "http://127.0.0.1/a.png", "meta": {"_type": "gradio.FileData"}},
    {"key": {"key": []}},
    "9" * 400,
    "0,99,x",
)
MIXED = 6
"""Further calls of each handler, with a different one of these in each control."""
EVENT = ("key", "name", "job", "kind", "label", "sections", "layer", "token", "place")
"""What the page's scripts say beside an event."""
KINDS = ("ablation", "attribution")
"""What they say when they are right: only then is an analysis begun, with junk for all else."""
STEPS = 40
"""Answers that are taken of a handler that gives several."""


@pytest.fixture(scope="module")
def page(shelf, tmp_path_factory, coffee) -> gr.Blocks:
    """The page with all that it can have: training, and data to dissect."""
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        for name in ("tabby cat", "rocket"):
            (root / "set" / split / name).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(np.roll(coffee[:48, :64], i)).save(root / "set" / split / name / f"{i}.png")
    data = DataRoot(root)
    return build_page(shelf, Train(shelf, tmp_path_factory.mktemp("runs"), data, allowed=True), data)


def handlers(page: gr.Blocks) -> list:
    return [fn for fn in page.fns.values() if fn.fn is not None and not fn.js]


async def call(page: gr.Blocks, handler, values, session: SessionState, said: dict) -> str:
    """Answers given, as text; ``said`` is what a script says beside its event. gr.Error is one; all else comes out."""
    request = gr.Request(SimpleNamespace(query_params={}, headers={}, client=None), session_hash="junk")
    event = gr.EventData(None, said)
    iterator, answers = None, []
    while len(answers) < STEPS:
        try:
            done = await page.process_api(
                handler, list(values), session, request, iterator, "junk", event_id="junk", event_data=event
            )
        except gr.Error as error:
            return "\n".join([*answers, str(error)])
        answers.append(repr(done.get("data")))
        iterator = done.get("iterator")
        if not done.get("is_generating"):
            break
    return "\n".join(answers)


def test_every_handler_answers_junk_with_a_line(page, awaited, tally, caplog):
    rng, faults, failed, calls = random.Random(7), {}, set(), 0
    session = SessionState(page)
    arrive = next(handler for handler in handlers(page) if handler.name == "arrive")
    assert awaited(call(page, arrive, [], session, {}))  # from here on there is a photo in the session
    for handler in handlers(page):
        width = len(handler.inputs)
        tries = [[junk] * width for junk in JUNK]
        tries += [[rng.choice(JUNK) for _ in range(width)] for _ in range(MIXED if width > 1 else 0)]
        for values in tries:
            calls += 1
            said = {name: rng.choice(JUNK) for name in EVENT} if calls % 4 else {}
            if calls % 4 > 1:
                kind = rng.choice(KINDS)
                said |= {"kind": kind, "sections": {kind: said["label"]}}
            try:
                if FAILED in awaited(call(page, handler, values, session, said)):
                    failed.add(handler.name)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
                where = [f for f in traceback.extract_tb(error.__traceback__) if "/gradio/" not in f.filename]
                place = f"{where[-1].filename.rpartition('/')[2]}:{where[-1].lineno}" if where else "gradio"
                faults.setdefault((handler.name, place, f"{type(error).__name__}: {str(error)[:90]}"), values)
    tally("page handlers called with junk", calls)
    lines = [  # what a handler catches and calls the server's fault is one all the same
        f"{record.name}: {record.getMessage()}: {record.exc_info and record.exc_info[1]!r:.120}"
        for record in caplog.records
        if record.levelno >= logging.ERROR
    ]
    lines += [f"{name} says: {FAILED}" for name in sorted(failed)]
    lines += [
        f"{name} at {place}: {what} for {json.dumps(values)[:120]}" for (name, place, what), values in faults.items()
    ]
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)
