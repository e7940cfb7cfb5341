"""Generation with a cache, of a model with parts dropped: the logits and tokens of uncached passes."""

from __future__ import annotations

import functools

import pytest
import torch
from tiny import tiny_ids, tiny_model
from torch import Tensor

from evoray.model import DropKind, ModelAdapter

FAMILIES = ["llama", "mistral", "gpt2", "gemma2", "gemma3", "opt", "falcon", "gpt_neox", "bloom", "phi3", "mamba"]
PROMPT, NEW = 9, 6


@functools.cache
def adapter_of(family: str) -> ModelAdapter:
    # No end of a text: all tokens that are asked for come.
    return ModelAdapter(tiny_model(family, eos_token_id=None))


def cases(adapter: ModelAdapter) -> dict[str, list[str]]:
    attentions = [name for name, site in adapter.droppable.items() if site.kind is DropKind.attn]
    blocks = [name for name, site in adapter.droppable.items() if site.kind is DropKind.block]
    return {
        "nothing": [],
        "first attention": attentions[:1],
        "first block": blocks[:1],
        "all attentions": attentions,
        "last block and first sublayers": [*blocks[-1:], *adapter.sublayers[0]],
        "block and its attention": [attentions[1], blocks[1]],
    }


def uncached_tokens(adapter: ModelAdapter, ids_BT: Tensor) -> Tensor:
    for _ in range(NEW):
        ids_BT = torch.cat([ids_BT, adapter.logits(ids_BT)[:, -1:].argmax(-1)], dim=1)
    return ids_BT


def cached_logits(adapter: ModelAdapter, ids_BT: Tensor) -> Tensor:
    """The prompt in one pass, then a token at a time."""
    found: list[Tensor] = []
    known: dict[str, object] = {}
    with torch.no_grad():
        for first, last in [(0, PROMPT), *((place, place + 1) for place in range(PROMPT, ids_BT.shape[1]))]:
            output = adapter.model(input_ids=ids_BT[:, first:last], use_cache=True, **known)
            # Its name is one thing or another, by family and version.
            known = {key: value for key, value in output.items() if "cache" in key or "past" in key}
            found.append(output.logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_passes_give_the_uncached_logits_and_tokens(family: str) -> None:
    adapter = adapter_of(family)
    ids_BT = tiny_ids(2, PROMPT)
    seen: set[tuple[int, ...]] = set()
    for case, names in cases(adapter).items():
        for name in names:
            adapter.drop(name)
        try:
            tokens_BT = uncached_tokens(adapter, ids_BT)
            torch.testing.assert_close(
                cached_logits(adapter, tokens_BT), adapter.logits(tokens_BT), rtol=1e-4, atol=1e-4, msg=case
            )
            for use_cache in (True, False):
                found_BT = adapter.model.generate(
                    ids_BT,
                    attention_mask=torch.ones_like(ids_BT),
                    max_new_tokens=NEW,
                    do_sample=False,
                    use_cache=use_cache,
                )
                assert torch.equal(found_BT, tokens_BT), case
        finally:
            for name in names:
                adapter.drop(name, False)
        seen.add(tuple(tokens_BT.flatten().tolist()))
    assert len(seen) > 1
