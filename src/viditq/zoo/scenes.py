"""What the bundled pipelines know how to draw: captioned scenes of one shape over a background.

A scene is a choice per attribute (shape, colour, size, ...), and its caption says that choice in a
fixed wording, so a caption can be parsed back and quality can be counted without a human. A scene
of kind "image" has a position, one of kind "video" has a motion.

Held out: one in eight of all (shape, colour, pattern, background) combinations. Captions with such
a combination, whatever their other words, are never trained on.

It declines to be a language: one object, one sentence form, no synonyms.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

__all__ = [
    "ATTRIBUTES",
    "KINDS",
    "Scene",
    "held_out_combinations",
    "is_possible",
    "sample_scenes",
]

KINDS = ("image", "video")

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "moon")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SIZES = ("small", "medium", "large")
TEXTURES = ("plain", "striped", "dotted", "shaded")
PATTERNS = ("plain", "checkerboard", "stripes", "gradient", "dots")
BACKGROUNDS = ("blue", "green", "red", "purple", "grey", "brown")
POSITIONS = ("left", "right", "top", "bottom", "centre")
MOTIONS = ("still", "left", "right", "up", "down", "orbit", "grow", "shrink")

_COMMON = {
    "shape": SHAPES,
    "colour": COLOURS,
    "size": SIZES,
    "texture": TEXTURES,
    "pattern": PATTERNS,
    "background": BACKGROUNDS,
}
# The order is the order of the columns of batches.SceneBatch.indices.
ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "image": {**_COMMON, "position": POSITIONS},
    "video": {**_COMMON, "motion": MOTIONS},
}

_POSITION_WORDS = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "centre": "in the centre",
}
_MOTION_WORDS = {
    "still": "standing still",
    "left": "moving left",
    "right": "moving right",
    "up": "moving up",
    "down": "moving down",
    "orbit": "orbiting",
    "grow": "growing",
    "shrink": "shrinking",
}
_PATTERN_WORDS = {
    "plain": "a {} background",
    "checkerboard": "a {} checkerboard",
    "stripes": "{} stripes",
    "gradient": "a {} gradient",
    "dots": "{} dots",
}
_HELD_OUT_SHARE = 8
_SPLIT_SEED = 20261123


@dataclass(frozen=True)
class Scene:
    """One shape over one background; exactly one of ``position`` and ``motion`` is given."""

    shape: str
    colour: str
    size: str
    texture: str
    pattern: str
    background: str
    position: str | None = None
    motion: str | None = None

    def __post_init__(self) -> None:
        if (self.position is None) == (self.motion is None):
            raise ValueError("a scene has either a position (image) or a motion (video)")
        for name, accepted in ATTRIBUTES[self.kind].items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {accepted}")
        if not is_possible(self.colour, self.background):
            raise ValueError(f"a {self.colour} shape would vanish over {self.background}")

    @property
    def kind(self) -> str:
        return "image" if self.motion is None else "video"

    @property
    def held_out(self) -> bool:
        """Whether this scene's combination is never trained on."""
        return (self.shape, self.colour, self.pattern, self.background) in held_out_combinations()

    def attributes(self) -> dict[str, str]:
        """What the caption says. A growing or shrinking shape has no one size."""
        said = {name: getattr(self, name) for name in ATTRIBUTES[self.kind]}
        if self.motion in ("grow", "shrink"):
            del said["size"]
        return said

    def caption(self) -> str:
        words = ["a"]
        if "size" in self.attributes():
            words.append(self.size)
        if self.texture != "plain":
            words.append(self.texture)
        words += [self.colour, self.shape]
        words.append(
            _POSITION_WORDS[self.position] if self.position else _MOTION_WORDS[self.motion or ""]
        )
        words += ["over", _PATTERN_WORDS[self.pattern].format(self.background)]
        caption = " ".join(words)
        # "a orange heart", where size and texture are unsaid
        return caption.replace("a orange", "an orange", 1)

    @staticmethod
    def parse(caption: str) -> "Scene":
        """The scene that a caption says; a size that is unsaid is read as medium."""
        objects, _, ground = caption.lower().strip().partition(" over ")
        for place, kind in [(w, "position") for w in _POSITION_WORDS] + [
            (w, "motion") for w in _MOTION_WORDS
        ]:
            words = (_POSITION_WORDS if kind == "position" else _MOTION_WORDS)[place]
            if objects.endswith(" " + words):
                noun = objects.removesuffix(" " + words).split()[1:]
                break
        else:
            raise ValueError(f"caption {caption!r} has no position and no motion")
        size = noun.pop(0) if noun[:1] and noun[0] in SIZES else "medium"
        texture = noun.pop(0) if noun[:1] and noun[0] in TEXTURES else "plain"
        for pattern, words in _PATTERN_WORDS.items():
            before, _, after = words.partition("{}")
            if ground.startswith(before) and ground.endswith(after):
                background = ground.removeprefix(before).removesuffix(after)
                if background in BACKGROUNDS and len(noun) == 2:
                    return Scene(
                        noun[1], noun[0], size, texture, pattern, background, **{kind: place}
                    )
        raise ValueError(f"caption {caption!r} is not in the wording of the bundled pipelines")


def is_possible(colour: str, background: str) -> bool:
    """A shape needs a colour that its background has not."""
    return colour != background


@cache
def held_out_combinations() -> frozenset[tuple[str, str, str, str]]:
    """The (shape, colour, pattern, background) combinations that training never sees."""
    combinations = [
        (shape, colour, pattern, background)
        for shape, colour, pattern, background in product(SHAPES, COLOURS, PATTERNS, BACKGROUNDS)
        if is_possible(colour, background)
    ]
    number = len(combinations) // _HELD_OUT_SHARE
    return frozenset(random.Random(_SPLIT_SEED).sample(combinations, number))


def sample_scenes(kind: str, *, held_out: bool, seed: int) -> Iterator[Scene]:
    """An endless, seeded stream of scenes with distinct captions from one side of the split."""
    rng = random.Random(f"{kind} {held_out} {seed}")
    seen: set[str] = set()
    while True:
        choice = {name: rng.choice(accepted) for name, accepted in ATTRIBUTES[kind].items()}
        if not is_possible(choice["colour"], choice["background"]):
            continue
        scene = Scene(**choice)
        caption = scene.caption()
        if scene.held_out == held_out and caption not in seen:
            seen.add(caption)
            yield scene
