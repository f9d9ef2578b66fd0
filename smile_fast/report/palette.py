"""One colour per organ, the same in every chart and picture of a report."""

from collections.abc import Sequence

# Okabe and Ito's palette without yellow (kept for pseudo-labels) and black (text), then the darker half of Paul
# Tol's muted scheme: neighbours stay apart for the common kinds of colour blindness, on white and on grey CT. The last
# four are for the thirteen organs of the usual abdominal cohorts, and some more.
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#332288",
    "#999933",
    "#882255",
    "#44AA99",
    "#AA4499",
    "#117733",
    "#8B5A2B",
    "#7F3FFF",
    "#FF6FB5",
    "#3FBF3F",
)
PSEUDO = "#FFE400"
BACKGROUND = "#7FB2E5"  # of a round: certainly none of the organs that nobody drew
TRUTH = "#FFFFFF"
INK = "#1F2933"
MUTED = "#6B7785"


def organ_colours(organs: Sequence[str]) -> dict[str, str]:
    """Return each organ's colour as #RRGGBB; after sixteen organs the colours repeat."""
    return {organ: _COLOURS[index % len(_COLOURS)] for index, organ in enumerate(organs)}


def rgb(colour: str) -> tuple[int, int, int]:
    """Turn #RRGGBB into three numbers 0..255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
