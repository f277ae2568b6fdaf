"""nanoGPT, build-nanogpt and what grew out of them: nanochat, llm.c, modded-nanogpt.

nanoGPT's MFU is a running average against an A100 whatever the card, −100 % until it is warm; llm.c's −100 % is an
unknown chip. modded-nanogpt prints the time since training began, the average of a step and no tokens.
https://github.com/karpathy/nanoGPT/blob/master/train.py, https://github.com/karpathy/llm.c/blob/master/train_gpt2.cu
"""

from __future__ import annotations

from effprof.runlog.importers.table import Column, LineFormat

_TOKENS_A_STEP = r"(?i)(?:tokens per iteration(?: will be)?|total desired batch size|total batch size)\W+([\d,]+)"
_GPUS = r"(?:^|\s)(?:num_processes|world_size|ddp_world_size|nproc_per_node)\W+(\d+)\b"

_NANOGPT = LineFormat(
    name="nanogpt",
    framework="nanoGPT",
    step=r"\b(?:iter |step=)(?P<step>{n})(?:: loss [^|]*\btime | loss=\S+ dt=)",
    columns={
        "loss": (Column(r"\bloss {n},"), Column(r"\bloss={n}")),
        "step_time_s": (
            Column(r"\btime {n}ms", 1e-3),
            Column(r"\btime {n}s\b"),
            Column(r"\bdt={n}", 1e-3),
        ),
        "mfu": (Column(r"\bmfu {n}%", 1e-2), Column(r"\bmfu={n}", 1e-2)),
        "samples_per_s": Column(r"\bsps={n}"),
        "tokens_per_s": (Column(r"\bmtps={n}", 1e6), Column(r"\btok(?:ens)?/s(?:ec)? {n}")),
    },
    facts={"tokens": _TOKENS_A_STEP, "world_size": _GPUS},
    averages=frozenset({"mfu"}),
)
_BUILD_NANOGPT = LineFormat(
    name="nanogpt",
    framework="build-nanogpt",
    step=r"\bstep\s+(?P<step>{n}) *\| *loss:.*\bdt:.*\btok/sec:",
    columns={
        "loss": Column(r"\bloss: *{n}"),
        "step_time_s": (Column(r"\bdt: *{n} *ms", 1e-3), Column(r"\bdt: *{n} *s")),
        "tokens_per_s": Column(r"\btok/sec: *{n}"),
    },
    facts={"tokens": _TOKENS_A_STEP, "world_size": _GPUS},
)
_NANOCHAT = LineFormat(
    name="nanochat",
    framework="nanochat",
    step=r"\bstep\s+(?P<step>{n})/\d+ \([\d.]+%\) *\| *loss:",
    columns={
        "loss": Column(r"\bloss: *{n}"),
        "step_time_s": (Column(r"\bdt: *{n} *ms", 1e-3), Column(r"\bdt: *{n} *s")),
        "tokens_per_s": Column(r"\btok/sec: *{n}"),
        "mfu": Column(r"\bmfu: *{n}", 1e-2),
    },
    facts={"tokens": _TOKENS_A_STEP, "world_size": _GPUS},
    weight=2.0,
)
_LLM_C = LineFormat(
    name="llm.c",
    framework="llm.c",
    step=r"\bstep\s+(?P<step>{n})/\d+ *\| *(?:train )?loss {n}.*\d ms *\|",
    columns={
        "loss": Column(r"\bloss {n}"),
        "step_time_s": Column(r"\| *{n} ms", 1e-3),
        "mfu": Column(r"\| *{n}% \w+ MFU", 1e-2),
        "tokens_per_s": Column(r"\| *{n} tok/s"),
    },
    facts={
        "tokens": r"total_batch_size\D+(\d+)",
        "sequence_length": r"(?:^|\| )(?:sequence length T|max_sequence_length T)\D+(\d+)",
        "world_size": r"num_processes\D+(\d+)",
        "device": r"\| device +\| (.+?) +\|",
    },
)
_MODDED = LineFormat(
    name="modded-nanogpt",
    framework="modded-nanogpt",
    step=r"\bstep:(?P<step>{n})/\d+ (?!val_loss).*\btrain_time:",
    columns={
        "loss": Column(r"\btrain_loss:{n}"),
        "elapsed_s": (Column(r"\btrain_time:{n} ?ms", 1e-3), Column(r"\btrain_time:{n} ?s\b")),
    },
    facts={"device": r"\|\s+\d+\s+(NVIDIA [A-Z].*?)\s+(?:On|Off) +\|"},
)
FORMATS = [_NANOGPT, _BUILD_NANOGPT, _NANOCHAT, _LLM_C, _MODDED]
