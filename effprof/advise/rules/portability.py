"""Rules on chips that are not the one a configuration was written for."""

from __future__ import annotations

from typing import Any

from effprof.advise.facts import CALLBACK, config, device_type, step_share, wall_share
from effprof.advise.gains import gain_from_removed_share, no_gain
from effprof.advise.rule import Match, Missing, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis, Evidence

# Devices whose operators or graphs are compiled for each shape.
COMPILED_PER_SHAPE = ("xla", "hpu", "npu")
# Variables that only one vendor's software reads: beginning of the name, types of device it is for.
OWNED = {"CUDA_": ("cuda",), "CUBLAS_": ("cuda",), "NVIDIA_": ("cuda",), "NCCL_": ("cuda",), "TORCH_NCCL_": ("cuda",)}
SHAPES = Threshold(
    "run.config.input_shapes",
    8,
    "shapes",
    "a bucketed loader makes a handful of lengths; each further shape compiles the step anew",
)
COMPILING = Threshold(
    "account.compile ÷ wall clock",
    0.05,
    "share of wall clock",
    "compilation that ends with the warm-up is below a twentieth of a run worth tuning",
)
FOREIGN = Threshold(
    "software.environment: variables of another vendor",
    0,
    "variables",
    "they are read by no library on this device: the settings were made for another one and never tuned here",
)
FALLBACK = Threshold(
    "account.step.host_to_device",
    0.01,
    "share of step time",
    "operators on the host copy their input and output: a hundredth of the step is more than a batch",
)


@rule(
    "port-dynamic-shapes",
    area="portability",
    title="each new shape is compiled anew on this device",
    symptom="many distinct shapes of micro-batches on a device that compiles for each",
    thresholds=[SHAPES, COMPILING],
    lever="pad batches to a few lengths",
    frameworks={
        "pytorch": "collate_fn that pads to the next of a few lengths",
        "huggingface": "DataCollatorWithPadding(tokenizer, pad_to_multiple_of=N)",
    },
    gain_basis="compilation's share of the wall clock is the bound; a few lengths compile a few times, and padding "
    "costs some: 50 to 95 % goes",
    risk="padding is computed for nothing",
    risk_level="low",
    sources=["https://docs.habana.ai/en/latest/PyTorch/Model_Optimization_PyTorch/Dynamic_Shapes.html"],
    system="qianfan",
)
def many_shapes(run: Analysis) -> Match | None:
    """Shapes on a device that compiles per shape."""
    if device_type(run) not in COMPILED_PER_SHAPE:
        raise NotApplicable
    shapes, share = int(config(run, "input_shapes")), wall_share(run, "compile")
    if not SHAPES.is_crossed(shapes) or not COMPILING.is_crossed(share):
        return None
    return Match(
        evidence=[SHAPES.saw(shapes), COMPILING.saw(share)],
        gain=gain_from_removed_share(share, (0.5, 0.8, 0.95), "wall"),
        knobs={
            "pytorch": "collate_fn=lambda rows: pad_to(rows, lengths=(256, 512, 1024, 2048))",
            "huggingface": "DataCollatorWithPadding(tokenizer, pad_to_multiple_of=256)",
        },
    )


@rule(
    "port-foreign-settings",
    area="portability",
    title="settings of another vendor's chip are in force",
    symptom="environment variables that no library on this device reads",
    thresholds=[FOREIGN],
    lever="measure micro-batch, precision and layout anew on this chip",
    frameworks={"environment": "unset NAME; effprof compare OLD NEW"},
    gain_basis="none by itself: it says that the configuration was not made for this chip",
    risk="none",
    risk_level="low",
    sources=["https://www.deepspeed.ai/tutorials/autotuning/"],
    system="qianfan",
)
def foreign_settings(run: Analysis) -> Match | None:
    """Variables of a vendor whose device this is not."""
    here, names = device_type(run), _environment(run)
    # ROCm calls its device "cuda" too and reads several of the names
    foreign = sorted(
        name for name in names for start, devices in OWNED.items() if name.startswith(start) and here not in devices
    )
    if not FOREIGN.is_crossed(len(foreign)) or here == "cpu":
        return None
    return Match(
        title=f"settings of another vendor's chip are in force: {', '.join(foreign)}",
        evidence=[FOREIGN.saw(len(foreign))],
        gain=no_gain(),
        knobs={"environment": f"unset {' '.join(foreign)}"},
    )


@rule(
    "port-host-fallback",
    area="portability",
    title="operators that this device lacks may run on the host",
    symptom="the fallback is switched on, and copies between host and device take a part of the step",
    thresholds=[FALLBACK],
    lever="find the operators with the fallback switched off, then replace them",
    frameworks={"environment": "PYTORCH_ENABLE_MPS_FALLBACK=0"},
    gain_basis="the copies' share of the step is the bound; batches are copied all the same: 30 to 90 % goes",
    risk="the training stops at the first operator that the device lacks, which is what shows it",
    risk_level="medium",
    sources=["https://docs.pytorch.org/docs/stable/mps_environment_variables.html"],
    system="qianfan",
)
def host_fallback(run: Analysis) -> Match | None:
    """The switch and the copies."""
    if device_type(run) != "mps":
        raise NotApplicable
    if _environment(run).get("PYTORCH_ENABLE_MPS_FALLBACK", "0") != "1":
        return None
    share = step_share(run, "step.host_to_device")
    if not FALLBACK.is_crossed(share):
        return None
    switch = Evidence(metric="software.environment.PYTORCH_ENABLE_MPS_FALLBACK", value=1, unit="switch")
    return Match(
        evidence=[FALLBACK.saw(share), switch],
        gain=gain_from_removed_share(share, (0.3, 0.6, 0.9)),
        knobs={"environment": "PYTORCH_ENABLE_MPS_FALLBACK=0"},
    )


def _environment(run: Analysis) -> dict[str, Any]:
    found = run.run.software.get("environment")
    if not isinstance(found, dict):
        raise Missing("the environment's variables", CALLBACK)
    return found
