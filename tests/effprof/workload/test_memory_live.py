"""The tracker against sums done by hand, and against what a training step really leaves behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from effprof.workload.memory_live import LiveTensors

KIB = 1024


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_known_allocations_are_summed_and_released_at_their_death() -> None:
    live = LiveTensors()
    with live:
        first = torch.empty(KIB, dtype=torch.uint8)
        second = torch.empty(10 * KIB, dtype=torch.uint8)
        assert live.live_bytes == 11 * KIB
        view, alias = second[:5], second.view(10, KIB)
        assert live.live_bytes == 11 * KIB  # views hold no memory of their own
        del second
        assert live.live_bytes == 11 * KIB  # they keep the whole storage
        del view, alias
        assert live.live_bytes == KIB
        third = torch.empty(3 * KIB, dtype=torch.uint8)
    result = live.result()
    assert (result.peak_bytes, result.end_bytes) == (11 * KIB, 4 * KIB)
    assert [row[1:] for row in result.largest] == [(1, 10 * KIB), (1, KIB)]
    del first, third
    assert live.live_bytes == 0


def test_a_tensor_that_was_there_before_is_not_counted() -> None:
    weight = torch.ones(64, 64)
    live = LiveTensors()
    live.know([weight])
    with live:
        transposed = weight.t()
        weight.mul_(2)
        product = torch.mm(weight, transposed)
    assert live.live_bytes == 64 * 64 * 4 == product.untyped_storage().nbytes()


def test_addresses_that_are_used_again_are_other_tensors() -> None:
    live = LiveTensors()
    with live:
        for _ in range(100):
            torch.empty(4 * KIB, dtype=torch.uint8)
    assert live.live_bytes == 0
    assert live.result().peak_bytes == 4 * KIB


def test_a_chain_of_linears_keeps_what_its_gradients_need() -> None:
    rows, width = 32, 64
    model = nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, width, bias=False))
    data = torch.randn(rows, width)
    live = LiveTensors(model.parameters())
    live.know([*model.parameters(), data])
    with live:
        loss = model(data).sum()
        loss.backward()
    activation, weight = rows * width * 4, width * width * 4
    result = live.result()
    # autograd keeps the data (known) and the output of ReLU, which the second layer shares; the loss and its gradient
    # are one number each
    assert result.kept_bytes == activation + 8
    assert result.gradients_bytes == 2 * weight
    assert result.peak_at == "backward"
    # the peak: the second weight's gradient, ReLU's output, and gradients on their way
    assert result.peak_bytes == (
        result.peak_activations_bytes + result.peak_gradients_bytes + result.peak_temporary_bytes
    )
    assert result.peak_bytes >= activation + 2 * weight
    assert result.end_bytes == 2 * weight + 4


def test_live_bytes_are_those_of_the_tensors_that_the_interpreter_still_holds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    data = torch.randn(4, 3, 8, 8)
    model(data)
    known = [*model.parameters(), *model.buffers(), data]
    # by type and not isinstance, which follows a weak proxy that another test may have left dead
    before = {id(tensor) for tensor in gc.get_objects() if issubclass(type(tensor), torch.Tensor)}
    live = LiveTensors()
    live.know(known)
    with live:
        output = model(data)
        output.square().mean().backward()
    held = {parameter.grad.untyped_storage()._cdata: parameter.grad for parameter in model.parameters()}
    held |= {
        tensor.untyped_storage()._cdata: tensor
        for tensor in gc.get_objects()
        if issubclass(type(tensor), torch.Tensor) and id(tensor) not in before
    }
    own = {tensor.untyped_storage()._cdata for tensor in known}
    truth = sum(tensor.untyped_storage().nbytes() for key, tensor in held.items() if key not in own)
    assert live.live_bytes == truth > 0


def test_tracking_changes_no_value() -> None:
    results = []
    for is_tracked in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.3), nn.Linear(32, 4))
        data = torch.randn(8, 16)
        live = LiveTensors()
        if is_tracked:
            with live:
                model(data).square().sum().backward()
            assert live.result().peak_bytes > 0
        else:
            model(data).square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
