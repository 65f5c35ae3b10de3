"""What convert reads: nothing but tensors and plain values, whatever the file holds, and one line otherwise."""

from __future__ import annotations

import argparse
import collections
import gzip
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from crossmost.checkpoints.base import Architecture, save_base
from crossmost.checkpoints.legacy import Unread, read_legacy
from crossmost.checkpoints.unwrapping import unwrap
from crossmost.errors import InputError
from crossmost.models.student import DualEncoder

WEIGHTS = {"point_encoder.cls_token": torch.arange(3.0), "logit_scale": torch.tensor(4.6)}


class Runs:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def refused(path: Path) -> str:
    with pytest.raises(InputError) as found:
        read_legacy(path)
    line = str(found.value)
    assert "\n" not in line
    assert path.name in line
    return line


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_both_formats_are_read(tmp_path: Path, zipped: bool) -> None:
    torch.save({"state_dict": WEIGHTS}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = read_legacy(tmp_path / "a.pt")["state_dict"]
    assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items())


def test_safetensors_are_read_whatever_the_suffix(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.bin")
    found = read_legacy(tmp_path / "a.bin")
    assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_scripts_save_beside_is_let_in_and_not_read(
    tmp_path: Path, published: ModuleType, zipped: bool
) -> None:
    content = {
        **published.ddp(WEIGHTS),
        "best": np.float32(0.5),
        "count": np.int64(3),
        "flag": np.bool_(True),
    }
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = read_legacy(tmp_path / "a.pt")
    for key in ("args", "best_acc1", "best", "count", "flag"):
        assert type(found[key]) is Unread
        assert vars(found[key]) == {}
    assert found["epoch"] == 250


def test_numpy_1_called_its_scalars_otherwise(tmp_path: Path) -> None:
    torch.save({"w": WEIGHTS["logit_scale"], "best_acc1": np.float64(60.3)}, tmp_path / "new.pt")
    path = tmp_path / "old.pt"
    torch.save(
        {"w": torch.ones(1), "best_acc1": np.float64(60.3)}, path, _use_new_zipfile_serialization=False
    )
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert type(read_legacy(path)["best_acc1"]) is Unread


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])  # the latter in Python 3.13
@pytest.mark.parametrize("name", ["PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"])
def test_folders_among_the_options_are_let_in_and_not_read(tmp_path: Path, module: str, name: str) -> None:
    args = argparse.Namespace(output_dir=PurePosixPath("runs") / "slip")
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(1), "args": args}, path, _use_new_zipfile_serialization=False)
    own = f"c{PurePosixPath.__module__}\nPurePosixPath\n".encode()
    content = path.read_bytes()
    assert own in content
    path.write_bytes(content.replace(own, f"c{module}\n{name}\n".encode()))
    assert type(read_legacy(path)["args"]) is Unread
    torch.save({"w": torch.ones(1), "out": PureWindowsPath("C:/runs")}, path)
    assert vars(read_legacy(path)["out"]) == {}


