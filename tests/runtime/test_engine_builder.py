import hashlib
import signal
import subprocess
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from crossmost.errors import InputError
from crossmost.export.engine_source import read_source
from crossmost.runtime import engine_builder
from crossmost.runtime.cuda_driver import CudaDriver, Gpu, probe_cuda
from crossmost.runtime.engine_builder import Engine, write_engine
from crossmost.runtime.engine_errors import EngineBuildFailed, InvalidEngineRequest
from crossmost.runtime.engine_facts import TensorFacts, check_plan, load_engine_facts
from crossmost.runtime.engine_options import EngineOptions, Profile
from crossmost.runtime.engine_packages import TensorRt, find_tensorrt

BATCH = Profile(1, 4, 16)
WIDTH = 32
SHAPES = {"patch_in": (3, WIDTH), "center_in": (3, WIDTH), "query": (WIDTH, WIDTH), "key": (WIDTH, WIDTH)}

ENCODER = """
<ir_version: 10, opset_import: ["" : 18]>
encoder (float[batch, 8, 4, 3] patches, float[batch, 8, 3] centers) => (float[batch, 32] embedding) {{
  p = Cast <to = {dtype}> (patches)
  c = Cast <to = {dtype}> (centers)
  each = MatMul (p, patch_in)
  two = Constant <value_ints = [2]> ()
  most = ReduceMax <keepdims = 0> (each, two)
  place = MatMul (c, center_in)
  tokens = Add (most, place)
  normal = LayerNormalization (tokens, scale, bias)
  q = MatMul (normal, query)
  k = MatMul (normal, key)
  turned = Transpose <perm = [0, 2, 1]> (k)
  alike = MatMul (q, turned)
  weights = Softmax <axis = -1> (alike)
  mixed = MatMul (weights, normal)
  one = Constant <value_ints = [1]> ()
  mean = ReduceMean <keepdims = 0> (mixed, one)
  embedding = Cast <to = 1> (mean)
}}
"""

LOOPED = """
<ir_version: 10, opset_import: ["" : 18, "crossmost" : 1]>
model (float[batch, points, 3] points) => (float[batch, 3] embedding) {
  embedding = crossmost.Farthest (points)
}
<opset_import: ["" : 18], domain: "crossmost">
Farthest (points) => (last) {
  count = Constant <value_int = 4> ()
  axis = Constant <value_ints = [1]> ()
  start = ReduceMean <keepdims = 0> (points, axis)
  last = Loop (count, , start) <body = step (int64 i, bool going, float[batch, 3] current)
    => (bool on, float[batch, 3] next) {
      always = Constant <value_int = 1> ()
      on = Cast <to = 9> (always)
      deep = Unsqueeze (current, axis)
      away = Sub (points, deep)
      size = Abs (away)
      next = ReduceMax <keepdims = 0> (size, axis)
  }>
}
"""


def build_engine(graph: Path, *arguments: Any, **options: Any) -> Engine:
    """Build from a graph whose facts are read from it."""
    return engine_builder.build_engine(graph, read_source(graph), *arguments, **options)


def write_encoder(folder: Path, precision: str, seed: int = 0) -> Path:
    """A small graph of the encoder's kind, its weights outside it."""
    folder.mkdir(exist_ok=True)
    dtype, onnx_dtype = {"fp32": (np.float32, TensorProto.FLOAT), "fp16": (np.float16, TensorProto.FLOAT16)}[
        precision
    ]
    model = parser.parse_model(ENCODER.format(dtype=int(onnx_dtype)))
    rng = np.random.default_rng(seed)
    for name, shape in {**SHAPES, "scale": (WIDTH,), "bias": (WIDTH,)}.items():
        weight = rng.normal(size=shape).astype(dtype)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    path = folder / "encoder.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    onnx.checker.check_model(path, full_check=True)
    return path


@pytest.fixture(scope="session")
def rtx() -> TensorRt:
    pytest.importorskip("tensorrt_rtx")
    found = find_tensorrt("tensorrt-rtx", probe=lambda: CudaDriver("", (), "not asked for"))
    assert isinstance(found, TensorRt), found
    return found


