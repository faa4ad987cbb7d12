"""Jobs are real processes here; those that train do so on 24 pictures of 32 pixels, for seconds."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import pytest
from PIL import Image

from vtviz import checkpoints
from vtviz.errors import ConfigError, TrainingError
from vtviz.train import jobs as module
from vtviz.train.callbacks import read_metrics
from vtviz.train.jobs import CANCEL, REQUEST, STATUS, VANISHED, Jobs, birth
from vtviz.train.recipes import RECIPES, recipe_from_dict
from vtviz.train.watch import count_cost, estimate_seconds, read_log, read_progress

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
QUICK = RECIPES["small"]


def wait_until(holds: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module", autouse=True)
def _frugal():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def training(tiny_job) -> Callable[..., dict]:
    """A small training as plain data, with fields of the recipe replaced."""

    def make(data: str | None = None, **recipe: object) -> dict:
        job = asdict(tiny_job(recipe={"sizes": "32", "eval_size": 32, **recipe}))
        return job | ({"data": data} if data else {})

    return make


@pytest.fixture
def jobs(tmp_path) -> Iterator[Jobs]:
    made = Jobs(tmp_path / "runs")
    yield made
    for job in made.all():
        if job.active:
            os.killpg(json.loads((job.folder / REQUEST).read_text())["pid"], signal.SIGKILL)


@pytest.fixture
def occupied(jobs) -> Iterator[subprocess.Popen]:
    """A process that stands for a running job, so that others wait without the cost of training."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    folder = jobs.root / "occupied"
    folder.mkdir(parents=True)
    request = {"number": 1, "pid": process.pid, "born": birth(process.pid), "training": {}}
    (folder / REQUEST).write_text(json.dumps(request))
    (folder / STATUS).write_text('{"state": "running", "started": 1.0}')
    yield process
    process.kill()
    process.wait()


def state(jobs: Jobs, name: str) -> str:
    return jobs.get(name).state


# --- processes


def test_a_process_is_told_from_a_later_one_of_its_number():
    here = birth(os.getpid())
    assert here
    assert here == birth(os.getpid())
    child = subprocess.Popen(["sleep", "600"])
    born = birth(child.pid)
    assert born not in {"", here}
    child.kill()
    wait_until(lambda: birth(child.pid) == "")  # not waited for: a zombie runs no more
    child.wait()
    assert birth(child.pid) == ""


def test_a_reused_number_is_not_mistaken_for_the_job(jobs, occupied):
    assert state(jobs, "occupied") == "running"
    file = jobs.root / "occupied" / REQUEST
    request = json.loads(file.read_text())
    file.write_text(json.dumps({**request, "born": request["born"] + "1"}))
    assert (state(jobs, "occupied"), jobs.get("occupied").error) == ("failed", VANISHED)
    with pytest.raises(ConfigError, match="nothing to cancel"):
        jobs.cancel("occupied")
    assert occupied.poll() is None  # nobody else's process was signalled


# --- the queue, without training


def test_jobs_wait_their_turn_in_order_and_a_waiting_one_can_be_cancelled(jobs, occupied, training):
    for name in ("first", "second", "third"):
        jobs.start(name, training(data="/nowhere"))
    assert [(job.name, job.state) for job in Jobs(jobs.root).all()][1:] == [
        ("first", "queued"),
        ("second", "queued"),
        ("third", "queued"),
    ]
    jobs.cancel("second")
    wait_until(lambda: state(jobs, "second") == "cancelled")
    assert state(jobs, "first") == state(jobs, "third") == "queued"
    occupied.kill()
    occupied.wait()  # the job that ran has died without a word: the next one starts
    wait_until(lambda: state(jobs, "first") == "running")
    assert state(jobs, "third") == "queued"
    wait_until(lambda: state(jobs, "third") == "running")
    jobs.cancel("third")
    wait_until(lambda: state(jobs, "third") == "cancelled")
    first = jobs.get("first")
    assert (first.state, first.error) == ("failed", "no data folder at /nowhere")
    assert 0 < first.started <= first.ended
    assert read_log(first.folder)[-1] == f"error: {first.error}"


def test_a_job_outlives_the_one_who_started_it_and_is_found_again(jobs, occupied, training):
    code = (
        "import json, sys; from vtviz.train.jobs import Jobs; Jobs(sys.argv[1]).start('orphan', json.load(sys.stdin))"
    )
    starter = [sys.executable, "-c", code, str(jobs.root)]
    text = json.dumps(training())
    subprocess.run(starter, input=text, text=True, check=True, timeout=60)
    wait_until(lambda: birth(json.loads((jobs.root / "orphan" / REQUEST).read_text())["pid"]) != "")
    assert state(jobs, "orphan") == "queued"
    jobs.cancel("orphan")
    wait_until(lambda: state(jobs, "orphan") == "cancelled")