def test_the_names_are_allowed_only_while_reading(tmp_path: Path, published: ModuleType) -> None:
    torch.save(published.ddp(WEIGHTS), tmp_path / "a.pt")
    before = set(torch.serialization.get_safe_globals())
    read_legacy(tmp_path / "a.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError, match="was not an allowed global"):
        torch.load(tmp_path / "a.pt", weights_only=True)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "executed"
    torch.save(
        {"state_dict": WEIGHTS, "args": Runs(mark)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped
    )
    assert f"{os.mkdir.__module__}.mkdir" in refused(tmp_path / "a.pt")
    assert not mark.exists()
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps({"state_dict": Runs(mark)}, protocol=2))
    refused(bare)
    assert not mark.exists()


def test_a_malicious_argument_of_an_allowed_name_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({**WEIGHTS, "args": argparse.Namespace(gpu=Runs(mark))}, tmp_path / "a.pt")
    assert "mkdir" in refused(tmp_path / "a.pt")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.zeros(3), "numpy"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (collections.deque([1]), "collections.deque"),
    ],
)
def test_other_types_are_refused_by_name(tmp_path: Path, value: Any, named: str) -> None:
    torch.save({"state_dict": WEIGHTS, "more": value}, tmp_path / "a.pt")
    assert named in refused(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 388091433\n", "git-LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html><head><title>Google Drive", "HTML page"),
        (b"<HTML>\xe9", "HTML page"),
        (b"Not Found\n", "a text file"),
        (b'{"error": "Invalid username or password."}', "a text file"),
        (gzip.compress(b"weights", mtime=0), "gzip"),
        (b"\x00\x01\x02\x03 some other bytes \xff", "damaged"),
        (b"PK\x03\x04 cut off", "truncated"),
        (b"\x80\x02}q\x00X", "truncated"),
        (b"\x80\x02]q\x00.", "truncated"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    assert said in refused(tmp_path / "a.pt")


def test_no_file_and_folders_are_named(tmp_path: Path) -> None:
    assert "a folder" in refused(tmp_path)
    assert "no such file" in refused(tmp_path / "absent.pt")


def test_other_archives_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", names=np.array(["mug"]))
    assert "another zip archive, with 'names.npy'" in refused(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:  # as torch.jit.save lays it out
        archive.writestr("a/data.pkl", b"")
        archive.writestr("a/constants.pkl", b"")
    assert "TorchScript" in refused(tmp_path / "a.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    assert "a single list" in refused(tmp_path / "list.pt")


def test_damaged_tensors_of_a_whole_archive_are_noticed(tmp_path: Path) -> None:
    """torch checks no sum: zeros in the place of weights would become a base without a word."""
    torch.save({"state_dict": {"w": torch.arange(1.0, 4097)}}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    record = torch.arange(1.0, 4097).numpy().tobytes()
    assert record in content
    (tmp_path / "a.pt").write_bytes(content.replace(record, record[:1000] + bytes(4) + record[1004:]))
    assert "a truncated or damaged file" in refused(tmp_path / "a.pt")


def test_an_archive_without_sums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"state_dict": WEIGHTS}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert read_legacy(tmp_path / "a.pt")["state_dict"].keys() == WEIGHTS.keys()


def test_a_compressed_archive_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as stored, zipfile.ZipFile(tmp_path / "b.pt", "w") as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name), zipfile.ZIP_DEFLATED)
    assert "a compressed archive" in refused(tmp_path / "b.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_is_read_whatever_the_suffix(tmp_path: Path, zipped: bool) -> None:
    torch.save({"state_dict": WEIGHTS}, tmp_path / "a.safetensors", _use_new_zipfile_serialization=zipped)
    found = read_legacy(tmp_path / "a.safetensors")["state_dict"]
    assert all(torch.equal(found[key], value) for key, value in WEIGHTS.items())


def test_a_base_needs_no_conversion(tmp_path: Path, tiny_architecture: Architecture) -> None:
    point, _, dim, text = tiny_architecture
    model = DualEncoder(point, None, dim)
    save_base(tmp_path / "a.safetensors", model, Architecture(point, None, dim, text), {})
    assert "crossmost-base/1" in refused(tmp_path / "a.safetensors")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_was_cut_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    zipped = data.draw(st.booleans())
    torch.save(
        {"state_dict": WEIGHTS, "args": options()}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped
    )
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refused(tmp_path / "a.pt")


def options() -> argparse.Namespace:
    return argparse.Namespace(lr=0.1)


WRAPPED: list[Callable[[dict[str, Any]], dict[str, Any]]] = [
    lambda state: state,
    lambda state: {"state_dict": state},
    lambda state: {"model": state, "epoch": 3},
    lambda state: {"model_state_dict": state},
    lambda state: {"base_model": state, "metrics": {"acc": 0.9}},
    lambda state: {"module": state},
    lambda state: {"model": {"state_dict": state}},
    lambda state: {"model": {"name": "ULIP"}, "module": state},
    lambda state: {"state_dict": {"module": {"model": state}}},
]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "pc_encoder."])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_wrappers_and_prefixes_come_off(wrap: Callable[..., dict[str, Any]], prefix: str) -> None:
    state = {f"{prefix}{key}": value for key, value in WEIGHTS.items()}
    found = unwrap(wrap(state), "student", Path("a.pt"))
    assert found.tensors.keys() == WEIGHTS.keys()
    assert all(found.tensors[key] is not None for key in WEIGHTS)


def test_wrappers_inside_a_name_come_off() -> None:
    state = {
        "point_encoder._orig_mod.cls_token": torch.ones(1),
        "module.point_encoder.module.norm": torch.ones(1),
    }
    found = unwrap(state, "student", Path("a.pt")).tensors
    assert found.keys() == {"point_encoder.cls_token", "point_encoder.norm"}


def test_the_scale_beside_a_network_belongs_to_it() -> None:
    content = {
        "state_dict": {"module.a": torch.ones(1)},
        "logit_scale": {"module.logit_scale": torch.tensor(2.0)},
    }
    found = unwrap(content, "student", Path("a.pt"))
    assert found.tensors["logit_scale"] == 2.0
    assert found.others == {}


def test_a_scale_may_be_a_vector_of_one() -> None:
    found = unwrap({**WEIGHTS, "logit_scale": torch.tensor([4.6])}, "student", Path("a.pt"))
    assert found.tensors["logit_scale"].shape == ()


def test_a_file_of_the_averaged_network_alone_says_how_it_is_taken() -> None:
    with pytest.raises(InputError, match="only the averaged one, 'ema': --network teacher takes it"):
        unwrap({"ema": WEIGHTS}, "student", Path("a.pt"))
    assert unwrap({"ema": WEIGHTS}, "teacher", Path("a.pt")).tensors.keys() == WEIGHTS.keys()


def test_each_other_entry_is_listed(published: ModuleType) -> None:
    found = unwrap(published.self_training(WEIGHTS, WEIGHTS), "student", Path("a.pt"))
    assert found.others.keys() == {"optimizer", "epoch", "args", "model_ema"}
    assert "--network teacher" in found.others["model_ema"]
    bare = unwrap({**WEIGHTS, "epoch": 3}, "student", Path("a.pt"))
    assert bare.others == {"epoch": "no tensor"}


def test_the_teacher_is_taken_on_demand(published: ModuleType) -> None:
    other = {key: value + 1 for key, value in WEIGHTS.items()}
    content = published.self_training(WEIGHTS, other)
    assert unwrap(content, "student", Path("a")).tensors["logit_scale"] == WEIGHTS["logit_scale"]
    assert unwrap(content, "teacher", Path("a")).tensors["logit_scale"] == other["logit_scale"]
    with pytest.raises(InputError, match=r"expected model_ema or .* in it for --network teacher"):
        unwrap(published.ddp(WEIGHTS), "teacher", Path("a"))


@pytest.mark.parametrize("entry", ["state_dict_ema", "ema"])
def test_averages_of_other_scripts_are_teachers_too(entry: str) -> None:
    averaged = {key: value + 1 for key, value in WEIGHTS.items()}
    content = {"state_dict": WEIGHTS, entry: averaged, "epoch": 3}  # as timm saves
    found = unwrap(content, "student", Path("a"))
    assert "--network teacher" in found.others[entry]
    assert found.tensors["logit_scale"] == WEIGHTS["logit_scale"]
    teacher = unwrap(content, "teacher", Path("a"))
    assert teacher.tensors["logit_scale"] == averaged["logit_scale"]
    assert "--network student" in teacher.others["state_dict"]
    settings = unwrap({"state_dict": WEIGHTS, entry: {"decay": 0.999}}, "student", Path("a"))
    assert settings.others == {entry: "state of the training that made the file"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "args": None}, "found no tensor: epoch, args"),
        ({}, "it is empty"),
        ({"state_dict": {"a": 1}}, "found no tensor: state_dict"),
        ({"a": torch.ones(1), "module.a": torch.ones(1)}, "expected one tensor 'a'"),
        ({"a": torch.ones(1, device="meta")}, "found no tensor"),
        ({"a": torch.ones(2, 2).to_sparse()}, "found no tensor"),
    ],
)
def test_a_file_without_a_network_is_refused(content: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        unwrap(content, "student", Path("a.pt"))
