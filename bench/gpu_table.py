"""The record of `make gpu` as text."""

from typing import Any

OURS = ("cuda", "triton", "torch")


def table(record: dict[str, Any]) -> str:
    """Each step, then each row: time, bandwidth relative to a copy, and how many times slower than the best of ours."""
    machine, rows = record["machine"], record["rows"]
    copy = rows.get("ceilings", {}).get("copy_gbps")
    lines = [f"{machine['gpu']}, torch {machine['torch']}, triton {machine['triton']}, commit {machine['commit']}"]
    failed = [name for name, step in record["steps"].items() if not step["passed"]]
    lines.append(f"{len(record['steps'])} steps, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    if copy:
        lines.append(f"a copy {copy:.0f} GB/s, a read {rows['ceilings']['read_gbps']:.0f} GB/s")
    for name, row in rows.items():
        if "milliseconds" in row:
            lines += ["", name, *_contenders(row, copy)]
    return "\n".join(lines)


def _contenders(row: dict[str, Any], copy: float | None) -> list[str]:
    taken: dict[str, dict[str, float]] = row["milliseconds"]
    ours = [taken[name]["median"] for name in OURS if name in taken]
    lines = []
    for name, figures in taken.items():
        line = f"    {name:34} {figures['median']:9.3f} ms"
        if "dense_bytes" in row:
            gbps = row["dense_bytes"] / figures["median"] / 1e6
            line += f" {gbps:8.0f} GB/s" + (f" {100 * gbps / copy:5.0f}% of a copy" if copy else "")
        if ours:
            line += f" {figures['median'] / min(ours):8.2f} x ours"
        lines.append(line)
    lines += [
        f"    {name}: {value if isinstance(value, str) else f'{value:.4g}'}"
        for name, value in row.get("facts", {}).items()
    ]
    return lines
