"""Test the reduction of tokens: against loops, on known groups, and that what is restored is complete."""

from __future__ import annotations

from pathlib import Path

import baselines
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgmodel
from sgdata.errors import SettingError
from sgmodel.checkpoints import cards, checkpoint_folder
from sgmodel.models import encoder, factory, specs, token_reduction
from sgmodel.models.token_reduction import TokenReduction

PLANES = 3


def tokens(count: int, *, seed: int = 0, images: int = 2, width: int = 8, first: int = 0) -> Tensor:
    """Return random tokens (N, first + 3 count, D)."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(images, first + PLANES * count, width, generator=random, dtype=torch.float64)


def reduce_by_loops(
    x_MD: np.ndarray, sizes: list[float], how: TokenReduction
) -> tuple[np.ndarray, list[float], list[int]]:
    """Reduce the tokens of one plane one by one; return the new ones, their sizes, and where each has gone."""
    centred = x_MD - x_MD.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    evens, odds = range(0, len(x_MD), 2), range(1, len(x_MD), 2)
    partner = {i: max(odds, key=lambda j: unit[i] @ unit[j]) for i in evens}
    closest = sorted(evens, key=lambda i: -unit[i] @ unit[partner[i]])
    joined = closest[: len(x_MD) - int(np.ceil(len(x_MD) * how.keep))]
    kept = [i for i in evens if i not in joined] + list(odds)
    new, new_sizes = [], []
    for i in kept:
        members = [i] + [j for j in joined if partner[j] == i]
        weights = [sizes[j] for j in members]
        merged = np.average(x_MD[members], axis=0, weights=weights)
        new.append(merged if how.method == "merge" else x_MD[i])
        new_sizes.append(sum(weights))
    gone = [kept.index(partner[i] if i in joined else i) for i in range(len(x_MD))]
    return np.array(new), new_sizes, gone


@pytest.mark.parametrize("method", ["merge", "drop"])
@pytest.mark.parametrize(("count", "keep"), [(16, 0.5), (15, 0.5), (16, 0.7), (9, 0.9)])
def test_a_reduction_is_that_of_a_loop_over_tokens(method: str, count: int, keep: float) -> None:
    how = TokenReduction(method=method, keep=keep)  # type: ignore[arg-type]
    x = tokens(count).view(2, PLANES, count, -1)
    size = torch.rand(2, PLANES, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 1
    step, sizes = token_reduction._reduce(x, size, how)
    for n in range(2):
        for q in range(PLANES):
            new, new_sizes, gone = reduce_by_loops(x[n, q].numpy(), size[n, q].tolist(), how)
            np.testing.assert_allclose(step.after[n, q], new)
            assert step.representative[n, q].tolist() == gone
            np.testing.assert_allclose(sizes[n, q], new_sizes)


@pytest.mark.parametrize("method", ["merge", "drop"])
@pytest.mark.parametrize("first", [0, 1])
def test_blocks_that_change_nothing_leave_all_tokens_as_they_were(method: str, first: int) -> None:
    how = TokenReduction(method=method, keep=0.5, after=(0, 1, 3))  # type: ignore[arg-type]
    x = tokens(16, first=first)
    lengths: list[int] = []

    class Same(nn.Module):
        def forward(self, x_NLD: Tensor) -> Tensor:
            lengths.append(x_NLD.shape[1] - first)
            return x_NLD

    out = token_reduction.run_blocks([Same() for _ in range(5)], x, how, planes=PLANES, class_token=bool(first))
    torch.testing.assert_close(out, x)
    assert lengths == [PLANES * count for count in token_reduction.plane_tokens(16, 5, how)] == [24, 12, 12, 6, 6]


def test_equal_tokens_of_a_group_are_merged_without_loss() -> None:
    pairs = tokens(8).view(2, PLANES, 8, 1, -1).expand(-1, -1, -1, 2, -1).reshape(2, PLANES * 16, -1)
    block = nn.Sequential(nn.Linear(8, 8), nn.GELU()).double()
    out = token_reduction.run_blocks([block], pairs, TokenReduction(after=(0,)), planes=PLANES, class_token=False)
    torch.testing.assert_close(out, block(pairs))


def test_merging_keeps_the_mean_and_dropping_does_not() -> None:
    x, layer = tokens(16), nn.Linear(8, 8, bias=False).double()
    blocks = [layer, layer, layer]
    exact = layer(layer(layer(x))).mean(dim=1)
    for method, equal in (("merge", True), ("drop", False)):
        how = TokenReduction(method=method, keep=0.6, after=(0, 2))  # type: ignore[arg-type]
        out = token_reduction.run_blocks(blocks, x, how, planes=PLANES, class_token=False).mean(dim=1)
        assert torch.allclose(out, exact) is equal


def test_tokens_of_other_groups_are_never_joined() -> None:
    one, two = tokens(16), tokens(16)
    two[:, 16:] = tokens(16, seed=5)[:, 16:]
    block, how = nn.Linear(8, 8).double(), TokenReduction(after=(0,))
    first, second = (token_reduction.run_blocks([block], x, how, planes=PLANES, class_token=False) for x in (one, two))
    assert torch.equal(first[:, :16], second[:, :16])
    assert not torch.allclose(first[:, 16:], second[:, 16:])


@pytest.mark.parametrize("method", ["merge", "drop"])
def test_gradients_are_those_of_finite_differences(method: str) -> None:
    how = TokenReduction(method=method, keep=0.5, after=(0, 1))  # type: ignore[arg-type]
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double() for _ in range(3)]
    x = tokens(8, images=1, width=4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: token_reduction.run_blocks(blocks, x, how, planes=PLANES, class_token=False), [x]
    )


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "change"])
def test_a_checkpoint_keeps_the_reduction(kind: str, tmp_path: Path) -> None:
    made = {}
    for how in (None, TokenReduction(), TokenReduction(method="drop"), TokenReduction(keep=0.8)):
        torch.manual_seed(0)
        recipe = baselines.spectralgpt(baselines.ENCODER, head=baselines.HEAD, reduction=how)
        model = baselines.build(kind, recipe).eval()  # type: ignore[arg-type]
        images = [torch.rand(2, 12, 32, 32, generator=torch.Generator().manual_seed(n)) for n in range(2)]
        shown = images if kind == "change" else images[:1]
        made[how] = model(*shown)
        if how is not None:
            checkpoint_folder.save(tmp_path / "one", model, cards.ModelCard(model=specs.describe(model)))
            assert torch.equal(sgmodel.load(tmp_path / "one")(*shown), made[how])
            assert (made[how] - made[None]).abs().mean() < 0.5 * made[None].abs().mean()  # nearly the same function
    values = list(made.values())
    assert not any(torch.equal(a, b) for n, a in enumerate(values) for b in values[:n])


def test_a_model_built_by_hand_describes_its_reduction() -> None:
    recipe = baselines.spectralgpt(baselines.ENCODER, reduction=TokenReduction(keep=0.6))
    model = baselines.build("classifier", recipe)
    model.recipe = None
    found = specs.describe(model)
    assert isinstance(found, specs.TaskSpec) and found.recipe.reduction == TokenReduction(keep=0.6)
    assert model.backbone.embedding(torch.rand(1, 12, 32, 32)).shape == (1, 16, 4, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.4}, "keep' is 0.4: expected at least 0.5"),
        ({"keep": 1.0}, "keep' is 1.0"),
        ({"after": ()}, "after' is \\[\\]: expected increasing"),
        ({"after": (3, 1)}, "after' is \\[3, 1\\]: expected increasing"),
        ({"after": (2,)}, "after' is \\[2\\]: expected less than the 2 blocks"),
        ({"keep": 0.95}, "removes none of 16 tokens"),
    ],
)
def test_impossible_reductions_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        how = TokenReduction(**settings)  # type: ignore[arg-type]
        factory.backbone(baselines.spectralgpt(baselines.ENCODER, reduction=how), 12)


def test_baselines_have_no_reduction() -> None:
    with pytest.raises(SettingError, match="only 'spectralgpt' has it"):
        factory.backbone(factory.ModelRecipe(backbone="linear", reduction=TokenReduction()), 12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_a_reduced_model_is_one_graph_of_fixed_shapes() -> None:
    config = encoder.EncoderConfig(image_px=32, width=16, depth=3, heads=2)
    recipe = baselines.spectralgpt(config, reduction=TokenReduction(keep=0.7, after=(1, 2)))
    model, images = baselines.build("classifier", recipe), torch.rand(2, 12, 32, 32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(images), model(images))
    compiled(images).sum().backward()
    torch._dynamo.reset()
