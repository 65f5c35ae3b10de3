"""What only some versions of TensorRT do, with stand-ins for those that are not installed."""

import signal
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onnx import parser

from crossmost.runtime import engine_builder
from crossmost.runtime.cuda_driver import Gpu
from crossmost.runtime.engine_errors import EngineBuildFailed, InvalidEngineRequest
from crossmost.runtime.engine_options import EngineOptions, Profile
from crossmost.runtime.engine_packages import TensorRt

HOPPER, TURING = Gpu("NVIDIA H100", "9.0"), Gpu("Tesla T4", "7.5")
BATCH = Profile(1, 8, 64)
FLAGS = ("TF32", "REFIT", "REFIT_IDENTICAL", "STRIP_PLAN", "VERSION_COMPATIBLE")

NETWORKS = {
    "10.13.3.9": IntEnum("Ten", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}),
    "11.4.0.106": IntEnum("Eleven", {"STRONGLY_TYPED": 0, "PREFER_JIT": 1, "PREFER_AOT": 2}),
    "99.0": IntEnum("Later", {"PREFER_JIT": 0}),
}


def build_engine(graph: Path, *arguments: Any, **options: Any) -> engine_builder.Engine:
    """Build from a graph that nothing is known of."""
    return engine_builder.build_engine(
        graph, engine_builder.GraphSource("0" * 64, {}, "fp32"), *arguments, **options
    )


class FakeTensorRt:
    """As much of TensorRT's API as a build touches; remembers what it was asked for."""

    def __init__(
        self, version: str = "10.13.3.9", *, plan: bytes | None = b"plan", flags: tuple[str, ...] = FLAGS
    ):
        self.__version__ = version
        self.plan = plan
        self.NetworkDefinitionCreationFlag = NETWORKS[version]
        self.BuilderFlag = Enum("BuilderFlag", list(flags))
        self.HardwareCompatibilityLevel = Enum("Level", ["NONE", "AMPERE_PLUS"])
        self.MemoryPoolType = Enum("Pool", ["WORKSPACE"])
        severity = Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])
        self.ILogger = type("ILogger", (), {"Severity": severity})
        self.IProgressMonitor = type("IProgressMonitor", (), {})
        self.set_flags: set[str] = set()
        self.cleared: set[str] = set()
        self.config = SimpleNamespace(
            set_flag=lambda flag: self.set_flags.add(flag.name),
            clear_flag=lambda flag: self.cleared.add(flag.name),
            add_optimization_profile=lambda shapes: self.profile_index,
            set_memory_pool_limit=lambda pool, size: setattr(self, "pool", (pool.name, size)),
        )
        self.profile_index = 0
        self.shapes: dict[str, tuple[Any, ...]] = {}
        self.axes: tuple[str | None, ...] = ("batch", None)
        self.parser_errors: list[Any] = []

    def Builder(self, logger: Any) -> Any:
        self.logger = logger
        profile = SimpleNamespace(set_shape=lambda name, *corners: self.shapes.update({name: corners}))
        return SimpleNamespace(
            create_network=self.create_network,
            create_builder_config=lambda: self.config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=self.build,
        )

    def create_network(self, flags: int) -> Any:
        self.network_flags = flags
        tensor = SimpleNamespace(
            name="patches",
            shape=tuple(7 if axis is None else -1 for axis in self.axes),
            dtype=SimpleNamespace(name="BF16"),
            get_dimension_name=lambda index: self.axes[index],
        )
        return SimpleNamespace(
            num_inputs=1, num_outputs=1, get_input=lambda index: tensor, get_output=lambda index: tensor
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        errors = self.parser_errors
        return SimpleNamespace(
            parse_from_file=lambda path: not errors, num_errors=len(errors), get_error=errors.__getitem__
        )

    def build(self, network: Any, config: Any) -> bytes | None:
        if self.plan is None:
            levels = self.ILogger.Severity
            self.logger.log(levels.ERROR, "the first")
            self.logger.log(levels.INTERNAL_ERROR, "Error Code 2:\n  no kernel  fits")
            self.logger.log(levels.WARNING, "only a warning")
        return self.plan


@pytest.fixture
def graph(tmp_path) -> Path:
    text = '<ir_version: 10, opset_import: ["" : 18]> g (float[batch, 7] x) => (float[batch, 7] y) { y = Abs (x) }'
    (tmp_path / "encoder.onnx").write_bytes(parser.parse_model(text).SerializeToString())
    return tmp_path / "encoder.onnx"


def tensorrt(module: Any, gpu: Gpu = HOPPER) -> TensorRt:
    return TensorRt("tensorrt", module, module.__version__, gpu, "13.0")


@pytest.mark.parametrize(("version", "flags"), [("10.13.3.9", 2), ("11.4.0.106", 1), ("99.0", 0)])
def test_strong_typing_goes_through_the_enum_of_the_version(graph, version, flags):
    fake = FakeTensorRt(version)
    engine = build_engine(graph, tensorrt(fake), BATCH)
    assert fake.network_flags == flags
    assert fake.cleared == {"TF32"}
    assert fake.set_flags == set()
    assert engine.plan == b"plan"
    assert engine.facts.recipe.gpu == HOPPER
    assert engine.facts.driver == "13.0"
    assert engine.facts.outputs[0].dtype == "bfloat16"


def test_plans_that_know_it_use_our_memory_alone_or_no_graph_could_capture_them(graph):
    fake = FakeTensorRt(flags=(*FLAGS, "REQUIRE_USER_ALLOCATION"))
    build_engine(graph, tensorrt(fake), BATCH)
    assert fake.set_flags == {"REQUIRE_USER_ALLOCATION"}


def test_the_profile_names_min_opt_and_max_of_every_dynamic_axis(graph):
    fake = FakeTensorRt()
    fake.axes = ("batch", "points", None)
    build_engine(graph, tensorrt(fake), BATCH, points=Profile(16, 32, 48))
    assert fake.shapes == {"patches": ((1, 16, 7), (8, 32, 7), (64, 48, 7))}


@pytest.mark.parametrize("axis", ["points", "", "tokens"])
def test_an_axis_without_sizes_is_named(graph, axis):
    fake = FakeTensorRt()
    fake.axes = ("batch", axis)
    with pytest.raises(InvalidEngineRequest, match=f"--{axis or 'axis 1'}"):
        build_engine(graph, tensorrt(fake), BATCH)


def test_sizes_that_tensorrt_refuses_are_named(graph):
    fake = FakeTensorRt()
    fake.profile_index = -1
    with pytest.raises(EngineBuildFailed, match="batch 1:8:64"):
        build_engine(graph, tensorrt(fake), BATCH)


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (EngineOptions(strip_weights=True), {"STRIP_PLAN", "REFIT_IDENTICAL"}),
        (EngineOptions(refittable=True), {"REFIT"}),
        (EngineOptions(strip_weights=True, refittable=True), {"STRIP_PLAN", "REFIT"}),
        (EngineOptions(version_compatible=True), {"VERSION_COMPATIBLE"}),
    ],
)
def test_options_become_flags_and_facts(graph, options, flags):
    fake = FakeTensorRt()
    engine = build_engine(graph, tensorrt(fake), BATCH, options)
    assert fake.set_flags == flags
    recorded = engine.facts.recipe.flags
    assert recorded.strip_weights == options.strip_weights
    assert recorded.refittable == options.refittable
    assert recorded.version_compatible == options.version_compatible


