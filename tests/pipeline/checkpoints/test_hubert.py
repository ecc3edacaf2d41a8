"""HuBERT from every layout: the features are those of the model that was saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertModel

from pipeline.checkpoints.hubert import import_hubert
from pipeline.errors import InputError
from pipeline.files import read_json
from pipeline.speech.hubert import SpeechEncoder
from tests.pipeline.checkpoints.hostile import WRAPPINGS, Payload
from tests.pipeline.checkpoints.miniatures import fairseq_names, hubert_model, save_hubert

LAYOUTS = ("fairseq", "fairseq before hydra", "fairseq fine-tuned", "s3prl", "torchaudio")


def hidden(model: HubertModel, layer: int) -> torch.Tensor:
    waveform = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 6000)).astype(np.float32))
    with torch.inference_mode():
        return model(waveform, output_hidden_states=True).hidden_states[layer]


@pytest.mark.parametrize("kind", ["base", "large"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_model(tmp_path: Path, layout: str, kind: str) -> None:
    model = hubert_model(kind)
    save_hubert(tmp_path / "hubert.pt", model, layout, normalize=kind == "large")
    found = import_hubert(tmp_path / "hubert.pt", tmp_path / "out")
    # Torchaudio's file says nothing of heads (128 / 64 = 2 here) and of normalisation.
    assert found.layout == layout.split()[0]
    assert found.normalize == (None if layout == "torchaudio" else kind == "large")
    loaded = HubertModel.from_pretrained(tmp_path / "out", local_files_only=True).eval()
    for layer in (0, 1, 2):
        torch.testing.assert_close(hidden(loaded, layer), hidden(model, layer), atol=1e-6, rtol=0)
    origin = read_json(tmp_path / "out/provenance.json")
    assert list(origin["files"]) == ["hubert.pt"] and len(origin["files"]["hubert.pt"]) == 64
    encoder = SpeechEncoder(tmp_path / "out", 1, normalize=bool(found.normalize))
    assert encoder.name == "hubert" and encoder.hop == 320 and encoder.num_frames(190800) == 596


@pytest.mark.parametrize("layout", ["fairseq", "s3prl", "torchaudio"])
def test_batch_norm_before_the_positional_convolution(tmp_path: Path, layout: str) -> None:
    """As mHuBERT at 25 Hz has it, and not every name of it is a float."""
    model = hubert_model("batch norm")
    save_hubert(tmp_path / "m.pt", model, layout)
    import_hubert(tmp_path / "m.pt", tmp_path / "out")
    loaded = HubertModel.from_pretrained(tmp_path / "out", local_files_only=True).eval()
    torch.testing.assert_close(hidden(loaded, 2), hidden(model, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_hugging_face_folder_with_or_without_its_head(tmp_path: Path, pickled: bool) -> None:
    model = hubert_model()
    model.save_pretrained(tmp_path / "hf")
    if pickled:
        state = {f"hubert.{name}": value for name, value in model.state_dict().items()}
        torch.save({**state, "lm_head.weight": torch.zeros(3, 128)}, tmp_path / "hf/pytorch_model.bin")
        (tmp_path / "hf/model.safetensors").unlink()
    import_hubert(tmp_path / "hf", tmp_path / "out", name="hubert-base-ls960")
    loaded = HubertModel.from_pretrained(tmp_path / "out", local_files_only=True).eval()
    torch.testing.assert_close(hidden(loaded, 2), hidden(model, 2), atol=0, rtol=0)
    assert SpeechEncoder(tmp_path / "out", 1).name == "hubert-base-ls960"


def test_a_longer_hop_is_read_from_the_configuration(tmp_path: Path) -> None:
    """mHuBERT at 25 Hz has an eighth convolution."""
    names = fairseq_names(hubert_model())
    names["feature_extractor.conv_layers.7.0.weight"] = torch.randn(32, 32, 2)
    layers = "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 3"
    torch.save({"cfg": {"model": {"conv_feature_layers": layers}, "task": {}}, "model": names}, tmp_path / "m.pt")
    import_hubert(tmp_path / "m.pt", tmp_path / "out")
    assert SpeechEncoder(tmp_path / "out", 1).hop == 640


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_hostile_file_is_refused(tmp_path: Path, wrapping: str) -> None:
    WRAPPINGS[wrapping](tmp_path / "evil.pt", Payload(tmp_path / "ran"))
    with pytest.raises(InputError, match="Nothing was run"):
        import_hubert(tmp_path / "evil.pt", tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_what_is_no_hubert_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder.*im2speech fetch"):
        import_hubert(tmp_path / "facebook/hubert-base-ls960", tmp_path / "out")
    torch.save({"weights": 1}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="no HuBERT that is known here.*found weights"):
        import_hubert(tmp_path / "x.pt", tmp_path / "out")
    names = fairseq_names(hubert_model())
    del names["encoder.layers.1.fc1.weight"]
    torch.save({"cfg": {}, "model": names}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"missing encoder.layers.1.feed_forward.intermediate_dense.weight"):
        import_hubert(tmp_path / "x.pt", tmp_path / "out")
