"""The vocabulary of `run.json`'s open mappings: every setting that may be on record, its type and its meaning.

Whoever writes a record (a callback, an importer of foreign logs) uses these names; whoever reads one finds them here. A
setting that could not be read off is left out: absent means not known, never off.

docs/facts.md is made from it: `python -m effprof.runlog.settings > docs/facts.md`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One key of `run.json`'s `config`, `parallel`, `software` or `hardware`."""

    name: str
    type: str
    meaning: str


@dataclass(frozen=True)
class Group:
    """Settings that belong together: the mapping that holds them and when they are read."""

    mapping: str
    title: str
    settings: tuple[Setting, ...]


def _group(mapping: str, title: str, *rows: tuple[str, str, str]) -> Group:
    return Group(mapping, title, tuple(Setting(*row) for row in rows))


BOOL, INT, NUMBER, TEXT, TEXTS = "true or false", "integer", "number", "string", "list of string"

GROUPS = (
    _group(
        "config",
        "Input: the training DataLoader (of several, the first)",
        ("num_workers", INT, "worker processes; 0 loads in the training thread"),
        ("pin_memory", BOOL, "whether batches are copied into page-locked memory"),
        ("persistent_workers", BOOL, "whether workers live on from one epoch to the next"),
        ("prefetch_factor", INT, "batches that each worker prepares ahead; absent without workers"),
        ("micro_batch", INT, "samples per micro-batch and rank"),
        ("drop_last", BOOL, "whether a smaller last batch is dropped"),
        ("shuffle", BOOL, "whether the order of the samples is random, as far as the sampler's class tells"),
        ("sampler", TEXT, "class of the sampler, or of the batch sampler where it is not torch's own"),
        ("collate", TEXT, "name of the function or class that joins samples"),
        ("dataset", TEXT, "class of the dataset"),
        ("dataset_kind", TEXT, "`map` or `iterable`"),
        ("dataset_samples", INT, "length of a map-style dataset"),
        ("loader", TEXT, "class of the loader"),
        ("host_cpus", INT, "processors this process may run on"),
        ("input_shapes", INT, "distinct shapes of micro-batches seen by the end of the run, counted up to 1,024"),
    ),
    _group(
        "config",
        "Precision",
        ("precision", TEXT, "the Trainer's `precision`, such as `bf16-mixed`"),
        ("precision_plugin", TEXT, "class of Lightning's precision plugin"),
        ("parameter_dtypes", "object of number", "dtype: share of the parameters' elements, sums to 1"),
        ("autocast_dtype", TEXT, "dtype of matrix products under autocast at the first batch; `none` without autocast"),
        ("matmul_precision", TEXT, "torch.get_float32_matmul_precision(): `highest`, `high` or `medium`"),
        ("allow_tf32", BOOL, "whether fp32 matrix products may use tf32 (CUDA)"),
        ("cudnn_allow_tf32", BOOL, "whether fp32 convolutions may use tf32 (CUDA)"),
        ("cudnn_benchmark", BOOL, "whether cuDNN searches for the fastest convolution"),
        ("fp32_products_run_in", TEXT, "`tf32` or `fp32`: what fp32 matrix products run in on this device"),
        ("low_precision_units", TEXTS, "what multiplies in low precision here: see the list below the table"),
        ("grad_scale", NUMBER, "the fp16 gradient scaler's last scale that was seen"),
        (
            "skipped_steps_at_least",
            INT,
            "optimizer steps skipped for infinite gradients, as the falls of the scale tell",
        ),
        ("deterministic", BOOL, "torch.are_deterministic_algorithms_enabled()"),
        ("threads", INT, "torch.get_num_threads()"),
    ),
    _group(
        "config",
        "Optimizer (the first where there are several)",
        ("optimizers", TEXTS, "class of each optimizer"),
        ("optimizer_modules", TEXTS, "top-level package of each, such as `torch`, `bitsandbytes`, `torchao`"),
        ("optimizer_fused", BOOL, "`fused`; absent where the class has no such option"),
        ("optimizer_foreach", BOOL, "`foreach`; absent where unset, which lets torch choose"),
        ("optimizer_capturable", BOOL, "`capturable`"),
        ("optimizer_can_fuse", BOOL, "whether the class takes `fused=True`"),
        ("optimizer_bits", INT, "bits of a state element: 8 for quantised states, 32 for fp32; after the first step"),
        ("optimizer_paged", BOOL, "whether states can be paged out to the host (bitsandbytes)"),
        ("optimizer_state_dtypes", "object of number", "dtype: share of the states' elements; after the first step"),
        ("optimizer_groups", INT, "parameter groups"),
        ("optimizer_learning_rates", "list of number", "distinct learning rates of the groups at fit start"),
        ("weight_decay", NUMBER, "largest weight decay of a group"),
        ("momentum", NUMBER, "largest momentum of a group (SGD and the like)"),
    ),
    _group(
        "config",
        "Model",
        ("frozen_share", NUMBER, "share of the parameters' elements that need no gradient, 0 … 1"),
        ("attn_implementation", TEXT, "attention of a transformers model: `eager`, `sdpa`, `flash_attention_2`, …"),
        (
            "experts_implementation",
            TEXT,
            "expert products of a transformers model: `eager`, `batched_mm`, `grouped_mm`",
        ),
        ("gradient_checkpointing", BOOL, "whether any layer is recomputed, as far as modules tell"),
        ("gradient_checkpointing_share", NUMBER, "recomputed layers ÷ layers that could be, 0 … 1"),
        ("gradient_checkpointing_policy", TEXT, "`full`, or `selective` where a context function picks what is kept"),
        ("gradient_checkpointing_reentrant", BOOL, "`use_reentrant` of the checkpoint function"),
        ("has_checkpointing_switch", BOOL, "whether the model has transformers' switch for recompute"),
        ("use_cache", BOOL, "`config.use_cache`: keys and values are kept in training too"),
        ("hidden_size", INT, "width, from the config"),
        ("vocab_size", INT, "rows of the input embedding"),
        ("vocab_multiple", INT, "largest power of two that divides `vocab_size`, at most 256"),
        ("linear_multiple", INT, "largest power of two that divides both sides of every Linear's weight, at most 256"),
        ("unaligned_linear_share", NUMBER, "share of the Linears' elements with a side that 8 does not divide, 0 … 1"),
        ("layers", INT, "repeated blocks: children of one class in the largest list of modules"),
        ("ties_embeddings", BOOL, "whether input and output embedding share storage"),
        ("convolutions", INT, "Conv2d modules; absent without any"),
        ("channels_last", BOOL, "whether most elements of Conv2d weights are stored channels last"),
        ("norms", "object of integer", "class of normalisation: modules"),
        ("dropout", NUMBER, "largest probability of a Dropout module or of the config's `attention_dropout`"),
        ("is_compiled", BOOL, "whether torch.compile wraps the model or a part of it"),
        ("compile_mode", TEXT, "`default`, `reduce-overhead` (CUDA graphs) or `max-autotune`"),
        ("compile_dynamic", BOOL, "`dynamic` of torch.compile; absent where left to it"),
        ("sdpa_backends", TEXTS, "backends that scaled_dot_product_attention may use: flash, efficient, cudnn, math"),
        ("adapter", TEXT, "PEFT's type, such as `LORA`"),
        ("quantization", TEXT, "method of `config.quantization_config`"),
    ),
    _group(
        "config",
        "Trainer",
        ("accelerator", TEXT, "class of the accelerator"),
        ("strategy", TEXT, "class of the strategy; its own settings are in `parallel`"),
        ("accumulate", INT, "micro-batches per optimizer step"),
        ("gradient_clip_val", NUMBER, "gradient clipping; absent without"),
        ("gradient_clip_algorithm", TEXT, "`norm` or `value`; absent where left to Lightning (`norm`)"),
        ("automatic_optimization", BOOL, "False: the module steps its optimizers itself"),
        ("max_steps", INT, "−1 without a limit"),
        ("max_epochs", INT, "−1 without a limit"),
        ("train_batches", INT, "micro-batches per epoch and rank; absent where not known"),
        ("val_batches", INT, "validation micro-batches per pass and rank; 0 without validation"),
        ("val_check_interval", NUMBER, "training micro-batches between validations (integer) or share of an epoch"),
        ("check_val_every_n_epoch", INT, "epochs between validations; absent where counted in batches over epochs"),
        ("limit_train_batches", NUMBER, "batches, or share of an epoch"),
        ("limit_val_batches", NUMBER, "batches, or share of the validation set"),
        ("num_sanity_val_steps", INT, "validation batches before training"),
        ("log_every_n_steps", INT, "optimizer steps between loggings"),
        ("loggers", TEXTS, "class of each logger"),
        ("callbacks", TEXTS, "class of each callback, effprof's own left out"),
        ("checkpoints", "list of object", "each ModelCheckpoint: see the list below the table"),
        ("async_checkpoint", BOOL, "whether checkpoints are written by another thread or process"),
        ("checkpoint_io", TEXT, "class of the strategy's checkpoint plugin"),
        ("progress_bar", TEXT, "class of the progress bar; `none` without one"),
        ("progress_bar_refresh", INT, "batches between two of its updates"),
        ("detect_anomaly", BOOL, "autograd's anomaly detection"),
        ("profiler", TEXT, "class of the Trainer's profiler; `none` without one"),
        ("sync_batchnorm", BOOL, "whether batch norms are synchronised over ranks"),
        ("use_distributed_sampler", BOOL, "whether Lightning shards the sampler"),
        ("reload_dataloaders_every_n_epochs", INT, "0: loaders are made once"),
        ("barebones", BOOL, "the Trainer's barebones mode"),
        ("trial", "object", "what a trial changed and could not change; absent in a training of one's own"),
    ),
    _group(
        "config",
        "Seen while training, written as the run ends",
        ("compile_is_measured", BOOL, "whether every compilation was seen, so that `compile` of 0 s means none"),
        ("compilations", INT, "compilations of torch.compile in this process, recompilations included"),
        ("compilations_late", INT, "of these, after the second optimizer step: recompilations"),
        ("compile_last_step", INT, "steps finished before the last compilation began"),
        ("graph_breaks", INT, "graph breaks that the compiler counted"),
        ("gc_s", NUMBER, "seconds that Python's garbage collector stopped this process while it took steps"),
        ("gc_share", NUMBER, "`gc_s` ÷ time from the first step's start to the last one's end, 0 … 1"),
        ("gc_collections", INT, "collections in that time"),
        ("gc_full_collections", INT, "of these, of the oldest generation"),
        ("gc_longest_s", NUMBER, "the longest of them"),
        ("losses_recorded", INT, "steps whose loss was read"),
        ("losses_not_finite", INT, "of these, infinite or not a number"),
    ),
    _group(
        "parallel",
        "Layout",
        ("world_size", INT, "processes, one device each"),
        ("data_parallel_size", INT, "ranks that see different batches"),
        ("nodes", INT, "machines"),
        ("devices_per_node", INT, "processes per machine"),
        ("strategy", TEXT, "class of Lightning's strategy"),
        ("kind", TEXT, "`single`, `ddp`, `fsdp`, `fsdp2`, `deepspeed`; absent for others"),
        ("tensor", INT, "ranks that share a layer"),
        ("pipeline", INT, "stages"),
        ("context", INT, "ranks that share a sequence"),
        ("expert", INT, "ranks that share the experts"),
        ("replicas", INT, "copies of the sharded model in hybrid sharding"),
        ("mesh", "object of integer", "dimension of the device mesh: size"),
        ("backend", TEXT, "process group's backend, such as `nccl`"),
        ("find_unused_parameters", BOOL, "of DistributedDataParallel"),
        ("static_graph", BOOL, "of DistributedDataParallel"),
        ("gradient_as_bucket_view", BOOL, "of DistributedDataParallel"),
        ("bucket_cap_mb", NUMBER, "of DistributedDataParallel, MiB"),
        ("broadcast_buffers", BOOL, "of DistributedDataParallel"),
        ("comm_hook", TEXT, "DistributedDataParallel's communication hook; `none` without one"),
        ("sharding", TEXT, "`FULL_SHARD`, `SHARD_GRAD_OP`, `HYBRID_SHARD`, `NO_SHARD`, …"),
        ("reshard_after_forward", BOOL, "whether parameters are freed between forward and backward (most units)"),
        ("units", INT, "wrapped modules, each gathered at once"),
        ("cpu_offload", BOOL, "whether parameters or states live on the host"),
        ("forward_prefetch", BOOL, "FSDP1's `forward_prefetch`"),
        ("backward_prefetch", TEXT, "FSDP1's `backward_prefetch`; `none` without"),
        ("limit_all_gathers", BOOL, "FSDP1's `limit_all_gathers`"),
        ("reduce_dtype", TEXT, "dtype in which gradients are reduced, where set"),
        ("parameter_dtype", TEXT, "dtype in which parameters are gathered, where set"),
        ("zero_stage", INT, "DeepSpeed's ZeRO stage"),
        ("offload_optimizer", TEXT, "DeepSpeed: `cpu`, `nvme` or `none`"),
        ("offload_parameters", TEXT, "DeepSpeed: `cpu`, `nvme` or `none`"),
        ("overlap_comm", BOOL, "DeepSpeed's `overlap_comm`"),
    ),
    _group(
        "software",
        "Versions and environment",
        ("python", TEXT, "version; every other package under its own name: `torch`, `transformers`, …"),
        ("os", TEXT, "system and kernel"),
        ("cuda", TEXT, "CUDA version torch was built with"),
        ("hip", TEXT, "ROCm version torch was built with"),
        ("cudnn", INT, "cuDNN's version number"),
        ("nccl", TEXT, "NCCL's version"),
        ("environment", "object of string", "variables that change speed or memory, those that are set: see below"),
    ),
    _group(
        "hardware",
        "This rank's device",
        ("name", TEXT, "as its driver names it"),
        ("vendor", TEXT, ""),
        ("type", TEXT, "torch's name: `cuda`, `cpu`, `xpu`, …"),
        ("peak", "object", "`flops_per_s`, `dtype`, `source`, `kind`, `parts` by dtype; `is_cached` of a ceiling"),
        ("ceilings", "object of number", "dtype: FLOP/s of the best matrix product measured on this device so far"),
    ),
)

