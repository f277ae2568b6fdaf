"""Rules on how the model is spread over devices: replicas, shards, tensor, sequence and context parallelism."""

from __future__ import annotations

from effprof.advise.facts import (
    kernels,
    memory_bytes,
    needs_accelerator,
    parallel_size,
    peak_memory_share,
)
from effprof.advise.gains import gain_from_removed_share, no_gain
from effprof.advise.layout import (
    SHARDED,
    communication_share,
    devices_per_node,
    exposed_communication,
    gathered_bytes,
    layout,
    needs_devices,
    needs_kind,
    node_count,
)
from effprof.advise.rule import Match, Missing, NotApplicable, Threshold, rule
from effprof.analysis.model import Analysis

# What a device may be filled to before a change of layout risks running out of memory.
FULL = 0.9

DEVICES_OF_A_PROCESS = Threshold(
    "kernel_account.devices",
    1.0,
    "devices of one process",
    "DistributedDataParallel gives each process one device; several are DataParallel's mark",
)
COPIES_AND_GAPS = Threshold(
    "kernel_account: exposed communication, copies and idle ÷ window",
    0.10,
    "share of the kernel window",
    "below it the scattering of one process costs less than a run varies by",
)
GATHER_EXPOSED = Threshold(
    "kernel_account.communication.all_gather.exposed_s ÷ window_s",
    0.05,
    "share of the kernel window",
    "half of the gathers go away: below it that is within 2 % of the step",
)
SHARDING_EXPOSED = Threshold(
    "kernel_account: exposed all-gather and reduce-scatter ÷ window",
    0.10,
    "share of the kernel window",
    "inside one node published hybrid sharding brings 0.4 %: the slow links have to show first",
)
MEMORY_FULL = Threshold(
    "memory.peak ÷ device memory", FULL, "share", "above it a slightly longer batch or fragmentation ends the run"
)
STATES_SHARE = Threshold(
    "memory.optimizer_bytes ÷ peak",
    0.4,
    "share of the peak",
    "Adam's two fp32 states and master weights are the largest part that every replica holds alike",
)
MEMORY_HALF_EMPTY = Threshold(
    "memory.peak ÷ device memory",
    0.45,
    "share",
    "half as many tensor-parallel ranks hold at most twice as much each: 0.9 then",
    relation="<",
)
TENSOR_EXPOSED = Threshold(
    "kernel_account: exposed communication ÷ window",
    0.05,
    "share of the kernel window",
    "published overlap of tensor-parallel collectives brings 3 to 8 %: below this nothing is left to bring",
)
TENSOR_OUTSIDE = Threshold(
    "run.parallel.tensor ÷ devices per node",
    1.0,
    "ratio",
    "above it collectives of every layer cross the node's network, which is 5 to 20 times slower than its links",
)


@rule(
    "par-ddp-over-dp",
    area="parallelism",
    title="one process drives several devices",
    symptom="nn.DataParallel scatters the batch, replicates the model and gathers outputs in every step",
    thresholds=[DEVICES_OF_A_PROCESS, COPIES_AND_GAPS],
    lever="one process per device: DistributedDataParallel",
    frameworks={
        "lightning": 'Trainer(strategy="ddp", devices=N)',
        "pytorch": "torchrun --nproc_per_node=N; DistributedDataParallel(model, device_ids=[local_rank])",
        "huggingface": "torchrun --nproc_per_node=N train.py",
    },
    gain_basis="bound: copies, communication and idle devices of the window; replication and the one interpreter are "
    "most of them (40 to 90 %), gradients still have to be reduced",
    risk="the effective batch stays per process: divide the batch size by the number of devices",
    risk_level="low",
    sources=[
        "https://pytorch.org/docs/stable/generated/torch.nn.DataParallel.html",
        "https://github.com/pytorch/kineto/pull/1284",
    ],
    system="general",
)
def data_parallel_in_one_process(run: Analysis) -> Match | None:
    """A rank with kernels on several devices that are not busy."""
    needs_accelerator(run)
    accounts = kernels(run)
    widest = max(accounts, key=lambda account: account.devices)
    lost = 1 - widest.compute_s / widest.window_s if widest.window_s > 0 else 0.0
    if not DEVICES_OF_A_PROCESS.is_crossed(widest.devices) or not COPIES_AND_GAPS.is_crossed(lost):
        return None
    launch = f"torchrun --nproc_per_node={widest.devices}"
    return Match(
        evidence=[DEVICES_OF_A_PROCESS.saw(widest.devices), COPIES_AND_GAPS.saw(lost)],
        gain=gain_from_removed_share(lost, (0.4, 0.65, 0.9)),
        knobs={
            "lightning": f'Trainer(strategy="ddp", devices={widest.devices})',
            "pytorch": f"{launch} train.py  # with DistributedDataParallel(model, device_ids=[local_rank])",
            "huggingface": f"{launch} train.py",
        },
    )


