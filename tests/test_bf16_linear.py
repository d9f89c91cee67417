"""Test linear layers in bf16 on a CPU against torch's own under autocast: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sgmodel.models import bf16_linear, transformer


def run(x: Tensor, layers: list[nn.Linear], *, torchs: bool) -> dict[str, Tensor]:
    """Return the outputs and all gradients of layers side by side, by torch's own linear or by ours."""
    x = x.clone().requires_grad_()
    for layer in layers:
        layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if torchs:
            weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
            out = functional.linear(x, weight, bias)
        else:
            out = bf16_linear.project(x, *layers)
    assert out.dtype == torch.bfloat16
    out.float().sin().square().sum().backward()  # type: ignore[no-untyped-call]
    found = {"out": out.detach().float(), "x": x.grad}
    for number, layer in enumerate(layers):
        found |= {f"{number}.{name}": p.grad for name, p in layer.named_parameters()}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(
    ("tokens", "width", "outputs"), [(300, 48, [40]), (300, 48, [32, 32, 32]), (60, 33, [48]), (5, 8, [7, 7])]
)
def test_bf16_layers_on_a_cpu_are_torchs(
    tokens: int, width: int, outputs: list[int], half: bool, contiguous: bool
) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(width, out) for out in outputs]
    x = torch.randn(2, tokens, width)
    x = x if contiguous else torch.randn(2, width, tokens).transpose(1, 2)
    x = x.bfloat16() if half else x
    ours, theirs = (run(x, layers, torchs=torchs) for torchs in (False, True))
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2 + 2 * len(outputs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        assert ours[name].is_contiguous() or name == "x"
        torch.testing.assert_close(ours[name], value, rtol=0.02, atol=0.01 * float(value.abs().max()))


def test_memory_that_was_not_filled_changes_nothing() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 48), torch.randn(98, 48)
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]  # with NaN
        found = run(x, [layer], torchs=False)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
    assert all(bool(value.isfinite().all()) for value in found.values())


def test_frozen_weights_have_no_gradient() -> None:
    first, second = nn.Linear(8, 6), nn.Linear(8, 6)
    first.requires_grad_(False)
    x = torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bf16_linear.project(x, first, second).sum().backward()  # type: ignore[no-untyped-call]
    assert first.weight.grad is None
    assert x.grad is not None
    assert second.weight.grad is not None
    second.requires_grad_(False)
    x.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bf16_linear.project(x, first, second).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None


class Doubled(nn.Linear):
    """An adapter of another kind."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("half", [True, False])
def test_layers_of_another_kind_run_by_themselves(half: bool) -> None:
    attention = transformer.Attention(8, 2)
    attention.k = Doubled(8, 8)
    x = torch.randn(2, 3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        found = bf16_linear.project(x, attention.q, attention.k, attention.v)
        expected = torch.cat([layer(x) for layer in (attention.q, attention.k, attention.v)], -1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
