"""A loaded model with its preprocessing: images in, frozen results out."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import vtviz
from vtviz import checkpoints, geometry
from vtviz.card import Card, Preprocessing
from vtviz.data.classes import Palette, make_palette
from vtviz.errors import ConfigError
from vtviz.hooks import Layer, record
from vtviz.images import ImageSource
from vtviz.images import load as load_image
from vtviz.models.vt_fpn import PanopticFPNConfig
from vtviz.segmentation import Segmentation, check_palette, from_maps
from vtviz.tokens import LayerMaps, Prediction, TokenMaps, check_index, layer_maps, topk

DEFAULT_MODEL = "vt_resnet18_in109"
"""The checkpoint that is taken where none is named."""
DEFAULT_SEGMENTER = "vt_fpn_resnet18_ccp14"
"""The same for segmentation."""

Images = ImageSource | Sequence[ImageSource]
"""One image, or a list or tuple of them; see :func:`vtviz.images.load` for what an image may be."""


class _Photo(NamedTuple):
    image: np.ndarray
    geometry: geometry.Geometry
    source: str | None


class Predictor:
    """A model, its preprocessing and its classes. Any number of threads may share one.

    The model's mode, gradients and grad mode are left as they were, also after an error. A model in training mode is
    switched to evaluation and back for each call, which other threads would see: give threads a model in eval mode.

    Args:
        model: from :func:`vtviz.create_model` or a checkpoint.
        card: of the checkpoint: its name, classes and preprocessing are the defaults.
        classes: display names in the order of the logits; numbers where neither these nor a card are given.
        preprocessing: how the model wants its images; ImageNet's by default.
        device: where to move the model; by default it stays where it is.

    Attributes:
        palette: of a segmentation model: one colour per class, the card's, or made for the classes; of a classifier
            None.

    Raises:
        ConfigError: where the number of classes or colours is not the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        card: Card | None = None,
        *,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        config: Any = model.config
        self.model = model if device is None else model.to(device)
        self.card = card
        self.name: str = card.name if card else type(model).__name__
        if classes is None:
            classes = card.classes if card else [str(i) for i in range(config.num_classes)]
        if len(classes) != config.num_classes:
            raise ConfigError(f"{self.name} has {config.num_classes} classes, got {len(classes)} names")
        self.classes = tuple(classes)
        self.palette: Palette | None = None
        if isinstance(config, PanopticFPNConfig):
            given = card.palette if card else None
            self.palette = check_palette(given or make_palette(self.classes), self.classes)
        self.preprocessing = preprocessing or (card.preprocessing if card else Preprocessing())
        self.strides: tuple[int, ...] = tuple(model.token_strides)  # type: ignore[arg-type]
        names = getattr(model, "token_names", ()) or [f"block{i}" for i in range(len(self.strides))]
        self.layer_names: tuple[str, ...] = tuple(names)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def extract(
        self,
        images: Images,
        *,
        layers: Sequence[int] | None = None,
        size: int | None = None,
        crop: str | None = None,
        batch_size: int = 8,
        hook_free: bool = False,
    ) -> Any:
        """The token maps of one image, or of several.

        Args:
            images: one, or a list or tuple of them, of any sizes; those that make inputs of one size share a batch.
            layers: which ones, by index, negative from the end; None for all.
            size: the model input's area is about size x size pixels; None for the card's.
            crop: None for the whole image, "center" for the paper's central square.
            batch_size: most images that the model gets at once.
            hook_free: ask the model for its maps instead of hooking it, as compiled models need. The arrays are the
                same.

        Returns:
            A :class:`~vtviz.tokens.TokenMaps`, or a list of them in the order of the images.

        Raises:
            ImageError: for an image that cannot be read.
            ConfigError: for a model without tokens, or an option that cannot work.
        """
        if not self.strides:
            raise ConfigError(f"{self.name} is a model without tokens: there is nothing to extract; predict() works")
        chosen = (
            range(len(self.strides)) if layers is None else [check_index("layer", i, len(self.strides)) for i in layers]
        )

        def finish(photo: _Photo, logits: np.ndarray, recorded: list[Layer], row: int) -> TokenMaps:
            maps = layer_maps(recorded, self.layer_names, self.strides, row)
            return self._result(photo, logits, tuple(maps[i] for i in chosen))

        return self._run(images, finish, size=size, crop=crop, batch_size=batch_size, hook_free=hook_free)

    def predict(
        self, images: Images, *, k: int = 5, size: int | None = None, crop: str | None = None, batch_size: int = 8
    ) -> Any:
        """The most probable classes of one image, or of several.

        Args:
            images: as for :meth:`extract`.
            k: how many classes.
            size: as for :meth:`extract`.
            crop: as for :meth:`extract`.
            batch_size: as for :meth:`extract`.

        Returns:
            A list of :class:`~vtviz.tokens.Prediction`, most probable first; for a list of images, a list of such.

        Raises:
            ImageError: for an image that cannot be read.
            ConfigError: for a segmentation model, or an option that cannot work.
        """

        def finish(_photo: _Photo, logits: np.ndarray, _recorded: list[Layer], _row: int) -> list[Prediction]:
            return topk(logits, self.classes, k)

        return self._run(images, finish, size=size, crop=crop, batch_size=batch_size)

    def segment(self, images: Images, *, size: int | None = None, crop: str | None = None, batch_size: int = 8) -> Any:
        """The class of every pixel of one image, or of several.

        Args:
            images: as for :meth:`extract`.
            size: as for :meth:`extract`.
            crop: as for :meth:`extract`.
            batch_size: as for :meth:`extract`.

        Returns:
            A :class:`~vtviz.segmentation.Segmentation`, or a list of them in the order of the images. Where the token
            maps are wanted too, :meth:`extract` and :func:`vtviz.segmentation.from_maps` run the model only once.

        Raises:
            ImageError: for an image that cannot be read.
            ConfigError: for a classifier, or an option that cannot work.
        """
        palette = self.palette
        if palette is None:
            raise ConfigError(f"{self.name} is a classifier: it does not segment; predict() works")

        def finish(photo: _Photo, logits: np.ndarray, _recorded: list[Layer], _row: int) -> Segmentation:
            return from_maps(self._result(photo, logits), palette)

        return self._run(images, finish, size=size, crop=crop, batch_size=batch_size)

    def _result(self, photo: _Photo, logits: np.ndarray, layers: tuple[LayerMaps, ...] = ()) -> TokenMaps:
        return TokenMaps(
            layers=layers,
            logits=logits,
            classes=self.classes,
            geometry=photo.geometry,
            model=self.name,
            weights=self.card.sha256 if self.card else "",
            source=photo.source,
            image=photo.image,
            versions=_versions(),
        )

    def _run(
        self,
        images: Images,
        finish: Callable[[_Photo, np.ndarray, list[Layer], int], Any],
        *,
        size: int | None,
        crop: str | None,
        batch_size: int,
        hook_free: bool = False,
    ) -> Any:
        """Prepare images, run the model on batches of equal input size, and finish each image in its place."""
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        several = isinstance(images, list | tuple)
        sources: Sequence[Any] = images if several else [images]  # type: ignore[assignment]
        photos = [self._open(source, size, crop) for source in sources]
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, photo in enumerate(photos):
            by_size.setdefault(photo.geometry.input, []).append(i)
        results: list[Any] = [None] * len(photos)
        for same in by_size.values():
            for batch in (same[i : i + batch_size] for i in range(0, len(same), batch_size)):
                x = torch.stack([geometry.to_tensor(photos[i].image, photos[i].geometry) for i in batch])
                logits, layers = self.forward(x, hook_free=hook_free)
                values = logits.float().cpu().numpy()
                for row, i in enumerate(batch):
                    results[i] = finish(photos[i], values[row].copy(), layers, row)
        return results if several else results[0]

    def fit(self, shape: tuple[int, int], *, size: int | None = None, crop: str | None = None) -> geometry.Geometry:
        """Where an image of ``shape`` (H, W) lands in this model's input: whole cells of its coarsest maps."""
        side = self.preprocessing.size if size is None else size
        return geometry.fit(shape, size=side, crop=crop, multiple=max(self.strides, default=32))

    def _open(self, source: ImageSource, size: int | None, crop: str | None) -> _Photo:
        image = load_image(source)
        fitted = self.fit((image.shape[0], image.shape[1]), size=size, crop=crop)
        return _Photo(image, fitted, os.fspath(source) if isinstance(source, str | os.PathLike) else None)

    def forward(self, x: Tensor, *, hook_free: bool = False) -> tuple[Tensor, list[Layer]]:
        """A prepared batch through the model, without gradients: the step that every other method takes.

        Args:
            x: (N, 3, h, w) float32 in [0, 1], from :func:`vtviz.geometry.to_tensor`.
            hook_free: ask the model for its maps instead of hooking it.

        Returns:
            Logits, and one :class:`~vtviz.hooks.Layer` per layer of tokens (none for a model without tokens).
        """
        dtype = next(self.model.parameters()).dtype
        with inference(self.model, self.device):
            x = self.preprocessing.normalize(x.to(self.device)).to(dtype)
            if hook_free:
                logits, blocks = self.model(x, return_maps=True)
                return logits, [Layer(b.tokenizer, b.transformer, b.projector) for b in blocks]
            with record(self.model) as recorder:
                return self.model(x), recorder.layers()


