import dataclasses
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from crossmost.runtime.vocabulary import InvalidVocabulary, Vocabulary, load_vocabulary

NAMES = ("mug", "night_stand", "Übertopf")


@pytest.fixture
def vocabulary(rng) -> Vocabulary:
    return Vocabulary.create(
        NAMES, rng.normal(size=(3, 8)), logit_scale=100, prompts=["a {}.", "the {}"], tag="ViT-B-32/openai"
    )


def assert_same(left: Vocabulary, right: Vocabulary) -> None:
    for field in dataclasses.fields(Vocabulary):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name))
        assert type(getattr(left, field.name)) is type(getattr(right, field.name))


@given(arrays(np.float64, (3, 5), elements=st.floats(0.01, 1e6)), st.floats(0.01, 1e3))
def test_rows_become_unit_whatever_their_length(rows, scale):
    made = Vocabulary.create(NAMES, rows, logit_scale=1.0).embeddings
    assert made.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(
        made, Vocabulary.create(NAMES, rows * scale, logit_scale=1.0).embeddings, atol=1e-6
    )
    np.testing.assert_array_equal(made, Vocabulary.create(NAMES, made, logit_scale=1.0).embeddings)


def test_half_precision_rows_are_accepted(rng):
    rows = rng.normal(size=(3, 8)).astype(np.float16)
    made = Vocabulary.create(NAMES, rows, logit_scale=1.0)
    assert made.embeddings.dtype == np.float32
    assert (len(made), made.dim) == (3, 8)


@pytest.mark.parametrize("suffix", [".npz", ".vocabulary"])
def test_it_comes_back_as_it_was_saved(vocabulary, tmp_path, suffix):
    path = tmp_path / f"classes{suffix}"
    vocabulary.save(path)
    assert_same(load_vocabulary(path), vocabulary)
    assert os.listdir(tmp_path) == [path.name]
    first = path.read_bytes()
    load_vocabulary(str(path)).save(str(path))
    assert path.read_bytes() == first


def test_a_vocabulary_without_prompts_comes_back(tmp_path):
    bare = Vocabulary.create(["mug"], [[3.0, 4.0]], logit_scale=1.0)
    bare.save(tmp_path / "classes.npz")
    assert_same(load_vocabulary(tmp_path / "classes.npz"), bare)


def test_a_ready_made_file_needs_names_embeddings_and_scale(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, names=["mug", "bowl"], embeddings=np.float64([[3, 4], [0, 2]]), logit_scale=100)
    made = load_vocabulary(path)
    np.testing.assert_allclose(made.embeddings, [[0.6, 0.8], [0, 1]])
    assert (made.names, made.prompts, made.tag, made.logit_scale) == (("mug", "bowl"), (), "", 100.0)


def test_a_failed_save_leaves_the_last_one(vocabulary, tmp_path, monkeypatch):
    path = tmp_path / "classes.npz"
    vocabulary.save(path)
    before = path.read_bytes()

    def full(file, **written):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        vocabulary.select(["mug"]).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["classes.npz"]


def test_select_keeps_the_order_asked_for(vocabulary):
    chosen = vocabulary.select(["Übertopf", "mug"])
    assert chosen.names == ("Übertopf", "mug")
    np.testing.assert_array_equal(chosen.embeddings, vocabulary.embeddings[[2, 0]])
    assert (chosen.logit_scale, chosen.prompts, chosen.tag) == (100.0, ("a {}.", "the {}"), "ViT-B-32/openai")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["mgu"], "no class 'mgu' in the vocabulary of 3; did you mean 'mug'"),
        (["night stand"], "did you mean 'night_stand'"),
        (["zzz"], "no class 'zzz' in the vocabulary of 3, which starts with 'mug'"),
        (["mug", "mug"], "'mug' more than once"),
        ([], "at least one class name"),
    ],
)
def test_select_refuses(vocabulary, names, what):
    with pytest.raises(InvalidVocabulary, match=what):
        vocabulary.select(names)


EYE = np.eye(2)


