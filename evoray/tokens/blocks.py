"""Token blocks: what the model reads.

    BosPolicy      where the beginning-of-sequence token stands
    resolve_bos    the policy that "auto" means for a tokenizer
    TokenText      all token blocks of one text, with their documents and digest
    read_text      source -> TokenText

A block is consecutive tokens of one document, so no block mixes two of them.
"""

import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from evoray.errors import UserError
from evoray.tokens.documents import AUTO, Document, Role, check_separator, read_documents
from evoray.tokens.row import Cutting
from evoray.tokens.source import TextSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SHORTEST_BLOCK", "BosPolicy", "TokenText", "read_text", "resolve_bos"]

# A block gives one prediction less than it has tokens. With three tokens it can give up one to leave two, the least
# that predict anything, for the next block: so every draw of two or more tokens can be exact (see `batches`).
SHORTEST_BLOCK = 3

# With these, in the same way, the last block can always be cut so that a limit is met exactly.
SHORTEST_WHOLE_BLOCK = 2 * SHORTEST_BLOCK - 1

# Tokenized in one call: enough to keep a tokenizer's threads busy, little to throw away at the end.
TOGETHER_DOCUMENTS = 64
TOGETHER_CHARACTERS = 1 << 20

# A limited text takes from at least so many documents where there are as many: losses on blocks of one document go
# together, so they tell less.
SPREAD_DOCUMENTS = 64

# The purpose in default_rng([seed, generation, purpose]); documents are shuffled before the first generation.
SHUFFLE_DOCUMENTS = 101


class BosPolicy(StrEnum):
    """Where the beginning-of-sequence token stands: nowhere, or first in each document or block."""

    auto = "auto"
    none = "none"
    document = "document"
    block = "block"


def resolve_bos(policy: BosPolicy, tokenizer: "PreTrainedTokenizerBase") -> BosPolicy:
    """Settles the policy for a tokenizer.

    Args:
        policy: `auto` is `document` where the tokenizer puts its token first by itself, else `none`.
        tokenizer: Of the model.

    Returns:
        none, document or block.

    Raises:
        UserError: The tokenizer has no such token, but the policy needs one.
    """
    bos = tokenizer.bos_token_id
    if policy is BosPolicy.auto:
        return BosPolicy.document if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else BosPolicy.none
    if policy is not BosPolicy.none and bos is None:
        raise UserError(f"bos policy {policy.value!r} needs a tokenizer with a beginning-of-sequence token; use 'none'")
    return policy


@dataclass(frozen=True, eq=False)
class TokenText:
    """The token blocks of one text. Equal digests are equal texts.

    Attributes:
        blocks: Token ids, int32 [3 to sequence_length] each, read-only.
        documents: sha256 of the document each block is of; as many as blocks.
        sequence_length: Most tokens of a block.
        digest: sha256 (hex) of sequence length, block lengths and tokens; computed.
        pad: Token id that fills the rows of batches. Any id will do: padding stands on the right, where causal
            models do not look.
    """

    pad: ClassVar[int] = 0

    blocks: tuple[np.ndarray, ...]
    documents: tuple[str, ...]
    sequence_length: int
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.documents):
            raise ValueError(f"{len(self.blocks)} blocks, but documents for {len(self.documents)}; one each")
        # Copies, so that nobody else's array can change the text under its digest.
        blocks = tuple(np.array(block, dtype=np.int32) for block in self.blocks)
        lengths = np.array([len(block) for block in blocks], dtype="<i8")
        if len(blocks) and not SHORTEST_BLOCK <= lengths.min() <= lengths.max() <= self.sequence_length:
            limits = f"{SHORTEST_BLOCK} to {self.sequence_length}"
            raise ValueError(f"blocks of {lengths.min()} to {lengths.max()} tokens; must be {limits}")
        hashed = hashlib.sha256(np.array([self.sequence_length, len(blocks)], dtype="<i8").tobytes())
        hashed.update(lengths.tobytes())
        for block in blocks:
            block.flags.writeable = False
            hashed.update(block.astype("<i4").tobytes())
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "digest", hashed.hexdigest())

    @cached_property
    def tokens(self) -> int:
        """Tokens of all blocks."""
        return sum(len(block) for block in self.blocks)

    @cached_property
    def document_digests(self) -> tuple[str, ...]:
        """sha256 of each document with a block here, once, in the order of the blocks."""
        return tuple(dict.fromkeys(self.documents))