# Variables worth a record: the allocator's, the launch queue's, threads', NCCL's and the compiler's.
ENVIRONMENT = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "PYTORCH_ENABLE_MPS_FALLBACK",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_PROC_BIND",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "LD_PRELOAD",
    "MALLOC_CONF",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "TOKENIZERS_PARALLELISM",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCHINDUCTOR_FX_GRAPH_CACHE",
    "TORCH_COMPILE_DISABLE",
    "TORCH_DISTRIBUTED_DEBUG",
    "TORCH_NCCL_AVOID_RECORD_STREAMS",
    "TORCH_NCCL_BLOCKING_WAIT",
    "NCCL_ALGO",
    "NCCL_BUFFSIZE",
    "NCCL_CROSS_NIC",
    "NCCL_CUMEM_ENABLE",
    "NCCL_DEBUG",
    "NCCL_IB_DISABLE",
    "NCCL_IB_HCA",
    "NCCL_MAX_NCHANNELS",
    "NCCL_MIN_NCHANNELS",
    "NCCL_NET_GDR_LEVEL",
    "NCCL_NVLS_ENABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_P2P_LEVEL",
    "NCCL_PROTO",
    "NCCL_SHM_DISABLE",
    "NCCL_SOCKET_IFNAME",
    "FI_PROVIDER",
)

