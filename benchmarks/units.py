"""Speech units: ours against transformers and fairseq one utterance at a time, and against padded batches.

All of them read the same wav files and end in units. Ours is what the stage does: shards through worker processes, one
thread each, or on a GPU budgeted batches with decoding ahead of the model. The peers have all threads. HuBERT base with
random weights, layer 6: good for speed, and for whether units agree. fairseq's own HubertFeatureReader takes part where
it can be imported; the weights are then its own, and come to us through the importer.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import HubertConfig, HubertModel

from benchmarks import _fairseq
from benchmarks._common import last_line, matrix_rate, pairs, parser, run_stage, speech, write_speech
from pipeline.checkpoints.hubert import import_hubert
from pipeline.media import read_audio
from pipeline.speech.hubert import SpeechEncoder
from pipeline.speech.kmeans import Codebook
from pipeline.speech.units import Source, units_of_shard
from pipeline.tokens.parts import read_units_part, restore

LAYER, NUM_UNITS = 6, 200
Units = list[npt.NDArray[np.int64]]


def operations_a_second() -> float:
    """Of HuBERT base up to layer 6, for a second of audio: convolutions, positions, layers without attention's own."""
    frames, channels, kernels = 3200, 512, (3, 3, 3, 3, 2, 2)
    total = 2 * frames * channels * 10
    for kernel in kernels:
        frames //= 2
        total += 2 * frames * channels * channels * kernel
    total += 2 * frames * (channels * 768 + 768 * 48 * 128)
    return float(total + LAYER * 2 * frames * (4 * 768**2 + 2 * 768 * 3072))


def one_at_a_time(model: HubertModel, codebook: Codebook, files: list[Path], device: str) -> Units:
    """The usual loop: read, encode, nearest centroid."""
    found = []
    with torch.inference_mode():
        for path in files:
            samples = torch.from_numpy(read_audio(path))[None].to(device)
            features = model(samples).last_hidden_state[0]
            found.append(codebook.assign(features.float().cpu().numpy()))
    return found


