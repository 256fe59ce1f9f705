"""Tiny random students of every family, as transformers itself saves them, with a tokenizer if asked.

    model = make_student(tmp_path, "qwen2")         the torch model; the directory loads with `load_student`
    make_student(tmp_path, "llama", tokenizer=True) with a byte-level tokenizer and a chat template

All parameters are drawn at random, norms and biases too, so that none can be left out unnoticed, and wide
enough that the logits are far from flat.
"""

import functools
import pathlib
from typing import Any

VOCAB = 384

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32, "attention_bias": False},
    "llama": {"rope_parameters": LLAMA3_ROPE, "head_dim": 24},
    "mistral": {"sliding_window": 256},
}
"""What makes each family itself; all have twice as many query heads as key-value heads."""


def make_student(
    directory: pathlib.Path,
    family: str = "qwen2",
    *,
    seed: int = 0,
    dtype: str = "float32",
    max_shard_size: str = "1GB",
    tokenizer: bool = False,
    **overrides: Any,
) -> Any:
    """Saves a tiny student into `directory` and returns its torch model, in evaluation mode.

    Args:
      dtype: of the saved weights (and of the model returned).
      tokenizer: also save `tiny_tokenizer`.
      overrides: fields of the transformers config.
    """
    import torch
    import transformers

    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    config = transformers.AutoConfig.for_model(family, **{**sizes, **FAMILIES[family], **overrides})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    _randomise(model, torch.Generator().manual_seed(seed))
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    if tokenizer:
        tiny_tokenizer().save_pretrained(directory)
    return model


def _randomise(model: Any, generator: Any) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_((0.3 if name.endswith("bias") else 0.1) * noise)


@functools.cache
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of at most VOCAB entries, trained here, with a chat template."""
    import tokenizers
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [
        "First we add 12 and 30. That gives 42.\n\nSo the answer is \\boxed{42}.",
        "the sum of the numbers is then",
    ]
    tokenizer.train_from_iterator(text * 4, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
