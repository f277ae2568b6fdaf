"""Hand-made runs with known answers, written line by line from the log's schema, for every room that reads them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from effprof.runlog.schema import (
    COUNTERS,
    End,
    Event,
    Experts,
    FlopsRecord,
    Header,
    Memory,
    Probe,
    RunRecord,
    Span,
    Steps,
    Telemetry,
)

START_S = 1_760_000_000.0  # 2025-10-09T08:53:20Z
ORIGIN_NS = 5_000_000_000_000  # the host's monotonic clock at START_S
H100 = {"type": "cuda", "index": 0, "name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85_520_809_984}


@pytest.fixture(autouse=True, scope="session")
def _ceilings_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests and the processes they start keep measured ceilings to themselves, and measure each once."""
    os.environ["EFFPROF_CEILINGS"] = str(tmp_path_factory.mktemp("ceilings") / "ceilings.json")
    os.environ["EFFPROF_CALIBRATION"] = "off"  # what trials taught this machine is no business of a test


class HandMadeRun:
    """Writes a run's files. Times are given in seconds, relative to START_S."""

    def __init__(self, path: Path, run_id: str = "hand-made") -> None:
        self.path = path
        self.run_id = run_id
        path.mkdir(parents=True, exist_ok=True)

    def record(self, **fields: Any) -> HandMadeRun:
        """run.json: 1 MFLOP per token and 1 kFLOP per pair against a peak of 1 GFLOP/s, unless told otherwise."""
        facts: dict[str, Any] = {
            "id": self.run_id,
            "framework": "pytorch-lightning",
            "framework_version": "2.6.6",
            "created_s": START_S,
            "model": {"name": "TinyGPT", "parameters_total": 1_000_000},
            "flops": FlopsRecord(
                conventions={
                    "exact": {"tokens": 1e6, "pairs": 1e3},
                    "megatron": {"tokens": 1e6, "square_pairs": 0.5e3},
                    "palm": {"tokens": 1e6, "square_pairs": 1e3},
                    "6n": {"tokens": 0.9e6},
                },
                source="closed_form",
                by_dtype={"bf16": 1.0},
                recompute_share=0.25,
            ),
            "hardware": {
                "name": H100["name"],
                "peak": {"flops_per_s": 1e9, "dtype": "bf16", "source": "datasheet", "kind": "datasheet"},
                "memory_bandwidth_bytes_per_s": 2e12,
            },
        }
        (self.path / "run.json").write_bytes(msgspec.json.encode(RunRecord(**{**facts, **fields})))
        return self

    def rank(
        self,
        steps: Iterable[dict[str, float | None]] = (),
        *,
        rank: int = 0,
        world_size: int = 1,
        attempt: int = 0,
        start_s: float = 0.0,
        startup_s: float = 2.0,
        first_step: int = 1,
        tail: Iterable[tuple[str, float]] = (),
        end: str | None = "completed",
        reason: str = "",
        lines: Iterable[msgspec.Struct] = (),
        skew_s: float = 0.0,
        **header: Any,
    ) -> HandMadeRun:
        """A rank's log: start-up, `steps` (phase → seconds, counter → number) end to end, `tail` spans, a closing line.

        `skew_s` is what the host's wall clock is ahead.
        """
        origin = ORIGIN_NS + round(start_s * 1e9)
        opened = origin + round(startup_s * 1e9)
        facts = {"host": "node-a", "device": H100, "data_parallel_rank": rank, "data_parallel_size": world_size}
        first = Header(
            run_id=self.run_id,
            role="rank",
            rank=rank,
            world_size=world_size,
            attempt=attempt,
            monotonic_ns=opened,
            wall_s=START_S + start_s + startup_s + skew_s,
            process_start_s=START_S + start_s + skew_s,
            **{**facts, **header},
        )
        written: list[msgspec.Struct] = [first, Span(name="startup", start_ns=origin, end_ns=opened)]
        now = opened
        rows: list[dict[str, float | int | None]] = []
        for number, step in enumerate(steps, start=first_step):
            row: dict[str, float | int | None] = {"step": number}
            for name, value in step.items():
                is_time = name not in (*COUNTERS, "step", "loss", "profiled")
                row[f"{name}_ns" if is_time else name] = round(value * 1e9) if is_time and value is not None else value
            now += sum(int(v or 0) for k, v in row.items() if k.endswith("_ns") and not k.startswith("device_"))
            row["end_ns"] = now
            rows.append(row)
        for at in range(0, len(rows), 50):
            block = rows[at : at + 50]
            names = dict.fromkeys(name for row in block for name in row)
            written.append(Steps(n=len(block), columns={name: [row.get(name) for row in block] for name in names}))
        written += lines
        for name, seconds in tail:
            written.append(Span(name=name, start_ns=now, end_ns=now + round(seconds * 1e9)))
            now += round(seconds * 1e9)
        if end is not None:
            written.append(End(status=end, monotonic_ns=now, reason=reason))
        self.write(f"attempt-{attempt:03d}/rank-{rank:05d}.ndjson", written)
        return self

    def node(self, probes: Iterable[Probe], samples: Iterable[Telemetry], *, attempt: int = 0) -> HandMadeRun:
        """A node's telemetry log."""
        header = Header(
            run_id=self.run_id, role="node", rank=0, monotonic_ns=ORIGIN_NS, wall_s=START_S, process_start_s=START_S
        )
        self.write(f"attempt-{attempt:03d}/node-00000.ndjson", [header, *probes, *samples])
        return self

    def write(self, name: str, lines: Iterable[msgspec.Struct]) -> None:
        """Write lines as NDJSON below the run's directory."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))

    @staticmethod
    def memory(**fields: Any) -> Memory:
        """Allocator counters."""
        return Memory(monotonic_ns=ORIGIN_NS + 3_000_000_000, step=1, **fields)

    @staticmethod
    def experts(layers: dict[str, list[int]], dropped: list[int | None] | None = None) -> Experts:
        """One sampled micro-batch's expert load."""
        return Experts(step=1, layers=list(layers), tokens_per_expert=list(layers.values()), dropped=dropped or [])

    @staticmethod
    def event(name: str, message: str) -> Event:
        """Something that happened."""
        return Event(name=name, monotonic_ns=ORIGIN_NS + 3_000_000_000, message=message)

    @staticmethod
    def step(seconds: float = 0.1, *, tokens: float | None = 40.0, **more: float | None) -> dict[str, float | None]:
        """A step of `seconds`: a tenth input wait, three forward, five backward, one optimizer.

        With the record's FLOPs 40 tokens and 1,000 pairs are 41 MFLOP.
        """
        shares = {"input_wait": 0.1, "forward": 0.3, "backward": 0.5, "optimizer": 0.1}
        counts = {"samples": 2.0, "positions": 50.0, "tokens": tokens, "loss_tokens": 38.0, "pairs": 1000.0}
        counts["square_pairs"] = 2000.0
        return {**{name: share * seconds for name, share in shares.items()}, **counts, **more}


@pytest.fixture
def hand_made(tmp_path: Path) -> type[HandMadeRun]:
    """The builder of hand-made runs."""
    return HandMadeRun


@pytest.fixture
def simple_run(tmp_path: Path) -> HandMadeRun:
    """One rank, 100 steps of 0.1 s (the first takes 1 s), a 3 s checkpoint at the end."""
    run = HandMadeRun(tmp_path / "run").record()
    steps = [run.step(1.0), *(run.step(0.1) for _ in range(99))]
    return run.rank(steps, tail=[("checkpoint", 3.0)])
