"""A procedural upper abdomen: implicit organs in their usual places, different in every patient."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from smile_fast.data.phantom.fields import (
    FAR,
    Box,
    Curve,
    Field,
    Grid,
    cover,
    curve,
    ellipsoid,
    smooth_noise,
    tube,
    tube_box,
    union,
    warp,
)
from smile_fast.data.phantom.painting import Canvas
from smile_fast.data.phantom.scanners import Scanner
from smile_fast.data.phantom.trunk import Build, add_chest, add_trunk, diaphragm, elliptic_shell

_COVERAGE = 150.0  # length of the scan along z, mm
_CENTRE = -8.0  # its middle, mm
_BLOB_TISSUES = ("liver", "pancreas", "spleen", "kidney", "aorta", "bile", "stomach_content", "muscle")


class _Patient:
    """Adds organs to one patient; every method paints one and none looks at another's voxels."""

    def __init__(
        self, rng: np.random.Generator, organs: Sequence[str], size: int, slices: int, scanner: Scanner | None
    ) -> None:
        self.rng = rng
        self.build = Build.draw(rng)
        # A scanner's operator fits the field of view to the patient.
        pixel = 2 * self.build.width * rng.uniform(1.05, 1.13) / size
        if scanner is not None:
            pixel, slices = pixel * scanner.pixel, scanner.slices(slices)
        grid = self.grid = Grid((slices, size, size), (_COVERAGE / slices, pixel, pixel))
        self.canvas = Canvas(rng, grid, organs, scanner)
        self.space = warp(rng, grid, 5.0, 85.0, _CENTRE)
        shell = elliptic_shell(self.space, self.build, 3.0 * smooth_noise(rng, grid, 90.0))
        spine_y = self.build.cavity[1] - 40
        self.cavity = add_trunk(self.canvas, self.space, shell, spine_y, self.build, rng)
        self.dome = diaphragm(self.space, self.build)
        add_chest(self.canvas, self.space, self.cavity, self.dome, self.build.dome - 12)
        self.fine = smooth_noise(rng, grid, 16.0)
        self.rough = smooth_noise(rng, grid, 38.0)
        # Positions below are for a wall of 128 x 78 mm; a patient's organs move with the wall.
        self.sx, self.sy = self.build.cavity[0] / 128, self.build.cavity[1] / 78

    def at(self, x: float, y: float, z: float, spread: float) -> tuple[float, float, float]:
        """A template position, scaled to the patient, with a random offset of ``spread`` mm."""
        dx, dy, dz = self.rng.normal(0, spread, 3)
        return self.sx * x + dx, self.sy * y + dy, z + dz

    def path(self, points: ArrayLike, spread: float, samples: int) -> Curve:
        """A spline through template points (x, y, z, radius), each offset by ``spread`` mm."""
        p = np.array(points, np.float64)
        p[:, :3] = p[:, :3] * [self.sx, self.sy, 1.0] + self.rng.normal(0, spread, (len(p), 3))
        p[:, 3] *= self.rng.uniform(0.9, 1.12)
        return curve(p, samples)

    def block(self, centre: Sequence[float], radii: Sequence[float]) -> Box:
        """The block that holds a turned ellipsoid and its rim."""
        reach = max(radii[0], radii[1]) + FAR, max(radii[0], radii[1]) + FAR, radii[2] + FAR
        low, high = ([c + sign * r for c, r in zip(centre, reach, strict=True)] for sign in (-1, 1))
        return self.space.box(low, high)

    def organ(self, tissue: str, box: Box, distance: Field, organ: str = "", margin: float | None = None) -> None:
        """Paint an organ within the cavity, with a rim of fat that separates it from what lies below."""
        distance = np.maximum(distance, self.cavity[box])
        edge = self.grid.spacing[2]
        rim = self.build.margin if margin is None else margin
        if rim > 0:
            self.canvas.add("visceral_fat", box, cover(distance - np.float32(rim), edge))
        self.canvas.add(tissue, box, cover(distance, edge), organ)

    def liver(self) -> None:
        rng = self.rng
        size = rng.uniform(0.82, 0.95)
        right, right_radii = self.at(-76, -2, 14, 4), [r * size for r in (74, 82, 76)]
        left, left_radii = self.at(2, -44, 34, 5), (rng.uniform(45, 70), 30 * size, rng.uniform(28, 40))
        box = self.space.box((-170, -130, -100), (120, 110, 110))
        near = self.space[box]
        distance = union(
            ellipsoid(near, right, right_radii, tilt=0.15), ellipsoid(near, left, left_radii, lean=0.2), 40
        )
        # The visceral surface looks down, back and to the left; it is slightly hollow.
        normal = np.array([0.62, 0.32, -0.62]) + rng.normal(0, 0.05, 3)
        normal /= np.linalg.norm(normal)
        point = self.at(-42, -8, -12, 4)
        above = sum(
            np.float32(n) * (a - np.float32(p)) for n, a, p in zip(normal, (near.x, near.y, near.z), point, strict=True)
        )
        hollow = above - 10 + 5 * self.rough[box]
        distance = -union(-distance, -hollow.astype(np.float32), 18)
        distance = distance + 2.0 * self.rough[box] + 0.8 * self.fine[box]
        distance = np.maximum(distance, self.dome[box] + 1)
        # Fissure of the round ligament, between the lobes.
        fissure = np.maximum(np.abs(near.x + 16 + 0.15 * near.y) - 1.6, np.maximum(near.y + 36, near.z - 18))
        distance = np.maximum(distance, -fissure)
        self.organ("liver", box, distance.astype(np.float32), "liver", margin=0.6 * self.build.margin)
        self._hepatic_vessels(box, distance.astype(np.float32))

    def _hepatic_vessels(self, box: Box, liver: Field) -> None:
        near = self.space[box]
        for sign in (-1.0, 0.2, -0.4):
            path = self.path(
                [(-20, 16, 30, 6), (-50, 5 + 20 * sign, 34, 5), (-90, 30 * sign, 30 + 12 * sign, 3)], 5, 14
            )
            vessel = np.maximum(tube(near, path), liver + 4)
            self.canvas.add("hepatic_vessel", box, cover(vessel, self.grid.spacing[2]), "liver")

    def spleen(self) -> None:
        centre = self.at(97, 28, 20, 4)
        radii = [r * self.rng.uniform(0.85, 1.15) for r in (34, 50, 50)]
        box = self.block(centre, radii)
        near = self.space[box]
        hilum = ellipsoid(near, (centre[0] - 34, centre[1] - 22, centre[2]), (24, 34, 60))
        distance = -union(-ellipsoid(near, centre, radii, tilt=-0.5), hilum, 8) + 1.2 * self.rough[box]
        distance = np.maximum(distance, self.dome[box] + 1)
        self.organ("spleen", box, distance.astype(np.float32), "spleen")

    def blobs(self, organs: Sequence[str]) -> None:
        """Ellipsoids on a lattice that fills the cavity, one an organ, at the same place in every patient."""
        places, pitch = lattice(len(organs))
        for organ, place, tissue in zip(organs, places, itertools.cycle(_BLOB_TISSUES)):
            centre = self.at(*place, 0.05 * pitch)
            radii = [pitch * r for r in self.rng.uniform(0.3, 0.42, 3)]
            box = self.block(centre, radii)
            self.organ(tissue, box, ellipsoid(self.space[box], centre, radii), organ, margin=0.0)

    def kidneys(self) -> None:
        for side, name, z in ((-1, "kidney_right", -34), (1, "kidney_left", -18)):
            centre = self.at(side * 62, 39, z, 4)
            radii = [r * self.rng.uniform(0.9, 1.12) for r in (25, 29, 50)]
            box = self.block(centre, [r + 8 for r in radii])
            near = self.space[box]
            distance = ellipsoid(near, centre, radii, tilt=side * 0.5, lean=side * 0.25) + 0.8 * self.fine[box]
            sinus = ellipsoid(near, (centre[0] - side * 17, centre[1] - 12, centre[2]), (14, 9, 22), tilt=side * 0.6)
            distance = -union(-distance, sinus, 5)
            self.organ("kidney", box, distance, name, margin=2.2 * self.build.margin)
            medulla = np.maximum(distance + 8, np.float32(3) - sinus)
            self.canvas.add("medulla", box, cover(medulla, 4 * self.grid.spacing[2]), name)

    def vessels(self) -> None:
        y = 78 - 42 - 32.0
        aorta = self.path([(9, y, -110, 9.5), (10, y, -30, 10), (8, y + 6, 40, 11), (10, y + 12, 110, 12)], 2, 40)
        cava = self.path(
            [(-22, y + 4, -110, 11), (-23, y + 2, -30, 11), (-26, y - 2, 30, 12), (-24, y - 16, 110, 13)], 2, 40
        )
        for name, path in (("aorta", aorta), ("inferior_vena_cava", cava)):
            box = tube_box(self.space, path)
            self.organ(name, box, tube(self.space[box], path), name, margin=2.0)
        esophagus = self.path([(14, y - 16, 110, 9), (20, y - 22, 60, 9), (36, y - 26, 46, 9)], 2, 16)
        box = tube_box(self.space, esophagus)
        self.organ("bowel_wall", box, tube(self.space[box], esophagus), "esophagus", margin=2.0)
        for side in (-1, 1):
            gland = self.path(
                [(side * 38, y + 16, 24, 4), (side * 46, y + 26, 18, 4), (side * 52, y + 34, 8, 3)], 2, 10
            )
            box = tube_box(self.space, gland)
            self.organ("pancreas", box, tube(self.space[box], gland), "", margin=1.5)

    def stomach(self) -> None:
        rng = self.rng
        full = rng.uniform(0.88, 1.2)
        low = rng.normal(0, 7)
        path = self.path(
            [
                (72, -4, 52, 24 * full),
                (75, -20, 32, 31 * full),
                (70, -36, 8, 27 * full),
                (50, -48, -14 + low, 21 * full),
                (18, -50, -24 + low, 17 * full),
                (-12, -42, -18 + low / 2, 13),
                (-26, -34, -14, 9),
            ],
            4,
            32,
        )
        box = tube_box(self.space, path)
        near = self.space[box]
        distance = tube(near, path) + 2.0 * self.rough[box] + 1.0 * self.fine[box]
        distance = np.maximum(distance, self.dome[box] + 1)
        self.organ("stomach_wall", box, distance, "stomach")
        self.canvas.fill(
            "stomach",
            box,
            np.maximum(distance, self.cavity[box]),
            rng.uniform(4, 8),
            "stomach",
            rng.uniform(-0.3, 0.75),
        )

    def pancreas(self) -> None:
        size = self.rng.uniform(1.12, 1.3)
        rise = self.rng.normal(0, 5)
        path = self.path(
            [
                (-30, -4, -40, 13 * size),
                (-26, -12, -26, 13 * size),
                (-6, -24, -16, 11 * size),
                (18, -24, -10 + 0.4 * rise, 11.5 * size),
                (44, -10, 0 + 0.8 * rise, 11.5 * size),
                (66, 6, 10 + rise, 11 * size),
                (82, 14, 18 + rise, 9.5 * size),
            ],
            3.5,
            30,
        )
        box = tube_box(self.space, path, 1.25)
        distance = tube(self.space[box], path, 1.25) + 1.2 * self.fine[box] + 0.8 * self.rough[box]
        self.organ("pancreas", box, distance, "pancreas", margin=1.2 * self.build.margin)

    def splenic_vein(self) -> None:
        vein = self.path([(-16, 0, -24, 5.5), (10, -9, -10, 5), (46, 6, 4, 4), (84, 24, 20, 4)], 2, 24)
        box = tube_box(self.space, vein)
        self.organ("inferior_vena_cava", box, tube(self.space[box], vein), "", margin=0)

    def gallbladder(self) -> None:
        centre = self.at(-56, -44, -24, 5)
        radii = [r * self.rng.uniform(0.8, 1.2) for r in (14, 17, 24)]
        box = self.block(centre, radii)
        self.organ("bile", box, ellipsoid(self.space[box], centre, radii, lean=0.4), "gallbladder", margin=1.0)

    def duodenum(self) -> None:
        path = self.path(
            [(-34, -32, -14, 11), (-48, -20, -22, 12), (-50, -6, -42, 12), (-40, 0, -60, 12), (0, -8, -68, 11)], 3, 20
        )
        box = tube_box(self.space, path)
        distance = tube(self.space[box], path) + self.fine[box]
        self.organ("bowel_wall", box, distance, "duodenum")
        self.canvas.fill(
            "bowel", box, np.maximum(distance, self.cavity[box]), 4, "duodenum", self.rng.uniform(-0.6, 0.5)
        )

    def bowel(self) -> None:
        """Colon and loops of small bowel, painted first: every other organ displaces them."""
        rng = self.rng
        for _ in range(14):
            start = np.array([rng.uniform(-70, 100), rng.uniform(-60, 10), rng.uniform(-85, -28)])
            steps = rng.normal(0, 1, (3, 3)) * [26, 14, 9]
            points = np.concatenate([start + np.cumsum(steps, 0), np.full((3, 1), rng.uniform(10, 15))], axis=1)
            self._loop("small_bowel", points, 3.5, rng.uniform(-1.2, 0.4))
        colon = [
            [(-100, 10, -100, 20), (-100, 0, -60, 21), (-92, -22, -36, 20), (-70, -48, -38, 18)],
            [(-70, -50, -40, 18), (-30, -62, -52, 17), (20, -64, -54, 17), (70, -54, -34, 17)],
            [(70, -52, -32, 17), (104, -24, -8, 18), (112, 10, -14, 16), (108, 24, -50, 15), (106, 26, -100, 15)],
        ]
        for part in colon:
            self._loop("colon", part, 3.0, rng.uniform(-0.3, 0.8))

    def _loop(self, organ: str, points: ArrayLike, wall: float, level: float) -> None:
        path = self.path(points, 4, 14)
        box = tube_box(self.space, path)
        distance = tube(self.space[box], path) + 1.5 * self.fine[box]
        self.organ("bowel_wall", box, distance, organ, margin=2.0)
        self.canvas.fill(
            "bowel" if organ == "small_bowel" else "colon",
            box,
            np.maximum(distance, self.cavity[box]),
            wall,
            organ,
            level,
        )


