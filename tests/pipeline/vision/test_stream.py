"""Pictures read as they are needed: the same for any order and number of threads, cut and mirrored as said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from pipeline.errors import InputError
from pipeline.manifest import Caption, Image, Row
from pipeline.vision.stream import PictureStream, StreamSettings
from pipeline.vision.transforms import image_to_tensor


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(6):
        pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(tmp_path / f"{number}.png")
        image = Image(f"{number}.png", 60, 40, "0" * 64)
        rows.append(Row(f"k{number}", image, (Caption("c", "a.wav", 1, 1, "0" * 64, "", ""),)))
    (tmp_path / "3.png").write_bytes(b"torn")
    return rows


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_a_batch_depends_on_seed_and_step_alone(tmp_path: Path, rows: list[Row], augment: str) -> None:
    settings = StreamSettings(8, (16, 16), augment=augment, seed=3)  # type: ignore[arg-type]
    with PictureStream(tmp_path, rows, settings, num_threads=3) as ahead:
        in_order = [ahead(step) for step in range(6)]
    with PictureStream(tmp_path, rows, settings) as resumed:
        assert all(torch.equal(resumed(step), in_order[step]) for step in (4, 5, 0))
    with pytest.raises(RuntimeError, match="shutdown"):
        ahead(6)
    assert in_order[0].shape == (8, 3, 16, 16) and not torch.equal(in_order[0], in_order[1])


def test_unaugmented_pictures_are_the_corpus_own_and_a_torn_one_gives_way(tmp_path: Path, rows: list[Row]) -> None:
    with PictureStream(tmp_path, rows, StreamSettings(40, (16, 24)), num_threads=2) as stream:
        batch = stream(0)
    (reason,) = stream.unreadable
    assert str(tmp_path / "3.png") in reason
    numbers = np.random.default_rng([0, 0]).integers(6, size=40).tolist()
    assert 3 in numbers
    for found, number in zip(batch, numbers, strict=True):
        path = tmp_path / f"{4 if number == 3 else number}.png"
        assert torch.equal(found, image_to_tensor(Picture.open(path), (16, 24)))


def test_parts_keep_the_aspect_and_are_mirrored_half_of_the_time(tmp_path: Path, rows: list[Row]) -> None:
    ramp = np.zeros((40, 60, 3), np.uint8)
    ramp[:, :, 0] = np.arange(60) * 4  # rises to the right
    ramp[:, :, 1] = np.arange(40)[:, None] * 4
    for number in range(6):
        Picture.fromarray(ramp).save(tmp_path / f"{number}.png")
    with PictureStream(tmp_path, rows, StreamSettings(200, (20, 20), augment="crop_flip")) as stream:
        batch = stream(0)
    width = (batch[:, 0, 10, -1] - batch[:, 0, 10, 0]) * 255 / 4
    height = (batch[:, 1, -1, 10] - batch[:, 1, 0, 10]) * 255 / 4
    assert 0.35 < float((width < 0).float().mean()) < 0.65
    # 40 pixels are the largest square's side; resampling takes up to two off at the edges.
    for sides in (width.abs(), height):
        assert float(sides.min()) > 28 and float(sides.max()) < 40
        assert float(sides.max() - sides.min()) > 4
    torch.testing.assert_close(width.abs(), height, atol=1.5, rtol=0)


def test_nothing_to_read_is_an_error(tmp_path: Path, rows: list[Row]) -> None:
    with pytest.raises(InputError, match="no picture to train on"):
        PictureStream(tmp_path, [], StreamSettings(2, (16, 16)))
    with (
        PictureStream(tmp_path, rows[3:4], StreamSettings(2, (16, 16))) as stream,
        pytest.raises(InputError, match="not one of 1 pictures can be read"),
    ):
        stream(0)
