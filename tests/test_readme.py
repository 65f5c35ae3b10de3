"""What README shows works as it stands there, and what comments cite is there."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossmost.checkpoints.run_files import is_run
from crossmost.models.student import Student
from crossmost.runtime.vocabulary import Vocabulary

README = Path(__file__).parents[1] / "README.md"


def snippet(holding: str) -> str:
    """The one Python block of README that holds these words."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if holding in block)
    return found


def test_a_run_can_be_trained_from_python(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shapes_file: Path,
    tiny_base: Path,
    tiny_vocabulary: Vocabulary,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_base, "base.safetensors")
    shutil.copy(shapes_file, "scans.npz")
    tiny_vocabulary.save("classes.npz")
    shown = snippet("runs.train(").replace('Path("scans")', 'Path("scans.npz")')
    names: dict[str, object] = {}
    exec(
        shown.replace('{"epochs": 10}', '{"epochs": 1, "batch_size": 8, "views": 2, "device": "cpu"}'), names
    )
    assert isinstance(names["student"], Student)
    assert is_run(tmp_path / "runs" / "scans")


def test_every_section_that_is_cited_is_in_the_method() -> None:
    root = README.parent
    method = (root / "crossmost" / "METHOD.md").read_text("utf-8")
    headings = set(re.findall(r"^#+ ([0-9.]*[0-9])", method, re.MULTILINE))
    cited = set()
    for folder in ("crossmost", "export", "runtime", "tests", "benchmarks"):
        for path in (root / folder).rglob("*.py"):
            for numbers in re.findall(
                r"METHOD (?:sections? )?([0-9][0-9., andto]*)", path.read_text("utf-8")
            ):
                for number in re.findall(r"[0-9]+(?:\.[0-9]+)*", numbers):
                    cited.add(".".join(number.split(".")[:2]))  # a third number is an item of a list
    assert len(cited) > 10
    assert cited <= headings


def test_the_ros_node_outlives_a_message_it_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Callable[[str], Path]
) -> None:
    """With stand-ins for ROS: a cloud, a message cut short, a frame of nothing, and a cloud again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans.bundle").symlink_to(bundle("fp32"))
    published: list[SimpleNamespace] = []
    warned: list[str] = []

    class Node:
        def __init__(self, name: str):
            self.parameters: dict[str, str] = {}

        def declare_parameter(self, name: str, value: str) -> None:
            self.parameters[name] = value

        def get_parameter(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(value=self.parameters[name])

        def create_publisher(self, *_: object) -> SimpleNamespace:
            return SimpleNamespace(publish=published.append)

        def create_subscription(self, kind: object, topic: str, callback: Any, qos: object) -> None:
            self.callback = callback

        def get_logger(self) -> SimpleNamespace:
            return SimpleNamespace(warning=lambda text, throttle_duration_sec: warned.append(text))

    cloud = message_of(np.random.default_rng(0).standard_normal((90, 3)))
    cut = SimpleNamespace(**{**vars(cloud), "data": cloud.data[:-40]})
    sent = [cloud, cut, message_of(np.zeros((9, 3))), cloud]

    def spin(node: Any) -> None:
        for message in sent:
            node.callback(message)

    modules = {
        "rclpy": {"init": lambda: None, "spin": spin},
        "rclpy.node": {"Node": Node},
        "rclpy.qos": {"qos_profile_sensor_data": None},
        "sensor_msgs": {},
        "sensor_msgs.msg": {"PointCloud2": SimpleNamespace},
        "vision_msgs": {},
        "vision_msgs.msg": {"Classification": SimpleNamespace, "ObjectHypothesis": SimpleNamespace},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    exec(snippet("class ClassifierNode"), {})
    assert len(published) == 2
    assert [each.header for each in published] == ["a header"] * 2
    (line,) = warned
    assert "bytes of data" in line


def message_of(points: NDArray[np.float64]) -> SimpleNamespace:
    """A PointCloud2 of bare coordinates."""
    fields = [SimpleNamespace(name=name, offset=4 * at, datatype=7, count=1) for at, name in enumerate("xyz")]
    return SimpleNamespace(
        header="a header", height=1, width=len(points), fields=fields, is_bigendian=False, point_step=12,
        row_step=12 * len(points), data=points.astype(np.float32).tobytes(), is_dense=True,
    )  # fmt: skip
