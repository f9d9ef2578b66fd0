"""What training may see of a store: the one door through which labels reach a loss, a sampler or a selection."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from smile_fast.data.annotations import Declarations
from smile_fast.data.store import Store
from smile_fast.supervision import Policy, State, build_tables, visible_lut
from smile_fast.training.rounds import StoredRound
from smile_runtime.volume.histograms import slice_histograms
from smile_runtime.volume.preprocessing import BodyBox, BodyRule


class TrainingView:
    """Images and *visible* labels of some cases under given declarations.

    Hidden organs read as unlabelled here, before anything else is computed. Pseudo-labels of a relabelling
    round lie over the human labels where those say nothing; human labels are never changed.

    Making a view reads no array: voxels are counted in the index and in the round's description. Only a case that
    shows an organ that is hidden in the store is decoded, for the index must know nothing of it.

    Args:
        store: the prepared cohort.
        declarations: state of every (case, organ); may hide more, or less, than those of the store.
        cases: names of the cases to see.
        overlay: the relabelling round whose pseudo-labels are seen; None for human labels alone.
        body: by which rule the air around a body is left out of patches and predictions; None leaves nothing out.

    Attributes:
        counts: by case the voxels [D, K] of each slice and organ, pseudo-labels included.
    """

    def __init__(
        self,
        store: Store,
        declarations: Declarations,
        cases: Sequence[str],
        overlay: StoredRound | None = None,
        body: BodyRule | None = None,
    ) -> None:
        self.store, self.declarations = store, declarations
        self.organs = store.organs
        self.cases = tuple(cases)
        self.overlay, self.body = overlay, body
        self.states = {case: tuple(declarations[case][organ] for organ in self.organs) for case in self.cases}
        self._luts = {case: visible_lut(states) for case, states in self.states.items()}
        self.counts = {case: self._count(case) for case in self.cases}

    @property
    def filled(self) -> bool:
        """Whether the overlay is what missing organs were filled with: then it says of a voxel what it is not, too."""
        return self.overlay is not None and self.overlay.round.number == 0

    def missing(self, case: str) -> list[int]:
        """The organs of a case that nobody drew, as training sees it: missing or hidden ones."""
        return [k for k, state in enumerate(self.states[case]) if state in (State.MISSING, State.HIDDEN)]

    def image(self, case: str, slices: slice | Sequence[int] = slice(None)) -> NDArray[np.int16]:
        """HU of some axial slices, [n, H, W]."""
        return self.store.read_image(case, slices)

    def box(self, case: str) -> BodyBox:
        """The part of a case that is worth computing; images and labels themselves are never cut."""
        return self.store.body_box(case, self.body)

    def spacing(self, case: str) -> tuple[float, float, float]:
        """(z, y, x) of a case, mm."""
        return self.store.cases[case].spacing

    def visible_labels(self, case: str, slices: slice | Sequence[int] = slice(None)) -> NDArray[np.uint8]:
        """Human labels of some axial slices with hidden organs erased, [n, H, W]."""
        visible: NDArray[np.uint8] = self._luts[case][self.store.read_labels(case, slices)]
        return visible

    def labels(self, case: str, slices: slice | Sequence[int] = slice(None)) -> NDArray[np.uint8]:
        """Visible human labels, and the round's pseudo-labels where there is no human label, [n, H, W]."""
        labels = self.visible_labels(case, slices)
        if self.overlay is None or case not in self.overlay.cases:
            return labels
        return np.where(labels == 0, self.overlay.pseudo_labels(case, slices), labels)

    def tables(self, policy: Policy, *, pseudo_negative: bool = False) -> Tensor:
        """Supervision tables of all cases in order, int32 [cases, 256, 2, words]."""
        return build_tables([self.states[case] for case in self.cases], policy, pseudo_negative=pseudo_negative)

    def prior(self, *, missing_is_background: bool) -> list[float]:
        """Share of the voxels with a certain label that belong to each organ, [K], from human labels.

        Args:
            missing_is_background: count the cases in which an organ was not drawn as cases without it.
        """
        shares, drawn_voxels = [], {case: counts.sum(axis=0) for case, counts in self.counts.items()}  # case -> [K]
        for k in range(len(self.organs)):
            drawn = (State.ANNOTATED, State.ABSENT)
            cases = [c for c in self.cases if missing_is_background or self.states[c][k] in drawn]
            voxels = sum(int(np.prod(self.store.cases[case].shape)) for case in cases)
            positive = sum(int(drawn_voxels[case][k]) for case in cases)
            shares.append(positive / voxels if positive else 0.01)
        return shares

    def _count(self, case: str) -> NDArray[np.uint32]:  # [D, K]; of thousands of cases, int64 would be twice as much
        info, organs, states = self.store.cases[case], len(self.organs), self.states[case]
        stored = [info.states[organ] for organ in self.organs]
        if any(was == State.HIDDEN != now for was, now in zip(stored, states, strict=True)):
            counts = slice_histograms(self.visible_labels(case))[:, 1 : organs + 1]
        else:
            counts = info.counts()
        counts[:, [state == State.HIDDEN for state in states]] = 0
        if self.overlay is not None:
            counts += self.overlay.counts(case, len(counts), self.organs)
        return counts.astype(np.uint32)
