"""Training runs as jobs: each a process in a session of its own, which waits for its turn and outlives who started it.

Nothing about a job is kept in memory. Its run folder holds, beside what training writes,

* ``job.json``: what to train, its place in the queue, and the process (number and :func:`birth`);
* ``status.json``: what has become of it, written by that process alone;
* ``job.log``: what it said; ``cancel``: there once it was told to stop.

So whoever opens the folder of runs finds them all. There is no server: a job that waits looks twice a second whether
it is the oldest, and a process that died, however that came about, holds nobody up. Only light imports stand here: a
job that waits must not hold PyTorch in memory.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from vtviz.errors import ConfigError, TrainingError, VtvizError
from vtviz.files import write
from vtviz.train.verbs import MALLOC

REQUEST, STATUS, LOG, CANCEL = "job.json", "status.json", "job.log", "cancel"
ACTIVE = frozenset({"queued", "running"})
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What a job may be called: it becomes a folder's name."""
VANISHED = "its process ended without a word (killed, out of memory, or the machine restarted); resume goes on"
TURN_SECONDS = 0.5
STOP_SECONDS = 2.0
GPU = Path("/dev/nvidiactl")
"""Where it exists, training does not run on the CPU."""


@dataclass(frozen=True)
class Job:
    """A job as it stands now.

    Attributes:
        name: of the run folder.
        folder: the run folder, which loads like any checkpoint once it has weights.
        number: place in the queue; the lowest number goes first.
        training: fields of :class:`vtviz.train.run.TrainingJob`, as plain data.
        state: "queued", "running", "done", "failed" or "cancelled".
        error: one line on why it failed.
        started, ended: seconds since 1970; 0 before.
        stopping: whether it was told to stop and has not yet.
    """

    name: str
    folder: Path
    number: int
    training: dict[str, Any]
    state: str
    error: str = ""
    started: float = 0.0
    ended: float = 0.0
    stopping: bool = False

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ACTIVE


class Jobs:
    """The jobs of a folder of runs. Any number of these, in any processes, may look after one folder.

    Args:
        root: the folder of runs; made when the first job starts.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()

    def all(self) -> list[Job]:
        """Every job, oldest first."""
        found = []
        for file in self.root.glob(f"*/{REQUEST}"):
            if file.parent.is_symlink():
                continue
            try:
                found.append(_read_job(file.parent))
            except (OSError, ValueError, KeyError, TypeError):  # being deleted, or no job of ours
                continue
        return sorted(found, key=lambda job: job.number)

    def get(self, name: str) -> Job:
        """The job called ``name``.

        Raises:
            ConfigError: where there is none.
        """
        folder = self._folder(name)
        try:
            return _read_job(folder)
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"there is no job {name!r}") from None

    def start(self, name: str, training: Mapping[str, Any]) -> Job:
        """Queue a job; it starts at once where no other runs.

        Args:
            name: letters, digits, ``-`` and ``_``; becomes the run folder's name.
            training: fields of :class:`vtviz.train.run.TrainingJob` without ``out``; paths must be absolute.

        Raises:
            ConfigError: for a name that is taken or cannot be one.
            TrainingError: where the folder cannot be written, or no process be started.
        """
        folder = self._folder(name)
        with self._locked():
            try:
                folder.mkdir()
            except FileExistsError:
                raise ConfigError(f"{self.root.name} holds {name!r} already; choose another name") from None
            except OSError as error:
                raise TrainingError(f"cannot start {name}: {error.strerror or error}") from None
            try:
                return self._launch(folder, {**training, "out": str(folder)})
            except TrainingError:
                shutil.rmtree(folder, ignore_errors=True)  # it is no job, but would hold the name
                raise

    def resume(self, name: str) -> Job:
        """Queue a job that failed or was cancelled again; it goes on from its last whole epoch.

        Raises:
            ConfigError: where it is active or done.
        """
        with self._locked():
            job = self.get(name)
            if job.state not in {"failed", "cancelled"}:
                raise ConfigError(f"{name} is {job.state}: there is nothing to resume")
            return self._launch(job.folder, job.training)

    def cancel(self, name: str) -> None:
        """Tell a job to stop: it ends cleanly and keeps its last checkpoint. Asked a second time, end it at once.

        Raises:
            ConfigError: where it is not active.
        """
        with self._locked():
            job = self.get(name)
            if not job.active:
                raise ConfigError(f"{name} is {job.state}: there is nothing to cancel")
            pid = json.loads((job.folder / REQUEST).read_text(encoding="utf-8"))["pid"]
            (job.folder / CANCEL).touch()
            try:
                if job.stopping:
                    os.killpg(pid, signal.SIGKILL)  # it leads its session, and so its data-loading processes
                else:
                    os.kill(pid, signal.SIGINT)
            except ProcessLookupError:
                pass  # it has just ended by itself

    def delete(self, name: str) -> None:
        """Remove a job's folder and everything in it.

        Raises:
            ConfigError: where it is active.
            TrainingError: where the disk refuses.
        """
        with self._locked():
            job = self.get(name)
            if job.active:
                raise ConfigError(f"{name} is {job.state}: cancel it first")
            try:
                shutil.rmtree(job.folder)
            except OSError as error:
                raise TrainingError(f"cannot delete {name}: {error.strerror or error}") from None

    def _folder(self, name: str) -> Path:
        """The folder of that name, right below the root and no link to elsewhere."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(f"a name has 1 to 64 letters, digits, - and _, got {str(name)[:80]!r}")
        folder = self.root / name
        if folder.is_symlink():
            raise ConfigError(f"there is no job {name!r}: it is a link")
        return folder

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time, over all processes; the kernel gives the lock back when its holder dies."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = (self.root / ".lock").open("w")
        except OSError as error:
            raise TrainingError(f"cannot write to {self.root}: {error.strerror or error}") from None
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _launch(self, folder: Path, training: dict[str, Any]) -> Job:
        """Start the process and write down which it is; it cannot look before the lock is free."""
        command = [sys.executable, "-m", "vtviz.train.jobs", str(folder)]
        process = None
        try:
            for name in (STATUS, CANCEL):
                (folder / name).unlink(missing_ok=True)
            with (folder / LOG).open("ab") as log:
                process = subprocess.Popen(  # noqa: S603
                    command,
                    cwd=Path(__file__).parents[2],  # from where -m finds the package, installed or not
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=_environment(),
                )
            number = 1 + max((job.number for job in self.all()), default=0)
            request = {"number": number, "pid": process.pid, "born": birth(process.pid), "training": training}
            _write_json(folder / REQUEST, request)
        except OSError as error:
            if process is not None:
                os.killpg(process.pid, signal.SIGKILL)  # nobody could find it
                process.wait()
            raise TrainingError(f"cannot start {folder.name}: {error.strerror or error}") from None
        _CHILDREN[:] = [child for child in _CHILDREN if child.poll() is None] + [process]
        return _read_job(folder)


