from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from typer.testing import CliRunner

from crossmost import answers
from crossmost.answers import Named
from crossmost.checkpoints.base import load_base, save_base
from crossmost.cli import app
from crossmost.data.reading import Reading
from crossmost.errors import WorkFailed
from crossmost.models.student import embed_points
from crossmost.runtime import Classifier, bench
from crossmost.runtime.clouds_in import CloudsIn
from crossmost.runtime.manifest import load_manifest
from crossmost.runtime.recording import InvalidRecording, Recorded, read_recording


@pytest.fixture
def crossmost():
    def run(*arguments: object):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def folder(tmp_path, rng):
    """Three clouds of a user, one of them far away and large."""
    clouds = tmp_path / "scans"
    clouds.mkdir()
    for name, scale in (("a", 1.0), ("b", 1e3), ("c", 1e-3)):
        np.save(clouds / f"{name}.npy", rng.standard_normal((90, 3)) * scale + 1e4 * scale)
    return clouds


@pytest.mark.parametrize("suffix", [".stl", ".npy"])
@pytest.mark.parametrize("channels", [3, 6])
def test_a_robot_sees_the_very_clouds_that_training_saw(
    bundle, tmp_path, rng, monkeypatch, tiny_architecture, suffix, channels
):
    """An encoder of more points than are drawn from a mesh as a rule."""
    if suffix == ".stl":
        trimesh.creation.box((3, 2, 1)).export(tmp_path / "a.stl")
    else:
        np.save(tmp_path / "a.npy", rng.standard_normal((12_000, 3)) * 300 + 1e4)
    manifest = load_manifest(bundle("fp32"))
    encoder = dataclasses.replace(manifest.encoder, points=10_000, channels=channels)
    monkeypatch.setattr(answers, "load_manifest", lambda _: dataclasses.replace(manifest, encoder=encoder))
    card = tiny_architecture.point.model_copy(update={"points": 10_000, "channels": channels})
    reading = Reading(up_axis="y")
    trained = reading.open(tmp_path, card).load(0)
    assert trained.shape == (10_000, channels)
    (given,) = answers.readable(answers.open_clouds(bundle("fp32"), tmp_path, reading), tmp_path, {})
    np.testing.assert_array_equal(CloudsIn(encoder, answers.DATASET_UP).prepare(given.points).points, trained)


