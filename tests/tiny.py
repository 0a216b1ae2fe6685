"""Tiny random models, a tiny tokenizer and batches for them: quick, and no two outputs alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlavaConfig, MistralConfig, SamConfig

from medisee.model import (
    MediSeeConfig,
    MediSeeModel,
    SegmenterConfig,
    SharedEncoderConfig,
    TinyViTConfig,
    candidate_tokens,
)
from medisee.processing import MediSeeProcessor, ProcessorConfig, PromptTemplate

IMAGE_ID, VOCABULARY, END_ID = 1, 100, 2
OPENINGS = [20, 50, 60]
QUESTIONS = [[10, 11, 12, 13], [14, 15], [16, 17, 18, 19, 30, 31]]

ARCHITECTURES = {
    "soft-grounded": {"box_decoder": "grounded"},
    "soft-mlp": {},
    "three-points": {"num_candidates": 3, "mask_prompts": "text+box+points"},
    "hard-text": {"fusion": "hard", "mask_prompts": "text"},
    "single-box": {"num_candidates": 1},
    "single-none": {"num_candidates": 1, "box_decoder": "none", "mask_prompts": "text"},
}
"""Every fusion, box decoder and kind of mask prompt, as changes to the default configuration."""


def segmenter_config(encoder: str = "tinyvit") -> SegmenterConfig:
    """64 px; embedding 32 x 16 x 16 (TinyViT) or 32 x 4 x 4 (SAM's ViT)."""
    patch = 4 if encoder == "tinyvit" else 16
    sam = SamConfig(
        vision_config={
            "image_size": 64, "patch_size": patch, "num_pos_feats": 16, "hidden_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "output_channels": 32,
            "mlp_dim": 32, "window_size": 3, "global_attn_indexes": [1],
        },
        prompt_encoder_config={"image_size": 64, "patch_size": patch, "hidden_size": 32},
        mask_decoder_config={
            "hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 4, "iou_head_hidden_dim": 32,
        },
    )  # fmt: skip
    vit = TinyViTConfig(
        embed_dims=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_sizes=[7, 7, 7, 7],
        output_channels=32,
    )
    return SegmenterConfig(encoder, sam, vit if encoder == "tinyvit" else None)


def nano_config(vocabulary: int = VOCABULARY, image_id: int = IMAGE_ID) -> SharedEncoderConfig:
    """Four image tokens a side, pooled from the segmenter's embedding; a Llama of two layers."""
    text = {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": vocabulary,
    }  # fmt: skip
    return SharedEncoderConfig(
        text, grid=4, embedding_channels=32, image_token_id=image_id, tie_word_embeddings=True
    )


def llava_config(vocabulary: int = VOCABULARY, image_id: int = IMAGE_ID) -> LlavaConfig:
    """A CLIP tower of 2 x 2 patches and a Mistral of two layers."""
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        image_size=28, patch_size=14, projection_dim=16,
    )  # fmt: skip
    text = MistralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=vocabulary, sliding_window=None,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=image_id, image_seq_length=4
    )


def tiny_config(kind: str = "nano", **changes: object) -> MediSeeConfig:
    """`kind` is "nano" (TinyViT, shared encoder) or "llava" (SAM's ViT, CLIP and Mistral)."""
    count = int(changes.get("num_candidates", 2))  # type: ignore[call-overload]
    ids = [91] if count == 1 else [90, 91, 92][:count]
    values = {
        "mllm": nano_config() if kind == "nano" else llava_config(),
        "segmenter": segmenter_config("tinyvit" if kind == "nano" else "sam"),
        "candidate_token_ids": ids,
        "box_hidden": 24,
        "grounding_width": 32,
        "grounding_grid": 4,
        "grounding_layers": 1,
    }
    return MediSeeConfig(**{**values, **changes})


def tiny_model(kind: str = "nano", seed: int = 0, **changes: object) -> MediSeeModel:
    """A random model in eval mode."""
    return randomise(MediSeeModel(tiny_config(kind, **changes)), seed).eval()


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep signals at size one, so that every output depends on every input."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1:
                value.copy_(normal(value) / value[0].numel() ** 0.5)
            else:
                value.copy_(normal(value) * 0.1 + (0 if name.endswith("bias") else 1))
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(normal(value) * 0.1)
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return model


@dataclass
class Batch:
    """Arguments of `forward` about `images` images, without questions."""

    prefix_ids: Tensor
    content: Tensor
    segmenter_pixel_values: Tensor
    pixel_values: Tensor | None

    def image(self, row: int) -> dict[str, Tensor | None]:
        """The arguments about one image, as `encode_image` takes them."""
        own = None if self.pixel_values is None else self.pixel_values[row : row + 1]
        return {
            "prefix_ids": self.prefix_ids[row : row + 1],
            "content": self.content[row : row + 1],
            "segmenter_pixel_values": self.segmenter_pixel_values[row : row + 1],
            "pixel_values": own,
        }