def padded(model: HubertModel, codebook: Codebook, files: list[Path], device: str, size: int = 8) -> Units:
    """Batches of 8 padded to the longest, with an attention mask, as slamkit and most users of transformers do."""
    found = []
    for batch in [files[start : start + size] for start in range(0, len(files), size)]:
        waveforms = [read_audio(path) for path in batch]
        samples = torch.zeros(len(batch), max(map(len, waveforms)))
        mask = torch.zeros(samples.shape, dtype=torch.long)
        for row, waveform in enumerate(waveforms):
            samples[row, : len(waveform)] = torch.from_numpy(waveform)
            mask[row, : len(waveform)] = 1
        with torch.inference_mode():
            hidden = model(samples.to(device), attention_mask=mask.to(device)).last_hidden_state.float().cpu().numpy()
        for row, waveform in zip(hidden, waveforms, strict=True):
            found.append(codebook.assign(row[: (len(waveform) - 400) // 320 + 1]))
    return found


def ours(source: Source, names: list[str], folder: Path, workers: int) -> Units:
    """The stage's work, from wav files to units parts, and back from these."""
    parts = [read_units_part(path) for path in run_stage(partial(units_of_shard, source), names, folder, workers)]
    return [restore(*part.utterance(i)).astype(np.int64) for part in parts for i in range(len(part))]


def agreement(one: Units, two: Units) -> float:
    """Share of frames with the same unit."""
    return float((np.concatenate(one) == np.concatenate(two)).mean())


def write_encoder(folder: Path, with_fairseq: bool) -> HubertModel:
    """`folder/encoder`: HuBERT base with random weights, from a checkpoint of fairseq's where it takes part."""
    torch.manual_seed(0)
    if with_fairseq:
        import_hubert(_fairseq.write_checkpoint(folder, LAYER), folder / "encoder")
        return HubertModel.from_pretrained(folder / "encoder").eval()
    model = HubertModel(HubertConfig(num_hidden_layers=LAYER)).eval()
    model.save_pretrained(folder / "encoder")
    return model


def write_codebook(folder: Path, waveforms: list[npt.NDArray[np.float32]]) -> Codebook:
    """`folder/codebook.safetensors`: frames of the first utterances as centroids."""
    encoder = SpeechEncoder(folder / "encoder", LAYER)
    features = np.concatenate([encoder.encode([waveform])[0].numpy() for waveform in waveforms[:20]])
    chosen = np.random.default_rng(0).permutation(len(features))[:NUM_UNITS]
    codebook = Codebook(features[chosen], encoder.identity)
    codebook.save(folder / "codebook.safetensors")
    return codebook


def compare(folder: Path, total: float, options: argparse.Namespace) -> dict[str, Any]:
    """Times, ratios and agreements, by the names of the last line."""
    device, cores, left_out = options.device, len(os.sched_getaffinity(0)), _fairseq.missing()
    workers = cores if device == "cpu" else 1
    waveforms = speech(total)
    names = write_speech(folder, waveforms, max(1, len(waveforms) // (workers * 8)))
    files = sorted((folder / "wavs").iterdir())
    model, codebook = write_encoder(folder, not left_out).to(device), write_codebook(folder, waveforms)
    source = Source(
        manifest_dir=folder / "manifests",
        root=folder,
        encoder_dir=folder / "encoder",
        codebook_path=folder / "codebook.safetensors",
        layer=LAYER,
        normalize=False,
        max_batch_samples=240 * 16_000,
        device=device,
        precision=options.precision,
    )
    results: dict[str, Units] = {}

    def run(name: str, work: Callable[..., Units], *arguments: Any) -> Callable[[], None]:
        def timed() -> None:
            torch.set_num_threads(cores)
            results[name] = work(*arguments)

        return timed

    mine = run("ours", ours, source, names, folder, workers)
    torch.set_num_threads(cores)
    rate = matrix_rate(device, options.precision)
    found: dict[str, Any] = {"audio": sum(map(len, waveforms)) / 16_000, "utterances": len(waveforms), "cores": cores}
    loop = run("loop", one_at_a_time, model, codebook, files, device)
    found["loop"], found["own"], found["loop_seconds"] = pairs(mine, loop, options.pairs)
    batches = run("padded", padded, model, codebook, files, device)
    found["padded"], _, found["padded_seconds"] = pairs(mine, batches, 1)
    if left_out:
        print(f"left out: fairseq ({left_out})")
    else:
        reader = _fairseq.reader(folder / "hubert.pt", LAYER, device)
        peer = run("fairseq", _fairseq.units, reader, codebook, files)
        found["fairseq"], _, found["fairseq_seconds"] = pairs(mine, peer, min(3, options.pairs))
    found["equal"] = {name: agreement(results["ours"], units) for name, units in results.items()}
    found["equal"]["padded to loop"] = agreement(results["padded"], results["loop"])
    found["rate"] = max(rate, matrix_rate(device, options.precision))  # of a machine that others use: the best seen
    return found


def main() -> None:
    """Print the comparison."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    options = arguments.parse_args()
    total = (30 if options.small else 300) if options.device == "cpu" else (600 if options.small else 7200)
    options.pairs = options.pairs or (2 if options.small else 5)
    with tempfile.TemporaryDirectory() as temporary:
        found = compare(Path(temporary), total, options)
    audio, equal, device = found["audio"], found["equal"], options.device
    share = operations_a_second() * audio / found["own"] / found["rate"]
    print(f"{audio:.0f} s of speech, {found['utterances']} utterances, {found['cores']} cores, {device}")
    print(
        f"ours {audio / found['own']:.1f} x real time, loop {audio / found['loop_seconds']:.1f}, "
        f"padded batches {audio / found['padded_seconds']:.1f}"
    )
    print(f"units equal to the loop's: ours {equal['loop']:.6f}, padded batches {equal['padded to loop']:.6f}")
    more: dict[str, float] = {}
    if "fairseq" in found:
        more = {"ratio_fairseq": round(found["fairseq"], 3), "equal_fairseq": round(equal["fairseq"], 6)}
        times = audio / found["fairseq_seconds"]
        print(f"fairseq's HubertFeatureReader {times:.1f} x real time; units equal to ours {equal['fairseq']:.6f}")
    print(f"matrix rate {found['rate'] / 1e9:.0f} GFLOP/s; ours uses {share:.0%} of it for the encoder's arithmetic")
    last_line(
        "units",
        "transformers HubertModel, one utterance at a time",
        found["loop"],
        round(equal["loop"], 6),
        device,
        f"{audio:.0f} s of espeak speech, HuBERT base, layer {LAYER}, {options.precision}, wav files to units",
        times_real_time=round(audio / found["own"], 1),
        ratio_padded=round(found["padded"], 3),
        equal_padded=round(equal["padded to loop"], 4),
        share_of_matrix_rate=round(share, 3),
        **more,
    )


if __name__ == "__main__":
    main()