class TestPredict:
    def test_one_json_object_a_line(self, bundle, crossmost, folder):
        done = crossmost("predict", bundle("fp32"), folder, "--json")
        assert done.exit_code == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["file"] for line in lines] == ["a", "b", "c"]
        assert [line["path"] for line in lines] == ["a.npy", "b.npy", "c.npy"]
        with Classifier.load(bundle("fp32")) as classifier:
            expected = classifier([np.load(folder / f"{name}.npy") for name in "abc"])
        for line, prediction in zip(lines, expected, strict=True):
            assert set(line) == {
                "file", "path", "label", "score", "top_k", "similarity", "unknown", "dropped", "points"
            }  # fmt: skip
            assert line["points"] == 90
            assert line["similarity"] == pytest.approx(prediction.similarity, abs=1e-4)
            assert line["dropped"] == 0
            assert line["label"] == prediction.label
            assert line["score"] == pytest.approx(prediction.score, abs=1e-4)
            assert line["top_k"][0] == [line["label"], line["score"]]

    def test_lines_for_people(self, bundle, crossmost, folder):
        done = crossmost("predict", bundle("fp32"), folder / "a.npy")
        name, label, score, others = done.stdout.strip().split("\t")
        assert name == "a"
        assert label.removeprefix("unknown (like ").rstrip(")") in {"bottle", "chair", "monitor", "table"}
        assert 0 <= float(score) <= 1
        assert "," in others

    def test_an_archive_and_its_split(self, bundle, crossmost, tmp_path, write_shapes):
        split = np.array(["train", "test"] * 6)
        archive = write_shapes(tmp_path / "s.npz", 12, split=split)
        done = crossmost("predict", bundle("fp16"), archive, "--split", "test", "--json")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["file"] for line in lines] == [f"shape{index}" for index in range(1, 12, 2)]
        assert {line["path"] for line in lines} == {str(archive)}

    def test_paths_are_below_the_folder_that_was_given_or_as_given(self, bundle, crossmost, folder):
        (folder / "kind").mkdir()
        (folder / "b.npy").rename(folder / "kind" / "b.npy")
        done = crossmost("predict", bundle("fp32"), folder, "--json")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["path"] for line in lines] == ["a.npy", "c.npy", "kind/b.npy"]
        assert all((folder / line["path"]).is_file() for line in lines)
        alone = crossmost("predict", bundle("fp32"), folder / "a.npy", "--json")
        assert json.loads(alone.stdout)["path"] == str(folder / "a.npy")

    def test_a_cloud_that_cannot_be_read_is_named_and_skipped(self, bundle, crossmost, folder):
        (folder / "b.npy").write_bytes(b"nothing")
        done = crossmost("predict", bundle("fp32"), folder, "--json")
        assert done.exit_code == 0
        assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == ["a", "c"]
        assert re.search(r"skipped 1 that could not be read:\n  \S*b\.npy: .+$", done.stderr)

    def test_of_many_that_cannot_be_read_the_first_ones_are_named(self, bundle, crossmost, folder):
        for number in range(13):
            (folder / f"bad{number:02}.npy").write_bytes(b"nothing")
        said = crossmost("predict", bundle("fp32"), folder).stderr.splitlines()
        assert said[0] == "skipped 13 that could not be read:"
        assert [re.match(r"  \S*(bad\d\d)\.npy: .", line)[1] for line in said[1:11]] == [
            f"bad{number:02}" for number in range(10)
        ]
        assert said[11:] == ["  and 3 more"]

    def test_a_line_is_an_answer_and_a_tab_its_column_whatever_is_in_a_name(self, bundle, crossmost, folder):
        (folder / "b.npy").rename(folder / "b\tb\nb.npy")
        lines = crossmost("predict", bundle("fp32"), folder).stdout.splitlines()
        assert [line.split("\t")[0] for line in lines] == ["a", "b b b", "c"]
        assert len({len(line.split("\t")) for line in lines}) == 1

    def test_files_that_are_no_clouds_are_counted(self, bundle, crossmost, folder, tmp_path):
        (folder / "notes.txt").write_text("of the day")
        for command in (("predict",), ("embed", "--out", tmp_path / "e.npy")):
            done = crossmost(command[0], bundle("fp32"), folder, *command[1:])
            assert done.exit_code == 0
            assert "1 .txt file" in done.stderr
            assert "left out" in done.stderr

    def test_other_classes_of_a_vocabulary(self, bundle, crossmost, folder, tmp_path, tiny_vocabulary):
        tiny_vocabulary.select(("table", "bottle")).save(tmp_path / "two.npz")
        done = crossmost("predict", bundle("fp32"), folder, "--classes", tmp_path / "two.npz", "--json")
        assert {json.loads(line)["label"] for line in done.stdout.splitlines()} <= {"table", "bottle"}
        own = crossmost("predict", bundle("fp32"), folder, "--classes", "chair, monitor", "--json")
        assert {json.loads(line)["label"] for line in own.stdout.splitlines()} <= {"chair", "monitor"}
        for said in (done.stderr, own.stderr):  # the bundle has a threshold for all of its classes
            assert said.count("no cloud will be unknown") == 1

    def test_a_plain_vocabulary_of_its_classes_scores_as_the_bundle_does(
        self, bundle, crossmost, folder, finished_run
    ):
        own = crossmost("predict", bundle("fp32"), folder, "--json")
        done = crossmost(
            "predict", bundle("fp32"), folder, "--classes", finished_run / "classes.npz", "--json"
        )
        # Training has moved the class vectors that the threshold was found with.
        assert done.stderr.count("no cloud will be unknown") == 1
        for line, expected in zip(done.stdout.splitlines(), own.stdout.splitlines(), strict=True):
            assert json.loads(line)["score"] == pytest.approx(json.loads(expected)["score"], abs=0.1)

    def test_class_names_are_read_as_for_training(self, bundle, crossmost, folder, tmp_path):
        names = tmp_path / "names.txt"
        names.write_text("chair   # to sit on\n\n# nothing\nmonitor\n")
        done = crossmost("predict", bundle("fp32"), folder, "--classes", names, "--json")
        assert done.exit_code == 0, done.stderr
        assert {json.loads(line)["label"] for line in done.stdout.splitlines()} <= {"chair", "monitor"}

    def test_a_recording(self, bundle, crossmost, tmp_path, rng):
        recording = write_recording(tmp_path / "drive", rng)
        done = crossmost("predict", bundle("fp32"), recording, "--topic", "/objects", "--json")
        assert done.exit_code == 0, done.stderr
        assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == ["1000", "3000"]
        assert {json.loads(line)["path"] for line in done.stdout.splitlines()} == {str(recording)}
        assert "2000" in done.stderr

    def test_the_up_axis_of_a_recording(self, bundle, crossmost, tmp_path, rng):
        recording = write_recording(tmp_path / "drive", rng)
        clouds = [found.points for found in read_recording(recording, "/objects") if found.time != 2000]
        done = crossmost(
            "predict", bundle("fp32"), recording, "--topic", "/objects", "--json", "--up-axis", "y"
        )
        assert done.exit_code == 0, done.stderr
        with Classifier.load(bundle("fp32"), up_axis="y") as classifier:
            for line, prediction in zip(done.stdout.splitlines(), classifier(clouds), strict=True):
                assert json.loads(line)["score"] == pytest.approx(prediction.score, abs=1e-6)
        upright = crossmost("predict", bundle("fp32"), recording, "--topic", "/objects", "--json")
        assert upright.stdout != done.stdout

    def test_the_colours_of_a_recording_can_be_left_out(self, tmp_path, rng, monkeypatch):
        asked = []

        def read(path, topic, note, *, colors):
            asked.append(colors)
            return iter([Recorded(1, rng.uniform(size=(40, 6 if colors else 3)), 7, "lidar")])

        monkeypatch.setattr(answers, "read_recording", read)
        for colored in (True, False):
            (found,) = answers.messages(tmp_path, None, {}, colored=colored)
            assert found.points.shape == (40, 6 if colored else 3)
            assert found.header == {"stamp": 7, "frame_id": "lidar"}
        assert asked == [True, False]

    def test_messages_of_one_time_that_hold_no_cloud_are_all_counted(self, tmp_path, monkeypatch):
        """A frame of zeros is one where nothing came back."""
        empty = [Recorded(5, np.zeros((9, 3)), 5, ""), Recorded(5, np.full((9, 3), np.nan), 5, "")]
        monkeypatch.setattr(answers, "read_recording", lambda *_, **__: iter(empty))
        bad = {}
        assert list(answers.messages(tmp_path, None, bad)) == []
        assert list(bad) == ["5", "5 (2)"]

    def test_colours_are_decoded_for_an_encoder_of_colours_alone(self, bundle, monkeypatch):
        manifest = load_manifest(bundle("fp32"))
        for channels in (3, 6):
            encoder = dataclasses.replace(manifest.encoder, channels=channels)
            changed = dataclasses.replace(manifest, encoder=encoder)
            monkeypatch.setattr(answers, "load_manifest", lambda _, changed=changed: changed)
            assert answers.looks_at_colors(bundle("fp32"), Reading()) == (channels == 6)
            assert not answers.looks_at_colors(bundle("fp32"), Reading(color="none"))

    def test_a_name_that_the_terminal_has_no_letters_for(self, bundle, crossmost, folder):
        (folder / "a.npy").rename(folder / "\N{SNOWMAN}\N{GRINNING FACE}.npy")
        command = [sys.executable, "-m", "crossmost", "predict", bundle("fp32"), folder, "--json"]
        environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
        done = subprocess.run(command, capture_output=True, env=environment, check=True)
        names = [json.loads(line)["file"] for line in done.stdout.decode("latin-1").splitlines()]
        assert names == ["b", "c", "\N{SNOWMAN}\N{GRINNING FACE}"]
        assert crossmost("predict", bundle("fp32"), folder, "--json").stdout.count("\N{GRINNING FACE}") == 2

    def test_what_cannot_be_read_is_told_apart_by_path(self, bundle, crossmost, folder, tmp_path):
        other = Path(shutil.copytree(folder, tmp_path / "other"))
        for place in (folder, other):
            (place / "b.npy").write_bytes(b"no array")
        for command in (("predict",), ("embed", "--out", tmp_path / "e.npy")):
            done = crossmost(command[0], bundle("fp32"), folder, other, *command[1:])
            assert done.exit_code == 0, done.stderr
            assert "skipped 2 that could not be read" in done.stderr
            for place in (folder, other):
                assert str(place / "b.npy") in done.stderr

    def test_all_paths_are_looked_at_before_the_first_is_answered(
        self, bundle, crossmost, folder, tmp_path, rng
    ):
        recording = write_recording(tmp_path / "drive", rng)
        for more, message in (
            ([tmp_path / "nowhere"], "nowhere: expected a folder or file of clouds"),
            ([recording, "--topic", "/objects"], "expected a recording (.mcap, .bag, .db3) for --topic"),
        ):
            done = crossmost("predict", bundle("fp32"), folder, *more)
            assert done.exit_code == 2
            assert done.stdout == ""
            assert message in done.stderr

    def test_several_paths_in_their_order(self, bundle, crossmost, folder, tmp_path, rng):
        recording = write_recording(tmp_path / "drive", rng)
        done = crossmost("predict", bundle("fp32"), folder / "c.npy", recording, folder, "--json")
        assert done.exit_code == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["file"] for line in lines] == ["c", "1000", "3000", "a", "b", "c"]
        assert [line["given"] for line in lines] == [
            str(folder / "c.npy"), *[str(recording)] * 2, *[str(folder)] * 3
        ]  # fmt: skip
        assert [set(line) >= {"stamp", "frame_id"} for line in lines] == [
            False,
            True,
            True,
            False,
            False,
            False,
        ]

    def test_messages_are_z_up_and_have_columns_of_their_own_whatever_the_runs_files_had(
        self, bundle, crossmost, tmp_path, rng
    ):
        other = shutil.copytree(bundle("fp32"), tmp_path / "other.bundle")
        manifest = json.loads((other / "manifest.json").read_text("utf-8"))
        manifest["provenance"]["training"]["reading"] = {
            "up_axis": "y",
            "columns": "xyz_rgb",
            "color": "auto",
        }
        (other / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        recording = write_recording(tmp_path / "drive", rng)
        for options in ((), ("--up-axis", "y")):
            found = [
                crossmost("predict", each, recording, "--topic", "/objects", *options)
                for each in (bundle("fp32"), other)
            ]
            assert found[0].exit_code == found[1].exit_code == 0, found[1].stderr
            assert found[0].stdout == found[1].stdout

    @pytest.mark.parametrize("option", [("--split", "test"), ("--columns", "xyz")])
    def test_what_a_recording_has_no_use_for_is_refused(self, bundle, crossmost, tmp_path, rng, option):
        recording = write_recording(tmp_path / "drive", rng)
        done = crossmost("predict", bundle("fp32"), recording, "--topic", "/objects", *option)
        assert done.exit_code == 2
        assert f"{option[0]} is for files and datasets" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["nowhere", "{folder}"], 2, "bundle"),
            (["{bundle}", "nowhere"], 2, "nowhere"),
            (["{bundle}", "{folder}", "--backend", "quantum"], 2, "expected backend"),
            (["{bundle}", "{folder}", "--backend", "tensorrt"], 1, "tensorrt"),
            (["{bundle}", "{folder}", "--topic", "/objects"], 2, "recording"),
            (["{bundle}", "{folder}", "--classes", "wine glass,spoon"], 2, "--text-encoder"),
            (["{bundle}", "{folder}", "--classes", "clases.txt"], 2, "found 'clases.txt', no such file"),
            (["{bundle}", "{folder}", "--up-axis", "w"], 2, "axis"),
        ],
    )
    def test_wrong_use_is_one_line(self, bundle, crossmost, folder, arguments, code, message):
        filled = [entry.format(bundle=bundle("fp32"), folder=folder) for entry in arguments]
        done = crossmost("predict", *filled)
        assert done.exit_code == code, done.output
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_what_is_no_bundle_yet_says_how_one_is_made(self, finished_run, tiny_base, crossmost, folder):
        for given, found, classes in (
            (finished_run, "a run", ""), (tiny_base, "a base", " --classes mug,bowl"),
            ("uni3d-b", "a base", " --classes mug,bowl"),
        ):  # fmt: skip
            done = crossmost("predict", given, folder)
            assert done.exit_code == 2
            assert f"found {found}: make one with `crossmost export {given} --out " in done.stderr
            assert done.stderr.rstrip().endswith(f".bundle{classes}`")

    def test_nothing_readable_is_an_error(self, bundle, crossmost, tmp_path):
        np.save(tmp_path / "a.npy", np.full((9, 3), np.nan))
        done = crossmost("predict", bundle("fp32"), tmp_path)
        assert done.exit_code == 2
        assert "found none that can be read" in done.stderr


