from vtviz.errors import MOST_CHOICES, did_you_mean


def test_a_near_miss_is_named():
    assert did_you_mean("vt_resnet19", ["vt_resnet18", "resnet50"]) == "; did you mean 'vt_resnet18'?"


def test_else_the_choices_are_listed():
    assert did_you_mean("zebra", ["b", "a"]) == "; choose from a, b"
    assert did_you_mean("zebra", []) == ""


def test_a_long_list_is_cut():
    line = did_you_mean("zebra", [f"{i:03d}" for i in range(109)])
    assert line.startswith("; choose from 000, 001,")
    assert line.endswith(f"{MOST_CHOICES - 1:03d} and {109 - MOST_CHOICES} more")
