"""NSD and HD95 of two masks, on any lattice: a tilted gantry makes one whose axes are not at right angles."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ORTHOGONAL = 1e-3  # of the products of unit steps: 0.06 degrees, less than a header's float32 and digits leave

Distances = dict[str, NDArray[np.float64]]


def surface_scores(
    truth: NDArray[np.bool_],  # [D, H, W]
    prediction: NDArray[np.bool_],  # [D, H, W]
    steps: NDArray[np.float64],  # [3, 3]
    tolerance_mm: float,
) -> tuple[float, float]:
    """Compare the surfaces of two non-empty masks.

    Args:
        truth: [D, H, W] bool.
        prediction: [D, H, W] bool.
        steps: [3, 3] mm; column k is one step along axis k.
        tolerance_mm: distance up to which two surfaces agree.

    Returns:
        NSD, and HD95 in mm.
    """
    import surface_distance

    sizes = np.linalg.norm(steps, axis=0)
    unit = steps / sizes
    if np.abs(unit.T @ unit - np.eye(3)).max() > _ORTHOGONAL:
        distances = sheared_distances(truth, prediction, steps)
    else:
        distances = upright_distances(truth, prediction, tuple(sizes.tolist()))
    nsd = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm)
    return float(nsd), float(surface_distance.compute_robust_hausdorff(distances, 95))


def upright_distances(
    truth: NDArray[np.bool_], prediction: NDArray[np.bool_], sizes: tuple[float, float, float]
) -> Distances:
    """What `compute_surface_distances` of surface-distance gives, to the last bit, in less time and memory.

    The library makes maps of distances of the whole box and sorts pairs of Python's numbers. Here distances are made
    on the surfaces alone. Which of two places that are equally near is taken may decide the last bit, so the transform
    and its box are the library's.

    Args:
        truth: [D, H, W] bool, not empty.
        prediction: [D, H, W] bool, not empty.
        sizes: (z, y, x) of a voxel, mm.
    """
    from scipy import ndimage

    box = _bounding_box(truth | prediction)
    codes = [_neighbour_codes(mask[box]) for mask in (truth, prediction)]
    borders = [_elements(code) for code in codes]
    places = [np.nonzero(border) for border in borders]  # three arrays [n] each
    areas = [_upright_areas(sizes)[code[border]] for code, border in zip(codes, borders, strict=True)]

    def nearest(here: int, there: int) -> NDArray[np.float64]:  # [n] mm
        feature = ndimage.distance_transform_edt(
            ~borders[there], sampling=sizes, return_distances=False, return_indices=True
        )  # [3, *box] int32
        offsets = np.stack([feature[axis][places[here]] - places[here][axis] for axis in range(3)]).astype(np.float64)
        offsets *= np.array(sizes)[:, None]
        offsets *= offsets
        return np.asarray(np.sqrt(np.add.reduce(offsets, axis=0)))

    return _both_ways(nearest, areas)


def sheared_distances(truth: NDArray[np.bool_], prediction: NDArray[np.bool_], steps: NDArray[np.float64]) -> Distances:
    """What `compute_surface_distances` of surface-distance gives, which knows voxel sizes only.

    Its surface elements lie where eight voxels meet that are not all alike. A linear map A turns an element of area
    and normal n into one of cof(A) n; distances are Euclidean between the mapped places.
    """
    from scipy.spatial import KDTree

    areas_of_code = _element_areas(steps)
    places, areas = [], []
    for mask in (truth, prediction):
        code = _neighbour_codes(mask)
        element = _elements(code)
        places.append(np.argwhere(element) @ steps.T)  # [n, 3] mm
        areas.append(areas_of_code[code[element]])
    return _both_ways(lambda here, there: np.asarray(KDTree(places[there]).query(places[here])[0]), areas)


def _both_ways(nearest: Callable[[int, int], NDArray[np.float64]], areas: list[NDArray[np.float64]]) -> Distances:
    """Order the elements of truth (0) and prediction (1) by their distance to the other surface, then by area."""
    found: Distances = {}
    for here, there, names in ((0, 1, ("gt_to_pred", "gt")), (1, 0, ("pred_to_gt", "pred"))):
        distances = nearest(here, there)
        order = np.lexsort((areas[here], distances))
        found[f"distances_{names[0]}"] = distances[order]
        found[f"surfel_areas_{names[1]}"] = areas[here][order]
    return found


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box that holds a mask that is not empty."""
    box = []
    for axis in range(mask.ndim):
        seen = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(seen[0]), int(seen[-1]) + 1))
    return tuple(box)


def _elements(code: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a surface runs: between voxels that are not all alike."""
    return np.asarray((code != 0) & (code != 255))


def _neighbour_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Which of the eight voxels around each corner of the voxels are inside, as surface-distance codes them."""
    from surface_distance.lookup_tables import ENCODE_NEIGHBOURHOOD_3D_KERNEL

    padded = np.pad(mask, 1).astype(np.uint8)
    depth, height, width = (extent - 1 for extent in padded.shape)
    code = np.zeros((depth, height, width), np.uint8)
    for (z, y, x), bit in np.ndenumerate(np.asarray(ENCODE_NEIGHBOURHOOD_3D_KERNEL)):
        code += np.uint8(bit) * padded[z : z + depth, y : y + height, x : x + width]
    return code


def _element_areas(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area of the surface element of each of the 256 codes, mm^2."""
    # The library's triangles, as normals as long as their areas on a lattice of 1 mm; its own function scales them by
    # sizes of voxels only.
    from surface_distance.lookup_tables import _NEIGHBOUR_CODE_TO_NORMALS

    cofactors = np.linalg.det(steps) * np.linalg.inv(steps).T
    return np.array([np.linalg.norm(normals @ cofactors.T, axis=1).sum() for normals in _NEIGHBOUR_CODE_TO_NORMALS])


@lru_cache
def _upright_areas(sizes: tuple[float, float, float]) -> NDArray[np.float64]:
    """The library's own areas of the 256 codes, mm^2: those of `_element_areas` but for the last bits."""
    from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

    return np.asarray(create_table_neighbour_code_to_surface_area(sizes))
