"""Build the trainings that a GPU check times, as the training programs themselves build them.

Programs are imported where they are used: one that cannot be imported here fails its own rows only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from sgdata import sentinel2
from sgmodel.data import augment, normalise
from sgmodel.models import flops, memory

if TYPE_CHECKING:
    from gpu_check import samples
    from gpu_check.bench import Bench
    from sgmodel import devices
    from sgmodel.data import loader
    from sgmodel.models import factory
    from sgmodel.models.token_reduction import TokenReduction
    from sgmodel.train import training

MASK_RATIO = 0.9
Name = Literal["classify", "segment", "detect_change"]
SPLIT = "train"
MINMAX = normalise.NormaliseRecipe(scheme="minmax", eps=1e-12)
CROPPED = augment.AugmentRecipe(crop_area=(0.2, 1.0), horizontal_flip=0.5)
FLIPPED = augment.AugmentRecipe(horizontal_flip=0.5, vertical_flip=0.5, quarter_turns=True)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training ready to be stepped, the model FLOPs of one of its samples, and the memory of its steps."""

    task: training.TrainingTask
    flops: float
    memory: memory.StepMemory


def pretraining(
    bench: Bench,
    size: str,
    px: int,
    source: loader.SampleSource,
    *,
    batch: int,
    precision: devices.TrainingPrecision = "bf16",
) -> Job:
    """Return masked-autoencoder pretraining as `sgmodel.recipes.pretrain` runs it."""
    from sgmodel.checkpoints import cards
    from sgmodel.models import mae
    from sgmodel.recipes import pretrain
    from sgmodel.train import training

    config, decoder = bench.scale.encoder(size, px), bench.scale.decoder
    recipe = pretrain.PretrainRecipe(
        bands=sentinel2.L2A_BANDS,
        mask_ratio=MASK_RATIO,
        picture_every=1,
        training=_training(batch, precision),
        model=config,
        decoder=decoder,
        objective=mae.MaskedObjective(),
        normalise=MINMAX,
        augment=CROPPED,
    )
    setting = training.resolve(recipe, source.contract, bench.paths)
    model = pretrain.build(recipe)
    card = cards.make_card(model, setting.contract, setting.normalisation, recipe)
    objective = partial(pretrain.objective, setting)
    work = flops.training_sample(card.model, config.image_px, mask_ratio=MASK_RATIO)
    task = training.prepare_task(setting, model, source, objective, bench.paths, card=card, flops=work)
    half = task.launch.half
    counted = memory.estimate(card.model, config.image_px, half, mask_ratio=MASK_RATIO)
    return Job(task=task, flops=work, memory=counted)


def fine_tuning(
    bench: Bench, name: Name, source: samples.MemoryIndexed, *, batch: int, reduction: TokenReduction | None = None
) -> Job:
    """Return fine-tuning of the base model as the program `name` of `sgmodel.recipes` runs it."""
    from sgmodel.data.windows import WindowRecipe
    from sgmodel.models import factory
    from sgmodel.recipes import classify, detect_change, segment
    from sgmodel.train import finetune, training

    classes = len(source.contract.label_space.ids)
    head = None if name == "classify" else bench.scale.head(dropout_levels=0.0 if name == "detect_change" else 0.5)
    config = bench.scale.encoder("base", 128)
    model_recipe = factory.ModelRecipe(backbone="spectralgpt", encoder=config, head=head, reduction=reduction)
    setting: training.TrainingSetup[Any]
    build: Any
    match name:
        case "classify":
            setting = training.resolve(
                classify.ClassifyRecipe(**_shared(model_recipe, batch)), source.contract, bench.paths
            )
            build = classify.build
            objective: Any = partial(classify.objective, setting, torch.ones(len(source), classes))
        case "segment":
            setting = training.resolve(
                segment.SegmentRecipe(**_shared(model_recipe, batch)), source.contract, bench.paths
            )
            build = segment.build
            objective = partial(segment.objective, setting)
        case _:
            px = model_recipe.px
            cut = WindowRecipe(px=px, stride=px, remainder="covered", once=False)
            recipe = detect_change.ChangeRecipe(
                **_shared(model_recipe, batch), windows=cut, scored=cut, weighting="none"
            )
            setting = training.resolve(recipe, source.contract, bench.paths)
            build = detect_change.build
            objective = partial(detect_change.objective, setting, None)
    model = finetune.initialise_model(setting, partial(build, setting.recipe, classes), None)
    task = finetune.prepare_finetuning(setting, model, source, objective, bench.paths)
    counted = memory.estimate(task.card.model, model_recipe.px, task.launch.half)
    return Job(task=task, flops=task.meter.flops or 0.0, memory=counted)


def _shared(model: factory.ModelRecipe, batch: int) -> dict[str, Any]:
    """Return the settings that all fine-tuning recipes have."""
    return {
        "model": model,
        "bands": sentinel2.L2A_BANDS,
        "val_split": SPLIT,
        "evaluate_every": 0,
        "training": _training(batch, "bf16"),
        "normalise": MINMAX,
        "augment": FLIPPED,
    }


def _training(batch: int, precision: devices.TrainingPrecision) -> training.TrainingRecipe:
    from sgmodel.train import optim, training

    return training.TrainingRecipe(
        seed=0,
        split=SPLIT,
        epochs=10_000,
        batch=batch,
        accumulate=1,
        precision=precision,
        log_every=1,
        optimizer=optim.OptimizerRecipe(lr=1e-4, schedule="cosine", warmup_epochs=0, weight_decay=0.05),
    )
