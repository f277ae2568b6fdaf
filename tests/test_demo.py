"""The demo's models do what they say, and its training, analysis and comparison run end to end."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def gpt() -> ModuleType:
    """examples/gpt.py as a module."""
    spec = importlib.util.spec_from_file_location("gpt_example", EXAMPLES / "gpt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_experts_compute_what_a_plain_loop_computes(gpt: ModuleType) -> None:
    torch.manual_seed(0)
    layer = gpt.MixtureOfExperts(gpt.GPTConfig(width=16, experts=4, top_k=2))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 12, 16)
    y, _ = layer(x)
    tokens = x.reshape(-1, 16)
    _, weights, experts = layer.router(tokens)
    slots = 2 * len(tokens) // 4
    taken = [0] * 4
    expected = torch.zeros_like(tokens)
    for choice in range(2):
        for token in range(len(tokens)):
            expert = int(experts[token, choice])
            taken[expert] += 1
            if taken[expert] <= slots:
                hidden = F.gelu(tokens[token] @ layer.up[expert])
                expected[token] += weights[token, choice] * (hidden @ layer.down[expert])
    torch.testing.assert_close(y.reshape(-1, 16), expected)
    dropped = sum(max(0, count - slots) for count in taken)
    assert float(layer.dropped_share) == pytest.approx(dropped / (2 * len(tokens)))
    assert dropped > 0, "the case must exercise a full expert"


def test_both_variants_have_about_the_same_active_size(gpt: ModuleType) -> None:
    _, dense = gpt.GPT(gpt.GPTConfig()).count_parameters()
    total, active = gpt.GPT(gpt.GPTConfig(experts=8)).count_parameters()
    assert active == pytest.approx(dense, rel=0.01)
    assert total > 2.5 * active


def test_windows_are_the_text_and_its_next_bytes(gpt: ModuleType) -> None:
    text = torch.arange(200, dtype=torch.uint8)
    windows = list(gpt.Windows(text, length=8, seed=3, count=5))
    assert len(windows) == 5
    for window in windows:
        torch.testing.assert_close(window["labels"][:-1], window["input_ids"][1:])
        assert int(window["labels"][-1]) == int(window["input_ids"][-1]) + 1


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without a terminal, fail with what it printed, return its standard output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both demo trainings, some steps each: by the clock, a busy machine would leave too few."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("dense", "moe"):
        training = (EXAMPLES / "train_demo.py", "--model", name, "--run-dir", folder / name)
        run(sys.executable, *training, "--batch", "2", "--steps", "40", "--seconds", "200", cwd=folder)
    return {name: folder / name for name in ("dense", "moe")}


def effprof(*words: str | Path, cwd: Path) -> str:
    """Run the installed command."""
    return run(Path(sys.executable).with_name("effprof"), *words, cwd=cwd)


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_the_demo_run_is_measured(runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    analysis = json.loads(effprof("analyze", runs[name], "--json", cwd=tmp_path))
    assert analysis["run"]["ended"] == "completed"
    efficiency = analysis["efficiency"]
    assert efficiency["steps"]["total"] == 40
    assert efficiency["tokens_per_step"] == 2 * 256
    lines = analysis["account"]["lines"]
    assert lines["effprof"] > 0
    assert sum(lines.values()) == pytest.approx(analysis["account"]["wall_s"], rel=1e-6)
    mfu, refused = efficiency["mfu"], "mfu_above_peak" in {warning["code"] for warning in analysis["warnings"]}
    assert mfu["peak_flops_per_s"] > 0
    if refused:  # other processes took the cores while the ceiling was measured
        assert mfu["value"] is None
    else:
        rate = efficiency["tokens_per_s"]["median"] * efficiency["conventions"]["exact"]["flops_per_token"]
        # the mean of all steady steps against the median one
        assert mfu["value"] == pytest.approx(rate / mfu["peak_flops_per_s"], rel=0.5)


def test_the_demo_shows_every_layers_experts(runs: dict[str, Path], tmp_path: Path) -> None:
    layers = json.loads(effprof("analyze", runs["moe"], "--json", cwd=tmp_path))["moe"]["layers"]
    assert len(layers) == 4
    for layer in layers:
        assert len(layer["tokens_per_expert"]) == 8
        assert sum(layer["tokens_per_expert"]) % (2 * 2 * 256) == 0, "each token goes to two experts"


def test_the_demo_counts_the_active_experts_only(runs: dict[str, Path], tmp_path: Path) -> None:
    per_token = {}
    for name, run_dir in runs.items():
        analysis = json.loads(effprof("analyze", run_dir, "--json", cwd=tmp_path))
        per_token[name] = analysis["efficiency"]["conventions"]["exact"]["flops_per_token"]
    width, layers, context, vocabulary, experts = 128, 4, 256, 256, 8
    matmuls = layers * 12 * width**2 + width * vocabulary
    attention = layers * 2 * width * (context + 1) / 2  # query-key and value products, causal pairs per token
    assert per_token["dense"] == pytest.approx(6 * (matmuls + attention), rel=1e-3)
    assert per_token["moe"] == pytest.approx(6 * (matmuls + attention + layers * width * experts), rel=1e-3)


def test_the_demo_runs_compare(runs: dict[str, Path], tmp_path: Path) -> None:
    assert "tokens" in effprof("compare", runs["dense"], runs["moe"], cwd=tmp_path)
    comparison = json.loads(effprof("compare", runs["dense"], runs["moe"], "--json", cwd=tmp_path))
    assert comparison["schema"] == "effprof.compare/1"
