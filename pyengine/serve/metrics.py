"""Counts of the server in Prometheus' text format: requests, tokens, pages, times."""

import resource
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from .worker import Worker

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


def resident() -> int:
    """Bytes of memory that this process holds now; where the system does not say, the most it ever held."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Histogram:
    """How many observations were at most each of BOUNDS."""

    def __init__(self):
        self.counts, self.sum, self.count = [0] * len(BOUNDS), 0.0, 0

    def observe(self, seconds: float) -> None:
        self.sum, self.count = self.sum + seconds, self.count + 1
        self.counts = [n + (seconds <= bound) for n, bound in zip(self.counts, BOUNDS, strict=True)]


class Metrics:
    """What the routes count; `text` adds the engine's own numbers."""

    def __init__(self):
        self.responses: Counter[tuple[str, int]] = Counter()  # by path and status
        self.finished: Counter[str] = Counter()  # by reason
        self.prompt_tokens = self.generated_tokens = 0
        self.first_token, self.whole = Histogram(), Histogram()

    def text(self, worker: Worker) -> str:
        """The page that Prometheus reads."""
        stats, lines = worker.engine.stats, list[str]()

        def add(name: str, kind: str, about: str, values: Mapping[str, float]) -> None:
            lines.extend((f"# HELP pyengine_{name} {about}", f"# TYPE pyengine_{name} {kind}"))
            lines.extend(f"pyengine_{name}{labels} {value}" for labels, value in values.items())

        responses = {
            f'{{path="{path}",status="{status}"}}': n for (path, status), n in self.responses.items()
        }
        add("responses_total", "counter", "Responses by path and status.", responses)
        reasons = {f'{{reason="{reason}"}}': n for reason, n in self.finished.items()}
        add("answers_total", "counter", "Answers by why they ended.", reasons)
        for name, value, about in (
            ("prompt_tokens_total", self.prompt_tokens, "Tokens of prompts."),
            ("generated_tokens_total", self.generated_tokens, "Tokens of answers."),
            ("engine_steps_total", stats.steps, "Steps of the engine."),
            ("engine_computed_tokens_total", stats.computed, "Tokens that went through the model."),
            ("engine_cached_tokens_total", stats.cached, "Tokens found in the cache instead."),
            ("engine_preemptions_total", stats.preemptions, "Requests that gave up their pages for a while."),
            ("engine_seconds_total", stats.seconds, "Seconds inside steps."),
        ):
            add(name, "counter", about, {"": value})
        engine = worker.engine
        for name, value, about in (
            ("requests_running", engine.running, "Answers being written."),
            ("requests_unfinished", worker.unfinished, "Answers asked for and not finished."),
            ("pages", engine.pages, "Pages of the key-value cache."),
            ("pages_held", engine.pages_held, "Pages that unfinished answers hold."),
            ("memory_bytes", resident(), "Memory of the process."),
            ("kv_bytes_per_token", engine.bytes_per_token, "Memory of a token's keys and values."),
        ):
            add(name, "gauge", about, {"": value})
        for name, histogram, about in (
            ("first_token_seconds", self.first_token, "From a request to its first token."),
            ("answer_seconds", self.whole, "From a request to its end."),
        ):
            buckets = {
                f'_bucket{{le="{bound:g}"}}': n for bound, n in zip(BOUNDS, histogram.counts, strict=True)
            }
            buckets['_bucket{le="+Inf"}'] = histogram.count
            add(name, "histogram", about, {**buckets, "_sum": histogram.sum, "_count": histogram.count})
        return "\n".join(lines) + "\n"
