"""What is shipped: the wheel holds exactly the tracked modules, and works where no training framework is installed."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from effprof.runlog.schema import End, Header, RunRecord, Steps
from effprof.runlog.writer import RankWriter, write_run_record

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("callbacks", "reports")
LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command, fail with what it printed, return its standard output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tracked_files() -> list[str]:
    """Every file git tracks, so that what lies about untracked can't slip into the build."""
    return run("git", "-C", ROOT, "ls-files", "-z").rstrip("\0").split("\0")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from a copy that holds only tracked files."""
    tree = tmp_path_factory.mktemp("tree")
    for name in tracked_files():
        if (ROOT / name).exists() or (ROOT / name).is_symlink():  # deleted but not committed yet
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    out = tmp_path_factory.mktemp("dist")
    # the wheel is built from the unpacked sdist, so both are put to the test
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree)
    return out


def expected_files() -> set[str]:
    """Where each tracked file of the package's folders, modules and data, must lie in the wheel."""
    shipped = set()
    for name in tracked_files():
        path = Path(name)
        if not (ROOT / name).is_file():  # the links themselves, or deleted but not committed yet
            continue
        if path.parts[0] == "effprof":
            shipped.add(name)
        elif path.parts[0] in LINKED:
            shipped.add(f"effprof/{name}")
    return shipped


def test_the_wheel_holds_the_tracked_modules_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files == expected_files()
    assert "effprof/callbacks/lightning.py" in files
    assert "effprof/reports/terminal.py" in files
    assert any(name.endswith("accelerators.csv") for name in files)
    assert {f"effprof/reports/assets/{name}" for name in ("echarts.min.js", "LICENSE-echarts", "report.js")} <= files


def test_the_sdist_holds_the_modules_once(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert expected_files() <= files
    assert {"pyproject.toml", "README.md", "LICENSE"} <= files


def core_requirements() -> set[str]:
    """Distributions that effprof needs without any extra, with all that they need themselves."""
    needed: set[str] = set()
    waiting = ["effprof"]
    while waiting:
        for line in importlib.metadata.requires(waiting.pop()) or []:
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            if name not in needed and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                needed.add(name)
                waiting.append(name)
    return needed


@pytest.fixture(scope="module")
def bare_environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment with the wheel and, as links, its core requirements: what
    `pip install effprof` gives, without asking a package index."""
    home = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", "--without-pip", home)
    (wheel,) = built.glob("*.whl")
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for name in core_requirements():
        for file in importlib.metadata.files(name) or []:
            top = file.parts[0]
            if top != ".." and not (site / top).exists():
                (site / top).symlink_to(Path(str(importlib.metadata.distribution(name).locate_file(top))).resolve())
    return home / "bin"


def test_no_training_framework_is_needed(bare_environment: Path, tmp_path: Path) -> None:
    question = (
        "from importlib.util import find_spec as find; import effprof; "
        "print([n for n in ('torch', 'pytorch_lightning', 'lightning', 'transformers') if find(n)], effprof.__file__)"
    )
    answer = run(bare_environment / "python", "-c", question, cwd=tmp_path)
    assert answer.startswith("[] ")
    assert str(bare_environment.parent) in answer


def test_flops_without_torch(bare_environment: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    report = json.loads(run(bare_environment / "effprof", "flops", tmp_path / "config.json", "--seq", "8192", "--json"))
    assert report["params"]["total"] == 8_030_261_248
    assert report["flops_per_token"]["exact"] == pytest.approx(51.5e9, rel=1e-3)


def test_device_without_torch(bare_environment: Path) -> None:
    device = json.loads(run(bare_environment / "effprof", "device", "--name", "NVIDIA H100 80GB HBM3", "--json"))
    assert device["peak_tflops"]["bf16"] == pytest.approx(989.4, abs=0.1)


def test_analyze_without_torch(bare_environment: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    write_short_run(run_dir, steps=60, step_ns=10_000_000)
    analysis = json.loads(run(bare_environment / "effprof", "analyze", run_dir, "--json"))
    assert analysis["schema"] == "effprof.analysis/1"
    assert analysis["efficiency"]["steps"]["total"] == 60
    assert analysis["efficiency"]["step_time_s"]["median"] == pytest.approx(0.01)


def write_short_run(run_dir: Path, steps: int, step_ns: int) -> None:
    """Record a finished run of `steps` equal steps of `step_ns` each."""
    start = time.monotonic_ns()
    run_dir.mkdir()
    write_run_record(run_dir, RunRecord(id="short", created_s=time.time(), hardware={"name": "none"}))
    header = Header(run_id="short", role="rank", rank=0, monotonic_ns=start, wall_s=time.time(), process_start_s=0.0)
    header.process_start_s = header.wall_s
    writer = RankWriter(run_dir / "attempt-000", header)
    ends = [start + step_ns * (index + 1) for index in range(steps)]
    columns: dict[str, list[float | int | None]] = {
        "step": list(range(1, steps + 1)),
        "end_ns": list(ends),
        "forward_ns": [step_ns] * steps,
        "micro_batches": [1] * steps,
        "tokens": [1024] * steps,
    }
    writer.write([Steps(n=steps, columns=columns), End(status="completed", monotonic_ns=ends[-1])])
    writer.close()
