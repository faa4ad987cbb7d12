"""A model as a graph: one input, and its logits and token maps by name as outputs, for every batch and image size."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vtviz.errors import ConfigError
from vtviz.hooks import Layer
from vtviz.models.visual_transformer import BlockOutput, ProjectorOutput, TokenizerOutput, TransformerOutput

INPUT = "image"
"""Name of the graph's input: (N, 3, h, w) float32, normalised as the model's card says."""
PARTS = {
    "coefficients": "A: share, summing to 1 over each map (N, heads, tokens, h, w)",
    "values": "V: what A averages (N, heads, C / heads, h, w)",
    "gathered": "T = A^T V (N, heads, C / heads, tokens)",
    "tokens_in": "activation before the transformer (N, L, C_T)",
    "tokens_out": "activation after the transformer (N, L, C_T)",
    "attention": "share, summing to 1 over the last axis (N, heads, L_query, L_key)",
    "projector": "share, summing to 1 over L in each cell (N, heads, L, h, w)",
}
"""What the outputs hold, by the last part of their names: ``logits``, and of each layer ``<layer>.<part>``."""
LEAST_CELLS, MOST_CELLS = 2, 256
"""Cells of its coarsest map on each side of an image that a graph takes."""
OPSET = 20


class Graph(nn.Module):
    """A model whose output is a dict of tensors by name; see :data:`PARTS`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.layers = layer_names(model)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (N, 3, H, W), normalised -> ``logits`` and, of a model with tokens, the parts of every layer."""
        if not self.layers:
            return {"logits": self.model(image)}
        logits, blocks = self.model(image, return_maps=True)
        outputs = {"logits": logits}
        for name, block in zip(self.layers, blocks, strict=True):
            outputs |= {f"{name}.{part}": value for part, value in _parts(block).items() if value is not None}
        return outputs


def _parts(block: BlockOutput) -> dict[str, Tensor | None]:
    return {
        "coefficients": block.tokenizer.coefficients,
        "values": block.tokenizer.values,
        "gathered": block.tokenizer.gathered,
        "tokens_in": block.tokenizer.tokens.transpose(1, 2),
        "tokens_out": block.transformer.tokens.transpose(1, 2),
        "attention": block.transformer.attention,
        "projector": None if block.projector is None else block.projector.coefficients,
    }


def layer_names(model: nn.Module) -> tuple[str, ...]:
    """Names of a model's layers with tokens."""
    return tuple(model.token_names)  # type: ignore[arg-type]


def to_layers(outputs: Mapping[str, Tensor], names: Sequence[str]) -> tuple[Tensor, list[Layer]]:
    """A graph's outputs as :meth:`vtviz.predictor.Predictor.forward` gives them; a projector's feature is not there."""
    layers = []
    for name in names:
        part = {key: outputs.get(f"{name}.{key}") for key in PARTS}
        tokens_in, tokens_out = (outputs[f"{name}.{key}"].transpose(1, 2) for key in ("tokens_in", "tokens_out"))
        read: Any = part["projector"]
        given: list[Any] = [part[key] for key in ("coefficients", "values", "gathered")]
        layers.append(
            Layer(
                TokenizerOutput(tokens_in, *given),
                TransformerOutput(tokens_out, part["attention"]),
                None if read is None else ProjectorOutput(read.new_empty(0), read),
            )
        )
    return outputs["logits"], layers


def cell(model: nn.Module) -> int:
    """Input pixels per cell of a model's coarsest map: a graph takes whole cells."""
    return max(model.token_strides, default=32)  # type: ignore[arg-type]


def check_size(unit: int, height: int, width: int) -> None:
    """Raises ConfigError for an image size that a graph of a model with cells of ``unit`` pixels does not take."""
    if any(side % unit or not LEAST_CELLS <= side // unit <= MOST_CELLS for side in (height, width)):
        raise ConfigError(
            f"an exported model takes sides of {LEAST_CELLS * unit} to {MOST_CELLS * unit} pixels, multiples of "
            f"{unit}, got {height} x {width}; choose another --size or the torch engine"
        )


def freeze(model: nn.Module) -> Graph:
    """A copy of ``model`` as a graph that has yet to be traced: float32, eval mode, on the CPU."""
    return Graph(copy.deepcopy(model).cpu().float().eval())


def trace(frozen: Graph) -> ExportedProgram:
    """The graph of a model from :func:`freeze`.

    Batch, height and width are free: any number of images of sides that :func:`check_size` lets pass.
    """
    unit, config = cell(frozen.model), frozen.model.config
    channels: int = config.in_channels  # type: ignore[union-attr, assignment]
    sides = {axis: unit * Dim(axis, min=LEAST_CELLS, max=MOST_CELLS) for axis in ("rows", "columns")}
    example = torch.zeros(2, channels, 6 * unit, 10 * unit)
    shapes = {INPUT: {0: Dim("batch", min=1, max=4096), 2: sides["rows"], 3: sides["columns"]}}
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return torch.export.export(frozen, (example,), dynamic_shapes=shapes)


def to_onnx(program: ExportedProgram, metadata: Mapping[str, str] | None = None) -> bytes:
    """A traced graph as an ONNX file, weights inside.

    Args:
        program: from :func:`trace`.
        metadata: kept in the file as its ``metadata_props``.

    Raises:
        ConfigError: where the packages that write it are missing.
    """
    try:
        import onnxscript  # noqa: F401, PLC0415 - optional, and torch.onnx needs it
    except ImportError:
        raise ConfigError("writing ONNX needs more packages: pip install onnx onnxscript") from None
    with _silence():
        written: Any = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=output_names(program),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    proto = written.model_proto
    for key, value in (metadata or {}).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto.SerializeToString()


def output_names(program: ExportedProgram) -> list[str]:
    """Names of a traced graph's outputs, in their order."""
    args, _ = program.example_inputs
    with torch.no_grad():
        return list(program.module()(*args))


@contextmanager
def _silence() -> Iterator[None]:
    """The exporter reports its steps to stdout and warns of its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
