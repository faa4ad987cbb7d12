"""Forward hooks that show what a model's tokenizers, transformers and projectors computed.

The hooks are put on once per model and write into the recorder of the current context, so that concurrent callers on
one shared model never see each other's maps. Where no recorder is set the model runs as if nothing were there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import zip_longest
from threading import Lock
from typing import Any, NamedTuple

from torch import Tensor, nn

from vtviz.models.visual_transformer import (
    PointwiseTransformer,
    Projector,
    ProjectorOutput,
    Tokenizer,
    TokenizerOutput,
    Transformer,
    TransformerOutput,
)

HOOKED = (Tokenizer, Transformer, PointwiseTransformer, Projector)
"""Modules whose outputs are recorded."""


class Layer(NamedTuple):
    """What one layer with tokens computed for a batch."""

    tokenizer: TokenizerOutput
    transformer: TransformerOutput
    projector: ProjectorOutput | None


class Recorder:
    """Outputs of one model's last forward pass, as computed: not copied, with their graph where there is one."""

    def __init__(self, model: nn.Module) -> None:
        self.outputs: dict[nn.Module, Any] = {}
        """Module -> its output, in the order of their calls."""
        self._modules = frozenset(m for m in model.modules() if isinstance(m, HOOKED))

    def write(self, module: nn.Module, output: Any) -> None:
        """Keep the output, unless the module belongs to another model that runs in this context too."""
        if module in self._modules:
            self.outputs[module] = output

    def layers(self) -> list[Layer]:
        """What each layer computed, in the order of the forward pass; empty for a model without tokens."""
        outputs = self.outputs.values()
        tokenizers = [o for o in outputs if isinstance(o, TokenizerOutput)]
        transformers = [o for o in outputs if isinstance(o, TransformerOutput)]
        projectors = [o for o in outputs if isinstance(o, ProjectorOutput)]
        if len(transformers) < len(tokenizers):  # VT-FPN: one transformer relates the tokens of all levels
            transformers = _split(transformers[0], [t.tokens.shape[2] for t in tokenizers])
        # a classifier's last block has no projector
        return [Layer(*parts) for parts in zip_longest(tokenizers, transformers, projectors)]


def _split(joint: TransformerOutput, sizes: list[int]) -> list[TransformerOutput]:
    rows = [None] * len(sizes) if joint.attention is None else joint.attention.split(sizes, dim=2)
    return [TransformerOutput(*part) for part in zip(joint.tokens.split(sizes, dim=2), rows, strict=True)]


_RECORDER: ContextVar[Recorder | None] = ContextVar("vtviz_recorder", default=None)
_INSTALLING = Lock()


def _write_output(module: nn.Module, _inputs: tuple[Tensor, ...], output: Any) -> None:
    if (recorder := _RECORDER.get()) is not None:
        recorder.write(module, output)


def install_hooks(model: nn.Module) -> None:
    """Put the hooks on every module of :data:`HOOKED` that has none yet; they stay and cost nothing when unused."""
    with _INSTALLING:
        for module in model.modules():
            # looked up where torch keeps them, because a deep copy of a model has its hooks already
            if isinstance(module, HOOKED) and _write_output not in module._forward_hooks.values():  # noqa: SLF001
                module.register_forward_hook(_write_output)


@contextmanager
def record(model: nn.Module) -> Iterator[Recorder]:
    """Record the forward pass made within, in this thread or task alone.

    ::

        with record(model) as recorder:
            logits = model(x)
        first, *others = recorder.layers()
    """
    install_hooks(model)
    recorder = Recorder(model)
    token = _RECORDER.set(recorder)
    try:
        yield recorder
    finally:
        _RECORDER.reset(token)
