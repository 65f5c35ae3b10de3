import dataclasses
import shlex
from typing import Any

import pytest

from crossmost.runtime.cuda_driver import Gpu
from crossmost.runtime.engine_facts import EngineFacts, EngineFlags, EngineRecipe
from crossmost.runtime.engine_preflight import Machine, preflight, rebuild_command

A100, A10, T4 = Gpu("NVIDIA A100", "8.0"), Gpu("NVIDIA A10", "8.6"), Gpu("Tesla T4", "7.5")
HERE = Machine("tensorrt", "10.13.3.9", A100, "linux-x86_64")
FILES = {"encoder.onnx": "a" * 64, "weights.bin": "b" * 64, "classes.npz": "c" * 64}


def make_facts(flags: EngineFlags | None = None, **changes: Any) -> EngineFacts:
    recipe = EngineRecipe(
        graph="encoder.onnx",
        onnx_sha256="a" * 64,
        weights={"weights.bin": "b" * 64},
        package="tensorrt",
        version="10.13.3.9",
        gpu=A100,
        targets=(),
        platform="linux-x86_64",
        flags=flags or EngineFlags(),
        profile={"batch": (1, 8, 64)},
    )
    return EngineFacts(dataclasses.replace(recipe, **changes), "fp16", (), (), "12.6", "", 1, "d" * 64)


def rtx(**changes: Any) -> EngineFacts:
    portable = {"gpu": None, "targets": ("8.6", "12.0"), "platform": "any"}
    return make_facts(package="tensorrt-rtx", version="1.7.1.116", **{**portable, **changes})


def why_not(facts: EngineFacts, **changes: Any) -> str | None:
    return preflight(facts, dataclasses.replace(HERE, **changes))


def test_an_engine_runs_where_it_was_built():
    assert preflight(make_facts(), HERE, files=FILES) is None


def test_another_card_of_the_same_capability_will_do():
    assert why_not(make_facts(), gpu=Gpu("NVIDIA A100-SXM4-80GB", "8.0")) is None


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({"package": "", "version": ""}, "needs TensorRT 10.13.3.9, found neither"),
        ({"package": "tensorrt-rtx", "version": "1.7.1.116"}, "found TensorRT-RTX 1.7.1.116"),
        ({"version": "10.13.3.10"}, "needs TensorRT 10.13.3.9 exactly, found 10.13.3.10"),
        ({"gpu": None}, "needs an NVIDIA GPU"),
        ({"gpu": A10}, "built for NVIDIA A100 (compute capability 8.0), found NVIDIA A10"),
        ({"platform": "linux-aarch64"}, "needs linux-x86_64, found linux-aarch64"),
    ],
)
def test_every_difference_has_its_reason_and_the_command(here, said):
    why = why_not(make_facts(), **here)
    assert why is not None
    assert said in why
    package = here.get("package") or "tensorrt"
    assert why.endswith(f"crossmost export RUN --out BUNDLE --overwrite --fp16 --{package} --batch 1:8:64"), (
        why
    )
    assert "\n" not in why


@pytest.mark.parametrize("name", ["encoder.onnx", "weights.bin"])
def test_an_engine_of_other_weights_is_refused(name):
    why = preflight(make_facts(), HERE, files={**FILES, name: "0" * 64})
    assert why is not None
    assert f"another {name}" in why


@pytest.mark.parametrize(
    ("built", "found", "runs"),
    [
        ("10.3.0.30", "10.13.3.9", True),
        ("10.13.3.9", "11.4.0.106", True),
        ("11.0.0.114", "11.4.0.106", True),
        ("10.13.3.9", "10.3.0.30", False),
        ("11.4.0.106", "11.0.0.114", False),
        ("10.13.3.9", "12.0.0.1", False),
        ("11.4.0.106", "12.0.0.1", False),
    ],
)
def test_version_compatible_engines_run_on_later_versions_only(built, found, runs):
    compatible = make_facts(EngineFlags(version_compatible=True), version=built)
    assert (why_not(compatible, version=found) is None) == runs
    assert why_not(make_facts(version=built), version=found) is not None


@pytest.mark.parametrize(("gpu", "runs"), [(A10, True), (Gpu("NVIDIA B200", "10.0"), True), (T4, False)])
def test_hardware_compatible_engines_run_from_ampere_on(gpu, runs):
    facts = make_facts(EngineFlags(hardware="ampere+"))
    assert (why_not(facts, gpu=gpu) is None) == runs


def test_engines_for_one_capability_stay_with_it():
    facts = make_facts(EngineFlags(hardware="same-compute-capability"), gpu=T4)
    assert why_not(facts, gpu=Gpu("Quadro RTX 8000", "7.5")) is None
    assert why_not(facts, gpu=A100) is not None


@pytest.mark.parametrize(("gpu", "runs"), [(A10, True), (Gpu("RTX 5090", "12.0"), True), (A100, False)])
def test_portable_engines_run_on_their_targets_on_any_platform(gpu, runs):
    here = Machine("tensorrt-rtx", "1.7.1.116", gpu, "win32-amd64")
    assert (preflight(rtx(), here) is None) == runs


def test_the_command_asks_for_what_the_engine_has():
    flags = EngineFlags(version_compatible=True, hardware="ampere+", strip_weights=True, refittable=True)
    facts = make_facts(flags, profile={"batch": (1, 8, 64), "points": (512, 1024, 4096)})
    words = shlex.split(rebuild_command(facts, "runs/my run", "out", "tensorrt"))
    assert words[:5] == ["crossmost", "export", "runs/my run", "--out", "out"]
    assert {"--fp16", "--tensorrt", "--version-compatible", "--hardware-compatible"} <= set(words)
    assert {"--strip-weights", "--refittable"} <= set(words)
    assert words[words.index("--points") + 1] == "512:1024:4096"
    assert not {"--int8", "--text-encoder"} & set(words)
    same = rebuild_command(facts, "RUN", "BUNDLE", "tensorrt", {"encoder.int8.onnx", "text_encoder.onnx"})
    assert {"--int8", "--text-encoder"} <= set(shlex.split(same))
    plain = rebuild_command(
        dataclasses.replace(make_facts(), precision="fp32"), "RUN", "BUNDLE", "tensorrt-rtx"
    )
    assert "--tensorrt-rtx" in plain
    assert "--fp" not in plain
    assert "compatible" not in plain
