import contextlib
import copy
import dataclasses
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossmost.runtime.cuda_driver import Gpu
from crossmost.runtime.engine_facts import (
    EngineFacts,
    EngineFlags,
    EngineRecipe,
    InvalidEngine,
    TensorFacts,
    check_plan,
    engine_key,
    load_engine_facts,
    this_platform,
)

PLAN = b"ftrt" + bytes(range(64))
RECIPE = EngineRecipe(
    graph="encoder.onnx",
    onnx_sha256="a" * 64,
    weights={"weights.bin": "b" * 64},
    package="tensorrt",
    version="10.13.3.9",
    gpu=Gpu("NVIDIA A100-SXM4-80GB", "8.0"),
    targets=(),
    platform="linux-x86_64",
    flags=EngineFlags(optimization_level=3),
    profile={"batch": (1, 8, 64)},
)
FACTS = EngineFacts(
    recipe=RECIPE,
    precision="fp16",
    inputs=(
        TensorFacts("patches", "float32", (-1, 64, 32, 3)),
        TensorFacts("centers", "float32", (-1, 64, 3)),
    ),
    outputs=(TensorFacts("embedding", "float32", (-1, 512)),),
    driver="12.6",
    timing_cache="",
    plan_bytes=len(PLAN),
    plan_sha256=hashlib.sha256(PLAN).hexdigest(),
)
ELSEWHERE = {
    "graph": "model.onnx",
    "onnx_sha256": "c" * 64,
    "weights": {"weights.bin": "c" * 64},
    "package": "tensorrt-rtx",
    "version": "10.13.3.10",
    "gpu": Gpu("NVIDIA A100-SXM4-80GB", "8.6"),
    "targets": ("8.0",),
    "platform": "linux-aarch64",
    "profile": {"batch": (1, 8, 65)},
}
OTHER_FLAGS = {
    "version_compatible": True,
    "hardware": "ampere+",
    "strip_weights": True,
    "refittable": True,
    "optimization_level": 4,
    "workspace_bytes": 2**28,
}


def paths(value: object, at: tuple = ()) -> list[tuple]:
    """The way to every value in nested dicts and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, item in inner for path in [(*at, key), *paths(item, (*at, key))]]


PLAIN = json.loads(json.dumps(FACTS.to_dict()))


def test_facts_survive_json():
    assert EngineFacts.from_dict(PLAIN) == FACTS


def test_facts_without_a_gpu_survive_json():
    recipe = dataclasses.replace(RECIPE, gpu=None, targets=("8.6", "12.0"))
    facts = dataclasses.replace(FACTS, recipe=recipe)
    assert EngineFacts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts


def test_equal_recipes_have_equal_keys_whatever_the_order_of_their_entries():
    left = dataclasses.replace(RECIPE, profile={"batch": (1, 8, 64), "points": (512, 1024, 4096)})
    right = dataclasses.replace(RECIPE, profile={"points": (512, 1024, 4096), "batch": (1, 8, 64)})
    assert engine_key(left) == engine_key(right)
    assert engine_key(RECIPE) == engine_key(copy.deepcopy(RECIPE))


def test_every_part_of_a_recipe_changes_the_key():
    assert ELSEWHERE.keys() | {"flags"} == {field.name for field in dataclasses.fields(EngineRecipe)}
    assert OTHER_FLAGS.keys() == {field.name for field in dataclasses.fields(EngineFlags)}
    others = [dataclasses.replace(RECIPE, **{name: value}) for name, value in ELSEWHERE.items()]
    for name, value in OTHER_FLAGS.items():
        others.append(dataclasses.replace(RECIPE, flags=dataclasses.replace(RECIPE.flags, **{name: value})))
    keys = {engine_key(recipe) for recipe in (RECIPE, *others)}
    assert len(keys) == len(others) + 1
    assert all(len(key) == 16 for key in keys)


@given(st.sampled_from(paths(PLAIN)), st.sampled_from([None, 7, 1.5, True, "x", [], {}, [1], {"x": 1}]))
def test_no_changed_value_passes_unseen(path, value):
    changed = copy.deepcopy(PLAIN)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    kept = (type(holder[path[-1]]), holder[path[-1]]) == (type(value), value)
    holder[path[-1]] = value
    with contextlib.suppress(InvalidEngine):
        facts = EngineFacts.from_dict(changed)
        # what the recipe does not cover may hold another value of its type
        assert kept or path[0] not in ("recipe", "schema", "key")
        assert json.loads(json.dumps(facts.to_dict())) == changed


@pytest.mark.parametrize("path", [path for path in paths(PLAIN) if isinstance(path[-1], str)])
def test_every_field_is_needed(path):
    changed = copy.deepcopy(PLAIN)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    with pytest.raises(InvalidEngine):
        EngineFacts.from_dict(changed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "update crossmost or rebuild"),
        ({"extra": 1}, "no field extra"),
        ({"key": "0" * 16}, "changed after the build"),
        ({"plan_bytes": "many"}, "plan_bytes: expected int"),
        ({"outputs": [{"name": "embedding", "dtype": "float32", "shape": "x"}]}, r"outputs\[0\].shape"),
    ],
)
def test_the_message_names_what_is_wrong(change, said):
    with pytest.raises(InvalidEngine, match=said):
        EngineFacts.from_dict({**PLAIN, **change})


def test_the_sidecar_is_found_by_the_name_of_the_engine(tmp_path):
    (tmp_path / "abc.json").write_text(json.dumps(PLAIN))
    assert load_engine_facts(tmp_path / "abc.engine") == FACTS


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 5000, b'{"schema": 1}', bytes(range(256))],
)
def test_a_damaged_sidecar_is_one_line_with_its_name(tmp_path, content):
    if content is not None:
        (tmp_path / "abc.json").write_bytes(content)
    with pytest.raises(InvalidEngine, match=r"abc\.json") as caught:
        load_engine_facts(tmp_path / "abc.engine")
    assert "\n" not in str(caught.value)


def test_a_changed_plan_is_refused():
    check_plan(PLAN, FACTS)
    with pytest.raises(InvalidEngine, match="expected 68 bytes, found 67"):
        check_plan(PLAN[1:], FACTS)
    with pytest.raises(InvalidEngine, match="sha256"):
        check_plan(PLAN[:-1] + b"\0", FACTS)


def test_the_platform_has_system_and_processor():
    system, _, processor = this_platform().partition("-")
    assert system
    assert processor == processor.lower() != ""
