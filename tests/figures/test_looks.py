from figures.looks import looks
from figures.style import CONTROL, EDITED, FORGOTTEN, GOLD, ORIGINAL, RETAINED, UNTRAINED


def test_roles_have_colours_of_their_own_and_are_told_apart_without_colour() -> None:
    assert len({ORIGINAL, EDITED, GOLD, UNTRAINED, CONTROL, FORGOTTEN, RETAINED}) == 7
    names = ["original", "edited", "untrained", "gold-00", "gold-01", *(f"cheat {i}" for i in range(8))]
    shown = looks(names, ["gold-00", "gold-01"])
    assert shown["gold-00"] == shown["gold-01"]
    others = [shown[name] for name in names if name != "gold-01"]
    assert len({look.marker for look in others}) == len(others)
    assert {shown[f"cheat {i}"].colour for i in range(8)} == {CONTROL}
