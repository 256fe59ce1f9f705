"""The student's tokenizer: texts to token ids, and where in the text each token truly starts."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lalp_jax.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer
    from transformers import PreTrainedTokenizerFast


class Tokens(NamedTuple):
    """A text in tokens.

    Attributes:
      ids: int32 [T].
      char_starts: int32 [T], non-decreasing; several tokens share one where they are parts of one character.
    """

    ids: np.ndarray
    char_starts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer in two forms that agree on every id.

    Attributes:
      hf: transformers' form, for the chat template, special tokens, decoding and export.
      rust: the form that encodes: no template of special tokens, no padding, no truncation. Post-processors
        of byte-level tokenizers shift a token's offset past its leading blanks, which would move a newline
        token into the step that follows it; without one, offsets are true.
      prefix: ids that the tokenizer itself puts before a text, such as its BOS; a template writes its own.
      eos_ids: ids that end a generation, by the tokenizer and the checkpoint's configuration.
      vocab_bound: the highest id plus one.
      fingerprint: SHA-256 of the whole serialised tokenizer.
    """

    hf: "PreTrainedTokenizerFast"
    rust: "RustTokenizer"
    prefix: tuple[int, ...]
    eos_ids: tuple[int, ...]
    vocab_bound: int
    fingerprint: str

    def encode_response(self, texts: list[str]) -> list[Tokens]:
        """Each text tokenised once, whole, without added special tokens; texts in parallel, without the GIL.

        The text of a special token inside a response ("</think>", "<|im_end|>") becomes that token, as
        it does for every other user of the tokenizer.
        """
        return [_tokens(encoding) for encoding in self.rust.encode_batch(texts, add_special_tokens=False)]

    def encode_prompt(self, text: str) -> np.ndarray:
        """int32 [P]: a rendered prompt, without added special tokens (the template has written its own)."""
        return np.asarray(self.rust.encode(text, add_special_tokens=False).ids, np.int32)


def load_tokenizer(directory: str | pathlib.Path) -> Tokenizer:
    """Loads a checkpoint's tokenizer; no code of the checkpoint runs.

    `tokenizer.json` is taken as it is written, whatever class the configuration names: the classes of
    single models rebuild pre-tokenization from their own defaults and give other ids where the file differs.

    Raises:
      InputError: the folder has no tokenizer, or one without offsets.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = pathlib.Path(directory)
    family: Any = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    try:
        hf = family.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the Rust library raises bare Exception on a malformed file
        raise InputError(
            f"no tokenizer could be loaded ({str(error).strip() or type(error).__name__})",
            where=str(folder),
            remedy="the student's folder needs tokenizer.json (and tokenizer_config.json, for its template)",
        ) from error
    if not hf.is_fast:
        raise InputError(
            "the tokenizer has no fast form, so it cannot tell where in the text a token starts",
            where=str(folder),
            remedy="add its tokenizer.json: load it with transformers once and call save_pretrained",
        )
    return wrap_tokenizer(hf, _configured_eos(folder))


def wrap_tokenizer(hf: "PreTrainedTokenizerFast", eos_ids: tuple[int, ...] = ()) -> Tokenizer:
    """The `Tokenizer` of a fast transformers tokenizer.

    Args:
      eos_ids: further ids that end a generation, beside the tokenizer's own EOS.
    """
    from tokenizers import Tokenizer as RustTokenizer

    spec = json.loads(hf.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    fingerprint = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    rust = RustTokenizer.from_str(json.dumps(spec | {"post_processor": None}))
    rust.encode_special_tokens = hf.backend_tokenizer.encode_special_tokens
    probe = hf.backend_tokenizer.encode("a", add_special_tokens=True)
    marked = zip(probe.ids, probe.special_tokens_mask, strict=True)
    prefix = tuple(token for token, special in itertools.takewhile(lambda pair: pair[1], marked))
    own = () if hf.eos_token_id is None else (hf.eos_token_id,)
    vocab_bound = max(rust.get_vocab(with_added_tokens=True).values()) + 1
    return Tokenizer(hf, rust, prefix, tuple(dict.fromkeys(own + eos_ids)), vocab_bound, fingerprint)


def _tokens(encoding) -> Tokens:
    count = len(encoding.ids)
    starts = np.fromiter((start for start, _ in encoding.offsets), np.int32, count)
    # A normaliser that reorders combining marks may report a start before its predecessor's.
    return Tokens(np.asarray(encoding.ids, np.int32), np.maximum.accumulate(starts))


def _configured_eos(folder: pathlib.Path) -> tuple[int, ...]:
    """`eos_token_id`, a number or a list, of generation_config.json and config.json, in this order."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            found += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(found)
