"""What a token stands for: the photos that it peaks on, and how well its map covers what people have outlined.

After Network Dissection (Bau et al. 2017), with tokens in the place of units.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from vtviz import geometry, images
from vtviz.data.photos import list_photos
from vtviz.data.segmentation import IGNORE, SegmentationDataset, open_segmentation
from vtviz.errors import ConfigError, DataError, ImageError
from vtviz.explain.atlas import Atlas, Seen
from vtviz.explain.tallies import LayerTally
from vtviz.models.registry import plain_model
from vtviz.predictor import Predictor

PHOTOS = 12
"""So many of the photos that a token peaks on most are kept in an atlas."""
MOST_ROWS = 256
"""Masks of more rows or columns are sampled down to so many: shares of areas need no more."""


@dataclass(frozen=True)
class TokenOverlap:
    """The token of one layer that covers a region best, chosen on one set of images and scored on another.

    Attributes:
        layer: name of the layer.
        token: index of the map in it.
        iou: intersection over union with the region, over all pixels of the scoring images.
        chosen_iou: the same on the images that it was chosen on.
        n: images that it was scored on.
    """

    layer: str
    token: int
    iou: float
    chosen_iou: float
    n: int


def token_iou(
    predictor: Predictor,
    dataset: SegmentationDataset,
    labels: Collection[int],
    *,
    layer: int = 0,
    threshold: float = 1.0,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Intersection over union of each token's map above a threshold with the pixels of some classes.

    Args:
        predictor: of a model with tokens.
        dataset: images with masks; ignored pixels count for nothing.
        labels: indices into ``dataset.classes`` that make up the region.
        layer: whose tokens, by index; of several heads their mean.
        threshold: in x uniform; a pixel belongs to a token's region where its map is larger.
        limit: look at this many images, evenly spread; None for all.
        progress: called with (images done, images in all).

    Returns:
        (tokens,) float64 in [0, 1]: pixels in both over pixels in either, summed over all images.

    Raises:
        ConfigError: where there are no labels, a limit is below 1, or the model has no such layer.
        DataError, ImageError: for a file that cannot be read.
    """
    if not labels:
        raise ConfigError("a region needs at least one class, got none")
    if limit is not None and limit < 1:
        raise ConfigError(f"a limit must be at least 1 image, got {limit}")
    picked = np.arange(len(dataset)) if limit is None else np.linspace(0, len(dataset) - 1, min(limit, len(dataset)))
    both: np.ndarray | int = 0
    either: np.ndarray | int = 0
    for done, index in enumerate(picked.astype(int), start=1):
        image, mask = dataset[int(index)]
        maps = predictor.extract(image, layers=[layer])
        inside = np.isin(mask.numpy(), list(labels))
        known = mask.numpy() != dataset.ignore_index
        regions = np.stack([maps.at_image_size(0, t) > threshold for t in range(maps.layers[0].num_tokens)]) & known
        both = both + (regions & inside).sum(axis=(1, 2))
        either = either + (regions | (inside & known)).sum(axis=(1, 2))
        if progress is not None:
            progress(done, len(picked))
    return np.asarray(both) / np.maximum(1, either)


def best_token(
    predictor: Predictor,
    choosing: SegmentationDataset,
    scoring: SegmentationDataset,
    labels: Collection[int],
    *,
    layer: int = 0,
    threshold: float = 1.0,
    limit: int | None = None,
) -> TokenOverlap:
    """Choose the token that covers a region best on one set, and score it on the other.

    Choosing and scoring on the same images would flatter a layer of many tokens. Arguments as of :func:`token_iou`;
    ``limit`` holds for the images to choose on.
    """
    chosen = token_iou(predictor, choosing, labels, layer=layer, threshold=threshold, limit=limit)
    token = int(chosen.argmax())
    scored = token_iou(predictor, scoring, labels, layer=layer, threshold=threshold)
    return TokenOverlap(predictor.layer_names[layer], token, float(scored[token]), float(chosen[token]), len(scoring))


