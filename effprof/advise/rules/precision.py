"""Rules on the number formats that matrix products run in."""

from __future__ import annotations

from effprof.advise.facts import config, device_type, needs_accelerator
from effprof.advise.gains import clip_gain, gain_from_faster_part, gain_from_published, gain_from_removed_share
from effprof.advise.products import multiplies_in, product_share
from effprof.advise.rule import Match, Missing, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis, Evidence

PRODUCT_SHARE = Threshold(
    "matrix products ÷ step",
    0.15,
    "share of step time",
    "twice as fast products gain less than 8 % below it, within what casts cost",
)
LARGE_PRODUCT_SHARE = Threshold(
    "matrix products ÷ step",
    0.5,
    "share of step time",
    "scaling and casting to 8 bits costs 5 to 10 % of a step: products must be most of it",
)
FASTER = Threshold(
    "hardware.ceilings: bf16 ÷ fp32",
    1.3,
    "ratio",
    "casts of weights and activations take a tenth or more of a step: a smaller lead is used up by them",
)
SKIPPED = Threshold(
    "run.config.skipped_steps_at_least ÷ steps",
    0.01,
    "share of steps",
    "a scaler that doubles every 2,000 steps skips 0.05 % of them; twenty times that is not its search for the scale",
)
WIDTH = Threshold(
    "run.config.hidden_size",
    4096,
    "elements",
    "published 8-bit gains are of models this wide; smaller products lose more to scaling than they gain",
    ">=",
)
WIDE_ENOUGH = Threshold(
    "run.config.hidden_size",
    192,
    "elements",
    "on a CPU products narrower than this lose to casts what they gain: 128 wide −9 to +20 %, 64 wide −42 % "
    "(benchmarks/precision_cpu.py)",
    ">=",
)
# Time of the casts on a CPU ÷ time of the fp32 products, times the hidden size: benchmarks/precision_cpu.py
CASTS_ON_CPU = (60.0, 27.0, 6.0)
AMP = "https://docs.pytorch.org/docs/stable/amp.html"
MXFP8 = "https://github.com/pytorch/torchtitan/blob/main/torchtitan/components/quantization/mxfp8.md"
NVFP4 = "https://github.com/pytorch/torchtitan/blob/main/torchtitan/components/quantization/nvfp4.md"


@rule(
    "prec-tf32",
    area="precision",
    title="fp32 products leave the matrix units unused",
    symptom="products are in fp32 on a device that multiplies tf32, and torch is told to keep full fp32",
    thresholds=[PRODUCT_SHARE],
    lever="let fp32 products run in tf32",
    frameworks={
        "lightning": "torch.set_float32_matmul_precision('high')",
        "pytorch": "torch.set_float32_matmul_precision('high')",
        "huggingface": "TrainingArguments(tf32=True)",
    },
    gain_basis="products that vanish are the bound; tf32's peak is 8 times fp32's on Ampere and Hopper, of which "
    "training reaches 2.5 to 5 times",
    risk="products keep 10 bits of mantissa instead of 23; sums stay fp32",
    risk_level="low",
    sources=["https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices"],
    system="general",
)
def full_fp32(run: Analysis) -> Match | None:
    """fp32 products on an accelerator with tf32 units."""
    needs_accelerator(run)
    if "tf32" not in config(run, "low_precision_units") or config(run, "fp32_products_run_in") != "fp32":
        return None
    if not multiplies_in(run, "fp32"):
        return None
    share = product_share(run)
    if not PRODUCT_SHARE.is_crossed(share):
        return None
    call = "torch.set_float32_matmul_precision('high')"
    return Match(
        evidence=[PRODUCT_SHARE.saw(share)],
        gain=gain_from_faster_part(share, (2.5, 3.5, 5.0), limit=8.0),
        knobs={"lightning": call, "pytorch": call, "huggingface": "TrainingArguments(tf32=True)"},
        changes={"matmul_precision": "high"},
    )


