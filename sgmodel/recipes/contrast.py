"""Pretrain a backbone by MoCo or SimCLR on shards.

    python -m sgmodel.recipes.contrast recipes/train/contrast-demo-moco.toml --shards DIR --out DIR

Both views of an image are drawn from (seed, epoch, sample, view). With `accumulate` SimCLR compares within
micro-batches only. The checkpoint can be given as `--weights` to the downstream programs, which load its backbone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sgmodel import distributed
from sgmodel.data import augment, loader, seeded_random
from sgmodel.models import contrastive
from sgmodel.models.specs import ContrastSpec
from sgmodel.train import finetune, loop, training
from sgmodel.train.program import Program
from sgmodel.train.run_paths import RunPaths
from sgmodel.train.training_distance import Scores

VIEW = 1 << 32
"""Added to the seed for the second view: it changes the upper half of the key, which no seed of a recipe reaches."""


@dataclass(frozen=True, kw_only=True)
class ContrastRecipe(finetune.FinetuneRecipe):
    """Settings of a contrastive pretraining run.

    Attributes:
        contrast: Method and its parameters.
        jitter: Range of the random gain and offset of each band in a view, on normalised values.
    """

    contrast: contrastive.ContrastiveObjective
    jitter: float = 0.0


Setup = training.TrainingSetup[ContrastRecipe]


def build(recipe: ContrastRecipe, classes: int) -> contrastive.ContrastiveModel:
    """Build the recipe's model with fresh weights, which has no classes. Raises SettingError."""
    return ContrastSpec(recipe=recipe.model, bands=len(recipe.bands), objective=recipe.contrast).build()


def main(recipe: ContrastRecipe, paths: RunPaths) -> int:
    """Train to the last step of the recipe, or until stopped; return 0 or `signals.stop_code()`.

    Raises:
        SgdataError: Recipe, data, weights and folder do not fit together, or a file cannot be read or written.
    """
    source = training.open_samples(paths.joined, recipe.training, ("image",))
    scored = finetune.open_held_out(recipe, paths.joined, ("image",))
    setup = training.resolve(recipe, source.contract, paths)

    model = finetune.initialise_model(setup, partial(build, setup.recipe, setup.classes), paths.weights)
    assert isinstance(model, contrastive.ContrastiveModel)
    task = finetune.prepare_finetuning(
        setup, model, finetune.fit_windows(setup, source), partial(objective, setup), paths
    )
    # After each optimizer step, not in the forward pass: micro-batches are not steps, and a checkpoint must include it.
    task.updates.optimizer.register_step_post_hook(lambda optimizer, *_: model.follow(optimizer.found_inf))

    def scores(held_out: loader.Samples, final: bool) -> Scores:
        return Scores(figures=evaluate(setup, model, finetune.fit_windows(setup, held_out)))

    by = f"{(scored.val or scored.test).split}_top1"
    scoring = finetune.ScoringSpec(
        title="Contrastive pretraining", by=by, headlines=(), scored=scored, compute_scores=scores
    )
    return finetune.train(setup, task, scoring, paths)


def objective(setup: Setup, forward: nn.Module, batch: loader.Batch) -> dict[str, Tensor]:
    """Compute the loss of a batch, and the share of images whose other view is the most similar candidate."""
    pixels = training.normalised_pixels(setup, batch)
    loss, top1 = forward(*(view(setup, batch, pixels, number) for number in (0, 1)))
    return {"loss": loss, "top1": top1}


def view(setup: Setup, batch: loader.Batch, whole: Tensor, number: int) -> Tensor:
    """Draw view 0 or 1 of each image: crop, flips and rotation, then gain and offset of each band."""
    recipe = setup.recipe
    seed = recipe.training.seed + number * VIEW
    geometry = augment.draw(recipe.augment, batch.samples, batch.epoch, batch.valid_size, seed=seed)
    images = augment.transform_images(whole, geometry, finetune.image_side(setup))
    if not recipe.jitter:
        return images
    bands = images.shape[1]
    u = seeded_random.uniform(
        batch.samples, 2 * bands, seed=seed, epoch=batch.epoch, stream=seeded_random.RandomStream.JITTER
    )
    gain, offset = (recipe.jitter * (2 * u.to(images) - 1)).view(len(images), 2, bands, 1, 1).unbind(1)
    return images * (1 + gain) + offset


def evaluate(setup: Setup, model: contrastive.ContrastiveModel, source: loader.Samples) -> dict[str, float]:
    """Compute the mean loss and top-1 of `source` with the views of epoch 0, named by its split."""
    mine = distributed.assign_to_rank(loader.in_order(len(source), setup.scored_at_once))
    outputs = torch.zeros(2, len(source), setup.recipe.contrast.projection)
    with loop.evaluating(model):
        for (indices, counts), batch in zip(
            mine, training.scored_batches(setup, source, (one for one, _ in mine)), strict=True
        ):
            pixels = training.normalised_pixels(setup, batch)
            with setup.launch.autocast():
                projections = model(*(view(setup, batch, pixels, number) for number in (0, 1)), compare=False)
            if counts:
                outputs[:, torch.from_numpy(indices.samples)] = torch.stack(projections).cpu()
        outputs = distributed.total(outputs, setup.launch.device)
        # As many images are compared as in training, on any number of ranks.
        groups = torch.split(outputs, setup.scored_at_once * distributed.world_size(), dim=1)
        sums = torch.stack([len(group[0]) * torch.stack(model.compared(*group)).double() for group in groups]).sum(
            dim=0
        )
    loss, top1 = (sums / len(source)).tolist()
    return {f"{source.split}_loss": loss, f"{source.split}_top1": top1}


PROGRAM = Program(
    name="contrast",
    recipe=ContrastRecipe,
    main=main,
    model=build,
    images=2,
)

if __name__ == "__main__":
    from sgmodel import commands  # imported here, since the functions above do not need the command line

    commands.run_training(PROGRAM)
