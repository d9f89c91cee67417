"""Pretrain SpectralGPT as a masked autoencoder on shards.

    python -m sgmodel.recipes.pretrain recipes/train/pretrain-demo-tiny.toml --shards DIR --out DIR

The paper's two stages are `pretrain-fmow-base.toml` and `pretrain-bigearthnet-base.toml`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sgdata import files, progress
from sgdata.errors import SettingError
from sgdata.types import Contract
from sgmodel import (
    augment,
    batches,
    checkpoint,
    command,
    draws,
    encoder,
    launch,
    loop,
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
    """Everything that changes the numbers of a pretraining run. `accept` names contract fields of the starting
    weights that may differ."""

    seed: int
    split: str
    epochs: float
    batch: int
    accumulate: int
    precision: launch.Precision
    mask_ratio: float
    log_every: int
    picture_every: int
    model: encoder.EncoderConfig
    decoder: mae.DecoderConfig
    objective: mae.Objective
    normalise: normalise.NormaliseRecipe
    augment: augment.AugmentRecipe
    optimizer: optim.OptimizerRecipe
    accept: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run has settled before its first step."""

    recipe: Recipe
    contract: Contract
    how: normalise.Normalisation
    where: launch.Launch


def build(recipe: Recipe) -> mae.MaskedAutoencoder:
    """The recipe's model with fresh weights drawn from its seed."""
    torch.manual_seed(recipe.seed)
    return mae.MaskedAutoencoder(encoder.Encoder(recipe.model), recipe.decoder, recipe.objective)


def main(recipe: Recipe, places: command.Places) -> int:
    """Train to the recipe's last step, or until stopped; 0 or `session.STOPPED`. Raises SgdataError."""
    where = launch.start(places.device, precision=recipe.precision, threads=places.threads)
    source = batches.Samples(places.shards, recipe.split, ("image",))
    contract = source.contract
    check(recipe, contract)
    how = normalise.resolve(recipe.normalise, contract)
    model = build(recipe)
    if places.weights is not None:
        transfer.fill(model, places.weights, contract, how, accept=recipe.accept)
    total = math.ceil(recipe.epochs * len(source) / recipe.batch)
    if places.dry_run:
        print(_outlook(recipe, model, len(source), total))
        return 0
    with files.only_writer(places.out):
        setting = Setting(recipe=recipe, contract=contract, how=how, where=where)
        return _train(setting, model.to(where.device), source, total, places)


def check(recipe: Recipe, contract: Contract) -> None:
    """Raises SettingError where the data cannot feed the model."""
    bands = [band.name for band in contract.bands]
    if len(bands) != recipe.model.bands:
        raise SettingError(f"model.bands is {recipe.model.bands}, the shards have {len(bands)}: {' '.join(bands)}")
    size = (recipe.model.image_px, recipe.model.image_px)
    if recipe.augment.crop_area is None and (contract.shape is None or contract.shape[1:] != size):
        shape = "of many sizes" if contract.shape is None else f"{contract.shape[1]} x {contract.shape[2]} px"
        raise SettingError(
            f"model.image_px is {size[0]}, the samples are {shape}: set augment.crop_area, or model.image_px to match"
        )


def _outlook(recipe: Recipe, model: torch.nn.Module, samples: int, total: int) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    return f"{parameters:,} parameters; {samples} samples x {recipe.epochs:g} epochs = {total} steps of {recipe.batch}"


# --- training ------------------------------------------------------------------------------


def _train(
    setting: Setting, model: mae.MaskedAutoencoder, source: batches.Samples, total: int, places: command.Places
) -> int:
    recipe, out = setting.recipe, places.out
    optimizer = optim.adamw(model, recipe.optimizer)
    first = runs.prepare(out, recipe, setting.contract, fresh=places.fresh)
    if first:
        runs.restore(out, model, optimizer)
    card, held_out = _card(setting, model), _held_out(source)
    steps = session.watched(
        _steps(setting, model, optimizer, source, range(first, total), places.workers),
        lambda done: runs.save(out, model, card, optimizer, runs.Place(steps=done)),
        minutes=places.save_minutes,
        stop_after=places.stop_after,
    )
    done = first
    with runs.Log(out, first) as log:
        for step in progress.track(steps, label="pretrain", total=total - first):
            done = step.index + 1
            _note(log, step, recipe.log_every, last=done == total)
            if done % recipe.picture_every == 0 or done == total:
                _show(setting, model, held_out, out / "pictures" / f"step-{done:06d}.png")
    if done < total:
        return session.STOPPED
    runs.conclude(out, "Pretraining", card, {"steps": total, **evaluate(setting, model, held_out)})
    return 0