@rule(
    "prec-bf16",
    area="precision",
    title="training in fp32 on a device with bf16 matrix units",
    symptom="most FLOPs are fp32 although the device's measured or stated bf16 rate is far higher",
    thresholds=[PRODUCT_SHARE, FASTER, WIDE_ENOUGH],
    lever="bf16 mixed precision",
    frameworks={
        "lightning": "Trainer(precision='bf16-mixed')",
        "pytorch": "torch.autocast(device_type='cuda', dtype=torch.bfloat16)",
        "huggingface": "TrainingArguments(bf16=True)",
        "megatron": "--bf16",
    },
    gain_basis="Amdahl over the products' share with the ratio of the device's own measured bf16 and fp32 rates as the "
    "limit; casts and smaller products leave 45 to 75 % of that ratio. On a CPU casts take 6 to 60 (likely 27) ÷ "
    "hidden size of the products' time, as measured with benchmarks/precision_cpu.py",
    risk="bf16 keeps 8 bits of mantissa; weights and sums stay fp32 under autocast",
    risk_level="medium",
    sources=[AMP, "https://arxiv.org/abs/1905.12322"],
    system="general",
)
def fp32_training(run: Analysis) -> Match | None:
    """fp32 products where the ceilings say that bf16 is faster."""
    units = config(run, "low_precision_units")
    if not {"bf16", "avx512_bf16", "amx_bf16"} & set(units) or not multiplies_in(run, "fp32"):
        return None
    ratio = _ceiling_ratio(run)
    share = product_share(run)
    if not FASTER.is_crossed(ratio) or not PRODUCT_SHARE.is_crossed(share):
        return None
    evidence = [PRODUCT_SHARE.saw(share), FASTER.saw(ratio)]
    device = device_type(run)
    if device == "cpu":
        width = int(config(run, "hidden_size"))
        if not WIDE_ENOUGH.is_crossed(width):
            return None
        evidence.append(WIDE_ENOUGH.saw(width))
        factors = [1 / (1 / ratio + casts / width) for casts in CASTS_ON_CPU]
    else:
        factors = [max(1.0, part * ratio) for part in (0.45, 0.6, 0.75)]
    return Match(
        evidence=evidence,
        gain=gain_from_faster_part(share, (factors[0], factors[1], factors[2]), limit=ratio),
        knobs={
            "lightning": "Trainer(precision='bf16-mixed')",
            "pytorch": f"torch.autocast(device_type='{device}', dtype=torch.bfloat16)",
            "huggingface": "TrainingArguments(bf16=True)",
            "megatron": "--bf16",
        },
        changes={"precision": "bf16-mixed"},
    )


def _ceiling_ratio(run: Analysis) -> float:
    """bf16 rate ÷ fp32 rate as measured on this device."""
    ceilings = run.hardware.ceilings
    if not ceilings.get("bf16") or not ceilings.get("fp32"):
        raise Missing("the device's measured bf16 and fp32 rates", "EfficiencyCallback measures both ceilings on a CPU")
    return ceilings["bf16"] / ceilings["fp32"]


@rule(
    "prec-fp16-skip",
    area="precision",
    title="the fp16 scaler skips steps",
    symptom="gradients overflow again and again: steps are computed and thrown away",
    thresholds=[SKIPPED],
    lever="bf16 mixed precision, which needs no scaler, or a scale that grows more slowly",
    frameworks={
        "lightning": "Trainer(precision='bf16-mixed')",
        "pytorch": "torch.amp.GradScaler(growth_interval=N)",
    },
    gain_basis="the skipped share of the steps, counted from the falls of the scale (a lower bound): all of it comes "
    "back, and half as many again may not have been seen",
    risk="bf16 has fewer bits of mantissa than fp16",
    risk_level="low",
    sources=[AMP],
    system="general",
)
def skipped_steps(run: Analysis) -> Match | None:
    """Skipped steps above what the scaler's search costs."""
    if not str(config(run, "precision")).startswith("16"):
        raise NotApplicable
    share = int(config(run, "skipped_steps_at_least")) / max(1, run.efficiency.steps.total)
    if not SKIPPED.is_crossed(share):
        return None
    seen = gain_from_removed_share(min(1.0, share), (1.0, 1.0, 1.0))
    bound = gain_from_removed_share(min(1.0, 1.5 * share), (1.0, 1.0, 1.0)).bound
    has_bf16 = "bf16" in (run.run.config.get("low_precision_units") or [])
    return Match(
        evidence=[SKIPPED.saw(share)],
        gain=clip_gain(0.8 * seen.low, seen.likely, bound, bound),
        knobs={
            "lightning": "Trainer(precision='bf16-mixed')",
            "pytorch": "torch.amp.GradScaler(growth_interval=10000)",
        },
        changes={"precision": "bf16-mixed"} if has_bf16 else {},
    )


