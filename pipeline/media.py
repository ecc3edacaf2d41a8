"""The only place that opens audio and images, so that every stage hears and sees the same samples and pixels.

Audio through soundfile (wav, flac, ogg, mp3) and soxr, images through Pillow. Needs no torch.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import InputError
from pipeline.files import atomic_path

# What Pillow's decoders raise on damaged files, over its formats.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


_EXIF_ORIENTATION = 0x0112


class MediaError(InputError):
    """A file that is missing, empty or cannot be decoded; the message begins with its path."""


def _open_audio(path: Path) -> soundfile.SoundFile:
    if not path.is_file():
        raise MediaError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty")
    try:
        return soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise MediaError(f"{path}: cannot be read as audio: {error.error_string}") from error


def audio_info(path: Path) -> tuple[int, int]:
    """(number of samples a channel, sample rate in Hz) from the header, without decoding.

    Raises MediaError for a file that is missing or is no audio.
    """
    with _open_audio(Path(path)) as file:
        return file.frames, file.samplerate


def decode_audio(path: Path) -> tuple[NDArray[np.float32], int]:
    """(mono float32 ``[num_samples]``, sample rate in Hz), every sample decoded, at the file's own rate.

    Channels are averaged. Raises MediaError for a file that is missing, empty, damaged or not finite.
    """
    path = Path(path)
    with _open_audio(path) as file:
        try:
            channels = file.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise MediaError(f"{path}: cannot be decoded: {error.error_string}") from error
        rate = file.samplerate
    if not len(channels):
        raise MediaError(f"{path}: holds no samples")
    waveform = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1, dtype=np.float32)
    if not np.isfinite(waveform).all():
        raise MediaError(f"{path}: holds samples that are not finite numbers")
    return np.ascontiguousarray(waveform), rate


def resample(waveform: NDArray[np.float32], rate: int, sample_rate: int) -> NDArray[np.float32]:
    """float32 ``[n]`` at ``rate`` Hz -> float32 ``[about n * sample_rate / rate]`` at ``sample_rate`` Hz."""
    if rate == sample_rate:
        return waveform
    return np.asarray(soxr.resample(waveform, rate, sample_rate, quality="HQ"), dtype=np.float32)


def read_audio(path: Path, sample_rate: int = 16000) -> NDArray[np.float32]:
    """Mono float32 ``[num_samples]`` in [-1, 1] at ``sample_rate`` Hz, resampled from any other rate.

    Raises MediaError for a file that is missing, empty, damaged or not finite.
    """
    waveform, rate = decode_audio(path)
    return resample(waveform, rate, sample_rate)


def write_wav(path: Path, waveform: NDArray[np.float32], sample_rate: int) -> None:
    """Write float32 ``[num_samples]`` as a mono 16-bit PCM wav, atomically; beyond [-1, 1] it is clipped."""
    path = Path(path)
    samples = np.round(np.clip(np.asarray(waveform, dtype=np.float32), -1.0, 1.0) * 32767.0).astype("<i2")
    if samples.ndim != 1:
        raise InputError(f"{path}: a waveform has one dimension, not {samples.ndim}")
    path.parent.mkdir(parents=True, exist_ok=True)
    size = samples.nbytes
    # Written by hand: forty-four bytes, the same on every platform and library version.
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16, b"data", size),
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(header + samples.tobytes())


def read_image(path: Path) -> Image.Image:
    """The picture as RGB, 8 bits a channel, turned as its EXIF orientation asks.

    Transparent pixels are laid over white, CMYK and palettes are converted, 16-bit grey is scaled to 8 bits,
    of an animation the first frame is taken. Raises MediaError for a file that is missing, empty, damaged,
    cut short, absurdly large, or in floating point (its range is not known).
    """
    path = Path(path)
    if not path.is_file():
        raise MediaError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image), path)
    except MediaError:
        raise
    except _DAMAGED as error:
        reason = str(error).split("<_io")[0].strip() or type(error).__name__
        raise MediaError(f"{path}: cannot be read as an image: {reason}") from error


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise MediaError(f"{path}: a floating-point image; convert it to 8 or 16 bits first")
    if image.mode.startswith("I"):
        # Pillow clips such modes to 255 when it converts; both "I" and "I;16" hold 16-bit files.
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((values // 257).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def jpeg_bytes(path: Path, shorter_side: int = 0, quality: int = 90) -> bytes:
    """The picture as a JPEG file: its own bytes where they will do, else encoded again.

    The bytes of a JPEG file are kept unless they are to be turned (EXIF) or made smaller; other formats are
    encoded with ``quality``. ``shorter_side`` in pixels reduces larger pictures; 0 keeps the size. Raises
    MediaError like ``read_image``.
    """
    path = Path(path)
    picture = read_image(path)
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        upright = image.getexif().get(_EXIF_ORIENTATION, 1) == 1
        keep = image.format == "JPEG" and image.mode in ("RGB", "L") and upright
    factor = shorter_side / min(picture.size)
    if 0 < factor < 1:
        width, height = (max(1, round(side * factor)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    elif keep:
        return data
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
