"""What a kernel's name says: its family, the collective it carries out, and whether it uses matrix units.

Names are facts of the libraries (CUDA, ROCm, XPU, Ascend); the order of the rules matters, the first match wins.
"""

from __future__ import annotations

import re
from functools import lru_cache

COMMUNICATION = "communication"

# Prefixes of communication kernels per vendor; two vendors call their library MCCL.
_COMMUNICATION = re.compile(
    r"(?<![a-z0-9])(?:nccl|rccl|mscclpp|msccl|mccl|oneccl|hccl|hcom_|xccl|bkcl|cncl|eccl|ncclx|deep_?ep\b|deepep|"
    r"nvshmem|ishmem|rocshmem|cross_device_reduce|multimem_|(?:one|two)_shot_all_?reduce|quickreduce|quick_reduce)"
)

# Collective → what it is called in Kineto's metadata, host annotations and kernel names, letters only.
_COLLECTIVES = (
    ("all_to_all", ("alltoall",)),
    ("reduce_scatter", ("reducescatter",)),
    ("all_gather", ("allgather",)),
    ("all_reduce", ("allreduce", "crossdevicereduce", "quickreduce")),
    ("barrier", ("barrier",)),
    ("broadcast", ("broadcast", "bcast")),
    ("send_recv", ("sendrecv", "batchsendrecv", "coalesced", "send", "recv", "receive", "isend", "irecv", "p2p")),
    ("all_to_all", ("dispatch", "combine")),  # DeepEP's names for its two halves of an all-to-all
    ("scatter", ("scatter",)),
    ("gather", ("gather",)),
    ("reduce", ("reduce",)),
)

_ATTENTION = (
    r"flash|fmha|attention|attn|sdpa|fused_?mha|mha_(?:fwd|bwd)|cudnn_generated_fort_native_sdpa|flex_?attention|"
    r"softmax_warp_(?:forward|backward).*masked|pagedattention|mla_(?:fwd|bwd|decode)|ck_fused_attn"
)
_GROUPED = (
    r"grouped|group_?gemm|groupproblemshape|moeproblemshape|gemm_?group|moe_gemm|fused_moe|ptr_?array|"
    r"pointer_?array|batched_expert"
)
_NORMALISATION = (
    r"layer_?norm|rms_?norm|batch_?norm|group_?norm|instance_?norm|rowwise_?moments|gammabeta|"
    r"bn_(?:fw|bw)|(?:^|::|_)bn_|cudnn.*norm|norm_(?:fwd|bwd)|compute_(?:internal_)?gradients|cuComputePartGrad"
)
_CONVOLUTION = (
    r"conv|fprop|dgrad|wgrad|scudnn|winograd|implicit_gemm|fft2d|cudnn.*(?:nchw|nhwc)|nchw_?to_?nhwc|"
    r"nhwc_?to_?nchw|igemm|miopen(?!.*norm)|gcgemm|computeoffsetskernel"
)
_EMBEDDING = r"embedding|embs?_kernel|lookup_(?:fwd|bwd)|emb_|bounds_check_indices|rowwise_adagrad|permute_pooled"
_OPTIMIZER = (
    r"multi_tensor_apply|multi_tensor|fused_?adam|adam|lamb_|sgd_|adagrad|rmsprop|muon|apply_?optimizer|"
    r"foreach_|clip_?grad|applymomentum"
)
_GEMM = (
    r"gemm|gemv|nvjet|cijk_|matmul|(?<![a-z])mm_|_mm_|(?<![a-z])bmm|cublas|splitk|xmma_gemm|wgmma|dot_kernel|"
    r"epilogue::impl|ck::.*gemm|rocblas|hipblas|mma_kernel|marlin|cutlass.*kernel|scal_kernel"
)
_REDUCTION = r"reduce|reduction|softmax|argmax|argmin|cross_?entropy|nll_loss|norm_two|logsumexp|mean_|sum_|_red_"
_MEMORY = (
    r"copy|cat_?array|transpose|permute|gather|scatter|index|sort|scan|topk|select|nonzero|unique|histogram|roll|"
    r"concat|slice|pad|fill|arange|upsample|pool|radix|tensor_?move|cast|memset|memcpy|im2col|col2im|flip|where"
)
_ELEMENTWISE = (
    r"elementwise|triton_poi|(?:^|_)(?:add|mul|sub|div|relu|gelu|silu|sigmoid|tanh|exp|log|neg|dropout|clamp|pow|"
    r"sqrt|swiglu)(?:_|$|d$)|dropout|activation|distribution_|unary|binary|swiglu|gelu|silu|rotary|rope"
)

