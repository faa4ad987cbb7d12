"""What runs a model's forward pass: PyTorch, ONNX Runtime or OpenVINO, behind one call.

An engine turns a batch into logits and token maps; nothing else of a model goes through it. Whatever needs gradients
or changes tokens on their way (ablation, attribution) runs the PyTorch model itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vtviz import __version__, graph
from vtviz.errors import ConfigError, did_you_mean
from vtviz.files import write
from vtviz.hooks import Layer, record
from vtviz.models.folding import to_bfloat16
from vtviz.models.registry import config_to_dict

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
"""Name of a precision -> its dtype."""


class Engine(Protocol):
    """Runs a model's forward pass. Any number of threads may call one."""

    @property
    def versions(self) -> Mapping[str, str]:
        """What to say of the engine beside its results; nothing for plain PyTorch in float32."""

    def check_size(self, height: int, width: int) -> None:
        """Raises ConfigError for a size of its input, in pixels, that the engine does not take."""

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Layer]]:
        """A batch (N, 3, h, w), normalised, through the model, without gradients.

        Returns:
            Logits, and one :class:`~vtviz.hooks.Layer` per layer of tokens (none for a model without tokens).
        """


@contextmanager
def inference(model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Evaluation mode without gradients, all put back at the end; autocast in bfloat16 if asked, never a caller's."""
    training = [m for m in model.modules() if m.training]
    # no_grad and not inference_mode: a caller's autocast would cache inference tensors of the weights for training
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True


@dataclass(frozen=True)
class TorchEngine:
    """The PyTorch model as it is at each call, on its own device.

    Attributes:
        model: whose maps are wanted.
        dtype: "float32", or "bf16": bfloat16 autocast. Softmaxes stay float32.
        hook_free: ask the model for its maps instead of hooking it, as compiled models need.
    """

    model: nn.Module
    dtype: str = "float32"
    hook_free: bool = False

    @property
    def versions(self) -> Mapping[str, str]:
        """See :class:`Engine`."""
        return {} if self.dtype == "float32" else {"dtype": self.dtype}

    def check_size(self, height: int, width: int) -> None:
        """See :class:`Engine`. Any will do."""

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Layer]]:
        """See :class:`Engine`."""
        weights = next(self.model.parameters())
        x = x.to(weights.dtype)
        if self.dtype == "bf16" or weights.device.type == "cpu":  # convolutions on a CPU are a fifth faster so
            x = x.contiguous(memory_format=torch.channels_last)
        with inference(self.model, weights.device, DTYPES[self.dtype]):
            if self.hook_free:
                logits, blocks = self.model(x, return_maps=True)
                return logits, [Layer(b.tokenizer, b.transformer, b.projector) for b in blocks]
            with record(self.model) as recorder:
                return self.model(x), recorder.layers()


class _GraphEngine:
    """The graph of a model as it was when the engine was made, on the CPU."""

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        run: Callable[[np.ndarray], list[np.ndarray]],
        versions: Mapping[str, str],
    ) -> None:
        """``run`` computes the outputs of these ``names``."""
        self.versions = versions
        self._names, self._run = names, run
        self._cell, self._layers = graph.cell(model), graph.layer_names(model)

    def check_size(self, height: int, width: int) -> None:
        """See :class:`Engine`."""
        graph.check_size(self._cell, height, width)

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Layer]]:
        """See :class:`Engine`. Raises ConfigError for an image size that the graph does not take."""
        self.check_size(*x.shape[-2:])
        arrays = self._run(x.detach().float().contiguous().numpy())
        outputs = dict(zip(self._names, map(torch.from_numpy, arrays), strict=True))
        return graph.to_layers(outputs, self._layers)


