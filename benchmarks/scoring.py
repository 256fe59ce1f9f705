"""LocalLP of one long answer: this package beside the loop over windows that a user of transformers would write.

Both sides score the same windows with the same weights, a random student of the shape of Qwen2.5-0.5B, in one
run and in turns, so that whatever else the machine does falls on both:

    python benchmarks/scoring.py                          96 steps after 160 tokens, k = 4
    python benchmarks/scoring.py --steps 24 --ordinary    fewer steps; also the pass over the whole answer

The rival computes in batches of windows of like length, prompt and all, under `torch.inference_mode`, with fused
attention, and its head on scored tokens only. A rate is scored tokens per second, preparation included.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib.metadata
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lalp_jax.data.batches import StepSums, lay_out, sum_keys
from lalp_jax.data.plan import TOKENS_PER_BATCH, Plan, plan_pool
from lalp_jax.data.records import Candidate, Encoded, Prompt
from lalp_jax.data.windows import Context, Window, WindowPlan, plan_windows, step_start, window_tokens

QWEN2_5_0_5B: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_layers": 24,
    "num_heads": 14,
    "num_kv_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": None,
    "tie_embeddings": True,
    "attention_bias": True,
    "output_bias": False,
    "qk_norm": False,
    "sliding_window": None,
    "sliding_layers": (False,) * 24,
    "max_positions": 32768,
    "eos_token_ids": (151645,),
    "stored_dtype": "float32",
}
"""Fields of `StudentConfig`, as the config.json of that model has them."""


@dataclasses.dataclass(frozen=True)
class Work:
    """One answer, its windows, and the schedule of our side.

    Attributes:
      subset: the windows that the rival computes, evenly spread over the answer.
    """

    encoded: Encoded
    windows: WindowPlan
    plan: Plan
    subset: tuple[Window, ...]


@dataclasses.dataclass
class Side:
    """One way to compute: `run` gives values; the rest is filled by measuring.

    Attributes:
      scored: tokens that one run scores.
      seconds: of each warm run.
      values: nats per token, mean over each step, by (ordinary, step).
      cold: seconds of the first run of a program that is compiled; NaN where nothing is.
      peak: largest resident set of this process after the first run, all that ran before included, GiB.
    """

    name: str
    run: Callable[[], dict[tuple[bool, int], float]]
    scored: int
    cold: float = math.nan
    seconds: list[float] = dataclasses.field(default_factory=list)
    values: dict[tuple[bool, int], float] = dataclasses.field(default_factory=dict)
    peak: float = math.nan

    def compile(self) -> None:
        """The first run, compilation included."""
        self.cold = self._timed()

    def measure(self) -> None:
        """One warm run."""
        self.seconds.append(self._timed())

    def _timed(self) -> float:
        start = time.perf_counter()
        self.values = self.run()
        seconds = time.perf_counter() - start
        print(f"{self.name}: {seconds:.1f} s", file=sys.stderr)
        if math.isnan(self.peak):
            self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return seconds

    def rate(self, pick: Callable[[Sequence[float]], float]) -> float:
        """Scored tokens per second at the picked time."""
        return self.scored / pick(self.seconds)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=160, help="tokens of the prompt (default %(default)s)")
    parser.add_argument("--steps", type=int, default=96, help="steps of 16 to 32 tokens (default %(default)s)")
    parser.add_argument("--k", type=int, default=4, help="steps of context (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="warm runs of each side (default %(default)s)")
    parser.add_argument("--ordinary", action="store_true", help="also the ordinary pass over the whole answer")
    parser.add_argument("--seed", type=int, default=0, help="of weights, lengths and ids (default %(default)s)")
    parser.add_argument("--tokens-per-batch", type=int, default=TOKENS_PER_BATCH, help="ours (default %(default)s)")
    parser.add_argument(
        "--torch-batch", type=int, default=8, help="windows that torch takes at once (default %(default)s)"
    )
    parser.add_argument(
        "--torch-windows", type=int, default=0, help="torch computes so many windows, evenly spread (default: all)"
    )
    return parser.parse_args()


def make_work(options: argparse.Namespace, attention: float) -> Work:
    """Random ids in steps of random lengths, and the plans.

    Args:
      attention: see `plan_pool`.
    """
    rng = np.random.default_rng(options.seed)
    ends = np.cumsum(rng.integers(16, 33, options.steps)).astype(np.int32)
    ids = rng.integers(0, QWEN2_5_0_5B["vocab_size"], options.prompt + int(ends[-1])).astype(np.int32)
    candidate = Candidate("answer", Prompt("prompt", ()), "teacher", "")
    # Characters play no part in scoring.
    encoded = Encoded(candidate, ids[: options.prompt], ids[options.prompt :], ends, ends, ends)
    windows = plan_windows(encoded, Context(options.k), local=True, ordinary=options.ordinary, max_positions=32768)
    plan = plan_pool([encoded], [windows], tokens_per_batch=options.tokens_per_batch, attention=attention)
    total = len(windows.windows)
    chosen = np.unique(np.linspace(0, total - 1, min(options.torch_windows or total, total)).round().astype(int))
    return Work(encoded, windows, plan, tuple(windows.windows[i] for i in chosen))


def scored_tokens(encoded: Encoded, windows: Sequence[Window]) -> int:
    """Tokens that windows score."""
    return sum(window_tokens(encoded, w._replace(first=w.scored)) for w in windows)


def step_means(encoded: Encoded, window: Window, logprobs: np.ndarray) -> dict[tuple[bool, int], float]:
    """Mean per scored step of a window from the log-probabilities of its scored tokens."""
    ends = encoded.token_ends[window.scored : window.end] - step_start(encoded.token_ends, window.scored)
    starts = [0, *ends[:-1]]
    return {
        (window.ordinary, window.scored + i): float(logprobs[a:b].mean())
        for i, (a, b) in enumerate(zip(starts, ends, strict=True))
    }


def write_student(directory: str, seed: int) -> None:
    """Draws the student and saves it; in a process of its own, so that its memory is not on our account."""
    from lalp_jax.student.config import StudentConfig
    from lalp_jax.student.hf import init_student, save_student

    save_student(init_student(StudentConfig(**QWEN2_5_0_5B), seed, "float32"), directory)


def our_side(work: Work, directory: str) -> Side:
    """This package, float32."""
    import jax

    from lalp_jax.scoring.local import score_batch
    from lalp_jax.scoring.scorer import result_rows
    from lalp_jax.student.hf import load_student

    student = load_student(directory, dtype="float32")
    rows = result_rows(work.plan, 1)
    counts = np.diff(work.encoded.token_ends, prepend=0)

    def run() -> dict[tuple[bool, int], float]:
        sums = StepSums([work.encoded], [work.windows])
        flight = []
        for batch in work.plan.batches:
            arrays = jax.device_put(lay_out(batch, [work.encoded], 1))
            result = score_batch(student.params, arrays, graphdef=student.graphdef, n_sums=rows[batch.shape])
            flight.append((sum_keys(batch, 1), result))
        for keys, result in flight:
            sums.put(keys.candidate, keys.step, keys.ordinary, np.asarray(result)[keys.shard, keys.row])
        kinds, steps = np.nonzero(sums.known)
        return {(bool(o), int(s)): float(sums.values[o, s] / counts[s]) for o, s in zip(kinds, steps, strict=True)}

    return Side("ours, float32", run, work.plan.scored_tokens)


def torch_side(work: Work, directory: str, dtype: str, batch: int) -> Side:
    """transformers on torch: windows of like length together, each with the prompt; head on scored tokens."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    encoded = work.encoded
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).eval()
    ordered = sorted(work.subset, key=lambda w: window_tokens(encoded, w))

    def score(windows: Sequence[Window]) -> dict[tuple[bool, int], float]:
        texts = []
        for w in windows:
            start = step_start(encoded.token_ends, w.first)
            end = int(encoded.token_ends[w.end - 1])
            texts.append(np.concatenate([encoded.prompt_tokens, encoded.tokens[start:end]]))
        ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = text  # padding on the right: under a causal mask nothing ahead of it sees it
        counts = [window_tokens(encoded, w._replace(first=w.scored)) for w in windows]
        at = [range(len(t) - count, len(t)) for t, count in zip(texts, counts, strict=True)]
        where = torch.tensor(np.array([(r, c) for r, columns in enumerate(at) for c in columns]).T)
        tokens = torch.from_numpy(ids)
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[where[0], where[1] - 1]).float()
        chosen = logits.gather(1, tokens[where[0], where[1]][:, None])[:, 0] - logits.logsumexp(1)
        parts = np.split(chosen.numpy(), np.cumsum(counts)[:-1])
        means: dict[tuple[bool, int], float] = {}
        for window, part in zip(windows, parts, strict=True):
            means |= step_means(encoded, window, part)
        return means

    def run() -> dict[tuple[bool, int], float]:
        means: dict[tuple[bool, int], float] = {}
        with torch.inference_mode():
            for i in range(0, len(ordered), batch):
                means |= score(ordered[i : i + batch])
        return means

    return Side(f"torch, {dtype}", run, scored_tokens(encoded, ordered))


