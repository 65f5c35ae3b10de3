"""Checkpoints: the same bytes for the same content, whole sets after a crash, the old ones on a full disk."""

import contextlib
import json
import os
import pickle
import re
import shutil
import stat
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from crossmost.checkpoints import store
from crossmost.errors import InputError, WorkFailed

NAMES = ("student", "teacher")
SMAPS = Path("/proc/self/smaps")


@contextlib.contextmanager
def disk_with_room_for(size: int):
    """Make every write beyond `size` bytes of a file fail, as on a full disk, in the system itself."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def resident(path: Path) -> int:
    """How much of a mapped file is in this process's memory, in kB; -1: it is not mapped."""
    found, inside = -1, False
    for line in SMAPS.read_text("utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
            found = max(found, 0) if inside else found
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


def make_generation(number: int, size: int = 8) -> store.Generation:
    filled = torch.full((size,), float(number))
    return store.Generation(
        number=number,
        weights={name: store.Weights({"w": filled.clone()}, {"role": name}) for name in NAMES},
        state={"step": number, "moments": [filled.clone()]},
    )


def number_of(generation: store.Generation) -> int:
    """Which generation this is, after checking that every part of it says the same."""
    values = [weights.tensors["w"][0].item() for weights in generation.weights.values()]
    values += [generation.state["step"], generation.state["moments"][0][0].item()]
    assert set(values) == {generation.number}
    return generation.number


def assert_one_line(error: BaseException, *parts: str) -> None:
    text = str(error)
    assert "\n" not in text
    for part in parts:
        assert part in text


class TestWeights:
    def test_tensors_and_metadata_come_back(self, tmp_path: Path) -> None:
        tensors = {
            "half": torch.randn(3, 4).to(torch.bfloat16),
            "scalar": torch.tensor(2.5),
            "empty": torch.empty(0, 3),
            "counts": torch.arange(5),
            "parameter": torch.nn.Parameter(torch.randn(2, 2)),
            "transposed": torch.randn(4, 5).T,
        }
        metadata = {"card": '{"groups": 64}', "name": "Stuhl „Ä“"}
        store.save_weights(tmp_path / "w.safetensors", tensors, metadata)
        loaded, found = store.load_weights(tmp_path / "w.safetensors")
        assert found == metadata
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert torch.equal(loaded[name], tensor.detach())

    def test_tensors_that_share_memory_are_stored_one_by_one(self, tmp_path: Path) -> None:
        whole = torch.arange(12.0)
        tensors = {"tied": whole, "again": whole, "tail": whole[6:]}
        store.save_weights(tmp_path / "w.safetensors", tensors, {})
        loaded = store.load_weights(tmp_path / "w.safetensors").tensors
        for name, tensor in tensors.items():
            assert torch.equal(loaded[name], tensor)

    def test_equal_content_gives_equal_bytes(self, tmp_path: Path) -> None:
        tensors = {name: torch.arange(3.0) for name in "abcdef"}
        metadata = {name: name for name in "stuvwxyz"}
        for index in range(4):
            reverse = bool(index % 2)
            store.save_weights(
                tmp_path / f"{index}.safetensors",
                dict(sorted(tensors.items(), reverse=reverse)),
                dict(sorted(metadata.items(), reverse=reverse)),
            )
        assert len({(tmp_path / f"{index}.safetensors").read_bytes() for index in range(4)}) == 1

    def test_any_safetensors_reader_opens_the_file(self, tmp_path: Path) -> None:
        store.save_weights(tmp_path / "w.safetensors", {"w": torch.ones(3)}, {"role": "student"})
        with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
            assert torch.equal(file.get_tensor("w"), torch.ones(3))
            found = json.loads(file.metadata()[store.METADATA_KEY])
            assert found.pop(store.DIGEST_KEY)
            assert found == {"role": "student"}

    def test_files_of_others_keep_their_metadata(self, tmp_path: Path) -> None:
        save_file({"w": torch.ones(3)}, tmp_path / "with.safetensors", metadata={"format": "pt"})
        save_file({"w": torch.ones(3)}, tmp_path / "without.safetensors")
        assert store.load_weights(tmp_path / "with.safetensors").metadata == {"format": "pt"}
        assert store.load_weights(tmp_path / "without.safetensors").metadata == {}

    def test_metadata_is_read_without_tensors(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "w.safetensors"
        store.save_weights(path, {"w": torch.ones(3)}, {"a": "b"})

        @contextlib.contextmanager
        def header_alone(*arguments: object, **options: object) -> Iterator[SimpleNamespace]:
            with safe_open(*arguments, **options) as file:
                yield SimpleNamespace(metadata=file.metadata)

        monkeypatch.setattr(store, "safe_open", header_alone)
        assert store.load_metadata(path) == {"a": "b"}
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(InputError) as caught:
            store.load_metadata(path)
        assert_one_line(caught.value, "w.safetensors", "truncated or damaged")

    def test_the_file_is_as_readable_as_any_other(self, tmp_path: Path) -> None:
        (tmp_path / "other").touch()
        store.save_weights(tmp_path / "w.safetensors", {"w": torch.ones(3)}, {})
        modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("other", "w.safetensors")}
        assert len(modes) == 1

    def test_a_missing_file_or_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as missing:
            store.load_weights(tmp_path / "none.safetensors")
        assert_one_line(missing.value, "none.safetensors", "found none")
        with pytest.raises(InputError) as folder:
            store.load_weights(tmp_path)
        assert_one_line(folder.value, "a folder")

    @pytest.mark.parametrize("legacy", [False, True])
    def test_a_pickle_is_never_loaded(self, tmp_path: Path, legacy: bool) -> None:
        path = tmp_path / "model.pt"
        torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(InputError) as caught:
            store.load_weights(path)
        assert_one_line(caught.value, "model.pt", "expected safetensors", "pickle", "convert")

    @pytest.mark.parametrize("keep", [0, 4, 40, -3])
    def test_a_truncated_file(self, tmp_path: Path, keep: int) -> None:
        path = tmp_path / "w.safetensors"
        store.save_weights(path, {"w": torch.ones(30)}, {"a": "b"})
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(InputError) as caught:
            store.load_weights(path)
        assert_one_line(caught.value, "w.safetensors", "truncated or damaged" if keep else "an empty file")

    def test_damaged_numbers_are_noticed(self, tmp_path: Path) -> None:
        """Zeros in the place of weights are numbers like any others, and safetensors has no sum of its own."""
        path = tmp_path / "w.safetensors"
        store.save_weights(
            path, {"w": torch.ones(30), "n": torch.tensor(3), "none": torch.ones(0)}, {"a": "b"}
        )
        assert store.load_weights(path).metadata == store.load_metadata(path) == {"a": "b"}
        path.write_bytes(path.read_bytes()[:-40] + bytes(40))
        with pytest.raises(InputError) as caught:
            store.load_weights(path)
        assert_one_line(caught.value, "w.safetensors", "not those that were written")
        assert store.load_weights(path, check=False).tensors["n"] == 3

    @pytest.mark.parametrize("own", ["[]", '{"format": 5}', "no JSON"])
    def test_metadata_that_are_no_texts(self, tmp_path: Path, own: str) -> None:
        save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors", metadata={store.METADATA_KEY: own})
        with pytest.raises(InputError) as caught:
            store.load_metadata(tmp_path / "w.safetensors")
        assert_one_line(caught.value, "w.safetensors")

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer"),
            (b"<!DOCTYPE html>", "HTML page"),
        ],
    )
    def test_failed_downloads_are_named(self, tmp_path: Path, content: bytes, found: str) -> None:
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(InputError) as caught:
            store.load_weights(tmp_path / "w.safetensors")
        assert_one_line(caught.value, "w.safetensors", found)

    def test_a_file_of_noise_or_with_a_damaged_header(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        store.save_weights(path, {"w": torch.ones(30)}, {"a": "b"})
        content = path.read_bytes()
        for damaged in (np.random.default_rng(0).bytes(500), content.replace(b"F32", b"XXX")):
            path.write_bytes(damaged)
            with pytest.raises(InputError) as caught:
                store.load_weights(path)
            assert_one_line(caught.value, "w.safetensors")

    def test_metadata_that_is_not_ours_in_our_entry(self, tmp_path: Path) -> None:
        for entry in ("{", "[1]"):
            save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors", metadata={store.METADATA_KEY: entry})
            with pytest.raises(InputError):
                store.load_weights(tmp_path / "w.safetensors")


class TestState:
    def test_an_optimiser_and_generators_come_back(self, tmp_path: Path) -> None:
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        state = {
            "optimizer": optimizer.state_dict(),
            "model": model.state_dict(),
            "torch": torch.get_rng_state(),
            "numpy": np.random.default_rng(3).bit_generator.state,
            "nothing": None,
            "nested": [1, (2.5, True, "x")],
        }
        store.save_state(tmp_path / "state.pt", state)
        loaded = store.load_state(tmp_path / "state.pt")
        assert loaded["nested"] == state["nested"]
        assert loaded["numpy"] == state["numpy"]
        assert isinstance(loaded["model"], OrderedDict)
        assert torch.equal(loaded["torch"], torch.get_rng_state())
        restored = torch.optim.AdamW(model.parameters(), lr=1.0)
        restored.load_state_dict(loaded["optimizer"])
        assert restored.param_groups[0]["lr"] == 1e-3
        assert torch.equal(
            restored.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
        )

    def test_equal_content_gives_equal_bytes_under_any_name(self, tmp_path: Path) -> None:
        for name in ("one.pt", "another.pt"):
            store.save_state(tmp_path / name, {"w": torch.arange(3.0), "n": 1})
        assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()

    @pytest.mark.parametrize("value", [np.float64(1.0), np.arange(3), {1, 2}, Path("x"), b"bytes"])
    def test_what_could_not_be_loaded_is_not_saved(self, tmp_path: Path, value: object) -> None:
        store.save_state(tmp_path / "state.pt", {"n": 1})
        with pytest.raises(TypeError, match=r"state\['deep'\]\[0\]"):
            store.save_state(tmp_path / "state.pt", {"deep": [value]})
        assert store.load_state(tmp_path / "state.pt") == {"n": 1}

    def test_tensors_stay_on_the_disk_until_they_are_used(self, tmp_path: Path) -> None:
        """So that looking up a run's progress costs no memory, however large its networks are."""
        if not SMAPS.is_file():
            pytest.skip("the system does not say what is in memory")
        large, names = torch.arange(1e6), ["student"]
        weights = {"student": store.Weights({"w": large}, {})}
        store.save_generation(tmp_path, store.Generation(1, weights, {"progress": 7, "w": large}))
        found = store.load_generation(tmp_path, names, check=False)
        assert found.state["progress"] == 7
        for name in ("state.pt", "student.safetensors"):
            assert 0 <= resident(tmp_path / name) < 1000
        for tensor in (found.state["w"], found.weights["student"].tensors["w"]):
            assert torch.equal(tensor, large)
        for name in ("state.pt", "student.safetensors"):
            assert resident(tmp_path / name) >= 3900
        found.state["w"][0] = 5.0
        assert store.load_state(tmp_path / "state.pt")["w"][0] == 0.0  # the file is as it was

    def test_a_file_that_cannot_be_mapped_is_read(self, tmp_path: Path) -> None:
        torch.save({"n": 1}, tmp_path / "state.pt", _use_new_zipfile_serialization=False)
        assert store.load_state(tmp_path / "state.pt") == {"n": 1}

    def test_code_in_a_pickle_does_not_run(self, tmp_path: Path) -> None:
        class Attack:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        for name, dump in (
            ("zip.pt", torch.save),
            ("plain.pt", lambda o, p: p.write_bytes(pickle.dumps(o, 2))),
        ):
            dump({"n": Attack()}, tmp_path / name)
            with pytest.raises(InputError) as caught:
                store.load_state(tmp_path / name)
            assert_one_line(caught.value, name)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("keep", [0, 10, -30])
    def test_a_truncated_file(self, tmp_path: Path, keep: int) -> None:
        path = tmp_path / "state.pt"
        store.save_state(path, {"w": torch.arange(30.0)})
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(InputError) as caught:
            store.load_state(path)
        assert_one_line(caught.value, "state.pt")

    def test_damaged_numbers_are_noticed(self, tmp_path: Path) -> None:
        """torch checks no sum: a run would go on with another state of the optimiser than it had."""
        path, moments = tmp_path / "state.pt", torch.arange(1.0, 4097)
        store.save_state(path, {"moments": moments})
        record = moments.numpy().tobytes()
        content = path.read_bytes()
        assert record in content
        path.write_bytes(content.replace(record, record[:1000] + bytes(4) + record[1004:]))
        with pytest.raises(InputError) as caught:
            store.load_state(path)
        assert_one_line(caught.value, "state.pt", "damaged file")

    def test_something_else_or_nothing(self, tmp_path: Path) -> None:
        torch.save([1, 2], tmp_path / "list.pt")
        for name in ("list.pt", "none.pt"):
            with pytest.raises(InputError) as caught:
                store.load_state(tmp_path / name)
            assert_one_line(caught.value, name)


class TestAtomicFiles:
    def test_text_and_json_come_back(self, tmp_path: Path) -> None:
        store.write_text_atomic(tmp_path / "a.txt", "Ä\nb\n")
        assert (tmp_path / "a.txt").read_bytes() == "Ä\nb\n".encode()
        store.write_json_atomic(
            tmp_path / "a.json", {"x": (1, 2.5), "bad": [float("nan"), {"y": -float("inf")}]}
        )
        assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {
            "x": [1, 2.5],
            "bad": [None, {"y": None}],
        }
        assert sorted(os.listdir(tmp_path)) == ["a.json", "a.txt"]

    def test_json_that_cannot_be_written_leaves_the_old_file(self, tmp_path: Path) -> None:
        store.write_json_atomic(tmp_path / "a.json", [1])
        with pytest.raises(TypeError):
            store.write_json_atomic(tmp_path / "a.json", [object()])
        assert json.loads((tmp_path / "a.json").read_text("utf-8")) == [1]

    def test_a_full_disk_leaves_the_old_file_and_no_litter(self, tmp_path: Path) -> None:
        writers = {
            "a.txt": lambda path, n: store.write_text_atomic(path, "x" * n),
            "a.safetensors": lambda path, n: store.save_weights(path, {"w": torch.ones(n)}, {}),
            "a.pt": lambda path, n: store.save_state(path, {"w": torch.ones(n)}),
        }
        for name, write in writers.items():
            path = tmp_path / name
            write(path, 10)
            before = path.read_bytes()
            with disk_with_room_for(20_000), pytest.raises(WorkFailed) as caught:
                write(path, 100_000)
            assert_one_line(caught.value, str(path), "File too large", "untouched")
            assert path.read_bytes() == before
        assert sorted(os.listdir(tmp_path)) == sorted(writers)

    def test_a_disk_that_fills_at_the_flush(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store.write_text_atomic(tmp_path / "a.txt", "old")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(WorkFailed, match="No space left on device"):
            store.write_text_atomic(tmp_path / "a.txt", "new")
        assert (tmp_path / "a.txt").read_text("utf-8") == "old"
        assert os.listdir(tmp_path) == ["a.txt"]

    def test_an_interrupt_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store.write_text_atomic(tmp_path / "a.txt", "old")

        def interrupt(descriptor: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.write_text_atomic(tmp_path / "a.txt", "new")
        assert (tmp_path / "a.txt").read_text("utf-8") == "old"
        assert os.listdir(tmp_path) == ["a.txt"]

    def test_a_folder_that_is_not_there_or_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        for path in (tmp_path / "none" / "a.txt", tmp_path / "folder", tmp_path / "file" / "a.txt"):
            with pytest.raises(WorkFailed) as caught:
                store.write_text_atomic(path, "x")
            assert_one_line(caught.value, str(path))
        assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


class TestGeneration:
    def test_it_comes_back_and_replaces_the_one_before(self, tmp_path: Path) -> None:
        for number in (10, 20):
            store.save_generation(tmp_path, make_generation(number))
            assert number_of(store.load_generation(tmp_path, NAMES)) == number
        assert sorted(os.listdir(tmp_path)) == ["state.pt", "student.safetensors", "teacher.safetensors"]
        loaded = store.load_generation(tmp_path, ["teacher"], state=False)
        assert (loaded.number, loaded.state) == (20, {})
        assert loaded.weights["teacher"].metadata == {"role": "teacher"}

    def test_a_crash_at_any_moment_leaves_one_whole_set(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The run as it lies on the disk before each change the second save makes to it."""
        run = tmp_path / "run"
        run.mkdir()
        store.save_generation(run, make_generation(1))
        moments: list[Path] = []

        def remembering(call):
            def wrapped(*args, **kwargs):
                moments.append(tmp_path / f"moment{len(moments)}")
                shutil.copytree(run, moments[-1])
                return call(*args, **kwargs)

            return wrapped

        with monkeypatch.context() as patch:
            for module, name in ((os, "replace"), (os, "fsync"), (os, "rmdir"), (store, "save_file")):
                patch.setattr(module, name, remembering(getattr(module, name)))
            patch.setattr(Path, "rmdir", remembering(Path.rmdir))
            store.save_generation(run, make_generation(2))

        numbers = [number_of(store.load_generation(moment, NAMES)) for moment in moments]
        assert numbers == sorted(numbers)
        assert set(numbers) == {1, 2}
        split = [moment for moment in moments if (moment / store.COMMITTED_FOLDER).is_dir()]
        assert any(0 < len(os.listdir(moment / store.COMMITTED_FOLDER)) < 3 for moment in split)
        for moment in moments:
            store.save_generation(moment, make_generation(3))
            assert number_of(store.load_generation(moment, NAMES)) == 3
            assert len(os.listdir(moment)) == 3

    @pytest.mark.parametrize("large", ["student", "teacher", "state"])
    def test_a_full_disk_leaves_the_set_saved_before(self, tmp_path: Path, large: str) -> None:
        store.save_generation(tmp_path, make_generation(1))
        generation = make_generation(2)
        if large == "state":
            generation.state["more"] = torch.ones(100_000)
        else:
            generation.weights[large].tensors["more"] = torch.ones(100_000)
        with disk_with_room_for(20_000), pytest.raises(WorkFailed) as caught:
            store.save_generation(tmp_path, generation)
        assert_one_line(caught.value, str(tmp_path), "File too large", "untouched")
        assert number_of(store.load_generation(tmp_path, NAMES)) == 1
        assert len(os.listdir(tmp_path)) == 3
        store.save_generation(tmp_path, generation)
        assert number_of(store.load_generation(tmp_path, NAMES)) == 2

    def test_a_set_that_cannot_be_moved_up_is_still_the_valid_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.save_generation(tmp_path, make_generation(1))
        replace = os.replace

        def refusing(source: Path, target: Path) -> None:
            if Path(target).name == "student.safetensors":
                raise PermissionError(13, "Permission denied")
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", refusing)
            with pytest.raises(WorkFailed) as caught:
                store.save_generation(tmp_path, make_generation(2))
        assert_one_line(caught.value, "Permission denied", store.COMMITTED_FOLDER)
        assert number_of(store.load_generation(tmp_path, NAMES)) == 2

    def test_loading_changes_nothing_on_disk(self, tmp_path: Path) -> None:
        store.save_generation(tmp_path, make_generation(1))
        (tmp_path / store.COMMITTED_FOLDER).mkdir()
        os.replace(tmp_path / "state.pt", tmp_path / store.COMMITTED_FOLDER / "state.pt")
        (tmp_path / store.STAGING_FOLDER).mkdir()
        before = sorted(tmp_path.rglob("*"))
        assert number_of(store.load_generation(tmp_path, NAMES)) == 1
        assert sorted(tmp_path.rglob("*")) == before

    def test_files_of_different_saves_are_refused_by_name(self, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        for run, number in ((one, 1), (two, 2)):
            run.mkdir()
            store.save_generation(run, make_generation(number))
        shutil.copy(two / "teacher.safetensors", one)
        with pytest.raises(InputError) as caught:
            store.load_generation(one, NAMES)
        assert_one_line(caught.value, str(one), "student.safetensors from 1", "teacher.safetensors from 2")

    def test_a_missing_or_foreign_file_is_named(self, tmp_path: Path) -> None:
        store.save_generation(tmp_path, make_generation(1))
        store.save_weights(tmp_path / "teacher.safetensors", {"w": torch.ones(1)}, {})
        with pytest.raises(InputError) as foreign:
            store.load_generation(tmp_path, NAMES)
        assert_one_line(foreign.value, "teacher.safetensors from none")
        (tmp_path / "teacher.safetensors").unlink()
        with pytest.raises(InputError) as missing:
            store.load_generation(tmp_path, NAMES)
        assert_one_line(missing.value, "teacher.safetensors")

    def test_a_state_that_is_not_plain_changes_nothing(self, tmp_path: Path) -> None:
        store.save_generation(tmp_path, make_generation(1))
        generation = make_generation(2)
        generation.state["loss"] = np.float32(1.0)
        with pytest.raises(TypeError, match="loss"):
            store.save_generation(tmp_path, generation)
        assert number_of(store.load_generation(tmp_path, NAMES)) == 1

    def test_a_run_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(WorkFailed) as caught:
            store.save_generation(tmp_path / "none", make_generation(1))
        assert_one_line(caught.value, "none")