def procedural(
    rng: np.random.Generator, organs: Sequence[str], size: int, slices: int, scanner: Scanner | None = None
) -> Canvas:
    """Draw one patient.

    Args:
        rng: the case's generator.
        organs: the labelled organs, value 1 first.
        size: rows and columns of a slice.
        slices: number of slices, over 150 mm of the upper abdomen.
        scanner: of the case's source, if it has one; its slice distance changes the number of slices.
    """
    patient = _Patient(rng, organs, size, slices, scanner)
    patient.bowel()
    patient.spleen()
    patient.liver()
    patient.kidneys()
    patient.gallbladder()
    patient.vessels()
    patient.splenic_vein()
    patient.duodenum()
    patient.stomach()
    patient.pancreas()
    return patient.canvas


def synthetic_names(count: int) -> tuple[str, ...]:
    """organ_01, organ_02, ..."""
    return tuple(f"organ_{number:02}" for number in range(1, count + 1))


def synthetic(
    rng: np.random.Generator, organs: Sequence[str], size: int, slices: int, scanner: Scanner | None = None
) -> Canvas:
    """A trunk with any number of ellipsoids for organs, to measure what many cost; arguments as of `procedural`."""
    patient = _Patient(rng, organs, size, slices, scanner)
    patient.blobs(organs)
    return patient.canvas


def lattice(count: int) -> tuple[list[tuple[float, float, float]], float]:
    """Places of a cubic lattice within the cavity of the template.

    Returns:
        (x, y, z) mm of ``count`` places, and the lattice's pitch, mm.
    """
    pitch = 80.0
    while True:
        x, y, z = (
            np.arange(-(reach // pitch), reach // pitch + 1) * pitch for reach in (118.0, 62.0, 0.42 * _COVERAGE)
        )
        # Behind the middle stand the spine and its muscles.
        places = [
            (float(a), float(b), float(c) + _CENTRE)
            for c in z
            for b in y
            for a in x
            if (a / 122) ** 2 + (b / 66) ** 2 <= 1 and (abs(a) > 62 or b < 12)
        ]
        if len(places) >= count:
            chosen = np.linspace(0, len(places) - 1, count).round().astype(int)
            return [places[i] for i in chosen], pitch
        pitch *= 0.95
