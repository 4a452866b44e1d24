"""A BLIP of a few thousand weights in a folder as a training of ours leaves it: captioner and matcher in one."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipImageProcessor

TEXT = """a an the of in on and picture photo dog cat man woman beach grass street red blue green yellow black white pink circle
square triangle star cross heart ring moon small large two three with near under over sitting running"""
WORDS = TEXT.split()
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIDE = 48
"""Pixels of a side that it takes, nine patches: with four, torch rounds products so small by the place of the row."""


def config() -> BlipConfig:
    """Two layers of 32; [DEC] and [ENC] behind the vocabulary, as the published ones have them."""
    size = len(SPECIAL) + len(WORDS)
    text = {"vocab_size": size + 2, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 64, "bos_token_id": size, "eos_token_id": 3, "pad_token_id": 0,
            "sep_token_id": 3, "initializer_range": 0.3}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE,
              "patch_size": 16, "initializer_range": 0.3}
    return BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)


def write_blip(folder: Path, seed: int = 0) -> Path:
    """Random weights from a seed, and all that both classes of transformers need to load them."""
    torch.manual_seed(seed)
    both = BlipForConditionalGeneration(config()), BlipForImageTextRetrieval(config())
    tensors = {name: tensor.clone() for model in both for name, tensor in model.state_dict().items()}
    tensors = {n: t for n, t in tensors.items() if not n.startswith("text_decoder.cls.predictions.decoder.")}    # tied
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config().save_pretrained(folder)
    write_beside(folder)
    return folder


def write_beside(folder: Path) -> None:
    """The tokenizer and the preprocessing."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = folder / "vocab.txt"
    vocab.write_text("\n".join((*SPECIAL, *WORDS)) + "\n")
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    BlipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
