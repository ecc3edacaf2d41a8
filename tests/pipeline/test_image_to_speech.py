"""Where a captioner's tokenizer and voice are looked for."""

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.files import write_json
from pipeline.image_to_speech import _beside


def test_parts_are_inside_the_model_or_beside_the_stages_folder(tmp_path: Path) -> None:
    model = tmp_path / "data" / "train" / "model"
    write_json(tmp_path / "data" / "vocoder" / "config.json", {})
    assert _beside(model, None, "vocoder") == tmp_path / "data" / "vocoder"
    write_json(model / "vocoder" / "config.json", {})
    assert _beside(model, None, "vocoder") == model / "vocoder"
    with pytest.raises(InputError, match="elsewhere; run that stage or name its folder"):
        _beside(model, tmp_path / "elsewhere", "vocoder")


def test_a_model_at_the_root_of_a_container_has_no_stages_beside_it() -> None:
    with pytest.raises(InputError, match="/no-model/vocoder"):
        _beside(Path("/no-model"), None, "vocoder")
