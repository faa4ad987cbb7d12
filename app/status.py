"""How jobs are shown: HTML, everything in it escaped, and the curves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vtviz.data.loading import BatchPlan, parse_sizes
from vtviz.train.jobs import Job
from vtviz.train.recipes import Recipe
from vtviz.train.watch import TRIAL_STEPS, Cost, Progress

BLUE, ORANGE, GREY = "#3b82f6", "#f59e0b", "#8b8b95"
GRID = "rgba(139, 139, 149, 0.25)"
"""Readable on white and on black."""
SMOOTHED = 400
"""Points of the loss curve that are sent at most."""


def say_seconds(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``, ``2 days 4 h``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days {minutes % 1440 // 60} h"


def describe_sizes(recipe: Recipe) -> str:
    """What a recipe's crop sizes mean: ``crops of 64 to 96 px in epochs 1 to 18, 96 to 128 px in 19 to 30``."""
    plan = BatchPlan(1, 1, parse_sizes(recipe.sizes), epochs=recipe.epochs, seed=0)
    last = {plan.sides(epoch): epoch + 1 for epoch in range(recipe.epochs)}
    words, first = [], 1
    for step, until in last.items():
        sides = f"{step.low} px" if step.low == step.high else f"{step.low} to {step.high} px"
        when = f"epoch {first}" if first == until else f"epochs {first} to {until}"
        words.append(sides if len(last) == 1 else f"{sides} in {when}")
        first = until + 1
    return f"crops of {', '.join(words)}"


def describe_cost(cost: Cost, recipe: Recipe, seconds: float | None = None) -> str:
    """What a run takes, in a line or two."""
    classes = f"{cost.train:,} photos of {cost.classes} classes, {cost.val:,} to validate on"
    work = f"{recipe.epochs} epochs, {cost.steps:,} steps of {min(recipe.batch_size, cost.train)}"
    work += f"<br>{describe_sizes(recipe)}"
    took = (
        ""
        if seconds is None
        else f"<br><b>About {say_seconds(seconds)}</b> on this machine, by a trial of {TRIAL_STEPS} steps"
    )
    return f'<p class="vtx-cost">{classes}<br>{work}{took}</p>'


def list_jobs(jobs: Sequence[Job], chosen: Job | None) -> str:
    """The jobs, newest first, each a button; ``chosen`` is marked."""
    if not jobs:
        return '<p class="vtx-cost">No runs yet.</p>'
    rows = "".join(
        f'<button type="button" data-job="{escape(job.name)}" aria-pressed="{str(job == chosen).lower()}">'
        f'<span>{escape(job.name)}</span><span class="vtx-state" data-state="{job.state}">{_state(job)}</span></button>'
        for job in reversed(jobs)
    )
    return f'<div class="vtx-jobs" role="group" aria-label="Runs">{rows}</div>'


def describe_job(job: Job | None, progress: Progress, jobs: Sequence[Job]) -> str:
    """Name, state, how far it is and what is left of it, or why it failed."""
    if job is None:
        return ""
    recipe = job.training["recipe"]
    done = progress.epochs if job.state != "done" else recipe["epochs"]
    facts = [_state(job), _what(job)]
    if job.state == "queued":
        facts.append(f"{sum(other.active and other.number < job.number for other in jobs)} before it")
    elif job.started:
        facts.append(f"epoch {min(int(done) + 1, recipe['epochs'])} of {recipe['epochs']}" if job.active else "")
        if job.active:
            facts.append(f"{say_seconds(time.time() - job.started)} so far")
        elif job.ended:  # of one that was killed nobody knows
            facts.append(f"took {say_seconds(job.ended - job.started)}")
    if job.state == "running" and (left := _seconds(progress.left)) is not None:
        facts.append(f"about {say_seconds(left)} left")
    if progress.rows:
        best = max(row.get("val/top1", 0.0) for row in progress.rows)
        facts.append(f"best top-1 {best:.1%}")
    share = 100 * min(1.0, done / recipe["epochs"])
    error = f'<p class="vtx-message" role="alert">{escape(job.error)}</p>' if job.error else ""
    line = " · ".join(escape(fact) for fact in facts if fact)
    return (
        f'<div class="vtx-job"><h3>{escape(job.name)}</h3><p>{line}</p>'
        f'<div class="vtx-bar" role="progressbar" aria-label="Epochs done" aria-valuenow="{share:.0f}" '
        f'aria-valuemin="0" aria-valuemax="100"><i data-state="{job.state}" style="width:{share:.1f}%"></i></div>'
        f"{error}</div>"
    )


def describe_log(lines: Sequence[str]) -> str:
    """The last lines of a log."""
    text = "\n".join(escape(line) for line in lines) or "Nothing yet."
    return f'<pre class="vtx-log" tabindex="0">{text}</pre>'


def draw_curves(progress: Progress) -> go.Figure:
    """Loss, within the epochs and of each whole one, above the accuracy on the validation photos."""
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.09)
    every = max(1, len(progress.losses) // SMOOTHED)
    steps = progress.losses[::every]
    whole = [row for row in progress.rows if "epoch" in row]
    epochs = [row["epoch"] for row in whole]

    def add(row: int, x: list[float], y: list[float | None], name: str, color: str, mode: str, width: float) -> None:
        line = {"color": color, "width": width}
        trace = go.Scatter(x=x, y=y, name=name, mode=mode, line=line, marker={"size": 5})
        figure.add_trace(trace, row=row, col=1)

    add(1, [x for x, _ in steps], [y for _, y in steps], "step", GREY, "lines", 1)
    add(1, epochs, [row.get("loss/train") for row in whole], "loss", BLUE, "lines+markers", 2)
    add(2, epochs, [row.get("val/top1") for row in whole], "top-1", BLUE, "lines+markers", 2)
    if any(row.get("val/top5", 1.0) < 1 for row in whole):  # more than five classes
        add(2, epochs, [row.get("val/top5") for row in whole], "top-5", ORANGE, "lines+markers", 2)
    figure.update_yaxes(title_text="loss", row=1, col=1)
    figure.update_yaxes(title_text="accuracy", tickformat=".0%", range=[0, 1.03], row=2, col=1)
    figure.update_xaxes(title_text="epoch", row=2, col=1)
    few = progress.epochs <= 10
    figure.update_xaxes(gridcolor=GRID, zeroline=False, rangemode="tozero", dtick=1 if few else None)
    figure.update_yaxes(gridcolor=GRID, zeroline=False)
    figure.update_layout(
        height=420,
        margin={"l": 55, "r": 10, "t": 30, "b": 40},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY, "size": 12},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="x unified",
        hoverlabel={"font": {"color": "#18181b"}, "bgcolor": "#ffffff"},
        uirevision="keep",  # zoom and hidden curves stay when points are added
    )
    return figure


def _state(job: Job) -> str:
    return "stopping" if job.stopping else job.state


def _what(job: Job) -> str:
    """Model and data in words."""
    origin = job.training.get("start")
    model = f"from {origin.rstrip('/').rpartition('/')[2]}" if origin else job.training.get("model", "vt_resnet18")
    return f"{model} on {job.training['data'].rpartition('/')[2]}"


def _seconds(text: str) -> float | None:
    """``[D day[s], ]H:MM:SS`` -> seconds."""
    days, _, clock = text.rpartition(", ")
    try:
        hours, minutes, seconds = map(int, clock.split(":"))
        return int(days.split()[0] if days else 0) * 86400 + hours * 3600 + minutes * 60 + seconds
    except ValueError:
        return None
