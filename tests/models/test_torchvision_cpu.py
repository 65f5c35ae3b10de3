"""The repair runs in processes of its own: it acts on the first import of torchvision."""

import subprocess
import sys
from pathlib import Path

PACKAGE_LIKE_A_CUDA_WHEEL = """
import torch
from torchvision import half
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        raise RuntimeError("operator torchvision::nms does not exist")
"""


def run(code: str, *, first_on_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = f"import sys; sys.path.insert(0, {str(first_on_path)!r})\n" if first_on_path else ""
    return subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, encoding="utf-8", timeout=120
    )


def fake_torchvision(folder: Path, source: str) -> Path:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(source)
    (folder / "torchvision" / "half.py").write_text("imports = globals().get('imports', 0) + 1\n")
    return folder


def test_open_clip_imports_after_the_repair():
    done = run(
        "from crossmost.models.torchvision_cpu import repair_torchvision\n"
        "repair_torchvision(); repair_torchvision()\n"
        "import open_clip, timm\n"
        "from torchvision.transforms.functional import resize\n"
        "import torch\n"
        "print(tuple(resize(torch.zeros(3, 8, 8), [4, 4]).shape))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(3, 4, 4)"


def test_missing_operators_are_declared_and_the_half_import_is_dropped(tmp_path):
    done = run(
        "from crossmost.models.torchvision_cpu import repair_torchvision\n"
        "repair_torchvision()\n"
        "import torch, torchvision\n"
        "print(torchvision.half.__name__, torch.ops.torchvision.nms.default._schema)",
        first_on_path=fake_torchvision(tmp_path, PACKAGE_LIKE_A_CUDA_WHEEL),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("torchvision.half torchvision::nms(Tensor dets, Tensor scores")


def test_a_torchvision_that_loads_is_left_alone(tmp_path):
    done = run(
        "from crossmost.models.torchvision_cpu import repair_torchvision\n"
        "repair_torchvision()\n"
        "before = sys.modules['torchvision']\n"
        "repair_torchvision()\n"
        "assert sys.modules['torchvision'] is before\n"
        "assert 'torch' not in sys.modules\n",
        first_on_path=fake_torchvision(tmp_path, "loaded = True\n"),
    )
    assert done.returncode == 0, done.stderr


def test_another_failure_is_passed_on(tmp_path):
    done = run(
        "from crossmost.models.torchvision_cpu import repair_torchvision\nrepair_torchvision()",
        first_on_path=fake_torchvision(tmp_path, "raise RuntimeError('out of tea')\n"),
    )
    assert done.returncode == 1
    assert "RuntimeError: out of tea" in done.stderr
