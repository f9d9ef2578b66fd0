"""`smile-fast doctor`."""

import argparse

HELP = "print which implementation each operation uses here, and why the others are not used"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are no options."""


def run(arguments: argparse.Namespace) -> None:
    """Print versions, devices and implementations."""
    import torch

    from smile_fast.ops import OPS, available
    from smile_fast.ops.native.core import CORE, UNUSABLE
    from smile_fast.training.run_record import environment

    record = environment("cuda" if torch.cuda.is_available() else "cpu")
    print(f"smile-fast {record.smile_fast}, Python {record.python}, {record.platform}")
    print(", ".join(f"{name} {version}" for name, version in record.packages.items()))
    print(f"threads {record.threads}, device {record.device}")
    print(f"native core: {UNUSABLE or f'instruction set {CORE.cpu_capabilities()[0]}'}")
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            print("\ncuda: torch sees no CUDA device")
            continue
        print(f"\n{device}:")
        for op in OPS:
            chosen = ""
            for name, usable, reason in available(op, device):
                mark = "  "
                if usable and not chosen:
                    chosen, mark = name, "->"
                print(f"  {mark} {op:24} {name:10} {reason}")
