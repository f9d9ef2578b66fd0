"""Settings of the allocator under which workloads are measured.

Page faults of temporaries may be most of a peer's time: by default glibc returns blocks of more than 32 MiB to the
kernel as soon as they are freed, and the next run faults every page in again. Under "keep" freed memory is kept.
Under "huge" torch asks for huge pages, as our own buffers always do: a fault is then for 2 MiB, not for 4 KiB.
"""

import os
import re
from collections.abc import Mapping

ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "keep": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)},
    "huge": {"THP_MEM_ALLOC_ENABLE": "1"},
}
_VARIABLES = re.compile("MALLOC_|GLIBC_TUNABLES$|THP_MEM_ALLOC_ENABLE$|LD_PRELOAD$")


def allocator(environment: Mapping[str, str] = os.environ) -> str:
    """The name of the allocator's setting that a process with this environment has, or "other"."""
    given = {name: value for name, value in environment.items() if _VARIABLES.match(name)}
    return next((name for name, variables in ALLOCATORS.items() if variables == given), "other")


def environment(name: str, of: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment with the allocator's setting of that name."""
    return {key: value for key, value in of.items() if not _VARIABLES.match(key)} | ALLOCATORS[name]
