"""A loaded model with its preprocessing: images in, frozen results out."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vtviz
from vtviz import checkpoints, geometry
from vtviz.card import Card, Preprocessing
from vtviz.data.classes import Palette, make_palette
from vtviz.engines import Engine, TorchEngine, check_device, check_engine, default_device, open_engine
from vtviz.errors import ConfigError, ImageError
from vtviz.hooks import Layer
from vtviz.images import ImageSource
from vtviz.images import load as load_image
from vtviz.models.vt_fpn import PanopticFPNConfig
from vtviz.pipeline import ahead
from vtviz.segmentation import Segmentation, check_palette, from_maps
from vtviz.tokens import LayerMaps, Prediction, TokenMaps, check_index, layer_maps, topk

DEFAULT_MODEL = "vt_resnet18_in109"
"""The checkpoint that is taken where none is named."""
DEFAULT_SEGMENTER = "vt_fpn_resnet18_ccp14"
"""The same for segmentation."""


@dataclass(frozen=True, eq=False)
class Photo:
    """An image as a model is about to get it, from :meth:`Predictor.open`.

    Attributes:
        image: (H, W, 3) uint8 RGB, the original.
        geometry: how it became the model's input.
        input: (3, h, w) float32 in [0, 1], not normalised.
        source: where the image came from, if from a file.
    """

    image: np.ndarray
    geometry: geometry.Geometry
    input: Tensor
    source: str | None


Images = ImageSource | Photo | Sequence[ImageSource | Photo]
"""One image, or a list or tuple of them; see :func:`vtviz.images.load` for what an image may be."""


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
        engine: what runs the forward pass, from :func:`vtviz.engines.open_engine`; PyTorch in float32 by default.
            Analyses that need gradients or change tokens run ``model`` itself.

    Attributes:
        palette: of a segmentation model: one colour per class, the card's, or made for the classes; of a classifier
            None.

    Raises:
        ConfigError: where the number of classes or colours is not the model's, a device is not to be had here, or the
            model takes other images than those of 3 channels.
    """

    def __init__(
        self,
        model: nn.Module,
        card: Card | None = None,
        *,
        classes: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        device: str | torch.device | None = None,
        engine: Engine | None = None,
    ) -> None:
        config: Any = model.config
        self.model = model if device is None else model.to(check_device(str(device)))
        self.engine = engine or TorchEngine(self.model)
        self.card = card
        self.name: str = card.name if card else type(model).__name__
        if config.in_channels != 3:
            raise ConfigError(f"{self.name} takes images of {config.in_channels} channels, and photos have 3")
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

        def finish(photo: Photo, logits: np.ndarray, recorded: list[Layer], row: int) -> TokenMaps:
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

        def finish(_photo: Photo, logits: np.ndarray, _recorded: list[Layer], _row: int) -> list[Prediction]:
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

        def finish(photo: Photo, logits: np.ndarray, _recorded: list[Layer], _row: int) -> Segmentation:
            return from_maps(self._result(photo, logits), palette)

        return self._run(images, finish, size=size, crop=crop, batch_size=batch_size)

    def _result(self, photo: Photo, logits: np.ndarray, layers: tuple[LayerMaps, ...] = ()) -> TokenMaps:
        return TokenMaps(
            layers=layers,
            logits=logits,
            classes=self.classes,
            geometry=photo.geometry,
            model=self.name,
            weights=self.card.sha256 if self.card else "",
            source=photo.source,
            image=photo.image,
            versions={**_versions(), **self.engine.versions},
        )

    def _run(
        self,
        images: Images,
        finish: Callable[[Photo, np.ndarray, list[Layer], int], Any],
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
        photos = [s if isinstance(s, Photo) else self.open(s, size=size, crop=crop) for s in sources]
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, photo in enumerate(photos):
            by_size.setdefault(photo.geometry.input, []).append(i)
        results: list[Any] = [None] * len(photos)
        for same in by_size.values():
            for batch in (same[i : i + batch_size] for i in range(0, len(same), batch_size)):
                x = torch.stack([photos[i].input for i in batch])
                logits, layers = self.forward(x, hook_free=hook_free)
                values = logits.float().cpu().numpy()
                for row, i in enumerate(batch):
                    results[i] = finish(photos[i], values[row].copy(), layers, row)
        return results if several else results[0]

    def fit(self, shape: tuple[int, int], *, size: int | None = None, crop: str | None = None) -> geometry.Geometry:
        """Where an image of ``shape`` (H, W) lands in this model's input: whole cells of its coarsest maps."""
        side = self.preprocessing.size if size is None else size
        return geometry.fit(shape, size=side, crop=crop, multiple=max(self.strides, default=32))

    def open(self, source: ImageSource, *, size: int | None = None, crop: str | None = None) -> Photo:
        """Read and prepare one image: what :meth:`extract`, :meth:`predict` and :meth:`segment` do first.

        They take what comes back in the place of an image; their ``size`` and ``crop`` say nothing then.

        Args:
            source: see :func:`vtviz.images.load`.
            size: as for :meth:`extract`.
            crop: as for :meth:`extract`.

        Raises:
            ImageError: for an image that cannot be read, or makes an input of a size that the engine does not take.
            ConfigError: for an option that cannot work.
        """
        image = load_image(source)
        fitted = self.fit((image.shape[0], image.shape[1]), size=size, crop=crop)
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        try:
            self.engine.check_size(*fitted.input)
        except ConfigError as error:  # of a sliver; it must not keep other images from theirs
            raise ImageError(f"{name or 'the image'}: {error}") from None
        return Photo(image, fitted, geometry.to_tensor(image, fitted), name)

    def stream(
        self, images: Iterable[ImageSource], *, size: int | None = None, crop: str | None = None
    ) -> Iterator[Photo | ImageError]:
        """Images of any number, read by threads while the model is at work on those before them.

        ::

            for photo in predictor.stream(paths):
                if not isinstance(photo, ImageError):
                    maps = predictor.extract(photo)

        Only a few are in memory at a time.

        Args:
            images: see :func:`vtviz.images.load`.
            size: as for :meth:`extract`.
            crop: as for :meth:`extract`.

        Yields:
            In the order of the images a :class:`Photo`, or the error that says why there is none.

        Raises:
            ConfigError: for an option that cannot work.
        """

        def opened(source: ImageSource) -> Photo | ImageError:
            try:
                return self.open(source, size=size, crop=crop)
            except ImageError as error:
                return error

        return (done.result() for done in ahead(opened, images))

    def forward(self, x: Tensor, *, hook_free: bool = False) -> tuple[Tensor, list[Layer]]:
        """A prepared batch through the model, without gradients: the step that every other method takes.

        Args:
            x: (N, 3, h, w) float32 in [0, 1], from :func:`vtviz.geometry.to_tensor`.
            hook_free: ask the model for its maps instead of hooking it.

        Returns:
            Logits, and one :class:`~vtviz.hooks.Layer` per layer of tokens (none for a model without tokens).
        """
        engine = self.engine
        # Other engines have no hooks, models without tokens no maps to ask for.
        if hook_free and self.strides and isinstance(engine, TorchEngine):
            engine = replace(engine, hook_free=True)
        return engine(self.preprocessing.normalize(x.to(self.device)))


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")}
    return {"vtviz": vtviz.__version__, "python": platform.python_version(), **libraries}


def load_model(
    name: str | os.PathLike[str] = DEFAULT_MODEL,
    device: str | torch.device | None = None,
    *,
    engine: str = "torch",
    dtype: str = "float32",
) -> Predictor:
    """Load a checkpoint.

    Args:
        name: see :func:`list_models`; or the path of a ``.safetensors`` file or of a run's folder, or
            ``hf://owner/name``.
        device: where the model goes; CUDA where there is one by default.
        engine: what runs the forward pass: "torch"; or "onnxruntime" or "openvino", on the CPU.
        dtype: "float32"; or "bf16", bfloat16 where it is fast, of the engines torch and openvino.

    Raises:
        CheckpointError: where it is missing or damaged.
        ConfigError: for an engine or a device that is not to be had here.
    """
    check_engine(engine, dtype)
    where = check_device(str(device)) if device is not None else default_device() if engine == "torch" else "cpu"
    model, card = checkpoints.load(name, device=where)
    return Predictor(model, card, engine=open_engine(engine, model, dtype=dtype, weights=card.sha256))


def list_models() -> list[str]:
    """Names of the checkpoints that :func:`load_model` finds: shipped ones, and those in ``$VTVIZ_CHECKPOINTS``."""
    return checkpoints.available()
