"""The operation count against figures derived by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from effprof.workload.operations import CountFailed, count_operations, count_training_step

torch.set_num_threads(1)
B, T, H, D = 2, 16, 4, 8


def train(module: nn.Module, *inputs: torch.Tensor, **options: Any) -> Any:
    return count_training_step(module, inputs, step=lambda copy, batch: copy(*batch).float().sum(), **options)


@pytest.mark.parametrize(
    ("function", "shapes", "flops"),
    [
        (torch.mm, [(3, 4), (4, 5)], 2 * 3 * 4 * 5),
        (torch.addmm, [(5,), (3, 4), (4, 5)], 2 * 3 * 4 * 5),
        (torch.bmm, [(7, 3, 4), (7, 4, 5)], 2 * 7 * 3 * 4 * 5),
        (torch.baddbmm, [(7, 3, 5), (7, 3, 4), (7, 4, 5)], 2 * 7 * 3 * 4 * 5),
        (torch.addbmm, [(3, 5), (7, 3, 4), (7, 4, 5)], 2 * 7 * 3 * 4 * 5),
        (torch.mv, [(3, 4), (4,)], 2 * 3 * 4),
        (torch.addmv, [(3,), (3, 4), (4,)], 2 * 3 * 4),
        (torch.dot, [(9,), (9,)], 2 * 9),
        (torch.matmul, [(6, 3, 4), (4, 5)], 2 * 6 * 3 * 4 * 5),
        (torch.matmul, [(6, 3, 4), (4,)], 2 * 6 * 3 * 4),
        (F.linear, [(6, 3, 4), (5, 4), (5,)], 2 * 6 * 3 * 4 * 5),
        (lambda a, b: torch.einsum("bthd,bshd->bhts", a, b), [(2, 3, 4, 5), (2, 7, 4, 5)], 2 * 2 * 4 * 3 * 7 * 5),
        (torch.add, [(3, 4), (3, 4)], 0),
        (F.conv1d, [(2, 6, 10), (8, 6, 3)], 2 * (2 * 8 * 8) * (6 * 3)),
        (F.conv2d, [(2, 6, 10, 10), (8, 6, 3, 3)], 2 * (2 * 8 * 8 * 8) * (6 * 9)),
        (lambda x, w: F.conv2d(x, w, groups=2), [(2, 6, 10, 10), (8, 3, 3, 3)], 2 * (2 * 8 * 8 * 8) * (3 * 9)),
        (lambda x, w: F.conv2d(x, w, groups=6), [(2, 6, 10, 10), (6, 1, 3, 3)], 2 * (2 * 6 * 8 * 8) * 9),
        (lambda x, w: F.conv2d(x, w, stride=2, padding=1), [(1, 3, 8, 8), (4, 3, 3, 3)], 2 * (4 * 4 * 4) * 27),
        (F.conv_transpose2d, [(2, 6, 5, 5), (6, 4, 2, 2)], 2 * (2 * 6 * 5 * 5) * (4 * 4)),
        (lambda x, w: F.conv_transpose2d(x, w, groups=2), [(1, 6, 5, 5), (6, 2, 2, 2)], 2 * (6 * 5 * 5) * (2 * 4)),
        (F.conv3d, [(1, 2, 5, 5, 5), (3, 2, 2, 2, 2)], 2 * (3 * 64) * (2 * 8)),
    ],
)
def test_one_operation(function: Callable[..., Any], shapes: list[tuple[int, ...]], flops: int) -> None:
    counted = count_operations(function, *[torch.empty(shape) for shape in shapes])
    assert counted.flops == flops
    assert counted.coverage == 1.0


@pytest.mark.parametrize(
    ("layer", "shape", "forward"),
    [
        (nn.Conv2d(6, 8, 3, padding=1), (2, 6, 10, 10), 2 * 2 * 8 * 100 * 6 * 9),
        (nn.Conv2d(6, 8, 3, padding=1, groups=2), (2, 6, 10, 10), 2 * 2 * 8 * 100 * 3 * 9),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), (2, 6, 10, 10), 2 * 2 * 6 * 100 * 9),
        (nn.ConvTranspose2d(6, 4, 2, stride=2), (2, 6, 5, 5), 2 * 2 * 6 * 25 * 4 * 4),
        (nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), (2, 6, 5, 5), 2 * 2 * 6 * 25 * 2 * 4),
        (nn.Linear(6, 4), (2, 5, 6), 2 * 2 * 5 * 6 * 4),
    ],
)
def test_backward_costs_two_forwards_and_one_where_the_input_is_data(
    layer: nn.Module, shape: tuple[int, ...], forward: int
) -> None:
    assert train(layer, torch.empty(shape)).flops == 2 * forward
    assert train(layer, torch.empty(shape, requires_grad=True)).flops == 2 * forward  # a batch is detached
    behind = nn.Sequential(_Scale(), layer)
    assert train(behind, torch.empty(shape)).flops == 3 * forward


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class _Block(nn.Module):
    """A residual block with a plain, a grouped and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
            nn.Conv2d(16, 8, 1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.parts(x)


def test_a_resnet_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(8),
        _Block(),
        _Block(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    pixels = 16 * 16
    stem = pixels * 8 * 3 * 49
    block = pixels * (8 * 16 + 16 * 4 * 9 + 16 * 9 + 16 * 8)
    per_image = 2 * 2 * stem + 3 * 2 * (2 * block + 8 * 10)
    counted = train(network, torch.empty(4, 3, 32, 32))
    assert counted.flops == 4 * per_image
    assert counted.by_dtype == {"fp32": 4 * per_image}


class _Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.qkv = nn.Linear(H * D, 3 * H * D, bias=False)
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, H, D).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, **self.options)


