import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from crossmost.runtime.class_bank import ClassBank, load_class_bank, load_classes
from crossmost.runtime.vocabulary import InvalidVocabulary, Vocabulary, load_vocabulary

NAMES = ("mug", "bowl", "Übertopf")
ROWS = np.float32([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 0, 1]])
VOCABULARY = Vocabulary(NAMES, ROWS, 10.0, ("a {}.",), "a text model")
LENGTHS = np.float32([1.0, 0.5, 2.0])
TRAINED = ClassBank(VOCABULARY, LENGTHS, 2.0, 0.4, "of 5 % of the clouds")
FIELDS = ("lengths", "temperature", "unknown_similarity", "unknown_rule")


def assert_same(left: ClassBank, right: ClassBank) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    for name in ("names", "embeddings", "logit_scale", "prompts", "tag"):
        np.testing.assert_array_equal(getattr(left.vocabulary, name), getattr(right.vocabulary, name))


def random_units(rng: np.random.Generator, count: int, dim: int = 4) -> NDArray[np.float32]:
    rows = rng.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_logits_are_scaled_cosines() -> None:
    logits = TRAINED.logits(np.float32([[1, 0, 0, 0], [0, 0, 0, -1]]))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, [[10, 3, 0], [0, 0, -20]], atol=1e-6)


def test_scores_are_the_softmax_of_logits_by_temperature(rng: np.random.Generator) -> None:
    embedding = random_units(rng, 50)
    scores = TRAINED.scores(embedding)
    expected = np.exp(TRAINED.logits(embedding).astype(np.float64) / 2.0)
    expected /= expected.sum(axis=1, keepdims=True)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


@given(
    arrays(np.float32, (4, 4), elements=st.floats(-1, 1, width=32)),
    st.floats(1e-3, 1e6),
    st.floats(1e-310, 1e300),
)
def test_scores_are_probabilities_at_any_scale_and_temperature(
    embedding: NDArray[np.float32], scale: float, temperature: float
) -> None:
    bank = ClassBank(Vocabulary(NAMES, ROWS, scale), LENGTHS, temperature)
    scores = bank.scores(embedding)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(scores.max(axis=1), scores[range(4), bank.logits(embedding).argmax(axis=1)])


def test_temperature_changes_scores_and_not_the_order(rng: np.random.Generator) -> None:
    embedding = random_units(rng, 50)
    sharp, soft = (ClassBank(VOCABULARY, LENGTHS, value).scores(embedding) for value in (0.5, 5.0))
    np.testing.assert_array_equal(sharp.argmax(axis=1), soft.argmax(axis=1))
    assert (sharp.max(axis=1) > soft.max(axis=1)).all()


def test_predict_gives_class_score_and_unknown(rng: np.random.Generator) -> None:
    embedding = random_units(rng, 200)
    index, score, unknown = TRAINED.predict(embedding)
    scores = TRAINED.scores(embedding)
    assert (index.dtype, score.dtype, unknown.dtype) == (np.int64, np.float64, np.bool_)
    assert index.shape == score.shape == unknown.shape == (200,)
    np.testing.assert_array_equal(index, scores.argmax(axis=1))
    np.testing.assert_array_equal(score, scores.max(axis=1))
    # By similarity, whatever the temperature makes of the score.
    cosines = embedding.astype(np.float64) @ VOCABULARY.embeddings.astype(np.float64).T
    similarity = (cosines * LENGTHS).max(axis=1)
    np.testing.assert_allclose(TRAINED.similarity(embedding), similarity, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(unknown, similarity < 0.4)
    assert 0 < unknown.sum() < 200


def test_a_similarity_at_the_threshold_is_known(rng: np.random.Generator) -> None:
    embedding = random_units(rng, 1)
    found = float(TRAINED.similarity(embedding)[0])
    for threshold, expected in ((found, False), (np.nextafter(found, 2), True), (None, False)):
        bank = ClassBank(VOCABULARY, LENGTHS, 2.0, threshold)
        assert bank.predict(embedding)[2].tolist() == [expected]


def test_what_has_no_score_is_unknown() -> None:
    broken = np.full((1, 4), np.nan, np.float32)
    assert TRAINED.predict(broken)[2].tolist() == [True]
    assert ClassBank.plain(VOCABULARY).predict(broken)[2].tolist() == [True]


def test_ties_go_to_the_first_and_no_cloud_is_no_error() -> None:
    twins = ClassBank.plain(Vocabulary(("a", "b"), np.float32([[1, 0], [1, 0]]), 1.0))
    assert twins.predict(np.float32([[1, 0]]))[0].tolist() == [0]
    assert [len(part) for part in twins.predict(np.zeros((0, 2), np.float32))] == [0, 0, 0]


@pytest.mark.parametrize("shape", [(4,), (1, 3), (1, 1, 4), ()])
def test_embeddings_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidVocabulary, match=r"expected embeddings \(B, 4\)"):
        TRAINED.predict(np.zeros(shape, np.float32))


