from smile_fast.text_table import text_table


def test_columns_are_aligned_and_the_head_is_ruled_off():
    assert text_table([["organ", "Dice"], ["liver", "0.9"], ["left kidney", "0.1234"]]) == [
        "organ          Dice",
        "-------------------",
        "liver           0.9",
        "left kidney  0.1234",
    ]


def test_rules_stand_where_they_are_asked_for():
    rows = [["a", "b"], ["c", "d"], ["mean", "e"]]
    assert text_table(rows, rules=(1, 2)) == ["a     b", "-------", "c     d", "-------", "mean  e"]
    assert text_table(rows, rules=()) == ["a     b", "c     d", "mean  e"]


def test_the_rule_is_as_long_as_the_rows_whatever_the_number_of_columns():
    for columns in (1, 2, 3, 5):
        lines = text_table([[f"column {n}" for n in range(columns)], ["x"] * columns])
        assert {len(line) for line in lines} == {8 * columns + 2 * (columns - 1)}
        assert set(lines[1]) == {"-"}
