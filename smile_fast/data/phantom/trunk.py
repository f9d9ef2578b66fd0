"""The trunk that holds the organs: skin, fat, muscle wall, ribs, spine, lung bases, heart, and the table below it."""

from dataclasses import dataclass

import numpy as np

from smile_fast.data.phantom.fields import Field, Space, cover, ellipsoid, smooth_noise, superellipse
from smile_fast.data.phantom.painting import Canvas


@dataclass(frozen=True)
class Build:
    """A patient's build.

    Attributes:
        width, depth: half axes of the trunk, mm.
        fat: thickness of the subcutaneous fat at the flank, mm.
        wall: thickness of the muscle wall at the flank, mm.
        margin: thickness of the fat between neighbouring organs, mm.
        dome: height of the left dome of the diaphragm, mm.
        power: exponent of the outline's superellipse.
    """

    width: float
    depth: float
    fat: float
    wall: float
    margin: float
    dome: float
    power: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Build":
        """Draw a patient: the stout are wider, with more fat everywhere."""
        stout = rng.uniform()
        return cls(
            width=150 + 20 * stout + rng.normal(0, 3),
            depth=102 + 20 * stout + rng.normal(0, 3),
            fat=4 + 12 * stout,
            wall=rng.uniform(16, 22),
            margin=2.5 + 2.0 * stout,
            dome=rng.uniform(58, 76),
            power=rng.uniform(2.2, 2.6),
        )

    @property
    def cavity(self) -> tuple[float, float]:
        """Half axes of the inside of the muscle wall, mm."""
        return self.width - self.fat - self.wall, self.depth - 1.3 * self.fat - 2 - 0.75 * self.wall


@dataclass(frozen=True)
class Shell:
    """The nested surfaces of the trunk as distances, [D, H, W] mm, negative inside.

    Attributes:
        skin: the patient's outline.
        muscle: outside of the muscle wall.
        inside: inside of the muscle wall.
    """

    skin: Field
    muscle: Field
    inside: Field


def elliptic_shell(space: Space, build: Build, ripple: Field) -> Shell:
    """An oval trunk; ``ripple`` [D, H, W] mm makes it uneven."""
    power = build.power
    front = build.depth - 1.3 * build.fat - 2
    return Shell(
        superellipse(space, (0, 0), (build.width, build.depth), power) + ripple,
        superellipse(space, (0, 1), (build.width - build.fat, front), power) + ripple,
        superellipse(space, (0, -1), build.cavity, power) + ripple,
    )


def add_trunk(
    canvas: Canvas, space: Space, shell: Shell, spine_y: float, build: Build, rng: np.random.Generator
) -> Field:
    """Paint everything but the viscera and the lungs.

    Args:
        canvas: takes the tissues.
        space: coordinates; the spine stands at x = 0.
        shell: surfaces of the trunk.
        spine_y: y of the vertebral bodies' centre, mm.
        build: the patient.
        rng: the case's generator.

    Returns:
        Distance to the abdominal cavity, [D, H, W] mm, negative where organs may lie.
    """
    grid = canvas.grid
    box, edge = grid.whole, grid.spacing[2]
    _add_table(canvas, shell.skin)
    canvas.add("skin", box, cover(shell.skin, edge))
    canvas.add("subcutaneous", box, cover(shell.skin + np.float32(2), edge))
    canvas.add("muscle", box, cover(shell.muscle, edge))
    # Fat lies between the flat muscles of the flank, and parts the straight ones in the middle.
    layers = np.abs(shell.muscle + np.float32(0.42 * build.wall)) - np.float32(0.6)
    canvas.add("visceral_fat", box, 0.7 * cover(np.maximum(layers, space.y - 40), edge))
    midline = np.maximum(np.abs(space.x) - np.float32(2.0), space.y + 30)
    canvas.add("visceral_fat", box, 0.8 * cover(np.maximum(midline, shell.muscle + 1), edge))
    canvas.add("visceral_fat", box, cover(shell.inside, edge))
    _add_ribs(canvas, space, shell.muscle, build, rng)
    back = _add_back(canvas, space, shell.skin, spine_y, rng)
    cavity: Field = np.maximum(shell.inside + np.float32(1.5), np.float32(2) - back)
    _add_strands(canvas, cavity, rng)
    return cavity


def _add_table(canvas: Canvas, skin: Field) -> None:
    """A thin curved shell that the patient lies on."""
    _, y, x = canvas.grid.axes
    behind = y[np.nonzero((skin < 0).any(axis=(0, 2)))[0][-1]]
    gap = 13 if canvas.scanner is None else canvas.scanner.table
    surface = np.float32(behind + gap) - (x / 60) ** 2
    distance = np.abs(y[:, None] - surface[None, :]) - np.float32(2)
    mask = np.broadcast_to(cover(distance, canvas.grid.spacing[1]), canvas.grid.shape)
    canvas.add("table", canvas.grid.whole, np.ascontiguousarray(mask))


def _add_ribs(canvas: Canvas, space: Space, muscle: Field, build: Build, rng: np.random.Generator) -> None:
    """Ribs run forwards and downwards in the middle of the wall, and leave the front free."""
    depth = muscle + np.float32(0.6 * build.wall)
    pitch = rng.uniform(26, 32)
    phase = (space.z - np.float32(0.75) * space.y + np.float32(rng.uniform(0, pitch))) / np.float32(pitch)
    along = (phase - np.round(phase)) * np.float32(pitch)
    rib = np.sqrt(depth**2 + (along * np.float32(0.62)) ** 2) - np.float32(3.8)
    # The costal arch: no rib in front of it, and it opens towards the feet.
    rib = np.maximum(rib, np.float32(-45) - space.y - np.float32(0.6) * space.z)
    edge = canvas.grid.spacing[2]
    canvas.add("cortical_bone", canvas.grid.whole, cover(rib, edge))
    canvas.add("spongy_bone", canvas.grid.whole, cover(rib + np.float32(2.2), edge))