@pytest.mark.parametrize("bank", [TRAINED, ClassBank(VOCABULARY, LENGTHS)], ids=["all", "few"])
def test_it_comes_back_as_it_was_saved(bank: ClassBank, tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "classes.npz"
    bank.save(path)
    loaded = load_class_bank(path)
    assert_same(loaded, bank)
    embedding = random_units(rng, 20)
    np.testing.assert_array_equal(loaded.scores(embedding), bank.scores(embedding))
    first = path.read_bytes()
    loaded.save(str(path))
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == ["classes.npz"]


@pytest.mark.parametrize("field", ["lengths", "temperature", "unknown_similarity", "unknown_rule"])
def test_a_file_is_a_bank_where_it_says_more_than_a_vocabulary(tmp_path: Path, field: str) -> None:
    VOCABULARY.save(tmp_path / "plain.npz", comment=np.array("passed over"))
    assert isinstance(load_classes(tmp_path / "plain.npz"), Vocabulary)
    VOCABULARY.save(tmp_path / "bank.npz", **{field: np.array(getattr(TRAINED, field))})
    found = load_classes(tmp_path / "bank.npz")
    assert isinstance(found, ClassBank)
    np.testing.assert_array_equal(getattr(found, field), getattr(TRAINED, field))


def test_a_bank_is_a_vocabulary_and_a_vocabulary_a_bank(tmp_path: Path) -> None:
    TRAINED.save(tmp_path / "bank.npz")
    vocabulary = load_vocabulary(tmp_path / "bank.npz")
    assert_same(ClassBank.plain(vocabulary), ClassBank.plain(VOCABULARY))
    vocabulary.save(tmp_path / "vocabulary.npz")
    plain = load_class_bank(tmp_path / "vocabulary.npz")
    assert_same(plain, ClassBank(VOCABULARY, np.ones(3, np.float32), 1.0, None, ""))


BAD = [
    ({"lengths": np.ones(2, np.float32)}, r"lengths \(3,\) float32, found \(2,\)"),
    ({"lengths": np.ones((3, 1), np.float32)}, r"found \(3, 1\)"),
    ({"lengths": np.ones(3)}, "found .* float64"),
    ({"lengths": np.array(["1", "1", "1"])}, "found .* <U1"),
    ({"lengths": np.float32([1, 0, 1])}, "positive, finite lengths"),
    ({"lengths": np.float32([1, -1, 1])}, "positive, finite lengths"),
    ({"lengths": np.float32([1, np.nan, 1])}, "positive, finite lengths"),
    ({"lengths": np.float32([1, np.inf, 1])}, "positive, finite lengths"),
    ({"lengths": np.float32([1, 1e38, 1])}, "positive, finite lengths"),
    ({"temperature": np.nan}, "positive temperature, found nan"),
    ({"temperature": np.inf}, "positive temperature, found inf"),
    ({"temperature": 0.0}, "positive temperature, found 0"),
    ({"temperature": -1.0}, "positive temperature, found -1"),
    ({"temperature": [1.0, 1.0]}, "one temperature"),
    ({"temperature": "1"}, "one temperature"),
    ({"unknown_similarity": np.inf}, "finite unknown_similarity, found inf"),
    ({"unknown_similarity": np.nan}, "finite unknown_similarity, found nan"),
    ({"unknown_threshold": 0.5}, "older version's threshold: export again"),
    ({"unknown_similarity": np.zeros(3)}, "one unknown_similarity"),
    ({"unknown_rule": np.zeros(1)}, "unknown_rule as a row of text"),
    ({"unknown_rule": ["a", "b"]}, "one unknown_rule"),
]


@pytest.mark.parametrize(("stored", "what"), BAD)
def test_a_file_that_cannot_classify_is_refused_by_name(
    stored: dict[str, Any], what: str, tmp_path: Path
) -> None:
    path = tmp_path / "classes.npz"
    VOCABULARY.save(path, **stored)
    with pytest.raises(InvalidVocabulary, match=f"classes.npz: .*{what}") as error:
        load_class_bank(path)
    assert "\n" not in str(error.value)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "classes.npz").write_bytes(b"PK\x03\x04")
    for path in (tmp_path / "classes.npz", tmp_path / "nowhere.npz", tmp_path):
        with pytest.raises(InvalidVocabulary, match=path.name):
            load_class_bank(path)


