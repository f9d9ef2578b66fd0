import re
from pathlib import Path

import pytest

from smile_fast.data.annotations import read_annotations, write_annotations
from smile_fast.supervision.states import State
from smile_runtime.errors import InputError

CASES, ORGANS = ["a", "b"], ["liver", "left kidney"]
GOOD = "case,organ,state\na,liver,annotated\na,left kidney,missing\nb,liver,hidden\nb,left kidney,absent\n"
EXPECTED = {
    "a": {"liver": State.ANNOTATED, "left kidney": State.MISSING},
    "b": {"liver": State.HIDDEN, "left kidney": State.ABSENT},
}


def read(path: Path, text: str | bytes):
    file = path / "annotations.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_annotations(file, CASES, ORGANS)


def test_names_agree_however_they_are_spelled(tmp_path):
    file = tmp_path / "annotations.csv"
    file.write_text("case,organ,state\nMu\u0308ller, Ro\u0308hre ,missing\n", encoding="utf-8")
    for case, organ in (("M\u00fcller", "R\u00f6hre"), ("Mu\u0308ller ", "Ro\u0308hre")):  # the second: an old store's
        assert read_annotations(file, [case], [organ]) == {case: {organ: State.MISSING}}


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        GOOD.rstrip("\n"),
        GOOD.replace("\n", "\n\n"),
        GOOD.replace("left kidney", '"left kidney"'),
        GOOD.replace(",", " , "),
        "case,organ,state\n" + "\n".join(reversed(GOOD.splitlines()[1:])),
        GOOD.replace(",", ";"),
        GOOD.replace(",", "\t"),
        "\ufeff" + GOOD.replace(",", ";").replace("\n", "\r\n"),
        '"case";"organ";"state"\n' + GOOD.partition("\n")[2].replace(",", " ; "),
        GOOD + ",,\n , ,\n",
    ],
    ids=[
        "plain",
        "crlf",
        "bom",
        "no-newline",
        "blank-lines",
        "quotes",
        "spaces",
        "any-order",
        "semicolons",
        "tabs",
        "bom-semicolons-crlf",
        "quoted-semicolons",
        "empty-cells",
    ],
)
def test_reads_what_spreadsheets_write(tmp_path, text):
    declarations = read(tmp_path, text)
    assert declarations == EXPECTED
    assert list(declarations) == CASES
    assert list(declarations["b"]) == ORGANS


def test_organs_with_commas_stand_in_files_with_semicolons(tmp_path):
    file = tmp_path / "annotations.csv"
    file.write_text("case;organ;state\na;liver, left lobe;missing\n")
    assert read_annotations(file, ["a"], ["liver, left lobe"]) == {"a": {"liver, left lobe": State.MISSING}}


def test_written_declarations_are_read_back(tmp_path):
    file = tmp_path / "annotations.csv"
    organs = ["liver, left lobe", 'the "other"']
    declarations = {case: dict.fromkeys(organs, State.MISSING) for case in CASES}
    declarations["b"][organs[1]] = State.ABSENT
    write_annotations(file, declarations, CASES, organs)
    assert read_annotations(file, CASES, organs) == declarations
    write_annotations(file, EXPECTED, CASES, ORGANS)
    assert file.read_text() == GOOD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header is ''; write 'case,organ,state'"),
        (GOOD.replace("case,organ", "organ,case"), "line 1: the header is"),
        ("organ;case;state\n", "line 1: the header is 'organ;case;state'; write 'case;organ;state'"),
        ("case:organ:state\n", "line 1: the header is 'case:organ:state'; write 'case,organ,state'"),
        (GOOD.replace(",", ";") + "a,liver,hidden\n", "line 6: a row of 1 fields; write case;organ;state"),
        (GOOD.replace(",", "\t").replace("hidden", "done"), "line 4: case b, organ liver has the unknown state 'done'"),
        (GOOD.replace("a,liver,annotated", "a,liver,annotated,"), "line 2: a row of 4 fields; write case,organ,state"),
        (GOOD.replace("a,liver,annotated", "a,liver"), "line 2: a row of 2 fields; write case,organ,state"),
        (GOOD + "c,liver,missing\n", "line 6: the dataset has no case 'c'"),
        (GOOD + "a,appendix,missing\n", "line 6: dataset.json has no organ 'appendix', its organs are liver, left kid"),
        (GOOD.replace("hidden", "done"), "line 4: case b, organ liver has the unknown state 'done'; use one of annot"),
        (GOOD.replace("hidden", "Hidden"), "line 4: case b, organ liver has the unknown state 'Hidden'"),
        (GOOD.replace("hidden", "?"), r"line 4: case b, organ liver is still undecided ('?')"),
        (GOOD.replace("hidden", ""), "line 4: case b, organ liver has the unknown state ''"),
        (GOOD + "a,liver,absent\n", "line 6: case a, organ liver says absent, which contradicts annotated on line 2"),
        (GOOD + "a,liver,annotated\n", "line 6: case a, organ liver repeats line 2"),
        (GOOD.replace("b,liver,hidden\n", ""), "no row for 1 of the 4 (case, organ) pairs: b/liver"),
        ("case,organ,state\n", "no row for 4 of the 4 (case, organ) pairs: a/liver, a/left kidney, b/liver"),
        (b"\xff\xfe\x00c", "not a text file in UTF-8"),
        (GOOD.replace("hidden", '"hid"den'), "line 4: not valid CSV"),
        (GOOD.encode().replace(b"hidden", b"hid\x00den"), "line 4: "),
    ],
)
def test_refuses_with_the_place(tmp_path, text, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "annotations.csv") in str(caught.value)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="draft it with 'smile-fast declare', it"):
        read_annotations(tmp_path / "annotations.csv", CASES, ORGANS)
    with pytest.raises(InputError, match="cannot be read"):
        read_annotations(tmp_path, CASES, ORGANS)


def test_a_long_list_of_pairs_stays_readable(tmp_path):
    file = tmp_path / "annotations.csv"
    file.write_text("case,organ,state\n")
    with pytest.raises(InputError) as caught:
        read_annotations(file, [f"case_{number}" for number in range(1000)], ORGANS)
    assert "2000 of the 2000" in str(caught.value)
    assert len(str(caught.value)) < 400
