"""The reducers of a model: one module that is also a mapping from blocks to reducers."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, cast

from torch import nn

from msvit.reducers.base import PLACES, PlacedReducer, Reducer


class Reducers(nn.Module, MutableMapping[int, Reducer]):
    """`model.reducers`: the reducer of each block that has one, in the order of the blocks.

    A reducer that is a module is a child module named by the number of its block, so that tools which find or replace
    modules by name work. A module that replaces a child by name runs at the same place of the block as its predecessor.
    Other callables are stored beside the child modules. Like a `ModuleDict`, the container is falsy if it is empty, and
    equal only to itself.

    Args:
        num_blocks: number of blocks of the model.

    Raises:
        TypeError, ValueError: on assignment, the model has no such block, the reducer is not callable or is a class, or
            its place is not in `PLACES`.
    """

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self._num_blocks = num_blocks
        self._callables: dict[int, Reducer] = {}
        self._places: dict[int, str] = {}

    # A mapping compares contents and has no hash, but torch keeps modules in sets.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __getitem__(self, block: int) -> Reducer:
        reducer: Any = self._callables.get(block)
        if reducer is None and isinstance(block, int):
            reducer = self._modules.get(str(block))
        if reducer is None:
            raise KeyError(block)
        return cast(Reducer, reducer)

    def __setitem__(self, block: int, reducer: Reducer) -> None:
        self._put(block, reducer, self._checked_place(block, reducer))

    def __delitem__(self, block: int) -> None:
        if isinstance(self[block], nn.Module):
            delattr(self, str(block))
        else:
            del self._callables[block]
            del self._places[block]

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        if name.isdecimal():
            self._places.pop(int(name), None)

    def __contains__(self, block: object) -> bool:
        return block in self._callables or (isinstance(block, int) and self._modules.get(str(block)) is not None)

    def __iter__(self) -> Iterator[int]:
        modules = [int(name) for name, module in self._modules.items() if name.isdecimal() and module is not None]
        return iter(sorted([*modules, *self._callables]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def replace(self, reducers: Mapping[int, Reducer]) -> None:
        """Replaces all reducers with the given ones; if one is refused, nothing changes."""
        if not isinstance(reducers, Mapping):
            raise TypeError(f"reducers: expected a dict from block to reducer, got {type(reducers).__name__}")
        given = dict(reducers.items())
        places = {block: self._checked_place(block, reducer) for block, reducer in given.items()}
        self.clear()
        for block, reducer in given.items():
            self._put(block, reducer, places[block])

    def placed(self, block: int) -> PlacedReducer | None:
        """The reducer of a block, with its place there, or None."""
        if block not in self:
            return None
        reducer, place = self[block], self._places.get(block)
        # A module that was registered by name, and not by `__setitem__`, has no place yet.
        return PlacedReducer(block, self._checked_place(block, reducer) if place is None else place, reducer)

    def extra_repr(self) -> str:
        """The callables, which are not child modules."""
        return ", ".join(f"({block}): {self._callables[block]!r}" for block in sorted(self._callables))

    def _put(self, block: int, reducer: Reducer, place: str) -> None:
        if isinstance(reducer, nn.Module):
            self._callables.pop(block, None)
            self.add_module(str(block), reducer)
        else:
            self._modules.pop(str(block), None)
            self._callables[block] = reducer
        self._places[block] = place

    def _checked_place(self, block: Any, reducer: Any) -> str:
        if isinstance(block, bool) or not isinstance(block, int):
            raise TypeError(f"reducers: expected block numbers as keys, got {block!r}")
        if not 0 <= block < self._num_blocks:
            raise ValueError(f"reducers: expected blocks from 0 to {self._num_blocks - 1}, got {block}")
        if isinstance(reducer, type):
            raise TypeError(f"reducers[{block}]: expected an instance, got the class {reducer.__name__}")
        if not callable(reducer):
            raise TypeError(f"reducers[{block}]: expected a callable, got {type(reducer).__name__}")
        place = getattr(reducer, "place", None)
        if not isinstance(place, str) or place not in PLACES:
            raise ValueError(f"reducers[{block}].place: expected one of {', '.join(PLACES)}, got {place!r}")
        return place