@rule(
    "par-fsdp-stage-down",
    area="parallelism",
    title="parameters are gathered twice although they would fit",
    symptom="full sharding frees the parameters after the forward pass and gathers them again for the backward pass",
    thresholds=[GATHER_EXPOSED, MEMORY_FULL],
    lever="keep gathered parameters until the backward pass (ZeRO stage 2)",
    frameworks={
        "lightning": 'FSDPStrategy(sharding_strategy="SHARD_GRAD_OP") or DeepSpeedStrategy(stage=2)',
        "pytorch": "fully_shard(module, reshard_after_forward=False)",
        "deepspeed": '"zero_optimization": {"stage": 2}',
        "torchtitan": "parallelism.fsdp_reshard_after_forward = never",
    },
    gain_basis="bound: the exposed all-gathers; half of the gathered bytes go away, and the exposed ones may be the "
    "forward pass's or the backward pass's: 25 to 75 % of the exposed time",
    risk="memory grows by the gathered parameters; out of memory where a batch is longer than those seen",
    risk_level="medium",
    sources=["https://arxiv.org/abs/1910.02054", "https://github.com/pytorch/torchtitan/pull/822"],
    change="zero_stage",
    system="angel",
)
def gathers_twice(run: Analysis) -> Match | None:
    """Fully sharded, exposed all-gathers, and room for all parameters."""
    needs_devices(run)
    kind = needs_kind(run, *SHARDED)
    if not (layout(run, "zero_stage") == 3 if kind == "deepspeed" else layout(run, "reshard_after_forward")):
        raise NotApplicable
    exposed = communication_share(run, "all_gather")
    if not GATHER_EXPOSED.is_crossed(exposed):
        return None
    more = round(gathered_bytes(run) * (1 - 1 / run.run.world_size))
    after = peak_memory_share(run) + more / memory_bytes(run)
    if MEMORY_FULL.is_crossed(after):
        return None
    knobs = {
        "fsdp": {
            "lightning": 'Trainer(strategy=FSDPStrategy(sharding_strategy="SHARD_GRAD_OP"))',
            "pytorch": "FullyShardedDataParallel(module, sharding_strategy=ShardingStrategy.SHARD_GRAD_OP)",
        },
        "fsdp2": {
            "pytorch": "fully_shard(module, reshard_after_forward=False)",
            "torchtitan": 'parallelism.fsdp_reshard_after_forward = "never"',
        },
        "deepspeed": {
            "lightning": "Trainer(strategy=DeepSpeedStrategy(stage=2))",
            "deepspeed": '"zero_optimization": {"stage": 2}',
        },
    }
    return Match(
        evidence=[GATHER_EXPOSED.saw(exposed), MEMORY_FULL.saw(after)],
        gain=gain_from_removed_share(exposed, (0.25, 0.5, 0.75)),
        knobs=knobs[kind],
        memory_effect_bytes=more,
    )


@rule(
    "par-shard-states",
    area="parallelism",
    title="every replica holds the whole optimizer state and memory is full",
    symptom="replicated optimizer states leave no room for the batch",
    thresholds=[MEMORY_FULL, STATES_SHARE],
    lever="shard optimizer states over the data-parallel ranks (ZeRO stage 1 to 3)",
    frameworks={
        "lightning": 'Trainer(strategy="fsdp")',
        "pytorch": "fully_shard(module) or ZeroRedundancyOptimizer(params, optimizer_class=...)",
        "deepspeed": '"zero_optimization": {"stage": 1}',
        "megatron": "--use-distributed-optimizer",
    },
    gain_basis="no throughput by itself: memory of (1 − 1/ranks) of the states, which a larger micro-batch or less "
    "recompute turns into speed",
    risk="checkpoints change their layout; collectives of parameters are added",
    risk_level="medium",
    sources=["https://arxiv.org/abs/1910.02054"],
    change="zero_stage",
    system="angel",
)
def replicated_states(run: Analysis) -> Match | None:
    """DDP with a full device, mostly of optimizer states."""
    needs_devices(run)
    needs_kind(run, "ddp")
    filled = peak_memory_share(run)
    if not MEMORY_FULL.is_crossed(filled):
        return None
    states, peak = run.memory.optimizer_bytes, run.memory.peak_allocated_bytes
    if not states or not peak:
        raise Missing("the optimizer states' bytes", "train with EfficiencyCallback past the first step")
    if not STATES_SHARE.is_crossed(states / peak):
        return None
    return Match(
        evidence=[MEMORY_FULL.saw(filled), STATES_SHARE.saw(states / peak)],
        gain=no_gain(),
        knobs={
            "lightning": 'Trainer(strategy=FSDPStrategy(sharding_strategy="SHARD_GRAD_OP"))',
            "pytorch": "fully_shard(module, reshard_after_forward=False)",
            "deepspeed": '"zero_optimization": {"stage": 1}',
            "megatron": "--use-distributed-optimizer",
        },
        memory_effect_bytes=-round(states * (1 - 1 / run.run.world_size)),
    )