def _held_out(source: batches.Samples) -> batches.Samples:
    """The split `val` beside `source`, or `source` itself where there is none."""
    if "val" in source.contract.splits:
        return batches.Samples(source.folder, "val", ("image",))
    return source


def _steps(
    setting: Setting,
    model: mae.MaskedAutoencoder,
    optimizer: torch.optim.Optimizer,
    source: batches.Samples,
    span: range,
    workers: int,
) -> Iterator[loop.Step]:
    """The optimizer steps of `span`, which ends with the run."""
    recipe = setting.recipe
    updates = loop.Updates(
        optimizer=optimizer,
        schedule=optim.schedule(recipe.optimizer, steps_per_epoch=len(source) / recipe.batch, total=span.stop),
        accumulate=recipe.accumulate,
        clip_norm=recipe.optimizer.clip_norm,
        seed=recipe.seed,
    )
    plan = batches.stream(len(source), recipe.batch, seed=recipe.seed, first=span.start, last=span.stop)
    loaded = batches.load(source, plan, threads=workers)
    return loop.steps(partial(objective, setting, model), loaded, updates, setting.where, first=span.start)


def objective(setting: Setting, model: mae.MaskedAutoencoder, batch: batches.Batch) -> dict[str, Tensor]:
    """The loss of a batch and its two terms; crop, flips and mask are drawn per (seed, epoch, sample)."""
    recipe = setting.recipe
    geometry = augment.draw(recipe.augment, batch.samples, batch.epoch, batch.extent, seed=recipe.seed)
    result = model(_images(setting, batch, geometry), noise=_noise(setting, batch), ratio=recipe.mask_ratio)
    return {"loss": result.loss, "loss_token": result.loss_token, "loss_spectral": result.loss_spectral}


def _images(setting: Setting, batch: batches.Batch, geometry: augment.Geometry) -> Tensor:
    stored = batch.arrays["image"].to(setting.where.device)
    whole = normalise.apply(setting.how, stored, batch.extent)
    return augment.images(whole, geometry, setting.recipe.model.image_px)


def _noise(setting: Setting, batch: batches.Batch) -> Tensor:
    device, tokens = setting.where.device, setting.recipe.model.tokens
    samples, epoch = batch.samples.to(device), batch.epoch.to(device)
    return draws.uniform(samples, tokens, seed=setting.recipe.seed, epoch=epoch, stream=draws.Stream.MASK)


def _note(log: runs.Log, step: loop.Step, every: int, *, last: bool) -> None:
    if step.index % every == 0 or last:
        log.write(step.index, {**step.terms, "lr": step.lr, "grad_norm": step.grad_norm})
        rate = step.images / step.total_s
        log.write_times(step.index, {"wait_s": step.wait_s, "step_s": step.total_s, "images_per_s": rate})


# --- held-out samples ----------------------------------------------------------------------


@torch.no_grad()
def evaluate(setting: Setting, model: mae.MaskedAutoencoder, source: batches.Samples) -> dict[str, float]:
    """Mean squared error of removed tokens over `source`, whole images, beside the answer "the mean of what is
    visible of the band in this image"."""
    sums = {"loss_token": 0.0, "loss_token_visible_mean": 0.0}
    for images, result in _reconstructions(setting, model, source, batches.in_order(len(source), setting.recipe.batch)):
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
    """Images of `plan`, not augmented, masked as in epoch 0, and what the model makes of them."""
    for batch in batches.load(source, plan, threads=1):
        still = augment.draw(augment.AugmentRecipe(), batch.samples, batch.epoch, batch.extent, seed=0)
        images = _images(setting, batch, still)
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


# --- the end -------------------------------------------------------------------------------


def _card(setting: Setting, model: mae.MaskedAutoencoder) -> checkpoint.Card:
    return checkpoint.Card(
        model=checkpoint.describe(model),
        contract=setting.contract,
        normalisation=setting.how,
        recipe=files.plain(setting.recipe),
        commit=checkpoint.commit(),
    )


if __name__ == "__main__":
    command.run("pretrain", Recipe, main)
