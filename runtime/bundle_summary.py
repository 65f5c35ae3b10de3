"""What `crossmost inspect BUNDLE` prints: what a bundle is, on one screen, and the same for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossmost.runtime.class_bank import ClassBank, load_class_bank
from crossmost.runtime.manifest import InvalidBundle, Manifest, check_files, load_manifest, locate

CLASSES = "classes.npz"
FIRST_CLASSES = 5
WIDEST = 400
SCALARS = (str, int, float, bool)


def summarize(bundle: Path, *, check: bool = True) -> list[str]:
    """A bundle as lines for the screen.

    Args:
        bundle: the folder.
        check: whether to compare its files with their digests, which reads all of them.

    Raises:
        InvalidBundle: no bundle, a newer one, or files that are not those of its manifest.
        InvalidVocabulary: its class bank cannot be used.
    """
    manifest, bank = _load(Path(bundle), check)
    lines = [
        f"bundle       {bundle} (schema {manifest.schema}, made by crossmost {manifest.crossmost})",
        *_encoder_lines(manifest),
        *class_lines(bank),
        *_file_lines(manifest, check),
        f"engines      {', '.join(manifest.engines) or 'none'}",
        *(f"note         {note}" for note in manifest.notes),
        *_parity_lines(manifest.parity),
        f"provenance   {_pairs(manifest.provenance) or 'unknown'}",
    ]
    return [one_line(line) for line in lines]


def describe(bundle: Path, *, check: bool = True) -> dict[str, Any]:
    """A bundle as plain JSON types: its manifest, `classes`, and whether its files were `checked`.

    Args:
        bundle: the folder.
        check: as in `summarize`.

    Raises:
        InvalidBundle, InvalidVocabulary: as `summarize`.
    """
    manifest, bank = _load(Path(bundle), check)
    classes = {
        "names": list(bank.vocabulary.names),
        "prompts": list(bank.vocabulary.prompts),
        "tag": bank.vocabulary.tag,
        "logit_scale": bank.vocabulary.logit_scale,
        "temperature": bank.temperature,
        "unknown_similarity": bank.unknown_similarity,
        "unknown_rule": bank.unknown_rule,
    }
    return {"bundle": str(bundle), "checked": check, "classes": classes, **manifest.to_dict()}


def _load(bundle: Path, check: bool) -> tuple[Manifest, ClassBank]:
    manifest = load_manifest(bundle)
    if check:
        check_files(bundle, manifest, {CLASSES, *manifest.files})
    bank = load_class_bank(locate(bundle, CLASSES))
    if bank.vocabulary.dim != manifest.encoder.dim:
        raise InvalidBundle(
            f"{bundle / CLASSES}: expected embeddings of the encoder's {manifest.encoder.dim} numbers, "
            f"found {bank.vocabulary.dim}: copy or export the bundle again"
        )
    return manifest, bank


def _encoder_lines(manifest: Manifest) -> list[str]:
    card = manifest.encoder
    patch = f"K {card.neighbors}" + ("" if card.radius is None else f" within {card.radius:g}")
    sizes = f"N {card.points}, G {card.groups}, {patch}, C {card.channels}, D {card.dim}"
    color = f", clouds without color get {card.color_filler:g}" if card.channels == 6 else ""
    return [
        f"encoder      {card.name}: {sizes}",
        f"clouds       up axis {card.up_axis}, scaled to the {card.scale}{color}",
        f"precision    {manifest.precisions} (opset {manifest.opset}, ir_version {manifest.ir_version})",
    ]


def class_lines(bank: ClassBank) -> list[str]:
    """Classes, their text model, and what calibration found, as lines for the screen."""
    vocabulary = bank.vocabulary
    first, more = ", ".join(vocabulary.names[:FIRST_CLASSES]), len(bank) - FIRST_CLASSES
    text = f"{vocabulary.tag or 'unknown'}, {len(vocabulary.prompts)} prompts"
    unknown = "never: every cloud gets a class"
    if bank.unknown_similarity is not None:
        unknown = (
            f"below a similarity of {bank.unknown_similarity:.4g} ({bank.unknown_rule or 'no rule noted'})"
        )
    return [
        f"classes      {len(bank)}: {first}" + (f" and {more} more" if more > 0 else ""),
        f"text model   {text}, logit scale {vocabulary.logit_scale:.4g}",
        f"temperature  {bank.temperature:.4g}",
        f"unknown      {unknown}",
    ]


def _file_lines(manifest: Manifest, check: bool) -> list[str]:
    total = sum(facts.bytes for facts in manifest.files.values())
    state = "all as they were exported" if check else "not checked"
    lines = [f"files        {len(manifest.files)}, {_size(total)}, {state}"]
    return lines + [f"  {name:<24} {_size(facts.bytes):>10}" for name, facts in manifest.files.items()]


def _parity_lines(parity: Mapping[str, Any]) -> list[str]:
    """Verdict, clouds and accuracy, then of each graph, precision and metric the check that is nearest to its gate."""
    found = parity.get("checks")
    checks = [check for check in found if _is_check(check)] if isinstance(found, list) else []
    verdict = str(parity.get("verdict", "not verified"))
    if checks:
        verdict += f", {sum(check['passed'] for check in checks)} of {len(checks)} checks"
    lines = [f"parity       {verdict}"]
    lines += [f"  {key}: {_pairs(value)}" for key, value in parity.items() if isinstance(value, dict)]
    graphs: dict[str, dict[str, Mapping[str, Any]]] = {}
    for check in sorted(checks, key=_margin, reverse=True):  # the last one stays
        graphs.setdefault(f"{check['graph']} {check['precision']}", {})[check["metric"]] = check
    for graph in sorted(graphs):
        worst = (graphs[graph][metric] for metric in sorted(graphs[graph]))
        shown = (f"{check['metric']} {check['value']:.6g} (gate {check['gate']:.6g})" for check in worst)
        lines.append(f"  {graph}: {', '.join(shown)}")
    return lines


def _is_check(check: Any) -> bool:
    kinds: dict[str, Any] = {
        "graph": str,
        "precision": str,
        "metric": str,
        "value": (int, float),
        "gate": (int, float),
    }
    return (
        isinstance(check, dict)
        and all(isinstance(check.get(key), kind) for key, kind in kinds.items())
        and isinstance(check.get("passed"), bool)
    )


def _margin(check: Mapping[str, Any]) -> tuple[bool, float]:
    """Orders checks whichever way their gate goes: failed ones first, then those nearest to it."""
    return check["passed"], abs(check["value"] - check["gate"])


def _pairs(entries: Mapping[str, Any]) -> str:
    """The plain entries in one line; of nested ones only that they are there."""
    parts = []
    for key, value in entries.items():
        if isinstance(value, SCALARS):
            parts.append(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}")
        elif isinstance(value, (Mapping, Sequence)) and value:
            parts.append(f"{key} ({len(value)} entries)")
    return ", ".join(parts)


def _size(count: int) -> str:
    """Bytes in the decimal units that file managers and registries show."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def one_line(line: str) -> str:
    """One line of the screen: a bundle's text can hold what a terminal would obey."""
    safe = "".join(letter if letter.isprintable() else "?" for letter in line)
    return safe if len(safe) <= WIDEST else safe[: WIDEST - 3] + "..."
