"""Rules on the kernels that a step launches, and on how the host launches them."""

from __future__ import annotations

from effprof.advise.facts import config, kernel_share, kernels, needs_accelerator, step_share
from effprof.advise.gains import gain_from_removed_share
from effprof.advise.products import product_share
from effprof.advise.rule import Match, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis

OPTIMIZER = Threshold(
    "account.step.optimizer",
    0.05,
    "share of step time",
    "an optimizer bound by memory bandwidth takes 1 to 4 % of a step: above it launches or extra passes count",
)
ELEMENTWISE = Threshold(
    "kernel_account: elementwise, normalisation and reduction ÷ window",
    0.2,
    "share of the kernel window",
    "compiled models spend about a tenth in such kernels; a fifth leaves something to fuse",
)
LATE = Threshold(
    "run.config.compilations_late ÷ steps",
    0.01,
    "compilations per step",
    "shapes settle within the first steps; one compilation per hundred steps costs more than it brings",
)
HOST_BOUND = Threshold(
    "kernel_account.idle.host_bound_s ÷ window",
    0.1,
    "share of the kernel window",
    "single late launches add up to a few percent; a tenth means the host does not keep the queue filled",
)
PRODUCT_SHARE = Threshold(
    "matrix products ÷ step", 0.3, "share of step time", "sides that tiles do not divide slow down products only"
)
UNALIGNED = Threshold(
    "run.config.unaligned_linear_share",
    0.1,
    "share of the Linears' elements",
    "a small head or a classifier of an odd number of classes does not count",
)
CONVOLUTION = Threshold(
    "kernel_account.convolution ÷ window", 0.3, "share of the kernel window", "only convolutions gain from the format"
)
ATTENTION_PEAK = Threshold(
    "kernel_account: reduction (softmax) and elementwise ÷ window",
    0.15,
    "share of the kernel window",
    "fused attention leaves no softmax over the square of the sequence: norms and the loss stay below this",
)
COMPILE_SOURCE = "https://docs.pytorch.org/docs/stable/generated/torch.compile.html"
SDPA_SOURCE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html"
NVIDIA_SIZES = "https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html"


@rule(
    "ker-fused-optimizer",
    area="kernels",
    title="the optimizer is not fused",
    symptom="the optimizer takes a twentieth of the step or more, and its class has a fused form that is not used",
    thresholds=[OPTIMIZER],
    lever="the optimizer's fused form",
    frameworks={
        "pytorch": "torch.optim.AdamW(params, fused=True)",
        "huggingface": "TrainingArguments(optim='adamw_torch_fused')",
    },
    gain_basis="the optimizer's share of the step is the bound; one pass over parameters and states in place of "
    "several saves 20 to 60 % of it; clipping and zeroing of gradients, which the share contains, stay",
    risk="parameters must lie on one type of device; the last bits of the update differ",
    risk_level="low",
    sources=["https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html"],
    change="fused_optimizer",
    system="baige",
)
def unfused_optimizer(run: Analysis) -> Match | None:
    """Optimizer share above its limit with `fused` off where it could be on."""
    share = step_share(run, "step.optimizer")
    if not OPTIMIZER.is_crossed(share) or not config(run, "optimizer_can_fuse"):
        return None
    if run.run.config.get("optimizer_fused"):
        return None
    name = str((run.run.config.get("optimizers") or ["AdamW"])[0])
    call = f"torch.optim.{name}(self.parameters(), fused=True)"
    return Match(
        evidence=[OPTIMIZER.saw(share)],
        gain=gain_from_removed_share(share, (0.2, 0.4, 0.6)),
        knobs={"lightning": call, "pytorch": call, "huggingface": "TrainingArguments(optim='adamw_torch_fused')"},
        changes={"fused_optimizer": True},
    )


