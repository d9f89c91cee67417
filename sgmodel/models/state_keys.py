"""Keys of state dicts that differ from the names of the modules, so that files keep their keys when code moves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn


def store_as(model: nn.Module, prefixes: Mapping[str, str]) -> None:
    """Save and load the parameters of `model` under other prefixes than those of its modules.

    `state_dict` and `load_state_dict` then use the new keys; `named_parameters` keeps the names of the modules.

    Args:
        model: The model whose state dict is renamed.
        prefixes: Prefix of the module's names -> prefix of the keys in its place.
    """
    model.register_state_dict_post_hook(partial(_rename_saved, prefixes))  # type: ignore[no-untyped-call]
    model.register_load_state_dict_pre_hook(partial(_rename_loaded, prefixes))  # type: ignore[no-untyped-call]


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of `model` by state-dict key, as files of averages and optimizer states name them."""
    state = model.state_dict(keep_vars=True)
    return {key: value for key, value in state.items() if isinstance(value, nn.Parameter)}


def _key(name: str, prefixes: Mapping[str, str]) -> str:
    for inner, stored in prefixes.items():
        if name.startswith(inner):
            return stored + name.removeprefix(inner)
    return name


def _rename_saved(prefixes: Mapping[str, str], model: nn.Module, state: dict[str, Tensor], root: str, _: Any) -> None:
    # Every key of the model is put back in turn, which keeps their order.
    for name in [name for name in state if name.startswith(root)]:
        state[root + _key(name.removeprefix(root), prefixes)] = state.pop(name)


def _rename_loaded(prefixes: Mapping[str, str], model: nn.Module, state: dict[str, Tensor], root: str, *_: Any) -> None:
    for name in [name for name, _ in (*model.named_parameters(), *model.named_buffers())]:
        stored = root + _key(name, prefixes)
        if stored in state:
            state[root + name] = state.pop(stored)