def predicted_ratios(work: Work, body: int, head: int, attention: float) -> tuple[float, float]:
    """What the loop costs over what we compute, in tokens through the body and in FLOPs.

    Attention is taken as over half of a text's own keys and all of the prompt's.
    """
    n_prompt = len(work.encoded.prompt_tokens)
    sizes = [window_tokens(work.encoded, w) for w in work.windows.windows]
    loop = sum(n_prompt + size for size in sizes)
    ours = n_prompt + sum(sizes)
    heads = work.plan.scored_tokens * head

    def cost(size: int, before: int) -> float:
        return size * body * (1 + attention * (before + size / 2))

    flops_loop = sum(cost(n_prompt + size, 0) for size in sizes) + heads
    flops_ours = cost(n_prompt, 0) + sum(cost(size, n_prompt) for size in sizes) + heads
    return loop / ours, flops_loop / flops_ours


def report(work: Work, ours: Side, rivals: Sequence[Side], programs: int, ratios: tuple[float, float]) -> None:
    """Prints everything."""
    plan = work.plan
    print(f"answer: {len(work.encoded.prompt_tokens)} prompt tokens, ", end="")
    print(f"{len(work.encoded.tokens)} response tokens, ", end="")
    print(f"{work.encoded.n_steps} steps, {len(work.windows.windows)} windows, {plan.scored_tokens} scored tokens")
    print(f"torch computes {len(work.subset)} of {len(work.windows.windows)} windows; rates are per scored token")
    print(f"useful tokens: {plan.useful_tokens / plan.computed_tokens:.1%} of {plan.computed_tokens} computed")
    print(f"compilations: {programs}, for shapes {[dataclasses.astuple(s) for s in plan.shapes]} (P, N, W, G)\n")
    print("| side | first run, s | warm, s (min / median) | scored/s (best / median) | peak resident so far, GiB |")
    print("|---|---|---|---|---|")
    for side in (ours, *rivals):
        low, middle = min(side.seconds), statistics.median(side.seconds)
        rates = f"{side.rate(min):.1f} / {side.rate(statistics.median):.1f}"
        cold = "-" if math.isnan(side.cold) else f"{side.cold:.1f}"
        print(f"| {side.name} | {cold} | {low:.1f} / {middle:.1f} | {rates} | {side.peak:.2f} |")
    print(f"\npredicted: {ratios[0]:.2f} times fewer tokens through the body, {ratios[1]:.2f} times fewer FLOPs")
    for side in rivals:
        best, middle = (ours.rate(pick) / side.rate(pick) for pick in (min, statistics.median))
        far = max(abs(ours.values[key] - value) for key, value in side.values.items())
        print(f"ours / {side.name}: {best:.2f} (best), {middle:.2f} (median); ", end="")
        print(f"largest difference of a step's mean {far:.1e} nats over {len(side.values)} steps")


def main() -> None:
    """Measures and prints."""
    options = arguments()
    with tempfile.TemporaryDirectory() as directory:
        own = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=own) as child:
            child.submit(write_student, directory, options.seed).result()
        from lalp_jax.scoring.local import score_batch
        from lalp_jax.student.config import body_flops_per_token, head_flops_per_token, read_config

        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch", "transformers")]
        print(f"{', '.join(versions)}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} at the start")
        config = read_config(directory)
        body, head = body_flops_per_token(config), head_flops_per_token(config)
        attention = 4 * config.num_layers * config.num_heads * config.head_dim / body
        work = make_work(options, attention)
        ours = our_side(work, directory)
        ours.compile()
        rivals = [torch_side(work, directory, dtype, options.torch_batch) for dtype in ("float32", "bfloat16")]
        for _ in range(options.repeats):
            for side in (ours, *rivals):
                side.measure()
        programs = score_batch._cache_size()  # type: ignore[attr-defined]
        report(work, ours, rivals, programs, predicted_ratios(work, body, head, attention))
        print(f"load {os.getloadavg()[0]:.2f} at the end")


if __name__ == "__main__":
    main()
