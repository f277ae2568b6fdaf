"""Tools that print a block of lines per step: OLMo, OLMo-core, Composer and LLM Foundry.

OLMo's rates are running averages over a window of steps; the time stamps of the blocks tell each step's own time.
"""

from __future__ import annotations

from effprof.runlog.importers.table import Column, LineFormat

_LOSS = Column(r"(?:train/CrossEntropyLoss|train/CE loss|train/loss)\s*[=:]\s*{n}")

FORMATS = [
    LineFormat(
        name="olmo",
        framework="OLMo",
        step=r"\[step=(?P<step>{n})/\d+\S*\]\s*$",
        columns={
            "loss": _LOSS,
            "consumed_tokens": (Column(r"throughput/total_tokens={n}"), Column(r"throughput/total tokens={n}")),
            "tokens_per_s_per_device": (
                Column(r"throughput/device/tokens_per_second={n}"),
                Column(r"throughput/device/TPS={n}"),
            ),
            "mfu": Column(r"throughput/device/MFU={n}", 1e-2),
            "memory_bytes": Column(r"System/Peak GPU Memory \(MB\)={n}", 1e6),
        },
        facts={"world_size": r"world[ _]size\W+(\d+)"},
        is_block=True,
        averages=frozenset({"tokens_per_s_per_device"}),
    ),
    LineFormat(
        name="composer",
        framework="Composer",
        step=r"\[(?:epoch|step)=\d+(?:/\d+)?\]\s*\[batch=(?P<step>{n})/\d+\]",
        columns={
            "loss": Column(r"(?:loss/train/total|Train loss/train/total|train/loss):\s*{n}"),
            "tokens_per_s": Column(r"throughput/tokens_per_sec:\s*{n}"),
            "tokens_per_s_per_device": Column(r"throughput/device/tokens_per_sec:\s*{n}"),
            "samples_per_s": Column(r"throughput/samples_per_sec:\s*{n}"),
            "mfu": Column(r"throughput/device/mfu:\s*{n}"),
            "consumed_tokens": Column(r"time/token:\s*{n}"),
        },
        is_block=True,
        averages=frozenset({"tokens_per_s", "tokens_per_s_per_device", "samples_per_s", "mfu"}),
    ),
]