def images(model: MediSeeModel, count: int = 2, seed: int = 1) -> Batch:
    """Random images of different shapes."""
    generator = torch.Generator().manual_seed(seed)
    config, side = model.config, model.config.segmenter.image_size
    prefix = [5] + [IMAGE_ID] * config.image_seq_length + [6]
    own = isinstance(config.mllm, LlavaConfig)
    return Batch(
        prefix_ids=torch.tensor([prefix] * count),
        content=torch.tensor([[1.0, 0.5], [0.75, 1.0], [1.0, 1.0]])[:count],
        segmenter_pixel_values=torch.rand(count, 3, side, side, generator=generator),
        pixel_values=torch.randn(count, 3, 28, 28, generator=generator) if own else None,
    )


def group_of(model: MediSeeModel) -> list[int]:
    """An answer's opening: the segmentation token first, a word before each and one at the end."""
    ids = model.config.candidate_token_ids
    order = ids if len(ids) == 1 else [ids[1], ids[0], *ids[2:]]
    words = [OPENINGS[0], 21, 22]
    return [token for pair in zip(words, order, strict=False) for token in pair] + [23]


def more_of(model: MediSeeModel) -> list[int]:
    """What opens a further group; it ends in another word than the first one does."""
    return [40, *group_of(model)[1:-1], 24]


def run(
    model: MediSeeModel, batch: Batch, rows: list[list[int]], index: list[int], **further: object
) -> object:
    """`forward` on rows of unequal length."""
    from medisee.model.phases import pad_right

    ids, mask = pad_right(rows, "cpu")
    return model(
        prefix_ids=batch.prefix_ids,
        input_ids=ids,
        attention_mask=mask,
        image_index=torch.tensor(index),
        content=batch.content,
        pixel_values=batch.pixel_values,
        segmenter_pixel_values=batch.segmenter_pixel_values,
        **further,
    )


@torch.no_grad()
def plain_states(model: MediSeeModel, batch: Batch, image: int, ids: list[int]) -> Tensor:
    """(P + L, d) last states of one sequence, run in one go and without any cache."""
    arguments = batch.image(image)
    embedding = model.segmenter.encode(arguments["segmenter_pixel_values"])
    tokens = model.text.image_tokens(arguments["pixel_values"], embedding)
    embed = model.mllm.get_input_embeddings()
    before, after = arguments["prefix_ids"][:, :1], arguments["prefix_ids"][:, -1:]
    parts = [embed(before), tokens, embed(after), embed(torch.tensor([ids]))]
    decoder = model.mllm.get_decoder()
    return decoder(inputs_embeds=torch.cat(parts, 1), use_cache=False).last_hidden_state[0]


# ---- text ----------------------------------------------------------------------------------------

CORPUS = (
    "The liver is a large organ that makes bile. "
    "Nothing like that is in view. This kind of image cannot show it. That is not a medical "
    "question. Please ask again. Also the spleen filters blood. Which part makes bile? "
    "Where is the spleen? Segment the liver."
)
CHATML = PromptTemplate(
    prefix="<|im_start|>user\n<image>",
    question="\n{}<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
    next_round="\n<|im_start|>user",
)


def tiny_tokenizer(candidates: int = 2) -> Tokenizer:
    """A byte-level BPE of a few hundred tokens, with the special tokens of nano."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        min_frequency=1,
        show_progress=False,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    firsts = ["It", "Nothing", "This", "That", "Please", " Also"]
    tokenizer.train_from_iterator([*firsts, CORPUS] * 4, trainer)
    names = ["<image>", *candidate_tokens(candidates)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    return tokenizer


def tiny_processor(candidates: int = 2, **changes: object) -> MediSeeProcessor:
    """The processor of `tiny_nano`."""
    values = {
        "template": CHATML,
        "candidates": tuple(candidate_tokens(candidates)),
        "image_token": "<image>",
        "image_seq_length": 16,
        "segmenter_size": 64,
        "normalisation": "minmax",
        "pad": True,
    }
    return MediSeeProcessor(ProcessorConfig(**{**values, **changes}), tiny_tokenizer(candidates))


def tiny_nano(seed: int = 0, **changes: object) -> tuple[MediSeeModel, MediSeeProcessor]:
    """Model and processor that fit each other."""
    processor = tiny_processor(int(changes.get("num_candidates", 2)))  # type: ignore[call-overload]
    tokenizer = processor.tokenizer
    ids = [tokenizer.token_to_id(name) for name in processor.config.candidates]
    mllm = nano_config(tokenizer.get_vocab_size(), tokenizer.token_to_id("<image>"))
    return tiny_model(seed=seed, mllm=mllm, candidate_token_ids=ids, **changes), processor


def save_nano(folder: Path, seed: int = 0, **changes: object) -> Path:
    """A model folder that `medisee.load` opens."""
    model, processor = tiny_nano(seed, **changes)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_llava(folder: Path, seed: int = 0) -> Path:
    """Likewise of the paper's form: a LLaVA-Mistral with its own vision tower, and SAM's ViT."""
    processor = tiny_processor(image_seq_length=4, clip_size=28)
    tokenizer = processor.tokenizer
    ids = [tokenizer.token_to_id(name) for name in processor.config.candidates]
    mllm = llava_config(tokenizer.get_vocab_size(), tokenizer.token_to_id("<image>"))
    tiny_model("llava", seed, mllm=mllm, candidate_token_ids=ids).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
