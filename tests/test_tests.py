"""What holds for the tests themselves: none ends early without a word, tolerances are rules, doors are public."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for folder in ("tests", "bench/tests", "export/tests") for file in (ROOT / folder).rglob("*.py"))
HOMES_OF_TOLERANCES = ("tests/tolerances.py", "export/tests/tolerances.py")

TOLERANCES = {"atol", "rtol", "abs", "rel", "abs_tol", "rel_tol", "delta"}
NEARLY_ALL, NEARLY_NOTHING = 0.99, 1e-3  # what a comparison with a share or an error may not hold as a number
PUBLIC_UNDERSCORES = {"_replace", "_fields", "_asdict", "_make", "_exit"}  # of NamedTuple and os
# Of torch.cuda, which has no public way to keep a GPU busy (the timer's stand-in replaces it), and of what its class of
# captures calls and a build for the CPU lacks.
UNAVOIDABLE = {"_sleep", "_C", "_host_emptyCache"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """Every node of a function, but not those of functions and classes within it."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))


def name_of(call: ast.AST) -> str:
    """The last word of what is called: skip of pytest.skip(...)."""
    function = call.func if isinstance(call, ast.Call) else call
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def judges(node: ast.AST) -> bool:
    """Whether a node can fail a test: an assertion, an expected error, or a helper that is named for it."""
    if isinstance(node, ast.Assert):
        return True
    name = name_of(node) if isinstance(node, ast.Call) else ""
    if name == "run":  # of subprocess: a status that is not 0 is an error
        return any(word.arg == "check" and getattr(word.value, "value", False) is True for word in node.keywords)
    return name in ("raises", "warns", "fail", "opcheck", "gradcheck") or name.startswith(("assert", "check"))


def silent_ends(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Ways for a test to pass without a verdict."""
    for function in ast.walk(tree):
        if not isinstance(function, Function) or not function.name.startswith("test_"):
            continue
        nodes = list(own_nodes(function))
        if not any(judges(node) for node in nodes):
            yield function.lineno, "nothing in it can fail"
        for node in nodes:
            if isinstance(node, ast.Return) and node.value is None:
                yield node.lineno, "it returns before its end: make two tests of it, or two branches"
            if isinstance(node, ast.ExceptHandler) and all(isinstance(each, ast.Pass) for each in node.body):
                yield node.lineno, "an error is swallowed: expect it with pytest.raises"
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and name_of(call) in ("skip", "skipif", "xfail"):
            said = any(word.arg in ("reason", "msg") for word in call.keywords)
            if not said and not (name_of(call) == "skip" and call.args):
                yield call.lineno, "it is skipped without a reason"


def numbers(node: ast.AST) -> list[float]:
    """Every number in an expression but 0, and but for the arguments of a rule that is a function."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return []
    if isinstance(node, ast.Constant):
        return [node.value] if type(node.value) in (int, float) and node.value else []
    return [value for child in ast.iter_child_nodes(node) for value in numbers(child)]


def loose_tolerances(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Numbers that say how close is close enough."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            named = name_of(node) in ("approx", "allclose", "isclose", "assert_close", "assert_allclose")
            words = [word for word in node.keywords if named and word.arg in TOLERANCES and numbers(word.value)]
            yield from ((word.value.lineno, f"{word.arg} is a number: give it a rule and a reason") for word in words)
        if isinstance(node, ast.Compare) and not all(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            sides = [side for side in (node.left, *node.comparators) if isinstance(side, ast.Constant)]
            for value in (value for side in sides for value in numbers(side)):
                if abs(value) <= NEARLY_NOTHING or NEARLY_ALL <= abs(value) < 1:
                    yield node.lineno, f"a bound of {value} is a tolerance: give it a rule and a reason"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC_UNDERSCORES | UNAVOIDABLE


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Names with an underscore that are imported, read or patched, other than an object's own."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in ("self", "cls"):
            names = [node.attr]
        elif isinstance(node, ast.Call) and name_of(node) in ("setattr", "delattr", "getattr"):
            texts = [each.value for each in node.args[:2] if isinstance(each, ast.Constant)]
            names = [text.rpartition(".")[2] for text in texts if isinstance(text, str)]
        for name in filter(is_private, names):
            yield node.lineno, f"{name} is private: test through a public door"


RULES: dict[Callable[[ast.Module], Iterator[tuple[int, str]]], tuple[str, ...]] = {  # and where a rule does not hold
    silent_ends: (),
    loose_tolerances: HOMES_OF_TOLERANCES,
    private_names: (),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_test_keeps_to_the_rule(rule):
    found = []
    for file in FILES:
        name = file.relative_to(ROOT).as_posix()
        if name not in RULES[rule]:
            found += [f"{name}:{line}: {text}" for line, text in rule(ast.parse(file.read_text(encoding="utf-8")))]
    assert len(FILES) > 50
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "planted"),
    [
        (silent_ends, "def test_a():\n    if slow:\n        return\n    assert f()"),
        (silent_ends, "def test_a():\n    f()"),
        (silent_ends, "def test_a():\n    def g():\n        assert f()\n"),
        (silent_ends, "def test_a():\n    subprocess.run(command)"),
        (silent_ends, "class TestA:\n    def test_a(self):\n        f()"),
        (silent_ends, "def test_a():\n    try:\n        assert f()\n    except OSError:\n        pass"),
        (silent_ends, "def test_a():\n    pytest.skip()\n    assert f()"),
        (silent_ends, "@pytest.mark.skip()\ndef test_a():\n    assert f()"),
        (silent_ends, "@pytest.mark.skipif(small)\ndef test_a():\n    assert f()"),
        (loose_tolerances, "torch.testing.assert_close(a, b, rtol=1e-5, atol=0)"),
        (loose_tolerances, "assert a == pytest.approx(b, abs=0.1)"),
        (loose_tolerances, "assert np.allclose(a, b, atol=2 * eps)"),
        (loose_tolerances, "assert abs(a - b).max() < 1e-6"),
        (loose_tolerances, "assert 0.999 <= (a == b).mean()"),
        (private_names, "from smile_fast.ops.registry import _choose"),
        (private_names, "registry._choose(a)"),
        (private_names, 'monkeypatch.setattr(registry, "_choose", None)'),
        (private_names, 'monkeypatch.setattr("smile_fast.ops.registry._choose", None)'),
    ],
)
def test_the_rule_catches(rule, planted):
    assert len(list(rule(ast.parse(planted)))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "def test_a():\n    def g():\n        return\n    assert f(g)",
        "def test_a():\n    with pytest.raises(OSError):\n        f()",
        "def test_a():\n    assert_same(f(), g())",
        "def test_a():\n    subprocess.run(command, check=True)",
        "def helper():\n    return",
        '@pytest.mark.skipif(small, reason="needs memory")\ndef test_a():\n    assert f()',
        'def test_a():\n    pytest.skip("no data")\n    assert f()',
        "torch.testing.assert_close(a, b, **RULE)",
        "torch.testing.assert_close(a, b, rtol=RULE, atol=0)",
        "assert a == pytest.approx(b, abs=share_of_draws(400, 0.5))",
        "assert config.lr == 1e-3",
        "assert 0.5 < dice < 1.0",
        "given._replace(labels=labels)",
        "class A:\n    def f(self):\n        return self._a + A.__name__",
    ],
)
def test_the_rules_allow_what_they_should(source):
    assert [finding for rule in RULES for finding in rule(ast.parse(source))] == []
