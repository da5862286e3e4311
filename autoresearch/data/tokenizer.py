"""The tokenizer: byte-pair merges learned from the training text, and the number of bytes behind each token."""

import base64
from collections.abc import Iterable, Iterator

import numpy as np
import rustbpe
import tiktoken

# Facts of the public game (github.com/karpathy/autoresearch), kept so that gpu/climbmix scores compare.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = [f"<|reserved_{i}|>" for i in range(4)]  # the first one, BOS, begins every document
SAMPLE_CHARACTERS = 1_000_000_000  # text that the merges are learned from, at most
SAMPLE_DOCUMENT = 10_000  # characters taken of one document, at most


def train_tokenizer(batches: Iterable[list[str]], vocab_size: int) -> dict:
    """Learn byte-pair merges. Returns what tokenizer.json holds: the bytes of each token, in the order of their ranks.

    vocab_size: tokens, the special ones included.
    """

    def sample() -> Iterator[str]:
        characters = 0
        for batch in batches:
            for text in batch:
                yield text[:SAMPLE_DOCUMENT]
                characters += min(len(text), SAMPLE_DOCUMENT)
                if characters >= SAMPLE_CHARACTERS:
                    return

    trainer = rustbpe.Tokenizer()  # pyrefly: ignore[missing-attribute]  # written in Rust, without stubs
    trainer.train_from_iterator(sample(), vocab_size - len(SPECIAL_TOKENS), pattern=SPLIT_PATTERN)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda entry: entry[1])
    return {
        "pattern": SPLIT_PATTERN,
        "special_tokens": SPECIAL_TOKENS,
        "tokens": [base64.b64encode(bytes(token)).decode() for token, _ in ranks],
    }


def load_tokenizer(description: dict) -> tiktoken.Encoding:
    """The encoding of what `train_tokenizer` returned. Special tokens follow the learned ones."""
    tokens = [base64.b64decode(token) for token in description["tokens"]]
    return tiktoken.Encoding(
        name="autoresearch",
        pat_str=description["pattern"],
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={name: len(tokens) + i for i, name in enumerate(description["special_tokens"])},
    )


def count_token_bytes(encoding: tiktoken.Encoding, vocab_size: int) -> np.ndarray:
    """Raw bytes of each token, (vocab_size,) int32; special and unused tokens count zero."""
    counts = np.zeros(vocab_size, dtype=np.int32)
    for token in range(encoding.n_vocab - len(SPECIAL_TOKENS)):
        counts[token] = len(encoding.decode_single_token_bytes(token))
    return counts