def write_recording(path, rng):
    """A rosbag2 folder of three messages, the second without a usable point."""
    pytest.importorskip("rosbags")
    from rosbags.rosbag2 import Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    field = types["sensor_msgs/msg/PointField"]
    header = types["std_msgs/msg/Header"](
        stamp=types["builtin_interfaces/msg/Time"](sec=0, nanosec=0), frame_id="lidar"
    )
    fields = [field(name=name, offset=4 * at, datatype=7, count=1) for at, name in enumerate("xyz")]
    with Writer(path, version=9) as writer:
        connection = writer.add_connection("/objects", "sensor_msgs/msg/PointCloud2", typestore=store)
        for stamp in (1000, 2000, 3000):
            points = (
                rng.standard_normal((70, 3)).astype("<f4")
                if stamp != 2000
                else np.full((3, 3), np.nan, "<f4")
            )
            message = types["sensor_msgs/msg/PointCloud2"](
                header=header, height=1, width=len(points), fields=fields, is_bigendian=False, point_step=12,
                row_step=12 * len(points), data=np.frombuffer(points.tobytes(), np.uint8), is_dense=False,
            )  # fmt: skip
            writer.write(connection, stamp, store.serialize_cdr(message, message.__msgtype__))
    return path


def test_what_came_before_the_damage_is_answered_first():
    clouds = [Named(str(row), "", np.zeros((1, 3))) for row in range(20)]

    def damaged():
        yield from clouds
        raise InvalidRecording("cut off")

    found = answers.parts(damaged())
    assert [next(found), next(found)] == [clouds[:16], clouds[16:]]
    with pytest.raises(InvalidRecording, match="cut off"):
        next(found)


