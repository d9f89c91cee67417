"""Pretrain SpectralGPT as a masked autoencoder on shards.

    python -m sgmodel.recipes.pretrain recipes/train/pretrain-demo-tiny.toml --shards DIR --out DIR

The paper's two stages are `pretrain-fmow-base.toml` and `pretrain-bigearthnet-base.toml`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sgdata import files
from sgdata.types import Contract
from sgmodel import (
    augment,
    batches,
    command,
    draws,
    encoder,
    launch,
    mae,
    normalise,
    optim,
    pictures,
    runs,
    session,
    transfer,
)

SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that changes the numbers of a pretraining run.

    `bands` are those the model sees, in their order. `accept` names contract fields of the starting
    weights that may differ; pictures are made every `picture_every` steps."""

    bands: tuple[str, ...]
    mask_ratio: float
    picture_every: int
    training: session.TrainingRecipe
    model: encoder.EncoderConfig
    decoder: mae.DecoderConfig
    objective: mae.Objective
    normalise: normalise.NormaliseRecipe
    augment: augment.AugmentRecipe
    accept: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run has settled before its first step; `picks` are the indices of the recipe's bands (None: all)."""

    recipe: Recipe
    contract: Contract
    picks: list[int] | None
    how: normalise.Normalisation
    where: launch.Launch


def build(recipe: Recipe) -> mae.MaskedAutoencoder:
    """The recipe's model with fresh weights drawn from its seed."""
    torch.manual_seed(recipe.training.seed)
    return mae.MaskedAutoencoder(encoder.Encoder(recipe.model), recipe.decoder, recipe.objective)


def main(recipe: Recipe, places: command.Places) -> int:
    """Train to the recipe's last step, or until stopped; 0 or `session.STOPPED`. Raises SgdataError."""
    where = launch.start(places.device, precision=recipe.training.precision, threads=places.threads)
    source = batches.Samples(places.shards, recipe.training.split, ("image",))
    contract = transfer.narrowed(source.contract, recipe.bands)
    check(recipe, contract)
    how = normalise.resolve(recipe.normalise, contract)
    model = build(recipe)
    if places.weights is not None:
        transfer.fill(model, places.weights, contract, how, accept=recipe.accept)
    picks = transfer.indices(source.contract, recipe.bands)
    setting = Setting(recipe=recipe, contract=contract, picks=picks, how=how, where=where)
    task = session.Task(
        training=recipe.training,
        model=model.to(where.device),
        optimizer=optim.adamw(model, recipe.training.optimizer),
        objective=partial(objective, setting, model),
        source=source,
        where=where,
        card=transfer.card(model, contract, how, recipe),
    )
    if places.dry_run:
        print(session.outlook(task))
        return 0
    with files.only_writer(places.out):
        return _train(setting, model, task, places)


def check(recipe: Recipe, contract: Contract) -> None:
    """Raises SettingError where the data cannot feed the model."""
    transfer.check_bands(recipe.model, contract)
    if recipe.augment.crop_area is None:
        transfer.check_size(recipe.model, contract, cropped=False)


def _train(setting: Setting, model: mae.MaskedAutoencoder, task: session.Task, places: command.Places) -> int:
    recipe, held_out = setting.recipe, _held_out(task.source)
    first = session.begin(task, recipe, places)
    with runs.Log(places.out, first) as log:
        for step in session.steps(task, first, places):
            done = step.index + 1
            log.step(step, every=recipe.training.log_every, last=done == task.total)
            if done % recipe.picture_every == 0 or done == task.total:
                _show(setting, model, held_out, places.out / "pictures" / f"step-{done:06d}.png")
    if not session.complete(task, places):
        return session.STOPPED
    runs.conclude(places.out, "Pretraining", task.card, {"steps": task.total, **evaluate(setting, model, held_out)})
    return 0


def _held_out(source: batches.Samples) -> batches.Samples:
    """The split `val` beside `source`, or `source` itself where there is none."""
    if "val" in source.contract.splits:
        return batches.Samples(source.folder, "val", ("image",))
    return source


