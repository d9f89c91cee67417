"""Pretrain SpectralGPT as a masked autoencoder on shards.

    python -m sgmodel.recipes.pretrain recipes/train/pretrain-demo-tiny.toml --shards DIR --out DIR

With `--weights RUN/checkpoint-last --set training.epochs=0` nothing is trained, and the figures of the held-out samples
are printed, for instance at another `mask_ratio`. The two stages of the paper are `pretrain-fmow-base.toml` and
`pretrain-bigearthnet-base.toml`; `pretrain-progressive-base.toml` runs both.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sgdata import output_lock
from sgdata.display import true_colour
from sgdata.errors import ExitCode, SettingError
from sgdata.safe_names import file_name
from sgdata.types import Array, Contract
from sgmodel import distributed
from sgmodel.checkpoints import cards, load_weights
from sgmodel.data import augment, band_selection, loader, mixture, normalise, seeded_random, windows
from sgmodel.models import encoder, flops, mae
from sgmodel.train import best_checkpoint, loop, pictures, run_folder, run_results, signals, training
from sgmodel.train.program import Program
from sgmodel.train.run_paths import RunPaths

SHOWN = 4
logger = logging.getLogger("sgdata")


@dataclass(frozen=True, kw_only=True)
class PretrainStage:
    """One stage of a progressive pretraining run.

    Attributes:
        data: Dataset, named as in its contract.
        image_px: Side of the images in pixels.
        epochs: Number of epochs.
        lr: Peak learning rate.
    """

    data: str
    image_px: int
    epochs: float
    lr: float


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """Settings of a pretraining run.

    Attributes:
        bands: Input bands of the model, in its order.
        mask_ratio: Share of the tokens that are removed.
        picture_every: Steps between two scorings of held-out samples and pictures of them.
        val_split: Split that is scored during training, by which `checkpoint-best` is chosen; empty for `val` if the
            data have it, otherwise the training samples, whose figures are named after their own split.
        test_split: Split that is scored after training; empty for the one that is scored during training.
        training: Duration, batch and optimizer.
        model: Size of the encoder.
        decoder: Size of the decoder.
        objective: Masking and loss terms.
        normalise: Normalisation of the images.
        augment: Random crops, flips and turns.
        accept: Contract fields in which the starting weights may differ from the data.
        pos_embed_resize: Whether position embeddings of starting weights for another image size are interpolated or
            drawn anew.
        stages: Stages of a progressive run, each of which starts from the weights of the one before.
    """

    bands: tuple[str, ...]
    mask_ratio: float
    picture_every: int
    training: training.TrainingRecipe
    model: encoder.EncoderConfig
    decoder: mae.DecoderConfig
    objective: mae.MaskedObjective
    normalise: normalise.NormaliseRecipe
    augment: augment.AugmentRecipe
    val_split: str = ""
    test_split: str = ""
    accept: tuple[str, ...] = ()
    pos_embed_resize: load_weights.Tables = "interpolate"
    stages: tuple[PretrainStage, ...] = ()


Setup = training.TrainingSetup[PretrainRecipe]


def build(recipe: PretrainRecipe) -> mae.MaskedAutoencoder:
    """Build the model of a recipe, with initial weights drawn from its seed."""
    torch.manual_seed(recipe.training.seed)
    return mae.MaskedAutoencoder(encoder.Encoder(recipe.model), recipe.decoder, recipe.objective)


def main(recipe: PretrainRecipe, paths: RunPaths) -> int:
    """Train to the last step of the recipe, or until stopped; return 0 or `signals.stop_code()`.

    Raises:
        SgdataError: Recipe, data, weights and folder do not fit together, or a file cannot be read or written.
    """
    if recipe.stages:
        return progressive(recipe, paths)
    source = _source(recipe, paths)
    setup = training.resolve(recipe, source.contract, paths)
    recipe, contract = setup.recipe, setup.contract
    check(recipe, contract)
    model = build(recipe)
    if paths.weights is not None:
        cards.fill(
            model, paths.weights, contract, setup.normalisation, accept=recipe.accept, tables=recipe.pos_embed_resize
        )
    card = cards.make_card(model, contract, setup.normalisation, recipe)
    work = flops.training_sample(card.model, recipe.model.image_px, mask_ratio=recipe.mask_ratio)
    task = training.prepare_task(setup, model, source, partial(objective, setup), paths, card=card, flops=work)
    if paths.dry_run:
        print(training.describe_run(task))
        return ExitCode.DONE
    if task.total == 0:
        held_out = _held_out(source, recipe, recipe.test_split or recipe.val_split)
        scores = evaluate(setup, model, held_out)
        if distributed.is_main_process():
            logger.info("split '%s':", held_out.split)
            print(json.dumps({"mask_ratio": recipe.mask_ratio, **scores}))
        return ExitCode.DONE
    with output_lock.only_writer(paths.out, run_folder.METRICS) if distributed.is_main_process() else nullcontext():
        return _train(setup, model, task, paths)


def progressive(recipe: PretrainRecipe, paths: RunPaths) -> int:
    """Train the stages in turn, in folders `stage-1-<data>`, ... of `paths.out`; finished stages are not repeated."""
    weights = paths.weights
    if unused := sorted(set(paths.named) - {stage.data for stage in recipe.stages}):
        names = ", ".join(stage.data for stage in recipe.stages)
        raise SettingError(
            f"--shards gives '{unused[0]}', which no stage is on; expected some of {names}; leave it out"
        )
    for number, stage in enumerate(recipe.stages, 1):
        if stage.data not in paths.named:
            given = ", ".join(paths.named) or "none"
            raise SettingError(f"stage {number} is on '{stage.data}', --shards gives {given}; add --shards DIR")
        optimizer = replace(recipe.training.optimizer, lr=stage.lr)
        stage_recipe = replace(
            recipe,
            stages=(),
            training=replace(recipe.training, epochs=stage.epochs, optimizer=optimizer),
            model=replace(recipe.model, image_px=stage.image_px),
        )
        out = paths.out / file_name(f"stage-{number}-{stage.data}")
        folder = paths.named[stage.data]
        code = main(stage_recipe, replace(paths, shards=folder, named={stage.data: folder}, out=out, weights=weights))
        if code:
            return code
        weights = None if paths.dry_run else out / run_folder.LAST
    return ExitCode.DONE


def _source(recipe: PretrainRecipe, paths: RunPaths) -> loader.SampleSource:
    """Open one dataset, or the mixture of `training.mixture`. Raises SettingError, SourceError."""
    settings = replace(recipe.training, mixture={})
    if recipe.training.mixture:
        samples = {name: training.open_samples(folder, settings, ("image",)) for name, folder in paths.named.items()}
        sources = {name: _fitted(dataset_samples, recipe) for name, dataset_samples in samples.items()}
        return mixture.Mixture(sources, recipe.training.mixture, recipe.bands, recipe.accept)
    return _fitted(training.open_samples(paths.joined, settings, ("image",)), recipe)


def _fitted(source: loader.Samples, recipe: PretrainRecipe) -> loader.Samples:
    """Return the samples as they are trained on: without a crop, those larger than the images in windows."""
    return source if recipe.augment.crop_area else windows.fit_to_windows(source, recipe.model.image_px)


def check(recipe: PretrainRecipe, contract: Contract) -> None:
    """Refuse data whose bands or size do not fit the model. Raises SettingError."""
    band_selection.check_bands(recipe.model, contract)
    if recipe.picture_every < 1:
        raise SettingError(f"picture_every is {recipe.picture_every}: expected 1 or more steps")


def _train(setup: Setup, model: mae.MaskedAutoencoder, task: training.TrainingTask, paths: RunPaths) -> int:
    recipe, held_out = setup.recipe, _held_out(task.source, setup.recipe, setup.recipe.val_split)
    test = _held_out(task.source, recipe, recipe.test_split) if recipe.test_split else held_out
    first = training.begin(task, recipe, paths)
    by = f"{held_out.split}_loss_token"
    best = best_checkpoint.BestCheckpoint(paths.out, first, by=by, sign=-1, patience=recipe.training.patience)
    with run_folder.TrainingLog(paths.out, first) as log:

        def score(steps_done: int) -> None:
            if steps_done % recipe.picture_every and steps_done != task.total:
                return
            log.flush()
            scores = evaluate(setup, model, held_out)
            by_name = {f"{held_out.split}_{name}": value for name, value in scores.items()}
            log.check(steps_done - 1, by_name)
            _show(setup, model, held_out, paths.out / "pictures" / f"step-{steps_done:06d}.png")
            # After everything that reads samples: a step without this line is scored again.
            log.write(steps_done - 1, by_name)
            best.keep(model, task.card, by_name)

        def report(step: loop.Step) -> None:
            log.step(step, every=recipe.training.log_every, last=step.index + 1 == task.total, speed=task.meter.read)
            score(step.index + 1)

        if log.lacks_score:  # the run ended while its last step was scored
            score(first)
        training.run(task, first, paths, report, log.flush, ended=best.stalled)
    if not training.complete(task, paths, ended=best.stalled):
        return signals.stop_code()
    steps = run_folder.read_progress(paths.out).steps
    results = {"steps": steps, "split": test.split, "samples": len(test), **evaluate(setup, model, test)}
    run_results.write_results(paths.out, "Pretraining", task.card, results, ("loss_token",), task.meter)
    return ExitCode.DONE


def _held_out(source: loader.SampleSource, recipe: PretrainRecipe, split: str) -> loader.SampleSource:
    """Open `split` of the data of `source`; for an empty name `val` if there is one, otherwise `source` itself."""
    if isinstance(source, mixture.Mixture):
        pairs = zip(source.names, source.sources, strict=True)
        held_out = {name: _held_out_of(one, recipe, split) for name, one in pairs}
        return mixture.Mixture(held_out, recipe.training.mixture, recipe.bands, recipe.accept)
    return _held_out_of(source, recipe, split) if isinstance(source, loader.Samples) else source


def _held_out_of(source: loader.Samples, recipe: PretrainRecipe, split: str) -> loader.Samples:
    split = split or ("val" if "val" in source.contract.splits else source.split)
    if split == source.split:
        return source
    return _fitted(loader.Samples(source.folder, split, ("image",), verify=source.verify), recipe)


def objective(setup: Setup, forward: nn.Module, batch: loader.Batch) -> dict[str, Tensor]:
    """Compute the loss of a batch, its two terms, and the error of each band.

    Crop, flips and mask are drawn from (seed, epoch, sample).
    """
    recipe = setup.recipe
    geometry = augment.draw(recipe.augment, batch.samples, batch.epoch, batch.valid_size, seed=recipe.training.seed)
    images, valid = _view(setup, batch, geometry)
    result: mae.Reconstruction = forward(images, noise=_noise(setup, batch), ratio=recipe.mask_ratio, valid=valid)
    terms = {"loss": result.loss, "loss_token": result.loss_token}
    if recipe.objective.weight_spectral:
        terms["loss_spectral"] = result.loss_spectral
    # A spectral group may stay visible in every sample: its bands then have no error (NaN).
    bands = result.loss_band.nan_to_num(0.0)
    return terms | {f"loss_{name}": error for name, error in zip(recipe.bands, bands, strict=True)}


def _view(setup: Setup, batch: loader.Batch, geometry: augment.GeometricTransform) -> tuple[Tensor, Tensor]:
    """Return normalised images (N, C, S, S) moved by `geometry`, and which of their values hold data."""
    stored, size = training.stored_pixels(setup, batch), setup.recipe.model.image_px
    images = normalise.apply(setup.normalisation, stored, batch.valid_size)
    return augment.transform_images(images, geometry, size), augment.transform_valid(~stored.isnan(), geometry, size)


def _noise(setup: Setup, batch: loader.Batch) -> Tensor:
    device, tokens = setup.launch.device, setup.recipe.model.tokens
    samples, epoch = (tensor.to(device, non_blocking=True) for tensor in (batch.samples, batch.epoch))
    return seeded_random.uniform(
        samples, tokens, seed=setup.recipe.training.seed, epoch=epoch, stream=seeded_random.RandomStream.MASK
    )


# --- held-out samples ----------------------------------------------------------------------


def evaluate(setup: Setup, model: mae.MaskedAutoencoder, source: loader.SampleSource) -> dict[str, float]:
    """Compute the mean squared error of removed tokens over centre crops of `source`.

    Two reconstructions without a model are scored alike: the mean of the visible pixels of the band in the image, and
    the nearest visible token of the same spectral group. With normalised targets all three errors are of normalised
    tokens.
    """
    config = setup.recipe.model
    mine = distributed.assign_to_rank(loader.in_order(len(source), setup.scored_at_once))
    sums = torch.zeros(3, dtype=torch.float64, device=setup.launch.device)
    results = _reconstructions(setup, model, source, (indices for indices, _ in mine))
    for (_, counts), (images, valid, result) in zip(mine, results, strict=True):
        if not counts:
            continue
        target = encoder.patchify(images.where(valid, float("nan")), config).float()
        if setup.recipe.objective.norm_pix:
            target = mae.normalised(target)
        guesses = [baseline(target, result.mask, config) for baseline in (visible_mean, nearest_visible)]
        errors = [result.loss_token, *(mae.token_loss(guess, target, result.mask) for guess in guesses)]
        sums += len(images) * torch.stack(errors).double()
    names = ("loss_token", "loss_token_visible_mean", "loss_token_nearest")
    return dict(zip(names, (distributed.mean(sums) * distributed.world_size() / len(source)).tolist(), strict=True))


def visible_mean(target: Tensor, mask: Tensor, config: encoder.EncoderConfig) -> Tensor:
    """Predict each band by the mean of its visible pixels in the image: (N, L, P); 0 for a band removed entirely."""
    shape = (len(target), config.planes, config.side**2, config.group_bands, config.patch_px**2)
    bands = target.reshape(shape)
    visible = (1 - mask).reshape(*shape[:3], 1, 1) * ~bands.isnan()
    count = visible.sum(dim=(2, 4), keepdim=True)
    mean = (bands.nan_to_num() * visible).sum(dim=(2, 4), keepdim=True) / count.clamp(min=1)
    return mean.expand(shape).reshape(target.shape)


def nearest_visible(target: Tensor, mask: Tensor, config: encoder.EncoderConfig) -> Tensor:
    """Predict each token by the nearest visible token of its spectral group: (N, L, P).

    Distances are in tokens on the ground, and ties go to the first. A group that is removed entirely gets its first
    token. Tokens with values without data (NaN) count as removed.
    """
    rows, cols = torch.meshgrid(torch.arange(config.side), torch.arange(config.side), indexing="ij")
    positions = torch.stack([rows, cols], dim=-1).reshape(-1, 2).to(target)
    planes = target.reshape(len(target), config.planes, config.side**2, -1)
    removed = mask.maximum(target.isnan().any(-1).to(mask)).reshape(len(target), config.planes, 1, -1)
    nearest = (torch.cdist(positions, positions) + removed * 2 * config.side).argmin(-1)
    return planes.gather(2, nearest[..., None].expand_as(planes)).flatten(1, 2).nan_to_num()


def _reconstructions(
    setup: Setup, model: mae.MaskedAutoencoder, source: loader.SampleSource, plan: Iterator[loader.BatchIndices]
) -> Iterator[tuple[Tensor, Tensor, mae.Reconstruction]]:
    """Yield centre crops of the images of `plan`, where they hold data, and their reconstructions in epoch 0."""
    with loop.evaluating(model):
        for batch in training.scored_batches(setup, source, plan):
            middle = augment.centre_crop(batch.valid_size, setup.recipe.model.image_px)
            images, valid = _view(setup, batch, middle)
            with setup.launch.autocast():
                result = model(images, noise=_noise(setup, batch), ratio=setup.recipe.mask_ratio, valid=valid)
            yield images, valid, result


def _show(setup: Setup, model: mae.MaskedAutoencoder, source: loader.SampleSource, path: Path) -> None:
    """Draw the first samples of `source`: true, masked, predicted, and the error of every band."""
    config, bands = setup.recipe.model, true_colour.band_indices([band.name for band in setup.contract.bands])
    picture_rows: list[list[Array]] = []
    batch_indices = loader.in_order(min(SHOWN, len(source)), setup.scored_at_once)
    for images, _, result in _reconstructions(setup, model, source, batch_indices):
        pred = result.pred.float()
        if setup.recipe.objective.norm_pix:
            pred = mae.denormalised(pred, encoder.patchify(images, config).float())
        predicted = mae.unpatchify(pred, config)
        removed = mae.unpatchify(result.mask[..., None].expand_as(result.pred), config)
        rows = zip(images, predicted, removed, strict=True)
        picture_rows += [pictures.draw_reconstruction(*row, bands) for row in rows]
    if distributed.is_main_process():
        pictures.write_pictures(path, picture_rows)


PROGRAM = Program(
    name="pretrain",
    recipe=PretrainRecipe,
    main=main,
    model=lambda recipe, classes: build(recipe),
)

if __name__ == "__main__":
    from sgmodel import commands  # imported here, since the functions above do not need the command line

    commands.run_training(PROGRAM)
