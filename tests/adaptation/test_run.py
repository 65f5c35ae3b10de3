"""A run on disk: its files, what resuming gives, and that labels and a full disk change nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from crossmost.adaptation import run as runs
from crossmost.checkpoints.run import NAMES, load_run
from crossmost.checkpoints.store import load_generation, load_weights
from crossmost.config import TrainConfig, make_config, read_options
from crossmost.data.dataset import CloudDataset
from crossmost.errors import InputError, WorkFailed
from crossmost.runtime.vocabulary import Vocabulary, load_vocabulary

Records = list[dict[str, Any]]
OUTCOME = ("student.safetensors", "teacher.safetensors", "metrics.jsonl", "config.yaml")


class Folder:
    """A place for one run, and the ways to start, interrupt and resume it."""

    def __init__(self, path: Path, base: Path, vocabulary: Vocabulary):
        self.path = path
        self.base = base
        self.vocabulary = vocabulary
        self.batches: Records = []
        self.epochs: Records = []

    def train(
        self, clouds: CloudDataset, config: TrainConfig, on_batch: Callable[[], None] = lambda: None
    ) -> Folder:
        runs.train(
            clouds, self.base, self.vocabulary, config, self.path,
            on_batch=self._noting(on_batch), on_epoch=self.epochs.append,
        )  # fmt: skip
        return self

    def resume(self, clouds: CloudDataset, on_batch: Callable[[], None] = lambda: None) -> Folder:
        config = runs.check_resumable(self.path)
        runs.resume(clouds, self.path, config, on_batch=self._noting(on_batch), on_epoch=self.epochs.append)
        return self

    def train_until(self, batches: int, clouds: CloudDataset, config: TrainConfig) -> Folder:
        """Train and press Ctrl-C while that many batches are done."""
        with pytest.raises(KeyboardInterrupt):
            self.train(clouds, config, self.pressing_ctrl_c(batches))
        return self

    def train_until_before_the_first_save(
        self, clouds: CloudDataset, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
    ) -> Folder:
        def press(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("crossmost.adaptation.trainer.project", press)
            with pytest.raises(KeyboardInterrupt):
                self.train(clouds, config)
        return self

    def pressing_ctrl_c(self, batches: int) -> Callable[[], None]:
        def press() -> None:
            if len(self.batches) == batches:
                signal.raise_signal(signal.SIGINT)

        return press

    def outcome(self) -> dict[str, bytes]:
        return {name: (self.path / name).read_bytes() for name in OUTCOME}

    def _noting(self, then: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
        def note(figures: dict[str, Any]) -> None:
            self.batches.append(figures)
            then()

        return note


@pytest.fixture
def folder(tmp_path: Path, tiny_base: Path, tiny_vocabulary: Vocabulary) -> Callable[[str], Folder]:
    return lambda name: Folder(tmp_path / name, tiny_base, tiny_vocabulary)


MakeFolder = Callable[[str], Folder]
MakeConfig = Callable[..., TrainConfig]


class TestFiles:
    def test_a_finished_run_holds_what_the_design_lists(self, finished_run: Path) -> None:
        expected = {
            "student.safetensors", "teacher.safetensors", "base.safetensors", "classes.npz", "config.yaml",
            "metrics.jsonl", "pseudo_labels.npz", "provenance.json", "sample.npz", "state.pt",
        }  # fmt: skip
        assert {path.name for path in finished_run.iterdir()} == expected  # nothing hidden is left either
        assert torch.load(finished_run / "state.pt", weights_only=True)["progress"]["epoch"] == 2

    def test_base_vocabulary_and_options_are_those_of_the_run(
        self, finished_run: Path, tiny_base: Path, tiny_vocabulary: Vocabulary, tiny_config: MakeConfig
    ) -> None:
        assert (finished_run / "base.safetensors").read_bytes() == tiny_base.read_bytes()
        stored = load_vocabulary(finished_run / "classes.npz")
        assert stored.names == tiny_vocabulary.names
        np.testing.assert_array_equal(stored.embeddings, tiny_vocabulary.embeddings)
        assert make_config(read_options(finished_run / "config.yaml")) == tiny_config()

    def test_one_record_an_epoch_and_one_before_training(self, finished_run: Path) -> None:
        lines = (finished_run / "metrics.jsonl").read_text("utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["epoch"] for record in records] == [-1, 0, 1]
        assert "loss" not in records[0]
        for record in records:
            assert sum(record["histogram"]) == 24
            assert 0 <= record["watched/kept"] <= 1
            assert 0 <= record["watched/agreement"] <= 1

    def test_the_pseudo_labels_of_every_epoch_are_kept(self, finished_run: Path) -> None:
        with np.load(finished_run / "pseudo_labels.npz", allow_pickle=False) as stored:
            assert stored["ids"].tolist() == [f"shape{index}" for index in range(24)]
            assert stored["epoch"].tolist() == [-1, 0, 1]
            labels = stored["labels"]
        records = [
            json.loads(line) for line in (finished_run / "metrics.jsonl").read_text("utf-8").splitlines()
        ]
        for row, record in zip(labels, records, strict=True):
            assert (row >= 0).mean() == pytest.approx(record["watched/kept"])
            predicted = np.where(row >= 0, row, -1 - row)
            assert np.bincount(predicted, minlength=4).tolist() == record["histogram"]

    def test_a_loaded_run_has_its_networks_and_temperatures(
        self, finished_run: Path, tiny_base: Path
    ) -> None:
        loaded = load_run(finished_run)
        weights = {name: load_weights(finished_run / f"{name}.safetensors").tensors for name in NAMES}
        for name in NAMES:
            state = getattr(loaded, name).state_dict()
            assert all(torch.equal(state[key], value) for key, value in weights[name].items())
        base = load_weights(tiny_base).tensors
        zero_shot = loaded.zero_shot.state_dict()
        assert all(torch.equal(zero_shot[key], value) for key, value in base.items())
        assert any(not torch.equal(weights["student"][key], value) for key, value in base.items())
        records = [
            json.loads(line) for line in (finished_run / "metrics.jsonl").read_text("utf-8").splitlines()
        ]
        chosen = next(record for record in records if record["epoch"] == records[-1]["chosen_epoch"])
        expected = (chosen["temperature/point"], chosen["temperature/image"])
        assert loaded.temperatures["adapted"] == pytest.approx(expected)
        # The first record is of the base about the target's center, zero-shot of the base as it was given.
        state = load_generation(finished_run, NAMES).state
        assert loaded.temperatures["zero_shot"] == state["progress"]["zero_shot_temperatures"]
        assert loaded.temperatures["zero_shot"] != (
            records[0]["temperature/point"],
            records[0]["temperature/image"],
        )

    def test_the_callbacks_get_every_batch_and_every_epoch(
        self, folder: MakeFolder, shapes: CloudDataset, tiny_config: MakeConfig
    ) -> None:
        run = folder("run").train(shapes, tiny_config())
        assert len(run.batches) == 6
        assert all({"loss", "kept", "agreement"} <= figures.keys() for figures in run.batches)
        lines = (run.path / "metrics.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line) for line in lines] == run.epochs


class TestResume:
    @pytest.mark.parametrize(
        ("batches", "options"),
        [
            (1, {}),  # in the middle of the first epoch
            (3, {}),  # at its end
            (4, {}),  # in the middle of the second
            (4, {"recipe": "reference"}),
            (4, {"mode": "image-only"}),
            (4, {"precision": "bfloat16"}),
            (2, {"batch_size": 4, "accumulate": 2}),
            (3, {"batch_size": 4, "accumulate": 2}),  # between two batches of one step
            (6, {"batch_size": 8, "accumulate": 2, "epochs": 3}),  # a batch of each epoch is in no step
        ],
    )
    def test_it_gives_the_run_that_was_not_interrupted(
        self,
        folder: MakeFolder,
        shapes: CloudDataset,
        tiny_config: MakeConfig,
        batches: int,
        options: dict[str, Any],
    ) -> None:
        config = tiny_config(**options)
        whole = folder("whole").train(shapes, config)
        run = folder("run").train_until(batches, shapes, config)
        assert len(run.batches) < len(whole.batches)
        run.resume(shapes)
        assert run.batches == whole.batches  # none twice, none left out
        assert run.epochs == whole.epochs
        assert run.outcome() == whole.outcome()
        stored = [path / "pseudo_labels.npz" for path in (run.path, whole.path)]
        with np.load(stored[0]) as one, np.load(stored[1]) as other:
            assert all(np.array_equal(one[key], other[key]) for key in other.files)

    def test_a_run_of_another_format_is_refused_in_a_line(
        self,
        folder: MakeFolder,
        shapes: CloudDataset,
        tiny_config: MakeConfig,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        run = folder("run").train_until(2, shapes, tiny_config())
        monkeypatch.setattr(runs, "FORMAT", "crossmost-run/3")
        with pytest.raises(InputError, match=r"format crossmost-run/3, found crossmost-run/2: make it anew"):
            run.resume(shapes)

    def test_a_run_may_be_interrupted_again_and_again(
        self, folder: MakeFolder, shapes: CloudDataset, tiny_config: MakeConfig
    ) -> None:
        whole = folder("whole").train(shapes, tiny_config())
        run = folder("run").train_until(1, shapes, tiny_config())
        for batches in (2, 3, 5):
            with pytest.raises(KeyboardInterrupt):
                run.resume(shapes, run.pressing_ctrl_c(batches))
        run.resume(shapes)
        assert run.batches == whole.batches
        assert run.outcome() == whole.outcome()

    def test_a_run_that_stopped_before_its_first_save_starts_again(
        self,
        folder: MakeFolder,
        shapes: CloudDataset,
        tiny_config: MakeConfig,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        run = folder("run").train_until_before_the_first_save(shapes, tiny_config(), monkeypatch)
        assert run.resume(shapes).outcome() == folder("whole").train(shapes, tiny_config()).outcome()

    def test_a_run_with_bad_files_resumes_too(
        self,
        tmp_path: Path,
        folder: MakeFolder,
        write_shapes: Callable[..., Path],
        open_shapes: Callable[[Path], CloudDataset],
        tiny_config: MakeConfig,
    ) -> None:
        path = write_shapes(tmp_path / "damaged.npz", bad=(4, 17))
        whole = folder("whole").train(open_shapes(path), tiny_config())
        run = folder("run").train_until(4, open_shapes(path), tiny_config())
        assert run.resume(open_shapes(path)).outcome() == whole.outcome()

    def test_a_finished_run_is_left_as_it_is(
        self, folder: MakeFolder, finished_run: Path, shapes: CloudDataset
    ) -> None:
        run = folder("run")
        shutil.copytree(finished_run, run.path)
        before = run.outcome()
        assert run.resume(shapes).outcome() == before
        assert not run.batches

    def test_after_an_interruption_what_is_saved_loads(
        self, folder: MakeFolder, shapes: CloudDataset, tiny_config: MakeConfig
    ) -> None:
        run = folder("run").train_until(4, shapes, tiny_config())
        assert load_run(run.path).config == tiny_config()
        assert runs.batches_done(run.path, shapes, tiny_config()) == 4

    def test_ctrl_c_means_what_it_meant_before_once_the_run_is_over(
        self, folder: MakeFolder, shapes: CloudDataset, tiny_config: MakeConfig
    ) -> None:
        before = signal.getsignal(signal.SIGINT)
        folder("run").train_until(1, shapes, tiny_config())
        assert signal.getsignal(signal.SIGINT) is before

    def test_a_second_ctrl_c_ends_at_once_and_the_last_save_is_good(
        self, folder: MakeFolder, shapes: CloudDataset, tiny_config: MakeConfig
    ) -> None:
        run = folder("run")

        def press_twice() -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second one was not heard")

        # A test suite in the background is started with the signal ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                run.train(shapes, tiny_config(), press_twice)
        finally:
            signal.signal(signal.SIGINT, before)
        run.batches.clear()
        whole = folder("whole").train(shapes, tiny_config())
        assert run.resume(shapes).outcome() == whole.outcome()


class TestRefusals:
    def test_other_clouds_than_before(
        self,
        tmp_path: Path,
        folder: MakeFolder,
        shapes: CloudDataset,
        tiny_config: MakeConfig,
        write_shapes: Callable[..., Path],
        open_shapes: Callable[[Path], CloudDataset],
    ) -> None:
        run = folder("run").train_until(1, shapes, tiny_config())
        ids = np.array([f"other{index}" for index in range(24)])
        other = open_shapes(write_shapes(tmp_path / "other.npz", ids=ids))
        with pytest.raises(InputError, match="other clouds"):
            run.resume(other)
        with pytest.raises(InputError, match="other clouds"):
            run.resume(shapes.subset(range(20)))
        run.resume(shapes)

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("up_axis", "y", "--up-axis z"),
            ("columns", "xyz_", "--up-axis z"),
            ("color", "none", "--color auto"),
        ],
    )
    def test_the_same_clouds_read_in_another_way(
        self,
        folder: MakeFolder,
        shapes: CloudDataset,
        tiny_config: MakeConfig,
        name: str,
        value: str,
        words: str,
    ) -> None:
        run = folder("run").train_until(1, shapes, tiny_config())
        other = replace(shapes, preparation=replace(shapes.preparation, **{name: value}))
        with pytest.raises(InputError, match=rf"read with .*{words}.*: resume with the same"):
            run.resume(other)
        run.resume(shapes)

    def test_other_clouds_where_nothing_was_saved_yet(
        self,
        folder: MakeFolder,
        shapes: CloudDataset,
        tiny_config: MakeConfig,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        run = folder("run").train_until_before_the_first_save(shapes, tiny_config(), monkeypatch)
        with pytest.raises(InputError, match="other clouds"):
            run.resume(shapes.subset(range(20)))

    def test_other_clouds_of_the_same_names_unless_the_run_is_too_old_to_know_them(
        self,
        tmp_path: Path,
        folder: MakeFolder,
        shapes: CloudDataset,
        tiny_config: MakeConfig,
        write_shapes: Callable[..., Path],
        open_shapes: Callable[[Path], CloudDataset],
    ) -> None:
        run = folder("run").train_until(1, shapes, tiny_config())
        other = open_shapes(write_shapes(tmp_path / "shapes.npz", seed=1))
        assert other.ids == shapes.ids
        with pytest.raises(InputError, match="other clouds"):
            run.resume(other)
        noted = json.loads((run.path / "provenance.json").read_text("utf-8"))
        del noted["contents_sha256"]
        (run.path / "provenance.json").write_text(json.dumps(noted), "utf-8")
        run.resume(other)

    @pytest.mark.parametrize(
        ("mode", "noted", "refused"),
        [("joint", True, True), ("joint", False, False), ("point-only", True, False)],
    )
    def test_other_pictures_unless_none_are_looked_at_or_the_run_is_too_old_to_know_them(
        self,
        tmp_path: Path,
        folder: MakeFolder,
        tiny_config: MakeConfig,
        write_shapes: Callable[..., Path],
        open_shapes: Callable[[Path], CloudDataset],
        mode: str,
        noted: bool,
        refused: bool,
    ) -> None:
        shapes = open_shapes(write_shapes(tmp_path / "shapes.npz"))
        view = shapes.folder / "views" / shapes.ids[3] / "0.png"
        view.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(view)
        run = folder("run").train_until(1, shapes, tiny_config(mode=mode))
        before = view.read_bytes()
        Image.new("RGB", (9, 9)).save(view)
        if not noted:
            facts = json.loads((run.path / "provenance.json").read_text("utf-8"))
            del facts["views_sha256"]
            (run.path / "provenance.json").write_text(json.dumps(facts), "utf-8")
        if refused:
            with pytest.raises(InputError, match="other pictures in views/: resume with the same"):
                run.resume(shapes)
            view.write_bytes(before)
        run.resume(shapes)

    def test_a_folder_that_holds_a_run(
        self, folder: MakeFolder, finished_run: Path, shapes: CloudDataset, tiny_config: MakeConfig
    ) -> None:
        run = folder("run")
        shutil.copytree(finished_run, run.path)
        before = run.outcome()
        with pytest.raises(InputError, match=r"already holds a run.*--resume"):
            run.train(shapes, tiny_config())
        assert run.outcome() == before

    def test_so_few_clouds_that_nothing_can_be_found_out_are_told(
        self, folder: MakeFolder, shapes: CloudDataset, tiny_config: MakeConfig
    ) -> None:
        run, said = folder("run"), []
        config = tiny_config(epochs=0)
        runs.train(shapes, run.base, run.vocabulary, config, run.path, on_warning=said.append)
        assert said == [
            "24 clouds are few: below 64 the up axis is not checked, nor center and kept_share chosen; "
            f"optimiser steps of this run: 0 (batch_size={config.batch_size}, epochs=0)"
        ]
        assert runs.few_clouds(64, config) is None
        assert "run: 6 (batch_size=16, epochs=2)" in str(
            runs.few_clouds(50, make_config({"batch_size": 16, "epochs": 2}))
        )

    def test_a_folder_without_a_run(self, folder: MakeFolder, shapes: CloudDataset) -> None:
        with pytest.raises(InputError, match="no run to resume"):
            folder("nothing").resume(shapes)

    def test_a_folder_that_its_files_could_not_be_read_from(
        self, folder: MakeFolder, shapes: CloudDataset, tiny_config: MakeConfig
    ) -> None:
        run = folder("l\udcfc")
        with pytest.raises(
            InputError, match=r"expected a path in UTF-8, found .*: rename it, or choose another"
        ):
            run.train(shapes, tiny_config())
        assert not run.path.exists()

    def test_too_many_bad_clouds_before_a_folder_is_made(
        self,
        tmp_path: Path,
        folder: MakeFolder,
        tiny_config: MakeConfig,
        write_shapes: Callable[..., Path],
        open_shapes: Callable[[Path], CloudDataset],
    ) -> None:
        run = folder("run")
        with pytest.raises(InputError, match="at most a tenth of bad files, found 3 of 24"):
            run.train(open_shapes(write_shapes(tmp_path / "damaged.npz", bad=(0, 1, 2))), tiny_config())
        assert not run.path.exists()

    def test_a_vocabulary_of_another_width_before_a_folder_is_made(
        self, folder: MakeFolder, shapes: CloudDataset, tiny_config: MakeConfig
    ) -> None:
        run = folder("run")
        rows = np.random.default_rng(0).standard_normal((4, 24))
        run.vocabulary = Vocabulary.create("abcd", rows, logit_scale=100.0)
        with pytest.raises(InputError, match=r"16 numbers for this base .*, found 24"):
            run.train(shapes, tiny_config())
        assert not run.path.exists()


class TestLabels:
    @pytest.mark.parametrize("recipe", ["crossmost", "reference"])
    def test_shuffled_labels_or_none_give_the_same_checkpoint(
        self,
        tmp_path: Path,
        folder: MakeFolder,
        tiny_config: MakeConfig,
        write_shapes: Callable[..., Path],
        open_shapes: Callable[[Path], CloudDataset],
        recipe: str,
    ) -> None:
        labels = np.arange(24) % 4
        shuffled = np.random.default_rng(0).permutation(labels)
        assert (labels != shuffled).any()
        outcomes = []
        variants: list[dict[str, Any]] = [{}, {"labels": shuffled}, {"labels": None, "class_names": None}]
        for number, arrays in enumerate(variants):
            (tmp_path / str(number)).mkdir()
            clouds = open_shapes(write_shapes(tmp_path / str(number) / "shapes.npz", **arrays))
            assert (clouds.labels is None) == (number == 2)
            outcomes.append(folder(f"run{number}").train(clouds, tiny_config(recipe=recipe)).outcome())
        assert outcomes[0] == outcomes[1] == outcomes[2]


class TestAlone:
    def test_a_run_that_is_being_trained_is_refused_to_others(
        self, folder: MakeFolder, shapes: CloudDataset, tiny_config: MakeConfig
    ) -> None:
        """Two processes in one folder would leave the options of one and the weights of the other."""
        mine, said = folder("run"), []

        def others() -> None:
            for begin in (
                lambda: folder("run").train(shapes, tiny_config()),
                lambda: folder("run").resume(shapes),
            ):
                with pytest.raises(InputError) as caught:
                    begin()
                said.append(str(caught.value))

        mine.train(shapes, tiny_config(), others)
        assert set(said) == {
            f"{mine.path} already holds a run: continue it with --resume, or choose another --out",
            f"{mine.path}: another process trains this run: wait for it, or choose another --out",
        }

    def test_one_that_another_process_began_meanwhile_is_kept(
        self,
        folder: MakeFolder,
        shapes: CloudDataset,
        tiny_config: MakeConfig,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Between the look at the folder and the first file in it a large base is loaded."""

        def begin(*_: object) -> None:
            monkeypatch.undo()
            folder("run").train(shapes, tiny_config())

        monkeypatch.setattr(runs, "few_clouds", begin)
        with pytest.raises(InputError, match="already holds a run"):
            folder("run").train(shapes, tiny_config(seed=5))
        assert read_options(folder("run").path / "config.yaml")["seed"] != 5

    def test_a_file_system_without_locks_is_no_hindrance(
        self,
        folder: MakeFolder,
        shapes: CloudDataset,
        tiny_config: MakeConfig,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def refuse(number: int) -> None:
            @contextlib.contextmanager
            def lock(*_: object) -> Iterator[None]:
                raise OSError(number, os.strerror(number))
                yield

            monkeypatch.setattr(runs, "locked", lock)

        refuse(errno.ENOLCK)
        assert folder("run").train(shapes, tiny_config()).outcome()
        refuse(errno.EACCES)
        with pytest.raises(PermissionError):
            folder("other").train(shapes, tiny_config())

    def test_records_that_a_killed_process_left_behind_are_written_again(
        self, folder: MakeFolder, shapes: CloudDataset, tiny_config: MakeConfig
    ) -> None:
        """Weights and state are saved first; killed in between, a finished run would pass for an interrupted one."""
        done = folder("run").train(shapes, tiny_config())
        written = (done.path / "metrics.jsonl").read_text()
        (done.path / "metrics.jsonl").write_text("".join(written.splitlines(keepends=True)[:-1]))
        done.resume(shapes)
        assert (done.path / "metrics.jsonl").read_text() == written


class TestFullDisk:
    def test_the_last_good_checkpoint_survives_and_the_run_resumes(
        self,
        folder: MakeFolder,
        shapes: CloudDataset,
        tiny_config: MakeConfig,
        full_disk: Callable[[int], Any],
    ) -> None:
        whole = folder("whole").train(shapes, tiny_config())
        run = folder("run")
        saved: dict[str, bytes] = {}
        with contextlib.ExitStack() as disk:

            def fill() -> None:
                """From the second epoch on nothing large can be written."""
                if len(run.batches) == 4:
                    saved.update(run.outcome())
                    disk.enter_context(full_disk(20_000))

            with pytest.raises(WorkFailed) as caught:
                run.train(shapes, tiny_config(), fill)
        assert str(run.path) in str(caught.value)
        assert "untouched" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert run.outcome() == saved
        assert load_run(run.path).temperatures.keys() == {"zero_shot", "adapted"}
        del run.batches[3:]  # the failed epoch runs again
        run.resume(shapes)
        assert run.batches == whole.batches
        assert run.outcome() == whole.outcome()