def test_large_scans_are_answered_a_few_at_a_time():
    clouds = [Named(str(row), "", np.zeros((count, 3))) for row, count in enumerate((6, 3, 1, 20, 2))]
    assert [[cloud.name for cloud in part] for part in answers.parts(clouds, 3, 10)] == [
        ["0", "1", "2"], ["3"], ["4"],
    ]  # fmt: skip


class TestEmbed:
    def test_bundle_run_and_base_give_rows_in_order(
        self, bundle, crossmost, folder, tmp_path, finished_run, tiny_base
    ):
        rows = {}
        for name, model in (("bundle", bundle("fp32")), ("run", finished_run), ("base", tiny_base)):
            out = tmp_path / f"{name}.npy"
            done = crossmost("embed", model, folder, folder / "a.npy", "--out", out)
            assert done.exit_code == 0, done.stderr
            rows[name] = np.load(out)
            assert rows[name].shape == (4, 16)
            assert rows[name].dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(rows[name], axis=1), 1, atol=1e-5)
            np.testing.assert_allclose(rows[name][0], rows[name][3], atol=1e-5)
        np.testing.assert_allclose(rows["bundle"], rows["run"], atol=1e-4)
        assert np.abs(rows["run"] - rows["base"]).max() > 1e-4

    def test_a_cloud_that_cannot_be_read_has_no_row_and_is_named(
        self, bundle, crossmost, folder, tmp_path, tiny_base
    ):
        for model in (bundle("fp32"), tiny_base):
            crossmost("embed", model, folder, "--out", tmp_path / "all.npy")
            (folder / "b.npy").rename(tmp_path / "b.npy")
            (folder / "b.npy").write_bytes(b"nothing")
            done = crossmost("embed", model, folder, "--out", tmp_path / "e.npy")
            assert done.exit_code == 0
            assert re.search(r"skipped 1 that could not be read:\n  \S*b\.npy: .+$", done.stderr)
            assert (tmp_path / "e.ids.txt").read_text("utf-8") == "a.npy\nc.npy\n"
            np.testing.assert_allclose(
                np.load(tmp_path / "e.npy"), np.load(tmp_path / "all.npy")[[0, 2]], atol=1e-5
            )
            (tmp_path / "b.npy").replace(folder / "b.npy")

    def test_a_topic_is_of_a_recording_and_a_recording_of_a_bundle(
        self, bundle, crossmost, folder, tmp_path, rng, tiny_base
    ):
        recording = write_recording(tmp_path / "drive", rng)
        for model, path, topic, said in (
            (bundle("fp32"), recording, "/other", "'/other' is none; found /objects"),
            (bundle("fp32"), folder, "/objects", "expected a recording"),
            (tiny_base, recording, "/objects", "expected a bundle for --topic"),
        ):
            done = crossmost("embed", model, path, "--topic", topic, "--out", tmp_path / "e.npy")
            assert done.exit_code == 2
            assert said in done.stderr
            assert not (tmp_path / "e.npy").exists()

    def test_nothing_is_written_where_no_cloud_can_be_read(self, bundle, crossmost, tmp_path, tiny_base):
        (tmp_path / "scans").mkdir()
        (tmp_path / "scans/b.npy").write_bytes(b"nothing")
        for model in (bundle("fp32"), tiny_base):
            done = crossmost("embed", model, tmp_path / "scans", "--out", tmp_path / "e.npy")
            assert done.exit_code == 2
            assert "found none that can be read" in done.stderr
            assert "b.npy" in done.stderr
            assert not list(tmp_path.glob("e.*"))

    def test_backend_and_threads_are_a_bundles(
        self, bundle, crossmost, folder, tmp_path, finished_run, monkeypatch
    ):
        asked, load = [], Classifier.load
        monkeypatch.setattr(
            Classifier, "load", lambda *given, **how: asked.append(how) or load(*given, **how)
        )
        more = ("--out", tmp_path / "e.npy", "--backend", "onnxruntime-cpu")
        done = crossmost("embed", bundle("fp32"), folder, *more, "--threads", "1")
        assert done.exit_code == 0, done.stderr
        assert asked == [{"backend": "onnxruntime-cpu", "threads": 1, "color": "auto"}]
        refused = crossmost("embed", finished_run, folder, *more)
        assert refused.exit_code == 2
        assert "expected a bundle for --backend" in refused.stderr

    def test_the_clouds_of_a_recording(self, bundle, crossmost, folder, tmp_path, rng):
        recording = write_recording(tmp_path / "drive", rng)
        done = crossmost("embed", bundle("fp32"), recording, "--out", tmp_path / "e.npy")
        assert done.exit_code == 0, done.stderr
        assert (tmp_path / "e.ids.txt").read_text("utf-8") == "1000\n3000\n"
        assert "2000: it holds no usable point" in done.stderr
        with Classifier.load(bundle("fp32")) as classifier:
            expected = classifier.embed(
                [found.points for found in read_recording(recording) if len(found.points) > 3]
            )
        np.testing.assert_allclose(np.load(tmp_path / "e.npy"), expected, atol=1e-5)
        done = crossmost(
            "embed", bundle("fp32"), recording, "--topic", "/objects", "--out", tmp_path / "t.npy"
        )
        assert done.exit_code == 0, done.stderr
        np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), np.load(tmp_path / "e.npy"))
        refused = crossmost(
            "embed", bundle("fp32"), recording, "--columns", "xyz", "--out", tmp_path / "e.npy"
        )
        assert refused.exit_code == 2
        assert "--columns is for files and datasets" in refused.stderr
        crossmost("embed", bundle("fp32"), folder, recording, "--up-axis", "y", "--out", tmp_path / "e.npy")
        assert (tmp_path / "e.ids.txt").read_text("utf-8").splitlines()[2:] == [
            f"{folder}/c.npy", f"{recording}/1000", f"{recording}/3000"
        ]  # fmt: skip
        with Classifier.load(bundle("fp32"), up_axis="y") as classifier:
            of_file = classifier.embed(np.load(folder / "a.npy"))
            turned = classifier.embed(
                [found.points for found in read_recording(recording) if len(found.points) > 3]
            )
        np.testing.assert_allclose(np.load(tmp_path / "e.npy")[[0, 3, 4]], [*of_file, *turned], atol=1e-5)

    def test_rows_have_names(self, bundle, crossmost, folder, tmp_path, tiny_base, write_shapes):
        archive = write_shapes(tmp_path / "shapes.npz", 3)
        for model in (bundle("fp32"), tiny_base):
            crossmost("embed", model, folder, "--out", tmp_path / "e.npy")
            assert (tmp_path / "e.ids.txt").read_text("utf-8") == "a.npy\nb.npy\nc.npy\n"
            crossmost("embed", model, archive, "--out", tmp_path / "e.v2.npy")
            assert (tmp_path / "e.v2.ids.txt").read_text("utf-8") == "shape0\nshape1\nshape2\n"
        crossmost("embed", tiny_base, folder, folder / "a.npy", archive, "--out", tmp_path / "e.npy")
        names = (tmp_path / "e.ids.txt").read_text("utf-8").splitlines()
        assert names[:4] == [str(folder / f"{name}.npy") for name in "abca"]
        assert names[4:] == [f"{archive}/shape{index}" for index in range(3)]

    def test_a_line_is_a_row_whatever_is_in_a_name(self, bundle, crossmost, folder, tmp_path):
        (folder / "b.npy").rename(folder / "b\nb.npy")
        (folder / "c.npy").rename(folder / "c  c.npy")
        crossmost("embed", bundle("fp32"), folder, "--out", tmp_path / "e.npy")
        assert (tmp_path / "e.ids.txt").read_text("utf-8") == "a.npy\nb b.npy\nc  c.npy\n"

    def test_one_split(self, bundle, crossmost, tmp_path, tiny_base, write_shapes):
        archive = write_shapes(tmp_path / "s.npz", 6, split=np.array(["train", "test", "train"] * 2))
        for model in (bundle("fp32"), tiny_base):
            done = crossmost("embed", model, archive, "--split", "test", "--out", tmp_path / "e.npy")
            assert done.exit_code == 0, done.stderr
            assert np.load(tmp_path / "e.npy").shape == (2, 16)
            assert (tmp_path / "e.ids.txt").read_text("utf-8").split() == ["shape1", "shape4"]

    def test_the_threads_of_a_base(self, crossmost, folder, tmp_path, tiny_base, monkeypatch):
        used = []

        def embed(encoder, head, clouds):
            used.append(torch.get_num_threads())
            return embed_points(encoder, head, clouds)

        monkeypatch.setattr("crossmost.workflows.embed_points", embed)
        before = torch.get_num_threads()
        for threads in (1, 3):
            crossmost("embed", tiny_base, folder, "--threads", threads, "--out", tmp_path / "e.npy")
        crossmost("embed", tiny_base, folder, "--out", tmp_path / "e.npy")
        assert used == [1, 3, before]
        assert torch.get_num_threads() == before

    @pytest.mark.parametrize(
        ("model", "out", "message"),
        [
            ("nowhere", "e.npy", "nowhere"),
            ("{bundle}", "e.csv", "expected a .npy to write"),
        ],
    )
    def test_wrong_use_is_one_line(self, bundle, crossmost, folder, tmp_path, model, out, message):
        done = crossmost("embed", model.format(bundle=bundle("fp32")), folder, "--out", tmp_path / out)
        assert done.exit_code == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1

    @pytest.mark.parametrize(
        ("out", "message"),
        [
            ("nowhere/e.npy", "expected a folder at"),
            ("taken.npy", "found a folder at"),
            ("names.npy", "found a folder at"),
            ("scans/a.npy", "among the clouds of"),
            ("{bundle}/e.npy", "expected a place outside"),
        ],
    )
    def test_the_destination_is_looked_at_before_any_work(
        self, bundle, crossmost, folder, tmp_path, monkeypatch, out, message
    ):
        (tmp_path / "taken.npy").mkdir()
        (tmp_path / "names.ids.txt").mkdir()
        monkeypatch.setattr(answers, "open_clouds", None)
        place = tmp_path / out.format(bundle=bundle("fp32"))
        done = crossmost("embed", bundle("fp32"), folder, "--out", place)
        assert done.exit_code == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_a_cloud_is_not_replaced(self, bundle, crossmost, folder):
        before = (folder / "a.npy").read_bytes()
        for path in (folder, folder / "a.npy"):
            done = crossmost("embed", bundle("fp32"), path, "--out", folder / "a.npy")
            assert done.exit_code == 2
            assert (folder / "a.npy").read_bytes() == before

    def test_a_name_is_fetched_only_for_what_can_be_done(self, crossmost, folder, tmp_path, monkeypatch):
        def fetch(name, say):
            raise WorkFailed(f"fetching {name}")

        monkeypatch.setattr("crossmost.zoo.fetch", fetch)
        ends = [
            (folder, "e.txt", 2, "expected a .npy to write"),
            (tmp_path / "nowhere", "e.npy", 2, "found nothing there"),
            (folder, "e.npy", 1, "fetching uni3d-ti"),
        ]
        for clouds, out, code, message in ends:
            done = crossmost("embed", "uni3d-ti", clouds, "--out", tmp_path / out)
            assert done.exit_code == code
            assert message in done.stderr