def read_or_refuse(path: Path) -> None:
    line = ""
    try:
        load_class_bank(path)
    except InvalidVocabulary as error:
        line = str(error)
    assert "\n" not in line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@settings(max_examples=200, deadline=None)
@given(st.data())
@pytest.mark.filterwarnings("ignore")  # numpy's, about what it finds in damaged headers
def test_damaged_bytes_are_read_or_refused(folder: Path, data: st.DataObject) -> None:
    TRAINED.save(folder / "classes.npz")
    content = bytearray((folder / "classes.npz").read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    (folder / "classes.npz").write_bytes(content)
    read_or_refuse(folder / "classes.npz")


ENTRIES = {
    "names": np.array(NAMES),
    "embeddings": ROWS,
    "logit_scale": np.array(1.0),
    "prompts": np.array(["a {}"]),
    "tag": np.array("t"),
    "lengths": LENGTHS,
    "unknown_rule": np.array("r"),
}


def put(path: Path, stored: dict[str, bytes]) -> None:
    """Write an archive of arrays, some of which are the bytes given."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in ENTRIES.items():
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(f"{key}.npy", stored.get(key, file.getvalue()))


def header(text: str) -> bytes:
    padded = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([*ENTRIES]),
    st.sampled_from(["<f4", "<U0", "<U4", "|O", "|V0", "<f8", ">U2", "<i8", "<M8[s]", "x"]),
    st.lists(st.sampled_from([0, 1, 3, 4, -1, 2**40, 2**63]), max_size=3),
    st.binary(max_size=64),
)
@pytest.mark.filterwarnings("ignore")
def test_any_array_is_read_or_refused(
    folder: Path, key: str, dtype: str, shape: list[int], content: bytes
) -> None:
    """Shapes that promise terabytes among them."""
    claim = {"descr": dtype, "fortran_order": False, "shape": tuple(shape)}
    put(folder / "classes.npz", {key: header(str(claim)) + content})
    read_or_refuse(folder / "classes.npz")


@pytest.mark.parametrize("key", ENTRIES)
@pytest.mark.parametrize("content", [b"", b"no array", header("{"), header("{'descr': (")])
def test_what_is_no_array_is_refused(tmp_path: Path, key: str, content: bytes) -> None:
    put(tmp_path / "classes.npz", {key: content})
    with pytest.raises(InvalidVocabulary, match=r"classes\.npz: expected arrays"):
        load_class_bank(tmp_path / "classes.npz")


@pytest.mark.parametrize("key", ["names", "prompts", "tag", "unknown_rule"])
@pytest.mark.parametrize("code", [0xD800, 0x110000, 0xFFFFFFFF])
def test_characters_that_do_not_exist_are_refused(tmp_path: Path, key: str, code: int) -> None:
    shape = ENTRIES[key].shape
    claim = header(str({"descr": "<U1", "fortran_order": False, "shape": shape}))
    codes = np.arange(65, 65 + max(1, ENTRIES[key].size), dtype="<u4")
    codes[0] = code
    put(tmp_path / "classes.npz", {key: claim + codes.tobytes()})
    with pytest.raises(InvalidVocabulary, match="characters that do not exist"):
        load_class_bank(tmp_path / "classes.npz")


def test_an_archive_that_unpacks_to_more_than_it_may_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "classes.npz", {"embeddings": header("{}") + bytes(10**6)})
    assert (tmp_path / "classes.npz").stat().st_size < 10**4
    monkeypatch.setattr("crossmost.runtime.vocabulary.MOST_BYTES", 10**5)
    with pytest.raises(InvalidVocabulary, match="more than 100000"):
        load_class_bank(tmp_path / "classes.npz")
