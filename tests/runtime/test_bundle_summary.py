import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossmost.runtime.bundle_summary import describe, summarize
from crossmost.runtime.class_bank import ClassBank
from crossmost.runtime.manifest import Encoder, FileFacts, InvalidBundle, Manifest, hash_file
from crossmost.runtime.vocabulary import InvalidVocabulary, Vocabulary

NAMES = tuple(f"class{index}" for index in range(8))
VOCABULARY = Vocabulary(NAMES, np.eye(8, dtype=np.float32), 100.0, ("a {}.", "the {}"), "ViT-B-32/openai")
BANK = ClassBank(VOCABULARY, np.ones(8, np.float32), 1.25, 0.375, "the 0.05 quantile")


def parity_check(
    metric: str, value: float, gate: float, batch: int, graph: str = "encoder.onnx"
) -> dict[str, Any]:
    found = {"name": f"{metric} at {batch}", "graph": graph, "precision": "fp16", "batch": batch}
    return {**found, "metric": metric, "value": value, "gate": gate, "passed": True}


MANIFEST = Manifest(
    schema=1,
    crossmost="0.1.0",
    encoder=Encoder("point-tiny", 512, 32, 16, 3, "-y", 0.4, 8),
    precision="fp16",
    opset=18,
    ir_version=10,
    notes=("no engine was built: no driver",),
    provenance={"kind": "run", "recipe": "crossmost", "training": {"seed": 1}, "seconds": 0.5},
    parity={
        "verdict": "passed",
        "clouds": {"name": "scans", "count": 32},
        "accuracy": {"torch": 0.875, "encoder.onnx": 0.75},
        "checks": [
            parity_check("cosine", 0.9999, 0.999, 1),
            parity_check("cosine", 0.9995, 0.999, 64),
            parity_check("difference", 1e-6, 1e-4, 1),
            parity_check("difference", 3e-5, 1e-4, 64),
            parity_check("difference", 2e-5, 1e-4, 1, "model.onnx"),
        ],
    },
)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle of a class bank, some bytes, and a manifest with some of its entries replaced."""

    def write(bank: ClassBank = BANK, **entries: Any) -> Path:
        folder = tmp_path / "scans.bundle"
        folder.mkdir()
        bank.save(folder / "classes.npz")
        (folder / "weights.bin").write_bytes(bytes(1_500_000))
        files = {name: hash_file(folder / name) for name in ("classes.npz", "weights.bin")}
        manifest = replace(MANIFEST, **{"files": files, **entries})
        (folder / "manifest.json").write_text(json.dumps(manifest.to_dict()))
        return folder

    return write


def line_of(lines: list[str], title: str) -> str:
    (line,) = (line for line in lines if line.startswith(title))
    return line


def test_the_encoder_for_cpus_has_its_precision_too(make: Callable[..., Path]) -> None:
    files = {"encoder.int8.onnx": FileFacts("0" * 64, 1)}
    (line,) = (line for line in summarize(make(files=files), check=False) if line.startswith("precision"))
    assert "fp16, on a CPU int8 (opset 18" in line


def test_one_screen_says_what_a_bundle_is(make: Callable[..., Path]) -> None:
    lines = summarize(make())
    assert len(lines) <= 24
    assert "scans.bundle (schema 1, made by crossmost 0.1.0)" in line_of(lines, "bundle")
    assert "point-tiny: N 512, G 32, K 16, C 3, D 8" in line_of(lines, "encoder")
    assert "up axis -y, scaled to the unit-sphere" in line_of(lines, "clouds")
    assert "color" not in line_of(lines, "clouds")
    assert "fp16 (opset 18, ir_version 10)" in line_of(lines, "precision")
    assert "8: class0, class1, class2, class3, class4 and 3 more" in line_of(lines, "classes")
    assert "ViT-B-32/openai, 2 prompts, logit scale 100" in line_of(lines, "text model")
    assert line_of(lines, "temperature").endswith(" 1.25")
    assert "below a similarity of 0.375 (the 0.05 quantile)" in line_of(lines, "unknown")
    assert "2, 1.5 MB, all as they were exported" in line_of(lines, "files")
    assert line_of(lines, "  weights.bin").endswith("1.5 MB")
    assert line_of(lines, "engines").endswith("none")
    assert "no engine was built: no driver" in line_of(lines, "note")
    expected = "kind run, recipe crossmost, training (1 entries), seconds 0.5"
    assert line_of(lines, "provenance").endswith(expected)


def test_the_radius_of_balls_is_shown(make: Callable[..., Path]) -> None:
    lines = summarize(make(encoder=replace(MANIFEST.encoder, radius=0.2)))
    assert "K 16 within 0.2, C 3" in line_of(lines, "encoder")


def test_of_the_verification_it_shows_what_was_nearest_to_the_gates(make: Callable[..., Path]) -> None:
    lines = summarize(make())
    assert "passed, 5 of 5 checks" in line_of(lines, "parity")
    assert "name scans, count 32" in line_of(lines, "  clouds")
    assert "torch 0.875, encoder.onnx 0.75" in line_of(lines, "  accuracy")
    encoder = line_of(lines, "  encoder.onnx fp16")
    assert "cosine 0.9995 (gate 0.999), difference 3e-05 (gate 0.0001)" in encoder
    assert line_of(lines, "  model.onnx fp16").endswith("difference 2e-05 (gate 0.0001)")


def test_a_failed_check_comes_before_any_margin(make: Callable[..., Path]) -> None:
    failed = {**parity_check("cosine", 0.5, 0.999, 8), "passed": False}
    near = parity_check("cosine", 0.99901, 0.999, 1)
    lines = summarize(make(parity={"verdict": "failed", "checks": [near, failed, near]}))
    assert "failed, 2 of 3 checks" in line_of(lines, "parity")
    assert "cosine 0.5 (gate 0.999)" in line_of(lines, "  encoder.onnx fp16")


@pytest.mark.parametrize(
    "parity",
    [
        {},
        {"checks": 3},
        {"checks": [1, {}, {"graph": [], "metric": 1}], "verdict": [], "clouds": 2},
        {"checks": [{**parity_check("cosine", 1.0, 1.0, 1), "value": "much"}]},
    ],
)
def test_a_report_of_another_form_is_no_error(make: Callable[..., Path], parity: dict[str, Any]) -> None:
    assert line_of(summarize(make(parity=parity)), "parity")


def test_a_bank_without_threshold_and_an_encoder_of_colors_say_so(make: Callable[..., Path]) -> None:
    colored = replace(MANIFEST.encoder, channels=6)
    lines = summarize(make(ClassBank.plain(replace(VOCABULARY, tag="")), encoder=colored))
    assert "clouds without color get 0.4" in line_of(lines, "clouds")
    assert "never" in line_of(lines, "unknown")
    assert "unknown, 2 prompts" in line_of(lines, "text model")


def test_nothing_a_terminal_would_obey_is_shown(make: Callable[..., Path]) -> None:
    lines = summarize(make(notes=("\x1b[2J\nfiles  all fine",), provenance={"\x07": "\r"}))
    assert all(line.isprintable() for line in lines)
    assert "?[2J?files" in line_of(lines, "note")


def test_a_changed_byte_is_found_unless_it_need_not_be(make: Callable[..., Path]) -> None:
    bundle = make()
    (bundle / "weights.bin").write_bytes(bytes(1_499_999) + b"\x01")
    for action in (summarize, describe):
        with pytest.raises(InvalidBundle, match=r"weights\.bin: expected sha256"):
            action(bundle)
    assert "not checked" in line_of(summarize(bundle, check=False), "files")
    assert describe(bundle, check=False)["checked"] is False


def test_a_class_bank_that_is_not_the_bundles_is_refused(make: Callable[..., Path]) -> None:
    bundle = make()
    other = Vocabulary(("mug",), np.float32([[1, 0]]), 1.0)
    other.save(bundle / "classes.npz")
    with pytest.raises(InvalidBundle, match=r"classes\.npz"):
        summarize(bundle)
    with pytest.raises(InvalidBundle, match="the encoder's 8 numbers, found 2"):
        summarize(bundle, check=False)
    (bundle / "classes.npz").write_bytes(b"")
    with pytest.raises(InvalidVocabulary, match=r"classes\.npz"):
        summarize(bundle, check=False)


def test_a_class_bank_outside_the_manifest_is_refused(make: Callable[..., Path]) -> None:
    with pytest.raises(InvalidBundle, match=r"classes\.npz"):
        summarize(make(files={}))


def test_programs_get_the_same_as_json(make: Callable[..., Path]) -> None:
    bundle = make()
    found = json.loads(json.dumps(describe(bundle), allow_nan=False))
    assert found["checked"] is True
    assert found["bundle"] == str(bundle)
    assert found["classes"] == {
        "names": list(NAMES),
        "prompts": ["a {}.", "the {}"],
        "tag": "ViT-B-32/openai",
        "logit_scale": 100.0,
        "temperature": 1.25,
        "unknown_similarity": 0.375,
        "unknown_rule": "the 0.05 quantile",
    }
    assert found["encoder"]["groups"] == 32
    assert found["files"]["weights.bin"]["bytes"] == 1_500_000
    assert Manifest.from_dict(found).provenance == MANIFEST.provenance


def test_it_needs_numpy_only() -> None:
    code = (
        "import sys, crossmost.runtime.bundle_summary\n"
        "names = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "trainer = [name for name in sys.modules if name.startswith('crossmost.') and 'runtime' not in name]\n"
        "print(sorted(names & {'torch', 'onnx', 'onnxruntime', 'pydantic', 'typer'}), trainer)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout.strip() == "[] []", done.stderr
