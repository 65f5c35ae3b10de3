from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from crossmost.cli import app
from crossmost.errors import WorkFailed
from crossmost.runtime import Classifier
from crossmost.runtime.recording import read_recording


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


class TestPredict:
    def test_one_json_object_a_line(self, bundle, crossmost, folder):
        done = crossmost("predict", bundle("fp32"), folder, "--json")
        assert done.exit_code == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["file"] for line in lines] == ["a", "b", "c"]
        with Classifier.load(bundle("fp32")) as classifier:
            expected = classifier([np.load(folder / f"{name}.npy") for name in "abc"])
        for line, prediction in zip(lines, expected, strict=True):
            assert set(line) == {"file", "label", "score", "top_k", "unknown"}
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
        assert len(done.stdout.splitlines()) == 6

    def test_a_cloud_that_cannot_be_read_is_named_and_skipped(self, bundle, crossmost, folder):
        (folder / "b.npy").write_bytes(b"nothing")
        done = crossmost("predict", bundle("fp32"), folder, "--json")
        assert done.exit_code == 0
        assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == ["a", "c"]
        assert "skipped 1 clouds" in done.stderr
        assert "b" in done.stderr

    def test_other_classes_of_a_vocabulary(self, bundle, crossmost, folder, tmp_path, tiny_vocabulary):
        tiny_vocabulary.select(("table", "bottle")).save(tmp_path / "two.npz")
        done = crossmost("predict", bundle("fp32"), folder, "--classes", tmp_path / "two.npz", "--json")
        assert {json.loads(line)["label"] for line in done.stdout.splitlines()} <= {"table", "bottle"}
        own = crossmost("predict", bundle("fp32"), folder, "--classes", "chair, monitor", "--json")
        assert {json.loads(line)["label"] for line in own.stdout.splitlines()} <= {"chair", "monitor"}

    def test_a_recording(self, bundle, crossmost, tmp_path, rng):
        recording = write_recording(tmp_path / "drive", rng)
        done = crossmost("predict", bundle("fp32"), recording, "--topic", "/objects", "--json")
        assert done.exit_code == 0, done.stderr
        assert [json.loads(line)["file"] for line in done.stdout.splitlines()] == ["1000", "3000"]
        assert "2000" in done.stderr

    def test_the_up_axis_of_a_recording(self, bundle, crossmost, tmp_path, rng):
        recording = write_recording(tmp_path / "drive", rng)
        clouds = [points for stamp, points in read_recording(recording, "/objects") if stamp != 2000]
        done = crossmost(
            "predict", bundle("fp32"), recording, "--topic", "/objects", "--json", "--up-axis", "y"
        )
        assert done.exit_code == 0, done.stderr
        with Classifier.load(bundle("fp32"), up_axis="y") as classifier:
            for line, prediction in zip(done.stdout.splitlines(), classifier(clouds), strict=True):
                assert json.loads(line)["score"] == pytest.approx(prediction.score, abs=1e-6)
        upright = crossmost("predict", bundle("fp32"), recording, "--topic", "/objects", "--json")
        assert upright.stdout != done.stdout

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["nowhere", "{folder}"], 2, "bundle"),
            (["{bundle}", "nowhere"], 2, "nowhere"),
            (["{bundle}", "{folder}", "--backend", "quantum"], 2, "expected backend"),
            (["{bundle}", "{folder}", "--backend", "tensorrt"], 1, "tensorrt"),
            (["{bundle}", "{folder}", "--topic", "/objects"], 2, "recording"),
            (["{bundle}", "{folder}", "--classes", "wine glass,spoon"], 2, "--text-encoder"),
            (["{bundle}", "{folder}", "--up-axis", "w"], 2, "axis"),
        ],
    )
    def test_wrong_use_is_one_line(self, bundle, crossmost, folder, arguments, code, message):
        filled = [entry.format(bundle=bundle("fp32"), folder=folder) for entry in arguments]
        done = crossmost("predict", *filled)
        assert done.exit_code == code, done.output
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1

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

    def test_no_row_may_be_missing(self, bundle, crossmost, folder, tmp_path):
        (folder / "b.npy").write_bytes(b"nothing")
        done = crossmost("embed", bundle("fp32"), folder, "--out", tmp_path / "e.npy")
        assert done.exit_code == 2
        assert "b.npy" in done.stderr
        assert not (tmp_path / "e.npy").exists()

    @pytest.mark.parametrize(("model", "out"), [("nowhere", "e.npy"), ("{bundle}", "e.csv")])
    def test_wrong_use_is_one_line(self, bundle, crossmost, folder, tmp_path, model, out):
        done = crossmost("embed", model.format(bundle=bundle("fp32")), folder, "--out", tmp_path / out)
        assert done.exit_code == 2
        assert len(done.stderr.splitlines()) == 1

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

    @pytest.mark.parametrize("options", [["--batches", "0"], ["--batches", "one"], ["--backends", "quantum"]])
    def test_wrong_use_is_one_line(self, bundle, crossmost, options):
        done = crossmost("bench", bundle("fp32"), *options)
        assert done.exit_code == 2
        assert len(done.stderr.splitlines()) == 1


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
