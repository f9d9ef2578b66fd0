"""Both ends of a loss: what the labels alone say, before the main kernel, and the sums, in its last programs.

The first launch counts known voxels, each program in a place of its own, and writes for every group of organs what a
label means to it, as a code of one byte: bit i says that organ i of the group is known, bit GROUP + i that it is
positive. It also clears the tickets, with which the programs of the second launch find out which of them is the last
of its channels, and of all. So nothing has to be cleared before, and no launch follows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from smile_fast.ops.triton_kernels.core import INTERPRETED, ROUNDING

LABELS = tl.constexpr(256)
WORD_BITS = tl.constexpr(32)
CHUNK = 256 if INTERPRETED else 4096  # labels a step of the histogram
MANY_PARTS = 256  # of a batch: two a multiprocessor, and few to be added up
LANES = tl.constexpr(256)  # numbers a step of a sum


@triton.jit
def count_known_kernel(
    labels,  # [B, voxels] uint8
    table,  # [B, 256, 2, words] int32
    counts,  # [B, parts, K] int32: known voxels
    pairs,  # [B, parts] int64: known (voxel, organ) pairs
    codes,  # [B, groups, 256] uint8
    tickets,  # [ticket_count] int32
    voxels, words, organs, parts, steps, groups, ticket_count,
    CHUNK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Count the labels of one part of an image, `steps` times CHUNK labels, and what they are known for."""
    image = tl.cast(tl.program_id(0) // parts, tl.int64)
    part = tl.program_id(0) % parts
    values = tl.arange(0, LABELS)
    for start in range(tl.program_id(0) * LABELS, ticket_count, tl.num_programs(0) * LABELS):
        tl.store(tickets + start + values, 0, mask=start + values < ticket_count)

    lanes = tl.arange(0, CHUNK)
    found = tl.zeros([LABELS], tl.int32)
    begin = tl.cast(part, tl.int64) * steps * CHUNK
    for start in range(begin, tl.minimum(begin + tl.cast(steps, tl.int64) * CHUNK, voxels), CHUNK):
        inside = start + lanes < voxels
        label = tl.load(labels + image * voxels + start + lanes, mask=inside, other=0)
        found += tl.histogram(label.to(tl.int32), LABELS, mask=inside)

    rows = table + (image * LABELS + values) * 2 * words  # [256]
    bits = tl.arange(0, WORD_BITS)
    of_part = tl.zeros([WORD_BITS], tl.int64)
    for word in range(words):
        known = (tl.load(rows + word)[None, :] >> bits[:, None]) & 1  # [32, 256]
        organ = word * WORD_BITS + bits
        of_organs = tl.where(organ < organs, tl.sum(known * found[None, :], axis=1), 0)
        place = counts + (image * parts + part) * organs + organ
        tl.store(place, of_organs, mask=organ < organs)
        of_part += of_organs.to(tl.int64)
    tl.store(pairs + image * parts + part, tl.sum(of_part))

    for group in range(part, groups, parts):
        organ = group * GROUP
        known = tl.load(rows + organ // WORD_BITS) >> (organ % WORD_BITS)
        positive = tl.load(rows + words + organ // WORD_BITS) >> (organ % WORD_BITS)
        exist = (1 << tl.minimum(organs - organ, GROUP)) - 1  # bits past the last organ mean nothing
        code = (known & exist) | ((positive & exist) << GROUP)
        tl.store(codes + (image * groups + group) * LABELS + values, code.to(tl.uint8))


@triton.jit
def known_pairs(pairs, size):
    """Return by what a mean is divided, from the pairs of all parts [size]: float64, 1 where nothing is known."""
    lanes = tl.arange(0, LANES)
    known = tl.zeros([LANES], tl.int64)
    for start in range(0, size, LANES):
        known += tl.load(pairs + start + lanes, mask=start + lanes < size, other=0)
    return tl.maximum(tl.sum(known), 1).to(tl.float64)


@triton.jit
def is_last(ticket, programs):
    """Return whether this program is the last of `programs` to come here; it then sees what the others have stored."""
    tl.debug_barrier()  # all threads have stored before one says so
    return tl.atomic_add(ticket, 1, sem="acq_rel") == programs - 1


@triton.jit
def sum_channels(
    partials, counts, sums, known,
    image, organs, first_organ, tiles, parts,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Add up partial sums [tiles] of the channels of a group in float64, in a fixed order, and their known voxels."""
    organ = first_organ + tl.arange(0, GROUP)
    exists = (organ < organs)[:, None]
    lanes = tl.arange(0, LANES)[None, :]
    channel = image * organs + organ
    total = tl.zeros([GROUP, LANES], tl.float64)
    for start in range(0, tiles, LANES):
        place = partials + channel[:, None] * tiles + start + lanes
        inside = exists & (start + lanes < tiles)
        total += tl.load(place, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float64)
    voxels = tl.zeros([GROUP, LANES], tl.int64)
    for start in range(0, parts, LANES):
        place = counts + (image * parts + start + lanes) * organs + organ[:, None]
        voxels += tl.load(place, mask=exists & (start + lanes < parts), other=0).to(tl.int64)
    tl.store(sums + channel, tl.sum(total, axis=1), mask=organ < organs)
    tl.store(known + channel, tl.sum(voxels, axis=1), mask=organ < organs)


@triton.jit
def store_loss(loss, sums, channels, divisor):
    """Add up the sums [channels] of all channels, in a fixed order, and divide."""
    lanes = tl.arange(0, LANES)
    total = tl.zeros([LANES], tl.float64)
    for start in range(0, channels, LANES):
        total += tl.load(sums + start + lanes, mask=start + lanes < channels, other=0.0, cache_modifier=".cg")
    tl.store(loss, (tl.sum(total) / divisor).to(tl.float32))


def parts_of(batch: int, voxels: int) -> tuple[int, int]:
    """Return into how many parts an image's labels are cut, by the sizes alone, and the steps of CHUNK of a part."""
    steps = max(1, -(-batch * voxels // (MANY_PARTS * CHUNK)))
    return -(-voxels // (steps * CHUNK)), steps


def count_known(
    labels: Tensor, table: Tensor, organs: int, group: int, tickets: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Queue the first launch for contiguous labels [B, ...] and table, in groups of at most 4 organs.

    Returns:
        counts [B, parts, K] int32, pairs [B, parts] int64, codes [B, groups, 256] uint8, zeros [tickets] int32.
    """
    batch, voxels = labels.shape[0], labels[0].numel()
    (parts, steps), groups = parts_of(batch, voxels), -(-organs // group)
    numbers = table.new_empty(batch * parts * organs + tickets)
    counts, zeros = numbers[:-tickets].view(batch, parts, organs), numbers[-tickets:]
    pairs, codes = table.new_empty((batch, parts), dtype=torch.int64), labels.new_empty((batch, groups, 256))
    count_known_kernel[(batch * parts,)](
        *(labels, table, counts, pairs, codes, zeros, voxels, table.shape[-1], organs, parts, steps, groups, tickets),
        CHUNK=CHUNK,
        GROUP=group,
        **ROUNDING,
    )
    return counts, pairs, codes, zeros
