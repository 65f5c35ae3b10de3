"""The text tower of a CLIP as a graph, tokens in and unit embeddings out, and whether it fits a vocabulary."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.nn.functional import pad

from crossmost.errors import InputError
from crossmost.export.onnx_encoder import IR_VERSION, OPSET
from crossmost.export.precision import DTYPES
from crossmost.models.clip import import_open_clip, quiet_logging
from crossmost.models.student import unit
from crossmost.runtime.text_encoder import GRAPH, embed_names
from crossmost.runtime.vocabulary import Vocabulary

COMPARED = 16
"""Classes that `check_alignment` embeds: another text tower shows in every one of them."""


class TextGraph(nn.Module):
    """`encode_text` of open_clip in one precision; the scaling to unit length is float32.

    The context of CLIP's own text transformer is causal: nothing before the end-of-text token sees the padding
    behind it. Positions and mask are therefore cut to the tokens that are given, and the runtime may leave
    padding out. A tower that sees all its tokens, or reads off the last one, keeps its full length.
    """

    def __init__(self, clip: nn.Module, precision: str):
        """Take a CLIP, as it is in float32, copied and cast otherwise.

        Args:
            clip: in evaluation mode; left as it is.
            precision: a key of DTYPES.

        Raises:
            InputError: a text tower that is not open_clip's own.
        """
        super().__init__()
        place, text = text_transformer(clip)
        dtype = DTYPES[precision]
        self.encode = EncodeText(clip if dtype == torch.float32 else copy.deepcopy(clip).to(dtype))
        pooling = text.text_pool_type if text is clip else text.pool_type
        self.causal = text.attn_mask is not None and pooling in ("argmax", "eos")
        self.place = f"clip.{place}"
        if self.causal:
            # The row more than there are positions is never read. To the tracer a cut that may be the whole tensor
            # is a case of its own, and it would refuse the full length.
            self.positions = pad(text.positional_embedding.detach(), (0, 0, 0, 1)).to(dtype)
            self.mask = pad(text.attn_mask, (0, 1, 0, 1)).to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 to (B, D) float32 unit rows."""
        length = tokens.shape[1]
        cut = {}
        if self.causal:
            cut[f"{self.place}positional_embedding"] = self.positions[:length]
            cut[f"{self.place}attn_mask"] = self.mask[:length, :length]
        return unit(torch.func.functional_call(self.encode, cut, (tokens,)))


