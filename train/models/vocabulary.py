"""The words of our own small BLIPs: a WordPiece vocabulary out of the byte pairs that open_clip ships with its tokenizer.

It is read from a packaged file and never changes, so that a model of ours needs no download and two of them have the same ids.
"""

import gzip
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import ascii_lowercase, digits, punctuation

import open_clip
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertTokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DEC, ENC = "[DEC]", "[ENC]"
"""First token of a caption that is written, and of one that is matched; BLIP adds them behind BERT's vocabulary in this order."""
MERGES = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
END = "</w>"


@cache
def pieces(num_merges: int) -> tuple[str, ...]:
    """Characters, then what the first `num_merges` merges make, each as a word's beginning and (`##`) inside one.

    The merges stand in the order of how often they occur in captions of the web (CLIP's 16e6 vocabulary), so a short list has the
    frequent words whole, and WordPiece spells the others.
    """
    lines = gzip.decompress(MERGES.read_bytes()).decode().split("\n")[1 : num_merges + 1]
    merged = ("".join(line.split()).removesuffix(END) for line in lines)
    units = [*ascii_lowercase, *digits, *punctuation, *(unit for unit in merged if unit.isascii())]
    return tuple(dict.fromkeys(piece for unit in units for piece in (unit, f"##{unit}")))


def small_tokenizer(num_merges: int, context: int) -> BertTokenizer:
    """BERT's tokenizer over `pieces`, with [DEC] and [ENC] as its last two ids; texts are cut at `context` tokens."""
    vocabulary = {piece: number for number, piece in enumerate((*SPECIAL, *pieces(num_merges), DEC, ENC))}
    return BertTokenizer(vocab=vocabulary, model_max_length=context, bos_token=DEC, extra_special_tokens={"enc_token": ENC})


class Tokens:
    """Texts → ids: [CLS], pieces, [SEP], then [PAD] up to `context`. Threads may share it.

    "[SEP]" in a text is five characters: whoever wrote it has no say in where a caption ends.
    """

    def __init__(self, tokenizer: BertTokenizer, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context
        self._fixed = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())      # one of its own: the settings stay with it
        self._fixed.encode_special_tokens = True
        self._fixed.enable_truncation(context)
        self._fixed.enable_padding(length=context, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64, (len(texts), context)."""
        return torch.tensor([self._fixed.encode(text).ids for text in texts])

    def words(self, text: str) -> list[int]:
        """The pieces of a text alone, without [CLS] and [SEP]."""
        found = self._fixed.encode(text, add_special_tokens=False)
        return [piece for piece, is_there in zip(found.ids, found.attention_mask, strict=True) if is_there]
