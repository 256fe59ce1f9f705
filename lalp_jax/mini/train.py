"""Trains the tiny student from scratch, on the CPU, in minutes: ``python -m lalp_jax.mini.train --out DIR``.

Leaves a folder in HF format: config.json, model.safetensors, the tokenizer, metrics.json (what was measured)
and README.md (the model card). The same seed and steps give the same student on the same machine.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lalp_jax.data.prompts import end_of_turn
from lalp_jax.data.tokens import Tokenizer, load_tokenizer
from lalp_jax.mini.corpus import texts
from lalp_jax.mini.exam import accuracy, heldout, render
from lalp_jax.mini.tokenizer import save_tokenizer
from lalp_jax.scoring.logprob import token_logprobs
from lalp_jax.student.config import StudentConfig
from lalp_jax.student.hf import Student, init_student, load_student, save_student

STEPS = 1600
PROBLEMS = 500  # that measure the student
ROWS, WIDTH = 12, 192  # a batch: rows of packed texts, and tokens in each
PEAK_RATE, WARMUP = 3e-3, 100
LAYERS = 4

_CARD = """\
---
license: apache-2.0
library_name: lalp_jax
tags: [toy, arithmetic]
---
# The tiny student of lalp_jax

A llama-shaped decoder of {parameters} parameters, trained from scratch on made-up chains of arithmetic in
words, so that lalp_jax can be tried on a laptop. It knows nothing else, it is often wrong, and nothing that
is measured with it says anything about language models.

- Held-out accuracy: {accuracy:.1%} of {n_problems} problems whose chains occur in no training text (greedy
  decoding, exact match of the final number). Last training loss: {loss} nats per token.
- Recipe: `python -m lalp_jax.mini.train --out DIR --seed {seed} --steps {steps}`, float32 on a CPU, in
  {seconds} s of wall time on two cores that other work shared. AdamW, peak rate {rate}, cosine decay, batches
  of at most {rows} x {width} tokens, loss on the answers alone.
- Texts: `lalp_jax/mini/corpus.py`. No teacher's answer is among them.
- Stored in bfloat16, and measured as stored.
- Input: `<|user|>question<|end|><|assistant|>`. The answer ends with `<|end|>`.
"""


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a run measured.

    Attributes:
      accuracy: share of `n_problems` held-out problems that greedy decoding solves.
      loss: mean of the last hundred steps, nats per token of the answers.
      seconds: wall time of the training alone.
    """

    accuracy: float
    n_problems: int
    loss: float
    steps: int
    seed: int
    seconds: int
    parameters: int


def shape(vocab_size: int, end: int) -> StudentConfig:
    """The tiny student: llama-shaped, less than a million parameters; `end` is the end-of-turn token."""
    return StudentConfig(
        model_type="llama",
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=256,
        num_layers=LAYERS,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        rope_scaling=None,
        tie_embeddings=True,
        attention_bias=False,
        output_bias=False,
        qk_norm=False,
        sliding_window=None,
        sliding_layers=(False,) * LAYERS,
        max_positions=1024,
        eos_token_ids=(end,),
        stored_dtype="bfloat16",
    )


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[np.ndarray]:
    """Endless int32 [4, ROWS, WIDTH] of texts packed into rows, each into the first row with room.

    The four are: tokens, positions, segments (0 is padding), and 1 where a token belongs to an answer.
    """
    end = end_of_turn(tokenizer)
    rows: list[list[tuple[int, int, int, int]]] = [[] for _ in range(ROWS)]
    for number, (question, answer) in enumerate(texts(seed), start=1):
        prompt = render(tokenizer, question).tolist()
        text = [*prompt, *tokenizer.encode_response([answer])[0].ids.tolist(), end]
        if len(text) > WIDTH:
            continue  # rare: the longest loose answers
        row = next((row for row in rows if len(row) + len(text) <= WIDTH), None)
        if row is None:
            padded = [row + [(0, 0, 0, 0)] * (WIDTH - len(row)) for row in rows]
            yield np.array(padded, np.int32).transpose(2, 0, 1)
            rows = [[] for _ in range(ROWS)]
            row = rows[0]
        row += [(token, place, number, place >= len(prompt)) for place, token in enumerate(text)]


