"""Sentences about wrong input have one form: `SUBJECT: what is wrong; what to do`, on one line, without a full stop."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for folder in ("smile_fast", "export/smile_runtime") for file in (ROOT / folder).rglob("*.py"))
ERRORS = ("InputError", "AllocationError")
# What a sentence is about: what a placeholder names (a path first of all), options, or one of a few words.
SUBJECT = re.compile(
    r"[^:;]*\{\}[^:;]*|--[a-z-]+(, --[a-z-]+)*|--shard auto|memory|settings|schema|largest component|MODEL\.onnx"
)
LONGEST_SUBJECT = 60  # characters beside the placeholders


def sentence_of(node: ast.expr) -> str | None:
    """The text of an expression, with {} for what is filled in; None where it has no text of its own."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(sentence_of(part) or "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = sentence_of(node.left), sentence_of(node.right)
        return None if parts == (None, None) else "".join(part or "{}" for part in parts)
    return None


def sentences(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every sentence that a module gives to one of the errors; those it only passes on are checked where they begin."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not call.args:
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        text = sentence_of(call.args[0]) if name in ERRORS else None
        if text is not None and re.fullmatch(r"\{\}(: \{\})?", text) is None:  # {file}: {error} puts a path before one
            yield call.lineno, text


def faults(sentence: str) -> Iterator[str]:
    """What a sentence has of another form."""
    subject, colon, rest = sentence.partition(": ")
    wrong, semicolon, remedy = rest.partition("; ")
    if not colon or SUBJECT.fullmatch(subject) is None or len(subject) > LONGEST_SUBJECT:
        yield "it does not begin with what it is about and a colon"
        return
    if wrong[:1].isupper() or remedy[:1].isupper():
        yield "it goes on with a capital letter"
    if not semicolon or not wrong or not remedy:
        yield "it does not say what to do, after a semicolon"
    if sentence.endswith((".", "!", " ")):
        yield "it does not end with its last word"
    if "\n" in sentence:
        yield "it has several lines"


def test_every_sentence_has_the_form():
    found, count = [], 0
    for file in FILES:
        for line, sentence in sentences(ast.parse(file.read_text(encoding="utf-8"))):
            count += 1
            found += [f"{file.relative_to(ROOT)}:{line}: {fault}: {sentence}" for fault in faults(sentence)]
    assert count > 200
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "planted",
    [
        'raise InputError("the file is damaged; copy it again")',
        'raise InputError(f"cannot read {path}; copy it again")',
        'raise InputError(f"the store {path}")',
        'raise InputError("damaged: copy it again")',
        'raise InputError(f"--workers must be 1 or more, got {workers}")',
        'raise InputError(f"{path}: damaged")',
        'raise InputError(f"{path}: damaged ({error})")',
        'raise InputError(f"{path}: Damaged; copy it again")',
        'raise InputError(f"{path}: damaged; Copy it again")',
        'raise InputError(f"{path}: damaged; copy it again.")',
        'raise InputError(f"{path}: damaged;\\ncopy it again")',
        'raise InputError(f"{path}: " + "damaged")',
        'raise errors.AllocationError(f"{path}: needs too much memory")',
        'refuse(InputError(f"{path}: damaged"))',
    ],
)
def test_the_scan_catches(planted):
    assert [fault for _, sentence in sentences(ast.parse(planted)) for fault in faults(sentence)]


@pytest.mark.parametrize(
    "source",
    [
        'raise InputError(f"{path}: damaged ({error}); copy it again")',
        'raise InputError(f"{path}, line {line}: not valid CSV; correct the line")',
        'raise InputError(f"{path}: "labels" is empty; name an organ")'.replace('"labels"', "'labels'"),
        'raise InputError(f"case {case}: {count} voxels are absent; correct the label map")',
        'raise InputError("--slices, --size: too small; give more")',
        'raise InputError(f"{path}: damaged; " + remedy)',
        'raise AllocationError(f"{path}: needs more memory than is free; free some")',
        'raise InputError(f"{file}: {error}")',
        "raise InputError(problem)",
        "raise InputError(problem + also)",
        'raise ValueError("organs is empty")',
    ],
)
def test_the_scan_allows(source):
    assert not [fault for _, sentence in sentences(ast.parse(source)) for fault in faults(sentence)]
