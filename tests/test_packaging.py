"""The distribution: what is in it, what importing it costs, and that no checkout shadows an installed one.

Two environments are made for the whole session, one from the wheel and one editable, each from a copy of the
checkout. Both see the packages of the environment the tests run in, except its crossmost.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
import trimesh
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
PACKAGE_FOLDERS = {"crossmost": "crossmost", **PROJECT["tool"]["setuptools"]["package-dir"]}
"""Folder of the checkout by package: `crossmost.runtime` is `runtime`."""

NOT_ON_A_ROBOT = ("torch", "torchvision", "open_clip", "timm", "onnx")
HEAVY = (
    *NOT_ON_A_ROBOT,
    *("numpy", "scipy", "sklearn", "pandas", "PIL", "matplotlib", "onnxruntime", "tensorboard"),
    *("yaml", "safetensors", "trimesh", "plyfile", "pypcd4", "laspy", "h5py", "jinja2"),
)


def run(
    arguments: list[str | Path], cwd: Path, *, check: bool = True, input: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command without what the caller's Python paths, or a `make` around the tests, would add to it."""
    ours = ("PYTHON", "MAKE", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        arguments, cwd=cwd, env=environment, input=input, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0 or not check, f"{arguments} in {cwd}:\n{done.stdout}\n{done.stderr}"
    return done


@dataclass(frozen=True)
class Installed:
    """A virtual environment with crossmost, and the checkout it was made from."""

    python: Path
    site: Path
    checkout: Path
    editable: bool

    def run(self, code: str, cwd: Path) -> str:
        return run([self.python, "-c", code], cwd).stdout


def copy_checkout(folder: Path) -> Path:
    """Copy what the distribution is built from, so that building leaves nothing in the real checkout."""
    folder.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in set(PACKAGE_FOLDERS.values()):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def install(folder: Path, checkout: Path, wheel: Path | None) -> Installed:
    """Make an environment in `folder` with the wheel, or without one, the checkout itself, editable."""
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    printed = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).stdout
    site = Path(printed.strip())
    # The folders a .pth file names are searched, but .pth files in them, such as that of an editable
    # crossmost, are not read.
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "outer.pth").write_text("\n".join(sorted(outer)) + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    what = [wheel] if wheel else ["--editable", checkout]
    run([*pip, "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", *what], folder)
    return Installed(python, site, checkout, editable=wheel is None)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as a release is: from the source distribution."""
    folder = tmp_path_factory.mktemp("build")
    source = copy_checkout(folder / "source")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def from_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("from_wheel")
    return install(folder / "env", copy_checkout(folder / "checkout"), wheel)


@pytest.fixture(scope="session")
def from_checkout(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("from_checkout")
    return install(folder / "env", copy_checkout(folder / "checkout"), None)


@pytest.fixture(params=["from_wheel", "from_checkout"])
def installed(request: pytest.FixtureRequest) -> Installed:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["checkout", "elsewhere"])
def cwd(request: pytest.FixtureRequest, installed: Installed, tmp_path: Path) -> Path:
    return installed.checkout if request.param == "checkout" else tmp_path


@pytest.fixture(scope="session")
def package_files() -> dict[str, Path]:
    """What git has, or would take, of the packages: installed path -> path in the checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--"]
    found: dict[str, Path] = {}
    for package, folder in PACKAGE_FOLDERS.items():
        for line in run([*listing, folder], ROOT).stdout.splitlines():
            path = Path(line)
            if (ROOT / path).is_file():
                inside = Path(*package.split(".")) / path.relative_to(folder)
                found[inside.as_posix()] = path
    return found


def test_every_package_is_listed(package_files: dict[str, Path]) -> None:
    folders = {
        str(Path(file).parent).replace("/", ".") for file in package_files if Path(file).name == "__init__.py"
    }
    assert sorted(PACKAGES) == sorted(folders)
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(PACKAGE_FOLDERS.values())


def test_the_wheel_holds_every_file_and_nothing_else(wheel: Path, package_files: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files == set(package_files)
    assert "crossmost/py.typed" in files


def test_the_wheel_needs_only_what_a_robot_has(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = archive.read(name).decode().splitlines()
    required = [line.split(":", 1)[1] for line in lines if line.startswith("Requires-Dist:")]
    base = {re.split(r"[^\w-]", line.strip())[0] for line in required if "extra ==" not in line}
    assert base == {"numpy", "typer"}


@pytest.mark.parametrize(("python", "newest"), [("3.10", "1.23.2"), ("3.11", "1.31.1"), ("3.14", "1.31.1")])
def test_the_gpu_extra_can_be_had_on_every_python(python: str, newest: str) -> None:
    """`newest` is the last onnxruntime-gpu with a wheel for this Python, as of November 2026."""
    extra = [Requirement(each) for each in PROJECT["project"]["optional-dependencies"]["gpu"]]
    here = [each for each in extra if each.marker is None or each.marker.evaluate({"python_version": python})]
    (runtime,) = (each for each in here if each.name == "onnxruntime-gpu")
    assert runtime.specifier.contains(newest)
    assert runtime.extras == {"cuda", "cudnn"}
    assert "cuda-bindings" in {each.name for each in here}


NEWER = {"onnxruntime", "cuda-bindings", "numpy", "pillow"}
"""What is pinned to a version that Python 3.10 cannot have."""


def test_constraints_leave_python_3_10_what_it_can_have() -> None:
    """These versions have no wheel for Python 3.10, where pip then takes the newest that has one."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for python, expected in (("3.10", set()), ("3.11", NEWER)):
        held = {
            pin.name for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})
        }
        assert held & NEWER == expected


def test_importing_the_package_loads_nothing_of_others(from_wheel: Installed, tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import crossmost
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
"""
    assert from_wheel.run(code, tmp_path).strip() == "['crossmost']"


def test_the_runtime_runs_where_the_trainer_cannot(from_wheel: Installed, tmp_path: Path) -> None:
    """The banned packages are installed here, so a robot is played: looking for one of them fails."""
    code = f"""
import importlib, pkgutil, sys
BANNED = {NOT_ON_A_ROBOT!r}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
import crossmost.runtime
for module in pkgutil.iter_modules(crossmost.runtime.__path__):
    importlib.import_module("crossmost.runtime." + module.name)

import numpy as np
from crossmost.runtime.preprocess import prepare
from crossmost.runtime.sampling import group
points = prepare(np.random.default_rng(0).normal(size=(300, 3)), most=256, least=64)
patches, centers = group(points, 64, 32)
print(points.shape, patches.shape, centers.shape)
loaded = [name for name in sys.modules if name.partition(".")[0] in BANNED]
trainer = [name for name in sys.modules if name.startswith("crossmost.") and ".runtime" not in name]
print(loaded, trainer)
"""
    shapes, imported = from_wheel.run(code, tmp_path).splitlines()
    assert shapes == "(256, 3) (64, 32, 3) (64, 3)"
    assert imported == "[] []"


def modules_of_io() -> set[str]:
    """The top-level modules that `pip install crossmost[io]` brings, the libraries of libraries included."""
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["io"]]
    names, seen = {"crossmost"}, set()
    pending = [Requirement(each) for each in wanted]
    while pending:
        requirement = pending.pop()
        names.add(canonicalize_name(requirement.name))
        for each in map(Requirement, metadata.requires(requirement.name) or []):
            environments = [{"extra": extra} for extra in (requirement.extras or {""})]
            if each.marker is None or any(map(each.marker.evaluate, environments)):
                if str(each) not in seen:
                    pending.append(each)
                seen.add(str(each))
    distributions = metadata.packages_distributions()
    return {
        module for module, of in distributions.items() if {canonicalize_name(name) for name in of} & names
    }


def test_io_alone_reads_textures_and_text_of_another_encoding(tmp_path: Path) -> None:
    """Everything is installed here, so an environment with [io] alone is played: looking for more fails."""
    picture = Image.new("RGB", (8, 8), (200, 100, 50))
    picture.save(tmp_path / "a.png")
    (tmp_path / "a.mtl").write_text("# caf\xe9\nnewmtl a\nKd 1 1 1\nmap_Kd a.png\n", "latin-1")
    square = ("0 0", "1 0", "1 1", "0 1")
    lines = ["# caf\xe9", "mtllib a.mtl", *(f"v {at} 0" for at in square), *(f"vt {at}" for at in square)]
    (tmp_path / "a.obj").write_text("\n".join([*lines, "usemtl a", "f 1/1 2/2 3/3 4/4", ""]), "latin-1")
    mesh = trimesh.load_mesh(tmp_path / "a.obj")
    mesh.visual.material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture)
    mesh.export(tmp_path / "a.glb")
    code = f"""
import sys
ALLOWED = {modules_of_io()!r} | set(sys.stdlib_module_names)

class Only:
    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ALLOWED:
            return next(filter(None, (each.find_spec(name, path, target) for each in self.finders)), None)

sys.meta_path[:] = [Only(list(sys.meta_path))]
from crossmost.data.readers import read_cloud
for name in sys.argv[1:]:
    print((read_cloud(name, samples=9).rgb * 255).round().min(axis=0).tolist())
"""
    printed = run([sys.executable, "-c", code, tmp_path / "a.obj", tmp_path / "a.glb"], ROOT).stdout
    assert printed.splitlines() == ["[200.0, 100.0, 50.0]"] * 2


def test_a_texture_without_pillow_is_an_error_and_no_white(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "from crossmost.data.readers import read_cloud\n"
        f"try: read_cloud({str(tmp_path / 'a.obj')!r})\n"
        "except ValueError as error: print(error)\n"
    )
    printed = run([sys.executable, "-c", code], ROOT).stdout
    assert printed.strip().endswith("reading .obj needs PIL: pip install 'crossmost[io]'")


def ruff_findings(source: str, filename: str) -> str:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID251", "--stdin-filename"]
    return run([*command, filename, "-"], ROOT, check=False, input=source).stdout


@pytest.mark.parametrize(
    "statement",
    ["import torch", "from torch import nn", "import torch.nn as nn", "import open_clip", "import onnx"],
)
def test_ruff_keeps_the_trainer_out_of_the_runtime(statement: str) -> None:
    assert "TID251" in ruff_findings(f"{statement}\n", "runtime/x.py")
    assert "TID251" in ruff_findings(f"def load():\n    {statement}\n", "runtime/x.py")
    assert "TID251" not in ruff_findings(f"{statement}\n", "crossmost/models/x.py")


def test_ruff_lets_the_runtime_use_what_a_robot_has() -> None:
    assert "TID251" not in ruff_findings("import onnxruntime\nimport numpy\n", "runtime/x.py")


def test_no_module_imports_a_checkout_folder_by_its_bare_name() -> None:
    """`import runtime` works at the root of a checkout only, and loads every module a second time."""
    bare = {folder for package, folder in PACKAGE_FOLDERS.items() if package != folder}
    found = []
    for top in (*PACKAGE_FOLDERS.values(), "tests", "benchmarks"):
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                found += [f"{path}:{node.lineno}" for name in names if name.partition(".")[0] in bare]
    assert found == []


def test_no_generic_name_is_installed(installed: Installed, tmp_path: Path) -> None:
    code = "from importlib.util import find_spec; print(find_spec('export'), find_spec('runtime'))"
    assert installed.run(code, tmp_path).strip() == "None None"


def test_the_runtime_is_found_from_anywhere(installed: Installed, cwd: Path) -> None:
    code = "import crossmost, crossmost.runtime.preprocess as module; print(module.__name__, module.__file__)"
    name, file = installed.run(code, cwd).split(maxsplit=1)
    assert name == "crossmost.runtime.preprocess"
    shadowed = cwd == installed.checkout
    expected = installed.checkout if installed.editable or shadowed else installed.site
    assert expected in Path(file.strip()).parents


def test_an_installed_package_never_reaches_beside_itself(from_wheel: Installed, tmp_path: Path) -> None:
    code = "import crossmost; print(len(list(crossmost.__path__)))"
    assert from_wheel.run(code, tmp_path).strip() == "1"


def test_the_command_runs_from_anywhere(installed: Installed, cwd: Path) -> None:
    printed = run([installed.python, "-m", "crossmost", "--version"], cwd).stdout
    assert PROJECT["project"]["version"] in printed


def test_the_console_script_runs(from_wheel: Installed) -> None:
    script = from_wheel.python.with_name("crossmost.exe" if os.name == "nt" else "crossmost")
    assert PROJECT["project"]["version"] in run([script, "--version"], from_wheel.checkout).stdout


def test_help_loads_nothing_heavy(from_wheel: Installed, tmp_path: Path) -> None:
    """Neither `crossmost --help` nor the help of any command."""
    code = f"""
import sys
import typer
from crossmost.cli import app
group = typer.main.get_command(app)
for arguments in (["--version"], ["--help"], *([name, "--help"] for name in group.commands)):
    try:
        group.main(arguments, prog_name="crossmost")
    except SystemExit as end:
        assert not end.code, arguments
print()
print(sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r})))
"""
    assert from_wheel.run(code, tmp_path).splitlines()[-1] == "[]"


def make_commands(target: str) -> list[str]:
    """What `make target` would run, as for a first time."""
    if shutil.which("make") is None:
        pytest.skip("make is not here")
    return run(["make", "--dry-run", "--always-make", target], ROOT).stdout.splitlines()


def test_make_checks_types_of_the_installed_package() -> None:
    """At the root, and through an editable install, mypy does not find crossmost.runtime."""
    commands = make_commands("types")
    (check,) = (line for line in commands if "-m mypy" in line)
    folder = re.match(r"cd (\S+) && ", check)
    assert folder is not None, check
    assert re.search(r" -p crossmost\b", check)
    assert any(f"--target {folder[1]} ." in line and "install" in line for line in commands)


def test_make_test_checks_style_and_types_and_runs_the_tests() -> None:
    commands = "\n".join(make_commands("test"))
    for part in ("ruff check", "ruff format --check", "-m mypy", "-m pytest"):
        assert part in commands
