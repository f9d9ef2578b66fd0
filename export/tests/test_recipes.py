"""The Dockerfile, read as text: what must hold whoever builds it."""

import re
import tomllib
from pathlib import Path

EXPORT = Path(__file__).resolve().parents[1]
TEXT = (EXPORT / "Dockerfile").read_text(encoding="utf-8")


def instructions():
    """Pairs of keyword and arguments, continued lines joined, comments left out."""
    lines = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def arguments_of(keyword):
    return [arguments for name, arguments in instructions() if name == keyword]


def final_stage():
    found = instructions()
    return found[max(number for number, (name, _) in enumerate(found) if name == "FROM") :]


def pip_installs():
    """The words of every `pip install` command."""
    commands = [part.split() for run in arguments_of("RUN") for part in run.split("&&")]
    return [words for words in commands if "install" in words and "pip" in words]


def test_only_known_instructions_in_their_order():
    names = [name for name, _ in instructions()]
    assert set(names) <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert names[:2] == ["ARG", "FROM"]
    assert [name for name, _ in final_stage()][-4:] == ["USER", "WORKDIR", "ENTRYPOINT", "CMD"]


def test_the_base_is_slim_and_has_a_tag():
    assert re.fullmatch(r"BASE=python:3\.\d+-slim", arguments_of("ARG")[0])
    assert [arguments.split()[0] for arguments in arguments_of("FROM")] == ["${BASE}", "${BASE}"]


def test_it_does_not_run_as_root():
    stage = final_stage()
    assert [arguments for name, arguments in stage if name == "USER"] == ["smile"]
    assert any(name == "RUN" and "useradd" in arguments and "smile" in arguments for name, arguments in stage)


def test_it_installs_what_the_distribution_needs_and_no_torch():
    project = tomllib.loads((EXPORT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    default = next(argument for argument in arguments_of("ARG") if argument.startswith("ONNXRUNTIME="))
    words = [word.strip('"').replace("${ONNXRUNTIME}", default.partition("=")[2]) for w in pip_installs() for word in w]
    installed = {word.split(",")[0] for word in words if ">=" in word}
    assert installed == {requirement.split(";")[0].replace(" ", "") for requirement in project["dependencies"]}
    assert "torch" not in " ".join(words)


def test_pip_leaves_nothing_behind_and_takes_only_known_versions():
    assert len(pip_installs()) == 2
    for words in pip_installs():
        assert "--no-cache-dir" in words
        packages = [word for word in words[words.index("install") + 1 :] if not word.startswith("-")]
        assert packages
        assert all(word.endswith(".whl") or re.search(r">=.*,<\d", word) for word in packages)


def test_commands_are_lists_and_call_what_is_installed():
    project = tomllib.loads((EXPORT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert arguments_of("ENTRYPOINT") == ['["smile-predict"]']
    assert "smile-predict" in project["scripts"]
    assert arguments_of("CMD") == ['["--help"]']


def test_what_is_copied_is_there_and_nothing_else_is_sent():
    sources = [word for arguments in arguments_of("COPY") for word in arguments.split()[:-1]]
    assert sources
    allowed = [line[1:] for line in (EXPORT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in sources:
        assert (EXPORT / source).exists()
        assert source.removeprefix("./") in allowed
    assert sorted(allowed) == sorted(source.removeprefix("./") for source in sources)
