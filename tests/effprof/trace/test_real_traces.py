"""The real traces beside the repository: their breakdowns, an independent count of them, and HTA's."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from traces import SHARED

from effprof.trace.account import account_traces

ROOT = Path(__file__).resolve().parents[3]
# file: rank, then in µs: window, compute, communication, exposed, copies, exposed, idle
BREAKDOWNS = {
    "hta_alexnet.json.gz": (0, 12920244, 10630, 0, 0, 55511, 55511, 12854103),
    "hta_backward_thread.json": (0, 45, 45, 0, 0, 0, 0, 0),
    "hta_control.json.gz": (3, 464594, 281336, 163535, 87921, 54638, 19330, 76007),
    "hta_cpu_only.json.gz": (34, 0, 0, 0, 0, 0, 0, 0),
    "hta_event_sync.json.gz": (0, 263, 49, 0, 0, 2, 2, 212),
    "hta_mi250_minitoy_train.json.gz": (0, 8911.89, 110.88, 0, 0, 38.16, 38.16, 8762.84),
    "hta_nccl.json.gz": (0, 660551.01, 115655.85, 46876.49, 39559.47, 2653.50, 2284.70, 503050.99),
    "hta_sampled_rank-0.json.gz": (0, 1222847, 210320, 396199, 336983, 1325, 353, 675191),
    "hta_sampled_rank-1.json.gz": (1, 1231186, 271973, 379053, 303523, 16504, 4554, 651136),
    "hta_test.json.gz": (1, 745239, 548148, 251341, 73298, 156797, 96497, 27296),
    "hta_triton.json.gz": (0, 1.8, 1.8, 0, 0, 0, 0, 0),
}
KEYS = ("window_s", "compute_s", "communication_s", "communication_exposed_s", "memory_copy_s",
        "memory_copy_exposed_s", "idle_s")  # fmt: skip


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here: the traces of HolisticTraceAnalysis' tests lie beside the repository only")
    return path


def benchmark(name: str) -> ModuleType:
    """A script of benchmarks/, which is no package."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", BREAKDOWNS)
def test_breakdown(name: str) -> None:
    rank, *expected = BREAKDOWNS[name]
    ((found_rank, found),) = account_traces(str(shared(name))).ranks.items()
    assert found_rank == rank
    assert [getattr(found, key) * 1e6 for key in KEYS] == pytest.approx(expected, abs=0.06)
    assert found.compute_s + found.communication_exposed_s + found.memory_copy_exposed_s + found.idle_s == (
        pytest.approx(found.window_s, abs=1e-9)
    )
    idle = found.idle
    reasons = idle.host_bound_s + idle.input_wait_s + idle.rank_wait_s + idle.queued_s + idle.unknown_s
    assert reasons == pytest.approx(found.idle_s, abs=1e-9)
    for step in found.steps:
        parts = step.compute_s + step.communication_exposed_s + step.memory_copy_exposed_s + step.idle_s
        assert parts == pytest.approx(step.window_s, abs=1e-9)


def sweep(events: list[dict[str, Any]]) -> list[float]:
    """The same seven figures in µs by going through all starts and ends in order, in decimals."""
    points: list[tuple[Decimal, int, str]] = []
    for event in events:
        kind = {"kernel": "compute", "gpu_memcpy": "copy", "gpu_memset": "copy"}.get(event.get("cat", ""))
        if kind is None or event["dur"] == 0:
            continue
        kind = "communication" if kind == "compute" and event["name"].startswith("nccl") else kind
        start, end = Decimal(event["ts"]), Decimal(event["ts"]) + Decimal(event["dur"])
        points += [(start, 1, kind), (end, -1, kind)]
    points.sort()
    running = {"compute": 0, "communication": 0, "copy": 0}
    sums = dict.fromkeys(("compute", "communication", "exposed", "copy", "copy exposed", "idle"), Decimal(0))
    before = points[0][0] if points else Decimal(0)
    for moment, change, kind in points:
        for name, is_on in (
            ("compute", running["compute"]),
            ("communication", running["communication"]),
            ("exposed", running["communication"] and not running["compute"]),
            ("copy", running["copy"]),
            ("copy exposed", running["copy"] and not running["compute"] and not running["communication"]),
            ("idle", not any(running.values())),
        ):
            sums[name] += (moment - before) * bool(is_on)
        running[kind] += change
        before = moment
    window = points[-1][0] - points[0][0] if points else Decimal(0)
    return [float(value) for value in (window, *sums.values())]


@pytest.mark.parametrize("name", BREAKDOWNS)
def test_against_an_independent_count(name: str) -> None:
    data = shared(name).read_bytes()
    events = json.loads(gzip.decompress(data) if name.endswith(".gz") else data, parse_float=Decimal)["traceEvents"]
    (found,) = account_traces(str(shared(name))).ranks.values()
    assert [getattr(found, key) * 1e6 for key in KEYS] == pytest.approx(sweep(events), abs=0.05)


@pytest.mark.parametrize("name", [name for name in BREAKDOWNS if name != "hta_cpu_only.json.gz"])
def test_against_hta(name: str) -> None:
    """On the trace as HTA looks at it, the two agree to the microsecond."""
    path = shared(name)
    result = benchmark("trace_table").compare(path)
    assert result["agrees"], result["view"]
    if result["effprof"].differs(result["hta"]):
        assert result["reasons"], "they differ without a reason"


def test_hta_cannot_read_a_trace_of_the_cpu_only() -> None:
    assert isinstance(benchmark("trace_table").by_hta(shared("hta_cpu_only.json.gz")), str)


def test_families_of_a_recommender_on_eight_ranks() -> None:
    (found,) = account_traces(str(shared("hta_control.json.gz"))).ranks.values()
    counts = {name: family.count for name, family in found.kernels.items()}
    # 42 all-to-alls are annotated by the host; their kernels are called SendRecv
    assert counts["communication.all_to_all"] == 42
    assert counts["communication.all_reduce"] == 18
    assert sum(counts.values()) == 8568
    assert counts.get("other", 0) <= 6
    assert found.kernels["gemm"].flops_per_s is not None
    assert 20e12 < found.kernels["gemm"].flops_per_s < 156e12  # TF32 on an A100
    assert found.matrix_units is not None
    assert found.matrix_units.share is not None
    assert 0.8 < found.matrix_units.share < 0.9
    assert [step.step for step in found.steps] == list(range(1009, 1015))


def test_collectives_by_metadata() -> None:
    (found,) = account_traces(str(shared("hta_nccl.json.gz"))).ranks.values()
    assert found.kernels["communication.all_reduce"].count == 15
    assert found.kernels["communication.broadcast"].count == 6
    assert found.kernels["communication.all_reduce"].message_bytes


def test_two_ranks_of_one_job(tmp_path: Path) -> None:
    for rank in (0, 1):
        name = f"hta_sampled_rank-{rank}.json.gz"
        (tmp_path / name).symlink_to(shared(name))
    found = account_traces(str(tmp_path))
    assert list(found.ranks) == [0, 1]
    assert found.world_size == 128
    one, other = found.ranks[0].stragglers, found.ranks[1].stragglers
    assert one is not None
    assert other is not None
    assert one.matched == other.matched == 10
    assert one.last_to_arrive + other.last_to_arrive == 10
    assert not one.group_is_complete
    for rank, stragglers in ((0, one), (1, other)):
        spent = stragglers.waiting_s + stragglers.transferring_s
        assert spent == pytest.approx(found.ranks[rank].communication_s, rel=1e-6)
