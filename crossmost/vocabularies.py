"""`crossmost vocabulary`: class names through a text tower, into a file that every other command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossmost.adaptation.devices import choose_device
from crossmost.checkpoints.atomic import failing_as_work
from crossmost.errors import InputError
from crossmost.models.text_tower import PROMPTS, check_templates, embed_classes
from crossmost.runtime.class_names import read_class_names


def make_vocabulary(
    names: str,
    out: Path,
    *,
    clip: str,
    clip_weights: str | None,
    templates: Path | None,
    spaces: bool,
    device: str,
    overwrite: bool,
) -> dict[str, Any]:
    """Embed class names and write them.

    Args:
        names: a file, or a list such as 'mug,bowl'.
        out: the .npz to write.
        clip: name of a text tower, with the tag of its weights or without.
        clip_weights: a tag or a file; None where `clip` says it.
        templates: a file of prompts; None for the 64 of the method.
        spaces: write `night_stand` as `night stand` in the prompts.
        device: where the text tower runs.
        overwrite: whether `out` may be there already.

    Returns:
        What was written, in JSON types.

    Raises:
        InvalidVocabulary: names that cannot be used.
        InputError: templates, tower or destination that cannot be used.
        WorkFailed: the file cannot be written; one that was there is untouched.
    """
    check_destination(out, overwrite)
    prompts = PROMPTS if templates is None else read_templates(templates)
    vocabulary = embed_classes(
        read_class_names(names),
        clip=clip,
        weights=clip_weights,
        templates=prompts,
        device=choose_device(device),
        spaces=spaces,
    )
    with failing_as_work(f"cannot write {out}", "what was there before is untouched"):
        vocabulary.save(out)
    return {
        "path": str(out),
        "classes": list(vocabulary.names),
        "dim": vocabulary.dim,
        "text_model": vocabulary.tag,
        "prompts": len(prompts),
        "logit_scale": vocabulary.logit_scale,
    }


def check_destination(out: Path, overwrite: bool) -> None:
    """Find out before the work what would fail after it.

    Raises:
        InputError: not an .npz, no such folder, or something is there.
    """
    if out.suffix != ".npz":
        raise InputError(f"expected an .npz to write, found {out}")
    if not out.parent.is_dir():
        raise InputError(f"expected a folder to write {out.name} into, found none at {out.parent}")
    if out.is_dir() or (out.exists() and not overwrite):
        raise InputError(f"{out} is there already: give another --out, or --overwrite to replace a file")


def read_templates(path: Path) -> tuple[str, ...]:
    """Read prompt templates from a text file, one a line with `{}` for the class name; blank lines are left out.

    Raises:
        InputError: no such file, or a line without exactly one `{}`.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"expected a text file with one prompt template a line, found {path}: {error}"
        ) from error
    templates = tuple(line.strip() for line in lines if line.strip())
    check_templates(templates)
    return templates
