"""Segmentation sets in their published layouts: images with masks of one class index per pixel.

========== ======================================================================================================
layout     files below the root
========== ======================================================================================================
folder     ``classes.txt`` (line n names index n), ``SPLIT/images/NAME.*``, ``SPLIT/masks/NAME.png``; 255 is ignored.
           Optional: ``palette.txt`` (line n: ``R G B`` of class n). CamVid and Clothing Co-Parsing come like this.
coco_stuff COCO-Stuff 164k, 91 stuff classes: ``stuffthingmaps/SPLIT2017/*.png`` and ``images/SPLIT2017/*.jpg`` (or
           ``SPLIT2017/*.jpg``). Pixels of things and unlabelled ones are ignored.
coco_stuff_panoptic
           Detectron2's 54 classes, things being one: ``panoptic_stuff_SPLIT2017/*.png`` and the same images.
lip        Look Into Person, 20 classes: ``TrainVal_images/{SPLIT_images/*.jpg,SPLIT_id.txt}`` and
           ``TrainVal_parsing_annotations/SPLIT_segmentations/*.png``, one more folder of the same name between or not.
========== ======================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor
from torch.utils.data import Dataset

from vtviz import images
from vtviz.data.classes import (
    COCO_PANOPTIC_STUFF,
    COCO_STUFF,
    LIP,
    Groups,
    Palette,
    find_groups,
    make_palette,
    match_classes,
    mirror_pairs,
)
from vtviz.data.text import read_text
from vtviz.errors import DataError, ImageError, did_you_mean
from vtviz.suffixes import IMAGE_SUFFIXES

IGNORE = 255
"""The mask value of pixels that count neither in training nor in scores."""
INVALID = -1
"""What a lookup table says of a value that a mask of its set must not hold."""


@dataclass(frozen=True)
class Sources:
    """Where a split's files are and what their masks' values mean.

    Attributes:
        images: image files.
        masks: the mask of each image.
        classes: names in the order of the labels.
        palette: a colour for each class.
        table: (256,) int16, mask value -> label, :data:`IGNORE` or :data:`INVALID`.
    """

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    classes: tuple[str, ...]
    palette: Palette
    table: np.ndarray


class SegmentationDataset(Dataset):
    """Images and their masks: ``dataset[i]`` is ((3, H, W) uint8 RGB, (H, W) int64 labels).

    Labels are indices into ``classes``, or :data:`IGNORE`. Files are decoded at each access unless :meth:`preload` was
    called.
    """

    ignore_index = IGNORE

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._pixels: list[tuple[Tensor, Tensor]] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the labels."""
        return self.sources.classes

    @property
    def palette(self) -> Palette:
        """One (r, g, b) per class."""
        return self.sources.palette

    @property
    def mirror_pairs(self) -> tuple[tuple[int, int], ...]:
        """Labels to swap in a mirrored mask, e.g. of the left and the right arm."""
        return mirror_pairs(self.classes)

    def __len__(self) -> int:
        return len(self.sources.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image (3, H, W) uint8 and labels (H, W) int64, fresh tensors.

        Raises:
            DataError: for a file that cannot be read, a mask of another size than its image, or a value that is no
                class.
        """
        if self._pixels is not None:
            image, labels = self._pixels[index]
            return image.clone(), labels.long()
        image, labels = self._read(index)
        return image, labels.long()

    def shape(self, index: int) -> tuple[int, int]:
        """(H, W) of image ``index``, from its mask's header."""
        if self._pixels is not None:
            return tuple(self._pixels[index][1].shape)  # type: ignore[return-value]
        with _opened(self.sources.masks[index]) as mask:
            return mask.height, mask.width

    def limit(self, count: int | None, seed: int = 0) -> SegmentationDataset:
        """A random subset of at most ``count`` images, in their order; all of them where None.

        Raises:
            DataError: for a count below 1.
        """
        if count is None or count >= len(self):
            return self
        if count < 1:
            raise DataError(f"a limit must be at least 1 image, got {count}")
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        images, masks = (tuple(files[i] for i in chosen) for files in (self.sources.images, self.sources.masks))
        return SegmentationDataset(replace(self.sources, images=images, masks=masks))

    def estimate_bytes(self) -> float:
        """Bytes that :meth:`preload` would take, judged by a sample of the masks."""
        sample = range(0, len(self), max(1, len(self) // 32))
        return 4 * float(np.mean([np.prod(self.shape(i)) for i in sample])) * len(self)

    def preload(self, progress: Callable[[int, int], None] | None = None) -> SegmentationDataset:
        """Decode everything now, once, into memory that data-loading processes forked later share.

        Args:
            progress: called with (images done, images in all).

        Raises:
            DataError: for the first file that is wrong; so this is also a check of the whole split.
        """
        pixels = []
        with ThreadPoolExecutor() as pool:
            for pair in pool.map(self._read, range(len(self))):
                pixels.append(pair)
                if progress is not None:
                    progress(len(pixels), len(self))
        self._pixels = pixels
        return self

    def relabel(
        self, classes: Sequence[str], groups: Groups | str | None = None, palette: Palette | None = None
    ) -> SegmentationDataset:
        """The same files with the labels of other classes, e.g. a model's; see :func:`match_classes`.

        Args:
            classes: the new classes, in order.
            groups: names that go together, or the name of such groups.
            palette: colours of the new classes; made where None.

        Raises:
            DataError: for a class of this set that has no place among ``classes``.
        """
        places = np.array(match_classes(self.classes, classes, groups), np.int16)
        table = self.sources.table
        labelled = (table != INVALID) & (table != IGNORE)
        moved = np.where(labelled, places[np.where(labelled, table, 0)], table)
        names = tuple(classes)
        return SegmentationDataset(
            replace(self.sources, classes=names, palette=palette or make_palette(names), table=moved)
        )

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        path, mask_path = self.sources.images[index], self.sources.masks[index]
        try:
            image = images.load(path)
        except ImageError as error:
            raise DataError(str(error)) from None
        mask = read_mask(mask_path)
        if mask.shape != image.shape[:2]:
            size, other = (f"{w} x {h}" for h, w in (mask.shape, image.shape[:2]))
            raise DataError(f"{mask_path} has {size} pixels, but its image {path.name} has {other}")
        labels = self.sources.table[mask]
        if (labels == INVALID).any():
            row, column = np.argwhere(labels == INVALID)[0]
            raise DataError(
                f"{mask_path} has value {mask[row, column]} at row {row}, column {column}, which is none of the "
                f"{len(self.classes)} classes nor {IGNORE} (ignored)"
            )
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(labels.astype(np.uint8))


def read_mask(path: str | Path) -> np.ndarray:
    """Read an index mask as it stands: (H, W) uint8, one value per pixel.

    Args:
        path: an 8-bit grey or palette PNG; of a palette the indices count, not the colours.

    Raises:
        DataError: for any other file.
    """
    with _opened(path) as mask:
        if mask.mode not in {"L", "P", "1"}:
            raise DataError(f"{path} must hold one 8-bit class index per pixel (grey or palette PNG), got {mask.mode}")
        if mask.width * mask.height > images.LIMITS.pixels:
            raise DataError(f"{path} has {mask.width} x {mask.height} pixels, more than {images.LIMITS.pixels:,}")
        # Pillow spreads 2- and 4-bit grey over 0-255; a mask's values are indices
        spread = {"L;2": 85, "L;4": 17}.get(str(mask.tile[0].args), 1)
        return np.array(mask, np.uint8) // np.uint8(spread)


@contextmanager
def _opened(path: str | Path) -> Iterator[ImageFile.ImageFile]:
    try:
        with Image.open(path, formats=["PNG"]) as mask:
            yield mask
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"no mask at {path}") from None
    except Exception as error:  # noqa: BLE001 - on damaged bytes a decoder raises nearly anything
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not a PNG mask that can be read: {reason}") from None


def open_segmentation(
    root: str | Path, split: str = "train", *, layout: str = "auto", groups: Groups | str | None = None
) -> SegmentationDataset:
    """Open one split of a segmentation set.

    Args:
        root: its folder.
        split: "train", "val", or any other that the folder has.
        layout: a key of :data:`LAYOUTS`, or "auto" to tell by the files that are there.
        groups: classes to be taken together (group -> class names, or a name in
            :data:`~vtviz.data.classes.GROUPS`); the groups are then the classes, in their order.

    Raises:
        DataError: for a missing folder or split, an empty split, an image without a mask or a mask without an image,
            a wrong class list, an unknown layout, or a class that is in no group.
    """
    base = Path(root)
    if not base.is_dir():
        raise DataError(f"no data folder at {base}")
    if layout == "auto":
        layout = _detect_layout(base, split)
    elif layout not in LAYOUTS:
        raise DataError(f"unknown layout {layout!r}{did_you_mean(layout, [*LAYOUTS, 'auto'])}")
    dataset = SegmentationDataset(LAYOUTS[layout](base, split))
    if groups is None:
        return dataset
    groups = find_groups(groups)
    return dataset.relabel(tuple(groups), groups)


def find_layouts(root: str | Path, split: str = "train") -> tuple[str, ...]:
    """Keys of :data:`LAYOUTS` that the files below ``root`` look like; empty where it is no segmentation set."""
    return tuple(name for name, sign in _layout_signs(Path(root), split).items() if sign.exists())


def _layout_signs(base: Path, split: str) -> dict[str, Path]:
    return {
        "folder": base / "classes.txt",
        "coco_stuff": base / "stuffthingmaps",
        "coco_stuff_panoptic": base / f"panoptic_stuff_{_coco_split(split)}",
        "lip": base / "TrainVal_parsing_annotations",
    }


def _detect_layout(base: Path, split: str) -> str:
    found = find_layouts(base, split)
    if not found:
        wanted = ", ".join(f"{sign.name} ({name})" for name, sign in _layout_signs(base, split).items())
        raise DataError(f"{base} has no layout that is known; looked for {wanted}")
    if len(found) > 1:
        raise DataError(f"{base} has the layouts {' and '.join(found)}; say which with layout=")
    return found[0]


def _open_folder(base: Path, split: str) -> Sources:
    classes = _read_lines(base / "classes.txt")
    if len(classes) > IGNORE or len(set(classes)) < len(classes) or not all(classes):
        raise DataError(f"{base / 'classes.txt'} must name 1 to {IGNORE} different classes, one a line")
    if not (base / split).is_dir():
        others = [p.name for p in base.iterdir() if (p / "masks").is_dir()]
        raise DataError(f"{base} has no split {split!r}{did_you_mean(split, others)}")
    palette = _read_palette(base / "palette.txt", len(classes))
    pictures, masks = _pair(base / split / "images", base / split / "masks")
    return Sources(pictures, masks, classes, palette or make_palette(classes), _table(len(classes)))


def _open_coco_stuff(base: Path, split: str) -> Sources:
    pictures, masks = _pair(_coco_images(base, split), base / "stuffthingmaps" / _coco_split(split))
    # maps hold COCO-Stuff's ids minus one: things 0 to 90, stuff 91 to 181, unlabelled 255
    table = _table(len(COCO_STUFF), first=91)
    table[:91] = IGNORE
    return Sources(pictures, masks, COCO_STUFF, make_palette(COCO_STUFF), table)


def _open_coco_stuff_panoptic(base: Path, split: str) -> Sources:
    pictures, masks = _pair(_coco_images(base, split), base / f"panoptic_stuff_{_coco_split(split)}")
    classes = COCO_PANOPTIC_STUFF
    return Sources(pictures, masks, classes, make_palette(classes), _table(len(classes)))


def _open_lip(base: Path, split: str) -> Sources:
    pictures_top, masks_top = (_unnest(base / n) for n in ("TrainVal_images", "TrainVal_parsing_annotations"))
    ids = _read_lines(pictures_top / f"{split}_id.txt")
    pictures, masks = _pair(pictures_top / f"{split}_images", masks_top / f"{split}_segmentations", ids)
    return Sources(pictures, masks, LIP, make_palette(LIP), _table(len(LIP)))


LAYOUTS: dict[str, Callable[[Path, str], Sources]] = {
    "folder": _open_folder,
    "coco_stuff": _open_coco_stuff,
    "coco_stuff_panoptic": _open_coco_stuff_panoptic,
    "lip": _open_lip,
}
"""How each layout finds a split's files."""


def _table(classes: int, first: int = 0) -> np.ndarray:
    table = np.full(256, INVALID, np.int16)
    table[first : first + classes] = np.arange(classes)
    table[IGNORE] = IGNORE
    return table


def _coco_split(split: str) -> str:
    return split if split.endswith("2017") else f"{split}2017"


def _coco_images(base: Path, split: str) -> Path:
    name = _coco_split(split)
    return base / "images" / name if (base / "images").is_dir() else base / name


def _unnest(folder: Path) -> Path:
    """LIP's archives hold a folder of their own name, which unpackers put below another of that name or not."""
    inner = folder / folder.name
    return inner if inner.is_dir() else folder


def _read_lines(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise DataError(f"no list at {path}")
    lines = tuple(line.strip() for line in read_text(path).rstrip().splitlines())
    if not lines:
        raise DataError(f"{path} is empty")
    return lines


def _read_palette(path: Path, classes: int) -> Palette | None:
    if not path.is_file():
        return None
    try:
        colours = [tuple(int(v) for v in line.split()) for line in _read_lines(path)]
    except ValueError:
        colours = []
    if len(colours) != classes or any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in colours):
        raise DataError(f"{path} must have {classes} lines of 'R G B', each 0 to 255")
    return tuple((r, g, b) for r, g, b in colours)


def _pair(pictures: Path, masks: Path, ids: Iterable[str] | None = None) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Images and masks of the same stem, sorted, or those of ``ids`` in their order."""
    pictures_by_stem, masks_by_stem = _by_stem(pictures, IMAGE_SUFFIXES), _by_stem(masks, {".png"})
    if ids is None:
        ids = sorted(pictures_by_stem)
        if orphans := masks_by_stem.keys() - pictures_by_stem.keys():
            raise DataError(f"mask {masks_by_stem[min(orphans)]} has no image of its name in {pictures}")
    chosen = tuple(ids)
    for stem in chosen:
        for folder, files in ((pictures, pictures_by_stem), (masks, masks_by_stem)):
            if stem not in files:
                raise DataError(f"{stem!r} has no file in {folder}")
    return tuple(pictures_by_stem[s] for s in chosen), tuple(masks_by_stem[s] for s in chosen)


def _by_stem(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}")
    files: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes):
        if (other := files.setdefault(path.stem, path)) != path:
            raise DataError(f"{folder} has two files for {path.stem!r}: {other.name} and {path.name}")
    if not files:
        raise DataError(f"{folder} is empty: no {', '.join(sorted(suffixes))} file in it")
    return files
