"""The house rules, checked on the source: imports point one way, the front door is light, modules stay small."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A room may import from rooms on lower floors only; neighbours on one floor never import each other.
FLOORS = (
    ("errors",),
    ("workload", "hardware"),
    ("runlog",),
    ("trace", "metrics"),
    ("analysis", "measure"),
    ("plan",),
    ("advise",),
    ("reports",),
    ("callbacks",),
    ("cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = ("torch", "pytorch_lightning", "lightning", "transformers", "polars", "rich", "numpy")
ROOMS_WITHOUT_TORCH = ("hardware/probes", "runlog", "metrics", "trace", "analysis", "plan", "advise", "reports", "cli")
MODULE_LINES = 420  # "about 400": past this a module has two duties


def list_modules(root: Path) -> dict[str, Path]:
    """Dotted name → file for the package's modules, the two linked rooms under their names in the package."""
    modules = {}
    for folder, prefix in (("effprof", "effprof"), ("callbacks", "effprof.callbacks"), ("reports", "effprof.reports")):
        for base, folders, files in os.walk(root / folder, followlinks=False):
            folders[:] = [name for name in folders if not (Path(base) / name).is_symlink() and name != "__pycache__"]
            for name in files:
                if name.endswith(".py"):
                    path = Path(base) / name
                    parts = path.relative_to(root / folder).with_suffix("").parts
                    modules[".".join((prefix, *(part for part in parts if part != "__init__")))] = path
    return modules


def imported_names(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import in a file, wherever it stands, relative ones resolved."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join((*parts[: len(parts) - node.level + 1], *filter(None, [node.module])))
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args:
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            target = node.args[0]
            if name in ("import_module", "__import__"):
                if isinstance(target, ast.JoinedStr):  # f"effprof.cli.{name}": the constant head names the room
                    target = target.values[0]
                if isinstance(target, ast.Constant) and isinstance(target.value, str):
                    yield node.lineno, target.value


def room_of(module: str) -> str | None:
    """The room a dotted name lies in; None for the package itself and for other packages."""
    parts = module.split(".")
    return parts[1] if parts[0] == "effprof" and len(parts) > 1 and parts[1] in FLOOR_OF else None


def find_violations(root: Path) -> list[str]:
    """Every import under `root` that points upward, sideways, or at a linked room by its folder's name."""
    found = []
    for module, path in sorted(list_modules(root).items()):
        room = room_of(module)
        for line, target in imported_names(module, path):
            where = f"{path.relative_to(root)}:{line}"
            if target.split(".")[0] in ("callbacks", "reports"):
                found.append(f"{where} imports {target}: say effprof.{target.split('.')[0]}")
            there = room_of(target)
            if room is None or there is None or there == room:
                continue
            if FLOOR_OF[there] > FLOOR_OF[room]:
                found.append(f"{where} {room} imports upward from {there}")
            elif FLOOR_OF[there] == FLOOR_OF[room]:
                found.append(f"{where} {room} imports sideways from {there}")
    return found


def test_imports_point_one_way() -> None:
    modules = list_modules(ROOT)
    assert {"effprof.cli.main", "effprof.runlog.schema", "effprof.reports"} <= set(modules)
    unknown = {name for name in modules if name.count(".") == 1 and room_of(name) is None}
    assert not unknown, f"rooms without a floor: {unknown}"
    assert find_violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("effprof/metrics/bad.py", "from effprof.analysis import model", "metrics imports upward from analysis"),
        ("effprof/metrics/bad.py", "from ..analysis.model import Analysis", "metrics imports upward from analysis"),
        ("effprof/metrics/bad.py", "from .. import analysis", "metrics imports upward from analysis"),
        ("effprof/metrics/__init__.py", "from ..runlog import reader\nfrom ..measure import tokens", "from measure"),
        ("effprof/measure/bad.py", "import effprof.analysis.model", "measure imports sideways from analysis"),
        ("effprof/workload/bad.py", "def f():\n    from effprof.hardware import peak", "sideways from hardware"),
        ("effprof/workload/sub/bad.py", "from ...runlog.schema import Header", "workload imports upward from runlog"),
        ("effprof/analysis/bad.py", "from effprof import callbacks", "analysis imports upward from callbacks"),
        ("effprof/runlog/bad.py", "import importlib\nimportlib.import_module('effprof.cli.main')", "upward from cli"),
        ("effprof/errors.py", "from effprof.runlog import schema", "errors imports upward from runlog"),
        ("reports/bad.py", "from effprof.callbacks.lightning import x", "reports imports upward from callbacks"),
        ("reports/bad.py", "from ..cli import main", "reports imports upward from cli"),
        ("callbacks/bad.py", "from reports import terminal", "say effprof.reports"),
        ("effprof/cli/bad.py", "import callbacks.lightning", "say effprof.callbacks"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    plant(tmp_path, file, source)
    (violation,) = find_violations(tmp_path)
    assert complaint in violation
    assert violation.startswith(file)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("effprof/analysis/good.py", "from effprof.runlog.reader import open_run\nfrom ..metrics import mfu"),
        ("effprof/analysis/good.py", "from . import model\nfrom .account import tile\nfrom effprof import __version__"),
        (
            "callbacks/good.py",
            "from effprof.measure.profiler import StepProfiler\nfrom effprof.reports import terminal",
        ),
        ("effprof/cli/good.py", "import importlib\nimportlib.import_module(f'effprof.cli.{name}')"),
        ("effprof/measure/good.py", "from torch.utils import data\nimport metrics"),
    ],
)
def test_a_lawful_import_is_let_through(tmp_path: Path, file: str, source: str) -> None:
    plant(tmp_path, file, source)
    assert find_violations(tmp_path) == []


def plant(root: Path, file: str, source: str) -> None:
    """Write one module into an otherwise empty tree that is laid out like this project's."""
    (root / file).parent.mkdir(parents=True)
    (root / file).write_text(source)
    (root / "effprof").mkdir(exist_ok=True)
    for link in ("callbacks", "reports"):
        (root / "effprof" / link).symlink_to(f"../{link}")


def test_linked_rooms_are_the_folders_beside_the_package() -> None:
    for room in ("callbacks", "reports"):
        link = ROOT / "effprof" / room
        assert link.is_symlink()
        assert os.readlink(link) == f"../{room}"


def test_rooms_that_read_logs_never_import_torch() -> None:
    heavy = {"torch", "pytorch_lightning", "lightning", "transformers"}
    rooms = [f"effprof.{room.replace('/', '.')}" for room in ROOMS_WITHOUT_TORCH]
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for module, path in list_modules(ROOT).items()
        if any(module == room or module.startswith(f"{room}.") for room in rooms)
        for line, target in imported_names(module, path)
        if target.split(".")[0] in heavy
    ]
    assert found == []


@pytest.mark.parametrize(
    "statement",
    [
        "import effprof",
        "import effprof.cli.main",
        "from effprof.cli.main import main; main(['--help'])",
        "from effprof.cli.main import main; main(['analyze', '--help'])",
        "import effprof.callbacks, effprof.measure, effprof.workload, effprof.hardware, effprof.runlog",
    ],
)
def test_the_front_door_is_light(statement: str) -> None:
    question = f"import sys; {statement}; print('loaded', [m for m in {HEAVY} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, cwd=ROOT, check=True)
    assert answer.stdout.splitlines()[-1] == "loaded []", answer.stdout


def test_no_module_outgrows_its_duty() -> None:
    sizes = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in list_modules(ROOT).values()}
    assert sizes
    assert {path: lines for path, lines in sizes.items() if lines > MODULE_LINES} == {}
