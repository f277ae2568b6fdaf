"""MFU of published logs beside what their tools claim, and why the two differ.

    python benchmarks/claims_table.py            # prints the table and writes it into docs/accuracy.md
    python benchmarks/claims_table.py --check    # writes nothing; exit code 1 where a claim is not reproduced

A claim is reproduced by the tool's own way of counting, over the peak that it divides by, from the rate that effprof
reads in the log: only then is the difference from the exact figure known to be what the last column says. The logs are
other people's and lie beside the repository; the models are in `benchmarks/claims/`, each with its source.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from effprof import __version__
from effprof.analysis.foreign import Given, examine_foreign
from effprof.analysis.model import Analysis

ROOT = Path(__file__).resolve().parents[1]
ACCURACY = ROOT / "docs" / "accuracy.md"
LOGS = ROOT.parent / "shared" / "logs"
MODELS = ROOT / "benchmarks" / "claims"
CONFIGS = ROOT / "tests" / "data" / "configs"
BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
TOLERANCE = 0.02
H100 = {"device": "H100 SXM5 80GB", "sequence_length": 2048}
AVERAGE = "a running average; effprof takes the stamps of the steps"
TILE = "Data Center GPU Max 1550 (one tile)"
Counting = Callable[[Mapping[str, Any], float], float]


def bigscience_2022(model: Mapping[str, Any], length: float) -> float:
    """Equation 3 of arXiv:2104.04473 with the factor 4 of activation checkpointing, per token."""
    hidden, layers = model["hidden_size"], model["n_layer"]
    attention, head = length / (6 * hidden), model["vocab_size"] / (16 * layers * hidden)
    return 96 * layers * hidden**2 * (1 + attention + head)


def bigscience_2021(model: Mapping[str, Any], length: float) -> float:
    """8 FLOPs per parameter of the layers and token: attention over pairs and the vocabulary are left out."""
    return 8 * 12 * model["n_layer"] * model["n_embd"] ** 2


@dataclass(frozen=True)
class Case:
    """A log, what it lacks, and how its tool arrives at what it claims.

    Attributes:
        model: file in `benchmarks/claims`, else in `tests/data/configs`; "" where the log describes its model.
        given: what effprof is told with options, as fields of `Given`.
        counts: the tool's FLOPs: one of effprof's conventions, or FLOPs per token of a model and a length.
        times: what the tool multiplies them with.
        peak_tflops: what the tool divides by, where it claims MFU.
        why: what makes its claim differ from the exact figure.
    """

    log: str
    model: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    counts: str | Counting = "exact"
    times: float = 1.0
    peak_tflops: float | None = None
    why: str = "nothing is claimed"


@dataclass(frozen=True)
class Result:
    """A case's figures: what is claimed, made again by the tool's way, and exact. MFU as shares, rates in TFLOP/s."""

    case: Case
    analysis: Analysis
    claimed: float | None
    reproduced: float | None
    exact_tflops: float | None

    @property
    def difference(self) -> float | None:
        """Reproduced over claimed, less one."""
        if self.claimed is None or self.reproduced is None:
            return None
        return self.reproduced / self.claimed - 1


CASES = (
    Case(
        "maxtext_deepseek2_16b_v5p4.log",
        "deepseek-v2-lite",
        {"device": "TPU v5p", "sequence_length": 2048, "dtype": "bf16"},
        "megatron",
        why="the same: active experts, attention halved under the mask",
    ),
    Case(
        "maxtext_dpo_qwen3_notebook.log",
        "qwen3-0.6b",
        {"device": "TPU v5p", "sequence_length": 1024, "dtype": "bf16", "devices": 4},
        "megatron",
        times=4 / 3,
        why="DPO: a third more for the reference model's forward pass",
    ),
    Case(
        "internevo_7b_a100x8.log",
        "internlm-7b",
        {"device": "A100 SXM4 80GB", "sequence_length": 2048, "devices": 8},
        "palm",
        why="attention in full; an MLP of 8/3 · h without the rounding to 11008",
    ),
    Case(
        "internevo_7b_usage_oldformat.log",
        "internlm-7b",
        {"device": "A100 SXM4 80GB", "sequence_length": 2048, "devices": 8},
        "palm",
        why="as above",
    ),
    Case(
        "megatron_deepspeed_argonne_aurora_2b_xpu3072.log",
        "auroragpt-2b",
        {"device": TILE, "dtype": "bf16"},
        "palm",
        why="attention in full, which at 8,192 tokens is a fifth of the whole",
    ),
    Case(
        "megatron_deepspeed_bloom176b_a100x384_spike.log",
        "bloom-176b",
        {"device": "A100 SXM4 80GB", "devices": 384, "dtype": "bf16"},
        bigscience_2022,
        why="recomputation counted as work (factor 4 instead of 3), attention in full",
    ),
    Case(
        "megatron_deepspeed_104b_lossscale_drop.log",
        "bigscience-104b",
        {"device": "V100 SXM2 32GB", "devices": 256, "dtype": "fp16"},
        bigscience_2021,
        why="recomputation counted as work; attention over pairs and vocabulary left out",
    ),
    Case(
        "megatron_dense_02b_x8.log",
        "megatron-0.2b",
        {"sequence_length": 2048, "devices": 8},
        "palm",
        why="attention in full; no MFU: the device is not known",
    ),
    Case(
        "megatron_moe_64experts_4b_x8.log",
        "megatron-0.2b-64-experts",
        {"sequence_length": 2048, "devices": 8},
        "palm",
        why="attention in full, active experts (the router left out); no MFU: the device is not known",
    ),
    Case(
        "torchtitan_aurora_xpu24.log",
        "llama2-6-layers",
        {"device": TILE, "dtype": "bf16"},
        "palm",
        peak_tflops=298.2,
        why="attention in full; its peak is that of 448 engines at 1.3 GHz (the log prints it), the datasheet's is 419",
    ),
    Case(
        "wordplay_polaris_a100x8_mfu_neg.log",
        "wordplay-shakespeare",
        {"device": "A100 SXM4 40GB", "devices": 8, "sequence_length": 256, "dtype": "bf16"},
        "palm",
        peak_tflops=312.0,
        why="nanoGPT's formula: attention in full; a running average",
    ),
    Case("megatron_bigscience_18b_v100x16.out"),
    Case("megatron_deepspeed_bigscience_52b_v100x64_ds_on.out", given={"device": "V100 SXM2 32GB"}),
    Case("megatron_bigscience_v100x256_pp64.out", "bigscience-206b"),
    *(
        Case(f"olmo_1b_h100x{devices}_{name}.log", "olmo-1b", {**H100, "devices": devices}, why=AVERAGE)
        for devices, name in (
            (8, "nccl_sharp"),
            (8, "v025"),
            (16, "ib"),
            (16, "blobfuse_data_bound"),
            (16, "slow_network"),
        )
    ),
    Case(
        "hf_trainer_ezpz_aurora_xpu24.log",
        "llama-3.2-1b",
        {"device": TILE, "devices": 24, "sequence_length": 8192, "dtype": "bf16"},
        why="a mean over the run, its first step of 27 s included",
    ),
    Case(
        "modded_nanogpt_muon_h100x8.txt",
        "gpt2",
        {"devices": 8, "sequence_length": 1024, "global_batch": 512, "dtype": "bf16"},
    ),
    Case(
        "mindspeed_llm_qwen3_8b_fsdp2_npu8.log",
        "qwen3-8b",
        {"devices": 8, "sequence_length": 4096},
        why="nothing is claimed; no MFU: the page names Atlas A2, which has several chips",
    ),
)
# The others, by what they lack.
MISSING = {
    "number of devices and batch": ("build_nanogpt_v100_fp32.txt", "llamafactory_luojiu7b_trainer_log.jsonl"),
    "device": ("deepspeed_chat_step1_sft_opt13b.log", "deepspeed_chat_step3_rlhf_opt13b.log"),
    "model": ("xtuner_v1_sft_8ranks.log", "modded_style_diffusion_dynamo_noise.log"),
    "tokens of a step (unpadded, or changed by a schedule)": (
        "mlperf_v40_bert_h100x64.txt",
        "mlperf_v40_llama2_70b_lora_h100x64_nemo.txt",
        "modded_nanogpt_2025_veskip_h100x8.txt",
    ),
    "steps of a block": ("mlperf_v40_gpt3_tpu_v5p_1024.txt",),
    "times of steps": (
        "hf_trainer_bigscience_gpt2_v100x16_ds.out",
        "hf_trainer_cpt",
        "lightning_gpttt_ddp2",
        "lightning_slm_v0",
        "lightning_slm_v12",
        "tensorboard_duplicate_steps",
        "tensorboard_lfs_pointer",
        "deepspeed_autotuning_summary_gpt2large.txt",
    ),
    "model of tokens": ("tensorboard_lightning_ts_v1", "tensorboard_lightning_ts_v3"),
    "tokens a second": ("wandb_colossal_chat_rtx3060",),
    "length of the sequences (a profile of one step)": ("deepspeed_flops_profiler_bertlarge.txt",),
}


def evaluate(case: Case) -> Result:
    """Analyse a log with what it lacks, and make its claim again by the tool's way."""
    given = Given(model=read_model(case.model) if case.model else None, **case.given)
    analysis = examine_foreign(str(LOGS / case.log), given).analysis
    assert analysis.source is not None
    source, efficiency = analysis.source.claimed, analysis.efficiency
    rate, exact = efficiency.tokens_per_s_per_device.median, efficiency.conventions.exact.flops_per_token
    claimed = source.mfu if case.peak_tflops else source.tflops_per_device
    if rate is None or exact is None:
        return Result(case, analysis, claimed, None, None)
    reproduced = None
    if claimed is not None:
        reproduced = rate * _per_token(case, analysis) * case.times / 1e12 / (case.peak_tflops or 1)
    return Result(case, analysis, claimed, reproduced, rate * exact / 1e12)