@rule(
    "ker-compile",
    area="kernels",
    title="elementwise kernels that a compiler would fuse",
    symptom="the model runs eagerly and a fifth of the device's time goes into elementwise, norm and reduction kernels",
    thresholds=[ELEMENTWISE],
    lever="torch.compile of the model",
    frameworks={
        "lightning": "torch.compile(model) in configure_model",
        "pytorch": "torch.compile(model)",
        "huggingface": "TrainingArguments(torch_compile=True)",
    },
    gain_basis="the share of kernels that can be fused is the bound; fusion saves 30 to 70 % of their memory traffic, "
    "in line with published pairs of 7 to 30 %",
    risk="minutes of compilation; recompiles where shapes change; graph breaks",
    risk_level="medium",
    sources=[COMPILE_SOURCE, "https://github.com/pytorch/torchtitan/pull/165"],
    change="compile",
    system="general",
)
def eager_elementwise(run: Analysis) -> Match | None:
    """Fusible kernels in a model that is not compiled."""
    needs_accelerator(run)
    if config(run, "is_compiled"):
        return None
    share = kernel_share(run, "elementwise", "normalisation", "reduction")
    if not ELEMENTWISE.is_crossed(share):
        return None
    return Match(
        evidence=[ELEMENTWISE.saw(share)],
        gain=gain_from_removed_share(share, (0.3, 0.5, 0.7)),
        knobs={
            "lightning": "self.model = torch.compile(self.model)",
            "pytorch": "model = torch.compile(model)",
            "huggingface": "TrainingArguments(torch_compile=True)",
        },
        changes={"compile": True},
    )


@rule(
    "ker-recompile",
    area="kernels",
    title="the model is compiled again and again",
    symptom="compilations go on after the first steps",
    thresholds=[LATE],
    lever="batches of few shapes, or shapes marked as dynamic",
    frameworks={"pytorch": "torch.compile(model, dynamic=True)", "lightning": "DataLoader(drop_last=True)"},
    gain_basis="compile time outside the first steps is not told apart: the compile line's share of the wall clock, by "
    "the share of compilations that were late, is the bound; 60 to 100 % of it goes",
    risk="kernels for dynamic shapes are somewhat slower; padding to few shapes computes padding",
    risk_level="low",
    sources=["https://docs.pytorch.org/docs/stable/torch.compiler_troubleshooting.html"],
    system="general",
)
def recompilation(run: Analysis) -> Match | None:
    """Late compilations per step above their limit."""
    if not config(run, "is_compiled"):
        return None
    late, total = int(config(run, "compilations_late")), int(config(run, "compilations"))
    rate = late / max(1, run.efficiency.steps.total)
    if not LATE.is_crossed(rate):
        return None
    share = run.account.lines.get("compile", 0.0) / run.account.wall_s * late / max(1, total)
    call = "torch.compile(model, dynamic=True)"
    return Match(
        evidence=[LATE.saw(rate)],
        gain=gain_from_removed_share(share, (0.6, 0.8, 1.0), basis="wall"),
        knobs={"lightning": f"self.model = {call}", "pytorch": f"model = {call}"},
    )


@rule(
    "ker-launch-bound",
    area="kernels",
    title="the device waits for the host to launch kernels",
    symptom="the device is idle for a tenth of the window because nothing was queued",
    thresholds=[HOST_BOUND],
    lever="CUDA graphs, or larger micro-batches",
    frameworks={"pytorch": "torch.compile(model, mode='reduce-overhead')"},
    gain_basis="the idle time with an empty queue is the bound; graphs cover forward and backward, and what runs "
    "between them stays: 40 to 80 % goes",
    risk="fixed shapes and addresses; a second pool of memory",
    risk_level="medium",
    sources=["https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/", COMPILE_SOURCE],
    change="cuda_graphs",
    system="general",
)
def launch_bound(run: Analysis) -> Match | None:
    """Idle time of the kernel window for want of launches."""
    needs_accelerator(run)
    accounts = [each for each in kernels(run) if each.window_s > 0]
    share = sum(each.idle.host_bound_s / each.window_s for each in accounts) / max(1, len(accounts))
    if not HOST_BOUND.is_crossed(share) or run.run.config.get("compile_mode") == "reduce-overhead":
        return None
    call = "torch.compile(model, mode='reduce-overhead')"
    return Match(
        evidence=[HOST_BOUND.saw(share)],
        gain=gain_from_removed_share(share, (0.4, 0.6, 0.8)),
        knobs={"lightning": f"self.model = {call}", "pytorch": f"model = {call}"},
        changes={"compile": "reduce-overhead"},
    )


