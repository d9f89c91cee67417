"""Test random convolutional features: values worked out by hand, seeds, settings."""

from __future__ import annotations

import pytest
import torch

from sgdata.errors import SettingError
from sgmodel.models import factory
from sgmodel.models.random_features import BIAS, RandomFeatures


def test_features_are_the_mean_responses_of_each_kernel_and_its_negative() -> None:
    torch.manual_seed(0)
    model, images = RandomFeatures(2, features=6, kernel_px=3), torch.randn(4, 2, 7, 5)
    windows = images.unfold(2, 3, 1).unfold(3, 3, 1)  # (4, 2, 5, 3, 3, 3)
    for number, kernel in enumerate(model.kernels.weight):
        response = torch.einsum("nbhwij,bij->nhw", windows, kernel)
        for sign, column in ((1, number), (-1, number + 3)):
            by_hand = (sign * response + BIAS).clamp(min=0).mean(dim=(1, 2))
            torch.testing.assert_close(model.pooled(images)[:, column], by_hand)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.maps(images)[0].shape == (4, 6, 1, 1)


def test_kernels_follow_the_seed_and_the_options_change_them() -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(
            factory.backbone(factory.ModelRecipe(backbone="random-features"), 3).state_dict()["kernels.weight"]
        )
    assert drawn[0].shape == (256, 3, 3, 3)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    made = factory.ModelRecipe(backbone="random-features", options={"features": 10, "kernel_px": 5})
    assert factory.backbone(made, 3).state_dict()["kernels.weight"].shape == (5, 3, 5, 5)


@pytest.mark.parametrize(
    "options", [{"features": 7}, {"features": 0}, {"kernel_px": 0}, {"depth": 3}, {"features": 8.0}]
)
def test_settings_without_a_meaning_are_refused(options: factory.Options) -> None:
    with pytest.raises(SettingError, match=r"model\.options has"):
        factory.backbone(factory.ModelRecipe(backbone="random-features", options=options), 3)