@rule(
    "par-hsdp",
    area="parallelism",
    title="parameters are gathered over the nodes' network",
    symptom="full sharding over several nodes: every gather and reduction crosses the slow links",
    thresholds=[SHARDING_EXPOSED, MEMORY_FULL],
    lever="hybrid sharding: shard inside a node, replicate across nodes",
    frameworks={
        "lightning": 'FSDPStrategy(sharding_strategy="HYBRID_SHARD", device_mesh=(nodes, devices_per_node))',
        "pytorch": "fully_shard(module, mesh=init_device_mesh(..., mesh_dim_names=('replicate', 'shard')))",
        "deepspeed": '"zero_optimization": {"stage": 3, "zero_hpz_partition_size": devices_per_node}',
        "megatron": "--num-distributed-optimizer-instances NODES",
        "torchtitan": "parallelism.data_parallel_replicate_degree = nodes",
    },
    gain_basis="bound: exposed gathers and scatters. Of three passes of the parameters over the network two remain "
    "(a third goes away) and the ring shortens to the nodes, so that latency goes too: 20 to 85 %",
    risk="each node holds a whole copy of the states",
    risk_level="medium",
    sources=[
        "https://arxiv.org/abs/2205.00119",
        "https://github.com/InternLM/InternEvo/blob/develop/doc/en/train_performance.md",
    ],
    change="hsdp",
    system="baige",
)
def shards_across_nodes(run: Analysis) -> Match | None:
    """Full shards over several nodes, exposed, and room for a node's own copy."""
    needs_devices(run)
    kind = needs_kind(run, *SHARDED)
    machines, inside = node_count(run), devices_per_node(run)
    if machines < 2 or inside < 2 or (kind != "deepspeed" and str(layout(run, "sharding")).startswith("HYBRID")):
        raise NotApplicable
    exposed = communication_share(run, "all_gather", "reduce_scatter")
    if not SHARDING_EXPOSED.is_crossed(exposed):
        return None
    shards = [run.memory.parameters_bytes, run.memory.gradients_bytes, run.memory.optimizer_bytes]
    if any(size is None for size in shards):
        raise Missing("the bytes of parameters, gradients and optimizer state", "train past the first step")
    more = round(sum(size or 0 for size in shards) * (machines - 1))
    after = peak_memory_share(run) + more / memory_bytes(run)
    if MEMORY_FULL.is_crossed(after):
        return None
    strategy = f'FSDPStrategy(sharding_strategy="HYBRID_SHARD", device_mesh=({machines}, {inside}))'
    mesh = f'init_device_mesh("cuda", ({machines}, {inside}), mesh_dim_names=("replicate", "shard"))'
    return Match(
        evidence=[SHARDING_EXPOSED.saw(exposed), MEMORY_FULL.saw(after)],
        gain=gain_from_removed_share(exposed, (0.2, 0.45, 0.85)),
        knobs={
            "lightning": f"Trainer(strategy={strategy})",
            "pytorch": f"fully_shard(module, mesh={mesh})",
            "deepspeed": f'"zero_optimization": {{"stage": 3, "zero_hpz_partition_size": {inside}}}',
            "megatron": f"--num-distributed-optimizer-instances {machines}",
            "torchtitan": f"parallelism.data_parallel_replicate_degree = {machines}",
        },
        memory_effect_bytes=more,
    )