def test_level_and_workspace_reach_the_builder(graph):
    fake = FakeTensorRt()
    build_engine(graph, tensorrt(fake), BATCH, EngineOptions(optimization_level=5, workspace_bytes=2**30))
    assert fake.config.builder_optimization_level == 5
    assert fake.pool == ("WORKSPACE", 2**30)


def test_hardware_compatibility_depends_on_the_gpu(graph):
    options = EngineOptions(hardware_compatible=True)
    fake = FakeTensorRt()
    engine = build_engine(graph, tensorrt(fake), BATCH, options)
    assert fake.config.hardware_compatibility_level.name == "AMPERE_PLUS"
    assert engine.facts.recipe.flags.hardware == "ampere+"
    with pytest.raises(EngineBuildFailed, match=r"TensorRT 10\.13\.3\.9 does not know --hardware-compatible"):
        build_engine(graph, tensorrt(FakeTensorRt(), TURING), BATCH, options)  # this version lacks the level


def test_an_option_that_a_version_lacks_is_named(graph):
    fake = FakeTensorRt(flags=("TF32", "REFIT"))
    with pytest.raises(EngineBuildFailed, match="does not know --strip-weights: leave it out"):
        build_engine(graph, tensorrt(fake), BATCH, EngineOptions(strip_weights=True))


def test_a_failed_build_gives_the_last_error_and_the_options(graph):
    with pytest.raises(EngineBuildFailed) as caught:
        build_engine(graph, tensorrt(FakeTensorRt(plan=None)), BATCH)
    assert (
        str(caught.value) == "TensorRT 10.13.3.9 could not build encoder.onnx: Error Code 2: no kernel fits"
    )
    options = EngineOptions(version_compatible=True, hardware_compatible=True)
    with pytest.raises(
        EngineBuildFailed, match=r"encoder\.onnx with --version-compatible and --hardware-compatible: "
    ):
        build_engine(graph, tensorrt(FakeTensorRt(plan=None)), BATCH, options)


def test_a_parser_error_names_the_node(graph):
    fake = FakeTensorRt()
    fake.parser_errors = [
        SimpleNamespace(
            desc=lambda: "not\nsupported", node_operator=lambda: "Loop", node_name=lambda: "steps"
        )
    ]
    with pytest.raises(EngineBuildFailed, match=r"cannot read encoder\.onnx: Loop steps: not supported"):
        build_engine(graph, tensorrt(fake), BATCH)


def test_a_builder_that_does_not_start_is_one_line(graph):
    class Refusing(FakeTensorRt):
        def Builder(self, logger: Any) -> Any:
            logger.log(self.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(EngineBuildFailed, match=r"TensorRT 10\.13\.3\.9 cannot start: .*error: 35"):
        build_engine(graph, tensorrt(Refusing()), BATCH)


@pytest.mark.parametrize("plan", [b"finished all the same", None])
def test_ctrl_c_wins_whatever_the_build_ends_with(graph, plan):
    class Interrupted(FakeTensorRt):
        def build(self, network: Any, config: Any) -> bytes | None:
            assert config.progress_monitor.step_complete("Timing tactics", 0)
            signal.raise_signal(signal.SIGINT)
            assert not config.progress_monitor.step_complete("Timing tactics", 1)
            return super().build(network, config)

    with pytest.raises(KeyboardInterrupt):
        build_engine(graph, tensorrt(Interrupted(plan=plan)), BATCH)
