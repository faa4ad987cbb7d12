"""The one gate for weights: safetensors files, each with a JSON model card beside it.

Nothing is trusted before it is checked: header size, hash, names, shapes, dtypes and finiteness. No pickle is ever
loaded, except by :func:`load_tensors` from ``.pt`` / ``.pth``, with ``weights_only=True``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import stat
from collections.abc import Mapping
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vtviz.card import Card, Preprocessing
from vtviz.errors import CheckpointError, VtvizError, did_you_mean
from vtviz.files import write
from vtviz.models.registry import config_to_dict, model_from_config, plain_model

__all__ = [
    "Card",
    "Preprocessing",
    "available",
    "find",
    "load",
    "load_tensors",
    "read_card",
    "save",
]

MAX_FILE = 4 * 2**30
"""Largest weights file that is read, in bytes."""
MAX_HEADER = 16 * 2**20
"""Largest safetensors header that is parsed, in bytes (a VT-ResNet-101's has 0.1 MB)."""
MAX_CARD = 4 * 2**20
"""Largest model card that is parsed, in bytes."""
STORED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What floating-point tensors may be stored as; models always get float32."""


def save(path: str | os.PathLike[str], model: nn.Module, card: Card, *, half: bool = True) -> Card:
    """Write ``model`` and its card as ``<path>.safetensors`` and ``<path>.json``; a kill leaves the old or the new.

    Args:
        path: of the ``.safetensors`` file; folders are made.
        model: whose configuration is ``card.config``; of a compiled one what it wraps.
        card: its ``sha256`` is filled in.
        half: store weight matrices and kernels as float16; vectors (norms, biases, running statistics) stay float32.

    Returns:
        The card as written.

    Raises:
        CheckpointError: where model and card differ, a weight is not finite or too large, or the disk refuses.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a checkpoint's name must end in .safetensors")
    model = plain_model(model)
    if config_to_dict(model.config) != card.config:
        raise CheckpointError(f"{path}: the model's configuration is not the card's")
    check_names(path, _blank(path, card).state_dict(), model.state_dict())  # a folded model has others
    tensors = {}
    for name, value in model.state_dict().items():
        stored = value.detach().cpu().contiguous()
        _check_finite(path, {name: stored})
        if stored.is_floating_point():
            stored = stored.to(torch.float16 if half and stored.dim() > 1 else torch.float32)
        if not torch.isfinite(stored).all():
            raise CheckpointError(f"{path}: {name} has values too large for {stored.dtype}; half=False may store them")
        tensors[name] = stored
    weights = safetensors.torch.save(tensors)
    card = replace(card, sha256=hashlib.sha256(weights).hexdigest())
    try:
        text = json.dumps(card.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the card is not plain JSON data: {error}") from None
    coming = _coming_card(path, card.sha256)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(coming, text)  # first: a kill between the two files must not leave weights whose card is nowhere
        try:
            write(path, weights)
        except OSError:
            coming.unlink()
            raise
        coming.replace(path.with_suffix(".json"))
        for left in path.parent.glob(f".{escape(path.stem)}.{'[0-9a-f]' * 16}.json"):  # by saves that were killed
            left.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write: {error.strerror or error}") from None
    return card


def _coming_card(path: Path, digest: str) -> Path:
    """Where the card of weights with this hash lies until they are written."""
    return path.with_name(f".{path.stem}.{digest[:16]}.json")


def load(source: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> tuple[nn.Module, Card]:
    """A checkpoint's model, float32 and in eval mode, with its card.

    Args:
        source: a name in ``checkpoints/``, the path of a ``.safetensors`` file or of a run's folder, or
            ``hf://owner/name``.
        device: where the model goes.

    Raises:
        CheckpointError: in one line saying what is missing or differs.
    """
    path = find(source)
    card, data = _read_pair(path)
    tensors = _parse_safetensors(path, data)
    model = _blank(path, card)
    expected = model.state_dict()
    check_names(path, expected, tensors)
    model.load_state_dict(converted(path, expected, tensors), assign=True)
    return model.eval().to(device), card


def _blank(path: Path, card: Card) -> nn.Module:
    """The model that a card describes: no memory, no time and no random numbers before the shapes are known to fit."""
    try:
        with torch.device("meta"):
            return model_from_config(card.model, card.config)
    except (VtvizError, TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        raise CheckpointError(f"{path.with_suffix('.json')}: {one_line(error)}") from None


def _read_pair(path: Path) -> tuple[Card, bytes]:
    """Card and weights that belong together, also while they are being replaced, and where a kill cut that short."""
    beside = path.with_suffix(".json")
    card = _parse_card(beside) if beside.exists() else None
    data = _read(path, MAX_FILE)
    digest = hashlib.sha256(data).hexdigest()
    for other in (_coming_card(path, digest), beside):  # the save may have ended since the card was read
        if (card is None or card.sha256 != digest) and other.exists():
            card = _parse_card(other)
    if card is None:
        raise CheckpointError(f"{beside}: cannot read: {os.strerror(errno.ENOENT)}")
    if card.sha256 != digest:
        raise CheckpointError(f"{path}: sha256 is {digest[:12]}…, its card says {card.sha256[:12]}…; get both anew")
    return card, data


def read_card(path: str | os.PathLike[str]) -> Card:
    """The card beside the ``.safetensors`` file ``path``, without reading the weights."""
    beside = Path(path).with_suffix(".json")
    return _parse_card(beside) if beside.exists() else _read_pair(Path(path))[0]


def _parse_card(path: Path) -> Card:
    try:
        data = json.loads(_read(path, MAX_CARD), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not a JSON model card: {one_line(error)}") from None
    try:
        return Card.from_dict(data)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from None


def _no_number(text: str) -> None:
    """NaN and the infinities, which Python's JSON has and JSON has not."""
    raise ValueError(f"{text} is no number")


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Every tensor of a weights file by name, as stored, on the CPU, all finite.

    Args:
        path: ``.safetensors``; or ``.pt`` / ``.pth``, read with ``weights_only=True``, holding a dict of tensors,
            itself or under the key ``state_dict``.

    Raises:
        CheckpointError: for anything else.
    """
    path = at_home(path)
    tensors: Any
    if path.suffix == ".safetensors":
        tensors = _parse_safetensors(path, _read(path, MAX_FILE))
    elif path.suffix in {".pt", ".pth"}:
        _check_size(path, MAX_FILE)
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: not plain tensors: {one_line(error)}") from None
        tensors = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else tensors
    else:
        raise CheckpointError(f"{path}: weights must be .safetensors, .pt or .pth")
    if not isinstance(tensors, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items()
    ):
        raise CheckpointError(f"{path}: must hold a dict of tensors by name")
    _check_finite(path, tensors)
    return tensors


def find(source: str | os.PathLike[str]) -> Path:
    """The ``.safetensors`` file that ``source`` means; see :func:`load`.

    A plain word is a checkpoint's name and is never looked up in the current folder; write ``./word`` for a path.

    Raises:
        CheckpointError: where there is none.
    """
    if isinstance(source, str) and source.startswith("hf://"):
        return _in_folder(_download(source))
    text = os.fspath(source)
    try:
        return _look_up(text, is_path=not isinstance(source, str))
    except (OSError, ValueError) as error:  # a name that no disk takes
        if isinstance(error, CheckpointError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{text[:100]!r}: not the name of a checkpoint: {reason}") from None


def stamp(source: str | os.PathLike[str]) -> tuple[str, int]:
    """What tells the checkpoint that ``source`` means now from one that is written in its place: its path and time.

    Of ``hf://owner/name`` the name alone, and the network is not asked.

    Raises:
        CheckpointError: where there is none.
    """
    if isinstance(source, str) and source.startswith("hf://"):
        return source, 0
    path = find(source).resolve()
    try:
        return str(path), path.stat().st_mtime_ns
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror}") from None


def _look_up(text: str, *, is_path: bool) -> Path:
    is_name = not is_path and not {"/", os.sep} & set(text) and not text.endswith(".safetensors")
    if is_name and text != "~":
        for folder in _folders():
            if (path := folder / f"{text}.safetensors").is_file():
                return path
        raise CheckpointError(
            f"no checkpoint named {text!r} in {' or '.join(map(str, _folders()))}{did_you_mean(text, available())}"
            + (" (for a path write ./NAME)" if Path(text).exists() else "")
        )
    path = at_home(text)
    if path.is_dir():
        return _in_folder(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: not a folder or a .safetensors file")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    return path


def available() -> list[str]:
    """Names of the checkpoints in ``checkpoints/`` beside the package and in ``$VTVIZ_CHECKPOINTS``, sorted."""
    files = [f for folder in _folders() for f in folder.glob("*.safetensors")]
    return sorted({f.stem for f in files if f.is_file() and f.with_suffix(".json").is_file()})


def _folders() -> list[Path]:
    """Where names are looked up; several folders in the variable are separated as in PATH."""
    extra = [at_home(p) for p in os.environ.get("VTVIZ_CHECKPOINTS", "").split(os.pathsep) if p]
    return [*extra, Path(__file__).resolve().parent.parent / "checkpoints"]


def _in_folder(folder: Path) -> Path:
    """A run's best weights, else its last; else the only weights there are."""
    for name in ("best", "last"):
        if (path := folder / f"{name}.safetensors").is_file():
            return path
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(f.name for f in found) or "none"
        raise CheckpointError(f"{folder}: needs best.safetensors, last.safetensors or one .safetensors, found {names}")
    return found[0]


def _download(source: str) -> Path:
    repository = source.removeprefix("hf://")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise CheckpointError(f"{source!r}: a Hugging Face model is written hf://owner/name")
    import huggingface_hub  # noqa: PLC0415 — costs a second, and only this source needs it

    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, ValueError, RuntimeError) as error:
        # its errors are paragraphs; their type says enough
        raise CheckpointError(
            f"{source}: cannot download ({type(error).__name__}); check the name and the network, "
            "or download the .safetensors and .json elsewhere and give their path"
        ) from None


def at_home(path: str | os.PathLike[str]) -> Path:
    """The path with its ``~`` written out."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"{os.fspath(path)[:200]!r}: {error}") from None


def _check_size(path: Path, limit: int) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device, which may never end
        raise CheckpointError(f"{path}: not a regular file")
    if status.st_size > limit:
        raise CheckpointError(f"{path}: {status.st_size:,} bytes are more than the {limit:,} that are read")


def _read(path: Path, limit: int) -> bytes:
    _check_size(path, limit)
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror}") from None


def _parse_safetensors(path: Path, data: bytes) -> dict[str, Tensor]:
    header = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header > min(MAX_HEADER, len(data) - 8):
        raise CheckpointError(f"{path}: not a safetensors file: header of {header:,} bytes in {len(data):,}")
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file: {one_line(error)}") from None


def check_names(path: Path, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError unless ``got`` has the names and shapes of ``expected``, and no more."""
    if missing := [k for k in expected if k not in got]:
        raise CheckpointError(f"{path}: lacks {len(missing)} of {len(expected)} tensors, the first is {missing[0]}")
    if extra := [k for k in got if k not in expected]:
        raise CheckpointError(f"{path}: has {len(extra)} tensors that the model has not, the first is {extra[0]}")
    for name, tensor in expected.items():
        if tensor.shape != got[name].shape:
            want, have = tuple(tensor.shape), tuple(got[name].shape)
            raise CheckpointError(f"{path}: {name}: the model has shape {want}, the file {have}")


def converted(path: Path, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``expected`` from the file, in the model's dtypes.

    Raises:
        CheckpointError: for a dtype that does not convert, or a value that is not finite.
    """
    result = {}
    for name, tensor in expected.items():
        stored = got[name].dtype
        if stored != tensor.dtype and not (tensor.is_floating_point() and stored in STORED_DTYPES):
            raise CheckpointError(f"{path}: {name}: the model has {tensor.dtype}, the file {stored}")
        result[name] = got[name].to(tensor.dtype)
    _check_finite(path, result)
    return result


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} has values that are not finite")


def one_line(error: BaseException) -> str:
    """A library's message, fit for the end of an error line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
