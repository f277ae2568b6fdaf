"""Facts of the module that is trained: sizes, recompute, attention, memory format. Nothing of it is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from effprof.measure.facts.read import read_facts

if TYPE_CHECKING:
    import torch

_LARGEST_MULTIPLE = 256
# Tensor cores take fp16 and bf16 rows whose length is a multiple of 8 without padding: NVIDIA, "Matrix Multiplication
# Background User's Guide", section "Tensor Core Requirements" (16 bytes before cuBLAS 11).
_ALIGNED = 8


def model_facts(module: torch.nn.Module | None) -> dict[str, Any]:
    """Settings of the model, by their names in `effprof.runlog.settings`; empty without one."""
    return {} if module is None else read_facts(_READERS, module)


def _frozen_share(module: torch.nn.Module) -> float | None:
    parameters = list(module.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    frozen = sum(parameter.numel() for parameter in parameters if not parameter.requires_grad)
    return frozen / total if total else None


def _config_of(module: torch.nn.Module) -> Any:
    """The config of the outermost transformers model; None without one."""
    for part in module.modules():
        config = getattr(part, "config", None)
        if hasattr(config, "to_dict") and hasattr(config, "_attn_implementation"):
            return config
    return None


def _of_config(*names: str) -> Callable[[torch.nn.Module], Any]:
    def read(module: torch.nn.Module) -> Any:
        config = _config_of(module)
        texts = getattr(config, "text_config", None)  # a model of images and text keeps the sizes there
        found = (getattr(holder, name, None) for holder in (config, texts) if holder is not None for name in names)
        return next((value for value in found if value is not None), None)

    return read


def _experts_implementation(module: torch.nn.Module) -> Any:
    # the config names one for dense models too
    has_experts = any("Experts" in type(part).__name__ for part in module.modules())
    return _of_config("_experts_implementation")(module) if has_experts else None


def _quantization(module: torch.nn.Module) -> str | None:
    settings = getattr(_config_of(module), "quantization_config", None)
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return None if method is None else str(getattr(method, "value", method))


# Recompute.


def _checkpointed(module: torch.nn.Module) -> tuple[int, int, Any]:
    """Recomputed layers, layers that could be, and one of the functions that recomputes."""
    wrapped = [part for part in module.modules() if type(part).__name__ == "CheckpointWrapper"]
    if wrapped:
        return len(wrapped), max(len(wrapped), _layer_count(module)), wrapped[0].checkpoint_fn
    switched = [part for part in module.modules() if _is_checkpointing_layer(part)]
    if not switched:
        # models that are older than transformers' own layer class keep one switch for all their layers
        switched = [part for part in module.modules() if isinstance(vars(part).get("gradient_checkpointing"), bool)]
    on = [part for part in switched if getattr(part, "gradient_checkpointing", False)]
    return len(on), len(switched), getattr(on[0], "_gradient_checkpointing_func", None) if on else None


def _is_checkpointing_layer(module: torch.nn.Module) -> bool:
    return any(base.__name__ == "GradientCheckpointingLayer" for base in type(module).__mro__)


def _gradient_checkpointing(module: torch.nn.Module) -> bool | None:
    on, of, _ = _checkpointed(module)
    return on > 0 if of else None


def _checkpointing_share(module: torch.nn.Module) -> float | None:
    on, of, _ = _checkpointed(module)
    return on / of if of else None


def _checkpointing_option(name: str) -> Callable[[torch.nn.Module], Any]:
    def read(module: torch.nn.Module) -> Any:
        function = _checkpointed(module)[2]
        return function.keywords.get(name) if isinstance(function, partial) else None

    return read


def _checkpointing_policy(module: torch.nn.Module) -> str | None:
    on, _, _ = _checkpointed(module)
    if not on:
        return None
    return "full" if _checkpointing_option("context_fn")(module) is None else "selective"


def _has_checkpointing_switch(module: torch.nn.Module) -> bool:
    # transformers 5.24 calls it by the second name
    switches = ("gradient_checkpointing_enable", "activation_checkpointing_enable")
    return any(hasattr(type(part), name) for part in module.modules() for name in switches)


# Sizes.


def _embedding(module: torch.nn.Module, which: str) -> Any:
    for part in module.modules():
        get = getattr(part, f"get_{which}_embeddings", None)
        if callable(get):
            found = get()
            if found is not None:
                return found
    return None


def _vocab_size(module: torch.nn.Module) -> int | None:
    embedding = _embedding(module, "input")
    if embedding is not None:
        return int(embedding.weight.shape[0])
    import torch.nn

    tables = [part for part in module.modules() if isinstance(part, torch.nn.Embedding)]
    return max((table.num_embeddings for table in tables), default=None)


def _vocab_multiple(module: torch.nn.Module) -> int | None:
    size = _vocab_size(module)
    return None if size is None else _multiple(size)


def _multiple(size: int) -> int:
    """The largest power of two that divides `size`, at most 256."""
    return min(size & -size, _LARGEST_MULTIPLE)


def _linears(module: torch.nn.Module) -> Iterator[tuple[int, int]]:
    """(outputs, inputs) of each Linear, wherever a framework's class keeps these names."""
    for part in module.modules():
        if isinstance(getattr(part, "in_features", None), int) and isinstance(getattr(part, "out_features", None), int):
            yield part.out_features, part.in_features  # type: ignore[misc]


def _linear_multiple(module: torch.nn.Module) -> int | None:
    return min((min(_multiple(rows), _multiple(columns)) for rows, columns in _linears(module)), default=None)


