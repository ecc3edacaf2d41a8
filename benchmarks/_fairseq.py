"""fairseq as a peer: a random HuBERT base in a checkpoint of its own format, and its own HubertFeatureReader.

fairseq stays out of our environment; `.ci/parity` makes one that has it beside ours (docs/parity.md). Where it cannot
be imported, `missing` says why, and the benchmark goes without.
"""

import importlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.speech.kmeans import Codebook

_READER = "fairseq.examples.textless_nlp.gslm.speech2unit.pretrained.hubert_feature_reader"


def missing() -> str:
    """Why fairseq's reader cannot take part; empty when it can."""
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    try:
        importlib.import_module(_READER)
    except ImportError as error:
        return f"{error}; .ci/parity makes an environment that has it"
    return ""


def write_checkpoint(folder: Path, num_layers: int) -> Path:
    """`folder/hubert.pt`: fairseq's HubertModel of base size, weights random, beside the dictionary it asks for."""
    from fairseq.data.dictionary import Dictionary
    from fairseq.models.hubert.hubert import HubertConfig, HubertModel
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig

    (folder / "dict.km.txt").write_text("".join(f"{unit} 1\n" for unit in range(100)))
    task = {"_name": "hubert_pretraining", "data": str(folder), "labels": ["km"], "label_rate": 50.0}
    model = {"_name": "hubert", "label_rate": 50.0, "encoder_layers": num_layers}
    dictionary = Dictionary.load(str(folder / "dict.km.txt"))
    built = HubertModel(
        HubertConfig(label_rate=50.0, encoder_layers=num_layers),
        HubertPretrainingConfig(data=str(folder)),
        [dictionary],
    )
    history = [{"criterion_name": "hubert", "optimizer_name": "adam", "lr_scheduler_state": {}, "num_updates": 0}]
    state = {"args": None, "cfg": {"model": model, "task": task}, "model": built.state_dict()}
    state |= {"optimizer_history": history, "extra_state": {}, "task_state": {}}  # what its loader looks for
    torch.save(state, folder / "hubert.pt")
    return folder / "hubert.pt"


def reader(checkpoint: Path, layer: int, device: str) -> Any:
    """fairseq's HubertFeatureReader, as its speech2unit example uses it: one file at a time, 100 s at a time."""
    return importlib.import_module(_READER).HubertFeatureReader(str(checkpoint), layer, use_cuda=device != "cpu")


def units(found: Any, codebook: Codebook, files: list[Path]) -> list[npt.NDArray[np.int64]]:
    """The reader's features of each file, and their nearest centroids."""
    return [codebook.assign(found.get_feats(str(path)).float().cpu().numpy()) for path in files]