def test_told_twice_a_job_ends_at_once(jobs, training):
    folder = jobs.root / "stuck"
    folder.mkdir(parents=True)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    process.stdout.readline()
    request = {"number": 1, "pid": process.pid, "born": birth(process.pid), "training": {}}
    (folder / REQUEST).write_text(json.dumps(request))
    (folder / STATUS).write_text('{"state": "running"}')
    jobs.cancel("stuck")
    assert jobs.get("stuck").stopping
    assert process.poll() is None
    jobs.cancel("stuck")
    process.wait(10)
    assert (state(jobs, "stuck"), jobs.get("stuck").error) == ("cancelled", "")


def test_a_cancel_that_comes_before_a_job_can_hear_it_is_not_lost(jobs, occupied, training):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in what a shell starts with "&"
    try:
        jobs.start("early", training(data="/nowhere"))
    finally:
        signal.signal(signal.SIGINT, before)
    jobs.cancel("early")
    wait_until(lambda: state(jobs, "early") == "cancelled", 30)


def test_an_interrupt_that_is_swallowed_comes_again_until_the_run_is_ending():
    code = """
import os, signal, time
from vtviz.train import jobs
jobs.STOP_SECONDS = 0.1
for number in (signal.SIGINT, signal.SIGALRM):
    signal.signal(number, jobs._stop)
for _ in range(3):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    except KeyboardInterrupt:
        pass  # as C++ does
try:
    time.sleep(30)
except KeyboardInterrupt:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Lightning does when it ends a run
time.sleep(0.5)
print("ended by itself")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20)
    assert done.stdout == "ended by itself\n", done.stderr


def test_an_interrupt_that_comes_again_as_the_run_has_ended_leaves_no_job_without_a_word(tmp_path):
    request = {"number": 1, "pid": 0, "born": "", "training": {}}
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / REQUEST).write_text(json.dumps(request))
    code = """
import os, signal, sys
from pathlib import Path
from vtviz.train import jobs
jobs.STOP_SECONDS = 0.02
def train(job):
    model = [[] for _ in range(3_000_000)]  # takes longer to go
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
jobs._train = train
jobs.run_job(Path(sys.argv[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "job")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "job" / STATUS).read_text())["state"] == "cancelled"


def test_what_is_active_is_not_deleted_and_what_has_ended_is(jobs, occupied):
    with pytest.raises(ConfigError, match="occupied is running: cancel it first"):
        jobs.delete("occupied")
    with pytest.raises(ConfigError, match="nothing to resume"):
        jobs.resume("occupied")
    occupied.kill()
    occupied.wait()
    jobs.delete("occupied")
    assert not (jobs.root / "occupied").exists()
    with pytest.raises(ConfigError, match="there is no job 'occupied'"):
        jobs.delete("occupied")


@pytest.mark.parametrize("name", ["", "..", "../out", "a/b", ".hidden", "-x", "a b", "é", "x" * 65, "a\n", None, 7])
def test_names_that_could_lead_elsewhere_are_refused(jobs, training, name):
    for act in (jobs.get, jobs.cancel, jobs.resume, jobs.delete, lambda n: jobs.start(n, training())):
        with pytest.raises(ConfigError, match="a name has 1 to 64 letters"):
            act(name)


def test_links_are_no_jobs(jobs, occupied, tmp_path):
    outside = tmp_path / "outside"
    (jobs.root / "occupied").rename(outside)
    (jobs.root / "link").symlink_to(outside)
    with pytest.raises(ConfigError, match="it is a link"):
        jobs.delete("link")
    assert (outside / REQUEST).is_file()
    assert jobs.all() == []


def test_a_name_is_taken_once_and_other_folders_are_left_alone(jobs, training):
    (jobs.root / "mine").mkdir(parents=True)
    (jobs.root / "mine" / "best.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="runs holds 'mine' already; choose another name"):
        jobs.start("mine", training())
    with pytest.raises(ConfigError, match="there is no job 'mine'"):
        jobs.delete("mine")
    (jobs.root / "mine" / REQUEST).write_text("{")
    assert jobs.all() == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, training):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write to"):
        Jobs(tmp_path / "file").start("a", training())


