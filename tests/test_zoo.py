"""The public encoders: true to cards and converter, fetched once, found where a person put them, one line otherwise."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from click.testing import Result
from huggingface_hub.errors import LocalEntryNotFoundError
from typer.testing import CliRunner

from crossmost import zoo
from crossmost.checkpoints import conversion, convert
from crossmost.checkpoints.base import FORMAT, Architecture, describe, load_architecture, load_base
from crossmost.checkpoints.layout import Layout
from crossmost.checkpoints.layouts import LAYOUTS
from crossmost.checkpoints.store import load_metadata, save_weights
from crossmost.cli import app
from crossmost.errors import InputError, WorkFailed
from crossmost.models.architectures import build_point_encoder
from crossmost.zoo import Model
from crossmost.zoo_models import HubFile, PageFile

ROOT = Path(__file__).parents[1]
MODELS = zoo.list_models()
BY_HAND = "crossmost-pointbert"
HEADS = ("lm_head.", "patch_head.", "mask_token")
"""Of masked modelling: no part of a published encoder."""


def load(folder: Path, name: str) -> ModuleType:
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


published = load(ROOT / "tests" / "checkpoints", "published")
zoo_table = importlib.import_module("zoo_table")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """The one line on stderr that a command ends in."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.exception
    return result.stderr


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CROSSMOST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub whose every file holds its own name; gives the calls."""
    calls: list[tuple[Any, ...]] = []

    def download(repo: str, path: str, *, repo_type: str, revision: str, force_download: bool) -> str:
        calls.append((repo, path, repo_type, revision, force_download))
        (tmp_path / "hub.pt").write_text(path)
        return str(tmp_path / "hub.pt")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A converter that takes a file for the first layout's and makes no weights, slowly; gives what it was given."""
    given: list[Path] = []

    def make(checkpoint: Path, out: Path, *, layouts: Sequence[Layout]) -> SimpleNamespace:
        given.append(checkpoint)
        time.sleep(0.05)
        first = layouts[0]
        architecture = Architecture(first.card, None, first.dim, first.text)
        write_base(out, architecture, made=f"{first.card.name} from {checkpoint.read_text('utf-8')}")
        return SimpleNamespace(architecture=architecture, title=first.title, out=out)

    monkeypatch.setattr(convert, "convert_checkpoint", make)
    return given


def write_base(path: Path, architecture: Architecture, **notes: str) -> None:
    """A base without weights."""
    made = {"format": FORMAT, **describe(architecture), "converter": conversion.VERSION, **notes}
    save_weights(path, {}, made)


def made_of(base: Path) -> str:
    """What a base of `conversions` was made of."""
    return load_metadata(base)["made"]


def no_network(*_: object, **__: object) -> str:
    raise LocalEntryNotFoundError("no connection.\nAnd more about it.")


# The data


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_an_entry_is_true_to_its_card_and_to_the_converter(model: Model) -> None:
    assert model.card.name == model.name
    (layout,) = (layout for layout in LAYOUTS if layout.card == model.card)
    assert (layout.dim, layout.text) == (model.dim, model.text)
    assert (model.image is not None) == (layout.image is not None and layout.image.kept)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_parameters_are_those_of_encoder_and_projection(model: Model) -> None:
    with torch.device("meta"):
        encoder = build_point_encoder(model.card)
    own = sum(value.numel() for name, value in encoder.named_parameters() if not name.startswith(HEADS))
    assert model.parameters == own + model.card.feature_width * model.dim


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_an_entry_says_where_the_file_is_and_who_reports_what(model: Model) -> None:
    assert re.fullmatch(r"https://\S+", model.file.url)
    assert re.fullmatch(r"[\w.-]+\.pt", model.file.name)
    assert model.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", model.sha256)
    assert all(re.fullmatch(r"https://\S+", page) for page in (model.paper, model.code))
    for figure in model.accuracy:
        assert figure.source
        assert figure.split
        assert 0 < figure.top1 < 100
        assert figure.top5 is None or figure.top1 < figure.top5 < 100