def _per_token(case: Case, analysis: Analysis) -> float:
    if isinstance(case.counts, str):
        figure = getattr(analysis.efficiency.conventions, case.counts).flops_per_token
        assert figure is not None
        return float(figure)
    steps = analysis.efficiency
    assert steps.tokens_per_step is not None
    assert steps.samples_per_step is not None
    return case.counts(read_model(case.model), steps.tokens_per_step / steps.samples_per_step)


def read_model(name: str) -> dict[str, Any]:
    """A model's config: made for this table, or one of those that the tests use."""
    path = MODELS / f"{name}.json"
    config: dict[str, Any] = json.loads((path if path.exists() else CONFIGS / f"{name}.json").read_text())
    return config


def row_of(result: Result) -> list[str]:
    """Cells of the table."""
    case, analysis = result.case, result.analysis
    assert analysis.source is not None
    source, share = analysis.source, analysis.efficiency.mfu
    is_mfu = case.peak_tflops is not None
    how = case.counts if isinstance(case.counts, str) else case.counts.__name__.replace("_", " ")
    how += " × 4/3" if case.times != 1 else ""
    job_rate, device_rate = analysis.efficiency.tokens_per_s.median, analysis.efficiency.tokens_per_s_per_device.median
    claims = [
        "" if source.claimed.mfu is None else f"MFU {source.claimed.mfu:.1%}",
        "" if source.claimed.tflops_per_device is None else f"{source.claimed.tflops_per_device:.1f} TFLOP/s",
    ]
    ratio = None
    if source.claimed.tflops_per_device is not None and result.exact_tflops:
        ratio = source.claimed.tflops_per_device / result.exact_tflops
    elif source.claimed.mfu is not None and share.value:
        ratio = source.claimed.mfu / share.value
    reproduced = "–"
    if result.reproduced is not None and result.difference is not None:
        figure = f"{result.reproduced:.1%}" if is_mfu else f"{result.reproduced:.1f}"
        reproduced = f"{figure} ({how}), {result.difference:+.1%}"
    elif source.claimed.tokens_per_s is not None:
        is_job = source.claimed.tokens_per_s_scope == "job"
        rate = job_rate if is_job else device_rate
        claims.append(f"{source.claimed.tokens_per_s:,.0f} tokens/s{' of the job' if is_job else ''}")
        reproduced = "–" if rate is None else f"{rate:,.0f}, {rate / source.claimed.tokens_per_s - 1:+.1%}"
    device = analysis.hardware.devices[0]
    return [
        case.log,
        source.format,
        f"{source.steps:,}",
        f"{device.count:,} × {device.name.removeprefix('NVIDIA ').removeprefix('Intel ')}",
        " · ".join(claim for claim in claims if claim) or "–",
        reproduced,
        "–" if result.exact_tflops is None else f"{result.exact_tflops:.1f}",
        "–" if share.value is None else f"{share.value:.1%}",
        "–" if ratio is None else f"{ratio - 1:+.1%}",
        case.why,
    ]


