"""The captioner against the reference's loop: training (ids a second) and generation (captions a second).

The same model (GIT's own architecture, random weights), batch size, captions and machine. The peer does what
ms-dot-k/Image-to-Speech does around transformers' GIT, written anew after reading it:

- Training: captions in random order, padded to the longest of the batch; the frozen vision tower runs for every
  caption; logits for the image's rows too; fp32; of every step all logits go through softmax, to the CPU and through a
  top-1 there, and the unit error rate of what they say is computed; the loss is fetched several times.
- Generation: `image_each_step` is what the transformers it pins (4.33) does: only the caption's keys and values are
  kept, and the image goes through tower and decoder again for every id. `transformers` is `generate` of the installed
  version, which keeps the image's too. Both go on until the last caption of the batch ends.

Left out for both sides: reading files, workers, logs, validation. Ours runs the frozen tower once an image (counted
here within one epoch; a real run has many), makes batches of similar length, computes no logits and no last layer for
the image's rows, and in generation keeps all keys and values and lets rows go that have ended. On a GPU ours runs in
bf16. Training is that of `--vit_fix`, with 5 captions an image.
"""

import argparse
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor, nn
from transformers import GitConfig, GitForCausalLM

from benchmarks._common import last_line, matrix_rate, pairs, parser, seconds
from pipeline.arithmetic import arithmetic
from pipeline.captioner.data import Examples, collate, encode_captions, epoch_batches
from pipeline.captioner.decoding import extend
from pipeline.captioner.generation import GenerationSettings, generate_captions
from pipeline.captioner.model import Captioner, caption_loss, clip_normalize, make_config
from pipeline.captioner.vocabulary import UnitVocabulary

UNITS = UnitVocabulary(200)
SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 128, "num_layers": 3, "vision_layers": 4, "num_heads": 4, "image_size": 64, "grid": 8},
    "medium": {"hidden_size": 256, "num_layers": 4, "vision_layers": 6, "num_heads": 4, "image_size": 112, "grid": 14},
    "git-large": {
        "hidden_size": 768,
        "num_layers": 6,
        "vision_layers": 24,
        "num_heads": 12,
        "image_size": 224,
        "grid": 16,
    },
}


