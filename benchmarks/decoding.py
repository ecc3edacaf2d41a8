"""Ways to decode, on one trained captioner: greedy against beam search and against drawn captions, re-ranked.

Unit error rate to the nearest reference and the share of captions whose units are exactly a reference's, on a split of
token shards; with the difference to greedy and its 95 % interval (paired bootstrap over images), and the time.
`python -m benchmarks.decoding --model data/train/model --shards data/shards`.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks._common import last_line, parser, seconds
from pipeline.captioner.data import Examples
from pipeline.captioner.generation import GenerationSettings, generate_units
from pipeline.captioner.model import Captioner, load_captioner
from pipeline.captioner.setup import read_examples
from pipeline.captioner.training import unit_error_rate
from pipeline.captioner.vocabulary import UnitVocabulary
from pipeline.vision.transforms import image_to_tensor

WAYS = {
    "greedy": GenerationSettings(),
    "beam 2": GenerationSettings(num_beams=2),
    "beam 5": GenerationSettings(num_beams=5),
    "beam 5, whole log-probability": GenerationSettings(num_beams=5, length_penalty=0.0),
    "one draw, top-p 0.9": GenerationSettings(temperature=1.0, top_p=0.9),
    "best of 8 draws, temperature 0.7, top-p 0.9": GenerationSettings(temperature=0.7, top_p=0.9, num_samples=8),
    "best of 16 draws, temperature 1, top-p 0.95": GenerationSettings(temperature=1.0, top_p=0.95, num_samples=16),
}


def rates(
    model: Captioner, vocabulary: UnitVocabulary, examples: Examples, settings: GenerationSettings
) -> npt.NDArray[np.float64]:
    """Unit error rate of each image's caption."""
    spoken = generate_units(model, vocabulary, examples.images, max_length=model.config.max_units, settings=settings)
    pairs = zip(spoken, examples.captions, strict=True)
    return np.array([unit_error_rate(units.tolist(), references) for units, references in pairs])


def main() -> None:
    """Print the comparison."""
    arguments = parser(__doc__.splitlines()[0], paired=False)
    arguments.add_argument("--model", type=Path, default=Path("data/train/model"))
    arguments.add_argument("--shards", type=Path, default=Path("data/shards"))
    arguments.add_argument("--split", default="val")
    arguments.add_argument("--images", type=int, default=0, help="default: 60 small, else all of the split")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = arguments.parse_args()
    model = load_captioner(options.model).to(options.device)
    vocabulary = UnitVocabulary.load(options.model / "unit_vocabulary.json")
    limit = options.images or (60 if options.small else None)
    examples = read_examples(options.shards, options.split, model, image_to_tensor, limit, cache=True)
    found: dict[str, npt.NDArray[np.float64]] = {}
    times: dict[str, float] = {}
    rng = np.random.default_rng(0)
    for name, settings in WAYS.items():
        times[name] = seconds(lambda s=settings, n=name: found.update({n: rates(model, vocabulary, examples, s)}))  # type: ignore[misc]
        less = found["greedy"] - found[name]
        resampled = less[rng.integers(len(less), size=(2000, len(less)))].mean(1)
        low, high = np.percentile(resampled, [2.5, 97.5]) * 100
        print(
            f"{name:45s} UER {found[name].mean() * 100:5.2f} %  exact {(found[name] == 0).mean() * 100:5.1f} %  "
            f"better than greedy by {less.mean() * 100:5.2f} ({low:.2f} to {high:.2f})  {times[name]:.1f} s",
            flush=True,
        )
    last_line(
        "decoding",
        "greedy decoding (the paper's)",
        float(found["greedy"].mean() / max(found["beam 5"].mean(), 1e-9)),
        {name: round(float(values.mean()) * 100, 2) for name, values in found.items()},
        options.device,
        f"{len(examples)} images of {options.split}; ratio: greedy's unit error rate over beam 5's",
    )


if __name__ == "__main__":
    main()
