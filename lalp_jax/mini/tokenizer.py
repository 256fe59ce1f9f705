"""The tiny student's tokenizer: a byte-level BPE learnt from the mini texts, in HF format."""

import itertools
import json
import pathlib

from lalp_jax.mini.corpus import texts
from lalp_jax.mini.task import problems, words
from lalp_jax.mini.teachers import TEACHERS, answer

VOCABULARY = 1024  # a ceiling: learning stops sooner where no pair is left to merge
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"

# A system turn is shown as the user's: the student knows two speakers.
_TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ '{ASSISTANT}' if message['role'] == 'assistant' else '{USER}' }}}}"
    f"{{{{ message['content'] }}}}{END}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def save_tokenizer(directory: str | pathlib.Path, seed: int = 0) -> None:
    """Learns the tokenizer and writes it to `directory`; the same files for the same seed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(seed), trainer)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "additional_special_tokens": [USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "chat_template": _TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _sample(seed: int) -> list[str]:
    """Texts of the mixture and of every teacher, and each number often enough to become one token."""
    sample = [part for pair in itertools.islice(texts(seed), 2000) for part in pair]
    for problem in itertools.islice(problems("train", seed), 200):
        sample += [answer(teacher, problem, seed) for teacher in TEACHERS]
    numbers = [form for n in range(100) for form in (str(n), f" {n}", words(n), f" {words(n)}")]
    return sample + numbers * 200
