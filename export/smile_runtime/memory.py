"""How much memory a command may still take, on a machine or in a container that others use, too."""

import re
from pathlib import Path

from smile_runtime.threads import control_groups, read_text

_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
_CACHE = re.compile(r"^(?:total_)?inactive_file (\d+)$", re.MULTILINE)  # goes as soon as the memory is needed
_NAMES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # versions 2 and 1


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: of the machine, or of its control groups where they leave less.

    Args:
        root: Where ``proc`` and the control groups are mounted.

    Returns:
        At least 0; None where the system does not say (macOS).
    """
    found = [int(kilobytes) * 1024 for kilobytes in _AVAILABLE.findall(read_text(root / "proc/meminfo"))]
    for group in control_groups("memory", root):
        for limit, used in _NAMES:
            numbers = [read_text(group / name).strip() for name in (limit, used)]
            if all(number.isdecimal() for number in numbers):  # no limit is "max"
                cached = sum(map(int, _CACHE.findall(read_text(group / "memory.stat"))[-1:]))
                found.append(max(0, int(numbers[0]) - int(numbers[1]) + cached))
    return min(found, default=None)