def dissect(
    predictor: Predictor,
    data: str | Path,
    *,
    split: str = "val",
    masks: str | Path | None = None,
    limit: int | None = None,
    photos: int = PHOTOS,
    threshold: float = 1.0,
    size: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Atlas:
    """See what each token of a model stands for over a data set, in one pass and with bounded memory.

    Beside each measure stands what it is for the same model with random weights, and for maps and masks that do not
    belong together. Photos are gone through in a random order, so that neighbours in it are no neighbours in a video.

    Args:
        predictor: of a model with tokens. Of a layer's several heads their mean is looked at.
        data: photos, in any layout of :func:`vtviz.data.photos.list_photos`.
        split: of the photos and the masks, where their folders have splits.
        masks: a segmentation set, the same or another one, for the IoU of each token with each of its classes.
        limit: look at a random choice of so many photos, and of as many with masks; None for all.
        photos: so many are kept of those that a token peaks on most.
        threshold: in x uniform; a pixel belongs to a token's region where its map is larger.
        size: the model input's area is about size x size pixels; None for the model's own.
        seed: of the choice, the order and the random weights.
        progress: called with (photos done, photos in all).

    Raises:
        ConfigError: for a model without tokens, or an option that cannot work.
        DataError: for a set that is missing or has fewer than 2 photos, or a mask that does not fit its photo. A photo
            without a mask that cannot be read is left out and counted.
    """
    if not predictor.strides:
        raise ConfigError(f"{predictor.name} is a model without tokens: there is nothing to dissect")
    if photos < 1 or not 0 <= threshold < np.inf:
        raise ConfigError(f"photos must be at least 1 and threshold a number from 0, got {photos} and {threshold}")
    root = Path(data).expanduser()
    masked = None if masks is None else open_segmentation(Path(masks).expanduser(), split).limit(limit, seed)
    items = _list_items(root, split, masked, limit, seed)
    twin = untrained_twin(predictor, seed)
    classes = () if masked is None else masked.classes
    tallies = [LayerTally(stride, len(classes), photos, threshold) for stride in predictor.strides]
    area = np.zeros(len(classes), np.int64)
    read = 0
    for done, (item, image, masking) in enumerate(_read(items, masked), start=1):
        if image is not None:
            where = predictor.fit((image.shape[0], image.shape[1]), size=size)
            for tally, ours, random in zip(
                tallies, _maps(predictor, image, where), _maps(twin, image, where), strict=True
            ):
                if item.name is not None:
                    tally.add_photo(item.name, ours, random, where)
                if masking is not None:
                    tally.add_mask(ours, random, where, *masking)
            read += item.name is not None
        if masking is not None:
            labels, _ = masking
            area += np.bincount(labels[labels != IGNORE], minlength=len(area))
        progress(done, len(items))
    wanted = sum(item.name is not None for item in items)
    if read < 2:
        raise DataError(f"{root}: {wanted - read} of {wanted} photos cannot be read, and at least 2 are needed")
    shares = tuple((area / max(1, int(area.sum()))).tolist())
    return Atlas(
        model=predictor.name,
        weights=predictor.card.sha256 if predictor.card else "",
        data=Seen(root.resolve().name, split, read),
        masks=None if masked is None else Seen(Path(masks or "").resolve().name, split, len(masked), classes, shares),
        skipped=wanted - read,
        size=predictor.preprocessing.size if size is None else size,
        threshold=float(threshold),
        seed=seed,
        layers=tuple(tally.finish(name) for tally, name in zip(tallies, predictor.layer_names, strict=True)),
    )


def untrained_twin(predictor: Predictor, seed: int = 0) -> Predictor:
    """The same model before any training, on the same device: random weights, which depend on the seed alone.

    Its norms have seen no image either, which may make later layers' maps more alike than norms that have would.
    """
    model = plain_model(predictor.model)
    with _Drawing(torch.Generator().manual_seed(seed)):
        twin = type(model)(model.config)
    return Predictor(
        twin.eval(), classes=predictor.classes, preprocessing=predictor.preprocessing, device=predictor.device
    )


class _Drawing(TorchFunctionMode):
    """This thread's weights are initialised from a generator, not from PyTorch's own, which all threads share."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(function, "__name__", "") in {"normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_"}:
            kwargs["generator"] = self._generator
        return function(*args, **kwargs)


@dataclass(frozen=True)
class _Item:
    """A photo to look at.

    Attributes:
        path: of the file.
        name: relative to the data folder; None for one that is there for its mask alone.
        mask: index in the set of masks; None where it has none.
    """

    path: Path
    name: str | None
    mask: int | None


def _list_items(
    root: Path, split: str, masked: SegmentationDataset | None, limit: int | None, seed: int
) -> list[_Item]:
    """The chosen photos and those with masks in a random order, each file once."""
    files = list(list_photos(root, split))
    if limit is not None and limit < len(files):
        if limit < 1:
            raise DataError(f"a limit must be at least 1 photo, got {limit}")
        # as SegmentationDataset.limit chooses: of one set the same photos
        files = [files[i] for i in np.sort(np.random.default_rng(seed).permutation(len(files))[:limit])]
    names = {path.resolve(): path.relative_to(root).as_posix() for path in files}
    outlined = {} if masked is None else {path.resolve(): i for i, path in enumerate(masked.sources.images)}
    if min(len(names), len(outlined) or 2) < 2:
        raise DataError(f"{root}: a dissection compares photos with each other: it needs at least 2 of each kind")
    items = [_Item(path, names.get(path), outlined.get(path)) for path in sorted({*names, *outlined})]
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items))]


_Masking = tuple[np.ndarray, np.ndarray]
"""Labels of a photo, and those of another one."""


def _read(
    items: Sequence[_Item], masked: SegmentationDataset | None
) -> Iterator[tuple[_Item, np.ndarray | None, _Masking | None]]:
    """Each item with its photo (H, W, 3), None where it cannot be read, and labels, None where it has none."""
    outlined = [item.mask for item in items if item.mask is not None]
    other = None if masked is None else _sample(masked[outlined[-1]][1])  # the first one's other is the last
    for item in items:
        if masked is not None and item.mask is not None and other is not None:
            image, labels = masked[item.mask]
            before, other = other, _sample(labels)
            yield item, image.permute(1, 2, 0).numpy(), (other, before)
            continue
        try:
            yield item, images.load(item.path), None
        except ImageError:
            yield item, None, None


def _sample(labels: torch.Tensor) -> np.ndarray:
    """At most :data:`MOST_ROWS` rows and columns of labels (H, W), evenly spread, as uint8."""
    counts = [min(side, MOST_ROWS) for side in labels.shape]
    picked = (((np.arange(n) + 0.5) * side / n).astype(np.intp) for n, side in zip(counts, labels.shape, strict=True))
    return labels.numpy()[np.ix_(*picked)].astype(np.uint8)


def _maps(predictor: Predictor, image: np.ndarray, where: geometry.Geometry) -> list[np.ndarray]:
    """Of each layer the heads' mean map of every token, (L, h, w) float32."""
    _, layers = predictor.forward(geometry.to_tensor(image, where)[None])
    return [layer.tokenizer.coefficients[0].float().mean(dim=0).cpu().numpy() for layer in layers]