# Elementwise before reduction and memory: torch's elementwise kernels carry the functor's name, such as copy.
_RULES = tuple(
    (family, re.compile(pattern))
    for family, pattern in (
        ("embedding", _EMBEDDING),
        ("attention", _ATTENTION),
        ("optimizer", _OPTIMIZER),
        ("elementwise", r"at::native::(?:\(anonymous namespace\)::)?(?:vectorized_|unrolled_)?elementwise_kernel"),
        ("normalisation", _NORMALISATION),
        ("convolution", _CONVOLUTION),
        ("grouped_gemm", rf"(?:{_GROUPED}).*(?:gemm|cutlass|matmul|mm)|(?:gemm|cutlass|matmul).*(?:{_GROUPED})"),
        ("grouped_gemm", r"grouped_?mm|fused_moe|moe_gemm"),
        ("gemm", _GEMM),
        ("reduction", r"at::native::.*reduce_kernel|triton_(?:red|per)_"),
        ("memory", r"catarray|scatter_gather|index_elementwise|devicescan|radixsort|transpose"),
        ("elementwise", r"elementwise"),
        ("reduction", _REDUCTION),
        ("memory", _MEMORY),
        ("elementwise", _ELEMENTWISE),
    )
)

_MATRIX_UNITS = re.compile(
    r"tensorop|s16816|s1688|s884|h16816|h1688|h884|i16832|hmma|imma|wgmma|tcgen05|xmma|nvjet|tensor16x8|tf32|"
    r"flash_?(?:fwd|bwd)|flash::|fmha|mfma|_mi\d+x\d+|wmma|xmx|dpas|sm(?:90|100|103|120)_|gmma|bf16gemm|cube|"
    r"cudnn_generated_fort_native_sdpa|matmulv[23]|device_kernel.*sm(?:90|100)"
)
_SCALAR_UNITS = re.compile(
    r"simt|gemv|(?:volta|ampere|maxwell|turing|pascal|hopper)_[sdc]c?gemm|scudnn|sgemm|dgemm|dot_kernel"
)
MATRIX_FAMILIES = ("gemm", "grouped_gemm", "attention", "convolution")


@lru_cache(maxsize=16384)
def kernel_family(name: str) -> str:
    """The family of a kernel by its name: `communication`, `gemm`, …, or `other`."""
    lower = name.lower()
    if _COMMUNICATION.search(lower):
        return COMMUNICATION
    for family, pattern in _RULES:
        if pattern.search(lower):
            return family
    return "other"


@lru_cache(maxsize=4096)
def collective_kind(name: str) -> str | None:
    """`all_reduce`, `all_gather`, `reduce_scatter`, `all_to_all`, `send_recv`, …; None where the name tells none."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    for kind, spellings in _COLLECTIVES:
        if any(spelling in letters for spelling in spellings):
            return kind
    return None


@lru_cache(maxsize=16384)
def uses_matrix_units(name: str) -> bool | None:
    """Whether a kernel's name says that it runs on tensor cores (or MFMA, XMX, cube); None where it does not tell."""
    lower = name.lower()
    # the scalar kinds first: cutlass_80_simt_sgemm holds "80", sgemm with TF32 is called s1688 or xmma
    if _MATRIX_UNITS.search(lower) and not re.search(r"simt", lower):
        return True
    return False if _SCALAR_UNITS.search(lower) else None
