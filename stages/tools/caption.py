"""im2speech caption: images in, a wav file for each out, from the trained artifacts."""

from pathlib import Path
from typing import Annotated

import typer

from stages._settings import from_environment, resolve_device


def command(
    images: Annotated[list[Path], typer.Argument(help="Pictures to describe.")],
    out: Annotated[Path, typer.Option(help="Folder for the wav files, each named like its picture.")] = Path("."),
    model: Annotated[Path, typer.Option(help="The captioner's folder.")] = Path("data/train/model"),
    vqgan: Annotated[Path | None, typer.Option(help="The image tokenizer; else found beside the model.")] = None,
    vocoder: Annotated[Path | None, typer.Option(help="The vocoder; else found beside the model.")] = None,
    num_beams: Annotated[int, typer.Option(min=1, help="1: greedy decoding, as in the paper.")] = 1,
) -> None:
    """Speak a caption for each picture: image -> tokens -> speech units -> wav."""
    from pipeline.errors import InputError
    from pipeline.image_to_speech import ImageToSpeech
    from pipeline.media import write_wav

    targets = [out / f"{image.stem}.wav" for image in images]
    if len(set(targets)) != len(targets):
        raise InputError("two pictures have the same name; caption them into different folders (--out)")
    settings = from_environment()
    captioner = ImageToSpeech.from_pretrained(
        model, vqgan_dir=vqgan, vocoder_dir=vocoder, device=resolve_device(settings.device)
    )
    for image, target, speech in zip(images, targets, captioner.caption(images, num_beams=num_beams), strict=True):
        write_wav(target, speech.waveform, speech.sample_rate)
        seconds = len(speech.waveform) / speech.sample_rate
        print(f"{image} -> {target} ({seconds:.1f} s, {len(speech.units)} units)")
