"""Tensors out of a TorchScript archive: those torch itself would give, and nothing else out of the pickle."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from crossmost.checkpoints.torchscript import NotReadable, is_torchscript, outline, read_tensor

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Block(nn.Module):
    def __init__(self, mask: bool):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8))
        if mask:
            self.attn_mask = torch.full((3, 3), 7.0)  # neither parameter nor buffer

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class Small(nn.Module):
    def __init__(self, mask: bool = True):
        super().__init__()
        self.visual = nn.Module()
        self.visual.conv1 = nn.Conv2d(3, 8, 4, bias=False)
        self.visual.norm = nn.BatchNorm2d(8)
        self.positional_embedding = nn.Parameter(torch.randn(3, 8))
        self.resblocks = nn.Sequential(Block(mask), Block(mask))
        self.register_buffer("input_resolution", torch.tensor(224))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.widths = [8, 32]
        with torch.no_grad():
            self.turned = nn.Parameter(torch.randn(5, 3).t()[1:])  # a view of its storage

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x + self.positional_embedding)


def archive_of(path: Path, how: str = "script") -> Path:
    torch.manual_seed(0)
    model = Small(mask=how == "script").half().eval()
    torch.jit.save(torch.jit.script(model) if how == "script" else traced(model), path)
    return path


def traced(model: nn.Module) -> Any:
    return torch.jit.trace(model.float(), torch.randn(3, 8)).half()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive_of(tmp_path_factory.mktemp("archive") / "small.pt")


def read_all(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        return {name: read_tensor(archive, note) for name, note in outline(archive).items()}


@pytest.mark.parametrize("how", ["script", "trace"])
def test_the_state_dict_is_that_of_torch(how: str, tmp_path: Path) -> None:
    path = archive_of(tmp_path / "small.pt", how)
    expected = torch.jit.load(path).state_dict()
    found = read_all(path)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


def test_nothing_of_torch_jit_is_used(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.jit, "load", None)
    monkeypatch.setattr(torch, "load", None)
    assert read_all(small)["positional_embedding"].shape == (3, 8)


def test_an_archive_is_told_from_other_files(small: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("PK")
    assert is_torchscript(small)
    assert not any(is_torchscript(tmp_path / name) for name in ("state.pt", "text.pt", "none.pt"))


def rewritten(path: Path, out: Path | io.BytesIO, change: Callable[[str, bytes], bytes | None]) -> Any:
    """Copy an archive; `change` gives the new content of a member, None leaves it out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = change(info.filename, old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
    return out


def with_pickle(path: Path, out: Path | io.BytesIO, content: bytes) -> Any:
    return rewritten(path, out, lambda name, own: content if name.endswith("/data.pkl") else own)


class Evil:
    def __init__(self, *call: Any):
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch owned"),
        (eval, "open('owned', 'w')"),
        (getattr, "text", "format"),
        (torch.load, "owned"),
        (torch.jit.load, "owned"),
        (torch.nn.Linear, 1, 1),
    ],
)
def test_a_pickle_names_no_functions(
    call: tuple[Any, ...], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = with_pickle(small, tmp_path / "evil.pt", pickle.dumps({"model": Evil(*call)}, protocol=2))
    with pytest.raises(NotReadable, match="in the pickle, which is no tensor"):
        read_all(evil)
    assert not (tmp_path / "owned").exists()


def test_what_a_pickle_is_given_cannot_be_changed(small: Path, tmp_path: Path) -> None:
    """BUILD sets attributes: were the functions plain ones, an archive could spoil them for the next one."""
    function, other = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"
    spoils = function + b"(N}S'_make'\n" + other + b"stb."  # state (None, {"_make": other})
    with pytest.raises(NotReadable, match="an attempt to change _make"):
        read_all(with_pickle(small, tmp_path / "evil.pt", spoils))
    assert read_all(small)


def without(end: str) -> Callable[[str, bytes], bytes | None]:
    return lambda name, content: None if name.endswith(end) else content


def instead(end: str, other: bytes) -> Callable[[str, bytes], bytes | None]:
    return lambda name, content: other if name.endswith(end) else content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (instead("/data/0", b"ab"), "in a record of 2 bytes"),
        (without("/data/0"), "found a damaged record small/data/0"),
        (instead("/byteorder", b"big"), "big-endian"),
        (without("/data.pkl"), "found 0 members data.pkl"),
        (instead("/data.pkl", pickle.dumps([])), "found no module"),
        (instead("/data.pkl", b""), "found pickle exhausted"),
        # A module whose attribute "a" is the module, and one without attributes.
        (instead("/data.pkl", b"c__torch__\nM\n)\x81q\x01}S'a'\nh\x01sb."), "more than 100000 modules"),
        (instead("/data.pkl", b"c__torch__\nM\n)\x81."), "found no tensor"),
    ],
)
def test_damage_is_named(
    change: Callable[[str, bytes], bytes | None], message: str, small: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotReadable, match=message):
        read_all(rewritten(small, tmp_path / "damaged.pt", change))


@pytest.mark.parametrize(
    "store", [pickle.LONG_BINPUT + b"\xff\xff\xff\x7f", pickle.PUT + b"2147483647\n", pickle.BINPUT + b"\x05"]
)
def test_a_memo_with_holes_is_refused_before_it_takes_memory(
    store: bytes, small: Path, tmp_path: Path
) -> None:
    evil = with_pickle(small, tmp_path / "evil.pt", b"\x80\x02]" + store + b".")
    with pytest.raises(NotReadable, match=r"found memo index \d+ in instruction 2 of the pickle"):
        read_all(evil)


def test_a_compressed_record_is_not_unpacked(small: Path, tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(small) as old,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(NotReadable, match="compressed record"):
        read_all(tmp_path / "bomb.pt")


@given(place=st.floats(0, 1, exclude_max=True), value=st.binary(min_size=1, max_size=4))
@settings(deadline=None, max_examples=200)
def test_a_damaged_pickle_gives_tensors_or_an_error_of_ours(small: Path, place: float, value: bytes) -> None:
    with zipfile.ZipFile(small) as archive:
        own = archive.read("small/data.pkl")
    at = int(place * len(own))
    damaged = with_pickle(small, io.BytesIO(), own[:at] + value + own[at + len(value) :])
    with zipfile.ZipFile(damaged) as archive:
        try:
            tensors = [read_tensor(archive, note) for note in outline(archive).values()]
        except NotReadable:
            return
    assert all(isinstance(tensor, Tensor) for tensor in tensors)