NOTES = """- **`low_precision_units`**, on a CPU the instruction sets `amx_bf16`, `amx_int8`, `amx_fp16`, `avx512_bf16`,
  `avx512_fp16`, `avx512_vnni`, `bf16`, `i8mm`, `sve` that its flags name; on an accelerator the dtypes `fp16`, `bf16`,
  `tf32`, `fp8`, `fp4` that its compute capability (CUDA) or architecture (ROCm) multiplies in matrix units.
- **`checkpoints[]`**: `class`, `every_n_train_steps`, `every_n_epochs`, `interval_s`, `save_top_k`, `save_last`,
  `save_weights_only`, `monitor`, each where set.
- **`environment`**: {environment}."""

_INTRO = """# What run.json holds of a run's settings

Made by `python -m effprof.runlog.settings`; a test compares the two. Rank 0 writes them: settings as the training
begins, what needs a batch or a first step a little later, what was seen while training as it ends. Each is read on its
own: **one that is absent could not be read off, and never means "off" or 0.** An analysis carries `config`,
`parallel` and `software` on unchanged as `run.config`, `run.parallel`, `run.software`. Other keys may be there too;
unknown ones are passed over.

Per step, beside the phases and counters of [schema.md](schema.md), the log carries `loss` (the loss that the optimizer
saw, null where it was not finite) and `gc_ns` (nanoseconds that Python's garbage collector stopped the process in the
step)."""


def render() -> str:
    """The text of docs/facts.md."""
    parts = [_INTRO]
    for group in GROUPS:
        rows = [f"| `{each.name}` | {each.type} | {each.meaning} |" for each in group.settings]
        parts.append(
            "\n".join([f"## `{group.mapping}`: {group.title}", "", "| key | type | meaning |", "|---|---|---|", *rows])
        )
    parts.append(NOTES.format(environment=", ".join(f"`{name}`" for name in ENVIRONMENT)))
    return "\n\n".join(parts) + "\n"


def names(mapping: str) -> set[str]:
    """The keys of one of `run.json`'s mappings."""
    return {each.name for group in GROUPS if group.mapping == mapping for each in group.settings}


if __name__ == "__main__":
    sys.stdout.write(render())
