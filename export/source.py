"""What an export starts from: an adapted run, or a base with class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossmost.checkpoints.base import Architecture, check_text_model, load_base
from crossmost.checkpoints.run import is_run, load_run, read_records, shortcomings
from crossmost.checkpoints.run_files import read_provenance
from crossmost.checkpoints.sample import SAMPLE, Sample, load_sample
from crossmost.errors import InputError
from crossmost.models.point_encoder import PointEncoder
from crossmost.models.student import DualEncoder, Projection, Student, embed_points
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.manifest import hash_file
from crossmost.runtime.vocabulary import Vocabulary


@dataclass(frozen=True)
class Exportable:
    """A point encoder with its classes, in float32 on the CPU.

    Attributes:
        encoder: in evaluation mode.
        head: turns its features into embeddings.
        architecture: of the network it comes from.
        vocabulary: the class names with the text model's own embeddings.
        bank: the classes as the network uses them, calibrated where training did so; no threshold yet.
        sample: some of the clouds it was adapted to; None for a base.
        provenance: where it came from, for the manifest.
        shortcomings: what whoever exports it should know first, a sentence each.
    """

    encoder: PointEncoder
    head: Projection
    architecture: Architecture
    vocabulary: Vocabulary
    bank: ClassBank
    sample: Sample | None
    provenance: dict[str, Any]
    shortcomings: tuple[str, ...] = ()

    def embed(self, clouds: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Embed prepared clouds, each (n, C), as torch does: (len, D) unit rows."""
        return embed_points(self.encoder, self.head, clouds)


def load_exportable(path: Path, classes: Callable[[str], ClassBank] | None) -> Exportable:
    """Read a run, or a base with class names.

    Args:
        path: folder of a run, or file of a base.
        classes: gives the classes of a base, told the text model it was aligned with; None for a run, which has
            its own.

    Raises:
        InputError: neither, damaged, or classes missing, one too many, or of another text model's width.
    """
    if path.is_dir() and is_run(path):
        if classes is not None:
            raise InputError(f"{path} is a run and has its classes: leave out --vocabulary and --classes")
        return _from_run(path)
    if path.is_file():
        base, architecture = load_base(path)
        if classes is None:
            raise InputError(f"{path} is a base without classes: give --vocabulary or --classes")
        return _from_base(path, base, architecture, classes(architecture.text))
    found = "a folder without one" if path.is_dir() else "nothing there"
    raise InputError(
        f"{path}: expected a run made by `crossmost train`, or a base .safetensors, found {found}"
    )


def _from_run(folder: Path) -> Exportable:
    run = load_run(folder)
    network, last = run.adapted, (read_records(folder) or [{}])[-1]
    provenance = {
        "kind": "run",
        "network": run.config.exported,
        "recipe": run.config.recipe,
        "mode": run.config.mode,
        # Of the points, which are exported: where the images alone are trained they have none.
        "center": "none" if run.config.mode == "image-only" else last.get("center", run.config.center),
        "epochs": {"done": last["epoch"] + 1 if last else None, "planned": run.config.epochs},
        "text": run.architecture.text,
        "training": read_provenance(folder),
        "weights_sha256": hash_file(folder / f"{run.config.exported}.safetensors").sha256,
    }
    sample = load_sample(folder / SAMPLE) if (folder / SAMPLE).is_file() else None
    bank = trained_bank(network, run.vocabulary, run.temperatures["adapted"][0])
    return Exportable(
        network.point_encoder,
        network.point_head(),
        run.architecture,
        run.vocabulary,
        bank,
        sample,
        provenance,
        tuple(shortcomings(run)),
    )


def _from_base(path: Path, base: DualEncoder, architecture: Architecture, classes: ClassBank) -> Exportable:
    check_text_model(classes.vocabulary, architecture)
    provenance = {"kind": "base", "text": architecture.text, "weights_sha256": hash_file(path).sha256}
    return Exportable(
        base.point_encoder,
        base.point_head(),
        architecture,
        classes.vocabulary,
        zero_shot_bank(base, classes),
        None,
        provenance,
    )


@torch.no_grad()
def trained_bank(network: Student, vocabulary: Vocabulary, temperature: float) -> ClassBank:
    """The classifier Theta as data: directions, lengths, scale and the point branch's temperature.

    It softens scores and never sharpens them: it was fitted to what the image branch says, and branches that learned
    the same pseudo-labels agree on their mistakes too.
    """
    weights = network.class_weights().double().T  # (C, D)
    lengths = weights.norm(dim=1)
    directions = Vocabulary.create(
        vocabulary.names,
        (weights / lengths[:, None]).float().numpy(),
        logit_scale=network.logit_scale.exp().item(),
        prompts=vocabulary.prompts,
        tag=vocabulary.tag,
    )
    return ClassBank(directions, lengths.float().numpy(), max(1.0, float(temperature)))


def zero_shot_bank(base: DualEncoder, classes: ClassBank) -> ClassBank:
    """Class vectors as they are, at the base's own scale; a threshold of other clouds says nothing about these."""
    vocabulary = replace(classes.vocabulary, logit_scale=base.logit_scale.exp().item())
    return ClassBank(vocabulary, classes.lengths, classes.temperature)
