"""Tokens: true starts, and every token in the step that holds its first character."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lalp_jax.data import encode, steps, tokens
from lalp_jax.data.records import Candidate, Prompt
from lalp_jax.errors import InputError

CORPUS = ["Hello world. So 2 + 3 = 5.\n\n Next: 漢字 café 👩‍🚀!\n", "the cat; the hat\r\n  the end"]
TEXTS = st.text(
    st.sampled_from(list("Hthe wor.\n\r\t 漢字é👩🚀\u200d\0שa\u0301\u0316\u3000<>|")), min_size=1, max_size=40
)


def save(folder, rust, **files):
    """A checkpoint's folder with that tokenizer and JSON files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    rust.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def byte_level(normalizer=None, vocab_size: int = 300):
    """A small byte-level BPE, trained on the spot; its post-processor trims offsets, as Llama 3's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    rust = Tokenizer(models.BPE())
    if normalizer is not None:
        rust.normalizer = normalizer
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.post_processor = processors.ByteLevel(trim_offsets=True)
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        special_tokens=["<|eos|>", "<|im_end|>"],
        show_progress=False,
    )
    rust.train_from_iterator(CORPUS, trainer)
    return rust


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tokens.Tokenizer:
    return tokens.load_tokenizer(save(tmp_path_factory.mktemp("small"), byte_level()))


@pytest.fixture(scope="module")
def gpt2(shared_data) -> tokens.Tokenizer:
    return tokens.load_tokenizer(shared_data / "tokenizers" / "gpt2")


def starts_by_bytes(tokenizer: tokens.Tokenizer, text: str, ids: np.ndarray) -> list[int]:
    """Starts from the bytes that each token of a byte-level tokenizer stands for: no offsets involved."""
    added = tokenizer.hf.added_tokens_decoder
    char_of_byte = [i for i, char in enumerate(text) for _ in char.encode()]
    starts, position = [], 0
    for token in ids.tolist():
        starts.append(char_of_byte[position])
        piece = tokenizer.hf.convert_ids_to_tokens(token)
        position += (
            len(piece.encode()) if token in added else len(piece)
        )  # one character of a piece is one byte
    assert position == len(char_of_byte)
    return starts


@settings(deadline=None, max_examples=200)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_starts_are_true(small, texts):
    for text, (ids, starts) in zip(texts, small.encode_response(texts), strict=True):
        assert ids.dtype == starts.dtype == np.int32
        assert starts.tolist() == starts_by_bytes(small, text, ids)
        assert ids.tolist() == small.hf(text, add_special_tokens=False).input_ids


@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_starts_are_true_for_gpt2(gpt2, text):
    [(ids, starts)] = gpt2.encode_response([text])
    assert starts.tolist() == starts_by_bytes(gpt2, text, ids)


def test_the_trimmed_offsets_would_be_wrong(small):
    text = "the.\n\n the"
    trimmed = small.hf(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    [(ids, starts)] = small.encode_response([text])
    assert starts.tolist() == starts_by_bytes(small, text, ids) != [start for start, _ in trimmed]


@settings(deadline=None, max_examples=100)
@given(text=TEXTS)
def test_a_normaliser_keeps_starts_in_order(tmp_path_factory, text):
    from tokenizers import normalizers

    folder = tmp_path_factory.getbasetemp() / "nfc"
    if not folder.exists():
        save(folder, byte_level(normalizers.NFC()))
    [(ids, starts)] = tokens.load_tokenizer(folder).encode_response([text])
    assert len(ids) > 0
    assert (np.diff(starts) >= 0).all()
    assert 0 <= starts[0] <= starts[-1] < len(text)
    for i in np.flatnonzero(
        [char == "\n" for char in text]
    ):  # no normaliser touches it: a token starts there,
        assert i in starts or text[i - 1].isspace() or text[i - 1] in "\n"  # or at the white space before


def test_nfc_joins_what_was_two_characters(tmp_path):
    from tokenizers import normalizers

    tokenizer = tokens.load_tokenizer(save(tmp_path, byte_level(normalizers.NFC())))
    [(ids, starts)] = tokenizer.encode_response(["e\u0301.\nx"])
    assert tokenizer.hf.decode(ids) == "é.\nx"
    assert starts[-3:].tolist() == [2, 3, 4]


def test_starts_of_a_sentencepiece_like_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, normalizers, trainers

    rust = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    corpus = ["the hat the cat\n", "the end."]
    rust.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    tokenizer = tokens.load_tokenizer(save(tmp_path, rust))
    text = "the  hat\n👩 end"
    [(ids, starts)] = tokenizer.encode_response([text])
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        assert start <= end
    by_start = {
        int(s): tokenizer.hf.convert_ids_to_tokens(i) for i, s in zip(ids.tolist(), starts, strict=True)
    }
    assert by_start[text.index("\n")].startswith("\n") or by_start[text.index("\n")] == "<0x0A>"
    assert (starts == text.index("👩")).sum() == 4  # the four bytes of one character
    assert by_start[text.rindex(" ")].startswith("▁")


def test_special_text_in_a_response_is_the_special_token(small):
    [(ids, starts)] = small.encode_response(["the<|im_end|>\nthe"])
    assert small.rust.token_to_id("<|im_end|>") in ids
    assert 3 in starts
    assert 13 in starts


def test_padding_and_truncation_in_the_file_are_ignored(tmp_path):
    rust = byte_level()
    rust.enable_truncation(3)
    rust.enable_padding(length=64, pad_token="<|eos|>")
    tokenizer = tokens.load_tokenizer(save(tmp_path, rust))
    text = "the cat; the hat; the end"
    [(ids, _)] = tokenizer.encode_response([text])
    assert tokenizer.hf.decode(ids) == text


def test_the_file_wins_over_a_named_class(tmp_path):
    rust = byte_level()
    named = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|eos|>"}
    folder = save(tmp_path, rust, tokenizer_config=named, config={"model_type": "qwen2"})
    text = "Hello world. 12345 the\n\nend"
    [(ids, _)] = tokens.load_tokenizer(folder).encode_response([text])
    assert ids.tolist() == rust.encode(text, add_special_tokens=False).ids


def test_eos_of_all_sources(tmp_path):
    rust = byte_level()
    files = {
        "tokenizer_config": {"eos_token": "<|im_end|>"},
        "generation_config": {"eos_token_id": [7, 1]},
        "config": {"model_type": "llama", "eos_token_id": 9},
    }
    assert tokens.load_tokenizer(save(tmp_path / "all", rust, **files)).eos_ids == (1, 7, 9)
    assert tokens.load_tokenizer(save(tmp_path / "none", rust)).eos_ids == ()


def test_vocabulary_and_fingerprint(tmp_path, small, shared_data):
    assert small.vocab_bound == max(small.hf.get_vocab().values()) + 1
    again = tokens.load_tokenizer(save(tmp_path / "again", small.hf.backend_tokenizer))
    assert again.fingerprint == small.fingerprint
    other = tokens.load_tokenizer(save(tmp_path / "other", byte_level(vocab_size=290)))
    assert other.fingerprint != small.fingerprint
    assert tokens.load_tokenizer(shared_data / "tokenizers" / "gpt2").vocab_bound == 50_257


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        tokens.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="could be loaded"):
        tokens.load_tokenizer(tmp_path)


def test_a_saved_folder_loads_again(tmp_path, small):
    small.hf.save_pretrained(tmp_path)
    assert tokens.load_tokenizer(tmp_path).encode_response(["the\n cat"])[0].ids.tolist() == (
        small.encode_response(["the\n cat"])[0].ids.tolist()
    )


def assembled(response, dropped, ids, starts, ends):
    candidate = Candidate("c", Prompt("p", ()), "t", response, origin="f.jsonl:1")
    prompt = np.arange(3, dtype=np.int32)
    return encode.assemble(
        candidate, prompt, dropped, np.asarray(ids, np.int32), np.asarray(starts), np.asarray(ends)
    )


def by_character(response: str, starts: list[int], ends: list[int]) -> list[tuple[int, int]]:
    """(first character, number of tokens) of every step, joining spans one character at a time."""
    spans: list[tuple[str, int, int]] = []  # text, first character, tokens
    text, first = "", 0
    for i, char in enumerate(response):
        text += char
        if i + 1 in ends:
            spans.append((text, first, sum(first <= start <= i for start in starts)))
            text, first = "", i + 1
    merged: list[list] = []
    for text, first, count in spans:
        alone = count > 0 and text.strip() != ""
        if merged and (not alone or not merged[-1][3]):
            whole = merged[-1][0] + text
            merged[-1] = [whole, merged[-1][1], merged[-1][2] + count, merged[-1][3] or alone]
        else:
            merged.append([text, first, count, alone])
    return [(first, count) for _, first, count, _ in merged]


@settings(deadline=None, max_examples=500)
@given(data=st.data())
def test_every_token_is_in_the_step_of_its_first_character(data):
    response = data.draw(st.text(st.sampled_from("ab. \n\t漢"), min_size=1, max_size=25))
    size = len(response)
    dropped = data.draw(st.integers(0, size - 1))
    starts = sorted(data.draw(st.lists(st.integers(0, size - 1 - dropped), min_size=1, max_size=30)))
    ends = sorted({*data.draw(st.lists(st.integers(1, size))), size})
    result = assembled(response, dropped, range(len(starts)), starts, ends)

    expected = by_character(response, [start + dropped for start in starts], ends)
    counts = np.diff(result.token_ends, prepend=0)
    assert list(zip(result.char_starts.tolist(), counts.tolist(), strict=True)) == expected
    assert (counts > 0).all()
    assert counts.sum() == len(result.tokens) == len(starts)
    assert {result.token_ends.dtype, result.char_starts.dtype, result.char_ends.dtype} == {np.dtype(np.int32)}
    assert result.char_starts.tolist() == [0, *result.char_ends[:-1].tolist()]
    assert result.char_ends[-1] == size
    parts = [response[a:b] for a, b in zip(result.char_starts, result.char_ends, strict=True)]
    assert "".join(parts) == response
    if len(parts) > 1:
        assert not any(part.isspace() for part in parts)


@settings(deadline=None, max_examples=100)
@given(text=TEXTS, name=st.sampled_from(["sentence", "line", "paragraph", "tokens:1", "tokens:3"]))
def test_text_to_steps(small, text, name):
    [(ids, starts)] = small.encode_response([text])
    segmenter = steps.parse_segmenter(name)
    if segmenter.every:
        ends = steps.token_ends(segmenter.every, starts, len(text))
    else:
        [ends] = steps.segment_texts(segmenter, [text])
    result = assembled(text, 0, ids, starts, ends)
    expected = by_character(text, starts.tolist(), ends.tolist())
    assert np.diff(result.token_ends, prepend=0).tolist() == [count for _, count in expected]
    assert result.n_steps == len(expected)


def test_dropped_characters_belong_to_the_first_step(small):
    response = "<think>\nthe cat. the end"
    [(ids, starts)] = small.encode_response([response[8:]])
    result = assembled(response, 8, ids, starts, [8, 16, len(response)])
    parts = [response[a:b] for a, b in zip(result.char_starts, result.char_ends, strict=True)]
    assert parts == ["<think>\nthe cat.", " the end"]
    assert small.hf.decode(result.tokens[: result.token_ends[0]]) == "the cat."


def test_a_long_response_takes_linear_time():
    size = 1_000_000
    start = time.monotonic()
    result = assembled("a " * (size // 2), 0, range(size), range(size), range(1, size + 1))
    assert time.monotonic() - start < 10
    assert result.n_steps == size // 2


def test_what_cannot_be_assembled():
    with pytest.raises(InputError, match=r"f\.jsonl:1: the response has no tokens"):
        assembled("<think>\n", 8, [], [], [8])
    for ends in ([1], [1, 1, 3], [0, 3], [1, 4]):
        with pytest.raises(ValueError, match="tile"):
            assembled("abc", 0, [1], [0], ends)
