"""Clouds in, predictions out: what a sensor can deliver, what a user can ask, and what may not change the answer."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossmost.runtime import BackendUnavailable, Prediction
from crossmost.runtime import test_time_cache as memory
from crossmost.runtime.backend import Embedded, EmbeddingFailed
from crossmost.runtime.class_bank import load_class_bank
from crossmost.runtime.classifier import CLOUDS_AT_ONCE, Classifier
from crossmost.runtime.errors import InvalidCall
from crossmost.runtime.manifest import InvalidBundle
from crossmost.runtime.preprocess import InvalidCloud
from crossmost.runtime.selection import InvalidChoice
from crossmost.runtime.text_encoder import InvalidTextEncoder
from crossmost.runtime.vocabulary import InvalidVocabulary, Vocabulary

SHAPES = ("bottle", "chair", "monitor", "table")
FEW = settings(max_examples=15, deadline=None)


def load(bundle, **options):
    return Classifier.load(bundle, "onnxruntime-cpu", threads=1, **options)


@pytest.fixture(scope="module")
def shared(exported):
    """A classifier that no test changes."""
    return load(exported)


@pytest.fixture
def own(exported):
    """A classifier a test may change."""
    with load(exported) as classifier:
        yield classifier


def answers(predictions):
    return [prediction.to_dict() for prediction in predictions]


def cloud(count=300, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3)) * [1, 2, 3]


# What comes out.


def test_one_cloud_gives_a_list_with_one_prediction(shared, shapes_of):
    (found,) = shared(shapes_of(1)[0])
    assert isinstance(found, Prediction)
    assert found.label == found.top_k[0][0]
    assert found.score == found.top_k[0][1]
    assert set(dict(found.top_k)) == set(SHAPES)
    assert sum(dict(found.top_k).values()) == pytest.approx(1)
    assert [score for _, score in found.top_k] == sorted(dict(found.top_k).values(), reverse=True)
    assert np.linalg.norm(found.embedding) == pytest.approx(1, abs=1e-5)
    assert {"prepare", "group", "encode", "total"} <= set(found.timings)
    with pytest.raises(ValueError, match="read-only"):
        found.embedding[0] = 1


def test_it_knows_the_shapes_it_was_trained_for(shared, shapes_of):
    found = [prediction.label for prediction in shared(shapes_of(40))]
    assert np.mean([label == SHAPES[index % 4] for index, label in enumerate(found)]) > 0.6


def test_scores_are_those_of_the_bundles_class_bank(shared, exported, shapes_of):
    clouds = shapes_of(8)
    bank = load_class_bank(exported / "classes.npz")
    label, score, unknown = bank.predict(shared.embed(clouds))
    found = shared(clouds)
    assert [prediction.label for prediction in found] == [bank.vocabulary.names[index] for index in label]
    assert [prediction.score for prediction in found] == score.tolist()
    assert [prediction.unknown for prediction in found] == unknown.tolist()


def test_the_threshold_tells_the_unknown(own, exported, shapes_of):
    bank, clouds = load_class_bank(exported / "classes.npz"), shapes_of(8)
    similarities = sorted(prediction.similarity for prediction in own(clouds))
    own.set_classes(replace(bank, unknown_similarity=similarities[4]))
    found = own(clouds)
    assert [each.unknown for each in found] == [each.similarity < similarities[4] for each in found]
    assert 0 < sum(each.unknown for each in found) < len(found)
    own.set_classes(replace(bank, unknown_similarity=None))
    assert not any(each.unknown for each in own(clouds))


def test_as_many_classes_are_listed_as_were_asked_for(shared):
    assert len(shared(cloud(), top_k=2)[0].top_k) == 2
    assert len(shared(cloud(), top_k=99)[0].top_k) == 4
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(InvalidCall, match="top_k"):
            shared(cloud(), top_k=wrong)
        with pytest.raises(InvalidCall, match="batch as an integer from 1 on"):
            shared.warmup(wrong)
    assert len(shared(cloud(), top_k=np.int64(2))[0].top_k) == 2


def test_what_is_no_memory_and_no_classes_is_refused_where_it_is_given(exported, own):
    with pytest.raises(memory.InvalidCache, match="expected a TestTimeCache or None, found True"):
        load(exported, cache=True)
    with pytest.raises(memory.InvalidCache, match="found 3"):
        own.enable_cache(3)
    for wrong in (None, 3):
        with pytest.raises(InvalidVocabulary, match="expected class names, a vocabulary, a bank or a path"):
            own.set_classes(wrong)
    assert own.cache is None
    assert own(cloud())[0].label in own.classes


def test_a_backend_that_is_closed_meanwhile_is_an_invalid_call(own, monkeypatch):
    backend = own._backend
    embed = backend.embed

    def close_first(clouds):
        own.close()
        return embed(clouds)

    monkeypatch.setattr(backend, "embed", close_first)
    with pytest.raises(InvalidCall, match="closed one"):
        own(cloud())


def test_lists_and_batches_of_every_size(shared):
    assert shared([]) == []
    assert shared.embed([]).shape == (0, 16)
    batch = np.stack([cloud(seed=seed) for seed in range(3)])
    assert answers(shared(batch)) == answers(shared(list(batch))) == answers(shared([*batch.tolist()]))
    many = [cloud(20 + index) for index in range(CLOUDS_AT_ONCE + 5)]
    found = shared(many)
    assert len(found) == len(many)
    np.testing.assert_allclose(found[-1].embedding, shared(many[-1])[0].embedding, atol=1e-5)


def test_embeddings_are_those_of_the_predictions(shared, shapes_of):
    clouds = shapes_of(5)
    rows = shared.embed(clouds)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [prediction.embedding for prediction in shared(clouds)])


def test_it_agrees_with_model_onnx_and_raw_points(shared, exported, shapes_of):
    from crossmost.runtime.onnx_session import create_session
    from crossmost.runtime.preprocess import thin

    session = create_session(exported / "model.onnx", threads=1)
    for points in shapes_of(4):
        expected = session.run(None, {"points": thin(points, 64)[None]})[0][0]
        np.testing.assert_allclose(shared.embed(thin(points, 64))[0], expected, atol=1e-4)


# What goes in: everything a sensor can deliver.

PLANE = cloud() * [1, 1, 0]
LINE = cloud() * [1, 0, 0]
CLOUDS = {
    "one point": cloud(1),
    "two points": cloud(2),
    "fewer than K": cloud(3),
    "fewer than G": cloud(6),
    "all equal": np.full((50, 3), 0.1),
    "all zero": np.zeros((50, 3), np.float32),
    "a plane": PLANE,
    "a line": LINE,
    "huge": cloud() * 1e200,
    "tiny": cloud() * 1e-200,
    "georeferenced": cloud() + np.array([3.5e5, 5.6e6, 1e3]),
    "float16": cloud().astype(np.float16),
    "float32": cloud().astype(np.float32),
    "int64": (cloud() * 100).astype(np.int64),
    "uint8": (np.abs(cloud()) * 20).astype(np.uint8),
    "big-endian": cloud().astype(">f4"),
    "Fortran order": np.asfortranarray(cloud()),
    "every other point": cloud()[::2],
    "intensity": np.hstack([cloud(), np.full((300, 1), np.nan)]),
    "rgb": np.hstack([cloud(), np.ones((300, 3))]),
    "nested lists": cloud(20).tolist(),
}


@pytest.mark.parametrize("name", CLOUDS)
def test_every_cloud_has_an_answer(shared, name):
    (found,) = shared(CLOUDS[name])
    assert found.label in SHAPES
    assert np.isfinite(found.embedding).all()
    assert 0 < found.score <= 1
    assert found.dropped == 0


@pytest.mark.parametrize(
    "name", ["intensity", "rgb", "float32", "Fortran order", "huge", "tiny", "georeferenced"]
)
def test_what_does_not_matter_does_not(shared, name):
    np.testing.assert_allclose(shared.embed(CLOUDS[name]), shared.embed(cloud()), atol=1e-4)


def test_a_read_only_cloud_is_left_as_it_is(shared):
    points = cloud().astype(np.float32)
    before = points.copy()
    points.flags.writeable = False
    shared(points)
    np.testing.assert_array_equal(points, before)


def test_a_million_points(shared):
    points = np.random.default_rng(0).random((1_000_000, 3), dtype=np.float32)
    (found,) = shared(points)
    assert np.isfinite(found.embedding).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_points_are_dropped_and_counted(shared, bad):
    points = cloud()
    points[[5, 70, 71], [0, 1, 2]] = bad
    (found,) = shared(points)
    assert found.dropped == 3
    np.testing.assert_array_equal(found.embedding, shared(np.delete(points, [5, 70, 71], 0))[0].embedding)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((0, 3)), "empty"),
        (np.full((10, 3), np.nan), "all 10 hold NaN"),
        (np.zeros((3, 500)), "transpose it"),
        (np.zeros((6, 500)), "transpose it"),
        (np.zeros((10, 2)), r"found \(10, 2\)"),
        (np.zeros((2, 2, 10, 3)), r"found \(2, 2, 10, 3\)"),
        (np.zeros((10, 3), complex), "real numbers"),
        (np.array([["a", "b", "c"]]), "real numbers"),
        (None, "found a NoneType$"),
        ("cloud.ply", "found a str: read the file first"),
        ([[1, 2, 3], [4, 5]], "found"),
        ({"points": 1}, "found a dict$"),
        (SimpleNamespace(fields=[], point_step=12), "found a SimpleNamespace: .*cloud_from_message reads"),
    ],
)
def test_what_is_no_cloud_is_refused_in_one_line(shared, points, message):
    for use in (shared, shared.embed):
        with pytest.raises(InvalidCloud, match=message) as caught:
            use(points)
        assert "\n" not in str(caught.value)


def test_a_bad_cloud_among_many_is_named(shared):
    clouds = [cloud()] * (CLOUDS_AT_ONCE + 3)
    clouds[CLOUDS_AT_ONCE + 1] = np.zeros((0, 3))
    with pytest.raises(
        InvalidCloud, match=rf"cloud {CLOUDS_AT_ONCE + 1} \(from 0\) of {len(clouds)}: .*empty"
    ):
        shared(clouds)


def test_tensors_are_clouds(shared):
    import torch

    points = cloud().astype(np.float32)
    assert answers(shared(torch.from_numpy(points))) == answers(shared(points))
    batch = torch.from_numpy(np.stack([points, points]))
    assert answers(shared(batch)) == answers(shared([points, points]))


def test_colors_matter_to_an_encoder_of_colored_clouds(speaking):
    colored = load(speaking)
    points, grey = cloud(), np.full((300, 3), 0.4)
    bare = colored.embed(points)
    np.testing.assert_allclose(colored.embed(np.hstack([points, grey])), bare, atol=1e-5)
    np.testing.assert_allclose(colored.embed(np.hstack([points, grey * 255])), bare, atol=1e-5)
    red = np.hstack([points, np.tile([1.0, 0, 0], (300, 1))])
    assert np.abs(colored.embed(red) - bare).max() > 1e-4


# Axes.


def test_colors_are_left_out_where_those_of_the_training_were(speaking, tmp_path):
    colored = np.concatenate([cloud(), np.linspace(0, 1, 900).reshape(300, 3)], axis=1)
    bundle = shutil.copytree(speaking, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["provenance"]["training"] = {"reading": {"color": "none"}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with load(bundle) as own, load(bundle, color="auto") as told, load(speaking) as other:
        np.testing.assert_array_equal(own.embed(colored), other.embed(colored[:, :3]))
        np.testing.assert_array_equal(
            own.embed(colored, up_axis="y"), other.embed(colored[:, :3], up_axis="y")
        )
        np.testing.assert_array_equal(told.embed(colored), other.embed(colored))
        assert [each.info()["color"] for each in (own, told, other)] == ["none", "auto", "auto"]
    with pytest.raises(InvalidCloud, match="expected color as auto or none"):
        load(bundle, color="grey")


def test_the_up_axis_is_turned_to_the_encoders(exported, altered, shapes_of):
    points = shapes_of(2)[1][:60]  # none is thinned out: which ones are is settled z up
    lying = points[:, [0, 2, 1]] * [1, 1, -1]  # y up
    expected = load(exported).embed(points)
    np.testing.assert_allclose(load(exported, up_axis="y").embed(lying), expected, atol=1e-5)
    np.testing.assert_allclose(load(exported).embed(lying, up_axis="y"), expected, atol=1e-5)
    assert load(exported)(lying, up_axis="y")[0].label == load(exported)(points)[0].label
    assert np.abs(load(exported).embed(lying) - expected).max() > 1e-3
    other = load(altered(up_axis="y"))  # the same weights, said to want y
    np.testing.assert_array_equal(other.embed(points, up_axis="y"), expected)
    np.testing.assert_allclose(
        other.embed(lying, up_axis="z"), load(exported).embed(lying[:, [0, 2, 1]] * [1, 1, -1]), atol=1e-5
    )


def test_an_axis_that_is_none_is_refused(exported, shared):
    with pytest.raises(InvalidCloud, match="up axis"):
        load(exported, up_axis="up")
    with pytest.raises(InvalidCloud, match="up axis"):
        shared(cloud(), up_axis="Z")


# What may not change the answer.


@given(seed=st.integers(0, 10_000), count=st.integers(1, 200))
@FEW
def test_the_order_of_the_points_does_not_matter(shared, seed, count):
    points = cloud(count, seed)
    shuffled = np.random.default_rng(seed + 1).permutation(points)
    np.testing.assert_allclose(shared.embed(shuffled), shared.embed(points), atol=1e-5)


@given(seed=st.integers(0, 10_000), shift=st.tuples(*[st.floats(-1e3, 1e3)] * 3))
@FEW
def test_where_the_cloud_is_does_not_matter(shared, seed, shift):
    points = cloud(100, seed)
    np.testing.assert_allclose(shared.embed(points + np.array(shift)), shared.embed(points), atol=1e-5)


@given(seed=st.integers(0, 10_000), exponent=st.floats(-12, 12))
@FEW
def test_the_unit_of_length_does_not_matter(shared, seed, exponent):
    points = cloud(100, seed)
    np.testing.assert_allclose(shared.embed(points * 10**exponent), shared.embed(points), atol=1e-5)


@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 120), min_size=1, max_size=20))
@FEW
def test_the_clouds_beside_it_do_not_matter(shared, seed, sizes):
    clouds = [cloud(size, seed + index) for index, size in enumerate(sizes)]
    together = shared.embed(clouds)
    for row, points in zip(together, clouds, strict=True):
        np.testing.assert_allclose(shared.embed(points)[0], row, atol=1e-5)


def test_it_answers_the_same_again_and_again(shared, shapes_of):
    clouds = shapes_of(4)
    first = answers(shared(clouds))
    for _ in range(20):
        assert answers(shared(clouds)) == first


# Threads.


def test_eight_threads_get_what_one_gets(own, shapes_of):
    clouds = shapes_of(50)
    expected = [answers(own(points)) for points in clouds]

    def work(_):
        return [answers(own(points)) for points in clouds]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(work, range(8)):
            assert found == expected


def test_a_call_keeps_the_classes_it_began_with(own, shapes_of):
    clouds, stop = shapes_of(2), threading.Event()

    def switch():
        while not stop.is_set():
            own.set_classes(["table", "chair"])
            own.set_classes(["monitor", "bottle", "chair"])

    thread = threading.Thread(target=switch)
    thread.start()
    try:
        for _ in range(100):
            found = own(clouds)
            listed = [{name for name, _ in prediction.top_k} for prediction in found]
            assert listed[0] == listed[1]
            assert listed[0] in (set(SHAPES), {"table", "chair"}, {"monitor", "bottle", "chair"})
    finally:
        stop.set()
        thread.join()


# Classes.


def test_other_classes_from_the_next_call_on(own, shapes_of):
    rows = np.random.default_rng(0).normal(size=(2, 16))
    assert own.info()["classes"]["note"] == ""
    own.set_classes(Vocabulary.create(["x", "y"], rows, logit_scale=10.0))
    assert own.classes == ("x", "y")
    assert own(shapes_of(1))[0].label in ("x", "y")
    assert "no cloud will be unknown" in own.info()["classes"]["note"]


def test_a_vocabulary_of_its_own_classes_scores_as_they_do(own, exported, shapes_of):
    """At the scale of the vocabulary, every score would be 0 or 1."""
    clouds = shapes_of(8)
    expected = [dict(prediction.top_k) for prediction in own(clouds)]
    trained = load_class_bank(exported / "classes.npz").vocabulary
    own.set_classes(replace(trained, logit_scale=1e4))
    found = [dict(prediction.top_k) for prediction in own(clouds)]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=0.05)


def test_names_alone_are_enough_where_there_is_a_text_encoder(speaking):
    classifier = load(speaking)
    classifier.set_classes(["mug", "night_stand"])
    assert {name for name, _ in classifier(cloud())[0].top_k} == {"mug", "night_stand"}


def test_classes_that_cannot_be_used_leave_the_old_ones(own):
    for wrong, error in (
        (["mug"], InvalidTextEncoder),
        ([], InvalidVocabulary),
        (Vocabulary.create(["x"], np.ones((1, 3)), logit_scale=1.0), InvalidVocabulary),
    ):
        with pytest.raises(error):
            own.set_classes(wrong)
        assert own.classes == SHAPES


def test_a_threshold_may_be_given_with_the_classes(own, exported, shapes_of):
    clouds = shapes_of(12)
    similarities = sorted(prediction.similarity for prediction in own(clouds))
    own.set_classes(SHAPES, unknown_similarity=similarities[4])
    assert sum(prediction.unknown for prediction in own(clouds)) == 4
    own.set_classes(["table", "chair"], unknown_similarity=1)
    assert all(prediction.unknown for prediction in own(clouds))
    assert own.info()["classes"]["unknown_similarity"] == 1
    assert own.info()["classes"]["note"] == ""
    for wrong in (float("nan"), "0.3", True, 70):
        with pytest.raises(InvalidVocabulary, match="unknown_similarity"):
            own.set_classes(["table", "chair"], unknown_similarity=wrong)
    assert own.classes == ("table", "chair")


# The memory.


def test_the_memory_is_off_until_it_is_asked_for(own, exported, shapes_of):
    clouds = shapes_of(12)
    plain = answers(own(clouds))
    assert own.cache is None
    remembering = own.enable_cache(memory.TestTimeCache(least_score=0.0))
    with_memory = answers(own(clouds))
    assert with_memory != plain
    assert own.cache is remembering
    remembering.reset()
    assert answers(own(clouds)) == with_memory
    own.disable_cache()
    assert answers(own(clouds)) == plain
    loaded = load(exported, cache=remembering.fresh())
    one_by_one = [prediction for points in clouds for prediction in loaded(points)]
    np.testing.assert_allclose(
        [each.score for each in one_by_one], [each["score"] for each in with_memory], atol=1e-5
    )


def test_other_classes_begin_with_an_empty_memory(own, shapes_of):
    own.enable_cache(memory.TestTimeCache(per_class=2, least_score=0.0))
    own(shapes_of(12))
    assert own.info()["cache"]["size"] > 0
    own.set_classes(["table", "chair"])
    assert own.cache.per_class == 2
    assert own.info()["cache"] == {**own.cache.settings(), "size": 0}
    own(shapes_of(12))


# Loading, facts, closing.


def test_info_says_what_runs_and_why(exported):
    with Classifier.load(exported, threads=1) as classifier:
        info = json.loads(json.dumps(classifier.info()))
    assert info["backend"] in info["why"] or info["why"]
    assert info["versions"]["numpy"] == np.__version__
    assert info["bundle"]["encoder"]["groups"] == 8
    assert info["classes"]["count"] == 4
    if info["backend"] == "onnxruntime-cpu":
        assert list(info["refused"]) == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"]
        assert all(info["refused"].values())
    assert load(exported).info()["refused"] == {}


def test_warmup_runs_the_encoder(own):
    ran = []
    backend = own._backend
    own._backend = SimpleNamespace(
        name="counting", embed=lambda clouds: ran.append(len(clouds)) or backend.embed(clouds)
    )
    assert own.warmup(3) > 0
    assert ran == [3]
    own._backend = backend


def test_an_embedding_that_is_no_number_gets_no_class(own):
    backend = own._backend
    rows = np.full((2, 16), np.nan, np.float32)
    own._backend = SimpleNamespace(name="overflowing", embed=lambda clouds: Embedded(rows, {}))
    for use in (own, own.embed):
        with pytest.raises(EmbeddingFailed, match="overflowing embedded 2 of 2 clouds as NaN"):
            use([cloud(), cloud()])
    own._backend = backend


def test_a_closed_classifier_says_so(exported):
    with load(exported) as classifier:
        pass
    classifier.close()
    for use in (classifier, classifier.embed):
        with pytest.raises(InvalidCall, match="closed one: load it again"):
            use(cloud())
    with pytest.raises(InvalidCall, match="closed"):
        classifier.warmup()
    assert "onnxruntime-cpu" in repr(classifier)


def test_closing_ends_a_long_call_at_its_next_batch(exported, monkeypatch):
    with load(exported) as classifier:
        backend = classifier._selection.backend
        embed = backend.embed

        def close_afterwards(clouds):
            found = embed(clouds)
            classifier.close()
            return found

        monkeypatch.setattr(backend, "embed", close_afterwards)
        with pytest.raises(InvalidCall, match="closed during the call"):
            classifier([cloud()] * 65)


def test_classes_that_were_given_are_not_changed_from_outside(exported):
    with load(exported) as classifier:
        own = load_class_bank(exported / "classes.npz").vocabulary
        given = Vocabulary.create(own.names, own.embeddings.copy(), logit_scale=own.logit_scale, tag=own.tag)
        classifier.set_classes(given)
        before = classifier(cloud())[0]
        given.embeddings.flags.writeable = True
        given.embeddings[:] = given.embeddings[::-1].copy()
        assert classifier(cloud())[0].top_k == before.top_k


@pytest.mark.parametrize("name", ["encoder.onnx", "model.onnx", "weights.bin", "classes.npz"])
def test_a_flipped_byte_is_found(altered, name):
    bundle = altered()
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(InvalidBundle, match=rf"{name}: expected sha256 .* copy or export the bundle again"):
        load(bundle)


@pytest.mark.parametrize("name", ["encoder.onnx", "weights.bin", "classes.npz", "manifest.json"])
def test_a_missing_file_is_named(altered, name):
    bundle = altered()
    (bundle / name).unlink()
    with pytest.raises(InvalidBundle, match=name):
        load(bundle)


def test_a_newer_schema_says_to_upgrade(altered):
    with pytest.raises(InvalidBundle, match=r"schema 2; .*upgrade crossmost"):
        load(altered(schema=2))


def test_what_is_no_bundle_is_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InvalidBundle, match="expected a bundle made by `crossmost export`"):
            load(path)


@pytest.mark.parametrize("path", [None, 5, b"a.bundle"])
def test_what_is_no_path_is_no_bundle(path):
    with pytest.raises(InvalidBundle, match="expected the path of a bundle, found"):
        load(path)


def test_the_bundle_is_found_wherever_the_process_goes(speaking, tmp_path, monkeypatch):
    """A link to the newest bundle is moved, and the text encoder is opened late."""
    link = tmp_path / "current"
    link.symlink_to(speaking, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    classifier = load("current")
    monkeypatch.chdir(tmp_path.parent)
    link.unlink()
    classifier.set_classes(["mug", "wine glass"])
    assert {name for name, _ in classifier(cloud())[0].top_k} == {"mug", "wine glass"}


def test_a_classifier_cannot_be_sent_to_another_process(shared):
    with pytest.raises(InvalidCall, match="load the bundle in each"):
        pickle.dumps(shared)


def test_class_embeddings_of_another_width_are_refused(altered):
    with pytest.raises(
        InvalidVocabulary, match="expected class embeddings of the encoder's 24 numbers, found 16"
    ):
        load(altered(dim=24))


def test_backends_that_do_not_exist_or_work_are_refused(exported, altered):
    with pytest.raises(InvalidChoice, match="expected backend"):
        Classifier.load(exported, "onnx")
    with pytest.raises(BackendUnavailable, match="bf16"):
        load(altered(precision="bf16"))


def test_a_robot_needs_numpy_and_onnxruntime_only(exported, tmp_path):
    """The trainer's packages are installed here, so a robot is played: looking for one of them fails."""
    bundle = tmp_path / "robot.bundle"
    shutil.copytree(exported, bundle)
    np.save(tmp_path / "cloud.npy", cloud())
    code = """
import sys
BANNED = {"torch", "torchvision", "open_clip", "onnx", "pydantic", "scipy", "tokenizers", "tensorrt", "tensorrt_rtx",
          "cuda"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ImportError("blocked: " + name)

import importlib.util
looked_up = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in BANNED else looked_up(name)
sys.meta_path.insert(0, Blocker())
from crossmost.runtime import Classifier
import numpy as np
clf = Classifier.load(sys.argv[1], threads=1)
print(clf(np.load(sys.argv[2]))[0].label)
print(sorted(name for name in sys.modules if name.partition(".")[0] in BANNED))
print(sorted(name for name in sys.modules if name.startswith("crossmost.") and ".runtime" not in name))
"""
    command = [sys.executable, "-c", code, str(bundle), str(tmp_path / "cloud.npy")]
    ran = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == [load(exported)(cloud())[0].label, "[]", "[]"]


@pytest.mark.parametrize("module", ["crossmost.runtime.onnx_session", "crossmost.export.workflow"])
@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_onnx_runtime_is_told_to_send_no_telemetry_before_it_is_imported(module, before, after):
    """It reads the variable once, where it is first imported; who sets it keeps their choice."""
    code = """
import importlib, os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
            sys.meta_path.remove(self)

sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
import onnxruntime
"""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {} if before is None else {"ORT_DISABLE_TELEMETRY": before}
    command = [sys.executable, "-c", code, module]
    ran = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=False)
    assert ran.stdout.split() == [after], ran.stderr
