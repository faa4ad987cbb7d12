"""The analyses as endpoints for programs: what the command line's verbs of the same names print and write.

Each takes an uploaded photo, a model and a crop as the page's controls name them, and answers with plain JSON and,
where arrays belong to it, an .npz file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from app.analyses import ANALYSES, Analyses
from app.explore import MODEL_CALLS
from app.shown import VIEWS, Shown, crop_of, open_photo, path_of, refusing
from app.stops import Stops
from vtviz.data.classes import find_class
from vtviz.errors import ConfigError
from vtviz.explain.lineage import lineage
from vtviz.explain.query import query
from vtviz.tokens import TokenMaps

LONGEST = 200
"""Characters of a class's name that are read."""


class Endpoints:
    """The handlers. They keep nothing: every call brings its photo.

    Args:
        analyses: over the models.

    Attributes:
        stops: to stop the work of a session that is gone.
    """

    def __init__(self, analyses: Analyses) -> None:
        self.shelf, self.analyses = analyses.shelf, analyses
        self.stops = Stops(analyses.seconds)

    def ablate(
        self,
        photo: Any,
        model: str,
        view: str,
        target: str,
        request: gr.Request,
        mask: Any = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio hands one over
    ) -> dict[str, Any]:
        """Take each token out, one at a time, and see what becomes of the model's answer.

        Returns what `vtviz ablate --json` prints: for each layer and token the change of the class's logit and
        probability and the first guess then, of a segmentation model the change of the areas and, with a mask, of the
        IoU; each beside two baselines, the token gathered with its map shuffled ("random") and with a centred one.

        Args:
            photo: an image file.
            model: one with tokens.
            view: the whole photo, or the paper's central square.
            target: the class to watch, by name or index; empty for the first guess. Not for segmentation.
            mask: for segmentation the right classes, a PNG of the photo's size; may be left out.
            request: of the session.
            progress: Gradio's.
        """
        with refusing(), self.stops.watch(request, progress, "Tokens taken out") as tell:
            asked = replace(shown(photo, model, view), mask=str(path_of(mask)) if mask else "")
            return self.analyses.ablation(asked, self._class(asked, target), tell).to_dict()

    def attribute(
        self,
        photo: Any,
        model: str,
        view: str,
        target: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[dict[str, Any], str]:
        """Ask every method that the model can do which pixels speak for a class.

        Returns what `vtviz attribute --json` prints: of each method what its map adds up to and should, what each token
        adds, and how far the methods agree; and a file attributions.npz with the maps at the photo's size and in cells.

        Args:
            photo: an image file.
            model: any of the page's.
            view: the whole photo, or the paper's central square.
            target: the class to explain, by name or index; empty for the first guess, or the largest class.
            request: of the session.
            progress: Gradio's.
        """
        with (
            refusing(),
            tempfile.TemporaryDirectory() as folder,
            self.stops.watch(request, progress, "Methods asked") as tell,
        ):
            asked = shown(photo, model, view)
            found = self.analyses.attributions(asked, self._class(asked, target), tell)
            return found.to_dict(), self._keep(found.save(folder)["attributions.npz"])

    def lineage(self, photo: Any, model: str, view: str) -> tuple[dict[str, Any], str]:
        """Follow the tokens through the layers: which are kept, which are made, and from which filters.

        Returns what `vtviz lineage --json` prints, tokens, links and the heads' mean of the attention; and a file
        attention.npz with the attention of every head.

        Args:
            photo: an image file.
            model: one with tokens.
            view: the whole photo, or the paper's central square.
        """
        with refusing(), tempfile.TemporaryDirectory() as folder:
            found = lineage(self._maps(photo, model, view))
            return found.to_dict(), self._keep(found.save(folder)["attention.npz"])

    def query(
        self, photo: Any, model: str, view: str, x: int, y: int, x1: int | None = None, y1: int | None = None
    ) -> dict[str, Any]:
        """Ask about a pixel or a region of the photo: which tokens read it, and which tokens it reads.

        Returns what `vtviz query --json` prints: for each layer how much each token reads the place, in x uniform, and
        how the place's reading is shared among the tokens, as the heads' mean and for each head.

        Args:
            photo: an image file.
            model: one with tokens.
            view: the whole photo, or the paper's central square.
            x: column of the pixel, from 0 at the left.
            y: its row, from 0 at the top.
            x1: with y1, the region from x, y up to, and without, this column; may be left out.
            y1: the row where the region ends.
        """
        with refusing():
            place: dict[str, Any] = {"at": (x, y)} if x1 is None and y1 is None else {"box": (x, y, x1, y1)}
            return query(self._maps(photo, model, view), **place).to_dict()

    def _class(self, asked: Shown, target: Any) -> int | None:
        text = "" if target is None else str(target)[:LONGEST].strip()
        return find_class(text, self.shelf.get(asked.model).classes) if text else None

    def _maps(self, photo: Any, model: str, view: str) -> TokenMaps:
        asked = shown(photo, model, view)
        predictor, crop = self.shelf.get(asked.model), crop_of(asked)
        return predictor.extract(open_photo(asked), crop=crop)

    def _keep(self, file: Path) -> str:
        """Put a file where Gradio serves and later deletes it; its path there."""
        return str(self.file.move_resource_to_block_cache(str(file)))

    def build(self, model: gr.Dropdown) -> None:
        """Open the endpoints, in the current Blocks.

        Args:
            model: the page's choice of models.
        """
        photo = gr.Image(type="filepath", image_mode=None, visible=False, label="The photo")
        mask = gr.File(None, file_types=[".png"], visible=False, label="A mask of its classes, or none")
        view = gr.Dropdown(list(VIEWS), value=next(iter(VIEWS)), visible=False, label="Crop")
        target = gr.Textbox("", visible=False, label="Class, by name or index; empty for the first guess")
        places = [gr.Number(value, precision=0, visible=False) for value in (0, 0, None, None)]
        answer = gr.JSON(visible=False, label="The result")
        self.file = gr.File(visible=False, label="Its arrays")
        common = [photo, model, view]

        def offer(handler: Callable[..., Any], inputs: list[Any], outputs: list[Any], line: str) -> None:
            gr.Button(visible=False).click(
                handler,
                inputs,
                outputs,
                preprocess=False,  # Gradio checks that a path is its upload; what is wrong else is told in a line
                api_name=handler.__name__,
                concurrency_id=line,
                concurrency_limit=1,
            )

        offer(self.ablate, [*common, target, mask], [answer], ANALYSES)
        offer(self.attribute, [*common, target], [answer, self.file], ANALYSES)
        offer(self.lineage, common, [answer, self.file], MODEL_CALLS)
        offer(self.query, [*common, *places], [answer], MODEL_CALLS)


def shown(photo: Any, model: str, view: str) -> Shown:
    """What a call asks about. Raises ConfigError where it brings no photo."""
    if photo is None:
        raise ConfigError("a photo is needed")
    return Shown.upload(photo, model, view)
