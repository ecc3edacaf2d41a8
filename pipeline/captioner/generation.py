"""Image to units: transformers' `generate`, batched, the image encoded once, cut at the first EOS."""

import numpy as np
import numpy.typing as npt
import torch

from pipeline.captioner.model import Captioner
from pipeline.captioner.vocabulary import UnitVocabulary


@torch.inference_mode()
def generate_units(
    model: Captioner,
    vocabulary: UnitVocabulary,
    images: torch.Tensor,
    *,
    batch_size: int = 64,
    max_length: int = 256,
    num_beams: int = 1,
) -> list[npt.NDArray[np.uint16]]:
    """Deduplicated units uint16 [n] for each image of [N, ...] (what `Captioner` takes).

    max_length: new ids at most; the model's positions bound it as well. num_beams 1 is greedy decoding, as in
    the paper. The same for any batch size.
    """
    model.eval()
    device = next(model.parameters()).device
    max_length = min(max_length, model.config.max_position_embeddings - 1)
    spoken: list[npt.NDArray[np.uint16]] = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size].to(device)
        out = model.generate(
            input_ids=torch.full((len(batch), 1), vocabulary.bos, device=device),
            pixel_values=batch,
            max_new_tokens=max_length,
            num_beams=num_beams,
            do_sample=False,
            bos_token_id=vocabulary.bos,
            eos_token_id=vocabulary.eos,
            pad_token_id=vocabulary.pad,
        )
        for row in out[:, 1:].tolist():
            units = np.array(vocabulary.decode(row), dtype=np.uint16)
            # Pieces may meet with the same unit at both sides.
            keep = np.concatenate([[True], units[1:] != units[:-1]]) if len(units) else np.zeros(0, bool)
            spoken.append(units[keep])
    return spoken