def read_text(
    source: str,
    role: Role,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    sequence_length: int,
    max_tokens: int | None,
    bos: BosPolicy,
    separator: str = AUTO,
    exclude: Container[str] = (),
    seed: int = 0,
    min_block: int = 16,
) -> TokenText:
    """Reads one of the three texts of a source.

    Args:
        source: As `TextSource.parse` takes it.
        role: Which documents. `all` of a set named as in papers (`named`) is what they judge on, cut as they cut it:
            without special tokens (but policy `block` puts its token first in each block), in order, and whatever
            `min_block` is.
        tokenizer: Of the model.
        sequence_length: Most tokens of a block.
        max_tokens: Stop at exactly this many, for which the last block (or the last two) are cut; None for all.
        bos: Where the beginning-of-sequence token stands; never twice, if the text brings it.
        separator: How .txt files are cut into documents; see `cut_text`.
        exclude: Digests of documents to leave out, for instance those that Hessians were made of.
        seed: Shuffles the documents; those of a stream (data sets of the hub) keep their order.
        min_block: Shorter blocks, in tokens, are dropped: ends of documents, and documents of a line. At least 5.

    Raises:
        UserError: The source can't be read, or nothing is left of it; a limit is too small.
        EvorayError: A stream broke off.
    """
    check_separator(separator)
    if sequence_length < SHORTEST_WHOLE_BLOCK:
        raise UserError(f"sequence length {sequence_length} is too short; give at least {SHORTEST_WHOLE_BLOCK} tokens")
    if max_tokens is not None and max_tokens < SHORTEST_BLOCK:
        raise UserError(f"{max_tokens} tokens of text are too few; ask for at least {SHORTEST_BLOCK}")
    least = max(min(min_block, sequence_length), SHORTEST_WHOLE_BLOCK)
    policy = resolve_bos(bos, tokenizer)
    bos_id = cast("int | None", tokenizer.bos_token_id)

    place = TextSource.parse(source)
    cut = _BlockCut(bos_id, policy, sequence_length, least)
    total = chosen = 0

    def wanted() -> Iterator[Document]:
        nonlocal total, chosen, least
        for document in read_documents(place, tokenizer, separator=separator, judged=role is Role.all):
            total += 1
            # Documents to judge on that stand apart come from a set that is learned from, too.
            wanted_role = Role.judge if document.cutting is Cutting.every else role
            if wanted_role in (Role.all, document.role) and document.digest not in exclude:
                chosen += 1
                least = cut.shortest(document.cutting)
                yield document

    documents = wanted() if place.streamed else _shuffled(list(wanted()), seed)
    blocks: list[np.ndarray] = []
    digests: list[str] = []
    left = max_tokens
    for digest, block in _spread(_tokenize(documents, tokenizer), cut, max_tokens):
        size = len(block) if left is None else cut_to(len(block), left, SHORTEST_BLOCK)
        blocks.append(block[:size])
        digests.append(digest)
        left = None if left is None else left - size
        if left == 0:
            break
    if not blocks:
        named = "text" if role is Role.all else f"{role.value} text"
        raise UserError(
            f"no {named} in {source!r}: {total} documents, {chosen} of them for this role and not excluded, "
            f"none of those with {least} tokens; cut it into more documents by --separator, or give other text"
        )
    return TokenText(tuple(blocks), tuple(digests), sequence_length)


