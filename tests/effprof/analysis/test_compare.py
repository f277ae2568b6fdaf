"""Runs side by side: true differences are found, noise is called noise, settings that differ come first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effprof.analysis.analyze import Examined, examine
from effprof.analysis.compare import Comparison, Metric, compare
from effprof.errors import EffprofError
from effprof.runlog.reader import open_run
from effprof.runlog.schema import FlopsRecord

A100 = {"type": "cuda", "index": 0, "name": "NVIDIA A100-SXM4-80GB", "memory_bytes": 85_899_345_920}


def examined(run: Any) -> Examined:
    return examine(open_run(str(run.path)))


def noisy_run(hand_made: Any, path: Path, seconds: float, seed: int, steps: int = 300, **record: Any) -> Examined:
    rng = np.random.default_rng(seed)
    run = hand_made(path, path.name).record(**record)
    run.rank([run.step(seconds * float(1 + 0.05 * rng.standard_normal())) for _ in range(steps)])
    return examined(run)


def metric(comparison: Comparison, name: str) -> Metric:
    return next(metric for metric in comparison.metrics if metric.name == name)


def test_a_real_difference_is_found_with_its_size(tmp_path: Path, hand_made: Any) -> None:
    found = compare([noisy_run(hand_made, tmp_path / n, s, i) for i, (n, s) in enumerate([("a", 0.1), ("b", 0.11)])])
    for name, truth in (("step_time_s", 1.1), ("tokens_per_s", 1 / 1.1), ("mfu", 1 / 1.1)):
        ratio = metric(found, name).ratios[1]
        assert ratio.value == pytest.approx(truth, rel=0.01), name
        low, high = ratio.ci95 or (0, 0)
        assert low < truth < high, name
        assert high - low < 0.03, name
        assert ratio.is_different, name


def test_noise_is_no_difference(tmp_path: Path, hand_made: Any) -> None:
    runs = [noisy_run(hand_made, tmp_path / f"r{seed}", 0.1, seed) for seed in range(21)]
    verdicts = [metric(compare([runs[0], run]), "tokens_per_s").ratios[1].is_different for run in runs[1:]]
    assert sum(map(bool, verdicts)) <= 4  # one in twenty is expected at 95 %


def test_a_run_equals_itself(simple_run: Any) -> None:
    found = compare([examined(simple_run)] * 2)
    for figure in found.metrics:
        if figure.values[0]:
            assert figure.ratios[1].value == 1.0, figure.name
            assert not figure.ratios[1].is_different, figure.name
    assert found.differences == []


def test_settings_that_differ_are_named(tmp_path: Path, hand_made: Any) -> None:
    runs = []
    for name, precision, torch in (("a", "bf16-mixed", "2.12"), ("b", "32-true", "2.13")):
        record = {"config": {"precision": precision, "accumulate": 4}, "software": {"torch": torch, "python": "3.11"}}
        runs.append(noisy_run(hand_made, tmp_path / name, 0.1, 0, 20, **record))
    found = {difference.key: difference.values for difference in compare(runs).differences}
    assert found == {"config.precision": ["bf16-mixed", "32-true"], "software.torch": ["2.12", "2.13"]}


def test_different_chips_relative_to_peak_and_bandwidth(tmp_path: Path, hand_made: Any) -> None:
    first = hand_made(tmp_path / "a", "a").record()  # 1 GFLOP/s, 2 TB/s
    for rank in (0, 1):
        first.rank([first.step(0.1)] * 40, rank=rank, world_size=2)
    peak = {"flops_per_s": 4e9, "dtype": "bf16", "source": "datasheet", "kind": "datasheet"}
    second = hand_made(tmp_path / "b", "b").record(
        hardware={"name": A100["name"], "peak": peak, "memory_bandwidth_bytes_per_s": 8e12}
    )
    second.rank([second.step(0.05)] * 40, device=A100)
    found = compare([examined(first), examined(second)])
    expected = {
        "tokens_per_s": [800, 800],
        "tokens_per_s_per_device": [400, 800],
        "samples_per_s_per_device": [20, 40],
        "mfu": [0.41, 0.205],
        "tokens_per_s_per_peak_tflops": [400 / 0.001, 800 / 0.004],
        "tokens_per_s_per_bandwidth_tb_per_s": [200, 100],
        "model_flops_per_s_per_device": [4.1e8, 8.2e8],
    }
    for name, values in expected.items():
        assert metric(found, name).values == pytest.approx(values), name
    assert metric(found, "mfu").ratios[1].is_different
    assert metric(found, "tokens_per_s").ratios[1].is_different is False
    keys = [difference.key for difference in found.differences]
    assert {"hardware.device", "hardware.devices", "hardware.peak_flops_per_s"} <= set(keys)


def test_bandwidth_comes_from_the_catalogue_where_the_record_has_none(tmp_path: Path, hand_made: Any) -> None:
    run = hand_made(tmp_path / "a").record(hardware={"name": A100["name"]})
    run.rank([run.step(0.1)] * 40, device=A100)
    found = metric(compare([examined(run)] * 2), "tokens_per_s_per_bandwidth_tb_per_s")
    assert found.values[0] == pytest.approx(400 / 2.039, rel=0.01)


def test_what_one_run_lacks_is_null_and_has_no_ratio(tmp_path: Path, hand_made: Any, simple_run: Any) -> None:
    unknown = hand_made(tmp_path / "u", "unknown").record(flops=FlopsRecord(reason="custom kernel"))
    unknown.rank([unknown.step()] * 40)
    found = compare([examined(simple_run), examined(unknown)])
    mfu = metric(found, "mfu")
    assert mfu.values[1] is None
    assert mfu.ratios[1].value is None
    assert mfu.ratios[1].is_different is None
    assert any(w.code == "no_flops" and w.message.startswith("unknown: custom kernel") for w in found.warnings)


def test_a_ceiling_beside_a_datasheet_is_pointed_out(tmp_path: Path, hand_made: Any, simple_run: Any) -> None:
    peak = {"flops_per_s": 1e9, "dtype": "fp32", "source": "measured ceiling", "kind": "measured_ceiling"}
    cpu = hand_made(tmp_path / "c").record(hardware={"name": "Xeon", "peak": peak})
    cpu.rank([cpu.step(0.2)] * 40, device={"type": "cpu", "name": "Xeon"})
    codes = [warning.code for warning in compare([examined(simple_run), examined(cpu)]).warnings]
    assert "peaks_differ_in_kind" in codes
    assert "dtypes_differ" in codes


def test_few_steps_have_a_ratio_without_a_verdict(tmp_path: Path, hand_made: Any, simple_run: Any) -> None:
    short = hand_made(tmp_path / "s").record().rank([hand_made.step()] * 4)
    ratio = metric(compare([examined(simple_run), examined(short)]), "tokens_per_s").ratios[1]
    assert ratio.value == pytest.approx(1.0)
    assert ratio.ci95 is None
    assert ratio.is_different is None


def test_the_account_is_compared_in_shares(simple_run: Any) -> None:
    shares = {row.line: row.shares for row in compare([examined(simple_run)] * 3).account}
    assert shares["checkpoint"] == pytest.approx([3 / 15.9] * 3, abs=1e-6)
    assert "evaluation" not in shares


def test_one_run_is_refused(simple_run: Any) -> None:
    with pytest.raises(EffprofError, match="at least two"):
        compare([examined(simple_run)])