@rule(
    "prec-fp8",
    area="precision",
    title="large bf16 products on a device with 8-bit matrix units",
    symptom="most of the step is bf16 products of a wide model, and the device multiplies fp8 twice as fast",
    thresholds=[LARGE_PRODUCT_SHARE, WIDTH],
    lever="8-bit linear layers",
    frameworks={
        "lightning": "Trainer(precision='transformer-engine')",
        "pytorch": "torchao.float8.convert_to_float8_training(model)",
        "megatron": "--fp8-format hybrid",
    },
    gain_basis="products twice as fast are the bound; the prediction is the quartiles of published pairs",
    risk="needs a comparison of the loss; router and output layer stay in bf16",
    risk_level="medium",
    sources=[MXFP8, "https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md"],
    change="fp8",
    system="moe",
)
def eight_bits(run: Analysis) -> Match | None:
    """Wide bf16 models on fp8 devices that do not use them."""
    needs_accelerator(run)
    if "fp8" not in config(run, "low_precision_units") or not multiplies_in(run, "bf16"):
        return None
    return _narrower(
        run,
        "fp8",
        {
            "lightning": "Trainer(precision='transformer-engine')",
            "pytorch": "torchao.float8.convert_to_float8_training(model)",
            "megatron": "--fp8-format hybrid",
        },
    )


@rule(
    "prec-fp4",
    area="precision",
    title="large 8-bit products on a device with 4-bit matrix units",
    symptom="most of the step is fp8 products of a wide model on a device that multiplies fp4",
    thresholds=[LARGE_PRODUCT_SHARE, WIDTH],
    lever="NVFP4 in most layers, the last ones in bf16",
    frameworks={"pytorch": "torchtitan's nvfp4 converter or Transformer Engine's NVFP4BlockScaling recipe"},
    gain_basis="products twice as fast are the bound; two published pairs of models against mxfp8 on the same four "
    "devices give a ratio of 1.07 (Llama-3-8B) and 0.97 (Qwen3-8B): −3 to +7 %",
    risk="new: compare the loss over a long run; stochastic rounding and Hadamard transforms are needed",
    risk_level="high",
    sources=[NVFP4],
    system="general",
)
def four_bits(run: Analysis) -> Match | None:
    """Wide fp8 models on fp4 devices."""
    needs_accelerator(run)
    if "fp4" not in config(run, "low_precision_units") or not multiplies_in(run, "fp8"):
        return None
    return _narrower(run, "", {"pytorch": "recipe = transformer_engine.common.recipe.NVFP4BlockScaling()"})


def _narrower(run: Analysis, published: str, knobs: dict[str, str]) -> Match | None:
    width, share = int(config(run, "hidden_size")), product_share(run)
    if not WIDTH.is_crossed(width) or not LARGE_PRODUCT_SHARE.is_crossed(share):
        return None
    bound = gain_from_faster_part(share, (1.0, 1.0, 1.0), limit=2.0).bound
    gain = gain_from_published(published, bound) if published else clip_gain(-0.03, 0.02, 0.07, bound)
    return Match(
        evidence=[LARGE_PRODUCT_SHARE.saw(share), Evidence(metric=WIDTH.metric, value=width, unit=WIDTH.unit)],
        gain=gain,
        knobs=knobs,
    )