@rule(
    "ker-attention",
    area="kernels",
    title="attention writes the square of the sequence to memory",
    symptom="attention is `eager` (or only the math backend is allowed), and softmax and elementwise kernels take time",
    thresholds=[ATTENTION_PEAK],
    lever="fused attention",
    frameworks={
        "huggingface": "AutoModel.from_pretrained(NAME, attn_implementation='sdpa')",
        "pytorch": "torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)",
    },
    gain_basis="softmax, mask and dropout kernels' share is the bound; norms and the loss, which the share contains, "
    "stay: 30 to 70 % of it goes",
    risk="some masks and head sizes fall back to slow kernels; attention weights are not returned",
    risk_level="low",
    sources=[SDPA_SOURCE, "https://arxiv.org/abs/2205.14135"],
    change="flash_attention",
    system="general",
)
def unfused_attention(run: Analysis) -> Match | None:
    """Eager attention by the config with softmax-like kernels in the window."""
    needs_accelerator(run)
    is_eager = run.run.config.get("attn_implementation") == "eager"
    if not is_eager and config(run, "sdpa_backends") != ["math"]:
        return None
    share = kernel_share(run, "reduction", "elementwise")
    if not ATTENTION_PEAK.is_crossed(share):
        return None
    return Match(
        evidence=[ATTENTION_PEAK.saw(share)],
        gain=gain_from_removed_share(share, (0.3, 0.5, 0.7)),
        knobs={
            "huggingface": "AutoModelForCausalLM.from_pretrained(name, attn_implementation='sdpa')",
            "pytorch": "torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)",
        },
        changes={"attn_implementation": "sdpa"} if is_eager else {"sdpa_backend": "flash"},
    )


@rule(
    "ker-alignment",
    area="kernels",
    title="layers whose sides 8 does not divide",
    symptom="a tenth or more of the Linears' elements is in layers that matrix units cannot read in whole tiles",
    thresholds=[UNALIGNED, PRODUCT_SHARE],
    lever="round sizes up to a multiple of 64",
    frameworks={"megatron": "--make-vocab-size-divisible-by 128", "huggingface": "model.resize_token_embeddings"},
    gain_basis="the products' share by the share of elements in such layers is the bound's time, all of it gone; "
    "products with odd sides take 1.1 to 1.6 times as long",
    risk="another checkpoint layout; the padded rows of a vocabulary must be ignored",
    risk_level="medium",
    sources=[NVIDIA_SIZES],
    system="general",
)
def unaligned(run: Analysis) -> Match | None:
    """Unaligned Linears in a run that mostly multiplies."""
    needs_accelerator(run)
    odd, products = float(config(run, "unaligned_linear_share")), product_share(run)
    if not UNALIGNED.is_crossed(odd) or not PRODUCT_SHARE.is_crossed(products):
        return None
    return Match(
        evidence=[UNALIGNED.saw(odd), PRODUCT_SHARE.saw(products)],
        gain=gain_from_removed_share(min(1.0, odd * products), (0.1, 0.2, 0.37)),
        knobs={
            "huggingface": "model.resize_token_embeddings(pad_to_multiple_of=64)",
            "megatron": "--make-vocab-size-divisible-by 128",
        },
    )


@rule(
    "ker-channels-last",
    area="kernels",
    title="convolutions in NCHW under mixed precision",
    symptom="convolutions take a third of the window, 16-bit, in a model that is not stored channels last",
    thresholds=[CONVOLUTION],
    lever="channels-last memory format",
    frameworks={"pytorch": "model.to(memory_format=torch.channels_last)"},
    gain_basis="the share of convolutions is the bound; without the layout changes they lose 10 to 25 % of their time; "
    "one published pair on a laptop's device got slower instead, so verify it",
    risk="operators without such a form copy back and forth",
    risk_level="low",
    sources=["https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html"],
    change="channels_last",
    system="general",
)
def channels_first(run: Analysis) -> Match | None:
    """Convolutions with the default format in 16 bits."""
    needs_accelerator(run)
    if not run.run.config.get("convolutions"):
        raise NotApplicable
    share = kernel_share(run, "convolution")
    if config(run, "channels_last") or not CONVOLUTION.is_crossed(share):
        return None
    if not any(name in str(config(run, "precision")) for name in ("16", "bf16")):
        return None
    call = "model.to(memory_format=torch.channels_last)"
    return Match(
        evidence=[CONVOLUTION.saw(share)],
        gain=gain_from_removed_share(share, (0.1, 0.17, 0.25)),
        knobs={"lightning": call, "pytorch": call},
        changes={"channels_last": True},
    )
