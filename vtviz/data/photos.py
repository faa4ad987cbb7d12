"""The photos of a data set in any layout, labelled or not."""

from __future__ import annotations

from pathlib import Path

from vtviz.data.folder import open_folder
from vtviz.data.segmentation import find_layouts, open_segmentation
from vtviz.errors import DataError
from vtviz.suffixes import IMAGE_SUFFIXES


def list_photos(root: str | Path, split: str = "val") -> tuple[Path, ...]:
    """Image files of one split of a data set, or of a folder of photos.

    Args:
        root: a segmentation set in one of :data:`~vtviz.data.segmentation.LAYOUTS`; or a folder with photos right in
            it, of which all are taken, also those further down; or class folders, see
            :func:`~vtviz.data.folder.open_folder`.
        split: of the first and the last.

    Raises:
        DataError: for a missing folder or split, or one without images.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        raise DataError(f"no data folder at {base}")
    if find_layouts(base, split):
        return open_segmentation(base, split).sources.images
    if any(_is_photo(path) for path in base.iterdir()):
        return tuple(sorted(path for path in base.rglob("*") if _is_photo(path)))
    return open_folder(base, split).paths


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
