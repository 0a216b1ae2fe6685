"""Time and memory of a large model, beside the authors' arrangement and the machine's limits.

    medisee models make-random --like llava-med-7b --to random-7b
    python benchmarks/fullsize.py random-7b [--device cuda] [--precision bf16] [--json]

Any model folder that torch runs will do; random weights cost the same as real ones. The authors'
arrangement is built from the same modules on the same weights: every question alone, both encoders
again, every token of the answer decoded before the mask. Limits are measured, not looked up:
reading memory bounds decoding, multiplying matrices bounds prefill.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from medisee.model import EncodedImage, Perceived
from medisee.model.compact import CompactLinear
from medisee.model.inference import TorchRuntime
from medisee.model.losses import PAPER_WEIGHTS, box_losses, mask_losses, text_loss, weighted_sum
from medisee.processing import MediSeeProcessor, SegmenterInput

QUESTION = "Which large organ here makes bile and breaks down poisons? Please segment it."


class Bench:
    """One model on one device, one image, one question."""

    def __init__(self, folder: Path, device: str | None, precision: str | None) -> None:
        self.processor = MediSeeProcessor.from_pretrained(folder)
        self.runtime = TorchRuntime.load(folder, self.processor, device, precision)
        self.model = self.runtime.model
        self.device = self.model.device
        pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
        self.image: SegmenterInput = self.processor.segmenter_input(pixels)
        self.own = self.processor.mllm_pixels(pixels)
        self.ids = self.processor.question_ids(QUESTION)

    # ---- ours ------------------------------------------------------------------------------------

    def encode(self) -> EncodedImage:
        """Both encoders and the prefix of the language model."""
        return self.runtime.encode(self.image, self.own)

    def perceive(self, image: EncodedImage, count: int) -> list[Perceived]:
        """Masks and boxes of `count` questions; never refused, one target each."""
        p = self.processor
        return self.model.perceive(
            image, [self.ids] * count, p.group, p.more, p.openings, accept=0.0, max_targets=1
        )

    def explain(self, perceived: Perceived, tokens: int) -> None:
        """`tokens` words; the end token is not let stop it."""
        for _ in self.model.explain(perceived, None, stop=-1, max_tokens=tokens):
            pass

    # ---- the authors' arrangement ----------------------------------------------------------------

    @torch.inference_mode()
    def theirs(self, tokens: int) -> None:
        """One question: both encoders, the answer token by token, then the mask in fp32."""
        text, image = self.model.text, self.encode()
        group = self.processor.group
        past, mask = image.prefix.keys_values, torch.ones(
            1, image.prefix.length, dtype=torch.long, device=self.device
        )  # fmt: skip
        states = []
        # Random weights would not say the opening by themselves, so each token is decoded and the
        # one that belongs there put in its place: the cost is the same.
        for step in [
            self.ids,
            *([token] for token in group),
            *([group[-1]] for _ in range(tokens)),
        ]:
            ids = torch.tensor([step], device=self.device)
            found, past = text.continue_from(past, mask, ids, torch.ones_like(ids))
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            text.logits(found[:, -1]).argmax()
            states.append(found[:, -1])
        places = [group.index(token) for token in self.model.config.candidate_token_ids]
        candidates = torch.stack([states[place][0] for place in places])[None]
        located = self.model.locate(
            candidates, image.embedding, image.prefix.image_states, image.content
        )
        assert located.mask_logits is not None
        located.mask_logits.float().cpu()

    # ---- training --------------------------------------------------------------------------------

    def training_step(self, count: int) -> None:
        """Forward and backward of `count` questions on one image; what is trained whole takes
        gradients (heads, mask decoder, token embeddings), and so they pass all layers."""
        p, model = self.processor, self.model
        for name, value in model.named_parameters():
            value.requires_grad_(
                name.startswith(
                    ("fusion.", "box_decoder.", "projector.", "segmenter.mask_decoder.")
                )
                or "embed_tokens" in name
            )
        row = [*self.ids, *p.answer_ids("The liver makes bile and breaks down poisons.", 1)]
        ids = torch.tensor([row] * count, device=self.device)
        labels = ids.clone()
        labels[:, : len(self.ids)] = -100
        output = model(
            prefix_ids=torch.tensor([p.prefix_ids], device=self.device),
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            image_index=torch.zeros(count, dtype=torch.long, device=self.device),
            content=torch.tensor([self.image.content_fraction], device=self.device),
            pixel_values=None
            if self.own is None
            else torch.as_tensor(self.own, device=self.device)[None],
            segmenter_pixel_values=torch.as_tensor(self.image.pixels, device=self.device)[None],
            labels=labels,
        )
        wanted = labels[:, 1:]
        terms = {"text": text_loss(output.logits, wanted[wanted != -100])}
        masks = torch.zeros_like(output.located.mask_logits, dtype=torch.bool)
        terms |= mask_losses(output.located.mask_logits, masks)
        if output.located.boxes is not None:
            terms |= box_losses(output.located.boxes, torch.full_like(output.located.boxes, 0.4))
        weighted_sum(terms, PAPER_WEIGHTS).backward()
        model.zero_grad(set_to_none=True)
        model.requires_grad_(False)


# ---- measuring -----------------------------------------------------------------------------------


CLOCK = time.perf_counter
"""Or the processor time of this process, on a machine that others use too."""


def seconds(action: Callable[[], Any], rounds: int, device: torch.device) -> float:
    """Median seconds of an action; the first call warms up and is not counted."""
    action()
    taken = []
    for _ in range(rounds):
        wait(device)
        started = CLOCK()
        action()
        wait(device)
        taken.append(CLOCK() - started)
    return statistics.median(taken)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Most memory that the process held: of the GPU where there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second of reading weights: one vector times a matrix beyond every cache."""
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    matrix = torch.ones(8192, 8192 * (4 if device.type == "cuda" else 1), dtype=kind, device=device)
    vector = torch.ones(matrix.shape[1], dtype=kind, device=device)
    return matrix.numel() * matrix.element_size() / seconds(lambda: matrix @ vector, 7, device)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product in the model's precision."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.ones(side, side, dtype=dtype, device=device)
    return 2 * side**3 / seconds(lambda: a @ a, 5, device)


