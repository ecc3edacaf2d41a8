"""im2speech caption: choices that cannot be are refused before anything is loaded."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from stages.tools.caption import command


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"num_best": 3}, "--num-beams"),
        ({"num_best": 3, "num_beams": 2}, "only 2"),
        ({"num_samples": 4}, "temperature"),
        ({"num_beams": 4, "temperature": 0.5}, "choose one"),
    ],
)
def test_what_cannot_be_is_refused(flags, said, tmp_path):
    with pytest.raises(InputError, match=said):
        command([Path("a.jpg")], out=tmp_path, **flags)


def test_two_names_that_would_meet_are_refused(tmp_path):
    with pytest.raises(InputError, match="same name"):
        command([Path("a.jpg"), Path("a.2.jpg")], out=tmp_path, num_beams=2, num_best=2)