@dataclass(frozen=True)
class _BlockCut:
    """How documents are cut into blocks.

    Attributes:
        bos: The beginning-of-sequence token.
        policy: Where it stands; settled.
        sequence_length: Most tokens of a block.
        least: Fewest tokens of a block.
    """

    bos: int | None
    policy: BosPolicy
    sequence_length: int
    least: int

    def blocks(self, ids: np.ndarray, cutting: Cutting) -> list[np.ndarray]:
        """The blocks of a document in order.

        Args:
            ids: Its tokens, int32.
            cutting: How it is cut.
        """
        policy, least = self.policy, self.shortest(cutting)
        if cutting is not Cutting.usual and policy is not BosPolicy.block:
            policy = BosPolicy.none
        return [block for block in _cut_blocks(ids, self.bos, policy, self.sequence_length) if len(block) >= least]

    def shortest(self, cutting: Cutting) -> int:
        """Fewest tokens of a block of such a document."""
        if cutting is Cutting.usual:
            return self.least
        return self.sequence_length if cutting is Cutting.exact else SHORTEST_WHOLE_BLOCK


def _spread(
    documents: Iterator[tuple[Document, np.ndarray]], cut: _BlockCut, max_tokens: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Digest and block of all blocks; under a limit first a few of each document, so that long ones don't take it all.

    The few are evenly spaced over their document; the others follow, should the few not reach the limit. What papers
    judge on keeps its order.
    """
    few = None if max_tokens is None else max(1, max_tokens // (SPREAD_DOCUMENTS * cut.sequence_length))
    later: list[tuple[str, np.ndarray]] = []
    for document, ids in documents:
        blocks = cut.blocks(ids, document.cutting)
        chosen = set(range(len(blocks)))
        if few is not None and few < len(blocks) and document.cutting is Cutting.usual:
            chosen = {index * len(blocks) // few for index in range(few)}
        for index, block in enumerate(blocks):
            if index in chosen:
                yield document.digest, block
            else:
                later.append((document.digest, block))
    yield from later


def cut_to(size: int, left: int, least: int) -> int:
    """Tokens to take of a block so that the rest can be taken exactly, too.

    Args:
        size: Tokens of the block, at least `2 * least - 1`: then what is cut is never below `least`.
        left: Tokens still wanted, this block's included; at least `least`.
        least: Fewest tokens of a cut block.

    Returns:
        `size`, or less: what is left, or what leaves `least` for the next block instead of less than that.
    """
    if size >= left:
        return left
    return min(size, left - least)


def _shuffled(documents: list[Document], seed: int) -> Iterator[Document]:
    order = np.random.default_rng([seed, 0, SHUFFLE_DOCUMENTS]).permutation(len(documents))
    return (documents[index] for index in order)


def _tokenize(
    documents: Iterator[Document], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[Document, np.ndarray]]:
    """Each document with its token ids (int32), without special tokens; many documents in a call."""
    for group in _groups(documents):
        # Not verbose: documents longer than the model reads are cut afterwards, so there's nothing to warn of.
        encoded = tokenizer(
            [document.text for document in group],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for document, ids in zip(group, encoded["input_ids"], strict=True):
            yield document, np.array(ids, dtype=np.int32)


def _groups(documents: Iterator[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document.text)
        if len(group) == TOGETHER_DOCUMENTS or characters >= TOGETHER_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _cut_blocks(ids: np.ndarray, bos: int | None, policy: BosPolicy, sequence_length: int) -> Iterator[np.ndarray]:
    """Blocks of at most `sequence_length` tokens, the beginning-of-sequence token among them."""
    first = np.array([bos] if policy is not BosPolicy.none else [], dtype=np.int32)
    # Chat templates write the token themselves.
    if len(first) and len(ids) and ids[0] == bos:
        ids = ids[1:]
    if policy is BosPolicy.document:
        ids = np.concatenate([first, ids])
        first = first[:0]
    step = sequence_length - len(first)
    for start in range(0, len(ids), step):
        yield np.concatenate([first, ids[start : start + step]])
