"""The progress of a capture in words, or the error that it failed with."""

import time
from collections.abc import Iterator

from actstore._errors import Denied, Fault, Unavailable, error_of
from actstore._transport.base import Backend
from actstore._view.bar import duration
from actstore_api.reasons import known_reason
from actstore_api.records.capture import CaptureProgress, QueuePlace, WatchCapture
from actstore_api.records.terms import Failure


def watch(backend: Backend, run: str) -> Iterator[CaptureProgress]:
    """News of a capture to its end, taken up again where the watch breaks off. Raises the capture's error."""
    left = backend.retries.watch_attempts
    last = None
    while last is None or not last.ended:
        told = False
        try:
            # To the end of the stream, as one that is left before counts as cancelled in the service's metrics.
            for update in backend.listen(WatchCapture(run)):
                left, last, told = backend.retries.watch_attempts, update.progress, True
                if not last.ended:
                    yield last
            if last is None or not last.ended:
                raise Fault(f"the service stopped telling about the capture of {run} before its end")
        except Denied as error:
            # The token that this stream began with has expired, and the one of now may have been renewed.
            if not told or error.reason != "UNAUTHENTICATED":
                raise
        except Unavailable:
            if not left:
                raise
            left -= 1
            time.sleep(backend.retries.watch_pause_seconds)
    yield unless_failed(last)


def unless_failed(news: CaptureProgress) -> CaptureProgress:
    """`news`, unless the capture failed: then raises its error, with the cause of each failed shard."""
    if news.state != "failed":
        return news
    failed = news.failure or Failure("INTERNAL", f"the capture of run {news.run} failed, and the workers gave no cause")
    causes = "".join(f"\n  shard {found.shard}: {found.failure.message}" for found in news.failed_shards)
    text = f"{failed.message}; all other shards are committed{causes}" if causes else failed.message
    raise error_of(Failure(known_reason(failed.reason), text, failed.details))


def shards_in_words(news: CaptureProgress) -> str:
    """How many of all shards are committed, what failed, paused or was left out, what they wait for, or the place in
    the queue.
    """
    if news.queue is not None:
        return queue_in_words(news.queue)
    if not news.shards_total:
        return news.state
    failed = f", {len(news.failed_shards)} failed" if news.failed_shards else ""
    cause = f": {news.failure.message}" if news.failure else ""
    paused = f", paused{cause}" if news.state == "paused" else ""
    left_out = f", {news.dataset_files.not_read:,} files not read" if news.dataset_files.not_read else ""
    waits = f", waits for {news.waits_for}" if news.waits_for else ""
    return f"{news.shards_committed}/{news.shards_total} shards{failed}{paused}{left_out}{waits}"


def queue_in_words(place: QueuePlace) -> str:
    """The place in the queue, and when the capture starts, if that is known."""
    ahead = f", {place.captures_ahead} of yours before it" if place.captures_ahead else ""
    seconds = place.expected_start_seconds
    start = "" if seconds is None else f", starts in about {duration(seconds)}"
    return f"{place.position}. in the queue{ahead}{start}"