def _add_back(canvas: Canvas, space: Space, skin: Field, spine_y: float, rng: np.random.Generator) -> Field:
    """Spine and the muscles beside it; returns the distance to their union, [D, H, W] mm."""
    grid, edge = canvas.grid, canvas.grid.spacing[2]
    box = space.box((-100, spine_y - 40, -1e5), (100, 1e5, 1e5))
    near = space[box]
    x, y, z = np.abs(near.x), near.y - np.float32(spine_y), near.z
    mirrored = Space(x, y, z, near.axes, near.pad)  # the spine's two sides are alike up to the warp
    bulk = rng.uniform(0.9, 1.15)
    erector = superellipse(mirrored, (31, 37), (29 * bulk, 20 * bulk), 2.3)
    psoas = superellipse(mirrored, (34, 4), (15, 19), 2.0) + np.clip(0.2 * z + 8, 0, 30)
    crus = np.where(z > 5, superellipse(mirrored, (0, -6), (27, 20), 2.0), np.float32(30))
    soft = np.minimum(np.minimum(erector, psoas), crus).astype(np.float32)
    canvas.add("visceral_fat", box, cover(np.minimum(erector, psoas) - np.float32(3), edge))
    canvas.add("muscle", box, cover(soft, edge))
    groove = np.maximum(superellipse(mirrored, (0, 62), (10, 16), 2), skin[box] + 2)
    canvas.add("subcutaneous", box, cover(groove, edge))
    # Vertebrae every 34 mm with discs of 8 mm between them; a process at the middle of each.
    level = (z + np.float32(rng.uniform(0, 34))) / np.float32(34)
    level = np.abs(level - np.round(level)) * np.float32(34)
    body = superellipse(mirrored, (0, 0), (23, 17.5), 2.2) + np.float32(0.12) * (6 - level)
    lamina = np.maximum(np.abs(superellipse(mirrored, (0, 22), (14, 12), 2)) - 3, level - 14)
    process = np.maximum(np.maximum(x - 3.5, np.abs(y - 42) - 13), level - 12)
    transverse = np.maximum(np.maximum(np.abs(y - 20 - np.float32(0.15) * x) - 4, x - 38), level - 6)
    rear = np.minimum(np.minimum(process, lamina), transverse).astype(np.float32)
    canvas.add("cortical_bone", box, cover(np.minimum(body, rear), edge))
    canvas.add("spongy_bone", box, cover(body + np.float32(3), edge))
    canvas.add("disc", box, cover(np.maximum(body, np.float32(13) - level), edge))
    canvas.add("cord", box, cover(superellipse(mirrored, (0, 22), (9, 7.5), 2), edge))
    distance = np.full(grid.shape, np.float32(60))
    distance[box] = np.minimum(soft, np.minimum(body, rear))
    return distance


def _add_strands(canvas: Canvas, cavity: Field, rng: np.random.Generator) -> None:
    """Small vessels in the fat: where two random fields are both near zero is a set of thin winding tubes."""
    grid = canvas.grid
    vessel = np.hypot(smooth_noise(rng, grid, 26.0), smooth_noise(rng, grid, 26.0)) * np.float32(12) - np.float32(2.6)
    canvas.add("strand", grid.whole, cover(np.maximum(vessel, cavity + 6), grid.spacing[2]))


def diaphragm(space: Space, build: Build) -> Field:
    """Distance to the abdominal side of the diaphragm, [D, H, W] mm, negative below it: two domes, the right higher."""
    half_x, half_y = build.cavity
    u = (space.x - np.clip(space.x, -25, 25)) / np.float32(half_x - 25)
    v = (space.y + 8) / np.float32(half_y)
    radius = (np.abs(u) ** build.power + np.abs(v) ** build.power) ** np.float32(1 / build.power)
    valley = 12 * np.exp(-((space.x / 22) ** 2))
    height = np.float32(build.dome) + 8 * (space.x < 0) - valley - 26 * radius**4 - 40 * np.minimum(radius, 1.05) ** 24
    distance: Field = ((space.z - height) * 0.7).astype(np.float32)
    return distance


def add_chest(canvas: Canvas, space: Space, cavity: Field, dome: Field, top: float) -> None:
    """Lung above the diaphragm, with the heart between the lungs.

    Args:
        canvas: takes the tissues.
        space: coordinates.
        cavity: distance to the cavity within the wall, [D, H, W] mm.
        dome: distance to the diaphragm, [D, H, W] mm, negative below it.
        top: height of the diaphragm below the heart, mm.
    """
    box, edge = canvas.grid.whole, canvas.grid.spacing[2]
    lung = np.maximum(cavity - np.float32(1), np.float32(1.5) - dome)
    canvas.add("muscle", box, cover(np.maximum(cavity, -dome), edge))
    canvas.add("lung", box, cover(lung, edge))
    if not (lung < 0).any():
        return
    heart = np.maximum(ellipsoid(space, (18, -32, top + 34), (58, 42, 42), lean=0.2), np.float32(2) - dome)
    heart = np.maximum(heart, cavity)
    canvas.add("visceral_fat", box, cover(heart - 4, edge))
    canvas.add("heart", box, cover(heart, edge))
    canvas.add("blood", box, cover(heart + 11, 3 * edge))
