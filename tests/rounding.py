"""How far apart two float32 computations of the same thing may be: the one rule of every comparison with the original.

A limit such as 1e-5 measures the machine it was chosen on: every instruction set adds in another order, and the sums
of a deep model then differ in more than their last bits. What stays is the size of the rounding. So our model runs in
float64 as well, and the errors of two float32 runs to it are compared, ours and the original's: neither may be more
than FACTOR times the other. If ours is larger, we compute with less precision than the original. If the original's is
larger, we compute something else: the float64 run has the same faults as our float32 run, the original has not.
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
    """Hold each named tensor to the rule by itself.

    Args:
        ours: Results of our model in float32.
        theirs: Results of the original in float32.
        exact: Results of our model in float64.
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
    """Hold the worst gradient of a backward pass to the rule, each in units of its largest value.

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
    """A key bias shifts all scores of a query alike: its true gradient is 0, its rounding that of the key weight."""
    return name.replace("attn.k.bias", "attn.k.weight")


def _error(value: Tensor, exact: Tensor) -> float:
    assert value.shape == exact.shape
    error = float((value.double() - exact).abs().max())
    assert math.isfinite(error)
    return error


def _compare(name: str, ours: float, theirs: float, unit: float) -> None:
    told = f"{name}: ours is {ours:.3g} from float64, theirs {theirs:.3g}, one unit is {unit:.3g}"
    assert max(ours, theirs) <= FACTOR * max(min(ours, theirs), unit), told
