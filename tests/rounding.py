"""Limit the difference of two float32 computations of the same model, in every comparison with the original.

A fixed limit such as 1e-5 depends on the machine where it was chosen: instruction sets sum in different orders, and the
sums of a deep model then differ in more than their last bits. The size of the rounding error is stable. The model under
test therefore also runs in float64, and the errors of both float32 runs, its own and the original's, are measured
against that: neither may exceed FACTOR times the other. If the error of the model under test is larger, it computes
with less precision than the original. If the original's is larger, the model computes something else: its float64 run
then has the same mistake as its float32 run, and the original does not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

# By chance the two errors differ by up to 1.9 times, with generic, AVX2 and AVX-512 kernels alike. The closest mutant
# in test_parity.py, a layer norm with an epsilon of 1e-5 in place of 1e-6, makes them differ by 6 times or more.
FACTOR = 4.0

# Of a single number, such as a loss, either error may be 0 by luck: none counts as less than one unit in the last place
# of the largest value.
UNIT = torch.finfo(torch.float32).eps


def assert_same_rounding(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], exact: Mapping[str, Tensor], names: Collection[str]
) -> None:
    """Apply the rule to each named tensor separately.

    Args:
        ours: Results of the model under test in float32.
        theirs: Results of the original in float32.
        exact: Results of the model under test in float64.
        names: The tensors to compare.

    Raises:
        AssertionError: One of the two errors of a tensor is more than FACTOR times the other.
    """
    for name in names:
        unit = UNIT * float(exact[name].abs().max())
        _compare(name, _error(ours[name], exact[name]), _error(theirs[name], exact[name]), unit)


def assert_same_gradient_rounding(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], exact: Mapping[str, Tensor], names: Collection[str]
) -> None:
    """Apply the rule to the worst gradient of a backward pass, each in units of its largest value.

    All gradients share the rounding of the passes before them. In one small tensor, such as the bias before a
    normalisation, whose terms cancel, the largest error is a matter of chance: up to 6 times the original's.

    Raises:
        AssertionError: One of the two errors of the worst gradients is more than FACTOR times the other.
    """
    scale = {name: float(exact[_scaled_by(name)].abs().max()) for name in names}
    our_errors = {name: _error(ours[name], exact[name]) / scale[name] for name in names}
    their_errors = {name: _error(theirs[name], exact[name]) / scale[name] for name in names}
    worst = [max(errors, key=errors.__getitem__) for errors in (our_errors, their_errors)]
    _compare(" and ".join(worst), our_errors[worst[0]], their_errors[worst[1]], UNIT)


def _scaled_by(name: str) -> str:
    """Return the tensor whose values scale a gradient: for a key bias, whose true gradient is 0, the key weight."""
    return name.replace("attn.k.bias", "attn.k.weight")


def _error(value: Tensor, exact: Tensor) -> float:
    assert value.shape == exact.shape
    error = float((value.double() - exact).abs().max())
    assert math.isfinite(error)
    return error


def _compare(name: str, ours: float, theirs: float, unit: float) -> None:
    message = f"{name}: ours is {ours:.3g} from float64, theirs {theirs:.3g}, one unit is {unit:.3g}"
    assert max(ours, theirs) <= FACTOR * max(min(ours, theirs), unit), message
