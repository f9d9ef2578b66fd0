"""The values of a label map, uint8 per voxel: constants and nothing else, so that every layer may import them.

0 is unlabelled (background only where an organ's declaration says so), 1..126 is an organ, 0x81..0xFE is a pseudo-label
of one, 0x80 is pseudo-background, and 255 is void; 127 means nothing.
`csrc/core` spells out what its kernels need of them.
"""

LABEL_VALUES = 256
"""How many values a uint8 has: the length of lookup tables, histograms and supervision tables."""

VOID = 255
"""A voxel on which no organ is supervised, evaluated or audited."""

PSEUDO_BIT = 0x80
"""Set in the label of a voxel that a relabelling round added: `PSEUDO_BIT | value of the organ`."""

PSEUDO_BACKGROUND = PSEUDO_BIT
"""A voxel that a relabelling round took for none of the organs that nobody drew in its case."""

ORGAN_BITS = 0x7F
"""The rest of such a label: the value of its organ."""

MAX_ORGANS = 126
"""Most organs of a label map: the pseudo-label of a 127th, 0x80 | 127, would be `VOID`."""

WORD_BITS = 32
"""Organs that one word of a supervision table holds: organ k is bit k % 32 of word k // 32."""
