"""The card inside an exported file: what the file says about itself."""

import json
import sys
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from smile_runtime.errors import InputError, first_line
from smile_runtime.io.files import parse_json
from smile_runtime.label_map import MAX_ORGANS
from smile_runtime.volume.body import BodyRule
from smile_runtime.volume.pixel_size import PixelSpace
from smile_runtime.volume.preprocessing import ORIENTATION

METADATA_KEY = "smile_fast"  # of the entry in the file's metadata_props that holds the card
SCHEMA = 3
HEADS = ("sigmoid", "softmax")
PRECISIONS = ("fp32", "fp16", "int8")

_MAX_CARD_CHARACTERS = 2**20


@dataclass(frozen=True)
class ModelCard:
    """All that is needed to run an exported file and to know where it comes from.

    Attributes:
        organs: Names; label value k + 1 is organs[k].
        channels: Slices seen at once, odd.
        window: (lowest, highest) HU between which the network sees differences; applied inside the graph.
        head: ``sigmoid`` (one decision an organ) or ``softmax`` (the K + 1 class baseline).
        threshold: Probability above which a voxel belongs to an organ (sigmoid head); applied inside the graph.
        orientation: Of the slices, seen as [x, y, z]; only ``LPS`` is defined.
        provenance: How the model was made; any JSON object.
        parity: The certificate that the file computes what the training side computes; any JSON object.
        body: By which rule the air is left out before the network, as in training; None leaves nothing out.
        pixels: Which pixels the network sees, and those of the scans that it was trained on; None if that is not known,
            and then every scan's own pixels.
        precision: ``fp32``, ``fp16`` or ``int8``: what the network's convolutions compute in.
        schema: Version of this list.
    """

    organs: tuple[str, ...]
    channels: int
    window: tuple[float, float]
    head: str
    threshold: float = 0.5
    orientation: str = ORIENTATION
    provenance: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    body: BodyRule | None = None
    pixels: PixelSpace | None = None
    precision: str = "fp32"
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Check every field; a `ValueError` names the first that is wrong."""
        if self.schema != SCHEMA:
            raise ValueError(f"schema is {self.schema!r}, this version of smile_runtime reads {SCHEMA}")
        organs = self.organs
        if not isinstance(organs, tuple) or not all(isinstance(o, str) and o.isprintable() and o for o in organs):
            raise ValueError("organs is not a list of names")
        if not 1 <= len(set(organs)) == len(organs) <= MAX_ORGANS:
            raise ValueError(f"organs has {len(organs)} names, 1..{MAX_ORGANS} different ones are wanted")
        if type(self.channels) is not int or self.channels < 1 or self.channels % 2 == 0:
            raise ValueError(f"channels is {self.channels!r}, a positive odd number is wanted")
        if not isinstance(self.window, tuple) or len(self.window) != 2 or not all(map(_is_finite, self.window)):
            raise ValueError(f"window is {self.window!r}, two finite numbers are wanted")
        if not self.window[0] < self.window[1]:
            raise ValueError(f"window is {list(self.window)}, lowest < highest is wanted")
        if self.head not in HEADS:
            raise ValueError(f"head is {self.head!r}, one of {', '.join(HEADS)} is wanted")
        if not _is_finite(self.threshold) or not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold!r}, a number between 0 and 1 is wanted")
        if self.orientation != ORIENTATION:
            raise ValueError(f"orientation is {self.orientation!r}, {ORIENTATION!r} is wanted")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}, one of {', '.join(PRECISIONS)} is wanted")
        if not isinstance(self.provenance, dict) or not isinstance(self.parity, dict):
            raise ValueError("provenance and parity must be JSON objects")
        if self.body is not None and not isinstance(self.body, BodyRule):
            raise ValueError("body is neither None nor a BodyRule")
        if self.pixels is not None and not isinstance(self.pixels, PixelSpace):
            raise ValueError("pixels is neither None nor a PixelSpace")

    @property
    def pixel_size(self) -> float | None:
        """Side of the network's pixels, mm; None for every scan's own."""
        return None if self.pixels is None else self.pixels.pixel_size

    def to_json(self) -> str:
        """The text that goes into the file's metadata under `METADATA_KEY`.

        Raises:
            ValueError: Provenance or parity holds NaN or an infinite number.
        """
        return json.dumps({"schema": self.schema, **asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, source: str = "model") -> "ModelCard":
        """Read and check what `to_json` wrote.

        Args:
            text: JSON.
            source: What it was read from, for messages.

        Raises:
            InputError: The text is no JSON object, a field is missing, unknown or wrong, or the schema is another.
        """
        try:
            if len(text) > _MAX_CARD_CHARACTERS:
                raise ValueError(f"it has {len(text)} characters")
            card = parse_json(text)
            if card.get("schema") != SCHEMA:  # the fields depend on it
                raise ValueError(f"schema is {card.get('schema')!r}, this version of smile_runtime reads {SCHEMA}")
            names = {item.name for item in fields(cls)}
            if wrong := sorted(names ^ set(card)):
                raise ValueError(f"{wrong[0]} is {'missing' if wrong[0] in names else 'unknown'}")
            for name in ("organs", "window"):
                card[name] = tuple(card[name]) if isinstance(card[name], list) else card[name]
            rules = {"body": BodyRule.from_json(card["body"]), "pixels": PixelSpace.from_json(card["pixels"])}
            return cls(**card | rules)
        except ValueError as error:
            raise InputError(f"{source}: model card cannot be used, {first_line(error)}; export it again") from error


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
