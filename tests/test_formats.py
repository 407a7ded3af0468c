"""Formats: the arithmetic that every size and every range is derived from."""

import pytest

from checks import refuses
from viditq.errors import PlanError
from viditq.formats import FORMATS, INT4, INT6, INT8, Format, format_named

ALL = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


@ALL
def test_range_is_that_of_twos_complement(fmt):
    assert fmt.qmax - fmt.qmin + 1 == 2**fmt.bits
    assert fmt.qmin == -fmt.qmax - 1


@ALL
def test_a_name_says_the_bits_and_finds_the_format(fmt):
    assert fmt.name == f"int{fmt.bits}"
    assert format_named(fmt.name) is fmt


# 1 and 3 leave every group incomplete, 36 is no multiple of 8, 1152 is PixArt's width.
@pytest.mark.parametrize("features", [1, 2, 3, 4, 5, 36, 127, 1152])
@ALL
def test_a_row_takes_its_bits_and_less_than_one_group_more(fmt, features):
    exact = fmt.bits * features / 8
    assert exact <= fmt.row_bytes(features) < exact + fmt.group_bytes
    if features % fmt.group == 0:
        assert fmt.row_bytes(features) == exact


def test_rows_of_known_size():
    assert [f.row_bytes(5) for f in (INT8, INT6, INT4)] == [5, 6, 3]


def test_a_group_that_does_not_fill_its_bytes_is_a_mistake_of_ours():
    with pytest.raises(AssertionError):
        Format("int5", 5, 2, 1)


def test_unknown_name():
    with refuses(PlanError, "'fp4'", "int8, int6, int4"):
        format_named("fp4")
