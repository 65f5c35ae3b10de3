"""Questions to another Python: whatever happens there is one line here, and no module of the working folder is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossmost.runtime import bench, doctor
from crossmost.runtime.child_process import ProcessFailed, ask


def test_a_crash_an_error_and_silence_are_one_line() -> None:
    with pytest.raises(ProcessFailed, match=r"^the process was ended by signal 6$"):
        ask("import os; os.abort()")
    with pytest.raises(ProcessFailed, match=r"^the process failed: ValueError: no$"):
        ask("raise ValueError('no')")
    with pytest.raises(ProcessFailed, match=r"^the process failed: it said nothing$"):
        ask("")
    with pytest.raises(ProcessFailed, match=r"^no answer within 0\.2 seconds$"):
        ask("import time; time.sleep(30)", seconds=0.2)


def test_the_last_line_is_the_answer() -> None:
    assert ask("print('warning'); print('[1, 2]')") == [1, 2]
    assert ask("import json, sys; print(json.dumps(sys.argv[1:]))", "a", "b c") == ["a", "b c"]


@pytest.mark.parametrize("name", ["numpy", "onnxruntime", "json"])
def test_modules_of_the_working_folder_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert "CPUExecutionProvider" in ask(doctor.PROVIDERS)
    with pytest.raises(ProcessFailed, match="manifest"):
        bench.cold_start(tmp_path, "onnxruntime-cpu", 1)
    assert not (tmp_path / "ran").exists()
