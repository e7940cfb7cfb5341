"""A tokenizer whose tokens are bytes: what a text must become can be written down without a tokenizer."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS = "<s>"


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """make_tokenizer(bos=False, puts_bos=False, chat_template=None)"""

    def make(bos: bool = False, puts_bos: bool = False, chat_template: str | None = None) -> PreTrainedTokenizerFast:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {BOS: 0} | {letter: number for number, letter in enumerate(alphabet, start=1)}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        if puts_bos:
            tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
        # A model that reads 8 tokens: longer documents must not make it warn.
        made = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=BOS if bos or puts_bos else None, model_max_length=8
        )
        made.chat_template = chat_template
        return made

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """Bytes as tokens, nothing else."""
    return make_tokenizer()
