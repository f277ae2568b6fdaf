"""Hand-made traces whose accounts are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import annotation, collective, copy, document, kernel, launch, operator, write

from effprof.trace.account import account_traces
from effprof.trace.summary import RankKernels

US = 1e-6
GEMM = "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn"
ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, at::detail::Array<char*>>"
NCCL = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


def account(tmp_path: Path, events: list[dict[str, Any]], name: str = "trace.json", **frame: Any) -> RankKernels:
    (found,) = account_traces(write(tmp_path / name, document(events, **frame))).ranks.values()
    return found


def in_us(one: RankKernels) -> dict[str, float]:
    keys = ("window_s", "compute_s", "communication_s", "communication_exposed_s", "memory_copy_s",
            "memory_copy_exposed_s", "idle_s")  # fmt: skip
    return {key: round(getattr(one, key) / US, 6) for key in keys}


def test_overlap_is_not_summed(tmp_path: Path) -> None:
    found = account(
        tmp_path,
        [
            kernel(GEMM, 100, 50),
            kernel(ADD, 120, 50, stream=8),  # compute [100, 170)
            kernel(NCCL, 150, 60, stream=20),  # exposed [170, 210)
            copy(200, 30),  # exposed [210, 230)
            kernel(ADD, 260, 40),  # idle [230, 260)
        ],
    )
    assert in_us(found) == {
        "window_s": 200,
        "compute_s": 110,
        "communication_s": 60,
        "communication_exposed_s": 40,
        "memory_copy_s": 30,
        "memory_copy_exposed_s": 20,
        "idle_s": 30,
    }
    assert {name: family.count for name, family in found.kernels.items()} == {
        "elementwise": 2,
        "gemm": 1,
        "communication.all_reduce": 1,
    }
    assert found.kernels["elementwise"].total_s == pytest.approx(90 * US)
    assert found.kernels["communication.all_reduce"].exposed_s == pytest.approx(40 * US)
    assert found.idle.unknown_s == pytest.approx(30 * US)  # no launches are recorded


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["compute", "communication", "copy", "set"]), st.integers(0, 80), st.integers(0, 15)),
        min_size=1,
        max_size=15,
    )
)
def test_random_traces_against_counting(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, int]]
) -> None:
    events, busy = [], {"compute": set(), "communication": set(), "copy": set()}  # type: ignore[var-annotated]
    for index, (kind, start, length) in enumerate(rows):
        name = {"compute": GEMM, "communication": NCCL}.get(kind, "Memset (Device)")
        event = kernel(name, 1000 + start, length, stream=index)
        event["cat"] = {"copy": "gpu_memcpy", "set": "gpu_memset"}.get(kind, "kernel")
        events.append(event)
        busy["copy" if kind == "set" else kind] |= set(range(start, start + length))
    found = account(tmp_path_factory.mktemp("trace"), events)
    compute, communication, copies = busy["compute"], busy["communication"], busy["copy"]
    first = min(start for _, start, _ in rows)
    window = max(start + length for _, start, length in rows) - first
    assert in_us(found) == {
        "window_s": window,
        "compute_s": len(compute),
        "communication_s": len(communication),
        "communication_exposed_s": len(communication - compute),
        "memory_copy_s": len(copies),
        "memory_copy_exposed_s": len(copies - compute - communication),
        "idle_s": window - len(compute | communication | copies),
    }


def test_idle_by_reason(tmp_path: Path) -> None:
    found = account(
        tmp_path,
        [
            launch(1, 0, 10),
            kernel(ADD, 20, 30, correlation=1),  # until 50
            # idle [50, 100): the host launches late, [84, 90); of that it waits for data in [60, 80)
            annotation("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 60, 20),
            launch(2, 84, 6),
            kernel(ADD, 100, 20, correlation=2),  # until 120; [90, 100) it was launched already
            launch(3, 95, 5),
            kernel(NCCL, 120, 30, correlation=3, stream=20),  # until 150
            launch(4, 100, 5),
            kernel(ADD, 157, 3, correlation=4),  # [150, 157): launched, behind communication; until 160
            # idle [160, 200): the host sits in a collective in [165, 185)
            annotation("gloo:all_reduce", 165, 20),
            launch(5, 190, 10),
            kernel(ADD, 200, 10, correlation=5),
        ],
    )
    idle = {key: round(value / US, 6) for key, value in msgspec.to_builtins(found.idle).items()}
    assert idle == {
        "host_bound_s": (90 - 50 - 20) + (40 - 20),
        "input_wait_s": 20,
        "rank_wait_s": 20 + 7,
        "queued_s": 10,
        "unknown_s": 0,
    }
    assert sum(idle.values()) == pytest.approx(found.idle_s / US)


def test_steps_are_what_they_launched(tmp_path: Path) -> None:
    events = []
    for step, begin in ((3, 0), (4, 100)):
        events += [
            annotation(f"ProfilerStep#{step}", begin, 100),
            launch(step, begin + 10),
            # the device runs 60 µs behind the host: the second step's kernel ends after its annotation
            kernel(GEMM, begin + 70, 50, correlation=step),
            launch(step + 10, begin + 20),
            kernel(NCCL, begin + 120, 30, correlation=step + 10, stream=20),
        ]
    found = account(tmp_path, events)
    assert [step.step for step in found.steps] == [3, 4]
    assert [round(step.window_s / US) for step in found.steps] == [100, 80]
    assert [round(step.compute_s / US) for step in found.steps] == [50, 50]
    assert [round(step.communication_exposed_s / US) for step in found.steps] == [30, 30]
    assert [round(step.idle_s / US) for step in found.steps] == [20, 0]
    assert [round(step.host_s / US) for step in found.steps] == [100, 100]


def test_steps_without_launches_are_cut_at_the_host(tmp_path: Path) -> None:
    events = [annotation("ProfilerStep#1", 0, 50), annotation("ProfilerStep#2", 50, 50)]
    found = account(tmp_path, [*events, kernel(ADD, 10, 60)])
    assert [round(step.compute_s / US) for step in found.steps] == [40, 20]
    assert sum(step.window_s for step in found.steps) == pytest.approx(found.window_s)


def test_metadata_comes_before_the_name(tmp_path: Path) -> None:
    found = account(
        tmp_path,
        [
            collective("all_to_allv", 0, 10),
            kernel("xpu_custom_kernel", 20, 10, **{"Collective name": "_allgather_base", "In msg nelems": 4}),
            kernel("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclWorkElem)", 40, 10, correlation=5),
            launch(5, 35, 3),
            annotation("nccl:all_to_all", 34, 5),
            # launched before the window: known by its twin
            kernel("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclWorkElem)", 60, 10),
            collective("send", 80, 10),
        ],
    )
    assert {name: family.count for name, family in found.kernels.items()} == {
        "communication.all_to_all": 3,
        "communication.all_gather": 1,
        "communication.send_recv": 1,
    }
    assert found.compute_s == 0
    assert found.kernels["communication.all_to_all"].message_bytes == 4000
    assert found.pipeline_bubble_s == pytest.approx(10 * US)


def test_rates_come_from_shapes(tmp_path: Path) -> None:
    shapes = [[1024, 4096], [4096, 2048]]
    found = account(
        tmp_path,
        [
            operator("aten::mm", 0, 30, shapes, ["c10::BFloat16", "c10::BFloat16"]),
            launch(1, 5), kernel(GEMM, 50, 100, correlation=1),
            launch(2, 15), kernel("void splitKreduce_kernel<float>", 150, 20, correlation=2),
            launch(3, 40), kernel(GEMM, 200, 500, correlation=3),  # of no operator with shapes
        ],
    )  # fmt: skip
    gemm = found.kernels["gemm"]
    assert gemm.shaped_s == pytest.approx(120 * US)
    assert gemm.flops_per_s == pytest.approx(2 * 1024 * 4096 * 2048 / (120 * US))
    assert gemm.bytes_per_s == pytest.approx(2 * (1024 * 4096 + 4096 * 2048 + 1024 * 2048) / (120 * US))
    assert gemm.dtypes == {"bf16": 1.0}
    assert found.matrix_units is not None
    assert found.matrix_units.share == 1.0


def test_an_optimizers_kernels_are_its_own(tmp_path: Path) -> None:
    found = account(
        tmp_path,
        [
            annotation("Optimizer.step#AdamW.step", 0, 100),
            launch(1, 10), kernel(ADD, 20, 5, correlation=1),
            launch(2, 20), kernel(GEMM, 30, 5, correlation=2),  # Muon's
            launch(3, 200), kernel(ADD, 210, 5, correlation=3),
        ],
    )  # fmt: skip
    assert {name: family.count for name, family in found.kernels.items()} == {
        "optimizer": 1, "gemm": 1, "elementwise": 1,
    }  # fmt: skip


def test_launch_bound(tmp_path: Path) -> None:
    events = []
    for index in range(4):
        events += [
            launch(index + 1, index * 50),
            kernel(ADD, index * 50 + 10, 5 if index else 500, correlation=index + 1),
        ]
    found = account(tmp_path, events)
    assert found.launch_bound is not None
    # the first is longer than its gap, the last has no next launch
    assert found.launch_bound.kernels == 2
    assert found.launch_bound.median_launch_gap_s == pytest.approx(50 * US)


def test_a_trace_of_the_cpu_only(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.json", document([annotation("ProfilerStep#1", 0, 10)], rank=5))
    found = account_traces(path)
    assert [problem.code for problem in found.problems] == ["trace_without_device"]
    assert in_us(found.ranks[5]) == dict.fromkeys(in_us(found.ranks[5]), 0.0)
    assert found.ranks[5].kernels == {}


def test_a_folder_of_ranks(tmp_path: Path) -> None:
    write(tmp_path / "a.json", document([kernel(ADD, 0, 10)], rank=1))
    write(tmp_path / "b.json.gz", document([kernel(ADD, 0, 20)], rank=0))
    write(tmp_path / "config.json", {"model": "x"})
    found = account_traces(str(tmp_path))
    assert list(found.ranks) == [0, 1]
    assert found.ranks[0].compute_s == pytest.approx(20 * US)
    assert found.world_size == 2
    write(tmp_path / "c.json", document([kernel(ADD, 0, 30)], rank=0))
    assert [problem.code for problem in account_traces(str(tmp_path)).problems] == ["trace_rank_twice"]


def test_several_devices_of_one_rank_are_said(tmp_path: Path) -> None:
    events = [kernel(ADD, 0, 10), kernel(ADD, 5, 10)]
    events[1]["args"]["device"] = 1
    found = account_traces(write(tmp_path / "t.json", document(events)))
    assert [problem.code for problem in found.problems] == ["trace_several_devices"]
    assert found.ranks[0].devices == 2
    assert found.ranks[0].compute_s == pytest.approx(15 * US)


def test_compute_by_the_phase_that_launched_it(tmp_path: Path) -> None:
    events = [
        annotation("ProfilerStep#1", 0, 500),
        annotation("Optimizer.step#SGD.step", 300, 100),
        launch(1, 10),
        kernel(GEMM, 20, 100, correlation=1),
        launch(2, 50, thread=9),
        kernel(GEMM, 100, 80, correlation=2, stream=8),  # autograd's; [100, 120) is forward's already
        launch(3, 310),
        kernel(ADD, 320, 30, correlation=3),
        kernel(ADD, 400, 10),
        launch(4, 60, thread=9),
        kernel(NCCL, 500, 30, correlation=4),
    ]
    found = account(tmp_path, events)
    assert found.phases is not None
    assert [round(value / US) for value in msgspec.structs.astuple(found.phases)] == [100, 60, 30, 10]
    assert found.compute_s == pytest.approx(200 * US)
    assert found.steps[0].phases is not None
    assert found.steps[0].phases.backward_s == pytest.approx(60 * US)
    assert account(tmp_path, [kernel(ADD, 0, 10)], name="other.json").phases is None
