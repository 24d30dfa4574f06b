"""A capture in the workers' hands: look at it, wait for it, cancel it."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TextIO

from actstore._errors import ActstoreError, Cancelled, Fault, SaeWarning, Unavailable
from actstore._records import CaptureProgress, DatasetFiles
from actstore._runs.run import Run
from actstore._transport.base import Backend

BAR_CHARACTERS = 24
# A watch that breaks off is taken up again; so many times in a row without any news.
RECONNECTS = 5
RECONNECT_PAUSE_SECONDS = 1.0


class Capture:
    """Goes on by itself in the workers, whether or not anyone watches."""

    def __init__(self, run_name: str, backend: Backend) -> None:
        self.run_name = run_name
        # Of the dataset, as the last news told.
        self.dataset_files = DatasetFiles()
        self._backend = backend

    def __repr__(self) -> str:
        return f"Capture of run {self.run_name}: .wait() for it, .progress() to look, .cancel() to stop it"

    def progress(self) -> Iterator[CaptureProgress]:
        """News at each commit and at least every few seconds, to the end. Raises the capture's error if it failed."""
        left = RECONNECTS
        while True:
            try:
                for news in self._backend.watch_capture(self.run_name):
                    left = RECONNECTS
                    self.dataset_files = news.dataset_files
                    yield news
                    if news.ended:
                        return
                raise Fault(f"the service stopped telling about the capture of {self.run_name} before its end")
            except Unavailable:
                if not left:
                    raise
                left -= 1
                time.sleep(RECONNECT_PAUSE_SECONDS)

    def wait(self, progress: bool = True, check_saes: bool = True) -> Run:
        """The finished run. Draws a bar on stderr where that is a terminal; Ctrl-C leaves the capture running.

        Each SAE is then checked on some of the stored text, as `run.features(sae).check()` does: one that was trained
        on another site, scale or model is a SaeWarning, and so is a check that failed. `check_saes=False` does neither.
        """
        run = self._finished(progress)
        for said in sae_findings(run) if check_saes else ():
            warnings.warn(said, SaeWarning, stacklevel=2)
        return run

    def _finished(self, progress: bool) -> Run:
        bar = Bar(sys.stderr, f"capture {self.run_name}", enabled=progress)
        last = None
        try:
            for last in self.progress():
                bar.draw(last.tokens_committed, last.tokens_total, _shards(last), "tokens")
        except KeyboardInterrupt:
            sys.stderr.write(f"\n{self._left_running()}\n")
            raise
        finally:
            bar.close()
        if last is not None and last.state == "cancelled":
            raise Cancelled(f"the capture of run {self.run_name} was cancelled", reason="CANCELLED")
        return Run(self._backend.get_run(self.run_name), self._backend)

    def cancel(self) -> CaptureProgress:
        """Stops within seconds. Committed shards stay readable, and the same capture again goes on from there."""
        return self._backend.cancel_capture(self.run_name)

    def _left_running(self) -> str:
        return (
            f"the capture of run {self.run_name} goes on without you; "
            f"`actstore cancel {self.run_name}` or `lab.attach({self.run_name!r}).cancel()` stops it"
        )


def sae_findings(run: Run) -> Iterator[str]:
    """What looks wrong with the SAEs of a run, a message an SAE; its features are stored either way."""
    for attachment in run.saes:
        try:
            found = run.features(attachment.name).check(warn=False).warnings
        except ActstoreError as error:
            found = (f"it was not checked: {error.message}",)
        if found:
            yield "\n  ".join([f"the SAE {attachment.name} may not be right for {run.specification.model}:", *found])


def _shards(news: CaptureProgress) -> str:
    if not news.shards_total:
        return news.state
    failed = f", {len(news.failed_shards)} failed" if news.failed_shards else ""
    paused = f", paused: {news.failure}" if news.state == "paused" else ""
    left_out = f", {news.dataset_files.not_read:,} files not read" if news.dataset_files.not_read else ""
    return f"{news.shards_committed}/{news.shards_total} shards{failed}{paused}{left_out}"


class Bar:
    """One line that redraws itself; silent where the stream is no terminal."""

    def __init__(
        self, stream: TextIO, title: str, *, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._title = title
        self._drawn = False
        self._enabled = enabled and stream.isatty()
        self._clock = clock
        self._first: tuple[float, int] | None = None

    def draw(self, done: int, total: int, detail: str, unit: str) -> None:
        if not self._enabled:
            return
        filled = BAR_CHARACTERS * done // total if total else 0
        bar = "█" * filled + "░" * (BAR_CHARACTERS - filled)
        share = f"{done / total:4.0%}" if total else "    "
        line = f"{self._title} {bar} {share} · {detail} · {done:,}/{total:,} {unit}{self._pace(done, total, unit)}"
        self._stream.write(f"\r{line}\x1b[K")
        self._stream.flush()
        self._drawn = True

    def close(self) -> None:
        if self._drawn:
            self._stream.write("\n")
            self._drawn = False

    def _pace(self, done: int, total: int, unit: str) -> str:
        """Since the first drawing: what was done before someone looked says nothing about the pace now."""
        now = self._clock()
        if self._first is None:
            self._first = now, done
        elapsed_seconds, gained = now - self._first[0], done - self._first[1]
        if gained <= 0 or elapsed_seconds <= 0:
            return ""
        rate = gained / elapsed_seconds
        return f" · {rate:,.0f} {unit}/s · {duration((total - done) / rate)} left"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
