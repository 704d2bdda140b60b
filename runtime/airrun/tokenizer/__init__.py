"""Tokenizers from GGUF metadata: every kind the format knows, token for token like llama.cpp."""

from airrun.tokenizer.spec import TokenizerSpec
from airrun.tokenizer.stream import StreamDecoder
from airrun.tokenizer.tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "TokenizerSpec"]
