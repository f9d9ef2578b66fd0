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
