"""What a browser may hand in: files that were uploaded to this page, and nothing to fetch or to look up.

Gradio checks a path only where the caller marks it as a file, and downloads what is marked so and begins with
``http://``. This page's events get neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import BlockFunction
from gradio.utils import get_upload_folder

FILES = (gr.Image, gr.File, gr.UploadButton)
"""Components whose value is a file, or a list of files."""


class NoUpload(gr.Error):
    """Raised for a file that was not uploaded to this page."""


class Growing(set[str]):
    """A set that may grow in another thread while it is looked through: what is new is not met then."""

    def __iter__(self) -> Iterator[str]:
        return iter(frozenset(self))


class UploadsOnly(gr.Blocks):
    """Blocks whose events take no file but an uploaded one; anything else is told so in one line."""

    def __exit__(self, exc_type: type[BaseException] | None = None, *args: object) -> None:
        """Gradio looks through these sets to delete old files, and never again after an upload meanwhile."""
        super().__exit__(exc_type, *args)
        self.upload_file_set = Growing(self.upload_file_set)
        for block in self.blocks.values():
            block.temp_files = Growing(block.temp_files)
        self.temp_file_sets = [self.upload_file_set, *(block.temp_files for block in self.blocks.values())]

    def validate_inputs(self, block_fn: BlockFunction, inputs: list[Any]) -> None:
        """Called by Gradio before it does anything with what a browser sent."""
        super().validate_inputs(block_fn, inputs)
        for block, value in zip(block_fn.inputs, inputs, strict=False):
            for file in _files(value, isinstance(block, FILES)):
                path = file.get("path") if isinstance(file, dict) else file
                if not (isinstance(file, dict) and is_upload(path)):
                    raise NoUpload(
                        f"{escape(repr(path)[:80])} is no file that was uploaded to this page: upload it first; paths "
                        "are not opened and addresses not fetched",
                        print_exception=False,
                    )

    async def preprocess_data(self, block_fn: BlockFunction, inputs: list[Any], *state: Any, **options: Any) -> Any:
        """Called by Gradio next. Values that no control holds, such as a list for a file, are told so likewise."""
        try:
            return await super().preprocess_data(block_fn, inputs, *state, **options)
        except NoUpload:
            raise
        except ValueError:  # as Gradio's own errors are
            raise gr.Error("what was sent is nothing that this control can hold", print_exception=False) from None


def told(event: gr.EventData, name: str) -> str:
    """What a script of the page says beside an event, as text; empty where a browser left it out."""
    return str(getattr(event, name, ""))


def is_upload(path: Any) -> bool:
    """Whether a path, all links followed, lies where Gradio keeps uploads."""
    if not isinstance(path, str):
        return False
    try:
        return Path(get_upload_folder()).resolve() in Path(path).resolve().parents
    except (OSError, ValueError):  # a NUL, or a name that no file can have
        return False


def _files(value: Any, expected: bool) -> Iterator[Any]:
    """What in a JSON value is a file or stands in a file's place, also within another: Gradio looks there too."""
    if isinstance(value, list):
        for each in value:
            yield from _files(each, expected)
    elif value is not None and (expected or (isinstance(value, dict) and "path" in value)):
        yield value
    if isinstance(value, dict):
        for each in value.values():
            yield from _files(each, False)
