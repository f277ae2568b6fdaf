"""Ranks against each other: who came last, who waited, on clocks that do not agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from traces import annotation, collective, document, kernel, launch, write

from effprof.trace.account import KernelAccount, account_traces

US = 1e-6


def ranks(tmp_path: Path, skew: float = 0.0, sequences: bool = True) -> KernelAccount:
    """Three all-reduces: rank 1 comes 30 late, 50 late, and 10 early; each transfers for 20."""
    for rank, arrivals in ((0, (100, 300, 510)), (1, (130, 350, 500))):
        events = []
        for index, (arrival, end) in enumerate(zip(arrivals, (150, 370, 530), strict=True)):
            number = index + 7 if sequences else None
            shift = skew if rank else 0.0
            events.append(collective("allreduce", arrival + shift, end - arrival, sequence=number))
        write(tmp_path / f"{rank}.json", document(events, rank=rank))
    return account_traces(str(tmp_path))


@pytest.mark.parametrize("skew", [0.0, 12345.0, -777.0])
@pytest.mark.parametrize("sequences", [True, False])
def test_the_last_is_the_cause(tmp_path: Path, skew: float, sequences: bool) -> None:
    found = ranks(tmp_path, skew, sequences)
    one, other = found.ranks[0].stragglers, found.ranks[1].stragglers
    assert one is not None
    assert other is not None
    assert one.matched == 3
    assert one.matched_by == ("sequence" if sequences else "order")
    assert one.waiting_s == pytest.approx(80 * US)
    assert other.waiting_s == pytest.approx(10 * US)
    assert one.transferring_s == pytest.approx(60 * US)
    assert other.transferring_s == pytest.approx(60 * US)
    assert (one.last_to_arrive, other.last_to_arrive) == (1, 2)
    assert other.caused_wait_s == pytest.approx(80 * US)
    assert one.caused_wait_s == pytest.approx(10 * US)
    assert other.clock_offset_s == pytest.approx(-skew * US)
    assert one.group_is_complete


def test_a_base_time_counts(tmp_path: Path) -> None:
    """Newer traces count from a base that may differ between ranks."""
    for rank, base in ((0, 1_700_000_000_000_000_000), (1, 1_700_000_000_000_500_000)):
        shift = 0 if rank == 0 else -500  # 500 µs later base, 500 µs earlier times
        events = [collective("allreduce", 1000 + shift, 50, sequence=1)]
        write(tmp_path / f"{rank}.json", document(events, rank=rank, baseTimeNanoseconds=base))
    found = account_traces(str(tmp_path)).ranks[1].stragglers
    assert found is not None
    assert found.clock_offset_s == pytest.approx(0, abs=1e-6)


def test_windows_that_do_not_match_are_not_matched(tmp_path: Path) -> None:
    write(tmp_path / "0.json", document([collective("allreduce", 0, 10), collective("allreduce", 20, 10)], rank=0))
    write(tmp_path / "1.json", document([collective("allreduce", 0, 10)], rank=1))
    found = account_traces(str(tmp_path))
    assert found.ranks[0].stragglers is None


def test_who_sends_need_not_wait(tmp_path: Path) -> None:
    for rank in (0, 1):
        events = [collective("broadcast", 0, 10, sequence=1), collective("send", 20, 10, sequence=2)]
        write(tmp_path / f"{rank}.json", document(events, rank=rank))
    assert account_traces(str(tmp_path)).ranks[0].stragglers is None


def test_without_metadata_by_the_hosts_annotations(tmp_path: Path) -> None:
    for rank, late in ((0, 0), (1, 40)):
        events = [
            annotation("nccl:all_to_all", 0, 20),
            launch(1, 5),
            kernel("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclWorkElem)", 100 + late, 100 - late, correlation=1),
        ]
        write(tmp_path / f"{rank}.json", document(events, rank=rank))
    found = account_traces(str(tmp_path)).ranks
    assert found[0].stragglers is not None
    assert found[0].stragglers.waiting_s == pytest.approx(40 * US)
    assert not found[0].stragglers.group_is_complete  # nobody says how large the group is