@pytest.fixture(scope="session", params=["fp32", "fp16"])
def precision(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def graph(precision, tmp_path_factory) -> Path:
    return write_encoder(tmp_path_factory.mktemp(precision), precision)


@pytest.fixture(scope="session")
def engine(graph, rtx) -> Engine:
    return build_engine(graph, rtx, BATCH)


@pytest.fixture(scope="session")
def half(tmp_path_factory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("half"), "fp16")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_tensorrt(rtx: TensorRt, module: Any = None) -> TensorRt:
    """TensorRT-RTX in the place of TensorRT, whose API it has: the path of an engine for one GPU."""
    gpu = Gpu("NVIDIA RTX 6000 Ada", "8.9")
    return replace(rtx, package="tensorrt", module=module or rtx.module, gpu=gpu, driver="13.0")


def test_both_precisions_build_without_a_gpu_and_the_facts_are_right(engine, graph, precision, rtx):
    facts, recipe = engine.facts, engine.facts.recipe
    assert (recipe.graph, recipe.package, recipe.version) == ("encoder.onnx", "tensorrt-rtx", rtx.version)
    assert recipe.onnx_sha256 == sha256(graph)
    assert recipe.weights == {"weights.bin": sha256(graph.with_name("weights.bin"))}
    assert (recipe.gpu, recipe.platform, recipe.profile) == (None, "any", {"batch": (1, 4, 16)})
    assert {"8.0", "8.6", "8.9", "12.0"} <= set(recipe.targets)
    assert facts.precision == precision
    assert facts.inputs == (
        TensorFacts("patches", "float32", (-1, 8, 4, 3)),
        TensorFacts("centers", "float32", (-1, 8, 3)),
    )
    assert facts.outputs == (TensorFacts("embedding", "float32", (-1, 32)),)
    assert len(engine.plan) == facts.plan_bytes > 0
    check_plan(engine.plan, facts)


def test_the_same_graph_gives_the_same_key_and_any_change_another(half, rtx, tmp_path):
    key = build_engine(half, rtx, BATCH).facts.key
    assert build_engine(half, rtx, BATCH).facts.key == key
    other_weights = write_encoder(tmp_path / "other", "fp16", seed=1)
    others = [
        build_engine(half, rtx, Profile(1, 4, 17)),
        build_engine(half, rtx, BATCH, EngineOptions(optimization_level=1)),
        build_engine(half, rtx, BATCH, EngineOptions(workspace_bytes=2**28)),
        build_engine(half, rtx, BATCH, EngineOptions(hardware_compatible=True)),
        build_engine(other_weights, rtx, BATCH),
    ]
    assert other_weights.read_bytes() == half.read_bytes()  # they differ in weights.bin alone
    assert len({key, *(engine.facts.key for engine in others)}) == len(others) + 1


def test_the_plan_is_written_pure_beside_its_facts(engine, tmp_path):
    path = write_engine(tmp_path / "engines", engine)
    assert path.name == f"{engine.facts.key}.engine"
    assert path.read_bytes() == engine.plan
    assert not engine.plan.startswith((b"{", b"PK"))
    assert load_engine_facts(path) == engine.facts
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{engine.facts.key}.json"]


def test_a_full_disk_or_a_file_in_the_way_leaves_no_half_engine(engine, tmp_path, full_disk):
    with full_disk(len(engine.plan) // 2), pytest.raises(OSError, match="large"):
        write_engine(tmp_path, engine)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "engines").write_text("a file")
    with pytest.raises(FileExistsError):
        write_engine(tmp_path / "engines", engine)


def test_a_loop_in_a_local_function_builds_with_dynamic_points(rtx, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(parser.parse_model(LOOPED).SerializeToString())
    with pytest.raises(InvalidEngineRequest, match="add --points min:opt:max"):
        build_engine(path, rtx, BATCH)
    facts = build_engine(path, rtx, BATCH, points=Profile(64, 128, 256)).facts
    assert facts.recipe.profile == {"batch": (1, 4, 16), "points": (64, 128, 256)}
    assert facts.inputs == (TensorFacts("points", "float32", (-1, -1, 3)),)


def test_sizes_of_an_axis_that_a_graph_has_not_are_no_part_of_its_engine(half, rtx):
    with_points = build_engine(half, rtx, BATCH, points=Profile(1, 2, 3))
    assert with_points.facts.key == build_engine(half, rtx, BATCH).facts.key


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (EngineOptions(strip_weights=True), "--strip-weights"),
        (EngineOptions(refittable=True), "--refittable"),
        (EngineOptions(version_compatible=True), "--version-compatible"),
    ],
)
def test_what_rtx_cannot_do_without_a_gpu_is_named(half, rtx, options, named):
    with pytest.raises(EngineBuildFailed, match=named):
        build_engine(half, rtx, BATCH, options)