class TestBench:
    def test_stages_batches_and_what_was_not_measured(self, bundle, crossmost):
        done = crossmost("bench", bundle("fp32"), "--batches", "1,3", "--repeats", 3, "--json")
        assert done.exit_code == 0, done.stderr
        report = json.loads(done.stdout)
        timings = [entry for entry in report["timings"] if entry["backend"] == "onnxruntime-cpu"]
        assert {entry["batch"] for entry in timings} == {1, 3}
        assert {"prepare", "total"} <= {entry["stage"] for entry in timings}
        assert all(0 <= entry["p50"] <= entry["p90"] <= entry["p99"] for entry in timings)
        assert set(report["cold_start"]["onnxruntime-cpu"]) == {"import", "load", "first"}
        assert set(report["refused"]) | {"onnxruntime-cpu"} >= {
            "tensorrt",
            "tensorrt-rtx",
            "onnxruntime-cuda",
        }

    def test_the_table_is_readable(self, bundle, crossmost):
        done = crossmost("bench", bundle("fp32"), "--backends", "onnxruntime-cpu", "--repeats", 2)
        assert "cold start of onnxruntime-cpu: import" in done.stdout
        assert "milliseconds a call" in done.stdout

    def test_a_backend_that_breaks_is_named_and_the_others_are_measured(self, bundle, monkeypatch):
        load = Classifier.load

        def broken(path, backend, threads):
            if backend == "tensorrt":
                raise OSError("libnvinfer.so.10: cannot\nopen")
            return load(path, backend=backend, threads=threads)

        monkeypatch.setattr(bench.Classifier, "load", broken)
        report = bench.measure(
            bundle("fp32"), backends=("tensorrt", "onnxruntime-cpu"), batches=(1,), repeats=1
        )
        assert report.refused["tensorrt"] == "it failed with OSError: libnvinfer.so.10: cannot open"
        assert {timing.backend for timing in report.timings} == {"onnxruntime-cpu"}

    def test_where_the_system_does_not_say_no_memory_is_reported(self):
        report = bench.BenchReport(64, 1, (), {}, {}, None)
        assert not any("memory" in line for line in report.lines())
        assert report.to_dict()["peak_bytes"] is None

    @pytest.mark.parametrize("options", [["--batches", "0"], ["--batches", "one"], ["--backends", "quantum"]])
    def test_wrong_use_is_one_line(self, bundle, crossmost, options):
        done = crossmost("bench", bundle("fp32"), *options)
        assert done.exit_code == 2
        assert len(done.stderr.splitlines()) == 1