class Work:
    """Models of both sides with equal weights, images and captions."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.size = options.size or (
            "git-large" if self.device.type == "cuda" else "small" if options.small else "medium"
        )
        self.precision: Any = "bf16" if self.device.type == "cuda" else "fp32"
        torch.manual_seed(0)
        config = make_config(
            input="pixels", vocab_size=UNITS.size, norm_first=False, max_positions=600, **SIZES[self.size]
        )
        if self.size == "git-large":
            wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
            for name, value in wide.items():
                setattr(config.vision_config, name, value)
        self.ours = Captioner(config).to(self.device)
        self.ours.freeze_vision()
        facts = {name: value for name, value in config.to_dict().items() if name != "model_type"}
        self.peer = GitForCausalLM(GitConfig(**facts)).to(self.device)
        self.copy_weights()
        rng = np.random.default_rng(0)
        number = options.images or (12 if options.small else 24 if self.device.type == "cpu" else 96)
        side = config.vision_config.image_size
        self.images = torch.from_numpy(rng.random((number, 3, side, side), dtype=np.float32))
        lengths = np.clip(rng.lognormal(np.log(110), 0.35, (number, 5)), 20, 250).astype(int)
        captions = [[np.cumsum(rng.integers(1, 200, n)) % 200 for n in several] for several in lengths]
        self.examples = Examples(self.images, [[units.tolist() for units in several] for several in captions])
        self.pairs, _ = encode_captions(self.examples, UNITS, 512)
        self.num_ids = sum(len(ids) - 1 for _, ids in self.pairs)

    def copy_weights(self) -> None:
        """The peer's are ours."""
        self.peer.load_state_dict(self.ours.state_dict())
        for part in (self.peer.git.image_encoder, self.peer.git.visual_projection):
            part.requires_grad_(False)

    def wait(self) -> None:
        """Until the GPU has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 5e-5, weight_decay=1e-5)


def train_ours(work: Work, batch_size: int, cached: bool = True) -> None:
    """One epoch as the train stage goes."""
    model, optimizer = work.ours, _optimizer(work.ours)
    losses: list[Tensor] = []
    with arithmetic(work.device, work.precision):
        examples = Examples(model.encode_images(work.images), work.examples.captions) if cached else work.examples
        model.train()
        model.git.image_encoder.eval()
        for chosen in epoch_batches(work.pairs, batch_size, np.random.default_rng(0)):
            images, ids = collate(examples, work.pairs, chosen, UNITS.pad)
            loss = caption_loss(model, images.to(work.device), ids.to(work.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.detach())
    float(torch.stack(losses).mean())


def train_peer(work: Work, batch_size: int) -> None:
    """One epoch as the reference goes."""
    model, optimizer = work.peer.train(), _optimizer(work.peer)
    number = model.git.encoder.layer[0].attention.self.image_patch_tokens
    for chosen in _in_random_order(len(work.pairs), batch_size):
        images, ids = collate(work.examples, work.pairs, chosen, UNITS.pad)
        mask = (ids != UNITS.pad).long().to(work.device)
        labels = ids.masked_fill(ids == UNITS.pad, -100).to(work.device)
        out = model(
            input_ids=ids.to(work.device),
            attention_mask=mask,
            pixel_values=clip_normalize(images).to(work.device),
            labels=labels,
        )
        said = out.logits[:, number:].softmax(2).cpu().topk(1, dim=2)[1].squeeze(2).detach().numpy()
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for units, truth in zip(_as_text(said), _as_text(ids[:, 1:].numpy()), strict=True):
            Levenshtein.distance(units, truth)
        for _ in range(2):
            out.loss.cpu().item()


def _in_random_order(number: int, batch_size: int) -> Iterator[list[int]]:
    order = np.random.default_rng(0).permutation(number)
    for start in range(0, number, batch_size):
        yield order[start : start + batch_size].tolist()


def _as_text(rows: Any) -> list[list[str]]:
    texts = (" ".join(str(unit) for unit in row) for row in rows)
    return [text[: text.find(f" {UNITS.eos} ")].split(" ") for text in texts]


class CaptionMemory:
    """Keys and values as transformers 4 kept them for GIT: the caption's, never the image's."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """The image's part of what comes is new each time; the caption's joins what is kept."""
        new = key[:, :, self.number :], value[:, :, self.number :]
        old = self.kept.get(layer_idx)
        kept = new if old is None else (torch.cat([old[0], new[0]], 2), torch.cat([old[1], new[1]], 2))
        self.kept[layer_idx] = kept
        return torch.cat([key[:, :, : self.number], kept[0]], 2), torch.cat([value[:, :, : self.number], kept[1]], 2)


@torch.no_grad()
def generate_image_each_step(model: GitForCausalLM, pixels: Tensor, limit: int) -> Tensor:
    """Greedy ids int64 [B, L], BOS first, image and all for every id."""
    git = model.eval().git
    ids = torch.full((len(pixels), 1), UNITS.bos, device=pixels.device)
    going = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
    number = git.encoder.layer[0].attention.self.image_patch_tokens
    memory = CaptionMemory(number)
    for time in range(limit):
        image = git.visual_projection(git.image_encoder(pixels).last_hidden_state)
        hidden = torch.cat([image, git.embeddings(ids[:, -1:], past_key_values_length=time)], 1)
        mask = torch.zeros(number + 1, number + time + 1, device=pixels.device)
        mask[:number, number:] = torch.finfo(mask.dtype).min
        for layer in git.encoder.layer:
            hidden = layer(hidden, mask, memory)
        last = model.output(hidden)[:, -1].argmax(1).masked_fill(~going, UNITS.pad)
        ids = torch.cat([ids, last[:, None]], 1)
        going &= last != UNITS.eos
        if not going.any():
            break
    return ids.cpu()


@torch.no_grad()
def generate_transformers(model: GitForCausalLM, pixels: Tensor, limit: int) -> Tensor:
    """The same by the installed `generate`."""
    start = torch.full((len(pixels), 1), UNITS.bos, device=pixels.device)
    marks = {"bos_token_id": UNITS.bos, "eos_token_id": UNITS.eos, "pad_token_id": UNITS.pad}
    return (
        model.eval()
        .generate(input_ids=start, pixel_values=pixels, max_new_tokens=limit, do_sample=False, **marks)
        .cpu()
    )


@torch.inference_mode()
def speak_like_people(work: Work) -> list[int]:
    """Bend random weights so that captions end, each at its own time, after 110 ids or so; returns their lengths.

    Positions get a direction that grows with time, and EOS listens to it: how soon it wins depends on the image.
    """
    model = work.ours.eval()
    positions, output = model.git.embeddings.position_embeddings.weight, model.output
    direction = torch.randn(positions.shape[1], device=work.device)
    direction = (direction - direction.mean()) / direction.std()
    ramp = (torch.arange(len(positions), device=work.device) / 300).clamp(0, 1)[:, None] * direction
    plain = positions.clone()
    for name, parameter in model.git.encoder.named_parameters():
        if parameter.ndim > 1 and "LayerNorm" not in name:
            parameter.mul_(3)
    output.bias[[UNITS.pad, UNITS.bos]] = -50.0
    low, high = 0.0, 0.1
    lengths: list[int] = []
    for _ in range(8):
        strength = (low + high) / 2
        positions.copy_(plain + strength * ramp)
        output.weight[UNITS.eos] = 0.01 * direction
        images = work.images[:12].to(work.device)
        marks = {"bos": UNITS.bos, "eos": UNITS.eos, "pad": UNITS.pad}
        said = extend(
            model, images, **marks, limit=500, copies=1, adjust=None, pick=lambda scores, r, s: scores.argmax(1)
        )
        lengths = sorted(said.length.tolist())
        median = lengths[len(lengths) // 2]
        if 90 <= median <= 140:
            break
        low, high = (strength, high) if median > 140 else (low, strength)
    work.copy_weights()
    return lengths


def model_flops(work: Work, cached: bool) -> float:
    """Multiplications and additions that an epoch of training takes: 2 a weight and row forward, 4 back."""
    decoder = sum(p.numel() for p in work.ours.git.encoder.parameters())
    tower = sum(p.numel() for p in work.ours.git.image_encoder.parameters())
    number = work.ours.git.encoder.layer[0].attention.self.image_patch_tokens
    rows = work.num_ids + number * len(work.pairs)
    seen = len(work.images) if cached else len(work.pairs)
    return 6.0 * (decoder * rows + work.ours.output.weight.numel() * work.num_ids) + 2.0 * tower * number * seen


def compare_training(work: Work, options: argparse.Namespace) -> None:
    """Print both rates and the last line of `train`."""
    ids = torch.tensor([work.pairs[0][1]], device=work.device)
    images = work.images[:1].to(work.device)
    with torch.no_grad():
        ours = float(caption_loss(work.ours.eval(), images, ids))
        theirs = float(work.peer.eval()(input_ids=ids, pixel_values=clip_normalize(images), labels=ids).loss)

    def one(run: Any, **more: Any) -> Any:
        def both() -> None:
            run(work, options.batch_size, **more)
            work.wait()

        return both

    number = options.pairs or (2 if options.small else 5)
    ratio, own, other = pairs(one(train_ours), one(train_peer), number)
    each_time = min(seconds(one(train_ours, cached=False)) for _ in range(2))
    print(f"{work.size}: ours {work.num_ids / own:.0f} ids/s, reference {work.num_ids / other:.0f} ids/s")
    print(f"ours with the tower run for every caption: {work.num_ids / each_time:.0f} ids/s")
    more: dict[str, Any] = {
        "ids_a_second": round(work.num_ids / own),
        "peers_ids_a_second": round(work.num_ids / other),
    }
    more["ratio_tower_each_time"] = round(other / each_time, 3)
    if work.device.type == "cuda":
        rate = matrix_rate("cuda", work.precision)
        more["utilisation"] = round(model_flops(work, True) / own / rate, 3)
        more["peers_utilisation"] = round(model_flops(work, False) / other / matrix_rate("cuda", "fp32"), 3)
    _last(work, "train", ratio, {"loss_difference": abs(ours - theirs)}, f"batch {options.batch_size}, 1 epoch", more)


def compare_generation(work: Work, options: argparse.Namespace) -> None:
    """Print the rates and the last line of `generate`."""
    lengths = speak_like_people(work)
    pixels = clip_normalize(work.images).to(work.device)
    batch = int(1.5 * options.batch_size)
    found: dict[str, list[list[int]]] = {}

    def ours() -> None:
        with arithmetic(work.device, work.precision):
            settings = GenerationSettings()
            said = generate_captions(work.ours, UNITS, work.images, settings, batch_size=batch, max_length=511)
        found["ours"] = [captions[0].units.tolist() for captions in said]
        work.wait()

    def peer(run: Any) -> Any:
        def work_through() -> None:
            rows = [row for at in range(0, len(pixels), batch) for row in run(work.peer, pixels[at : at + batch], 511)]
            said = (UNITS.decode(row[1:].tolist()) for row in rows)
            found[run.__name__] = [
                [unit for place, unit in enumerate(units) if not place or unit != units[place - 1]] for units in said
            ]

        return work_through

    ours()
    ratio, own, other = pairs(ours, peer(generate_image_each_step), options.pairs or 1, warm=False)
    near_ratio, _, near = pairs(ours, peer(generate_transformers), options.pairs or 5)
    rates = {name: len(work.images) / took for name, took in (("ours", own), ("peer", other), ("transformers", near))}
    print(f"lengths of captions: {lengths}")
    print(f"{work.size}, captions a second: " + ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items()))
    same = {name: sum(a == b for a, b in zip(said, found["ours"], strict=True)) for name, said in found.items()}
    more = {"ratio_to_installed_transformers": round(near_ratio, 3)}
    more |= {f"captions_a_second_{name}": round(rate, 3) for name, rate in rates.items()}
    equal = {f"same_as_{name}": f"{same[name]} of {len(work.images)}" for name in same if name != "ours"}
    _last(work, "generate", ratio, equal, f"batch {batch}, greedy", more)


def _last(work: Work, name: str, ratio: float, equal: Any, said: str, more: dict[str, Any]) -> None:
    about = f"{work.size} GIT, {len(work.images)} images, {len(work.pairs)} captions, {work.num_ids} ids, {said}"
    last_line(name, "the reference's loop around transformers' GIT", ratio, equal, str(work.device), about, **more)


def options_of(description: str) -> argparse.Namespace:
    """The command line that the three benchmarks share."""
    arguments = parser(description)
    arguments.add_argument("--size", choices=list(SIZES), default=None)
    arguments.add_argument(
        "--images", type=int, default=0, help="default: 12 small, 24 on a CPU, else 96; 5 captions each"
    )
    arguments.add_argument("--batch-size", type=int, default=16, help="captions; the reference's is 16")
    arguments.add_argument("--threads", type=int, default=0, help="default: torch's own")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = arguments.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def main() -> None:
    """Training, then generation."""
    options = options_of(__doc__.splitlines()[0])
    work = Work(options)
    before = copy.deepcopy(work.ours.state_dict())
    compare_training(work, options)
    work.ours.load_state_dict(before)
    compare_generation(work, options)


if __name__ == "__main__":
    main()
