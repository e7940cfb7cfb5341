"""From data sets to batches of tokens.

    row          Row, Cutting: text with where it is from, before it is a document
    hub          HubText: data sets of the hub -> rows
    named        NamedText: wikitext2, c4, fineweb-edu, to learn from and to judge on as papers do
    source       TextSource: files, folders, the embedded text, named sets, data sets of the hub -> rows
    documents    Document, Role: rows -> documents, each of which is for Hessians, search or judging
    blocks       TokenText, read_text, BosPolicy: documents -> token blocks
    batches      Batch, draw_batches, all_batches: token blocks -> batches

Importing this room is cheap: data sets' and tokenizers' libraries are loaded when a source needs them.
"""

from evoray.tokens.batches import Batch, all_batches, draw_batches
from evoray.tokens.blocks import BosPolicy, TokenText, read_text, resolve_bos
from evoray.tokens.documents import Document, Role, cut_text, read_documents
from evoray.tokens.source import TextSource

__all__ = [
    "Batch",
    "BosPolicy",
    "Document",
    "Role",
    "TextSource",
    "TokenText",
    "all_batches",
    "cut_text",
    "draw_batches",
    "read_documents",
    "read_text",
    "resolve_bos",
]
