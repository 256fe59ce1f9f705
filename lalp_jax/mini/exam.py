"""Measures a student on the mini task: greedy answers to held-out problems, graded exactly."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lalp_jax.data import prompts
from lalp_jax.data.records import Prompt, Turn
from lalp_jax.data.tokens import Tokenizer
from lalp_jax.mini.task import Problem, problems
from lalp_jax.mini.teachers import stated_answer
from lalp_jax.student.hf import Student
from lalp_jax.student.model import KV, Prefix

NEW_TOKENS = 96  # the plain answer to eight operations takes 66


def heldout(count: int, seed: int = 0) -> list[Problem]:
    """The first `count` held-out problems."""
    return list(itertools.islice(problems("heldout", seed), count))


def accuracy(student: Student, tokenizer: Tokenizer, solved: list[Problem]) -> float:
    """Share of problems whose greedy answer states the right number."""
    responses = respond(student, tokenizer, [problem.question for problem in solved])
    right = [stated_answer(said) == problem.answer for said, problem in zip(responses, solved, strict=True)]
    return sum(right) / len(right)


def respond(student: Student, tokenizer: Tokenizer, questions: list[str]) -> list[str]:
    """The student's greedy answers, without the end of turn, at most NEW_TOKENS tokens long."""
    rendered = [render(tokenizer, question) for question in questions]
    lengths = np.array([len(prompt) for prompt in rendered], np.int32)
    padded = np.zeros((len(rendered), lengths.max()), np.int32)
    for row, prompt in zip(padded, rendered, strict=True):
        row[: len(prompt)] = prompt
    chosen = greedy(student.params, padded, lengths, graphdef=student.graphdef, n_new=NEW_TOKENS)
    end = prompts.end_of_turn(tokenizer)
    answers = (itertools.takewhile(lambda token: token != end, row) for row in np.asarray(chosen).tolist())
    return [str(tokenizer.hf.decode(list(answer))) for answer in answers]


def render(tokenizer: Tokenizer, question: str) -> np.ndarray:
    """int32 [P]: a question through the chat template, up to where the answer begins."""
    return prompts.render(tokenizer, Prompt("mini", (Turn("user", question),))).tokens


@functools.partial(jax.jit, static_argnames=("graphdef", "n_new"))
def greedy(
    params: nnx.State, tokens: jax.Array, lengths: jax.Array, *, graphdef: nnx.GraphDef, n_new: int
) -> jax.Array:
    """Likeliest continuations, token by token.

    Args:
      tokens: int32 [B, P], prompts, padded at the end.
      lengths: int32 [B], real tokens of each prompt.

    Returns:
      int32 [B, n_new]; what follows an end-of-turn token means nothing.
    """
    decoder = nnx.merge(graphdef, params)

    def likeliest(hidden: jax.Array) -> jax.Array:
        return jnp.argmax(decoder.logits(hidden)).astype(jnp.int32)

    def step(carry: tuple[KV, jax.Array, jax.Array], _: None) -> tuple[tuple, jax.Array]:
        memory, token, place = carry
        hidden, new = decoder(token[None], place[None], jnp.ones(1, jnp.int32), Prefix.of_one(memory, place))
        memory = jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, place, 1), memory, new)
        return (memory, likeliest(hidden[0]), place + 1), token

    def continued(prompt: jax.Array, length: jax.Array) -> jax.Array:
        places = jnp.arange(len(prompt), dtype=jnp.int32)
        hidden, kv = decoder(prompt, places, (places < length).astype(jnp.int32))
        memory = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, n_new), (0, 0), (0, 0))), kv)
        start = (memory, likeliest(hidden[length - 1]), length)
        return jax.lax.scan(step, start, None, length=n_new)[1]

    return jax.vmap(continued)(tokens, lengths)
