"""Compute what the runs of a ledger cost: parameters, steps, floating-point operations, and memory of a GPU.

Models are built on the meta device, so that nothing is allocated.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

from sgdata import files
from sgdata.errors import SettingError
from sgdata.shards import contracts
from sgdata.types import Contract
from sgmodel.data import subset
from sgmodel.train.program import Mode, Program

if TYPE_CHECKING:
    from sgmodel.ledger.experiments import DatasetSize, LedgerPaths, LedgerRecipe, LedgerRun
    from sgmodel.models.memory import StepMemory
    from sgmodel.models.specs import ModelSpec

_Case = tuple[Program[Any], bytes, int, int]
"""Program, recipe without its seed, number of classes, and side of the images."""


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """Size of one run.

    Attributes:
        parameters: Parameters of the whole model.
        steps: Optimizer steps.
        flops: Floating-point operations.
    """

    parameters: int
    steps: int
    flops: float


def work(run: LedgerRun, recipe: LedgerRecipe, paths: LedgerPaths) -> RunCost:
    """Compute the work of a run from its model, built on the meta device.

    Raises:
        SettingError: The dataset is neither among the shards given nor outlined in the ledger.
    """
    own, contract, case = _case(run, recipe, paths)
    parameters, flops = _counted(*case)
    samples = _samples(run, own, paths, contract, recipe.data.get(run.data)) * own.training.fraction
    if shots := getattr(own, "shots", 0):
        samples = min(samples, shots * case[2])
    steps = math.ceil(own.training.epochs * round(samples) / own.training.batch)
    if getattr(own, "mode", "finetune") not in get_args(Mode):  # nothing is trained, such as by neighbours
        return RunCost(parameters=parameters, steps=0, flops=flops * samples)
    return RunCost(parameters=parameters, steps=steps, flops=flops * steps * own.training.batch)


def peak_memory(run: LedgerRun, recipe: LedgerRecipe, paths: LedgerPaths) -> int:
    """Return an upper bound of the bytes that a step of a run takes on one GPU. Raises SettingError as `work`."""
    own, _, case = _case(run, recipe, paths)
    return _memory(*case).total(own.training.division.largest)


def _case(run: LedgerRun, recipe: LedgerRecipe, paths: LedgerPaths) -> tuple[Any, Contract | None, _Case]:
    """Return the recipe of a run, the contract of its data if they are at hand, and what its model depends on."""
    outline, contract = recipe.data.get(run.data), None
    if run.data in paths.data:
        contract = contracts.read(paths.data[run.data])
    elif outline is None:
        raise SettingError(f"dataset '{run.data}' is not given by --shards, nor under [data] of the ledger: add either")
    program = paths.programs[run.program]()
    own: Any = files.parse(program.recipe, tomllib.loads(run.recipe.decode()), str(run.folder))
    if contract:
        classes = len(contract.label_space.ids)
    else:
        classes = outline.classes if outline else 0
    # A model that takes any size is counted at the size of the samples, or at 128 px where that varies or is unknown.
    side = contract.shape[-1] if contract and contract.shape else 128
    # All seeds of a row cost the same and are counted once.
    seedless = files.toml(replace(own, training=replace(own.training, seed=0)))
    return own, contract, (program, seedless, classes, side)


def _samples(
    run: LedgerRun, recipe: Any, paths: LedgerPaths, contract: Contract | None, outline: DatasetSize | None
) -> int:
    if contract is None:
        return outline.train if outline else 0
    if count := paths.programs[run.program]().count:
        return count(recipe, paths.data[run.data])
    if recipe.training.budget and run.data in paths.data:
        return len(subset.within_budget(paths.data[run.data], recipe.training.split, recipe.training.budget))
    return sum(contract.splits.values()) if recipe.training.split == "all" else contract.splits[recipe.training.split]


def _described(program: Program[Any], document: bytes, classes: int) -> tuple[Any, ModelSpec, int]:
    """Return a recipe, the description of its model, and the number of parameters."""
    import torch

    from sgmodel.models import specs

    recipe: Any = files.parse(program.recipe, tomllib.loads(document.decode()), program.name)
    with torch.device("meta"):
        model = program.model(recipe, classes)
    spec = specs.describe(model)
    if isinstance(spec, specs.TaskSpec):
        spec = replace(spec, probe=recipe.mode == "linear-probe")
    return recipe, spec, sum(parameter.numel() for parameter in model.parameters())


@cache
def _counted(program: Program[Any], document: bytes, classes: int, side: int) -> tuple[int, float]:
    """Return the number of parameters and the floating-point operations of one sample in a training step."""
    from sgmodel.models import flops

    recipe, spec, parameters = _described(program, document, classes)
    if program.name == "pretrain":
        return parameters, flops.training_sample(spec, recipe.model.image_px, mask_ratio=recipe.mask_ratio)
    passes, compared = flops.TRAINED if recipe.mode == "finetune" else 1, recipe.training.division.largest
    return parameters, flops.training_sample(spec, recipe.model.px or side, passes=passes, compared=compared)


@cache
def _memory(program: Program[Any], document: bytes, classes: int, side: int) -> StepMemory:
    """Return the memory of a training step."""
    from sgmodel import devices
    from sgmodel.models import memory

    recipe, spec, _ = _described(program, document, classes)
    half = devices.HALF.get(recipe.training.precision)
    return memory.estimate(
        spec,
        spec.px or side,
        half,
        mask_ratio=getattr(recipe, "mask_ratio", 0.0),
        frozen=getattr(recipe, "mode", "finetune") != "finetune",
        recompute=recipe.training.recompute,
    )
