"""DeepSpeed's flops profile is one step, its table of experiments none."""

from __future__ import annotations

from pathlib import Path

import pytest

from effprof.analysis.foreign import Given, examine_foreign
from effprof.analysis.model import Analysis
from effprof.errors import EffprofError
from effprof.runlog.importers.sniff import read_foreign

SHARED = Path(__file__).resolve().parents[4].parent / "shared" / "logs"
TABLE = """| tuning_space | num_experiments | best_metric_val | best_exp_name |
| :--- | ---: | ---: | :--- |
| z1 | 3 | 12.5 | z1_gas1_tmbspg2 |
| z3 | 1 | 0 | z3_gas1_tmbspg1 |
"""
PROFILE = """---------- DeepSpeed Flops Profiler ----------
Profile Summary at step 7:
step (weights update latency), iter latency (sum of fwd, bwd and step latency)

world size:                                   4
data parallel size:                           4
batch size per GPU:                           16
fwd latency:                                  10 ms
{rates}
iter latency:                                 {latency}
samples/second:                               128.5
"""


def examined(path: Path) -> Analysis:
    if not path.exists():
        pytest.skip(f"{path} is not here: other people's logs lie beside the repository only")
    return examine_foreign(str(path), Given()).analysis


def profile(tmp_path: Path, latency: str, rates: str = "") -> Analysis:
    path = tmp_path / "profile.txt"
    path.write_text(PROFILE.format(latency=latency, rates=rates))
    return examined(path)


@pytest.mark.parametrize(("latency", "seconds"), [("184.73 ms", 0.18473), ("1.25 s", 1.25), ("900.5 us", 9.005e-4)])
def test_a_profile_is_one_step_in_any_unit(latency: str, seconds: float, tmp_path: Path) -> None:
    found = profile(tmp_path, latency)
    assert found.source is not None
    assert (found.source.format, found.source.steps) == ("deepspeed-flops-profiler", 1)
    assert found.efficiency.step_time_s.median == pytest.approx(seconds)
    assert found.efficiency.samples_per_s.median == 128.5
    assert found.efficiency.tokens_per_s.median is None


@pytest.mark.parametrize(
    ("rates", "claimed"),
    [
        ("fwd+bwd FLOPS per GPU = 3 * fwd flops per GPU / (fwd+bwd latency):  102.0 TFLOPS", 102.0),
        ("FLOPS per GPU = 4 * fwd flops per GPU / iter latency:  512.0 GFLOPS", 0.512),
        ("fwd FLOPS per GPU = fwd flops per GPU / fwd latency:  81.9 TFLOPS", None),
    ],
)
def test_the_claimed_rate_is_of_the_whole_step(rates: str, claimed: float | None, tmp_path: Path) -> None:
    found = profile(tmp_path, "100 ms", rates)
    assert found.source is not None
    assert found.source.claimed.tflops_per_device == (None if claimed is None else pytest.approx(claimed))


def test_a_table_of_experiments_holds_no_step_and_names_the_best(tmp_path: Path) -> None:
    path = tmp_path / "summary.txt"
    path.write_text(TABLE)
    found = examined(path)
    assert found.source is not None
    assert (found.source.format, found.source.steps) == ("deepspeed-autotuning", 0)
    assert found.efficiency.samples_per_s.median is None
    notes = {warning.code: warning.message for warning in found.warnings}
    assert "z1_gas1_tmbspg2 with 12.5 of 3" in notes["best_experiments"]
    assert notes["failed_experiments"].endswith("in z3")


def test_a_table_without_rows_says_so(tmp_path: Path) -> None:
    path = tmp_path / "summary.txt"
    path.write_text(TABLE.splitlines()[0])
    with pytest.raises(EffprofError, match="no row"):
        read_foreign(str(path))


def test_the_published_profile_and_table() -> None:
    found = examined(SHARED / "deepspeed_flops_profiler_bertlarge.txt")
    assert found.source is not None
    assert (found.source.steps, found.source.claimed.tflops_per_device) == (1, 102.0)
    assert found.efficiency.samples_per_s.median == 433.07
    table = examined(SHARED / "deepspeed_autotuning_summary_gpt2large.txt")
    assert table.source is not None
    assert (table.source.format, table.source.steps) == ("deepspeed-autotuning", 0)
