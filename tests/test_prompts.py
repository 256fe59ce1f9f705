"""Chat templates: what the student reads before the answer, the same on every day."""

import datetime
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lalp_jax.data import prompts, tokens
from lalp_jax.data.records import Prompt, Turn
from lalp_jax.errors import InputError

TEMPLATES = pathlib.Path(__file__).parent / "templates"
SPECIAL = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"]
SPECIAL += ["<|eot_id|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"]
ASK = Prompt("q1", (Turn("user", "What is 2 + 3?"),))


def make(template: str | None) -> tokens.Tokenizer:
    """A byte tokenizer that puts its BOS before every text, with that template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(SPECIAL)
    bos = ("<|bos|>", rust.token_to_id("<|bos|>"))
    rust.post_processor = processors.TemplateProcessing("<|bos|> $A", None, [bos])
    hf = PreTrainedTokenizerFast(tokenizer_object=rust, bos_token="<|bos|>", eos_token="<|eos|>")
    hf.chat_template = template
    return tokens.wrap_tokenizer(hf)


def named(name: str) -> tokens.Tokenizer:
    return make((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))


def id_of(tokenizer: tokens.Tokenizer, token: str) -> int:
    return tokenizer.hf.convert_tokens_to_ids(token)


TODAY = "<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
LLAMA = (
    f"<|bos|>{TODAY}<|start_header_id|>user<|end_header_id|>\n\nWhat is 2 + 3?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
QWEN = "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"
RENDERED = {
    "qwen2.5": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + QWEN,
    "qwen3": QWEN,
    "llama3.1": LLAMA,
    "llama3.2": LLAMA,
    "deepseek-r1-distill": "<|bos|><｜User｜>What is 2 + 3?<｜Assistant｜><think>\n",
}


@pytest.mark.parametrize("name", RENDERED)
def test_renders_each_family(name):
    tokenizer = named(name)
    rendered = prompts.render(tokenizer, ASK)
    assert rendered.text == RENDERED[name]
    assert tokenizer.hf.decode(rendered.tokens) == rendered.text
    assert rendered.tokens.dtype == "int32"
    assert (rendered.tokens == id_of(tokenizer, "<|bos|>")).sum() == rendered.text.count("<|bos|>") <= 1
    assert rendered.opens_think == (name == "deepseek-r1-distill")


def test_the_clock_is_pinned(monkeypatch):
    tokenizer = named("llama3.2")
    unpinned = tokenizer.hf.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert datetime.datetime.now().strftime("%Y") in unpinned  # else there is no trap to test
    monkeypatch.setattr(prompts, "PINNED_DATE", "1 Jan 1970")
    assert "1 Jan 1970" in prompts.render(tokenizer, ASK).text


@pytest.mark.parametrize("code", sorted(prompts._PINNED_CODES))
def test_every_code_of_the_clock(code):
    template = "{%- macro now() %}{{ strftime_now('" + code + "|%Y-%m-%d') }}{% endmacro %}{{ now() }}"
    day = datetime.datetime(2024, 7, 26)
    assert prompts.render(make(template), ASK).text == day.strftime(code + "|%Y-%m-%d")


def test_white_space_before_a_template_stays():
    plain = "\n \n{{ messages[0].content }}\n x"
    expected = make(plain).hf.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False)
    assert prompts.render(make(plain), Prompt("p", (Turn("user", "q"),))).text == expected == "\n \nq\n x"


def test_without_a_template():
    tokenizer = make(None)
    rendered = prompts.render(tokenizer, Prompt("p", (Turn("system", "Be brief."), Turn("user", "2+3?"))))
    assert rendered.text == "Be brief.\n\n2+3?\n\n"
    assert tokenizer.hf.decode(rendered.tokens) == "<|bos|>" + rendered.text
    assert prompts.render(tokenizer, ASK).text == "What is 2 + 3?\n\n"
    assert not rendered.opens_think


def test_a_refusal_names_the_prompt():
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}ok"
    with pytest.raises(InputError, match=r"prompt q7: .*no system role"):
        prompts.render(make(template), Prompt("q7", (Turn("system", "s"), Turn("user", "u"))))
    with pytest.raises(InputError, match="refuses"):
        prompts.render(make("{{ messages[0].content.missing.more }}"), ASK)
    with pytest.raises(InputError, match="refuses"):
        prompts.render(make("{{ ''.__class__.__mro__ }}"), ASK)
    with pytest.raises(InputError, match="renders to nothing"):
        prompts.render(make("{# nothing #}"), ASK)


def test_several_templates():
    tokenizer = make(None)
    tokenizer.hf.chat_template = {"default": "D", "tool_use": "T"}
    assert prompts.render(tokenizer, ASK).text == "D"
    tokenizer.hf.chat_template = {"a": "A", "b": "B"}
    with pytest.raises(InputError, match="default"):
        prompts.render(tokenizer, ASK)


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        ("<think>\nHm.\n</think>\n\n4", "Hm.\n</think>\n\n4"),
        ("\n<think>\r\n\nHm", "Hm"),
        ("<think>  Hm", "  Hm"),
        ("Hm.</think>4", "Hm.</think>4"),
        ("\nHm", "\nHm"),
        ("Say <think>", "Say <think>"),
        ("<think><think>x", "<think>x"),
    ],
)
def test_an_open_think_is_not_doubled(response, kept):
    opened = prompts.render(named("deepseek-r1-distill"), ASK)
    assert response[opened.doubled(response) :] == kept
    assert prompts.render(named("qwen3"), ASK).doubled(response) == 0


def test_newlines_stay_where_the_prompt_has_none():
    opened = prompts.render(make("<think>"), ASK)
    assert opened.doubled("<think>\nx") == len("<think>")


@given(st.text(st.sampled_from("<think>\n\r /a"), max_size=20))
def test_what_is_dropped_is_the_think_and_white_space(response):
    for text in ("q<think>", "q<think>\n"):
        dropped = response[: prompts.RenderedPrompt(text, None, True).doubled(response)]
        assert dropped.strip() in ("", "<think>")
        assert not response[len(dropped) :].startswith("\n") or dropped == "" or text.endswith(">")


def test_hashes():
    names = list(RENDERED)
    assert len({prompts.template_hash(named(name)) for name in names}) == len(names)
    # 3.1 and 3.2 differ in their source, but say the same with a pinned date and without a system turn.
    assert prompts.rendered_hash(named("llama3.1")) == prompts.rendered_hash(named("llama3.2"))
    assert len({prompts.rendered_hash(named(name)) for name in names}) == len(names) - 1
    assert prompts.rendered_hash(named("qwen3")) == prompts.rendered_hash(named("qwen3"))
    assert prompts.template_hash(make(None)) != prompts.template_hash(named("qwen3"))


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("qwen2.5", "<|im_end|>"),
        ("qwen3", "<|im_end|>"),
        ("llama3.1", "<|eot_id|>"),
        ("llama3.2", "<|eot_id|>"),
        ("deepseek-r1-distill", "<｜end▁of▁sentence｜>"),
    ],
)
def test_end_of_turn(name, token):
    tokenizer = named(name)
    assert prompts.end_of_turn(tokenizer) == id_of(tokenizer, token)


def test_end_of_turn_without_a_template():
    tokenizer = make(None)
    assert prompts.end_of_turn(tokenizer) == id_of(tokenizer, "<|eos|>")
    tokenizer.hf.eos_token = None
    with pytest.raises(InputError, match="ends an answer"):
        prompts.end_of_turn(tokens.wrap_tokenizer(tokenizer.hf))
