"""Audio and images of many kinds come out in one form; damaged ones raise MediaError with their path."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from pipeline.media import MediaError, audio_info, read_audio, read_image, write_wav


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def test_wav_round_trip_within_half_a_step(tmp_path: Path) -> None:
    wave = tone(16000)
    write_wav(tmp_path / "a.wav", wave, 16000)
    assert audio_info(tmp_path / "a.wav") == (8000, 16000)
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    back = read_audio(tmp_path / "a.wav")
    assert back.dtype == np.float32 and back.shape == (8000,)
    assert np.abs(back - wave).max() < 1.0 / 32767


def test_loud_samples_are_clipped_not_wrapped(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.array([2.0, -2.0, 0.0], dtype=np.float32), 16000)
    assert np.allclose(read_audio(tmp_path / "a.wav"), [1.0, -1.0, 0.0], atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled_to_the_same_tone(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.flac", tone(rate), rate)
    heard = read_audio(tmp_path / "a.flac")
    assert abs(len(heard) - 8000) <= 2
    assert np.abs(heard[500:7500] - tone(16000)[500:7500]).max() < 0.01


def test_stereo_is_averaged(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([tone(16000), np.zeros(8000, np.float32)], axis=1), 16000)
    assert np.abs(read_audio(tmp_path / "a.wav") - tone(16000) / 2).max() < 1e-3


def test_audio_errors_name_the_path(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not a sound")
    (tmp_path / "empty.wav").touch()
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(tmp_path / "nan.wav", np.array([np.nan, 0.0], np.float32), 16000, subtype="FLOAT")
    for name in ("missing.wav", "text.wav", "empty.wav", "nothing.wav", "nan.wav"):
        with pytest.raises(MediaError, match=name):
            read_audio(tmp_path / name)


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    grey = Image.fromarray(ramp)
    for mode in ("L", "P", "RGBA", "LA", "CMYK", "1", "RGB"):
        grey.convert(mode).save(tmp_path / f"{mode}.tif")
        image = read_image(tmp_path / f"{mode}.tif")
        assert (image.mode, image.size) == ("RGB", (8, 8))
        if mode != "1":
            assert np.abs(np.asarray(image)[..., 1].astype(int) - ramp).max() <= 2, mode


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 100, 255]


def test_transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (10, 20)


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "tiff", "bmp", "webp"])
def test_a_file_cut_anywhere_is_a_media_error_or_an_image(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    data = buffer.getvalue()
    failures = 0
    for length in range(0, len(data), max(1, len(data) // 60)):
        path = tmp_path / f"cut.{kind}"
        path.write_bytes(data[:length])
        try:
            assert read_image(path).mode == "RGB"
        except MediaError as error:
            assert f"cut.{kind}" in str(error)
            failures += 1
    assert failures > 10


def test_flipped_bytes_never_escape_as_other_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    for kind in ("jpeg", "png", "gif"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, kind)
        for _ in range(60):
            data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
            data[rng.integers(0, len(data), 6)] = rng.integers(0, 256, 6)
            (tmp_path / "a.bin").write_bytes(data.tobytes())
            with contextlib.suppress(MediaError):
                read_image(tmp_path / "a.bin")
