"""The names that people give to splits."""

from __future__ import annotations

from collections.abc import Collection

_MEANT = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_VAL_OR_TEST = ("eval", "evaluation")


def meant_splits(names: Collection[str]) -> dict[str, str]:
    """The split that each of a data set's names means, whatever its case: train, val or test.

    An eval or evaluation is the test split where no other name means that, and val beside one that does.

    Args:
        names: those that mean no split are left out.
    """
    meant = {name: _MEANT[name.casefold()] for name in names if name.casefold() in _MEANT}
    other = "val" if "test" in meant.values() else "test"
    return meant | {name: other for name in names if name.casefold() in _VAL_OR_TEST}


def asked_split(name: str, splits: Collection[str]) -> str:
    """The split of a data set that a name means, which may be as the data set spelled it.

    Args:
        name: what was asked for.
        splits: of the data set, as `meant_splits` calls them; of an eval it cannot be told which it is where there are
            both val and test.
    """
    if name in splits or (name.casefold() in _VAL_OR_TEST and {"val", "test"} <= set(splits)):
        return name
    return meant_splits([name]).get(name, name)
