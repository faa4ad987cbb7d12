"""The models that the page offers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

import vtviz.predictor as vt
from vtviz.checkpoints import at_home, find, read_card, stamp
from vtviz.engines import check_device, check_engine
from vtviz.errors import ConfigError, VtvizError, did_you_mean
from vtviz.predictor import Predictor

LOADED = 3
"""Models kept in memory at once (a VT-ResNet-18 takes about 50 MB)."""


class Shelf:
    """Models by name, loaded when first asked for. Any number of threads may share one.

    Args:
        extra: a model of the user's own, offered first: what :func:`vtviz.load_model` takes.
        device: where the models run; CUDA where there is one by default.
        engine: what runs them, as :func:`vtviz.load_model` takes it.
        dtype: likewise.

    Raises:
        CheckpointError: if ``extra`` is not there.
        ConfigError: for a device or an engine that is not there.
    """

    def __init__(
        self, extra: str | None = None, device: str | None = None, *, engine: str = "torch", dtype: str = "float32"
    ) -> None:
        self.device = None if device is None else check_device(device)
        check_engine(engine, dtype)
        self._engine = {"engine": engine, "dtype": dtype}
        shipped = vt.list_models()
        shipped.sort(key=lambda name: name != vt.DEFAULT_MODEL)
        self._sources = {name: name for name in shipped}
        if extra is not None:
            name, source = extra, extra
            if extra not in self._sources and not extra.startswith("hf://"):
                path, folder = find(extra), at_home(extra)
                name = _own_name(path)
                source = str((folder if folder.is_dir() else path).absolute())  # a training job has another folder
            self._sources = {name: source} | {k: v for k, v in self._sources.items() if k != name}
        self._runs: dict[str, str] = {}
        self._loaded: OrderedDict[str, tuple[tuple[str, int], Predictor]] = OrderedDict()
        self._lock = Lock()

    @property
    def names(self) -> list[str]:
        """What can be chosen; the first is the default."""
        return list(self._sources | self._runs)

    @property
    def with_tokens(self) -> list[str]:
        """Those of :attr:`names` whose models have tokens, as far as their cards are at hand."""
        return [name for name in self.names if _has_tokens(self.source(name))]

    def offer_runs(self, folders: Mapping[str, Path]) -> None:
        """Offer the models of these run folders by name, after the others; of earlier ones only those named stay."""
        with self._lock:
            for name in self._runs.keys() - folders.keys():
                self._loaded.pop(name, None)
            self._runs = {name: str(folder) for name, folder in folders.items() if name not in self._sources}

    def source(self, name: str) -> str:
        """What :func:`vtviz.load_model` takes for the model called ``name``. Raises ConfigError as :meth:`get` does."""
        sources = self._sources | self._runs
        if not isinstance(name, str) or name not in sources:
            raise ConfigError(f"this page has no model {str(name)[:80]!r}{did_you_mean(str(name), sources)}")
        return sources[name]

    def get(self, name: str) -> Predictor:
        """The model called ``name``.

        Raises:
            ConfigError: for a name that is not offered.
            CheckpointError: where it is damaged.
        """
        with self._lock:
            version = self.version(name)
            if name not in self._loaded or self._loaded[name][0] != version:
                self._loaded[name] = version, vt.load_model(self.source(name), self.device, **self._engine)
                while len(self._loaded) > LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(name)
            return self._loaded[name][1]

    def version(self, name: str) -> tuple[str, int]:
        """What tells the model called ``name`` from one that had its name before: a run that went on has new weights.

        Raises:
            ConfigError: for a name that is not offered.
            CheckpointError: where it is gone.
        """
        return stamp(self.source(name))


def _own_name(path: Path) -> str:
    """A run's ``best.safetensors`` is told apart by its folder."""
    return f"{path.parent.name}/{path.stem}" if path.stem in {"best", "last"} else path.stem


def _has_tokens(source: str) -> bool:
    if source.startswith("hf://"):
        return True
    try:
        return read_card(find(source)).model.startswith("vt_")
    except VtvizError:
        return False
