r"""Fine-tune and score a semantic segmentation model: SpectralGPT with its UperNet head, or a baseline.

    python -m sgmodel.recipes.segment recipes/train/segment-demo-tiny.toml --shards DIR --out DIR \
        --weights RUN/checkpoint-last

Without `--weights` all weights are initialised randomly. Scores are those of the last epoch, from one confusion matrix
over all pixels of `test_split` (or `val_split`); no epoch is selected by its score. The maps that are scored are those
that prediction writes: samples larger than the images of the model are cut into overlapping tiles, which are blended.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from sgdata.display import true_colour
from sgdata.errors import SettingError
from sgdata.types import Contract
from sgmodel import distributed
from sgmodel.data import augment, loader
from sgmodel.models.heads import TaskModel
from sgmodel.models.specs import TaskSpec
from sgmodel.train import (
    dense_prediction,
    finetune,
    frozen_features,
    loop,
    losses,
    metrics,
    pictures,
    pixel_baseline,
    run_folder,
    training,
)
from sgmodel.train.program import Program
from sgmodel.train.run_paths import RunPaths
from sgmodel.train.training_distance import Scores

SHOWN = 6
MEMBERS = ("image", "mask")


@dataclass(frozen=True, kw_only=True)
class SegmentRecipe(finetune.FinetuneRecipe, finetune.MapSettings):
    """Settings of a segmentation run."""

    def __post_init__(self) -> None:
        """Refuse settings that do not go together. Raises SettingError."""
        finetune.FinetuneRecipe.__post_init__(self)
        finetune.MapSettings.__post_init__(self)


Setup = training.TrainingSetup[SegmentRecipe]


def build(recipe: SegmentRecipe, classes: int) -> TaskModel:
    """Build the recipe's model with fresh weights. Raises SettingError."""
    return TaskSpec(kind="segmenter", recipe=recipe.model, bands=len(recipe.bands), classes=classes).build()


def main(recipe: SegmentRecipe, paths: RunPaths) -> int:
    """Train to the last step of the recipe, or until stopped, then score; return 0 or `signals.stop_code()`.

    Raises:
        SgdataError: Recipe, data, weights and folder do not fit together, or a file cannot be read or written.
    """
    source = training.open_samples(paths.joined, recipe.training, MEMBERS)
    scored = finetune.open_held_out(recipe, paths.joined, MEMBERS)
    check(recipe, source.contract)
    setup = training.resolve(recipe, source.contract, paths)
    recipe = setup.recipe  # spectral groups that the data lack may have been dropped
    counted = cache(partial(dense_prediction.class_counts, source))  # takes long, and is seldom needed twice
    weights = finetune.class_weights(recipe.weighting, recipe.class_weights, setup.classes, counted)
    model = finetune.initialise_model(setup, partial(build, recipe, setup.classes), paths.weights)
    fitted = finetune.encode_once(setup, model, finetune.fit_windows(setup, source), partial(images, setup), paths)
    task = finetune.prepare_finetuning(setup, model, fitted, partial(objective, setup, weights=weights), paths)

    def scores(held_out: loader.Samples, final: bool) -> Scores:
        counts = dense_prediction.evaluate(setup, model, held_out)
        if not final:
            return Scores(figures=compute_metrics(metrics.weighted(counts)))
        # Pictures first: they show at once whether the model predicts a single class.
        steps = run_folder.read_progress(paths.out).steps
        _show(setup, model, held_out, paths.out / "pictures" / f"step-{steps:06d}.png")
        dense_prediction.write_scenes(paths.out, held_out.keys, counts)
        linear = dense_prediction.evaluate(
            setup, pixel_baseline.fit_linear(setup, source, MEMBERS[:1], weights), held_out
        )
        majority, names = int(counted().argmax()), setup.contract.label_space.names
        places = dense_prediction.per_place(held_out, counts, compute_metrics)
        per_class = metrics.scores(metrics.weighted(counts)).iou
        figures = {
            **dense_prediction.score_confusion(counts, majority, linear, compute_metrics),
            "majority_class": names[majority],
            "per_class_iou": dict(zip(names, per_class, strict=True)),
            **({"per_place": places} if places else {}),
        }
        return Scores(figures=figures, samples=dense_prediction.per_sample(counts, compute_metrics, "miou"))

    scoring = finetune.ScoringSpec(
        title="Segmentation",
        by="miou",
        headlines=("miou", "oa"),
        scored=scored,
        compute_scores=scores,
        source=source,
    )
    return finetune.train(setup, task, scoring, paths)


def check(recipe: SegmentRecipe, contract: Contract) -> None:
    """Refuse samples without masks of classes. Raises SettingError."""
    space = contract.label_space
    if space.task != "segmentation" or not space.ids:
        message = f"task '{space.task}', ids {list(space.ids)}"
        raise SettingError(f"label space '{space.name}': {message}; expected task 'segmentation' and ids of classes")


def objective(
    setup: Setup, model: nn.Module, batch: loader.Batch, *, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Compute the loss over the labelled pixels of a batch, with `weights` of the classes."""
    recipe, px, device = setup.recipe, finetune.image_side(setup), setup.launch.device
    target = training.labels(setup, batch).to(device, non_blocking=True)
    target = augment.transform_masks(target, finetune.geometry(setup, batch), px, setup.ignore).long()
    (x,) = frozen_features.from_batch(batch, device, px) or images(setup, batch)
    log_p = functional.log_softmax(model(x).float(), dim=1)
    return losses.map_loss(recipe, log_p, target, weights, setup.ignore)


def images(setup: Setup, batch: loader.Batch) -> list[Tensor]:
    """Return the images of a batch as they are trained on, alone in a list."""
    whole, geometry = training.normalised_pixels(setup, batch), finetune.geometry(setup, batch)
    return [augment.transform_images(whole, geometry, finetune.image_side(setup))]


# --- scoring -------------------------------------------------------------------------------


def compute_metrics(counts: Tensor) -> dict[str, float]:
    """Compute the figures of a confusion matrix (K, K), shares 0-1."""
    scores = metrics.scores(counts)
    return {"miou": scores.miou, "miou_without_class_0": scores.miou_without_first, "oa": scores.oa}


def _show(setup: Setup, model: nn.Module, source: loader.Samples, path: Path) -> None:
    """Draw samples spread over `source`: true colour, labels, prediction."""
    bands, colours = (
        true_colour.band_indices([band.name for band in setup.contract.bands]),
        tuple(setup.contract.label_space.palette.values()),
    )
    step = max(1, len(source) // SHOWN)
    plan = itertools.islice(loader.in_order(len(source), 1), 0, SHOWN * step, step)
    rows = []
    with loop.evaluating(model):
        counter = dense_prediction.CountingPredictor(setup, model)
        for batch in training.scored_batches(setup, source, plan):
            ((image, target, predicted),) = dense_prediction.predict(setup, counter, batch)
            rows.append(pictures.draw_segmentation(image[bands].nan_to_num(), target, predicted, colours))
    if distributed.is_main_process():
        pictures.write_pictures(path, rows)


PROGRAM = Program(
    name="segment",
    recipe=SegmentRecipe,
    main=main,
    model=build,
)

if __name__ == "__main__":
    from sgmodel import commands  # imported here, since the functions above do not need the command line

    commands.run_training(PROGRAM)