class EncodeText(nn.Module):
    """A module whose forward pass is `encode_text`."""

    def __init__(self, clip: Any):
        super().__init__()
        self.clip = clip

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 to (B, D), not scaled."""
        return self.clip.encode_text(tokens)


def text_transformer(clip: nn.Module) -> tuple[str, Any]:
    """Find the module of a CLIP that holds its text transformer, and that module's place in it.

    Raises:
        InputError: a text tower that is not open_clip's own.
    """
    open_clip = import_open_clip()
    if isinstance(clip, open_clip.CLIP):
        return "", clip
    if isinstance(clip, open_clip.CustomTextCLIP) and isinstance(
        clip.text, open_clip.transformer.TextTransformer
    ):
        return "text.", clip.text
    found = type(getattr(clip, "text", clip)).__name__
    raise InputError(
        f"expected a CLIP with open_clip's own text transformer, found {found} in {type(clip).__name__}: "
        "leave out --text-encoder"
    )


def export_text_encoder(
    model: nn.Module, folder: Path, *, precision: str, weights_name: str = "text_weights.bin"
) -> Path:
    """Write `text_encoder.onnx`: `tokens` (batch, length) int64 to `embedding` (batch, D) float32 unit rows.

    `length` is anything from 2 to the model's context length for CLIP's own causal towers, which give the same
    with and without padding; for others it is the context length.

    Args:
        model: a CLIP as `crossmost.models.text_tower.text_model` gives it; left as it is.
        folder: where the graph and its weights go.
        precision: "fp32", "fp16" or "bf16", typed in the graph.
        weights_name: the file beside the graph that holds the weights.

    Returns:
        The path of the graph, which has passed onnx's checker and shape inference.

    Raises:
        InputError: a text tower that is not open_clip's own.
    """
    path = folder / GRAPH
    graph = trace(TextGraph(model, precision).eval(), int(model.context_length))  # type: ignore[arg-type]
    onnx_ir.save(graph, path, external_data=weights_name)
    onnx.checker.check_model(path, full_check=True)
    return path


def trace(text: TextGraph, context_length: int) -> onnx_ir.Model:
    """Trace the graph of a text tower, its batch dynamic, and its length where the tower allows that."""
    axes = {0: torch.export.Dim("batch", min=1)}
    length = context_length
    if text.causal:
        axes[1] = torch.export.Dim("length", min=2, max=context_length)
        length = context_length // 2  # the full length would be taken for a number that is built in
    names = {axis: dim.__name__ for axis, dim in axes.items()}
    with torch.no_grad(), warnings.catch_warnings(), quiet_logging():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        # Traced on its own: given the module, the exporter would fall back to a fixed batch without a word.
        tokens = torch.ones(2, length, dtype=torch.int64)
        traced = torch.export.export(text, (tokens,), dynamic_shapes=(axes,))
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=OPSET,
            input_names=["tokens"],
            output_names=["embedding"],
            dynamic_shapes=(names,),  # of a trace for the names alone
            verbose=False,
        )
    assert program is not None
    graph = program.model
    graph.ir_version = IR_VERSION
    # Every node carries the stack of the code that made it, with the folders of this machine.
    ClearMetadataAndDocStringPass()(graph)
    free_name(graph, "embedding")
    return graph


def free_name(model: onnx_ir.Model, name: str) -> None:
    """Rename the inner values that are called like an output, which torch does not keep apart."""
    outputs = set(model.graph.outputs)
    inner = (value for node in model.graph for value in node.outputs if value not in outputs)
    for index, value in enumerate(value for value in inner if value.name == name):
        value.name = f"inner_{name}_{index}"


@dataclass(frozen=True)
class Alignment:
    """How well a text tower gives the embeddings of a vocabulary.

    Attributes:
        spaces: the vocabulary was made with `night_stand` written as `night stand`.
        cosine: the smallest over the classes compared, between the tower's embedding and the vocabulary's.
    """

    spaces: bool
    cosine: float


def check_prompts(vocabulary: Vocabulary) -> None:
    """Make sure that a vocabulary can be embedded again.

    Raises:
        InputError: it does not say its prompts.
    """
    if not vocabulary.prompts:
        raise InputError(
            "expected a vocabulary that says its prompts, found ready-made embeddings: leave out --text-encoder"
        )


def check_alignment(
    vocabulary: Vocabulary,
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    *,
    minimum_cosine: float = 0.98,
) -> Alignment:
    """Make sure that class names through this text tower land where the vocabulary has them.

    Names are tried as they are and with spaces for underscores, since vocabularies are made either way. At most
    16 classes are compared, those with underscores first.

    Args:
        vocabulary: with its prompts.
        embed: M texts to (M, D) unit rows, such as `TextEncoder.embed`.
        minimum_cosine: that the worst class must reach.

    Raises:
        InputError: no prompts, another width, or another place; with the cosine found.
    """
    check_prompts(vocabulary)
    underscored = [name for name in vocabulary.names if "_" in name]
    plain = [name for name in vocabulary.names if "_" not in name]
    compared = vocabulary.select(spread(underscored + plain, COMPARED))
    both = [fit(compared, embed, spaces) for spaces in ((False, True) if underscored else (True,))]
    best = max(both, key=lambda alignment: alignment.cosine)
    if best.cosine < minimum_cosine:
        raise InputError(
            f"expected the text encoder to give the vocabulary's embeddings (cosine of at least {minimum_cosine}), "
            f"found {best.cosine:.3f}: the vocabulary is of another text tower ({vocabulary.tag or 'it has no tag'}), "
            "mean-centred or made otherwise; leave out --text-encoder"
        )
    return best


def spread(names: list[str], count: int) -> list[str]:
    """Take at most `count` names: evenly over the list."""
    return [names[index] for index in np.unique(np.linspace(0, len(names) - 1, count).round().astype(int))]


def fit(
    vocabulary: Vocabulary, embed: Callable[[Sequence[str]], NDArray[np.float32]], spaces: bool
) -> Alignment:
    """Compare the embeddings of a vocabulary with those of a text tower, with or without spaces.

    Raises:
        InputError: embeddings of another width.
    """
    made = embed_names(embed, vocabulary.names, vocabulary.prompts, spaces=spaces)
    if made.shape[1] != vocabulary.dim:
        raise InputError(
            f"expected a text encoder of the vocabulary's width D = {vocabulary.dim}, found {made.shape[1]}: "
            "the vocabulary is of another text tower; leave out --text-encoder"
        )
    lengths = np.linalg.norm(made, axis=1)
    return Alignment(spaces, float(np.min(np.sum(made * vocabulary.embeddings, axis=1) / lengths)))