@rule(
    "par-less-tensor",
    area="parallelism",
    title="more tensor parallelism than memory asks for",
    symptom="layers are split although half as many devices would hold them",
    thresholds=[MEMORY_HALF_EMPTY, TENSOR_EXPOSED],
    lever="halve tensor parallelism and double data parallelism, with sharded states",
    frameworks={
        "lightning": "ModelParallelStrategy(tensor_parallel_size=T / 2, data_parallel_size=D * 2)",
        "megatron": "--tensor-model-parallel-size T/2 --use-distributed-optimizer",
        "torchtitan": "parallelism.tensor_parallel_degree = T / 2",
    },
    gain_basis="bound: exposed communication. Per device its volume is proportional to T − 1, so that 1 − (T/2 − 1)/"
    "(T − 1) of it goes; 30 to 90 % of that, as part of it is data parallelism's, which grows",
    risk="memory per device up to doubles; the global batch doubles unless the micro-batch is halved",
    risk_level="medium",
    sources=[
        "https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/transformer/moe/README.md",
        "https://github.com/InternLM/InternEvo/blob/develop/doc/en/train_performance.md",
    ],
    change="tp",
    system="baige",
)
def more_tensor_parallel_than_needed(run: Analysis) -> Match | None:
    """Tensor parallel, at most half full, and communication shows."""
    needs_devices(run)
    size = parallel_size(run, "tensor")
    if size < 2 or size % 2:
        raise NotApplicable
    filled, exposed = peak_memory_share(run), exposed_communication(run)
    if not MEMORY_HALF_EMPTY.is_crossed(filled) or not TENSOR_EXPOSED.is_crossed(exposed):
        return None
    less, data = size // 2, run.run.world_size // (size // 2)
    gone = 1 - (less - 1) / (size - 1)
    return Match(
        evidence=[MEMORY_HALF_EMPTY.saw(filled), TENSOR_EXPOSED.saw(exposed)],
        gain=gain_from_removed_share(exposed, (0.3 * gone, 0.6 * gone, 0.9 * gone)),
        knobs={
            "lightning": "Trainer(strategy=ModelParallelStrategy("
            f"tensor_parallel_size={less}, data_parallel_size={data}))",
            "megatron": f"--tensor-model-parallel-size {less} --use-distributed-optimizer",
            "torchtitan": f"parallelism.tensor_parallel_degree = {less}",
        },
        memory_effect_bytes=round(filled * memory_bytes(run)),
    )


@rule(
    "par-tp-in-node",
    area="parallelism",
    title="tensor parallelism crosses nodes",
    symptom="collectives of every layer run over the network between nodes",
    thresholds=[TENSOR_OUTSIDE, TENSOR_EXPOSED],
    lever="keep tensor parallelism inside a node; split the rest by pipeline or by shards",
    frameworks={
        "lightning": "ModelParallelStrategy(tensor_parallel_size=devices_per_node)",
        "megatron": "--tensor-model-parallel-size DEVICES_PER_NODE --pipeline-model-parallel-size P",
        "torchtitan": "parallelism.tensor_parallel_degree = devices_per_node",
    },
    gain_basis="bound: exposed communication; the same bytes over links that are several times faster, while pipeline "
    "or shards add their own traffic: 40 to 85 % of it",
    risk="checkpoints have to be resharded; a pipeline brings its bubble",
    risk_level="medium",
    sources=[
        "https://arxiv.org/abs/2104.04473",
        "https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/transformer/moe/README.md",
    ],
    system="baige",
)
def tensor_parallel_across_nodes(run: Analysis) -> Match | None:
    """A tensor-parallel group larger than a node."""
    needs_devices(run)
    size, inside = parallel_size(run, "tensor"), devices_per_node(run)
    if size < 2:
        raise NotApplicable
    if not TENSOR_OUTSIDE.is_crossed(size / inside):
        return None
    exposed = exposed_communication(run)
    if not TENSOR_EXPOSED.is_crossed(exposed):
        return None
    return Match(
        evidence=[TENSOR_OUTSIDE.saw(size / inside), TENSOR_EXPOSED.saw(exposed)],
        gain=gain_from_removed_share(exposed, (0.4, 0.65, 0.85)),
        knobs={
            "lightning": f"Trainer(strategy=ModelParallelStrategy(tensor_parallel_size={inside}))",
            "megatron": f"--tensor-model-parallel-size {inside} --pipeline-model-parallel-size {-(-size // inside)}",
            "torchtitan": f"parallelism.tensor_parallel_degree = {inside}",
        },
    )