def test_a_build_that_fails_tells_the_option_and_the_last_error(half, rtx):
    if probe_cuda().gpus:
        pytest.skip("refittable engines build on a GPU")
    with pytest.raises(EngineBuildFailed, match=r"encoder\.onnx with --refittable: .*Error Code 1") as caught:
        build_engine(half, as_tensorrt(rtx), BATCH, EngineOptions(refittable=True))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT-RTX itself makes no use of timings
def test_timings_are_kept_for_this_gpu_version_and_driver(half, rtx, tmp_path):
    tensorrt, options = as_tensorrt(rtx), EngineOptions(timing_cache=tmp_path / "timings")
    first = build_engine(half, tensorrt, BATCH, options)
    key = f"tensorrt-{rtx.version}-nvidia-rtx-6000-ada-8.9-cuda13.0"
    cache = tmp_path / "timings" / f"{key}.cache"
    assert (first.facts.timing_cache, first.notes) == (key, ())
    kept = cache.read_bytes()
    assert kept
    cache.write_bytes(b"damaged")
    again = build_engine(half, tensorrt, BATCH, options)
    assert again.facts.key == first.facts.key
    assert cache.read_bytes() == kept
    assert again.facts.recipe.gpu == tensorrt.gpu
    assert again.facts.recipe.targets == ()


def test_a_cache_folder_that_cannot_be_used_stops_before_the_build(half, rtx, tmp_path):
    (tmp_path / "timings").write_text("a file")
    with pytest.raises(EngineBuildFailed, match="--timing-cache"):
        build_engine(half, as_tensorrt(rtx), BATCH, EngineOptions(timing_cache=tmp_path / "timings"))


def test_rtx_measures_nothing_and_makes_no_cache(half, rtx, tmp_path):
    built = build_engine(half, rtx, BATCH, EngineOptions(timing_cache=tmp_path / "timings"))
    assert built.facts.timing_cache == ""
    assert not (tmp_path / "timings").exists()


def test_a_graph_that_is_not_understood_is_one_line(rtx, tmp_path):
    path = tmp_path / "odd.onnx"
    text = '<ir_version: 10, opset_import: ["" : 18, "odd" : 1]> g (float[2] x) => (float[2] y) { y = odd.Odd (x) }'
    path.write_bytes(parser.parse_model(text).SerializeToString())
    with pytest.raises(EngineBuildFailed, match=r"cannot read odd\.onnx: .*Odd") as caught:
        build_engine(path, rtx, BATCH)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"no graph at all", bytes(range(256))])
def test_what_is_no_graph_is_refused(rtx, tmp_path, content):
    if content is not None:
        (tmp_path / "encoder.onnx").write_bytes(content)
    with pytest.raises((InputError, EngineBuildFailed), match=r"encoder\.onnx") as caught:
        build_engine(tmp_path / "encoder.onnx", rtx, BATCH)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_named(half, rtx, tmp_path):
    (tmp_path / "encoder.onnx").write_bytes(half.read_bytes())
    with pytest.raises(InputError, match=r"weights\.bin"):
        build_engine(tmp_path / "encoder.onnx", rtx, BATCH)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of names in the module that nobody uses
def test_ctrl_c_cancels_the_build(half, rtx):
    class Interrupted(rtx.module.Builder):
        def build_serialized_network(self, network: Any, config: Any) -> Any:
            signal.raise_signal(signal.SIGINT)
            plan = super().build_serialized_network(network, config)
            assert plan is None  # TensorRT stopped at its next step
            return plan

    module = types.SimpleNamespace(**{**vars(rtx.module), "Builder": Interrupted})
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_engine(half, replace(rtx, module=module), BATCH)
    assert signal.getsignal(signal.SIGINT) is before


def test_builds_outside_the_main_thread(half, rtx):
    built: list[Engine] = []
    thread = threading.Thread(target=lambda: built.append(build_engine(half, rtx, BATCH)))
    thread.start()
    thread.join()
    assert len(built) == 1


def test_a_process_that_built_an_engine_ends_well(half, rtx):
    code = (
        "import sys; from pathlib import Path; from crossmost.runtime.engine_builder import GraphSource, build_engine;"
        "from crossmost.runtime.engine_options import Profile;"
        "from crossmost.runtime.engine_packages import find_tensorrt;"
        "source, found = GraphSource('0', {}, 'fp16'), find_tensorrt('tensorrt-rtx');"
        "build_engine(Path(sys.argv[1]), source, found, Profile(1, 4, 16)); print('built')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(half)], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "built", "")