_CHILDREN: list[subprocess.Popen] = []
"""Processes started by this one that have not been waited for: dropped earlier, they would be warned about."""


def _environment() -> dict[str, str]:
    """A job's: this process's, where a relative folder of checkpoints still means the same in another folder."""
    found = {**({} if GPU.exists() else MALLOC), "OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    folders = [path for path in found.get("VTVIZ_CHECKPOINTS", "").split(os.pathsep) if path]
    absolute = [path if path.startswith("~") else str(Path(path).absolute()) for path in folders]
    return {**found, "VTVIZ_CHECKPOINTS": os.pathsep.join(absolute)}


def birth(pid: int) -> str:
    """What tells a process from a later one with the same number; empty where none of that number runs."""
    if sys.platform != "linux":
        done = subprocess.run(  # noqa: S603
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
        state, _, began = done.stdout.strip().partition(" ")
        return "" if state.startswith("Z") else began.strip()
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    fields = line.rpartition(")")[2].split()  # before it stands the program's name, which may hold anything
    return "" if fields[0] in {"Z", "X"} else f"{boot} {fields[19]}"


def _read_job(folder: Path) -> Job:
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    born = request["born"]
    alive = bool(born) and birth(request["pid"]) == born  # asked before the status: a job writes its end, then ends
    status: dict[str, Any] = {"state": "queued"}
    if (file := folder / STATUS).is_file():
        status = json.loads(file.read_text(encoding="utf-8"))
    told = (folder / CANCEL).is_file()
    if status["state"] in ACTIVE and not alive:
        status |= {"state": "cancelled"} if told else {"state": "failed", "error": VANISHED}
    stopping = told and status["state"] in ACTIVE
    return Job(folder.name, folder, request["number"], request["training"], stopping=stopping, **status)


def _write_json(file: Path, data: Mapping[str, Any]) -> None:
    write(file, json.dumps(data, indent=1) + "\n")


def run_job(folder: Path) -> None:
    """What a job's process does: wait for its turn, train, and write down how that went."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _stop)  # even where whoever started it ignores them
    status: dict[str, Any] = {"started": 0.0}
    try:
        try:
            with Jobs(folder.parent)._locked():  # noqa: SLF001 - job.json is complete once the lock is free
                job = _read_job(folder)
            _wait_for_turn(job)
            status["started"] = time.time()
            _train(job)
            status["state"] = "done"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # while an interrupt is still heard: later it would end this here
    except VtvizError as error:
        status |= {"state": "failed", "error": " ".join(str(error).split())}
    except (KeyboardInterrupt, SystemExit):  # the latter is what Lightning makes of the former
        status["state"] = "cancelled"
    except Exception as error:  # noqa: BLE001 - whatever it was, the job must not seem to run
        traceback.print_exc()
        status |= {"state": "failed", "error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    if "error" in status and (folder / CANCEL).is_file():  # what was cut short may end in any error
        status = {"state": "cancelled", "started": status["started"]}
    if "error" in status:
        print(f"error: {status['error']}", file=sys.stderr)  # the log
    _write_json(folder / STATUS, status | {"ended": time.time()})


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, and again until that has an effect: C++ swallows one that is raised in a callback."""
    if number == signal.SIGALRM and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return  # Lightning is ending the run
    signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS)
    signal.default_int_handler(number, frame)


def _wait_for_turn(job: Job) -> None:
    """Return when the job may train. Raises KeyboardInterrupt where it was told to stop before it could hear that."""
    jobs = Jobs(job.folder.parent)
    while True:
        with jobs._locked():  # noqa: SLF001 - so that no two find themselves first
            if (job.folder / CANCEL).is_file():
                raise KeyboardInterrupt
            others = [other for other in jobs.all() if other.active and other.name != job.name]
            if all(other.state == "queued" and other.number > job.number for other in others):
                _write_json(job.folder / STATUS, {"state": "running", "started": time.time()})
                return
        time.sleep(TURN_SECONDS)


def _train(job: Job) -> None:
    from vtviz.train.job import JOB, TrainingJob  # noqa: PLC0415 - a job that waits stays small
    from vtviz.train.run import train  # noqa: PLC0415

    train(TrainingJob.from_dict(job.training), resume=(job.folder / JOB).is_file())


if __name__ == "__main__":
    run_job(Path(sys.argv[1]))
