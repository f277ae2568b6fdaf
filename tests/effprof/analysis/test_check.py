"""The gate: a real loss fails, noise does not, and what cannot be compared is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effprof.analysis.analyze import Examined, examine
from effprof.analysis.check import Check, check
from effprof.cli.main import main
from effprof.errors import EffprofError
from effprof.runlog.reader import open_run


def noisy(hand_made: Any, path: Path, seconds: float, seed: int, *, noise: float = 0.05, **rank: Any) -> Examined:
    rng = np.random.default_rng(seed)
    run = hand_made(path, path.name).record()
    run.rank([run.step(seconds * float(1 + noise * rng.standard_normal())) for _ in range(200)], **rank)
    return examine(open_run(str(path)))


def verdicts(checked: Check) -> dict[str, str]:
    return {each.metric: each.verdict for each in checked.checks}


def test_a_real_regression_fails_with_its_size(tmp_path: Path, hand_made: Any) -> None:
    base, slow = noisy(hand_made, tmp_path / "base", 0.1, 1), noisy(hand_made, tmp_path / "slow", 0.11, 2)
    found = check(slow, [base], 0.03)
    assert found.verdict == "failed"
    assert verdicts(found) == {"tokens_per_s_per_device": "failed", "mfu": "failed"}
    throughput = found.checks[0]
    assert throughput.change == pytest.approx(1 / 1.1 - 1, abs=0.01)
    assert throughput.ci95 is not None
    assert throughput.ci95[0] < 1 / 1.1 - 1 < throughput.ci95[1]
    assert check(slow, [base], 0.2).verdict == "passed"
    assert check(base, [slow], 0.0).verdict == "passed"


def test_a_figure_whose_lower_is_better_keeps_its_sign(tmp_path: Path, hand_made: Any) -> None:
    base, slow = noisy(hand_made, tmp_path / "base", 0.1, 1), noisy(hand_made, tmp_path / "slow", 0.12, 2)
    (found,) = check(slow, [base], 0.03, ["step_time_s"]).checks
    assert found.verdict == "failed"
    assert found.change is not None
    assert found.change < -0.1


def test_noise_does_not_fail(tmp_path: Path, hand_made: Any) -> None:
    base = noisy(hand_made, tmp_path / "base", 0.1, 0, noise=0.3)
    again = [noisy(hand_made, tmp_path / f"again{seed}", 0.1, seed, noise=0.3) for seed in range(1, 21)]
    assert sum(check(run, [base], 0.0).verdict == "failed" for run in again) <= 2


def test_a_run_fails_only_against_every_baseline(tmp_path: Path, hand_made: Any) -> None:
    fast, slow = noisy(hand_made, tmp_path / "fast", 0.1, 1), noisy(hand_made, tmp_path / "slow", 0.12, 2)
    run = noisy(hand_made, tmp_path / "run", 0.115, 3)
    assert check(run, [fast], 0.03).verdict == "failed"
    assert check(run, [fast, slow], 0.03).verdict == "passed"


def test_a_failed_run_fails(tmp_path: Path, hand_made: Any) -> None:
    base = noisy(hand_made, tmp_path / "base", 0.1, 1)
    run = noisy(hand_made, tmp_path / "run", 0.1, 2, end="failed", reason="ValueError: no")
    found = check(run, [base], 0.5)
    assert found.verdict == "failed"
    assert any("ValueError" in warning.message for warning in found.warnings)


def test_other_hardware_is_said(tmp_path: Path, hand_made: Any) -> None:
    base = noisy(hand_made, tmp_path / "base", 0.1, 1)
    run = noisy(hand_made, tmp_path / "run", 0.1, 2, device={"type": "cuda", "name": "NVIDIA A100-SXM4-80GB"})
    codes = [warning.code for warning in check(run, [base], 0.03).warnings]
    assert "not_comparable" in codes


def test_an_unknown_figure_is_refused(tmp_path: Path, hand_made: Any) -> None:
    base = noisy(hand_made, tmp_path / "base", 0.1, 1)
    with pytest.raises(EffprofError, match="not a figure"):
        check(base, [base], 0.03, ["tokens_per_step"])


def test_the_command_s_exit_code_is_the_verdict(
    tmp_path: Path, hand_made: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy(hand_made, tmp_path / "base", 0.1, 1)
    noisy(hand_made, tmp_path / "slow", 0.12, 2)
    slow, base = str(tmp_path / "slow"), str(tmp_path / "base")
    assert main(["check", slow, "--baseline", base, "--max-regression", "3%", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "effprof.check/1"
    assert found["verdict"] == "failed"
    assert main(["check", slow, "--baseline", base, "--max-regression", "0.25"]) == 0
    assert "passed" in capsys.readouterr().out
    assert main(["check", slow, "--baseline", base, "--max-regression", "3%", "--markdown"]) == 1
    table = capsys.readouterr().out
    assert table.startswith("### ❌ effprof check: failed")
    assert "| tokens/s per device" in table
    for bad in ("fast", "-3%", "150%"):
        assert main(["check", slow, "--baseline", base, "--max-regression", bad]) == 2
    assert main(["check", slow]) == 2
    assert "--baseline" in capsys.readouterr().err