class TestDoctor:
    def test_a_bundle_that_cannot_be_used_ends_with_1(self, bundle, crossmost, tmp_path):
        damaged = tmp_path / "damaged.bundle"
        shutil.copytree(bundle("fp32"), damaged)
        content = bytearray((damaged / "weights.bin").read_bytes())
        content[9] ^= 1
        (damaged / "weights.bin").write_bytes(content)
        assert crossmost("predict", damaged, tmp_path).exit_code == 2
        done = crossmost("doctor", damaged)
        assert done.exit_code == 1
        assert "BAD bundle" in done.stdout
        assert "would be used         nothing" in done.stdout
        found = crossmost("doctor", damaged, "--json")
        assert found.exit_code == 1
        assert json.loads(found.stdout)["choice"]["used"] == ""

    def test_a_manifest_that_contradicts_its_graph_cannot_be_used(self, bundle, crossmost, tmp_path):
        other = shutil.copytree(bundle("fp32"), tmp_path / "other.bundle")
        manifest = json.loads((other / "manifest.json").read_text("utf-8"))
        manifest["encoder"]["groups"] *= 2
        (other / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        done = crossmost("doctor", other)
        assert done.exit_code == 1
        assert re.search(r"BAD would be used +nothing: \S*encoder\.onnx: expected the inputs", done.stdout)


def test_a_robot_without_torch_predicts_embeds_and_inspects(bundle, folder, tmp_path):
    """None of the trainer's libraries can be imported, and every command of the robot works."""
    code = """
import sys
absent = {"torch", "torchvision", "open_clip", "timm", "onnx", "scipy", "sklearn", "PIL", "trimesh", "plyfile"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"no {name} on a robot", name=name)
sys.meta_path.insert(0, Absent())
from crossmost.cli import main
main()
"""
    for arguments in (
        ["predict", bundle("fp32"), folder, "--json"],
        ["embed", bundle("fp32"), folder, "--out", tmp_path / "e.npy"],
        ["inspect", bundle("fp32")],
        ["bench", bundle("fp32"), "--repeats", "1", "--backends", "onnxruntime-cpu"],
        ["doctor", bundle("fp32")],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_a_base_that_embeds_clouds_as_nothing_is_refused(crossmost, tiny_base, folder, tmp_path):
    model, architecture = load_base(tiny_base)
    model.point_projection.data.zero_()
    save_base(tmp_path / "zero.safetensors", model, architecture, {})
    result = crossmost("embed", tmp_path / "zero.safetensors", folder, "--out", tmp_path / "e.npy")
    assert result.exit_code == 1
    assert "zero.safetensors embedded 3 of 3 clouds as NaN, infinity or nothing" in result.stderr
    assert not (tmp_path / "e.npy").exists()