def _unaligned_linear_share(module: torch.nn.Module) -> float | None:
    sizes = list(_linears(module))
    total = sum(rows * columns for rows, columns in sizes)
    unaligned = sum(rows * columns for rows, columns in sizes if rows % _ALIGNED or columns % _ALIGNED)
    return unaligned / total if total else None


def _layer_count(module: torch.nn.Module) -> int:
    """Blocks in the largest list of modules whose children are of one class, wrappers looked through."""
    import torch.nn

    largest = 0
    for part in module.modules():
        if isinstance(part, (torch.nn.ModuleList, torch.nn.Sequential)) and len(part) > 1:
            largest = max(largest, Counter(_inner_class(child) for child in part).most_common(1)[0][1])
    return largest


def _inner_class(module: torch.nn.Module) -> type:
    for name in ("_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module"):
        module = getattr(module, name, module)
    return type(module)


def _layers(module: torch.nn.Module) -> int | None:
    return _layer_count(module) or None


def _ties_embeddings(module: torch.nn.Module) -> bool | None:
    first, last = _embedding(module, "input"), _embedding(module, "output")
    if first is None or last is None:
        return None
    return bool(first.weight is last.weight or first.weight.data_ptr() == last.weight.data_ptr() != 0)


# Kinds of modules.


def _convolution_weights(module: torch.nn.Module) -> list[torch.Tensor]:
    import torch.nn

    return [part.weight for part in module.modules() if isinstance(part, torch.nn.Conv2d)]


def _channels_last(module: torch.nn.Module) -> bool | None:
    import torch

    # a 1 x 1 convolution's weight is contiguous in either format
    weights = [weight for weight in _convolution_weights(module) if weight.dim() == 4]
    telling = [weight for weight in weights if not weight.is_contiguous()]
    if not weights:
        return None
    last = sum(weight.numel() for weight in telling if weight.is_contiguous(memory_format=torch.channels_last))
    either = sum(weight.numel() for weight in weights if weight.shape[2:].numel() == 1 or weight.shape[1] == 1)
    return 2 * last > sum(weight.numel() for weight in weights) - either and last > 0


def _norms(module: torch.nn.Module) -> dict[str, int] | None:
    names = Counter(type(part).__name__ for part in module.modules() if "Norm" in type(part).__name__)
    return dict(names) or None


def _dropout(module: torch.nn.Module) -> float | None:
    import torch.nn.modules.dropout as dropout

    found = [float(part.p) for part in module.modules() if isinstance(part, dropout._DropoutNd)]
    of_attention = getattr(_config_of(module), "attention_dropout", None)
    found += [float(of_attention)] if isinstance(of_attention, (int, float)) else []
    return max(found, default=None)


def _adapter(module: torch.nn.Module) -> str | None:
    for part in module.modules():
        configs = getattr(part, "peft_config", None)
        if isinstance(configs, dict) and configs:
            kind = next(iter(configs.values())).peft_type
            return str(getattr(kind, "value", kind))
    return None


# Compilation.


def _compilers(module: torch.nn.Module) -> list[Any]:
    """What remembers the options of each torch.compile around the module or a part of it."""
    found: list[Any] = []
    for part in module.modules():
        if type(part).__name__ == "OptimizedModule":
            found.append(part.dynamo_ctx)
        elif getattr(part, "_compiled_call_impl", None) is not None:
            found.append(part._compiled_call_impl)
    # Lightning unpacks a compiled LightningModule and keeps the context there
    unpacked = getattr(module, "_compiler_ctx", None)
    return found if unpacked is None else [*found, unpacked["dynamo_ctx"]]


def _compile_mode(module: torch.nn.Module) -> str | None:
    for compiler in _compilers(module):
        ask = getattr(compiler, "get_compiler_config", None)
        options = ask() if ask is not None else getattr(compiler, "compiler_config", None)
        if not options:
            continue
        if options.get("max_autotune"):
            return "max-autotune"
        return "reduce-overhead" if options.get("triton.cudagraphs") else "default"
    return None


def _compile_dynamic(module: torch.nn.Module) -> bool | None:
    return next((getattr(compiler, "_dynamic", None) for compiler in _compilers(module)), None)


_READERS: dict[str, Callable[[Any], Any]] = {
    "frozen_share": _frozen_share,
    "attn_implementation": _of_config("_attn_implementation"),
    "experts_implementation": _experts_implementation,
    "gradient_checkpointing": _gradient_checkpointing,
    "gradient_checkpointing_share": _checkpointing_share,
    "gradient_checkpointing_policy": _checkpointing_policy,
    "gradient_checkpointing_reentrant": _checkpointing_option("use_reentrant"),
    "has_checkpointing_switch": _has_checkpointing_switch,
    "use_cache": _of_config("use_cache"),
    "hidden_size": _of_config("hidden_size", "d_model", "n_embd"),
    "vocab_size": _vocab_size,
    "vocab_multiple": _vocab_multiple,
    "linear_multiple": _linear_multiple,
    "unaligned_linear_share": _unaligned_linear_share,
    "layers": _layers,
    "ties_embeddings": _ties_embeddings,
    "convolutions": lambda module: len(_convolution_weights(module)) or None,
    "channels_last": _channels_last,
    "norms": _norms,
    "dropout": _dropout,
    "is_compiled": lambda module: bool(_compilers(module)),
    "compile_mode": _compile_mode,
    "compile_dynamic": _compile_dynamic,
    "adapter": _adapter,
    "quantization": _quantization,
}
