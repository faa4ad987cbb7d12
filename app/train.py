"""The tab Train: start a training run, watch it, stop it, go on with it. The runs are :mod:`vtviz.train.jobs`'."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.datasets import DataRoot
from app.explore import message
from app.probe import Probe
from app.shelf import Shelf
from app.status import describe_cost, describe_job, describe_log, draw_curves, list_jobs
from app.uploads import told
from vtviz.checkpoints import find, read_card
from vtviz.errors import ConfigError, DataError, VtvizError, did_you_mean
from vtviz.models.registry import MODELS
from vtviz.train.jobs import Job, Jobs
from vtviz.train.recipes import RECIPES, ClassificationRecipe, Recipe, make_recipe
from vtviz.train.watch import Progress, count_cost, estimate_seconds, read_log, read_progress

Seen = tuple[Any, ...] | None
"""What a session has been shown, so that only changes are sent."""
POLL_SECONDS = 2.0
RECIPE = "small"
OFFERED = tuple(name for name, recipe in RECIPES.items() if isinstance(recipe, ClassificationRecipe))
"""Recipes for folders of images; masks are trained on from the command line."""
CLASSIFIERS = tuple(name for name in MODELS if "fpn" not in name)
SCRATCH, TRAINED = "new:", "from:"
"""Of a start's value: a model with random weights, or one that the page offers."""
SIZES_HELP = (
    "128 is one size, 64-96 a range to draw from; 64-96@0.6,96-128: the first for 60 % of the epochs, then the other"
)
WORDS = {
    "batch_size": "the batch size",
    "lr": "the learning rate",
    "sizes: expected LOW-HIGH@FRACTION or SIZE,": "the crop size must be like 128, 64-96 or 64-96@0.6,96-128,",
    "sizes:": "the crop size:",
}
"""How an error of a recipe begins -> the same in the form's words."""
PICK = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-job]");
  if (button) trigger("pick", { name: button.dataset.job });
});"""
NO_DATA = """\
<p>This tab trains a model on your own photos. It only sees data sets below one folder, which you name when you start
the page:</p>
<p><code>python app.py --data-root DIR</code></p>
<p>Each data set below it is a folder with <code>train/CLASS/*.jpg</code> and <code>val/CLASS/*.jpg</code>, or with
<code>CLASS/*.jpg</code>, of which a tenth is then kept for validation.</p>"""
NOT_ALLOWED = """\
<p>Training is off, because other machines can reach this page, and whoever opens it could start and delete runs. If
that is what you want, start it with <code>--allow-training</code>.</p>"""


class Train:
    """The handlers of the tab. What a browser sends is checked here, and nothing of it is kept.

    Args:
        shelf: gets the models that were trained.
        runs: the folder of runs.
        data: what may be trained on; None explains how to say so.
        allowed: False builds no handlers at all.
    """

    def __init__(self, shelf: Shelf, runs: str | Path = "runs", data: DataRoot | None = None, *, allowed: bool = True):
        self.shelf, self.jobs, self.data, self.allowed = shelf, Jobs(runs), data, allowed
        self.probe = Probe(self.jobs)
        if allowed:
            self.offer()

    def offer(self) -> list[str]:
        """Put every run that has ended with weights on the shelf, and say what it then offers."""
        ended = [job for job in self.jobs.all() if not job.active and (job.folder / "best.safetensors").is_file()]
        self.shelf.offer_runs({f"{self.jobs.root.name}/{job.name}": job.folder for job in ended})
        return self.shelf.names

    def starts(self) -> list[tuple[str, str]]:
        """What training can start from: (label, value)."""
        new = [(f"{name}, from scratch", SCRATCH + name) for name in ("vt_resnet18", *CLASSIFIERS)]
        trained = [name for name in self.offer() if classifies(self.shelf.source(name))]
        return [*dict.fromkeys(new), *((f"{name}, fine-tuned", TRAINED + name) for name in trained)]

    def request(
        self, data: Any, start: Any, recipe: Any, epochs: Any, batch: Any, sizes: Any, rate: Any
    ) -> tuple[dict[str, Any], Recipe]:
        """A job's training from what the form holds.

        Raises:
            VtvizError: for anything that cannot work, in one line.
        """
        if self.data is None:
            raise DataError("no data root was given: start the page with --data-root DIR")
        folder = self.data.path(data)
        if recipe not in OFFERED:
            raise ConfigError(f"there is no recipe {str(recipe)[:80]!r}{did_you_mean(str(recipe), OFFERED)}")
        try:
            chosen = make_recipe(
                str(recipe), epochs=whole(epochs), batch_size=whole(batch), sizes=str(sizes).strip(), lr=number(rate)
            )
        except ConfigError as error:
            raise ConfigError(in_form_s_words(str(error))) from None
        kind, _, name = str(start).partition(":")
        if f"{kind}:" == TRAINED:
            origin: dict[str, Any] = {"start": self.shelf.source(name)}
        elif f"{kind}:" == SCRATCH and name in CLASSIFIERS:
            origin = {"model": name}
        else:
            raise ConfigError(f"training cannot start from {str(start)[:80]!r}{did_you_mean(name, CLASSIFIERS)}")
        return {"data": str(folder), "recipe": asdict(chosen), **origin}, chosen

    def fill(self, recipe: str) -> tuple[int, int, str, float]:
        """The important fields of a recipe."""
        chosen = RECIPES[recipe if recipe in OFFERED else RECIPE]
        return chosen.epochs, chosen.batch_size, chosen.sizes, chosen.lr

    def cost(self, *form: Any) -> tuple[str, str]:
        """What the form's training takes, or what is wrong with it."""
        try:
            training, recipe = self.request(*form)
            return describe_cost(count_cost(Path(training["data"]), recipe), recipe), ""
        except VtvizError as error:
            return "", message(self.plain(error))

    def trial(self, *form: Any) -> tuple[str, str]:
        """The same with the time that it takes, from a short trial."""
        try:
            training, recipe = self.request(*form)
            cost = count_cost(Path(training["data"]), recipe)
            return describe_cost(cost, recipe, estimate_seconds(self.jobs, training, cost)), ""
        except VtvizError as error:
            return gr.skip(), message(self.plain(error))

    def start(self, name: str, *form: Any) -> tuple[Any, str, Any]:
        """Start or queue a job: the job to show, a message, and the name field empty again."""
        try:
            training, _ = self.request(*form)
            job = self.jobs.start(str(name or "").strip() or self.free_name(Path(training["data"])), training)
        except VtvizError as error:
            return gr.skip(), message(self.plain(error)), gr.skip()
        return job.name, "", ""

    def free_name(self, data: Path) -> str:
        """``flowers``, ``flowers-2``, …: the first that is not taken."""
        base = (
            "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in data.name).strip("-_")[:50]
            or "run"
        )
        number = 1
        while (self.jobs.root / (name := base if number == 1 else f"{base}-{number}")).exists():
            number += 1
        return name

    def cancel(self, name: str | None) -> str:
        """Stop a job; see :meth:`vtviz.train.jobs.Jobs.cancel`."""
        return self._try(self.jobs.cancel, name)

    def resume(self, name: str | None) -> str:
        """Go on with a job."""
        problem = self._try(self.jobs.resume, name)
        self.offer()  # its weights change: not those that are loaded
        return problem

    def delete(self, name: str | None) -> str:
        """Remove a job and its folder."""
        return self._try(self.jobs.delete, name)

    def _try(self, do: Any, name: str | None) -> str:
        try:
            do(name)
        except VtvizError as error:
            return message(self.plain(error))
        return ""

    def plain(self, error: VtvizError) -> str:
        """An error's line without where the folders lie on the server."""
        text = str(error).replace(f"{self.jobs.root}/", "")
        return text.replace(f"{self.data.root}/", "") if self.data else text

    def look(self, chosen: str | None, epoch: Any, seen: Seen) -> tuple[Any, ...]:
        """Everything that shows jobs; what has not changed since the session last looked is left as it is.

        Args:
            chosen: name of the job that is shown in full; for one that is gone, or None, the newest is.
            epoch: whose token maps are shown.
            seen: what this returned last.

        Returns:
            For list, heading, curves, log, the buttons Cancel, Resume and Delete; for :attr:`Probe.parts`; the job
            shown; what was seen.
        """
        jobs = self.jobs.all()
        job = next((j for j in jobs if j.name == chosen), jobs[-1] if jobs else None)
        progress = read_progress(job.folder) if job else Progress(0, "", (), ())
        words = (
            list_jobs(jobs, job),
            describe_job(job, progress, jobs),
            describe_log(read_log(job.folder) if job else []),
        )
        shown, maps = self.probe.look(job, epoch, seen[3] if seen else None)
        points = job and job.name, progress.losses, progress.rows
        now = words, points, (job and job.state, job and job.stopping), maps
        listed, heading, log = (gr.skip() if seen and seen[0][i] == text else text for i, text in enumerate(words))
        curves = gr.skip()
        if seen is None or seen[1] != now[1]:
            drawn = bool(progress.losses or progress.rows)
            curves = gr.Plot(draw_curves(progress) if drawn else None, visible=drawn)
        acts: list[Any] = [gr.skip()] * 3
        if seen is None or seen[2] != now[2]:
            acts = buttons(job)
            self.offer()
        return listed, heading, curves, log, *acts, *shown, job.name if job else None, now

    def build(self, tab: gr.Tab, model: gr.Dropdown, others: list[gr.Tab]) -> None:
        """Lay the tab out, in the current Blocks.

        Args:
            tab: the one this stands in; while it is open, the jobs are looked at every :data:`POLL_SECONDS`.
            model: the page's choice of models, which gets the trained ones when one of ``others`` is opened.
            others: the other tabs.
        """
        if not self.allowed:
            gr.HTML(f'<article class="vtx-about">{NOT_ALLOWED}</article>', apply_default_css=False)
            return
        with gr.Row(elem_id="train"):
            with gr.Column(scale=2, min_width=300, elem_id="train-form"):
                started = self._build_form(tab, self.data) if self.data else self._explain()
            with gr.Column(scale=3, min_width=300, elem_id="train-jobs"):
                self._build_jobs(tab, others, started)
        for other in others:
            other.select(
                lambda: gr.Dropdown(choices=self.offer()),
                None,
                [model],
                queue=False,
                api_visibility="private",
                show_progress="hidden",
            )

    def _explain(self) -> gr.State:
        gr.HTML(f'<article class="vtx-about">{NO_DATA}</article>', apply_default_css=False)
        return gr.State(None)

    def _build_form(self, tab: gr.Tab, root: DataRoot) -> gr.State:
        """The form; the state returned changes to a job's name when one was started."""
        sets, defaults = root.names(), self.fill(RECIPE)
        data = gr.Dropdown(sets, value=sets[0] if sets else None, label="Data set", elem_id="train-data")
        start = gr.Dropdown(self.starts(), value=f"{SCRATCH}vt_resnet18", label="Model", elem_id="train-start")
        recipe = gr.Dropdown(OFFERED, value=RECIPE, label="Recipe", elem_id="train-recipe", filterable=False)
        with gr.Row(elem_classes="vtx-pair"):
            epochs = gr.Number(defaults[0], label="Epochs", min_width=60)
            batch = gr.Number(defaults[1], label="Batch size", min_width=60)
            rate = gr.Number(defaults[3], label="Learning rate", step=1e-4, min_width=60)
        sizes = gr.Textbox(defaults[2], label="Crop size, px", info=SIZES_HELP, max_lines=1, elem_id="train-sizes")
        name = gr.Textbox(label="Name", placeholder="by the data set", max_lines=1, max_length=64, elem_id="train-name")
        cost = gr.HTML(elem_id="train-cost", apply_default_css=False)
        note = gr.HTML(elem_id="train-message", apply_default_css=False)
        with gr.Row(elem_classes="vtx-pair"):
            trial = gr.Button("Estimate time", elem_id="train-trial", min_width=80)
            go = gr.Button("Start", variant="primary", elem_id="train-go", min_width=80)
        started = gr.State(None)
        form = [data, start, recipe, epochs, batch, sizes, rate]
        # preprocess=False: what is wrong is told by request(), in a line, and not by Gradio beside it
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
        # in one line: an answer that took long must not replace the answer to a later question
        line = {"concurrency_id": "cost", "concurrency_limit": 1}
        tell = {"fn": self.cost, "inputs": form, "outputs": [cost, note], **line, **quiet}
        recipe.input(self.fill, [recipe], form[3:], **quiet).then(**tell)
        for control in (data, start, epochs, batch, sizes, rate):
            control.change(**tell, trigger_mode="always_last")
        trial.click(
            self.trial, form, [cost, note], api_visibility="private", show_progress="full", show_progress_on=cost
        )
        go.click(self.start, [name, *form], [started, note, name], **quiet)
        tab.select(self.choices, None, [data, start], **quiet).then(**tell)
        return started

    def choices(self) -> tuple[Any, Any]:
        """Data sets and models as they now are, for the form's two lists."""
        return gr.Dropdown(choices=self.data.names() if self.data else []), gr.Dropdown(choices=self.starts())

    def _build_jobs(self, tab: gr.Tab, others: list[gr.Tab], started: gr.State) -> None:
        seen, chosen, doomed = gr.State(None), gr.State(None), gr.State(None)
        timer = gr.Timer(POLL_SECONDS, active=False)
        listed = gr.HTML(js_on_load=PICK, elem_id="train-list", apply_default_css=False)
        heading = gr.HTML(elem_id="train-heading", apply_default_css=False)
        with gr.Row(elem_id="train-acts"):
            cancel = gr.Button("Cancel", size="sm", visible=False, min_width=90)
            resume = gr.Button("Resume", size="sm", visible=False, min_width=90)
            delete = gr.Button("Delete …", size="sm", visible=False, min_width=90)
        with gr.Column(visible=False, elem_id="train-sure") as sure:
            question = gr.HTML(apply_default_css=False)
            with gr.Row():
                yes = gr.Button("Delete for good", variant="stop", size="sm", min_width=120)
                no = gr.Button("Keep", size="sm", min_width=90)
        note = gr.HTML(elem_id="train-jobs-message", apply_default_css=False)
        curves = gr.Plot(visible=False, show_label=False, container=False, elem_id="train-curves")
        self.probe.build(chosen)
        with gr.Accordion("Log", open=False, elem_id="train-log"):
            log = gr.HTML(apply_default_css=False)

        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        view = [listed, heading, curves, log, cancel, resume, delete, *self.probe.parts, chosen, seen]
        asked = [chosen, self.probe.epoch, seen]
        look: dict[str, Any] = {"fn": self.look, "inputs": asked, "outputs": view, "preprocess": False, **quiet}
        closed = {"fn": lambda: gr.Column(visible=False), "inputs": None, "outputs": [sure], "queue": False, **quiet}
        timer.tick(**look)
        tab.select(lambda: gr.Timer(active=True), None, [timer], queue=False, **quiet).then(**look)
        for other in others:
            other.select(lambda: gr.Timer(active=False), None, [timer], queue=False, **quiet)
        started.change(lambda name: name or gr.skip(), [started], [chosen], **quiet).then(**look)
        listed.pick(picked, None, [chosen, note], **quiet).then(**look).then(**closed)
        for button, act, job in (
            (cancel, self.cancel, chosen),
            (resume, self.resume, chosen),
            (yes, self.delete, doomed),
        ):
            button.click(act, [job], [note], **quiet).then(**closed).then(**look)
        delete.click(ask, [chosen], [question, sure, doomed], **quiet)
        no.click(**closed)
        chosen.change(**closed)


def classifies(source: str) -> bool:
    """Whether a model is a classifier, as far as its card is at hand."""
    if source.startswith("hf://"):
        return True
    try:
        return read_card(find(source)).task == "classification"
    except VtvizError:
        return False


def picked(event: gr.EventData) -> tuple[str, str]:
    """The job that was clicked on, and no message."""
    return told(event, "name"), ""


def ask(name: str | None) -> tuple[str, Any, str | None]:
    """The question before a job is deleted, and which one it names: another may be shown before it is answered."""
    text = f"Delete <b>{escape(str(name))}</b>, its weights and everything else in its folder?"
    return f'<p class="vtx-question">{text}</p>', gr.Column(visible=True), name


def buttons(job: Job | None) -> list[Any]:
    """Cancel, Resume and Delete, each shown where it makes sense."""
    active = job is not None and job.active
    return [
        gr.Button("Stop at once" if job and job.stopping else "Cancel", visible=active),
        gr.Button(visible=job is not None and job.state in {"failed", "cancelled"}),
        gr.Button(visible=job is not None and not active),
    ]


def in_form_s_words(line: str) -> str:
    """A recipe's error for someone who sees the form and not the recipe."""
    start = next((start for start in WORDS if line.startswith(f"{start} ")), "")
    return WORDS[start] + line.removeprefix(start) if start else line


def whole(value: Any) -> int:
    """A whole number from a number field. Raises ConfigError."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value % 1 != 0:
        raise ConfigError(f"epochs and batch size must be whole numbers, got {str(value)[:40]!r}")
    return int(value)


def number(value: Any) -> float:
    """A number from a number field. Raises ConfigError."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"the learning rate must be a number, got {str(value)[:40]!r}")
    return float(value)