@pytest.mark.parametrize(
    ("names", "rows", "scale", "what"),
    [
        ((), np.zeros((0, 2)), 1.0, "at least one class name"),
        (("mug", "mug"), EYE, 1.0, "'mug' more than once"),
        (("mug", " "), EYE, 1.0, "an empty one"),
        (("mug", 3), EYE, 1.0, "no text"),
        (("mug", "bowl"), np.eye(3), 1.0, r"shape \(2, D\) for 2 names, found \(3, 3\)"),
        (("mug", "bowl"), np.ones(2), 1.0, r"found \(2,\)"),
        (("mug", "bowl"), np.ones((2, 0)), 1.0, r"found \(2, 0\)"),
        (("mug", "bowl"), [["a", "b"], ["c", "d"]], 1.0, "real numbers"),
        (("mug", "bowl"), EYE * 1j, 1.0, "real numbers"),
        (("mug", "bowl"), [[1, 0], [np.nan, 1]], 1.0, "NaN or infinity for 'bowl'"),
        (("mug", "bowl"), [[np.inf, 0], [0, 1]], 1.0, "NaN or infinity for 'mug'"),
        (("mug", "bowl"), [[1, 0], [0, 0]], 1.0, "only zeros for 'bowl'"),
        (("mug", "bowl"), EYE, 0.0, "positive logit_scale, found 0.0"),
        (("mug", "bowl"), EYE, float("nan"), "positive logit_scale, found nan"),
    ],
)
def test_what_cannot_classify_is_refused(names, rows, scale, what):
    with pytest.raises(InvalidVocabulary, match=what):
        Vocabulary.create(names, rows, logit_scale=scale)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (np.float32([[3, 4]]), "unit length: use Vocabulary.create"),
        (np.float32([[np.nan, 0]]), "unit length"),
        (np.float64([[1, 0]]), r"expected embeddings \(1, D\) float32, found \(1, 2\) float64"),
        (np.float32([1, 0]), r"found \(2,\) float32"),
    ],
)
def test_the_bare_constructor_checks_too(rows, what):
    with pytest.raises(InvalidVocabulary, match=what):
        Vocabulary(("mug",), rows, 1.0)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    path, owned = tmp_path / "classes.npz", tmp_path / "owned"
    names = np.array([Touch(owned), "bowl"], dtype=object)
    np.savez(path, names=names, embeddings=EYE, logit_scale=1.0)
    with pytest.raises(
        InvalidVocabulary, match=r"classes.npz: expected arrays without pickled objects"
    ) as error:
        load_vocabulary(path)
    assert "\n" not in str(error.value)
    path.write_bytes(pickle.dumps(Touch(owned)))
    with pytest.raises(InvalidVocabulary, match="truncated or another kind of file"):
        load_vocabulary(path)
    assert not owned.exists()


@pytest.mark.parametrize("kept", [0, 10, 200, -30])
def test_a_truncated_file_is_refused(vocabulary, tmp_path, kept):
    path = tmp_path / "classes.npz"
    vocabulary.save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InvalidVocabulary, match="truncated or another kind of file"):
        load_vocabulary(path)


def test_a_damaged_file_is_refused(vocabulary, tmp_path):
    path = tmp_path / "classes.npz"
    vocabulary.save(path)
    damaged = bytearray(path.read_bytes())
    damaged[100:300] = bytes(200)
    path.write_bytes(damaged)
    with pytest.raises(InvalidVocabulary, match=r"classes\.npz") as error:
        load_vocabulary(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stored", "what"),
    [
        (
            {"names": ["mug", "bowl"], "embeddings": EYE},
            "in it, found names, embeddings: logit_scale is what cosines are multiplied by, CLIP's is 100",
        ),
        ({"names": [1, 2], "embeddings": EYE, "logit_scale": 1.0}, "names as a row of text, found int64"),
        ({"names": [["mug"]], "embeddings": EYE, "logit_scale": 1.0}, r"of shape \(1, 1\)"),
        ({"names": ["mug", "bowl"], "embeddings": EYE, "logit_scale": [1.0, 2.0]}, "one logit_scale"),
        ({"names": ["mug", "mug"], "embeddings": EYE, "logit_scale": 1.0}, "'mug' more than once"),
        ({"names": ["mug"], "embeddings": EYE, "logit_scale": 1.0}, "for 1 names"),
    ],
)
def test_a_file_with_other_contents_is_refused_by_name(stored, what, tmp_path):
    np.savez(tmp_path / "mine.npz", **stored)
    with pytest.raises(InvalidVocabulary, match=f"mine.npz: .*{what}"):
        load_vocabulary(tmp_path / "mine.npz")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nowhere.npz", tmp_path):
        with pytest.raises(InvalidVocabulary, match="found no such file"):
            load_vocabulary(path)


def test_it_needs_numpy_only():
    code = (
        "import sys, crossmost.runtime.vocabulary\n"
        "print(sorted({'torch', 'open_clip', 'crossmost.errors', 'crossmost.models'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