def loss_of(params: nnx.State, graphdef: nnx.GraphDef, batch: jax.Array) -> jax.Array:
    """Mean negative log-probability (nats) of the answers in a batch."""
    decoder = nnx.merge(graphdef, params)
    tokens, positions, segments, answers = batch
    hidden, _ = jax.vmap(lambda *row: decoder(*row))(tokens, positions, segments)
    targets = jnp.arange(1, tokens.size, dtype=jnp.int32)
    logprobs = token_logprobs(hidden.reshape(tokens.size, -1), tokens.reshape(-1), targets, decoder.logits)
    weights = answers.reshape(-1)[1:].astype(jnp.float32)
    return -jnp.sum(logprobs * weights) / jnp.sum(weights)


@functools.partial(jax.jit, static_argnames=("graphdef", "optimizer"), donate_argnames=("params", "state"))
def update(
    params: nnx.State,
    state: optax.OptState,
    batch: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
) -> tuple[jax.Array, nnx.State, optax.OptState]:
    """One step: (loss, new parameters, new optimiser state)."""
    loss, gradients = jax.value_and_grad(loss_of)(params, graphdef, batch)
    changes, state = optimizer.update(gradients, state, params)
    return loss, optax.apply_updates(params, changes), state


def fit(student: Student, tokenizer: Tokenizer, steps: int, seed: int) -> tuple[Student, float]:
    """Trains in float32; returns the student and the mean loss of the last hundred steps."""
    rate = optax.warmup_cosine_decay_schedule(0.0, PEAK_RATE, min(WARMUP, steps // 2), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.05))
    params, losses, begun = student.params, [], time.monotonic()
    state = optimizer.init(params)
    for step, batch in enumerate(itertools.islice(batches(tokenizer, seed), steps), start=1):
        loss, params, state = update(params, state, batch, graphdef=student.graphdef, optimizer=optimizer)
        losses.append(float(loss))
        if step % 50 == 0 or step == steps:
            seconds = time.monotonic() - begun
            print(f"step {step}/{steps}  loss {np.mean(losses[-50:]):.4f}  {seconds:.0f} s", flush=True)
    return dataclasses.replace(student, params=params), float(np.mean(losses[-100:]))


def train(out: pathlib.Path, *, seed: int = 0, steps: int = STEPS, n_problems: int = PROBLEMS) -> Metrics:
    """Trains a student and leaves all of it in `out`; what is measured are the weights as stored."""
    save_tokenizer(out, seed)
    tokenizer = load_tokenizer(out)
    fresh = init_student(shape(tokenizer.vocab_bound, end_of_turn(tokenizer)), seed, jnp.float32)
    begun = time.monotonic()
    fitted, loss = fit(fresh, tokenizer, steps, seed)
    seconds = round(time.monotonic() - begun)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), fitted.params)
    save_student(dataclasses.replace(fitted, params=rounded), out)
    share = accuracy(load_student(out, dtype=jnp.float32), tokenizer, heldout(n_problems))
    parameters = sum(x.size for x in jax.tree.leaves(rounded))
    metrics = Metrics(share, n_problems, round(loss, 4), steps, seed, seconds, parameters)
    write_card(metrics, out)
    print(f"held-out accuracy {share:.1%} of {n_problems} problems")
    return metrics


def write_card(metrics: Metrics, out: pathlib.Path) -> None:
    """Writes metrics.json and the model card."""
    fields = dataclasses.asdict(metrics)
    (out / "metrics.json").write_text(json.dumps(fields, indent=2) + "\n")
    (out / "README.md").write_text(_CARD.format(**fields, rate=PEAK_RATE, rows=ROWS, width=WIDTH))


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description="Train the tiny student of the embedded default from scratch."
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the student")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the texts")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of training (default: %(default)s)")
    parser.add_argument(
        "--problems", type=int, default=PROBLEMS, help="held-out problems (default: %(default)s)"
    )
    options = parser.parse_args()
    train(options.out, seed=options.seed, steps=options.steps, n_problems=options.problems)


if __name__ == "__main__":
    main()
