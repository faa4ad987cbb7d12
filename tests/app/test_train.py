"""The tab Train: what it lets a browser do."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from app.__main__ import is_loopback, main
from app.datasets import DataRoot, is_data_set
from app.page import build_page
from app.shelf import Shelf
from app.status import describe_cost, describe_job, describe_log, describe_sizes, draw_curves, list_jobs, say_seconds
from app.train import OFFERED, Train, ask, buttons
from vtviz import checkpoints
from vtviz.data.loading import BatchPlan, parse_sizes
from vtviz.errors import ConfigError, DataError
from vtviz.train.jobs import REQUEST, STATUS, Job, birth
from vtviz.train.recipes import RECIPES, make_recipe
from vtviz.train.watch import Cost, Progress

FORM = ("colours", "new:resnet18", "small", 3, 4, "32", 0.001)
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def ended(train, models):
    """Makes a run that has ended, with weights."""

    def make(name: str, number: int = 1, **status: object) -> Path:
        folder = train.jobs.root / name
        folder.mkdir(parents=True)
        training, _ = train.request(*FORM)
        request = {"number": number, "pid": 1, "born": "never", "training": training}
        (folder / REQUEST).write_text(json.dumps(request))
        (folder / STATUS).write_text(json.dumps({"state": "done", "started": 10.0, "ended": 100.0, **status}))
        for suffix in (".safetensors", ".json"):
            shutil.copy(models / f"own{suffix}", folder / f"best{suffix}")
        return folder

    return make


# --- data sets


def test_data_sets_are_found_below_the_root_and_nowhere_else(data_root):
    assert DataRoot(data_root).names() == ["colours", "group/flat", "inner", "linking"]
    assert DataRoot(data_root / "colours").names() == ["."]
    assert DataRoot(data_root / "loose").names() == []
    assert not is_data_set(data_root / "masks")


@pytest.mark.parametrize(
    "name", ["../secret", "escape", "/etc", "", ".", "colours/../../secret", "loose", None, "colours/train", 3]
)
def test_what_is_not_offered_is_refused(data_root, name):
    with pytest.raises(ConfigError, match="there is no data set"):
        DataRoot(data_root).path(name)


def test_a_set_with_a_link_to_outside_is_refused_and_one_that_is_a_link_within_is_not(data_root):
    with pytest.raises(DataError, match=r"^linking/red/x\.png is a link to outside of the data root$"):
        DataRoot(data_root).path("linking")
    assert DataRoot(data_root).path("inner") == (data_root / "group" / "flat").resolve()


def test_a_root_that_is_not_there_is_told_at_once(tmp_path):
    with pytest.raises(DataError, match="no folder at"):
        DataRoot(tmp_path / "nowhere")


def test_a_wrong_option_stops_the_start(models, capsys):
    assert main(["--model", "own", "--device", "cpu", "--data-root", "/nowhere/data"]) == 2
    assert capsys.readouterr().err == "error: no folder at /nowhere/data\n"


# --- the form


def test_the_form_becomes_a_job(train, data_root, models):
    training, recipe = train.request(*FORM)
    assert training["data"] == str(data_root / "colours")
    assert training["model"] == "resnet18"
    assert training["recipe"]["epochs"] == recipe.epochs == 3
    assert recipe == make_recipe("small", epochs=3, batch_size=4, sizes="32", lr=0.001)
    training, _ = train.request("group/flat", "from:plain", "finetune", 1.0, 2, "64-96@0.5,128", 1)
    assert training["start"] == "plain"
    assert "model" not in training
    assert training["recipe"]["freeze"] == RECIPES["finetune"].freeze


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        (0, "../secret", "there is no data set"),
        (1, "from:/etc/passwd", "this page has no model"),
        (1, "new:vt_fpn_resnet18", "training cannot start from"),
        (1, SCRIPT, "training cannot start from &#x27;&lt;script&gt;"),
        (2, "smal", "did you mean &#x27;small&#x27;"),
        (2, "segment_small", "there is no recipe"),
        (3, 0, "epochs must be from 1 to 100000"),
        (3, 1.5, "must be whole numbers"),
        (3, None, "must be whole numbers"),
        (3, float("inf"), "must be whole numbers"),
        (4, "many", "must be whole numbers"),
        (4, 0, "the batch size must be at least 1"),
        (5, SCRIPT, "the crop size must be like 128, 64-96 or 64-96@0.6,96-128, got &#x27;&lt;script&gt;"),
        (5, "7", "the crop size: sides must rise within 32 and 1024, got &#x27;7&#x27;"),
        (5, "64@0.5", "the crop size: fractions must rise and the last one be 1"),
        (6, -1, "the learning rate must be positive"),
        (6, None, "must be a number"),
    ],
)
def test_a_wrong_field_is_one_escaped_line(train, place, value, line):
    form = [*FORM]
    form[place] = value
    for answer in (train.cost(*form)[1], train.start("x", *form)[1]):
        assert line in answer
        assert "<script>" not in answer
        assert answer.count("\n") == 0
    assert not train.jobs.all()


def test_the_cost_is_told_before_the_start(train):
    words, problem = train.cost(*FORM)
    assert problem == ""
    assert "12 photos of 2 classes, 4 to validate on" in words
    assert "3 epochs, 9 steps of 4" in words
    assert "crops of 32 px<" in words.replace("</p>", "<")
    assert "About" not in words
    assert "<b>About 3 h 20 min</b>" in describe_cost(Cost(1, 1, 1, 1), RECIPES["small"], 12_000)


@pytest.mark.parametrize(
    ("sizes", "epochs", "words"),
    [
        ("224", 30, "crops of 224 px"),
        ("64-96", 30, "crops of 64 to 96 px"),
        ("64-96@0.6,96-128", 30, "crops of 64 to 96 px in epochs 1 to 18, 96 to 128 px in epochs 19 to 30"),
        ("64@0.5,96@0.75,128", 4, "crops of 64 px in epochs 1 to 2, 96 px in epoch 3, 128 px in epoch 4"),
        ("64@0.5,96@0.75,128", 1, "crops of 64 px"),  # the others' turn never comes
    ],
)
def test_crop_sizes_are_explained_by_what_the_run_will_do(sizes, epochs, words):
    recipe = make_recipe("small", sizes=sizes, epochs=epochs)
    assert describe_sizes(recipe) == words
    plan = BatchPlan(100, 1, parse_sizes(sizes), epochs=epochs, seed=0)
    plan.set_epoch(epochs - 1)
    last = [int(n) for n in re.findall(r"\d+", words.rpartition(", ")[2].partition(" in ")[0])]
    drawn = {draw.size for batch in plan for draw in batch}
    assert (min(drawn), max(drawn)) == (last[0], last[-1])


def test_errors_do_not_tell_where_things_lie(train, data_root):
    answer = train.start("../up", *FORM)[1]
    assert "a name has 1 to 64 letters" in answer
    broken = train.plain(DataError(f"{data_root / 'colours'} has no class folders"))
    assert broken == "colours has no class folders"


def test_recipes_fill_their_fields_and_names_are_free(train, ended, data_root):
    assert train.fill("finetune") == (10, 64, "160-224", 3e-4)
    assert train.fill("nonsense") == train.fill("small")
    assert train.free_name(data_root / "colours") == "colours"
    ended("colours")
    assert train.free_name(data_root / "colours") == "colours-2"
    assert re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", train.free_name(Path("/x/ä ö.b")))
    assert train.free_name(Path("/x/…")) == "run"


def test_segmentation_is_not_offered_for_folders_of_classes(train, models, tiny_model, tiny_card):
    model = tiny_model("vt_fpn_resnet18")
    palette = tuple((i, i, i) for i in range(5))
    card = tiny_card(model, name="masks", model="vt_fpn_resnet18", task="segmentation", palette=palette)
    checkpoints.save(models / "masks.safetensors", model, card)
    try:
        other = Train(Shelf("own", device="cpu"), train.jobs.root, train.data)
        assert "masks" in other.shelf.names
        starts = [value for _, value in other.starts()]
    finally:
        for suffix in (".safetensors", ".json"):
            (models / f"masks{suffix}").unlink()
    assert "from:masks" not in starts
    assert "from:own" in starts
    assert not [recipe for recipe in OFFERED if recipe.startswith(("segment", "coco", "lip"))]


# --- the list, the models


def test_finished_runs_are_on_the_shelf_as_long_as_they_are_there(train, ended):
    before = train.shelf.names
    ended("mine")
    (ended("half", 2) / "best.safetensors").unlink()
    assert train.offer() == [*before, "runs/mine"]
    assert train.shelf.get("runs/mine").card.name == "own"
    assert ("runs/mine, fine-tuned", "from:runs/mine") in train.starts()
    assert train.request("colours", "from:runs/mine", *FORM[2:])[0]["start"] == str(train.jobs.root / "mine")
    first = train.shelf.get("runs/mine")
    assert train.shelf.get("runs/mine") is first
    assert train.delete("mine") == ""
    assert train.offer() == before
    with pytest.raises(ConfigError, match="this page has no model"):
        train.shelf.get("runs/mine")


def test_a_run_that_is_at_work_is_not_on_the_shelf(train, ended):
    before = train.offer()
    file = ended("busy", state="running", ended=0.0) / REQUEST
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": process.pid, "born": birth(process.pid)}))
    assert train.jobs.get("busy").active
    assert train.offer() == before
    process.kill()
    process.wait()
    assert train.offer() == [*before, "runs/busy"]


def test_acts_that_cannot_be_are_told(train, ended):
    ended("mine")
    assert "nothing to cancel" in train.cancel("mine")
    assert "nothing to resume" in train.resume("mine")
    assert "there is no job" in train.delete("other")
    assert "a name has 1 to 64 letters" in train.delete(SCRIPT)
    assert "a name has" in train.cancel(None)


def test_the_run_that_was_asked_about_is_deleted_and_no_other(train):
    """While the question stands, the run that is shown may become another one: by the poll, or by Start."""
    page = build_page(train.shelf, train)
    [asking] = [fn for fn in page.fns.values() if fn.fn is ask]
    [deleting] = [fn for fn in page.fns.values() if fn.fn == train.delete]
    question, _, name = ask("rubbish")
    assert "Delete <b>rubbish</b>" in question
    assert name == "rubbish"
    [chosen], [_, sure, doomed] = asking.inputs, asking.outputs
    assert deleting.inputs == [doomed]
    assert doomed is not chosen
    changed = [fn for fn in page.fns.values() if (chosen._id, "change") in fn.targets]
    assert [sure] in [fn.outputs for fn in changed]  # it is closed


def test_only_what_changed_is_sent(train, ended):
    assert train.look(None, 1, None)[0] == '<p class="vtx-cost">No runs yet.</p>'
    ended("old")
    ended("new", 2, state="failed", error=SCRIPT)
    listed, heading, _, _, *acts, chosen, seen = train.look(None, 1, None)
    assert chosen == "new"
    assert [act.visible for act in acts[:3]] == [False, True, True]
    assert acts[3].visible is False  # without panels
    assert listed.index('data-job="new"') < listed.index('data-job="old"')
    assert SCRIPT not in heading
    assert "&lt;script&gt;" in heading
    again = train.look(chosen, 1, seen)
    assert again[-1] == seen
    assert all(update == {"__type__": "update"} for update in again[:12])
    other = train.look("old", 1, seen)
    assert other[-2] == "old"
    assert "done" in other[1]


def job(state: str, **fields: object) -> Job:
    training = {"data": "/x/flowers", "model": "vt_resnet18", "recipe": {"epochs": 10}}
    return Job("a", Path("/r/a"), 3, training, state, **fields)


def test_a_job_is_told_in_one_line():
    progress = Progress(2.5, "1 day, 1:00:00", ((2.5, 1.0),), ({"epoch": 1.0, "val/top1": 0.25},))
    text = describe_job(job("running", started=1.0), progress, [])
    for part in ("vt_resnet18 on flowers", "epoch 3 of 10", "about 25 h 0 min left", "best top-1 25.0%", "width:25.0%"):
        assert part in text
    waiting = describe_job(job("queued"), Progress(0, "", (), ()), [job("running"), job("queued")])
    assert "0 before it" in waiting
    numbers = {"done": 0, "running": 1, "cancelled": 2, "queued": 4}
    line = [replace(job(state), number=number) for state, number in numbers.items()]
    last = replace(job("queued"), number=5)
    assert "2 before it" in describe_job(last, Progress(0, "", (), ()), [*line, last])  # of those that go on
    assert "1 before it" in describe_job(line[-1], Progress(0, "", (), ()), [*line, last])
    assert "stopping" in list_jobs([job("running", stopping=True)], None)
    assert [b.visible for b in buttons(job("running"))] == [True, False, False]
    assert buttons(job("running", stopping=True))[0].value == "Stop at once"
    assert describe_job(None, progress, []) == ""
    done = describe_job(job("done", started=1.0, ended=3.0), progress, [])
    assert "took 2 s" in done
    assert 'aria-valuenow="100"' in done  # whatever its bar last said
    rows = tuple({"epoch": float(i + 1), "val/top1": top1} for i, top1 in enumerate((0.25, 0.5, 0.375)))
    assert "best top-1 50.0%" in describe_job(job("running", started=1.0), replace(progress, rows=rows), [])
    for state in ("failed", "cancelled"):  # killed: nobody knows when
        assert "took" not in describe_job(job(state, started=1.0), progress, [])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.4, "4 s"), (100, "2 min"), (3599, "60 min"), (12_000, "3 h 20 min"), (200_000, "2 days 7 h")],
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert say_seconds(seconds) == words


def test_curves_hold_the_metrics():
    rows = tuple({"epoch": float(i), "loss/train": 1 / i, "val/top1": i / 5, "val/top5": 0.9} for i in (1, 2, 3))
    figure = draw_curves(Progress(3.0, "", tuple((i / 1000, 1.0) for i in range(3000)), rows))
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["top-1"].y) == [0.2, 0.4, 0.6]
    assert list(by_name["loss"].x) == [1, 2, 3]
    assert len(by_name["step"].x) <= 500
    assert "top-5" in by_name
    assert len(draw_curves(Progress(0.0, "", (), ())).data) == 3


def test_a_log_is_text():
    assert SCRIPT not in describe_log([SCRIPT])
    assert "Nothing yet." in describe_log([])


# --- who may


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("", False)],
)
def test_only_loopback_is_this_machine_alone(host, alone):
    assert is_loopback(host) is alone


def test_where_it_is_not_allowed_nothing_can_be_called(models, data_root, tmp_path):
    def acts(page) -> set[str]:
        return {fn.name for fn in page.fns.values() if isinstance(getattr(fn.fn, "__self__", None), Train)}

    shelf = Shelf("own", device="cpu")
    assert not acts(build_page(shelf, Train(shelf, tmp_path, DataRoot(data_root), allowed=False)))
    page = build_page(shelf, Train(shelf, tmp_path))
    assert not acts(page) & {"start", "trial"}
    assert "--data-root DIR" in str(page.get_config_file())
    page = build_page(shelf, Train(shelf, tmp_path, DataRoot(data_root)))
    assert acts(page) >= {"start", "cancel", "resume", "delete", "look", "trial"}
    open_ones = {fn.api_name for fn in page.fns.values() if fn.api_visibility == "public"}
    analyses = {"ablate", "attribute", "lineage", "query"}
    assert open_ones == {"extract", "compare", "atlas", "video"} | analyses  # which change nothing
