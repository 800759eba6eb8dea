"""The Ray actor around the safety classifier."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import Counter, Histogram

from actors.classifier import SafetyClassifier
from actors.member import FleetMember, Post
from configs.safety import SafetyConfig

QUERIES = Counter("selfplay_safety_queries_total", "Queries read by this safety classifier.")
REJECTED = Counter(
    "selfplay_safety_rejected_total",
    "Queries this safety classifier rejected, by label (undecided: NaN probabilities).",
    ["label"],
)
SECONDS = Histogram(
    "selfplay_safety_call_seconds",
    "Time to classify the queries of one call, its wait behind other calls left out.",
    buckets=(0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600),
)


class ClassifierActor(FleetMember):
    """A safety classifier as a Ray actor; `ray.remote(ClassifierActor)` makes it one."""

    def __init__(self, safety: SafetyConfig, *, post: Post) -> None:
        """Load the classifier; see `SafetyClassifier`.

        Args:
            safety: The section `gate.safety`.
            post: Who it is, and where its metrics and its log go.
        """
        super().__init__(post)
        # One thread for all: calls queue up here, and the model works on one of them at a time.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=post.name)
        device = "cuda" if safety.fleet.gpus > 0 else "cpu"
        self._classifier = self._thread.submit(SafetyClassifier, safety, device).result()

    async def classify(self, texts: list[str]) -> list[str | None]:
        """Return the label that each text is rejected for, None where it is safe."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._classify, texts)

    async def stop(self) -> None:
        """End the thread; what waits for it fails."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def _classify(self, texts: list[str]) -> list[str | None]:
        with SECONDS.time():
            labels = self._classifier.classify(texts)
        QUERIES.inc(len(texts))
        for label in filter(None, labels):
            REJECTED.labels(label).inc()
        return labels