def language_bytes(bench: Bench, head: bool = True) -> tuple[int, int]:
    """Bytes that one decoded token reads of the language model's matrices, and their numbers."""
    mllm = bench.model.mllm
    stored = numbers = 0
    last = [mllm.get_output_embeddings()] if head else []
    for module in [*mllm.get_decoder().layers.modules(), *last]:
        if isinstance(module, CompactLinear):
            stored += module.stored.numel() * module.stored.element_size()
            numbers += module.in_features * module.out_features
        elif isinstance(module, torch.nn.Linear):
            stored += module.weight.numel() * module.weight.element_size()
            numbers += module.weight.numel()
    return stored, numbers


def measure(bench: Bench, rounds: int, questions: int, tokens: int) -> dict[str, Any]:
    """All figures, in seconds unless named otherwise."""
    device = bench.device
    encode = seconds(bench.encode, rounds, device)
    image = bench.encode()
    one = seconds(lambda: bench.perceive(image, 1), rounds, device)
    many = seconds(lambda: bench.perceive(image, questions), rounds, device)
    [perceived] = bench.perceive(image, 1)
    spoken = seconds(lambda: bench.explain(perceived, tokens), rounds, device)
    theirs = seconds(lambda: bench.theirs(tokens), rounds, device)
    peak = peak_bytes(device)
    stored, _ = language_bytes(bench)
    ceiling = read_bandwidth(device) / stored
    _, layers = language_bytes(bench, head=False)  # a prefix gives no logits
    prefix = seconds(lambda: _prefix(bench, image), rounds, device)
    flops = 2 * layers * image.prefix.length / prefix
    figures = {
        "fresh_image_to_mask": encode + one,
        "encode": encode,
        "next_question": one,
        f"{questions}_questions": many,
        "explanation_tokens_per_second": tokens / spoken,
        "authors_one_question": theirs,
        f"times_more_questions_a_second_{questions}_on_one_image": theirs
        * questions
        / (encode + many),
        "times_more_questions_a_second_fresh_images": theirs / (encode + one),
        "decode_limit_tokens_per_second": ceiling,
        "decode_share_of_limit": tokens / spoken / ceiling,
        "prefill_share_of_limit": flops / peak_flops(device, bench.model.dtype),
        "peak_gigabytes": peak / 1e9,
    }
    figures[f"training_step_{min(questions, 8)}_questions"] = seconds(
        lambda: bench.training_step(min(questions, 8)), max(rounds // 2, 1), device
    )
    figures["peak_gigabytes_training"] = peak_bytes(device) / 1e9
    return figures


@torch.inference_mode()
def _prefix(bench: Bench, image: EncodedImage) -> None:
    ids = torch.tensor([bench.processor.prefix_ids], device=bench.device)
    width = bench.model.config.hidden_size
    tokens = torch.zeros(1, bench.model.config.image_seq_length, width, device=bench.device)
    bench.model.text.prefix(ids, tokens, bench.model.config.image_token_id)


def machine(device: torch.device) -> str:
    """Device and versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    )  # fmt: skip
    return (
        f"{name}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--precision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32, help="words of an explanation")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--processor-time", action="store_true", help="on a busy CPU: one thread, its own time"
    )
    asked = parser.parse_args()
    if asked.processor_time:
        global CLOCK
        CLOCK = time.process_time
        torch.set_num_threads(1)
    bench = Bench(asked.model, asked.device, asked.precision)
    stored, numbers = language_bytes(bench)
    figures = measure(bench, asked.rounds, asked.questions, asked.tokens)
    if asked.json:
        print(json.dumps({"machine": machine(bench.device), **figures}, indent=2))
        return
    print(machine(bench.device))
    print(f"language model: {numbers / 1e9:.2f} G numbers in {stored / 1e9:.2f} GB\n")
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):60} {value:10.3f}")


if __name__ == "__main__":
    main()
