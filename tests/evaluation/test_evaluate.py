"""Zero-shot beside adapted: posteriors, labels, the accuracy of the pseudo-labels, and the report of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crossmost.adaptation.diagnosis import Diagnosis, diagnose_all
from crossmost.adaptation.run import train
from crossmost.checkpoints.run import Run, load_run
from crossmost.config import TrainConfig
from crossmost.data.dataset import CloudDataset, open_dataset
from crossmost.data.samples import PlainBatch
from crossmost.errors import InputError
from crossmost.evaluation.evaluate import Evaluation, evaluate_run, pseudo_label_accuracy
from crossmost.evaluation.run_report import run_rows, write_run_report
from crossmost.models.student import Student
from crossmost.runtime.vocabulary import Vocabulary

BRANCHES = ("point", "image", "both")
WriteShapes = Callable[..., Path]
OpenShapes = Callable[[Path], CloudDataset]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Run:
    """A run in a folder of this test's own."""
    return load_run(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def evaluation(run: Run, shapes: CloudDataset) -> Evaluation:
    return evaluate_run(run, shapes, device="cpu")


@pytest.fixture
def damaged(tmp_path: Path, write_shapes: WriteShapes, open_shapes: OpenShapes) -> CloudDataset:
    """The 24 shapes, the fifth and the 18th all NaN."""
    return open_shapes(write_shapes(tmp_path / "damaged.npz", bad=(4, 17)))


class TestEvaluateRun:
    def test_posteriors_of_both_networks(self, evaluation: Evaluation) -> None:
        for posteriors in (evaluation.before, evaluation.after):
            assert tuple(posteriors) == BRANCHES
            for rows in posteriors.values():
                assert rows.shape == (24, 4)
                assert rows.dtype == np.float64
                assert (rows >= 0).all()
                np.testing.assert_allclose(rows.sum(axis=1), 1.0, atol=1e-12)
            np.testing.assert_allclose(
                posteriors["both"], (posteriors["point"] + posteriors["image"]) / 2, atol=1e-12
            )
        assert not np.array_equal(evaluation.before["point"], evaluation.after["point"])
        assert evaluation.index.tolist() == list(range(24))
        assert evaluation.names == ("bottle", "chair", "monitor", "table")

    def test_before_is_the_base_and_after_what_is_exported(self, run: Run, shapes: CloudDataset) -> None:
        with torch.no_grad():
            for parameter in run.teacher.parameters():
                parameter.zero_()  # the teacher is what the crossmost recipe exports
        found = evaluate_run(run, shapes, device="cpu")
        np.testing.assert_allclose(found.after["both"], 0.25)
        assert found.before["both"].max() > 0.5

    def test_temperatures_soften_but_do_not_change_the_class(self, run: Run, shapes: CloudDataset) -> None:
        found = evaluate_run(run, shapes, device="cpu")
        run.temperatures["zero_shot"] = (16.0, 16.0)
        soft = evaluate_run(run, shapes, device="cpu")
        for branch in ("point", "image"):
            assert (soft.before[branch].argmax(1) == found.before[branch].argmax(1)).all()
            assert soft.before[branch].max() < found.before[branch].max()
        np.testing.assert_array_equal(soft.after["point"], found.after["point"])

    def test_labels_are_positions_in_the_vocabulary(
        self,
        run: Run,
        evaluation: Evaluation,
        tmp_path: Path,
        shapes: CloudDataset,
        write_shapes: WriteShapes,
        open_shapes: OpenShapes,
    ) -> None:
        """Whatever order the data set has its classes in, and however it writes them."""
        assert evaluation.labels is not None
        assert shapes.labels is not None
        assert evaluation.labels.tolist() == shapes.labels.tolist()
        names = np.array(["Table", "MONITOR", "chair", "bottle"])
        other = open_shapes(write_shapes(tmp_path / "other.npz", class_names=names, labels=3 - shapes.labels))
        found = evaluate_run(run, other, device="cpu")
        assert found.labels is not None
        assert found.labels.tolist() == evaluation.labels.tolist()
        assert found.to_dict() | {"data": None} == evaluation.to_dict() | {"data": None}

    def test_figures_follow_from_the_posteriors(self, evaluation: Evaluation) -> None:
        found = evaluation.to_dict()
        assert json.loads(json.dumps(found)) == found
        assert (found["n"], found["split"]) == (24, "all")
        data = found["data"]
        assert (data["points"], data["colour"], data["up_axis"], data["views"]) == (64, "none", "z", 2)
        assert data["name"]
        assert len(data["contents_sha256"]) == 64
        assert data["prompts"] == []
        for moment, posteriors in (("zero_shot", evaluation.before), ("adapted", evaluation.after)):
            for branch in BRANCHES:
                right = posteriors[branch].argmax(axis=1) == evaluation.labels
                assert found[moment][branch] == pytest.approx(right.mean())
                assert found["details"][moment][branch]["top1"] == found[moment][branch]

    def test_without_labels(self, run: Run, shapes: CloudDataset, evaluation: Evaluation) -> None:
        found = evaluate_run(run, shapes.unlabelled(), device="cpu")
        assert found.labels is None
        said = found.to_dict()
        assert said | {"changed": None} == {
            "n": 24, "split": "all", "changed": None, "data": said["data"], "zero_shot": None, "adapted": None,
        }  # fmt: skip
        for branch, share in said["changed"].items():
            differ = found.before[branch].argmax(1) != found.after[branch].argmax(1)
            assert share == pytest.approx(differ.mean())
        for branch in BRANCHES:
            np.testing.assert_array_equal(found.after[branch], evaluation.after[branch])
        with pytest.raises(InputError, match="expected labels"):
            found.metrics(found.after)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_labels_stay_with_their_clouds_where_some_are_bad(
        self, run: Run, evaluation: Evaluation, damaged: CloudDataset, workers: int
    ) -> None:
        found = evaluate_run(run, damaged, device="cpu", workers=workers)
        good = [index for index in range(24) if index not in (4, 17)]
        assert found.index.tolist() == good
        assert evaluation.labels is not None
        assert found.labels is not None
        assert found.labels.tolist() == evaluation.labels[good].tolist()
        np.testing.assert_allclose(found.after["point"], evaluation.after["point"][good], atol=1e-5)
        assert found.to_dict()["n"] == 22

    def test_a_class_outside_the_vocabulary(self, run: Run, shapes: CloudDataset, tmp_path: Path) -> None:
        (tmp_path / "data" / "spaceship").mkdir(parents=True)
        np.save(tmp_path / "data" / "spaceship" / "one.npy", shapes.load(0))
        with pytest.raises(InputError, match="'spaceship'"):
            evaluate_run(run, open_dataset(tmp_path / "data", points=64, least=8), device="cpu")


class TestPseudoLabelAccuracy:
    def test_it_is_that_of_the_kept_labels(self, run: Run, shapes: CloudDataset) -> None:
        found = pseudo_label_accuracy(run.folder, shapes, run.vocabulary.names)
        assert list(found) == [-1, 0, 1]
        with np.load(run.folder / "pseudo_labels.npz") as stored:
            labels = stored["labels"]
        for epoch, row in zip(found, labels, strict=True):
            kept = row >= 0
            assert shapes.labels is not None
            assert found[epoch] == pytest.approx((row == shapes.labels)[kept].mean())
        assert all(0.25 < value <= 1 for value in found.values())

    def test_clouds_in_another_order_are_found_by_their_ids(self, run: Run, shapes: CloudDataset) -> None:
        expected = pseudo_label_accuracy(run.folder, shapes, run.vocabulary.names)
        backwards = shapes.subset(range(23, -1, -1))
        assert pseudo_label_accuracy(run.folder, backwards, run.vocabulary.names) == expected

    def test_there_is_none_without_labels_or_of_other_clouds(self, run: Run, shapes: CloudDataset) -> None:
        assert pseudo_label_accuracy(run.folder, shapes.unlabelled(), run.vocabulary.names) == {}
        assert pseudo_label_accuracy(run.folder, shapes.subset(range(5)), run.vocabulary.names) == {}
        (run.folder / "pseudo_labels.npz").unlink()
        assert pseudo_label_accuracy(run.folder, shapes, run.vocabulary.names) == {}

    def test_a_bad_cloud_does_not_cost_the_accuracy_of_all_others(
        self,
        tmp_path: Path,
        damaged: CloudDataset,
        tiny_base: Path,
        tiny_vocabulary: Vocabulary,
        tiny_config: Callable[..., TrainConfig],
    ) -> None:
        train(
            damaged, tiny_base, tiny_vocabulary, tiny_config(epochs=1), tmp_path / "run",
            on_batch=lambda _: None, on_epoch=lambda _: None,
        )  # fmt: skip
        found = pseudo_label_accuracy(tmp_path / "run", damaged, tiny_vocabulary.names)
        assert list(found) == [-1, 0]
        assert all(0.25 < value <= 1 for value in found.values())


def test_batches_are_no_larger_than_those_it_trained_with(
    run: Run, shapes: CloudDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def diagnosed(
        models: Sequence[Student], batches: Iterable[PlainBatch], device: torch.device
    ) -> list[Diagnosis]:
        seen = list(batches)
        sizes.extend(len(batch.indices) for batch in seen)
        return diagnose_all(models, seen, device)

    monkeypatch.setattr("crossmost.evaluation.evaluate.diagnose_all", diagnosed)
    few = replace(run, config=run.config.model_copy(update={"batch_size": 5}))
    found, expected = evaluate_run(few, shapes, device="cpu"), evaluate_run(run, shapes, device="cpu")
    assert sizes[:5] == [5, 5, 5, 5, 4]
    for branch in BRANCHES:
        np.testing.assert_allclose(found.after[branch], expected.after[branch], atol=1e-5)


class TestRunReport:
    def test_with_labels(self, run: Run, evaluation: Evaluation, shapes: CloudDataset) -> None:
        page = write_run_report(run, evaluation, shapes, shapes)
        assert page == run.folder / "report.html"
        text = page.read_text(encoding="utf-8")
        found = evaluation.to_dict()
        for branch in BRANCHES:
            for moment in ("zero_shot", "adapted"):
                assert f"{100 * found[moment][branch]:.1f}" in text
        for word in ("shapes", "bottle", "random directions", "base.safetensors", "crossmost, joint, 0"):
            assert word in text
        assert 'src="http' not in text

    def test_without_labels(self, run: Run, shapes: CloudDataset) -> None:
        plain = shapes.unlabelled()
        evaluation = evaluate_run(run, plain, device="cpu")
        labelled = write_run_report(run, evaluate_run(run, shapes, device="cpu"), shapes, shapes).read_text(
            "utf-8"
        )
        text = write_run_report(run, evaluation, plain, plain).read_text(encoding="utf-8")
        assert text != labelled
        assert "onfusion" in labelled
        assert "onfusion" not in text

    def test_of_other_data_than_it_was_trained_on(
        self, run: Run, tmp_path: Path, write_shapes: WriteShapes, open_shapes: OpenShapes
    ) -> None:
        other = open_shapes(write_shapes(tmp_path / "held-out.npz", 8, seed=5))
        text = write_run_report(run, evaluate_run(run, other, device="cpu"), other, None).read_text("utf-8")
        assert "<h1>Adapted to shapes, measured on held-out</h1>" in text
        assert "shapes, split all, 24 clouds, without labels" in text

    def test_the_center_is_named_where_the_run_noted_it(self, run: Run, shapes: CloudDataset) -> None:
        evaluation = evaluate_run(run, shapes, device="cpu")
        records = [
            json.loads(line) for line in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()
        ]
        for center, said in (
            ("balanced", "chosen without labels: balanced, as if every class were as frequent"),
            (None, None),  # of an older version
        ):
            lines = [json.dumps({**record, "center": center}) for record in records]
            (run.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
            text = write_run_report(run, evaluation, shapes, shapes).read_text("utf-8")
            assert (said in text) if said else ("Center" not in text)

    @pytest.mark.parametrize(
        ("share", "options", "said"),
        [
            (1.0, {}, "chosen without labels: all of them"),
            (0.8, {}, "chosen without labels: the surest 80% of each class"),
            (0.6, {"kept_share": 0.6}, "the surest 60% of each class"),
            (0.8, {"mode": "separate"}, "the surest 80% of each class"),
            (None, {}, None),  # of an older version, or by a fixed threshold
        ],
    )
    def test_how_many_labels_were_kept_is_named(
        self, run: Run, share: float | None, options: dict[str, Any], said: str | None
    ) -> None:
        records = [
            json.loads(line) for line in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()
        ]
        lines = [json.dumps({**record, "kept_share": share}) for record in records]
        (run.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        changed = replace(run, config=run.config.model_copy(update=options))
        assert dict(run_rows(changed)).get("Pseudo-labels") == said

    def test_of_images_alone_is_about_the_images(self, run: Run, shapes: CloudDataset) -> None:
        alone = replace(run, config=run.config.model_copy(update={"mode": "image-only"}))
        text = write_run_report(alone, evaluate_run(run, shapes, device="cpu"), shapes, None).read_text(
            "utf-8"
        )
        assert "Images: top-1 accuracy" in text
        assert "By what is said of the images." in text
        assert "the point encoder, which export takes, is that of the base" in text

    def test_an_interrupted_run_says_so(self, run: Run, shapes: CloudDataset) -> None:
        half = replace(run, config=run.config.model_copy(update={"epochs": 40}))
        text = write_run_report(half, evaluate_run(run, shapes, device="cpu"), shapes, None).read_text(
            "utf-8"
        )
        done = len((run.folder / "metrics.jsonl").read_text("utf-8").splitlines()) - 1
        assert f"The run was interrupted after {done} of 40 epochs" in text
        assert "of 40, chosen without labels" in text

    def test_how_many_clouds_changed_is_said_where_not_all_are_shown(
        self, run: Run, evaluation: Evaluation, shapes: CloudDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flipped = replace(evaluation, before={name: p[:, ::-1] for name, p in evaluation.after.items()})
        monkeypatch.setattr("crossmost.evaluation.run_report.MOST_EXAMPLES", 3)
        text = write_run_report(run, flipped, shapes, None).read_text("utf-8")
        won = (flipped.after["point"].argmax(1) == flipped.labels).sum()
        assert f"3 of {won} are shown, spread evenly over them." in text

    def test_skipped_files_and_a_stop_are_warned_of(self, run: Run, damaged: CloudDataset) -> None:
        lines = (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()
        last = json.loads(lines[-1]) | {"stopped": "the pseudo-labels have collapsed"}
        (run.folder / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
        text = write_run_report(run, evaluate_run(run, damaged, device="cpu"), damaged, damaged).read_text(
            "utf-8"
        )
        assert "The run stopped itself: the pseudo-labels have collapsed." in text
        assert "2 files could not be read" in text
        assert "shape4" in text
