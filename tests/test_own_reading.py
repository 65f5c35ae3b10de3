"""How clouds are read for a run and for the bundle made of it: as the run read its own, unless told otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from crossmost.cli import app
from crossmost.data.reading import Reading
from crossmost.errors import InputError
from crossmost.own_reading import reading_of
from crossmost.runtime.orientation import turn
from crossmost.runtime.vocabulary import Vocabulary

SAYS_SO = "files are read as the run's own were, unless told otherwise: --up-axis y"


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    shapes_file: Path,
    tiny_base: Path,
    tiny_vocabulary: Vocabulary,
) -> Path:
    """A folder with the 24 shapes y up, a run on them, and its bundle."""
    folder = tmp_path_factory.mktemp("lying")
    with np.load(shapes_file) as stored:
        arrays = dict(stored)
    arrays["points"] = np.stack([turn(cloud, "z", "y") for cloud in arrays["points"]]).astype(np.float32)
    np.savez(folder / "shapes.npz", **arrays)
    tiny_vocabulary.save(folder / "classes.npz")
    began = ("--base", tiny_base, "--vocabulary", folder / "classes.npz", "--up-axis", "y", "--epochs", 0)
    done = invoke("train", folder / "shapes.npz", *began, "--out", folder / "run", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    done = invoke("export", folder / "run", "--out", folder / "run.bundle", "--batch", "1:2:4")
    assert done.exit_code == 0, done.stderr
    return folder


def test_a_bundle_is_evaluated_as_its_run_is(made: Path) -> None:
    run = json.loads(invoke("eval", made / "run", made / "shapes.npz", "--json").stdout)
    own, told, wrong = (
        invoke("eval", made / "run.bundle", made / "shapes.npz", "--json", *more)
        for more in ((), ("--up-axis", "y"), ("--up-axis", "z"))
    )
    found = [json.loads(each.stdout) for each in (own, told, wrong)]
    assert found[0]["deployed"]["point"] == pytest.approx(run["adapted"]["point"])
    assert found[0] == found[1]
    assert found[0]["unknown"] != found[2]["unknown"]
    assert [SAYS_SO in each.stderr for each in (own, told, wrong)] == [True, False, False]


def test_a_bundle_embeds_and_names_clouds_as_its_run_does(made: Path, tmp_path: Path) -> None:
    rows = []
    for model in ("run", "run.bundle"):
        done = invoke("embed", made / model, made / "shapes.npz", "--out", tmp_path / "rows.npy")
        assert done.exit_code == 0, done.stderr
        rows.append(np.load(tmp_path / "rows.npy"))
    np.testing.assert_allclose(*rows, atol=1e-4)
    own, told, wrong = (
        invoke("predict", made / "run.bundle", made / "shapes.npz", *more)
        for more in ((), ("--up-axis", "y"), ("--up-axis", "z"))
    )
    assert own.stdout == told.stdout != wrong.stdout
    assert [SAYS_SO in each.stderr for each in (own, told, wrong)] == [True, False, False]


def test_what_was_not_said_is_as_the_run_had_it(made: Path) -> None:
    for model in (made / "run", made / "run.bundle"):
        assert reading_of(model, {}) == Reading("y")
        assert reading_of(model, {"up_axis": "-z", "color": "none"}, labels=False) == Reading(
            "-z", None, "none", labels=False
        )
    assert reading_of(made / "nowhere", {"columns": None}) == Reading()


@pytest.mark.parametrize("reading", [[1], {"up_axis": 3}, {"axis": "y"}, "y"])
def test_a_damaged_note_is_named(made: Path, tmp_path: Path, reading: object) -> None:
    run, bundle = (shutil.copytree(made / name, tmp_path / name) for name in ("run", "run.bundle"))

    def spoil(path: Path, edit: Callable[[dict], None]) -> None:
        notes = json.loads(path.read_text("utf-8"))
        edit(notes)
        path.write_text(json.dumps(notes), "utf-8")

    spoil(run / "provenance.json", lambda notes: notes.update(reading=reading))
    spoil(bundle / "manifest.json", lambda notes: notes["provenance"]["training"].update(reading=reading))
    for model, place in ((run, "provenance.json"), (bundle, "manifest.json")):
        with pytest.raises(InputError, match=f"{place}: expected reading to name up_axis, columns, color"):
            reading_of(model, {})
        refused = invoke("eval", model, made / "shapes.npz")
        assert refused.exit_code == 2
        assert len(refused.stderr.splitlines()) == 1


def test_a_provenance_that_says_nothing_is_named_by_every_command(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run")
    (run / "provenance.json").write_text("{}", "utf-8")
    for command in (
        ("inspect", run),
        ("eval", run, made / "shapes.npz"),
        ("embed", run, made / "shapes.npz", "--out", tmp_path / "rows.npy"),
        ("export", run, "--out", tmp_path / "run.bundle"),
        ("train", made / "shapes.npz", "--resume", "--out", run),
    ):
        refused = invoke(*command)
        assert refused.exit_code == 2
        assert "provenance.json: expected crossmost, data, split" in refused.stderr
