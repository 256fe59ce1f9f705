"""What scoring works on, from settings to scored answers: the part that `score` and `select` share."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from etils import epath

from lalp_jax.commands.options import ScoreOptions
from lalp_jax.data import pipeline, prompts
from lalp_jax.data import plan as planning
from lalp_jax.data.batches import StepSums
from lalp_jax.data.plan import Plan
from lalp_jax.data.pool import read_pool
from lalp_jax.data.records import Encoded, Pool
from lalp_jax.data.steps import Segmenter, parse_segmenter
from lalp_jax.data.tokens import Tokenizer, load_tokenizer
from lalp_jax.data.windows import Context, WindowPlan, plan_windows
from lalp_jax.errors import InputError
from lalp_jax.mini import pool as mini
from lalp_jax.scoring.results import ScoredAnswer, score_answers
from lalp_jax.scoring.signals import Signal, signals_of
from lalp_jax.student.config import StudentConfig, body_flops_per_token, head_flops_per_token, read_config

SCORING_VERSION = 1  # raised whenever the same input would get other values: old ones are then not reused
MINI_OUT = "runs/mini"


@dataclasses.dataclass(frozen=True)
class Work:
    """A pool in the student's tokens, with the schedule of its scoring.

    Attributes:
      skipped: answers that were not taken up, by reason; `pool` has one candidate for each of the others.
      attention: FLOPs of attending to one key, as a share of a token's other FLOPs.
    """

    options: ScoreOptions
    out: epath.Path
    student_dir: epath.Path
    config: StudentConfig
    tokenizer: Tokenizer
    segmenter: Segmenter
    context: Context
    signals: tuple[Signal, ...]
    mapping: tuple[str, ...]
    skipped: Counter[str]
    encoded: tuple[Encoded, ...]
    windows: tuple[WindowPlan, ...]
    plan: Plan
    mesh: Any
    attention: float

    @property
    def flops(self) -> float:
        """Floating-point operations of the plan, padding included; attention over whole rows."""
        shapes = [batch.shape for batch in self.plan.batches]
        keys = sum(
            s.groups * (s.prompt**2 + s.slots * s.window * (s.prompt + s.window)) for s in shapes
        ) * _parts(self.mesh)
        body = body_flops_per_token(self.config) * (self.plan.computed_tokens + self.attention * keys)
        return body + head_flops_per_token(self.config) * self.plan.scored_tokens

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """All that a value depends on beside the answer itself."""
        from lalp_jax.student.hf import fingerprint

        return {
            "version": SCORING_VERSION,
            "student": fingerprint(self.student_dir),
            "tokenizer": self.tokenizer.fingerprint,
            "template": prompts.template_hash(self.tokenizer),
            "rendered": prompts.rendered_hash(self.tokenizer),
            "segmenter": self.segmenter.name,
            "context": self.context.name,
            "dtype": self.options.dtype,
        }

    def accounting(self, answers: list[ScoredAnswer]) -> dict[str, Any]:
        """``rows in = scored + skipped, by reason``."""
        reasons = Counter(self.skipped)
        reasons.update(str(answer.reason) for answer in answers if answer.status == "skipped")
        scored = sum(answer.status == "scored" for answer in answers)
        return {"rows": scored + reasons.total(), "scored": scored, "skipped": dict(sorted(reasons.items()))}


def prepare(options: ScoreOptions, complete: Callable[[Pool], Pool] = lambda pool: pool) -> Work:
    """Reads, renders, segments, tokenises and plans. No weights are loaded.

    Args:
      complete: adds to the pool what the command needs, such as grades.
    """
    signals = signals_of(options.signals)
    segmenter = parse_segmenter(options.segmenter)
    if options.window_fraction is not None:
        context = Context(options.k, options.window_fraction)
    else:
        context = Context() if options.k is None else Context(options.k)
    student_dir, out = _student_dir(options), epath.Path(_out(options))
    config, tokenizer = read_config(student_dir), load_tokenizer(str(student_dir))
    if tokenizer.vocab_bound > config.vocab_size:
        raise InputError(
            f"the tokenizer has ids up to {tokenizer.vocab_bound - 1}, the embedding {config.vocab_size} rows",
            where=str(student_dir),
            remedy="use the tokenizer that the student was trained with",
        )
    pool = complete(_pool(options, out))
    skipped = Counter(pool.skipped)
    encoded = tuple(pipeline.encode(pool.candidates, tokenizer, segmenter, skipped))
    if not encoded:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in skipped.items())
        raise InputError(f"no answer can be scored ({reasons})", remedy="see the reasons")
    needs = {signal.needs for signal in signals}
    windows = tuple(
        plan_windows(
            e, context, local="local" in needs, ordinary="ordinary" in needs, max_positions=config.max_positions
        )
        for e in encoded
    )
    from lalp_jax.student.sharding import make_mesh

    mesh = make_mesh(options.mesh)
    attention = 4 * config.num_layers * config.num_heads * config.head_dim / body_flops_per_token(config)
    plan = planning.plan_pool(
        encoded, windows, shards=_parts(mesh), tokens_per_batch=options.tokens_per_batch, attention=attention
    )
    return Work(
        options, out, student_dir, config, tokenizer, segmenter, context, signals, pool.mapping, skipped,
        encoded, windows, plan, mesh, attention,
    )  # fmt: skip


def score(work: Work) -> list[ScoredAnswer]:
    """Computes what ``--out`` does not hold yet, and puts it there; weights are loaded only if need be."""
    from lalp_jax.data.batches import sum_keys
    from lalp_jax.scoring.scorer import score_plan
    from lalp_jax.scoring.store import PartStore
    from lalp_jax.student.hf import load_student

    store = PartStore(work.out, work.identity)
    sums = StepSums(work.encoded, work.windows)
    store.load(sums, [e.candidate.id for e in work.encoded])
    missing = [b for b in work.plan.batches if not sums.has(sum_keys(b, _parts(work.mesh)))]
    if done := len(work.plan.batches) - len(missing):
        print(f"{done} of {len(work.plan.batches)} batches are in {work.out} already")
    if missing:
        student = load_student(work.student_dir, dtype=work.options.dtype, mesh=work.mesh)
        score_plan(student, work.plan, work.encoded, sums, store, work.mesh)
    return score_answers(work.encoded, work.windows, sums, work.signals)


def _parts(mesh: Any) -> int:
    from lalp_jax.student.sharding import batch_parts

    return batch_parts(mesh)


def _is_mini(options: ScoreOptions) -> bool:
    return options.student is None and not options.teachers and options.candidates is None


def _out(options: ScoreOptions) -> str:
    if options.out is not None:
        return options.out
    if _is_mini(options):
        return MINI_OUT
    if options.dry_run:
        return "runs"
    raise InputError("no folder for the results", where="--out", remedy="name one, for instance --out runs/x")


def _student_dir(options: ScoreOptions) -> epath.Path:
    from lalp_jax.student.hf import resolve_student

    if options.student is not None:
        return resolve_student(options.student)
    if _is_mini(options):
        return epath.Path(mini.student_directory())
    raise InputError("no student", where="--student", remedy="name a folder in HF format, or a hub id")


def _pool(options: ScoreOptions, out: epath.Path) -> Pool:
    if options.teachers and options.candidates is not None:
        raise InputError("both --teachers and --candidates are given", remedy="give one of them")
    column_map = dict(_pair(item, "--map") for item in options.map)
    sources: list[tuple[str | None, str]] | str
    if options.candidates is not None:
        sources = options.candidates
    elif options.teachers:
        sources = [_named(item) for item in options.teachers]
    elif _is_mini(options):
        files = mini.write_teacher_files(out / "teachers", seed=options.seed)
        sources = [(teacher, str(path)) for teacher, path in files]
    else:
        raise InputError("no answers", where="--teachers", remedy="give --teachers NAME=SOURCE … or --candidates")
    return read_pool(
        sources, column_map=column_map, on_bad_row=options.on_bad_row, limit=options.limit, system=options.system
    )


def _named(item: str) -> tuple[str | None, str]:
    """``NAME=SOURCE``, or a source alone; what stands before ``=`` is no name if it holds a slash."""
    name, equals, source = item.partition("=")
    return (name, source) if equals and name and "/" not in name else (None, item)


def _pair(item: str, flag: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise InputError(f"cannot read {item!r}", where=flag, remedy="write FIELD=COLUMN")
    return name, value
