"""Scenes by the thousand, as integer tensors on any device.

``SceneBatch.indices`` has one row per scene and one column per attribute, in the order of
``scenes.ATTRIBUTES``. Each scene also has one flat number (mixed radix), which is a row of
``text.caption_table``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from viditq.zoo.scenes import ATTRIBUTES, Scene, held_out_combinations, is_possible

__all__ = ["SceneBatch", "random_batch"]


@dataclass(frozen=True)
class SceneBatch:
    """N scenes of one kind; ``indices`` is (N, 7) int64."""

    kind: str
    indices: Tensor

    @staticmethod
    def of(scenes: Sequence[Scene]) -> "SceneBatch":
        kind = scenes[0].kind
        rows = [
            [accepted.index(getattr(scene, name)) for name, accepted in ATTRIBUTES[kind].items()]
            for scene in scenes
        ]
        return SceneBatch(kind, torch.tensor(rows))

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "SceneBatch":
        return SceneBatch(self.kind, self.indices[rows])

    def column(self, name: str) -> Tensor:
        """The choices (N,) of one attribute."""
        return self.indices[:, list(ATTRIBUTES[self.kind]).index(name)]

    def scenes(self) -> list[Scene]:
        table = ATTRIBUTES[self.kind]
        return [
            Scene(**{name: table[name][i] for name, i in zip(table, row, strict=True)})
            for row in self.indices.tolist()
        ]

    def numbers(self) -> Tensor:
        """One flat number (N,) per scene, mixed radix over the attributes."""
        number = torch.zeros_like(self.indices[:, 0])
        for column, accepted in enumerate(ATTRIBUTES[self.kind].values()):
            number = number * len(accepted) + self.indices[:, column]
        return number


@cache
def _trainable() -> Tensor:
    """True (8, 8, 5, 6) where a (shape, colour, pattern, background) may be trained on."""
    table = ATTRIBUTES["image"]
    shapes, colours = table["shape"], table["colour"]
    patterns, backgrounds = table["pattern"], table["background"]
    held_out = held_out_combinations()
    rows = [
        (s, c, p, b) not in held_out and is_possible(c, b)
        for s in shapes
        for c in colours
        for p in patterns
        for b in backgrounds
    ]
    return torch.tensor(rows).view(len(shapes), len(colours), len(patterns), len(backgrounds))


def random_batch(
    kind: str, number: int, generator: torch.Generator, *, everything: bool = False
) -> SceneBatch:
    """``number`` random scenes on the generator's device, from the training side of the split.

    With ``everything`` held-out combinations are drawn too: the judge must know all of them.
    """
    device = generator.device
    table = ATTRIBUTES[kind]
    indices = torch.empty(0, len(table), dtype=torch.int64, device=device)
    trainable = _trainable().to(device)
    while indices.shape[0] < number:
        columns = [
            torch.randint(len(accepted), (number,), generator=generator, device=device)
            for accepted in table.values()
        ]
        drawn = dict(zip(table, columns, strict=True))
        if everything:
            colours, backgrounds = table["colour"], table["background"]
            possible = torch.tensor(
                [[is_possible(c, b) for b in backgrounds] for c in colours], device=device
            )
            keep = possible[drawn["colour"], drawn["background"]]
        else:
            keep = trainable[drawn["shape"], drawn["colour"], drawn["pattern"], drawn["background"]]
        indices = torch.cat([indices, torch.stack(columns, dim=1)[keep]])
    return SceneBatch(kind, indices[:number])
