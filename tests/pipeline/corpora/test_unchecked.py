"""Keys made from file names are allowed keys, distinct, and the same in any order."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpora.unchecked import derive_keys, given_key
from pipeline.manifest import is_key


def test_plain_names_stay_and_dots_go() -> None:
    assert derive_keys(["images/155.jpg", "images/a.b (1).jpg"]) == {
        "images/155.jpg": "155",
        "images/a.b (1).jpg": "a-b-1-",
    }
    assert given_key("m0-3LUY_325114_629297") == "m0-3LUY_325114_629297"
    assert given_key("a.b") == "a-b"


def test_collisions_are_told_apart() -> None:
    keys = derive_keys(["train/1.jpg", "val/1.jpg", "c/a.b.jpg", "c/a-b.jpg", "x/2.jpg", "x/2.png"])
    assert keys["train/1.jpg"] == "train/1" and keys["val/1.jpg"] == "val/1"
    assert keys["c/a.b.jpg"].startswith("c/a-b-") and keys["c/a-b.jpg"].startswith("c/a-b-")
    assert len(set(keys.values())) == 6


@given(st.lists(st.text(st.sampled_from("ab./-é "), min_size=1, max_size=6), min_size=1, unique=True))
def test_any_names_give_distinct_keys_in_any_order(paths: list[str]) -> None:
    keys = derive_keys(paths)
    assert set(keys) == set(paths)
    assert len(set(keys.values())) == len(paths)
    assert all(is_key(key) for key in keys.values())
    assert keys == derive_keys(paths[::-1])
