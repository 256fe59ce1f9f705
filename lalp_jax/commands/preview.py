"""What is shown before work starts: the mapping, one example, the plan and its cost."""

import time

import numpy as np

from lalp_jax.commands.work import Work
from lalp_jax.data import prompts
from lalp_jax.data.windows import window_tokens
from lalp_jax.selection.summary import visible

_SHOWN_STEPS = 8
_SHOWN_CHARS = 1200


def mapping_text(work: Work) -> str:
    """Which column was read as what, and what was left out."""
    lines = [f"  {visible(line)}" for line in work.mapping]
    lines += [f"  left out: {count} ({visible(reason)})" for reason, count in sorted(work.skipped.items())]
    return "\n".join(["Input", *lines])


def example_text(work: Work) -> str:
    """The first answer as the student sees it: rendered prompt, steps, windows."""
    encoded, plan = work.encoded[0], work.windows[0]
    candidate = encoded.candidate
    rendered = prompts.render(work.tokenizer, candidate.prompt).text
    lines = [f"Example: answer {candidate.id} of {visible(candidate.teacher)}", "  rendered prompt:"]
    lines += [f"    {visible(line)}" for line in _cut(rendered).split("\n")]
    lines.append(f"  {encoded.n_steps} steps ({work.segmenter.name}), {len(encoded.tokens)} tokens:")
    spans = list(zip(encoded.char_starts, encoded.char_ends, strict=True))[:_SHOWN_STEPS]
    lines += [f"    {i:>3}  {candidate.response[a:b]!r}" for i, (a, b) in enumerate(spans, 1)]
    if encoded.n_steps > _SHOWN_STEPS:
        lines.append(f"    … and {encoded.n_steps - _SHOWN_STEPS} more")
    lines.append(f"  windows ({work.context.name}), each after the prompt's {len(encoded.prompt_tokens)} tokens:")
    for window in plan.windows[:_SHOWN_STEPS]:
        kind = "ordinary pass" if window.ordinary else "local window"
        lines.append(
            f"    {kind}: reads steps {window.first + 1}–{window.end}, scores {window.scored + 1}–{window.end}, "
            f"{window_tokens(encoded, window)} tokens"
        )
    if len(plan.windows) > _SHOWN_STEPS:
        lines.append(f"    … and {len(plan.windows) - _SHOWN_STEPS} more")
    return "\n".join(lines)


def plan_text(work: Work) -> str:
    """Sizes of the work: answers, tokens, padding, programs."""
    plan = work.plan
    n_prompts = len({encoded.candidate.prompt.id for encoded in work.encoded})
    share = plan.useful_tokens / max(1, plan.computed_tokens)
    n_windows = sum(len(windows.windows) for windows in work.windows)
    return "\n".join([
        "Plan",
        f"  {len(work.encoded):,} answers to {n_prompts:,} prompts, {n_windows:,} windows",
        f"  {plan.computed_tokens:,} tokens computed, {share:.1%} of them useful; {plan.scored_tokens:,} scored",
        f"  {len(plan.batches):,} batches, {len(plan.shapes)} compiled programs; {work.flops:.3g} FLOPs",
    ])  # fmt: skip


def cost_text(work: Work) -> str:
    """A rough time, from the rate of a matrix product on this machine; no weights are loaded for it."""
    rate = _matmul_rate(work.options.dtype)
    seconds = work.flops / (rate * work.mesh.size)
    return (
        f"  about {_duration(seconds)} on {work.mesh.size} device(s) at the {rate / 1e9:,.0f} GFLOP/s each that a "
        "matrix product reaches here; compilation comes on top"
    )


def _matmul_rate(dtype: str) -> float:
    """FLOP/s of a 1,024³ product on one device: the best of three."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((1024, 1024), jnp.dtype(dtype))
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        product(matrix).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / float(np.min(times))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + " …"
