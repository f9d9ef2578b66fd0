"""CPU time against limits in seconds, so that the verdict is not about other work, nor about the machine.

Wall time tells what else a machine does; the CPU time of a process does not. Cores are not alike, though, so a limit
holds for the core on which it was promised: one that takes n times as long for a fixed piece of work gets n times the
limit, and none gets less. A disturbance only makes things longer: the shortest of several tries counts, of the fixed
piece as of what is measured.
"""

import os
import subprocess
import sys
import time

REFERENCE = 4.0e-3  # s, `_work` on a core of the AMD EPYC of bench/results with CPython 3.11
TRIES = 10


def shortest(measure, limit):
    """The shortest CPU time that a call returns, in seconds of the reference core; called again while over a limit."""
    found = float("inf")
    for _ in range(TRIES):
        seconds = measure()
        found = min(found, seconds if seconds <= limit else seconds / slowness())
        if found <= limit:
            break
    return found


def slowness():
    """How many times longer than the reference this core takes now, at least 1."""
    return max(1.0, min(seconds_of(_work) for _ in range(5)) / REFERENCE)


def seconds_of(function, *arguments):
    """CPU seconds of a call in this process, all its threads together."""
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def seconds_of_python(*arguments):
    """CPU seconds of a Python of its own, its start included."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def _work():
    """Objects, integers and a dictionary: what reading a header or a graph costs, too."""
    counts = {}
    for number in range(20_000):
        key = (number * 7919) % 1013
        counts[key] = counts.get(key, 0) + 1
    return counts
