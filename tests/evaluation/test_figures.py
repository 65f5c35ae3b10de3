import warnings

import numpy as np
import pytest

from crossmost.evaluation import figures

RECORDS = [
    {"epoch": 0, "kept": 0.5, "selection_score": 0.1, "histogram": [5, 5, 5, 5]},
    {"epoch": 1, "kept": 0.7, "selection_score": 0.3, "histogram": [20, 0, 0, 0], "chosen_epoch": 0},
]


def test_a_repeated_epoch_counts_once_and_the_later_record_wins():
    rows = [{"epoch": 1, "loss": 5.0}, {"epoch": 0, "loss": 6.0}, {"epoch": 1, "loss": 4.0}]
    epochs, values = figures.curve(rows, "loss")
    assert epochs.tolist() == [0, 1]
    assert values.tolist() == [6.0, 4.0]


def test_effective_classes_are_all_when_even_and_one_when_collapsed():
    found = figures.effective_classes(np.array([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]]))
    np.testing.assert_allclose(found, [4, 1, 2])


def test_class_names_in_figures_are_text_not_formulas():
    drawing = figures.class_spread(RECORDS, ("mug", "bowl", "<script>", "$x^2$"))
    assert ">$x^2$</text>" in drawing
    assert ">&lt;script&gt;" in drawing
    assert "<script" not in drawing
    assert "猫" in figures.class_spread(RECORDS, ("猫", "mug\udcff", "\x00", "d" * 99))


def test_a_font_without_a_glyph_is_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.class_spread(RECORDS, ("猫", "b", "c", "d"))


def test_collapse_can_be_read_from_the_alternative_text():
    assert "4.0 to 1.0 of 4" in figures.class_spread(RECORDS, "abcd")


@pytest.mark.parametrize(("classes", "rows"), [(30, True), (31, False)])
def test_above_thirty_classes_the_spread_is_one_line(classes, rows):
    names = [f"class {index}" for index in range(classes)]
    drawing = figures.class_spread([{"epoch": 0, "histogram": [1] * classes}], names)
    assert ("class 7" in drawing) is rows


def test_the_chosen_epoch_is_marked_where_a_record_names_it():
    assert figures.chosen_epoch(RECORDS) == 0
    assert figures.chosen_epoch(RECORDS[:1]) is None
    assert ">chosen<" in figures.selection(RECORDS)
    assert ">chosen<" not in figures.selection(RECORDS[:1])


def test_nothing_to_draw_draws_nothing():
    assert figures.pseudo_label_quality([]) is None
    assert figures.selection([{"epoch": 0}]) is None
    assert figures.class_spread([{"epoch": 0, "histogram": [0, 0]}], "ab") is None
    assert figures.loss_terms([{"epoch": 0, "loss": None}]) == []


def test_loss_terms_go_by_their_own_names_and_are_limited():
    many = {f"loss/{index}": 1.0 for index in range(100)}
    drawn = figures.loss_terms([{"epoch": 0, "loss": 1.0} | many])
    assert [name for name, _ in drawn[:2]] == ["total", "0"]
    assert len(drawn) == figures.MOST_TERMS