@contextmanager
def inference(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients and without a caller's autocast, all put back at the end."""
    training = [m for m in model.modules() if m.training]
    # no_grad and not inference_mode: a caller's autocast would cache inference tensors of the weights for training
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")}
    return {"vtviz": vtviz.__version__, "python": platform.python_version(), **libraries}


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
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch compiled without CUDA asserts
        raise ConfigError(f"cannot use device {name!r}: {str(error).splitlines()[0]}") from None
    return name


def load_model(name: str | os.PathLike[str] = DEFAULT_MODEL, device: str | torch.device | None = None) -> Predictor:
    """Load a checkpoint.

    Args:
        name: see :func:`list_models`; or the path of a ``.safetensors`` file or of a run's folder, or
            ``hf://owner/name``.
        device: where the model goes; CUDA where there is one by default.

    Raises:
        CheckpointError: where it is missing or damaged.
    """
    return Predictor(*checkpoints.load(name, device=device or default_device()))


def list_models() -> list[str]:
    """Names of the checkpoints that :func:`load_model` finds: shipped ones, and those in ``$VTVIZ_CHECKPOINTS``."""
    return checkpoints.available()


@lru_cache(maxsize=4)
def _cached(name: str, device: str, changed: int) -> Predictor:  # noqa: ARG001
    """``changed`` makes a checkpoint that was written anew another key."""
    return load_model(name, device)


def extract_tokens(
    img: Images,
    model: str | os.PathLike[str] | Predictor = DEFAULT_MODEL,
    *,
    layers: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    size: int | None = None,
    crop: str | None = None,
) -> Any:
    """What each visual token of a model looks at in an image.

    Args:
        img: one image (path, bytes, PIL image, array, tensor), or a list or tuple of them, of any sizes.
        model: what :func:`load_model` takes, or a :class:`Predictor`. The last few models stay loaded.
        layers: which ones, by index; None for all.
        device: where the model runs; CUDA where there is one by default. A Predictor stays where it is.
        size: the model input's area is about size x size pixels; None for the model's own.
        crop: None for the whole image, "center" for the paper's central square.

    Returns:
        A :class:`~vtviz.tokens.TokenMaps`; for a list, a list in its order.

    Raises:
        ImageError, CheckpointError, ConfigError: in one line, for what cannot be read or cannot work.
    """
    return _predictor(model, device).extract(img, layers=layers, size=size, crop=crop)


def segment(
    img: Images,
    model: str | os.PathLike[str] | Predictor = DEFAULT_SEGMENTER,
    *,
    device: str | torch.device | None = None,
    size: int | None = None,
    crop: str | None = None,
) -> Any:
    """The class of every pixel of an image.

    Args:
        img: as for :func:`extract_tokens`.
        model: a segmentation model, as for :func:`extract_tokens`.
        device: likewise.
        size: likewise.
        crop: likewise.

    Returns:
        A :class:`~vtviz.segmentation.Segmentation`; for a list, a list in its order.

    Raises:
        ImageError, CheckpointError, ConfigError: in one line, for what cannot be read or cannot work.
    """
    return _predictor(model, device).segment(img, size=size, crop=crop)


def _predictor(model: str | os.PathLike[str] | Predictor, device: str | torch.device | None) -> Predictor:
    """The model itself, or a checkpoint's, which stays loaded."""
    if isinstance(model, Predictor):
        return model
    where = str(device or default_device())
    if isinstance(model, str) and model.startswith("hf://"):
        return _cached(model, where, 0)  # not asking the network again
    path = checkpoints.find(model).resolve()
    return _cached(str(path), where, path.stat().st_mtime_ns)
