"""`crossmost eval` of a bundle: figures against the runtime's own answers and slow references, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from crossmost.bundle_evaluation import BundleEvaluation, precision_of
from crossmost.cli import app
from crossmost.runtime import Classifier


@pytest.fixture
def crossmost():
    def run(*arguments: object):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def with_others(path: Path, write_shapes, others: dict[str, int]) -> Path:
    """24 shapes, some of the bottles under the names of other classes."""
    write_shapes(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    names = arrays["class_names"][arrays["labels"]].tolist()
    for name, count in others.items():
        for _ in range(count):
            names[names.index("bottle")] = name
    classes, arrays["labels"] = np.unique(names, return_inverse=True)
    np.savez(path, **(arrays | {"class_names": classes}))
    return path


def test_figures_are_those_of_the_runtimes_answers(bundle, tmp_path, write_shapes, crossmost) -> None:
    data = with_others(tmp_path / "data.npz", write_shapes, {"mug": 3, "pan": 1})
    done = crossmost("eval", bundle("fp32"), data, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    with np.load(data) as stored, Classifier.load(bundle("fp32")) as classifier:
        predictions = classifier(list(stored["points"]))
        truth, classes = stored["class_names"][stored["labels"]], classifier.classes
    known = np.array([name in classes for name in truth])
    assert (~known).sum() == 4
    right = np.array([p.label == name for p, name in zip(predictions, truth, strict=True)])
    said = np.array([p.unknown for p in predictions])
    similarity = np.array([p.similarity for p in predictions])
    assert found["n"] == 24
    assert found["deployed"] == {"point": right[known].mean(), "image": None, "both": None}
    unknown = found["unknown"]
    assert unknown["other_classes"] == {"mug": 3, "pan": 1}
    assert unknown["known"] == said[known].mean()
    assert unknown["others"] == said[~known].mean()
    assert unknown["known_right"] == (said[known & right].mean() if (known & right).any() else None)
    assert unknown["known_wrong"] == (said[known & ~right].mean() if (known & ~right).any() else None)
    above = [(a > b) + (a == b) / 2 for a in similarity[known] for b in similarity[~known]]
    assert unknown["auroc"] == pytest.approx(np.mean(above))
    details = found["details"]["deployed"]["point"]
    assert details["n"] == 20
    confidence = [p.score for p, is_known in zip(predictions, known, strict=True) if is_known]
    bins = details["reliability"]
    assert np.average([c or 0 for c in bins["confidence"]], weights=bins["count"]) == pytest.approx(
        np.mean(confidence)
    )
    assert found["data"]["name"] == "data"
    assert (found["backend"], found["precision"]) == ("onnxruntime-cpu", "fp32")


def test_lines_name_classes_mistakes_and_foreign_clouds() -> None:
    evaluation = BundleEvaluation(
        ("cup", "bowl"), "all",
        np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4], [0.6, 0.4]]),
        np.array([0.9, 0.8, 0.7, 0.4, 0.75]), np.array([False, False, False, True, False]), 0.5,
        np.array([0, 1, 0, -1, -1]), {"mug": 1, "pan": 1}, {"backend": "b", "precision": "fp16"},
    )  # fmt: skip
    assert evaluation.lines() == [
        "5 clouds (all), b, fp16",
        "top-1 of the 3 of its classes  66.7%, mean of the classes 75.0%, ECE 33.3%",
        "called unknown  0.0% of them: 0.0% of the right answers, 0.0% of the wrong answers",
        "2 of other classes (mug 1, pan 1)",
        "  50.0% called unknown, AUROC of the similarity 0.833, FPR95 50.0%",
        "class  clouds  recall  most often taken for",
        "cup         2   50.0%  bowl (1)",
        "bowl        1  100.0%",
    ]


def test_what_cannot_be_read_is_named_and_the_rest_measured(
    bundle, tmp_path, write_shapes, crossmost
) -> None:
    done = crossmost("eval", bundle("fp32"), write_shapes(tmp_path / "a.npz", bad=[2]))
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("23 clouds (all)")
    assert "shape2" in done.stderr


@pytest.mark.parametrize(("graph", "precision"), [("encoder.onnx", "fp32"), ("encoder.int8.onnx", "int8")])
def test_the_precision_is_that_of_the_graph_that_answers(graph, precision) -> None:
    info = {"device": {"graph": graph}, "bundle": {"precision": "fp32"}}
    assert precision_of(info) == precision


def test_clouds_are_read_as_told(bundle, tmp_path, write_shapes, crossmost, monkeypatch) -> None:
    """Lying clouds are turned once, columns are those named, and the classifier gets its threads."""
    upright = write_shapes(tmp_path / "a.npz")
    with np.load(upright) as stored:
        arrays = dict(stored)
    x, y, z = arrays["points"].transpose(2, 0, 1)
    lying = np.stack([x, z, -y, 0 * x], axis=2)  # y up, and a column that is none of theirs
    np.savez(tmp_path / "b.npz", **(arrays | {"points": lying}))
    threads = []
    load = Classifier.load
    monkeypatch.setattr(
        Classifier, "load", lambda *given, **how: threads.append(how["threads"]) or load(*given, **how)
    )
    told = ("--up-axis", "y", "--columns", "xyz_", "--color", "none")
    found = [
        json.loads(crossmost("eval", bundle("fp32"), data, "--json", "--threads", "1", *more).stdout)
        for data, more in ((upright, ()), (tmp_path / "b.npz", told))
    ]
    assert threads == [1, 1]
    confusions = [each["details"]["deployed"]["point"]["confusion"] for each in found]
    assert confusions[0] == confusions[1]
    assert found[0]["unknown"]["known"] == found[1]["unknown"]["known"]
    assert (found[1]["data"]["up_axis"], found[1]["data"]["columns"]) == ("y", "xyz_")


def test_what_is_neither_run_nor_bundle_is_said_to_be_neither(tmp_path, shapes_file, crossmost) -> None:
    done = crossmost("eval", tmp_path, shapes_file, "--backend", "auto")
    assert done.exit_code == 2
    assert (
        "expected a run of `crossmost train` or a bundle of `crossmost export`, found neither" in done.stderr
    )


def test_the_test_split_is_measured_where_there_are_both(bundle, tmp_path, write_shapes, crossmost) -> None:
    data = write_shapes(tmp_path / "a.npz", split=np.array(["train"] * 16 + ["test"] * 8))
    assert json.loads(crossmost("eval", bundle("fp32"), data, "--json").stdout)["n"] == 8
    assert json.loads(crossmost("eval", bundle("fp32"), data, "--json", "--split", "all").stdout)["n"] == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "cpu"), "expected no --device for a bundle"),
        (("--ignore-labels",), "expected no --ignore-labels for a bundle"),
        (("--workers", "0"), "expected no --workers for a bundle"),
        (("--backend", "none"), "expected backend auto"),
        (("--classes", "mug,bowl"), "export the bundle with --text-encoder"),
    ],
)
def test_options_of_something_else_are_refused(bundle, shapes_file, crossmost, arguments, message) -> None:
    done = crossmost("eval", bundle("fp32"), shapes_file, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize("option", ["--backend", "--threads", "--classes"])
def test_options_of_a_bundle_are_refused_for_a_run(finished_run, shapes_file, crossmost, option) -> None:
    done = crossmost("eval", finished_run, shapes_file, option, "1")
    assert done.exit_code == 2
    assert f"expected no {option} for a run" in done.stderr


def test_data_without_labels_or_without_any_of_the_classes_is_refused(
    bundle, tmp_path, write_shapes, crossmost
) -> None:
    unlabelled = write_shapes(tmp_path / "a.npz", labels=None, class_names=None)
    assert "expected class folders or labels" in crossmost("eval", bundle("fp32"), unlabelled).stderr
    foreign = write_shapes(tmp_path / "b.npz", class_names=np.array(["mug", "pan", "pot", "can"]))
    done = crossmost("eval", bundle("fp32"), foreign)
    assert done.exit_code == 2
    assert "expected classes out of the vocabulary, found 'mug'" in done.stderr


def test_it_needs_no_torch(bundle, shapes_file) -> None:
    script = (
        "import sys; sys.modules['torch'] = sys.modules['scipy'] = None; from crossmost.cli import app; "
        f"app(['eval', {str(bundle('fp32'))!r}, {str(shapes_file)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("24 clouds")
