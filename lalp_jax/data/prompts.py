"""Prompts in the student's chat template. No response goes through one: templates trim, delete and rewrite.

Some templates write the day's date into the prompt (Llama 3.2), so that scores would
change overnight: the date is pinned, for templates that take a `date_string` and those that ask the clock.
"""

import dataclasses
import hashlib

import numpy as np

from lalp_jax.data.records import Prompt, Turn
from lalp_jax.data.tokens import Tokenizer
from lalp_jax.errors import InputError

PINNED_DATE = "26 Jul 2024"  # the date that Llama 3.1's template holds
_PINNED_CODES = {
    "%d": "26", "%-d": "26", "%e": "26", "%b": "Jul", "%B": "July", "%m": "07", "%-m": "7", "%Y": "2024",
    "%y": "24", "%A": "Friday", "%a": "Fri", "%j": "208", "%H": "00", "%I": "12", "%M": "00", "%S": "00",
    "%p": "AM",
}  # fmt: skip

# A macro of this name hides the function of the same name that transformers offers to templates.
# `+%}`: white space at the start of the template that follows is left as it is.
_PINNED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f".replace('{code}', '{value}')" for code, value in _PINNED_CODES.items())
    + " }}{%- endmacro +%}"
)
_OPEN_THINK = "<think>"


@dataclasses.dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as the student reads it, up to where its answer begins.

    Attributes:
      text: what the template made of the turns.
      tokens: int32 [P], at least one.
      opens_think: the prompt ends by opening a `<think>` block, so that the response must not open it again.
    """

    text: str
    tokens: np.ndarray
    opens_think: bool

    def doubled(self, response: str) -> int:
        """Number of leading characters of the response that the prompt already has: its `<think>`, or none.

        Where the prompt goes on after `<think>` with a newline, the newlines after the response's own go too.
        """
        body = response.lstrip()
        if not self.opens_think or not body.startswith(_OPEN_THINK):
            return 0
        rest = body.removeprefix(_OPEN_THINK)
        if not self.text.endswith(_OPEN_THINK):
            rest = rest.lstrip("\r\n")
        return len(response) - len(rest)


def render(tokenizer: Tokenizer, prompt: Prompt) -> RenderedPrompt:
    """The prompt through the chat template, with the opening of the answer.

    A tokenizer without a template renders every turn followed by a blank line, after the BOS that the
    tokenizer adds by itself, if it does.

    Raises:
      InputError: the template refuses the conversation, or it renders to nothing.
    """
    if tokenizer.hf.chat_template is None:
        text = "".join(f"{turn.content}\n\n" for turn in prompt.turns)
        tokens = np.concatenate([np.asarray(tokenizer.prefix, np.int32), tokenizer.encode_prompt(text)])
    else:
        text = _apply(tokenizer, prompt.turns, where=f"prompt {prompt.id}", add_generation_prompt=True)
        tokens = tokenizer.encode_prompt(text)
    if not len(tokens):
        where = f"prompt {prompt.id}"
        raise InputError("the prompt renders to nothing", where=where, remedy="give it a text")
    return RenderedPrompt(text, tokens, text.rstrip().endswith(_OPEN_THINK))


def template_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of the chat template's source, or of nothing where there is none."""
    return hashlib.sha256(_template(tokenizer).encode()).hexdigest()


def rendered_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of a fixed question as rendered: what the template does, defaults and date included."""
    rendered = render(tokenizer, Prompt("probe", (Turn("user", "What is 2 + 3?"),)))
    return hashlib.sha256(rendered.text.encode() + rendered.tokens.astype("<i4").tobytes()).hexdigest()


def end_of_turn(tokenizer: Tokenizer) -> int:
    """Id of the token that ends an answer: what the template writes after one, else the tokenizer's EOS.

    Raises:
      InputError: there is neither.
    """
    if tokenizer.hf.chat_template is not None:
        answer = "forty-two"
        turns = (Turn("user", "6 * 7?"), Turn("assistant", answer))
        text = _apply(tokenizer, turns, where="chat template", add_generation_prompt=False)
        special = tokenizer.hf.added_tokens_decoder
        for token in tokenizer.encode_prompt(text.rpartition(answer)[2]).tolist():
            if token in special:
                return token
    if not tokenizer.eos_ids:
        raise InputError(
            "the tokenizer has no token that ends an answer",
            where="tokenizer",
            remedy="name an eos_token in tokenizer_config.json, or an eos_token_id in generation_config.json",
        )
    return tokenizer.eos_ids[0]


def _template(tokenizer: Tokenizer) -> str:
    """The template's source; of several, the one named `default`."""
    if tokenizer.hf.chat_template is None:
        return ""
    try:
        return tokenizer.hf.get_chat_template()
    except ValueError as error:
        raise InputError(str(error), where="chat template", remedy="name one of them `default`") from error


def _apply(tokenizer: Tokenizer, turns: tuple[Turn, ...], *, where: str, add_generation_prompt: bool) -> str:
    import jinja2

    try:
        rendered = tokenizer.hf.apply_chat_template(
            [dataclasses.asdict(turn) for turn in turns],
            chat_template=_PINNED_CLOCK + _template(tokenizer),
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            date_string=PINNED_DATE,
        )
        return str(rendered)
    except jinja2.TemplateError as error:
        raise InputError(
            f"the student's chat template refuses the conversation ({error})",
            where=where,
            remedy="leave out what it does not know, often the system turn (--system), or mend the template",
        ) from error
