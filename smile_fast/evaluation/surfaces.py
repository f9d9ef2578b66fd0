"""NSD and HD95 of two masks, on any lattice: a tilted gantry makes one whose axes are not at right angles."""

import warnings

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
        with warnings.catch_warnings():
            # The library reaches scipy.ndimage under names that scipy deprecates; the functions are the same.
            warnings.simplefilter("ignore", DeprecationWarning)
            distances = surface_distance.compute_surface_distances(truth, prediction, tuple(sizes.tolist()))
    nsd = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm)
    return float(nsd), float(surface_distance.compute_robust_hausdorff(distances, 95))


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
        element = (code != 0) & (code != 255)
        places.append(np.argwhere(element) @ steps.T)  # [n, 3] mm
        areas.append(areas_of_code[code[element]])
    found: Distances = {}
    for name, here, there, area in (
        ("gt_to_pred", *places, areas[0]),
        ("pred_to_gt", *reversed(places), areas[1]),
    ):
        distances = KDTree(there).query(here)[0]
        order = np.argsort(distances)
        found[f"distances_{name}"] = distances[order]
        found[f"surfel_areas_{name.split('_')[0]}"] = area[order]
    return found


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