PROJECTION = 2 * 2 * B * T * H * D * 3 * H * D


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        ({"is_causal": True}, T * (T + 1) // 2),
        ({"is_causal": True, "dropout_p": 0.1}, T * (T + 1) // 2),
        ({"is_causal": True, "scale": 0.5}, T * (T + 1) // 2),
        ({}, T * T),
        ({"dropout_p": 0.1}, T * T),
    ],
)
def test_attention_of_torch_counts_its_pairs(options: dict[str, Any], pairs: int) -> None:
    counted = train(_Attention(**options), torch.empty(B, T, H * D))
    assert counted.attention_flops == 3 * 2 * B * H * pairs * 2 * D
    assert counted.flops == counted.attention_flops + PROJECTION


@pytest.mark.parametrize("backend", ["MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"])
def test_the_choice_of_kernel_changes_nothing(backend: str) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    counted = train(
        _Attention(is_causal=True),
        torch.empty(B, T, H * D),
        context=lambda: sdpa_kernel(getattr(SDPBackend, backend)),
    )
    assert counted.attention_flops == 3 * 2 * B * H * (T * (T + 1) // 2) * 2 * D


def test_attention_reached_below_python_is_counted_by_its_kernel() -> None:
    # a function bound before counting starts is seen through torch's function mode; an op call is not
    def direct(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return op(q, k, v, 0.0, True)[0]  # type: ignore[no-any-return]

    q = torch.empty(B, H, T, D)
    counted = count_operations(direct, q, q, q)
    assert counted.attention_flops == counted.flops == 2 * B * H * (T * (T + 1) // 2) * 2 * D


def test_cross_attention_and_grouped_keys() -> None:
    q, kv = torch.empty(B, 8, T, D), torch.empty(B, 2, 5, D)
    counted = count_operations(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True), q, kv, kv)
    assert counted.flops == 2 * B * 8 * T * 5 * 2 * D
    causal = count_operations(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), q, q[:, :, :5], q[:, :, :5]
    )
    assert causal.flops == 2 * B * 8 * (15 + (T - 5) * 5) * 2 * D


@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_module(need_weights: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = _Scale()
            self.attention = nn.MultiheadAttention(H * D, H, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out, weights = self.attention(x := self.scale(x), x, x, need_weights=need_weights)
            assert (weights is not None) == need_weights
            assert weights is None or weights.shape == (B, T, T)
            return out  # type: ignore[no-any-return]

    counted = train(Model(), torch.empty(B, T, H * D))
    assert counted.attention_flops == 3 * 2 * B * H * T * T * 2 * D
    assert counted.flops == counted.attention_flops + 3 * 2 * B * T * (H * D) ** 2 * 4


def test_transformer_layer_of_torch() -> None:
    layer = nn.Sequential(_Scale(), nn.TransformerEncoderLayer(H * D, H, 64, batch_first=True))
    counted = train(layer, torch.empty(B, T, H * D))
    matrices = 4 * (H * D) ** 2 + 2 * H * D * 64
    assert counted.flops == 6 * B * T * matrices + 3 * 2 * B * H * T * T * 2 * D


class _Stack(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embed = nn.Embedding(32, H * D)
        self.layers = nn.ModuleList(_Attention(is_causal=True) for _ in range(3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + self._run(layer, x)
        return x  # type: ignore[no-any-return]

    def _run(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        def body(x: torch.Tensor) -> torch.Tensor:
            return layer(x).transpose(1, 2).flatten(2)  # type: ignore[no-any-return]

        if self.how == "none":
            return body(x)
        out: torch.Tensor = checkpoint(body, x, use_reentrant=self.how == "reentrant")
        return out


@pytest.mark.parametrize("how", ["reentrant", "not reentrant"])
def test_recomputation_is_reported_apart(how: str) -> None:
    ids = torch.zeros(B, T, dtype=torch.long)
    plain, again = train(_Stack("none"), ids), train(_Stack(how), ids)
    assert plain.recompute_flops == 0
    assert again.flops == plain.flops
    assert again.attention_flops == plain.attention_flops
    assert again.recompute_flops == plain.flops // 3


def test_autocast_shows_in_the_dtypes() -> None:
    counted = train(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),
        torch.empty(4, 8),
        context=lambda: torch.autocast("cpu", torch.bfloat16),
    )
    assert set(counted.by_dtype) == {"bf16"}
    mixed = train(nn.Sequential(nn.Linear(8, 8), _Double(), nn.Linear(8, 8).double()), torch.empty(4, 8))
    assert mixed.by_dtype == {"fp32": 4 * 8 * 8 * 2 * 2, "fp64": 4 * 8 * 8 * 2 * 3}


class _Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


def test_frozen_layers_cost_no_weight_gradients_and_below_them_nothing() -> None:
    layers = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(4)])
    each = 2 * 4 * 8 * 8
    for layer in layers[:2]:
        layer.requires_grad_(False)
    # two forwards; then forward and weight gradient; then all three
    assert train(layers, torch.empty(4, 8)).flops == each * (1 + 1 + 2 + 3)
    layers.requires_grad_(True)
    layers[3].requires_grad_(False)
    assert train(layers, torch.empty(4, 8)).flops == each * (2 + 3 + 3 + 2)


def test_a_forward_without_gradient_counts_once() -> None:
    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher, self.student = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                goal = self.teacher(x)
            return (self.student(x) - goal) ** 2  # type: ignore[no-any-return]

    assert train(Distilled(), torch.empty(4, 8)).flops == 2 * 4 * 8 * 8 * (1 + 2)


def test_a_gradient_of_a_gradient_is_no_recomputation() -> None:
    class Penalty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.requires_grad_()
            out = self.layer(x).pow(2).sum()
            (slope,) = torch.autograd.grad(out, x, create_graph=True)
            return slope.pow(2).sum()

    counted = train(Penalty(), torch.empty(4, 8))
    assert counted.recompute_flops == 0
    assert counted.flops >= 2 * 4 * 8 * 8 * 4


def test_custom_operation_is_listed_not_taken_for_zero() -> None:
    @torch.library.custom_op("effprof_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    @twice.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    counted = count_operations(lambda x: twice(x @ x), torch.empty(4, 4))
    assert counted.uncounted == ("effprof_test::twice",)
    assert counted.coverage == 0.5
    assert counted.flops == 2 * 4**3


def test_recurrent_layers_are_counted_or_listed() -> None:
    for layer in (nn.LSTM(8, 16, batch_first=True), nn.GRU(8, 16, batch_first=True), nn.RNN(8, 16, batch_first=True)):
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[type(layer).__name__]
        counted = count_operations(lambda x, layer=layer: layer(x)[0], torch.empty(2, 5, 8))
        assert counted.flops == 2 * 2 * 5 * gates * 16 * (8 + 16) or counted.uncounted


def test_values_are_answered_and_said_to_be() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.layer(x)
            if not torch.isfinite(out).all() or torch.isnan(out).any():
                raise ValueError("not finite")
            return out * out.mean().item()  # type: ignore[no-any-return]

    counted = train(Reads(), torch.empty(4, 8))
    assert counted.flops == 2 * 2 * 4 * 8 * 8
    assert any(".item()" in line for line in counted.assumptions)


def test_sizes_that_depend_on_data_are_refused() -> None:
    with pytest.raises(CountFailed, match="size of a tensor depends on the data"):
        count_operations(lambda x: x[x > 0] @ x[x > 0], torch.empty(8))


def test_an_error_of_the_users_code_is_told() -> None:
    def step(copy: nn.Module, batch: Any) -> Any:
        raise KeyError("labels")

    with pytest.raises(CountFailed, match=r"could not run on fake tensors: KeyError: 'labels'"):
        count_training_step(nn.Linear(2, 2), torch.empty(1, 2), step=step)


def test_nothing_live_is_touched() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.dropout = nn.Linear(8, 8), nn.Dropout(0.5)
            self.register_buffer("seen", torch.zeros(()))
            self.history: list[Any] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            self.history.append(x)
            self.last = self.dropout(self.layer(x)) + torch.rand(8)
            return self.last

    module = Remembers()
    watched: list[Any] = []
    module.layer.register_forward_hook(lambda *arguments: watched.append(arguments))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    train(module, torch.ones(4, 8))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not module.history
    assert not watched
    assert not hasattr(module, "last")
    assert all(type(value) in (nn.Parameter, torch.Tensor) and value.grad is None for value in module.parameters())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_work_without_gradients_in_a_checkpointed_piece_is_recomputed_too(use_reentrant: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)

        def piece(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                y = x
                for _ in range(4):
                    y = self.inner(y)
            return self.first(x) + y

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = checkpoint(self.piece, self.first(x), use_reentrant=use_reentrant)
            return out.sum()

    count = count_training_step(Block(), torch.randn(8, 64))
    product = 2 * 8 * 64 * 64
    # outside: forward and weight gradient; inside: three for the trained product, four without a gradient
    assert count.flops == (2 + 3 + 4) * product
    # the piece is run again: up to the last tensor that is needed, which is the trained product's input, or as a whole
    assert count.recompute_flops == (5 if use_reentrant else 4) * product
