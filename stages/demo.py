"""demo: makes the demo corpus, a miniature SpokenCOCO in the real published layout.

Reads nothing, writes data/demo (see pipeline/corpora/demo.py for its files), because a fresh, offline
machine has no corpus; with a corpus of one's own `make: false` leaves only a note saying so.
"""

from pathlib import Path

from pydantic import Field

from stages._cli import Out, Section, StageContext


class Params(Section):
    make: bool = Field(True, description="Make the demo corpus; false where a real corpus is used.")
    num_train_images: int = Field(2400, ge=1, description="Images of the split train.")
    num_restval_images: int = Field(24, ge=0, description="Images of Karpathy's restval (training scenes).")
    num_val_images: int = Field(60, ge=1, description="Images of the split val.")
    num_test_images: int = Field(100, ge=1, description="Images of the split test.")
    num_novel_images: int = Field(100, ge=0, description="Images of test_novel: combinations never trained on.")
    captions_per_train_image: int = Field(2, ge=1, le=5, description="Spoken captions of a train image.")
    captions_per_test_image: int = Field(5, ge=1, le=5, description="Spoken captions of any other image.")
    image_size: int = Field(128, ge=32, description="Width and height in pixels.")
    voices: list[str] = Field(
        ["en-us", "en-us+m3", "en-us+klatt4", "en-us+f1"],
        description="espeak voices that speak the captions.",
    )
    rate: int = Field(170, ge=80, le=450, description="Speaking rate in words a minute.")
    seed: int = Field(0, ge=0, description="Decides scenes, pictures, paraphrases and who speaks.")


def run(params: Params, context: StageContext, *, out: Out = Path("data/demo")) -> None:
    """Make the demo corpus: drawn scenes with synthetic spoken captions, laid out like SpokenCOCO."""
    import shutil

    from pipeline.corpora.demo import DemoSize, write_demo
    from pipeline.files import write_json

    if context.dry_run:
        return
    if not params.make:
        shutil.rmtree(out, ignore_errors=True)
        write_json(out / "demo.json", {"made": False, "why": "demo.make is false: another corpus is used"})
        return
    wanted = {
        "train": params.num_train_images,
        "restval": params.num_restval_images,
        "val": params.num_val_images,
        "test": params.num_test_images,
        "test_novel": params.num_novel_images,
    }
    limit = context.limit
    size = DemoSize(
        num_images={split: count if limit is None else min(count, limit) for split, count in wanted.items()},
        captions_per_train_image=params.captions_per_train_image,
        captions_per_test_image=params.captions_per_test_image,
        image_size=params.image_size,
        voices=tuple(params.voices),
        rate=params.rate,
        seed=params.seed,
    )
    note = write_demo(out, size, context.settings.num_workers)
    print(f"demo: {sum(note['images'].values())} images, {note['utterances']} utterances in {out}")
