import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import parser

from crossmost.runtime import doctor
from crossmost.runtime.child_process import ProcessFailed
from crossmost.runtime.cuda_driver import CudaDriver, Gpu
from crossmost.runtime.doctor import Diagnosis, diagnose
from crossmost.runtime.manifest import Encoder, InvalidBundle, Manifest, hash_file
from crossmost.runtime.vocabulary import Vocabulary

ORIN = Gpu("NVIDIA Orin", "8.7")
NO_DRIVER = CudaDriver("", (), "no CUDA driver on this machine")
CPU = {"CPUExecutionProvider": ""}
GRAPH = """
<ir_version: 10, opset_import: ["" : 18]>
encoder (float[batch, 8, 4, 3] patches, float[batch, 8, 3] centers) => (float[batch, 3] embedding) {
  one = Constant <value_ints = [1]> ()
  embedding = ReduceMean <keepdims = 0> (centers, one)
}
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """As much of a bundle as a backend wants."""
    folder = tmp_path / "a.bundle"
    folder.mkdir()
    (folder / "encoder.onnx").write_bytes(parser.parse_model(GRAPH).SerializeToString())
    Vocabulary.create(["mug", "bowl"], np.eye(2, 3), logit_scale=100.0).save(folder / "classes.npz")
    write_manifest(folder)
    return folder


def write_manifest(folder: Path, *more: str) -> None:
    """Of the files as they are."""
    encoder = Encoder("tiny", 64, 8, 4, 3, "z", 0.4, 3)
    files = {name: hash_file(folder / name) for name in ("encoder.onnx", "classes.npz", *more)}
    manifest = Manifest(1, "0.1.0", encoder, "fp32", 18, 10, files)
    (folder / "manifest.json").write_text(json.dumps(manifest.to_dict()))


@pytest.fixture
def machine(monkeypatch, tmp_path) -> Any:
    """Pretend to be a machine: its driver, its distributions, and what other processes answer."""

    asked: list[tuple[Any, ...]] = []

    def pretend(
        driver: CudaDriver = NO_DRIVER,
        versions: dict[str, str] | None = None,
        **answers: Any,
    ) -> None:
        def ask(code: str, *arguments: str, seconds: float | None = None) -> Any:
            asked.append((*arguments, seconds))
            answer = answers["providers" if code == doctor.PROVIDERS else "selection"]
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(doctor, "probe_cuda", lambda: driver)
        monkeypatch.setattr(doctor, "installed", lambda: versions or {"numpy": "2.0"})
        monkeypatch.setattr(doctor, "ask", ask)
        monkeypatch.setenv("CROSSMOST_CACHE", str(tmp_path / "cache"))

    pretend.asked = asked  # type: ignore[attr-defined]
    return pretend


def states(found: Diagnosis, name: str) -> list[tuple[str, str]]:
    return [(finding.state, finding.text) for finding in found.findings if finding.name == name]


def test_this_machine_is_described_without_importing_anything_heavy():
    code = (
        "import sys; from crossmost.runtime.doctor import diagnose; print('\\n'.join(diagnose().lines()));"
        "heavy = {'torch', 'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'tokenizers', 'cuda'};"
        "assert not heavy & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    for said in (
        "Python",
        "platform",
        "GPU",
        "numpy",
        "ONNX Runtime",
        "CPUExecutionProvider",
        "TensorRT-RTX",
    ):
        assert said in done.stdout


def test_driver_and_gpus(machine):
    machine(CudaDriver("12.6", (ORIN, Gpu("second", "8.6")), ""))
    found = diagnose()
    assert states(found, "NVIDIA driver") == [("ok", "runs CUDA up to 12.6")]
    assert states(found, "GPU 0") == [("ok", str(ORIN))]
    assert len(states(found, "GPU 1")) == 1
    assert states(found, "GPU") == []


@pytest.mark.parametrize(("version", "state"), [("", "none"), ("12.6", "bad")])
def test_no_driver_is_a_fact_and_a_broken_one_a_fault(machine, version, state):
    machine(CudaDriver(version, (), "it offers no GPU"))
    assert states(diagnose(), "GPU") == [(state, "it offers no GPU")]


def test_what_is_missing_says_what_it_is_for(machine):
    machine()
    found = diagnose()
    for name, hint in (
        ("ONNX Runtime", "crossmost[cpu]"),
        ("TensorRT", "crossmost[tensorrt]"),
        ("torch", "without"),
    ):
        ((state, text),) = states(found, name)
        assert state == "none"
        assert hint in text


def test_both_distributions_of_onnxruntime_are_a_fault(machine):
    machine(versions={"numpy": "2.0", "onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.0"}, providers=CPU)
    bad = [text for state, text in states(diagnose(), "ONNX Runtime") if state == "bad"]
    assert bad == [
        "onnxruntime and onnxruntime-gpu share a folder, and the first one wins: "
        'pip uninstall onnxruntime onnxruntime-gpu, then pip install "crossmost[gpu]"'
    ]


def test_a_provider_that_is_listed_and_cannot_be_loaded(machine):
    why = "libcublas.so.13: cannot open shared\nobject file"
    providers = {"CUDAExecutionProvider": why, "TensorrtExecutionProvider": why, **CPU}
    machine(versions={"numpy": "2.0", "onnxruntime-gpu": "1.31.1"}, providers=providers)
    found = states(diagnose(), "ORT provider")
    assert [state for state, _ in found] == ["bad", "none", "ok"]
    assert "libcublas.so.13: cannot open shared object file" in found[0][1]


def test_an_onnxruntime_that_crashes_is_a_fault(machine):
    crash = ProcessFailed("the process was ended by signal 11")
    machine(versions={"numpy": "2.0", "onnxruntime": "1.31.1"}, providers=crash)
    assert ("bad", f"cannot be imported: {crash}") in states(diagnose(), "ONNX Runtime")


def test_engines_in_the_cache_are_counted(machine, tmp_path):
    machine()
    assert states(diagnose(), "engine cache")[0][0] == "none"
    folder = tmp_path / "cache" / "engines"
    folder.mkdir(parents=True)
    (folder / "a.engine").write_bytes(b"1234")
    assert states(diagnose(), "engine cache") == [("ok", f"{folder}: 1 engines, 4 bytes")]


def test_a_bundle_is_checked_and_its_backend_named(bundle):
    found = diagnose(bundle)
    ((state, text),) = states(found, "bundle")
    assert (state, "intact" in text) == ("ok", True)
    assert found.choice is not None
    assert found.choice.used
    assert found.usable
    assert set(found.choice.refused) | {found.choice.used} == set(doctor.BACKENDS)
    assert any(f"would be used         {found.choice.used}" in line for line in found.lines())
    assert json.loads(json.dumps(found.to_dict()))["choice"]["used"] == found.choice.used


def test_why_the_better_ones_were_not_taken_and_the_rest_not_tried(machine, bundle):
    refused = {"tensorrt": "not installed"}
    notes = ["sampling and grouping stay on the CPU, which is slower: no cuda-python"]
    machine(
        selection={"used": "tensorrt-rtx", "why": "the best that works", "refused": refused, "notes": notes}
    )
    found = diagnose(bundle)
    choice = found.choice
    assert choice is not None
    assert choice.refused["tensorrt"] == "not installed"
    assert choice.refused["onnxruntime-cpu"] == "not tried: tensorrt-rtx comes first"
    assert f"    but {notes[0]}" in found.lines()


@pytest.mark.parametrize(("rebuild", "seconds"), [(False, doctor.SECONDS), (True, doctor.BUILD_SECONDS)])
def test_an_engine_is_built_only_where_that_is_asked_for(machine, bundle, rebuild, seconds):
    machine(selection={"used": "tensorrt", "why": "the best one that works here", "refused": {}})
    assert diagnose(bundle, rebuild=rebuild).usable
    assert machine.asked == [(str(bundle), json.dumps(rebuild), seconds)]


@pytest.mark.parametrize(("used", "usable"), [("tensorrt-rtx", True), ("onnxruntime-cpu", False)])
def test_an_engine_that_was_asked_for_and_not_built_is_a_fault(machine, bundle, used, usable):
    machine(
        selection={"used": used, "why": "the best one that works here", "refused": {"tensorrt": "no GPU"}}
    )
    found = diagnose(bundle, rebuild=True)
    assert found.usable == usable
    assert any(line.startswith("BAD rebuild ") for line in found.lines()) != usable


def test_a_damaged_bundle_is_a_fault_and_a_missing_one_an_error(machine, bundle, tmp_path: Path):
    damaged = tmp_path / "b"
    shutil.copytree(bundle, damaged)
    (damaged / "encoder.onnx").write_bytes(b"")
    machine(selection={"used": "onnxruntime-cpu", "why": "it would run", "refused": {}})
    found = diagnose(damaged)
    assert states(found, "bundle")[0][0] == "bad"
    assert found.lines()[-1] == f"BAD would be used         nothing: {doctor.DAMAGED}"
    assert not found.usable
    with pytest.raises(InvalidBundle):
        diagnose(tmp_path / "none")


def test_a_damaged_file_that_the_classifier_does_without_is_told_and_no_obstacle(machine, bundle):
    (bundle / "text_encoder.onnx").write_bytes(b"graph")
    write_manifest(bundle, "text_encoder.onnx")
    (bundle / "text_encoder.onnx").write_bytes(b"other")
    machine(selection={"used": "onnxruntime-cpu", "why": "it would run", "refused": {}})
    found = diagnose(bundle)
    assert states(found, "bundle")[0][0] == "ok"
    ((state, text),) = states(found, "beside it")
    assert state == "bad"
    assert "text_encoder.onnx" in text
    assert found.usable


def test_a_bundle_that_the_classifier_would_refuse_is_a_fault(machine, bundle):
    """Its files are those of its manifest, and its classes are another encoder's."""
    machine(selection={"used": "onnxruntime-cpu", "why": "it would run", "refused": {}})
    Vocabulary.create(["mug", "bowl"], np.eye(2, 5), logit_scale=100.0).save(bundle / "classes.npz")
    write_manifest(bundle)
    found = diagnose(bundle)
    ((state, text),) = states(found, "bundle")
    assert (state, "the encoder's 3 numbers, found 5" in text) == ("bad", True)
    assert not found.usable


def test_an_intact_bundle_that_nothing_can_run_is_not_usable(machine, bundle):
    machine(selection={"used": "", "why": "no backend", "refused": {}})
    found = diagnose(bundle)
    assert any("would be used         nothing: no backend" in line for line in found.lines())
    assert not found.usable
    assert diagnose().usable


def test_a_crash_while_choosing_is_told(machine, bundle):
    machine(selection=ProcessFailed("the process was ended by signal 11"))
    choice = diagnose(bundle).choice
    assert choice is not None
    assert (choice.used, "signal 11" in choice.why) == ("", True)
