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
    num_beams: Annotated[int, typer.Option(min=1, help="1: greedy decoding, as in the paper; more: search.")] = 1,
    temperature: Annotated[
        float, typer.Option(min=0, help="Above 0: draw at random; 1 as the model thinks, below 1 bolder.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Draw among the likeliest that hold this share of probability.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw among so many of the likeliest; 0: all.")] = 0,
    num_samples: Annotated[
        int, typer.Option(min=1, help="Captions drawn for a picture; the one that the model likes best is kept.")
    ] = 1,
    num_best: Annotated[
        int, typer.Option(min=1, help="Captions to keep of those searched or drawn: NAME.wav, NAME.2.wav and so on.")
    ] = 1,
    length_penalty: Annotated[
        float, typer.Option(help="Captions are compared by log-probability over length to this power; 0: as a whole.")
    ] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what was said becomes less likely.")] = 1.0,
    no_repeat_ngram_size: Annotated[int, typer.Option(min=0, help="No run of so many ids twice; 0: any.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing; the same seed says the same.")] = 0,
) -> None:
    """Speak a caption for each picture: image -> tokens -> speech units -> wav.

    Greedy unless told otherwise. `--num-beams 5` searches; `--temperature 0.7 --top-p 0.9 --num-samples 8` draws eight
    captions and keeps the likeliest, and `--num-best 3` with either writes the three best.
    """
    from pipeline.captioner.generation import GenerationSettings
    from pipeline.errors import InputError
    from pipeline.image_to_speech import ImageToSpeech
    from pipeline.media import write_wav

    targets = [[_target(out, image, number) for number in range(1, num_best + 1)] for image in images]
    if len({target for several in targets for target in several}) != len(images) * num_best:
        raise InputError("two pictures have the same name; caption them into different folders (--out)")
    if num_best > max(num_beams, num_samples):
        raise InputError(
            f"--num-best {num_best}: only {max(num_beams, num_samples)} captions are looked for; "
            "raise --num-beams, or --num-samples with a --temperature"
        )
    choice = GenerationSettings(
        num_beams=num_beams,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        num_samples=num_samples,
        length_penalty=length_penalty,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
        seed=seed,
    )
    settings = from_environment()
    captioner = ImageToSpeech.from_pretrained(
        model, vqgan_dir=vqgan, vocoder_dir=vocoder, device=resolve_device(settings.device)
    )
    found = captioner.caption_best(images, choice, num_best=num_best)
    for image, paths, several in zip(images, targets, found, strict=True):
        for target, speech in zip(paths, several, strict=False):  # all beams or draws may have said the same
            write_wav(target, speech.waveform, speech.sample_rate)
            seconds = len(speech.waveform) / speech.sample_rate
            print(f"{image} -> {target} ({seconds:.1f} s, {len(speech.units)} units, score {speech.score:.3f})")


def _target(out: Path, image: Path, number: int) -> Path:
    return out / (f"{image.stem}.wav" if number == 1 else f"{image.stem}.{number}.wav")