@pytest.mark.parametrize("place", ["mkdir", "log", "request"])
def test_a_full_disk_is_one_line_and_leaves_no_run_and_no_process(jobs, occupied, training, monkeypatch, place):
    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    processes = []

    class Process(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            processes.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", full if place == "log" else Process)
        if place == "request":
            patch.setattr(module, "write", full)
        if place == "mkdir":
            patch.setattr(module.Path, "mkdir", lambda self, **options: None if options else full())
        with pytest.raises(TrainingError, match=r"^cannot start a: No space left on device$"):
            jobs.start("a", training())
    assert [process.wait(10) for process in processes] == [-signal.SIGKILL] * (place == "request")
    assert not (jobs.root / "a").exists()
    assert jobs.start("a", training(data="/nowhere")).state == "queued"


def test_a_relative_folder_of_checkpoints_is_the_same_one_in_a_job(jobs, monkeypatch, tmp_path):
    folders = ("models", str(tmp_path), "~/mine", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VTVIZ_CHECKPOINTS", os.pathsep.join(folders))
    started = []

    def start(*_command, env, **_options):
        started.append(env)
        raise OSError(errno.ENOENT, "not now")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(TrainingError, match="not now"):
        jobs.start("a", {})
    expected = [str(tmp_path / "models"), str(tmp_path), "~/mine"]
    assert started[0]["VTVIZ_CHECKPOINTS"].split(os.pathsep) == expected


def test_a_waiting_job_is_light():
    code = "import sys, vtviz.train.jobs; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "lightning", "gradio"} & set(loaded)


# --- with training


def test_train_cancel_resume_delete(jobs, training):
    """One long job that is cancelled after its first epoch, one that waits for it, and the first resumed to its end."""
    long = jobs.start("long", training(epochs=300))
    jobs.start("next", training(epochs=1))
    wait_until(lambda: len(read_progress(long.folder).rows) >= 2)
    assert (state(jobs, "long"), state(jobs, "next")) == ("running", "queued")
    jobs.cancel("long")
    wait_until(lambda: state(jobs, "long") == "cancelled")
    status = json.loads((long.folder / STATUS).read_text())
    assert status["state"] == "cancelled"  # it said so itself
    assert not any(line.startswith(("Traceback", " ", "error:")) for line in read_log(long.folder))
    kept = len(read_metrics(long.folder))
    _, card = checkpoints.load(long.folder)
    assert card.name == "long"
    with Image.open(long.folder / "probe" / "tokens.webp") as film:
        assert film.n_frames == kept

    # shorten what is left: the request is the job's own to change
    file = long.folder / REQUEST
    request = json.loads(file.read_text())
    request["training"]["recipe"]["epochs"] = kept + 1
    file.write_text(json.dumps(request))
    resumed = jobs.resume("long")
    assert (resumed.state, resumed.stopping) == ("queued", False)
    assert not (long.folder / CANCEL).exists()
    wait_until(lambda: not any(job.active for job in jobs.all()))
    assert (state(jobs, "long"), state(jobs, "next")) == ("done", "done")
    assert jobs.get("next").ended <= jobs.get("long").started  # the resumed one went to the end of the queue
    rows = read_progress(long.folder).rows
    assert [row["epoch"] for row in rows] == [float(i + 1) for i in range(kept + 1)]
    with pytest.raises(ConfigError, match="nothing to resume"):
        jobs.resume("long")
    jobs.delete("long")
    assert [job.name for job in jobs.all()] == ["next"]

    progress = read_progress(jobs.get("next").folder)
    assert progress.epochs == 1
    assert progress.rows == tuple(read_metrics(jobs.get("next").folder))
    assert [x for x, _ in progress.losses] == [1.0]
    assert progress.losses[0][1] == pytest.approx(progress.rows[0]["loss"], abs=0.002)
    assert progress.left == "0:00:00"


def test_a_trial_tells_the_time(jobs, training, balls):
    chosen = training(epochs=6)
    cost = count_cost(balls, recipe_from_dict(chosen["recipe"]))
    assert (cost.train, cost.val, cost.classes, cost.steps) == (24, 12, 3, 18)
    before = time.monotonic()
    seconds = estimate_seconds(jobs, chosen, cost)
    assert 0 < seconds < 6 * (time.monotonic() - before)  # the trial has one epoch, and its start besides
    assert jobs.all() == []


def test_a_job_that_is_started_during_a_trial_goes_before(jobs, training, balls, monkeypatch, tmp_path):
    trial = training(epochs=6)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def start() -> None:
        wait_until(lambda: any(tmp_path.glob("vtviz-trial-*/trial")))
        jobs.start("real", training(epochs=1))

    starting = threading.Thread(target=start)
    starting.start()
    with pytest.raises(ConfigError, match="real is at work, and a trial beside it would measure both"):
        estimate_seconds(jobs, trial, count_cost(balls, recipe_from_dict(trial["recipe"])))
    starting.join()
    wait_until(lambda: state(jobs, "real") == "done")


def test_no_trial_beside_a_job(jobs, occupied, training, balls):
    with pytest.raises(ConfigError, match="occupied is at work"):
        estimate_seconds(jobs, training(), count_cost(balls, QUICK))
