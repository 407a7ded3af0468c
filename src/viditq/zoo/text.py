"""The text side of the bundled pipelines: a word tokenizer and captions as token ids.

The tokenizer has one token per word of the captions, lower-cases, and ends a text with ``</s>`` as
T5's does. It declines to know other words: they become ``<unk>``, which training never saw.
"""

from functools import cache
from itertools import product

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from viditq.zoo.scenes import ATTRIBUTES, Scene, is_possible

__all__ = ["TOKENS", "caption_table", "make_tokenizer"]

# The longest caption has 12 words and the end token; one padding token must be left over.
TOKENS = 16
SPECIAL = ("<pad>", "</s>", "<unk>")


@cache
def words() -> tuple[str, ...]:
    """Every word that a caption can contain."""
    plainest = {
        kind: {name: accepted[0] for name, accepted in table.items()} | {"colour": "white"}
        for kind, table in ATTRIBUTES.items()
    }
    # where the colour varies, it must differ from the background
    for options in plainest.values():
        options["background"] = "grey"
    found = {
        word
        for kind, table in ATTRIBUTES.items()
        for name, accepted in table.items()
        for value in accepted
        # white over anything is possible
        for word in Scene(**(plainest[kind] | {name: value})).caption().split()
    }
    return tuple(sorted(found | {"an"}))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of all bundled pipelines."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *words()))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def caption_table(kind: str) -> tuple[Tensor, Tensor]:
    """Token ids (S, 16) and lengths (S,) of every scene, by ``SceneBatch.numbers``.

    The last row is the empty caption. Impossible scenes have a row of padding.
    """
    table = ATTRIBUTES[kind]
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *words()))}
    end = vocabulary["</s>"]
    rows: list[list[int]] = []
    for values in product(*table.values()):
        choice = dict(zip(table, values, strict=True))
        possible = is_possible(choice["colour"], choice["background"])
        text = Scene(**choice).caption().split() if possible else []
        rows.append([vocabulary[word] for word in text] + [end] * possible)
    rows.append([end])
    ids = torch.zeros(len(rows), TOKENS, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return ids, torch.tensor([len(row) for row in rows])
