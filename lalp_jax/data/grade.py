"""Whether an answer's final result equals the gold one: math-verify in processes that can be killed.

Answers are untrusted text, and computer algebra on it may never end (a tower of powers, a factorial of a
factorial). A signal cannot interrupt that reliably and works on the main thread alone; the end of a process
does and works anywhere. So math-verify runs with its own timeouts off, one item at a time, in a few fresh
interpreters (never forks: JAX holds threads), under our wall clock. The talk is JSON lines over pipes.
"""

import dataclasses
import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_Job = tuple[int, tuple[str, str]]  # place in the input; response and gold

_START_LIMIT_S = 120.0  # a fresh interpreter importing sympy on a busy machine
_MEMORY_LIMIT = 4 << 30  # bytes of address space of one worker
_ANSWER_LIMIT = 200  # characters of the read answer that a verdict carries
# The worker sees the modules its parent sees; -P below, because the working directory may hold a select.py.
_BOOT = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {__name__} import work; work()"

_LAST_LINE = re.compile(r"^[ \t]*(?:####|A:)[ \t]*\S.*$", re.MULTILINE)
_BOX = re.compile(r"\\boxed")
_JOINER = re.compile(r"[\s$,;]*(?:,|;|and|or|和|或)[\s$]*(?:[A-Za-z]\w*\s*=\s*)?")
_MATH_MARK = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[")
_LETTER = re.compile(r"\(?([A-J])\)?\.?")
_CHOICE = re.compile(r"\(([A-J])\)")


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What the grader says of one answer.

    Attributes:
      correct: whether the final result equals the gold one; None where that could not be judged.
      reason: why it could not be judged, or why it is wrong without a comparison ("no final answer").
      answer: the final result as it was read from the response (its first 200 characters), if one was found.
    """

    correct: bool | None
    reason: str | None = None
    answer: str | None = None


def grade(answers: Sequence[tuple[str, str]], *, workers: int, timeout_s: float) -> list[Verdict]:
    """Grades answers against their gold answers.

    Args:
      answers: pairs of response and gold answer. Of a response only what follows the last ``</think>``
        counts, and there its last ``\\boxed{…}`` (boxes joined by "and", "or" or a comma are one set), else
        its last line ``A: …`` or ``#### …``, else the last result that math-verify finds.
      workers: most processes at once.
      timeout_s: wall clock of one answer, in seconds; beyond it the verdict is None, "timed out".

    Returns:
      A verdict for each pair, in order, within ``len(answers) * timeout_s / workers`` and start-up.

    Raises:
      RuntimeError: a worker cannot start.
    """
    verdicts: list[Verdict | None] = [None] * len(answers)
    todo = deque(enumerate(answers))
    crew = [_Worker(timeout_s) for _ in range(min(workers, len(answers)))]
    with ThreadPoolExecutor(max(1, len(crew))) as pool:
        try:
            for future in [pool.submit(_serve, worker, todo, verdicts) for worker in crew]:
                future.result()
        finally:  # after an error or an interrupt: nothing left to do, nobody left to wait for
            todo.clear()
            for worker in crew:
                worker.kill()
    return [verdict for verdict in verdicts if verdict is not None]


def _serve(worker: "_Worker", todo: deque[_Job], verdicts: list[Verdict | None]) -> None:
    """Takes jobs until none is left; a deque is safe between threads, its length is not."""
    try:
        while True:
            try:
                index, (response, gold) = todo.popleft()
            except IndexError:
                return
            verdicts[index] = worker.judge(response, gold)
    finally:
        worker.close()


class _Worker:
    """One grading process: started at its first item, replaced after it died or was killed."""

    def __init__(self, timeout_s: float):
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def judge(self, response: str, gold: str) -> Verdict:
        """The verdict on one answer; never later than the wall clock."""
        process = self._process or self._start()
        line, late = _ask(process, {"response": response, "gold": gold}, self._timeout_s)
        if late or not line.endswith(b"\n"):
            self.close()
        if line.endswith(b"\n"):
            return Verdict(**json.loads(line))
        return Verdict(None, "timed out" if late else "the grading process died")

    def kill(self) -> None:
        """Ends the process from another thread: whoever waits for its reply sees the pipe end."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Ends the process and gives back its pipes."""
        self.kill()
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path), str(self._timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        line, _ = _ask(self._process, {}, _START_LIMIT_S)
        if line != b"{}\n":
            self.close()
            raise RuntimeError(f"the grading process did not start: {line.decode(errors='replace').strip()}")
        return self._process


def _ask(process: subprocess.Popen[bytes], item: dict[str, str], timeout_s: float) -> tuple[bytes, bool]:
    """Sends a line and waits for one. Returns it (cut short by a death) and whether we killed the process."""
    late = threading.Event()

    def expire() -> None:
        late.set()
        process.kill()  # the reader below then sees the end of the pipe

    assert process.stdin is not None
    assert process.stdout is not None
    clock = threading.Timer(timeout_s, expire)
    clock.start()
    try:
        process.stdin.write(json.dumps(item).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except (BrokenPipeError, ValueError):  # it died, or was closed by another thread, while we wrote
        line = b""
    finally:
        clock.cancel()
        clock.join()
    return line, late.is_set()


def _final_part(response: str) -> str:
    """The part of a response that states its result: after the thinking, and its last marked line."""
    text = response.rpartition("</think>")[2]
    boxes = [match.start() for match in _BOX.finditer(text)]
    if boxes:
        # math-verify also takes "\boxed{5}. No, wait: \boxed{26}" for one set, because of the comma.
        breaks = [at for at in boxes[1:] if not _JOINER.fullmatch(text, text.rfind("}", 0, at) + 1, at)]
        return text[breaks[-1] :] if breaks else text
    lines = _LAST_LINE.findall(text)
    return lines[-1] if lines else text


@functools.lru_cache(maxsize=1024)
def _parse_gold(gold: str) -> list[Any]:
    """Gold in math-verify's terms: bare LaTeX is put between dollars, a letter may also come as text."""
    from math_verify import parse

    letter = _LETTER.fullmatch(gold)
    if letter:
        forms = [f"${letter[1]}$", f"$\\text{{{letter[1]}}}$"]
    else:
        forms = [gold if _MATH_MARK.search(gold) else f"${gold}$"]
    return [value for form in forms for value in parse(form, parsing_timeout=None, raise_on_error=True)]


def _parse_response(response: str, gold: str) -> list[Any]:
    """The final result of a response, as math-verify reads it: a value and its text, or nothing."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse

    text = _final_part(response)
    kinds = [LatexExtractionConfig(), ExprExtractionConfig()]
    if _LETTER.fullmatch(gold):  # a multiple choice: "The answer is (B)" has a letter and no mathematics
        kinds.append(StringExtractionConfig(strings=tuple("ABCDEFGHIJ")))
        text = _CHOICE.sub(r" \1 ", text)
    return parse(text, kinds, parsing_timeout=None, raise_on_error=True)


def _judge(response: str, gold: str) -> Verdict:
    """Parses and compares both; runs in the worker only."""
    from math_verify import verify

    gold = gold.strip()
    try:
        wanted = _parse_gold(gold)
    except Exception as error:  # whatever computer algebra raises on free text
        return Verdict(None, f"gold not parsable: {type(error).__name__}")
    if not wanted:
        return Verdict(None, "gold not parsable")
    try:
        found = _parse_response(response, gold)
        answer = next((value for value in found if isinstance(value, str)), None)
        if not found:
            return Verdict(False, "no final answer")
        correct = bool(verify(wanted, found, timeout_seconds=None))
        return Verdict(correct, None, answer and answer[:_ANSWER_LIMIT])
    except Exception as error:
        return Verdict(None, f"answer not comparable: {type(error).__name__}")


def _limit_memory() -> None:
    """Keeps a hostile answer from taking the machine's memory; only Linux enforces this limit."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))


def _arm(seconds: float) -> None:
    """An alarm without a handler ends the process: a worker that lost its parent must not compute on."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def work() -> None:
    """The life of a worker (started by `_BOOT`): a line in, a line out, until the parent closes the pipe."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the replies
    timeout_s = float(sys.argv[2])
    _limit_memory()
    logging.disable()
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        replies.write(str(error).encode())
        return
    for line in sys.stdin.buffer:
        item = json.loads(line)
        _arm(2 * timeout_s + 1)  # the parent's clock comes first
        reply = dataclasses.asdict(_judge(**item)) if item else {}
        _arm(0)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()
