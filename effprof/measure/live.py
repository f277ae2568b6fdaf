"""The figures that training shows while it runs: this rank's, over the time since they were last asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from effprof.measure.placement import Placement
from effprof.metrics.mfu import mfu
from effprof.runlog.schema import RunRecord
from effprof.workload.model import evaluate


@dataclass(frozen=True)
class Live:
    """Figures of one rank over its latest steps; None where something needed is not known.

    Attributes:
        mfu: share of the dense peak (exact convention), 0 to 1.
        tokens_per_s_per_device, samples_per_s_per_device: useful work per second and device.
    """

    mfu: float | None
    tokens_per_s_per_device: float | None
    samples_per_s_per_device: float | None

    def metrics(self) -> dict[str, float]:
        """Name → value for a logger, with nothing that is not known."""
        named = {
            "effprof/mfu": self.mfu,
            "effprof/tokens_per_s_per_device": self.tokens_per_s_per_device,
            "effprof/samples_per_s_per_device": self.samples_per_s_per_device,
        }
        return {name: value for name, value in named.items() if value is not None}


def live_figures(counts: Mapping[str, float], step_ns: int, record: RunRecord, placement: Placement) -> Live | None:
    """Turn summed counters and step time into figures; None where no time has passed."""
    if step_ns <= 0:
        return None
    seconds = step_ns / 1e9
    # ranks that share a batch (tensor, pipeline, context parallel) share its FLOPs and its tokens
    devices = placement.world_size / placement.data_parallel_size
    flops = evaluate(record.flops.conventions.get("exact"), counts)
    peak = record.hardware.get("peak") or {}

    def per_device(counter: str) -> float | None:
        return counts[counter] / seconds / devices if counter in counts else None

    return Live(
        mfu=mfu(flops, seconds, peak.get("flops_per_s"), devices),
        tokens_per_s_per_device=per_device("tokens"),
        samples_per_s_per_device=per_device("samples"),
    )