def objective(setting: Setting, model: mae.MaskedAutoencoder, batch: batches.Batch) -> dict[str, Tensor]:
    """The loss of a batch and its two terms; crop, flips and mask are drawn per (seed, epoch, sample)."""
    recipe = setting.recipe
    geometry = augment.draw(recipe.augment, batch.samples, batch.epoch, batch.extent, seed=recipe.training.seed)
    result = model(_images(setting, batch, geometry), noise=_noise(setting, batch), ratio=recipe.mask_ratio)
    return {"loss": result.loss, "loss_token": result.loss_token, "loss_spectral": result.loss_spectral}


def _images(setting: Setting, batch: batches.Batch, geometry: augment.Geometry) -> Tensor:
    stored = batch.arrays["image"].to(setting.where.device)
    whole = normalise.apply(setting.how, stored, batch.extent, setting.picks)
    return augment.images(whole, geometry, setting.recipe.model.image_px)


def _noise(setting: Setting, batch: batches.Batch) -> Tensor:
    device, tokens = setting.where.device, setting.recipe.model.tokens
    samples, epoch = batch.samples.to(device), batch.epoch.to(device)
    return draws.uniform(samples, tokens, seed=setting.recipe.training.seed, epoch=epoch, stream=draws.Stream.MASK)


# --- held-out samples ----------------------------------------------------------------------


@torch.no_grad()
def evaluate(setting: Setting, model: mae.MaskedAutoencoder, source: batches.Samples) -> dict[str, float]:
    """Mean squared error of removed tokens over the middle of each of `source`, beside the answer "the mean of what is
    visible of the band in this image"."""
    sums = {"loss_token": 0.0, "loss_token_visible_mean": 0.0}
    for images, result in _reconstructions(
        setting, model, source, batches.in_order(len(source), setting.recipe.training.batch)
    ):
        target = encoder.patchify(images, setting.recipe.model).float()
        guess = visible_mean(target, result.mask, setting.recipe.model)
        sums["loss_token"] += float(result.loss_token) * len(images)
        sums["loss_token_visible_mean"] += float(mae.token_loss(guess, target, result.mask)) * len(images)
    return {name: total / len(source) for name, total in sums.items()}


def visible_mean(target: Tensor, mask: Tensor, config: encoder.EncoderConfig) -> Tensor:
    """(N, L, P) where each band is the mean of its visible pixels in the image; 0 for a band wholly removed."""
    shape = (len(target), config.planes, config.side**2, config.group_bands, config.patch_px**2)
    bands, seen = target.reshape(shape), (1 - mask).reshape(*shape[:3], 1, 1)
    count = seen.sum(dim=2, keepdim=True) * shape[-1]
    mean = (bands * seen).sum(dim=(2, 4), keepdim=True) / count.clamp(min=1)
    return mean.expand(shape).reshape(target.shape)


def _reconstructions(
    setting: Setting, model: mae.MaskedAutoencoder, source: batches.Samples, plan: Iterator[batches.Places]
) -> Iterator[tuple[Tensor, mae.Reconstruction]]:
    """The middle of the images of `plan`, masked as in epoch 0, and what the model makes of them."""
    for batch in batches.load(source, plan, threads=1):
        images = _images(setting, batch, augment.centre(batch.extent, setting.recipe.model.image_px))
        with setting.where.autocast():
            result = model(images, noise=_noise(setting, batch), ratio=setting.recipe.mask_ratio)
        yield images, result


@torch.no_grad()
def _show(setting: Setting, model: mae.MaskedAutoencoder, source: batches.Samples, path: Path) -> None:
    """A picture of the first samples of `source`: true, masked, predicted."""
    config, bands = setting.recipe.model, pictures.true_colour(setting.contract)
    plan = itertools.islice(batches.in_order(len(source), SHOWN), 1)
    for images, result in _reconstructions(setting, model, source, plan):
        predicted = mae.unpatchify(result.pred.float(), config)
        removed = mae.unpatchify(result.mask[..., None].expand_as(result.pred), config)
        rows = zip(images[:, bands], predicted[:, bands], removed[:, bands], strict=True)
        pictures.write(path, [pictures.reconstruction(*row) for row in rows])


if __name__ == "__main__":
    command.run("pretrain", Recipe, main)