def test_everything_that_converts_is_listed_once() -> None:
    names = [model.name for model in MODELS]
    assert len(set(names)) == len(names)
    assert set(names) >= {layout.card.name for layout in LAYOUTS}


def test_addresses_on_hugging_face() -> None:
    dataset = HubFile("me/mine", "a/b.pt", "dataset", "main")
    assert dataset.url == "https://huggingface.co/datasets/me/mine/resolve/main/a/b.pt"
    assert (
        HubFile("me/mine", "b.pt", "model", "12ab").url == "https://huggingface.co/me/mine/resolve/12ab/b.pt"
    )
    assert dataset.name == "b.pt"


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match="'ulip2-pointbert'"):
        zoo.find("ulip-2-pointbert")
    with pytest.raises(InputError, match="crossmost zoo"):
        zoo.find("something else")


def test_listing_needs_no_torch() -> None:
    code = "import sys, crossmost.zoo as zoo; zoo.list_models(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_tables_of_the_readme_are_those_of_the_data() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for mark, table in (("zoo", zoo_table.model_table()), ("conventions", zoo_table.convention_table())):
        assert f"<!-- {mark} -->\n{table}\n<!-- /{mark} -->" in text, "run benchmarks/zoo_table.py"


# A path or a name


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_path_that_exists_wins_over_a_name(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: list[Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Path("uni3d-b")
    here.mkdir() if kind == "folder" else here.write_text("mine")
    assert zoo.resolve(here) == here
    assert hub == []


@pytest.mark.parametrize("path", ["base.safetensors", "folder/uni3d-b", "./runs/scans"])
def test_what_looks_like_a_path_stays_one(path: str) -> None:
    assert zoo.resolve(Path(path)) == Path(path)


def test_a_word_that_is_neither_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"uni3d-x: nothing there, and no public encoder .* did you mean 'uni3d-"
    ):
        zoo.resolve(Path("uni3d-x"))


# Fetching


def test_a_name_is_fetched_and_converted_once(hub: list[Any], conversions: list[Path], cache: Path) -> None:
    model = zoo.find("ulip2-pointbert")
    assert isinstance(model.file, HubFile)
    said: list[str] = []
    base = zoo.resolve(Path(model.name), said.append)
    assert base == cache / "bases" / "ulip2-pointbert.safetensors"
    assert made_of(base) == f"ulip2-pointbert from {model.file.path}"
    assert hub == [("SFXX/ulip", model.file.path, "dataset", "main", False)]
    assert model.file.url in said[0]
    assert zoo.fetch(model.name) == base
    assert len(hub) == len(conversions) == 1


def test_the_revision_that_the_sha256_belongs_to_is_fetched(
    hub: list[Any], conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo.find("uni3d-ti")
    assert isinstance(model.file, HubFile)
    right = replace(model, sha256=hashlib.sha256(model.file.path.encode()).hexdigest())
    monkeypatch.setattr(zoo, "find", lambda _: right)
    assert zoo.fetch("uni3d-ti").is_file()
    assert hub[0][3] == model.file.revision != "main"


def test_another_file_than_the_published_one_is_refused(
    hub: list[Any], conversions: list[Path], cache: Path
) -> None:
    with pytest.raises(InputError, match=r"expected sha256 6ff7e821\w+, found another: .*crossmost convert"):
        zoo.fetch("uni3d-ti")
    assert [call[-1] for call in hub] == [False, True]
    assert conversions == []
    assert not list(cache.rglob("*.safetensors"))


def test_a_damaged_download_is_fetched_again_once(
    conversions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting the path that a message names would not help: the hub's cache links its damaged copy there anew."""
    forced: list[bool] = []

    def download(*_: object, force_download: bool, **__: object) -> str:
        forced.append(force_download)
        (tmp_path / "hub.pt").write_text("whole" if force_download else "damaged")
        return str(tmp_path / "hub.pt")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    right = replace(zoo.find("uni3d-ti"), sha256=hashlib.sha256(b"whole").hexdigest())
    monkeypatch.setattr(zoo, "find", lambda _: right)
    said: list[str] = []
    assert made_of(zoo.fetch("uni3d-ti", said.append)) == "uni3d-ti from whole"
    assert forced == [False, True]
    assert any("is damaged" in line for line in said)


def test_a_failed_download_names_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused_by_proxy(*_: object, **__: object) -> str:
        try:
            raise OSError("403 from the proxy\nand more")
        except OSError as error:
            raise LocalEntryNotFoundError("check your connection.") from error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused_by_proxy)
    with pytest.raises(WorkFailed, match=r"check your connection \(403 from the proxy\); without a network"):
        zoo.fetch("uni3d-ti")


def test_a_name_is_looked_at_without_fetching_it(hub: list[Any], conversions: list[Path]) -> None:
    assert "crossmost zoo ulip2-pointbert" in refused("inspect", "ulip2-pointbert")
    assert hub == []
    zoo.fetch("ulip2-pointbert")
    shown = invoke("inspect", "ulip2-pointbert")
    assert shown.exit_code == 0, shown.stderr
    assert "ulip2-pointbert" in shown.stdout
    assert len(hub) == 1


def test_without_a_network_one_line_says_what_to_put_where(
    conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)
    model = zoo.find("openshape-pointbert-vitl14")
    place = zoo.download_path(model)
    with pytest.raises(WorkFailed) as failed:
        zoo.fetch(model.name)
    assert str(failed.value) == (
        f"cannot fetch {model.name}: no connection; without a network, download {model.file.url} "
        f"and put it at {place}; it is found there and converted"
    )
    place.parent.mkdir(parents=True)
    place.write_text("by hand")
    assert made_of(zoo.fetch(model.name)) == f"{model.name} from by hand"
    assert conversions == [place]


def test_a_file_on_a_page_has_to_be_downloaded_by_a_person(
    hub: list[Any], conversions: list[Path], cache: Path
) -> None:
    model = zoo.find(BY_HAND)
    assert isinstance(model.file, PageFile)
    place = cache / "downloads" / BY_HAND / "ulip-june11-checkpoint_best.pt"
    with pytest.raises(
        InputError, match=rf"{re.escape(model.file.url)} and put it at {re.escape(str(place))}"
    ):
        zoo.fetch(BY_HAND)
    place.parent.mkdir(parents=True)
    place.write_text("by hand")
    assert zoo.fetch(BY_HAND).is_file()
    assert hub == []


def test_a_failed_conversion_leaves_nothing_and_may_be_tried_again(
    hub: list[Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InputError("half a file")

    monkeypatch.setattr(convert, "convert_checkpoint", fail)
    for _ in range(2):  # the second one does not wait for the lock of the first
        with pytest.raises(InputError, match="half a file"):
            zoo.fetch("ulip-pointbert")
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("changed", ["card", "dim", "text", "converter", "nothing of the kind", "damage"])
def test_a_base_that_would_be_made_otherwise_now_is_made_anew(
    hub: list[Any], conversions: list[Path], changed: str
) -> None:
    model = zoo.find("ulip-pointbert")
    assert isinstance(model.file, HubFile)
    base = zoo.fetch(model.name)
    own = Architecture(model.card, None, model.dim, model.text)
    notes = {}
    match changed:
        case "card":
            own = own._replace(point=model.card.model_copy(update={"up_axis": "z"}))
        case "dim":
            own = own._replace(dim=768)
        case "text":
            own = own._replace(text="ViT-B-16-quickgelu/openai")
        case "converter":
            notes = {"converter": "0"}
    write_base(base, own, made="before", **notes)
    if changed == "damage":
        base.write_bytes(base.read_bytes()[:-3])
    said: list[str] = []
    zoo.fetch(model.name, said.append)
    if changed == "nothing of the kind":
        assert (made_of(base), said, len(conversions)) == ("before", [], 1)
        return
    assert made_of(base) == f"{model.name} from {model.file.path}"
    assert "making it anew" in said[0]
    assert len(conversions) == 2


def test_the_converter_says_its_version(tmp_path: Path) -> None:
    made = conversion.Conversion(
        tmp_path, "", tmp_path, "student", "", Architecture(zoo.find("uni3d-ti").card, None, 1024, ""),
        {}, (), {}, None, 0, None, (),
    )  # fmt: skip
    assert made.notes()["converter"] == conversion.VERSION


@pytest.mark.parametrize(
    ("name", "of", "found"),
    [
        ("ulip-pointbert", "crossmost-pointbert", "512 numbers, aligned with ViT-B-16-quickgelu/openai"),
        ("openshape-pointbert-vitl14", "openshape-pointbert-vitb32", "512 numbers, aligned with ViT-B-32-quickg"),
        ("ulip2-pointbert", "uni3d-ti", "1024 numbers, aligned with EVA02-E-14-plus/laion2b_s9b_b144k"),
    ],
)  # fmt: skip
def test_the_file_of_another_encoder_is_refused_and_not_kept(
    name: str, of: str, found: str, cache: Path
) -> None:
    model, other = zoo.find(name), zoo.find(of)
    makers = {"crossmost": published.cross_most, "openshape": published.openshape, "uni3d": published.uni3d}
    widths = (None, "") if of.endswith("vitb32") else (other.dim,)
    shapes = makers[of.partition("-")[0]](other.card, *widths)
    place = zoo.download_path(model)
    place.parent.mkdir(parents=True)
    torch.save(published.fill(shapes, torch.float16), place)
    with pytest.raises(InputError) as refusal:
        zoo.fetch(name)
    line = str(refusal.value)
    assert line.startswith(
        f"{place}: expected the weights of {name} ({model.dim} numbers, aligned with {model.text})"
    )
    assert f"({of}: {found}" in line
    assert f"download {model.file.url} and put it at {place}" in line
    assert not list(cache.rglob("*.safetensors"))


def test_a_bare_point_branch_is_what_was_asked_for() -> None:
    """Two encoders have the same shapes; where nothing else is in the file, it is taken at its name."""
    for name in ("ulip-pointbert", BY_HAND):
        model = zoo.find(name)
        place = zoo.download_path(model)
        place.parent.mkdir(parents=True)
        torch.save(published.fill(published.point_bert(model.card, model.dim), torch.float16), place)
        assert load_architecture(zoo.fetch(name)).text == model.text


def test_those_who_want_it_at_once_wait_for_the_first(hub: list[Any], conversions: list[Path]) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(zoo.fetch("ulip-pointbert"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(conversions) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CROSSMOST_CACHE", str(tmp_path / "file"))
    with pytest.raises(WorkFailed, match="CROSSMOST_CACHE"):
        zoo.fetch("ulip-pointbert")


@pytest.fixture
def real_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The smallest encoder in full size, as its makers save it, on the hub."""
    model = zoo.find("uni3d-ti")
    tensors = published.fill(published.uni3d(model.card, model.dim), torch.float16)
    file = tmp_path / "model.pt"
    torch.save({"module": tensors}, file)
    real = replace(model, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setattr(zoo, "find", lambda _: real)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(file))
    return real


def test_a_published_file_becomes_a_base_that_embeds(
    real_checkpoint: Model, tmp_path: Path, rng: np.random.Generator
) -> None:
    np.save(tmp_path / "cloud.npy", rng.standard_normal((600, 3)).astype(np.float32))
    done = invoke("embed", "uni3d-ti", tmp_path / "cloud.npy", "--out", tmp_path / "e.npy")
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert done.stdout.strip() == str(tmp_path / "e.npy")
    assert np.load(tmp_path / "e.npy").shape == (1, real_checkpoint.dim)
    _, architecture = load_base(zoo.base_path("uni3d-ti"))
    assert architecture.point == real_checkpoint.card
    assert architecture.text == real_checkpoint.text
    before = zoo.base_path("uni3d-ti").stat().st_mtime_ns
    assert zoo.fetch("uni3d-ti").stat().st_mtime_ns == before  # the converter's own base is a current one


# The commands


def test_the_table_lists_all() -> None:
    table = invoke("zoo").stdout
    lines = [line.split() for line in table.splitlines()]
    assert [line[0] for line in lines if line and line[0] in {model.name for model in MODELS}] == [
        model.name for model in MODELS
    ]
    for text in ("1012.9 M", "10000", "EVA02-E-14-plus/laion2b_s9b_b144k", "README of", "not stated"):
        assert text in table


def test_one_is_told_with_the_commands_that_use_it(cache: Path) -> None:
    told = invoke("zoo", "openshape-pointbert-vitg14").stdout
    model = zoo.find("openshape-pointbert-vitg14")
    assert model.sha256
    place = cache / "downloads" / model.name / "model.pt"
    for text in (
        model.file.url,
        model.sha256,
        "z-mirrored up",
        "384 x 64 within 0.2",
        "0.4",
        model.text,
        str(place),
        "388 MB",
    ):
        assert text in told
    assert f"crossmost train scans/ --base {model.name} " in told
    assert "made when it is first used" in told


def test_slip_needs_its_weights() -> None:
    assert "--clip-weights" in invoke("zoo", "ulip-pointbert").stdout
    assert "--clip-weights" not in invoke("zoo", "ulip2-pointbert").stdout


def test_as_json(cache: Path) -> None:
    all_of_them = json.loads(invoke("zoo", "--json").stdout)
    assert [found["name"] for found in all_of_them] == [model.name for model in MODELS]
    (cache / "bases").mkdir(parents=True)
    (cache / "bases" / "ulip-pointbert.safetensors").write_text("")
    found = json.loads(invoke("zoo", "ulip-pointbert", "--json").stdout)
    assert found["base"] == str(cache / "bases" / "ulip-pointbert.safetensors")
    assert found["conventions"] == {
        "points": 8192, "groups": 512, "neighbors": 32, "radius": None, "channels": 3, "color_filler": None,
        "up_axis": zoo.find("ulip-pointbert").card.up_axis,
    }  # fmt: skip
    assert found["file"]["url"] == zoo.find("ulip-pointbert").file.url
    assert found["accuracy"][0]["source"] == "README of salesforce/ULIP"
    assert all_of_them[1]["base"] is None


Arguments = Callable[[Path], tuple[object, ...]]


@pytest.mark.parametrize(
    "arguments",
    [
        lambda folder: ("train", folder, "--base", "uni3d-x", "--out", folder / "run"),
        lambda folder: ("export", "uni3d-x", "--out", folder / "b.bundle", "--classes", "mug"),
        lambda folder: ("embed", "uni3d-x", folder, "--out", folder / "e.npy"),
        lambda folder: ("zoo", "uni3d-x"),
    ],
    ids=["train", "export", "embed", "zoo"],
)
def test_a_name_that_is_none_is_one_line(arguments: Arguments, tmp_path: Path) -> None:
    assert "no public encoder is called 'uni3d-x': did you mean 'uni3d-" in refused(*arguments(tmp_path))


@pytest.mark.parametrize("command", ["train", "export"])
def test_a_name_reaches_the_work(
    command: str, tmp_path: Path, hub: list[Any], conversions: list[Path]
) -> None:
    """A base without an image tower and without weights, which is what the command then says of it."""
    given: dict[str, tuple[tuple[object, ...], str]] = {
        "train": ((tmp_path, "--base", "ulip-pointbert"), "this base has no image branch"),
        "export": (("ulip-pointbert", "--classes", "mug"), "ulip-pointbert.safetensors lacks weight"),
    }
    arguments, said = given[command]
    result = invoke(command, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(conversions) == 1