def render(results: list[Result]) -> str:
    """The section between the markers."""
    headers = ["log", "format", "records", "devices", "claims", "made again", "exact TFLOP/s", "exact MFU"]
    headers += ["claim over exact", "why"]
    table = tabulate([row_of(one) for one in results], headers=headers, tablefmt="github", disable_numparse=True)
    differences = [abs(one.difference) for one in results if one.difference is not None]
    lacking = [f"- {what}: {', '.join(f'`{name}`' for name in names)}" for what, names in MISSING.items()]
    return "\n".join(
        [
            BEGIN,
            "<!-- written by benchmarks/claims_table.py; do not edit by hand -->",
            "",
            "Logs that other people published, and what effprof makes of them with the model, the device and the",
            "length that the log or its page states (`--model`, `--device`, `--seq`, `--devices`; what was inferred",
            "is named in `benchmarks/claims/`, and InternEvo's GPUs are A100s by its documentation, not by the log).",
            "*Claims* are medians of what the log prints, per device. *Made again* is effprof's rate by the tool's own",
            "way of counting and",
            f"over its own peak, with the distance from the claim: of {len(differences)} claims of TFLOP/s or MFU",
            f"none is further off than {max(differences):.1%}. So what parts claim and exact figure (in FLOPs where",
            "TFLOP/s are printed, else in MFU) is what the last column says. OLMo's step times come from stamps of",
            "whole seconds: its MFU is good to some per cent.",
            "",
            table,
            "",
            "None of these logs claims by a sparse peak, by all experts or by a padded vocabulary: what effprof says",
            "of the first two is tested on logs written for it. Not in the table, for want of:",
            "",
            *lacking,
            "",
            f"effprof {__version__}; `python benchmarks/claims_table.py`.",
            END,
        ]
    )


def unlisted() -> list[str]:
    """Logs that neither the table nor the list beneath it names."""
    named = {case.log for case in CASES} | {name for names in MISSING.values() for name in names}
    return sorted(path.name for path in LOGS.iterdir() if path.suffix != ".md" and path.name not in named)


def main() -> int:
    """Print the table, and write it into the page unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a claim is not reproduced")
    arguments = parser.parse_args()
    if not LOGS.is_dir():
        print(f"{LOGS} is not here: other people's logs lie beside the repository only", file=sys.stderr)
        return 2
    results = [evaluate(case) for case in CASES]
    text = render(results)
    print(text)
    failed = [one.case.log for one in results if one.difference is not None and abs(one.difference) > TOLERANCE]
    for name in failed:
        print(f"not reproduced: {name}", file=sys.stderr)
    for name in unlisted():
        print(f"neither in the table nor in the list: {name}", file=sys.stderr)
    if not arguments.check:
        document = ACCURACY.read_text()
        before, _, rest = document.partition(BEGIN)
        ACCURACY.write_text(before + text + rest.partition(END)[2])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
