"""Compare what two commits compute, bit for bit.

    python -m tests.same_bits BASE [HEAD]

Each commit is checked out into a folder of its own, its native core is built there, and `digests.py` of this checkout
runs on its packages. Exit status 1 where a digest differs or is missing.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIGESTS = Path(__file__).with_name("digests.py")


def digests_of(commit: str, folder: Path) -> dict[str, str]:
    """Build a commit in a new folder and return the digests of what it computes."""
    tree, result = folder / "tree", folder / "digests.json"
    tree.mkdir(parents=True)
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    with (folder / "build.log").open("w") as log:
        environment = os.environ | {"SMILE_FAST_CUDA": "OFF"}
        if subprocess.run(build, cwd=tree, env=environment, stdout=log, stderr=log, check=False).returncode:
            raise SystemExit(f"{commit} does not build:\n{(folder / 'build.log').read_text()[-4000:]}")
    environment = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'export'}", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, str(DIGESTS), str(result)], cwd=folder, env=environment, check=True)
    found: dict[str, str] = json.loads(result.read_text())
    return found


def differences(base: dict[str, str], head: dict[str, str]) -> list[str]:
    """Keys whose digests differ, and keys that only one of them has."""
    return sorted(key for key in base.keys() | head.keys() if base.get(key) != head.get(key))


def main(arguments: list[str]) -> int:
    """Compare two commits and say what differs."""
    if not 1 <= len(arguments) <= 2:
        print(__doc__, file=sys.stderr)
        return 2
    commits = [arguments[0], arguments[1] if len(arguments) == 2 else "HEAD"]
    with tempfile.TemporaryDirectory() as folder:
        base, head = (digests_of(commit, Path(folder, str(number))) for number, commit in enumerate(commits))
    differing = differences(base, head)
    for key in differing:
        print(f"differs: {key}")
    print(f"{len(base)} digests of {commits[0]}, {len(head)} of {commits[1]}: {len(differing)} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