def import_onnxruntime() -> Any:
    """The module, which reports nothing: it would tell its makers of its use and number the user's device."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # noqa: PLC0415 - optional

    return onnxruntime


class OnnxRuntimeEngine(_GraphEngine):
    """ONNX Runtime, float32, on the CPU. Its sessions may be called from any thread."""

    def __init__(self, model: nn.Module, onnx: bytes) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads starve others
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        versions = {"onnxruntime": version("onnxruntime")}
        super().__init__(model, names, lambda x: session.run(names, {graph.INPUT: x}), versions)


class OpenVinoEngine(_GraphEngine):
    """OpenVINO, float32 or bfloat16, on the CPU. Each call borrows a request of its own, so threads do not meet."""

    def __init__(self, model: nn.Module, onnx: bytes, dtype: str = "float32") -> None:
        # importing it would report that to its makers; without this package it does not
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino  # noqa: PLC0415 - optional

        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(onnx),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32" if dtype == "float32" else "bf16",  # by default bf16 where it is fast
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        names = [output.any_name for output in compiled.outputs]
        idle: deque[Any] = deque()  # its append and pop are atomic

        def run(x: np.ndarray) -> list[np.ndarray]:
            try:
                request = idle.pop()
            except IndexError:
                request = compiled.create_infer_request()
            results = request.infer({graph.INPUT: x}, share_inputs=True, share_outputs=False)
            idle.append(request)
            return [results[i] for i in range(len(names))]

        versions = {"openvino": version("openvino")} | ({} if dtype == "float32" else {"dtype": dtype})
        super().__init__(model, names, run, versions)


ENGINES = {
    "torch": ("torch",),
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}
"""Name of an engine -> the packages that it needs."""
PRECISIONS = {"torch": ("float32", "bf16"), "onnxruntime": ("float32",), "openvino": ("float32", "bf16")}
"""Name of an engine -> the names of the precisions that it computes in."""


def check_engine(name: str, dtype: str = "float32") -> None:
    """Raises ConfigError for an engine or a precision that there is not, or whose packages are not installed."""
    if name not in ENGINES:
        raise ConfigError(f"unknown engine {name!r}{did_you_mean(name, ENGINES)}")
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES)}")
    if dtype not in PRECISIONS[name]:
        others = " and ".join(other for other, dtypes in PRECISIONS.items() if dtype in dtypes)
        raise ConfigError(
            f"the {name} engine computes in {', '.join(PRECISIONS[name])}, got dtype {dtype!r}; {others} take it"
        )
    for package in ENGINES[name]:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"engine {name!r} needs more packages: pip install {' '.join(ENGINES[name])}")


def open_engine(name: str, model: nn.Module, *, dtype: str = "float32", weights: str = "") -> Engine:
    """An engine for ``model``.

    Args:
        name: "torch", "onnxruntime" or "openvino".
        model: taken as it is now, but by torch in float32, which runs the model itself. The other two run on the CPU.
        dtype: "float32", or "bf16" of torch and openvino.
        weights: sha256 of the checkpoint that the model comes from, unchanged: its graph is then kept in
            :func:`cache_folder` for the next time, as writing one takes seconds.

    Raises:
        ConfigError: as :func:`check_engine`; or for a model on another device.
    """
    check_engine(name, dtype)
    if name == "torch":
        return TorchEngine(model if dtype == "float32" else to_bfloat16(model), dtype)
    if (device := next(model.parameters()).device).type != "cpu":
        raise ConfigError(f"engine {name!r} runs on the CPU, got device {str(device)!r}")
    onnx = _cached(model, weights) if weights else graph.to_onnx(graph.trace(graph.freeze(model)))
    return OnnxRuntimeEngine(model, onnx) if name == "onnxruntime" else OpenVinoEngine(model, onnx, dtype)


def default_device() -> str:
    """``"cuda"`` where there is one, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str) -> str:
    """``name``, if a model can run there.

    Raises:
        ConfigError: for a device that is not to be had here.
    """
    try:
        torch.zeros(1, device=name).item()  # "meta" fails here and not in the model
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:  # without CUDA torch asserts
        raise ConfigError(f"cannot use device {name!r}: {str(error).splitlines()[0]}") from None
    return name


def cache_folder() -> Path:
    """Where graphs are kept: ``vtviz`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. It may be deleted at any time.

    Raises:
        OSError: for a user without a home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtviz"
    except RuntimeError as error:
        raise OSError(str(error)) from None


def _cached(model: nn.Module, weights: str) -> bytes:
    """The graph of these weights from the cache, or made and put there. A file is its content's sha256, the content."""
    packages = {package: version(package) for package in ("torch", "onnx", "onnxscript")}
    config = config_to_dict(model.config)  # parts of it leave no trace in the weights
    made_by = [weights, type(model).__name__, config, __version__, graph.OPSET, packages]
    key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
    with suppress(OSError):
        stored = (cache_folder() / f"{key}.graph").read_bytes()
        if hashlib.sha256(stored[32:]).digest() == stored[:32]:
            return stored[32:]
    onnx = graph.to_onnx(graph.trace(graph.freeze(model)))
    with suppress(OSError):  # a full or read-only disk costs time, no more
        cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        write(cache_folder() / f"{key}.graph", hashlib.sha256(onnx).digest() + onnx)
    return onnx
