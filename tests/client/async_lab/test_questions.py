"""Questions in an event loop: many at once, cancelled, and under way while the lab closes."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

import actstore
from actstore import AsyncLab, BadRequest, Cancelled, NotFound, SaeWarning, SweptCells
from actstore._async import questions
from actstore_api.v1 import capture_pb2, catalog_pb2, service_pb2_grpc
from actstore_service.server import Service
from tests.client.conftest import SERVICE_TOKEN
from tests.client.workers.stand_in import StandInWorkers
from tests.stored_run import FIRING, SAE
from tests.waiting import PATIENCE_SECONDS


class Slow(service_pb2_grpc.CatalogServiceServicer, service_pb2_grpc.CaptureServiceServicer):
    """Answers no question until it is cancelled, and says of how many it was told."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Semaphore(0), threading.Semaphore(0)

    def ListRuns(self, request: Any, context: Any) -> Any:
        self._wait(context)
        return catalog_pb2.ListRunsResponse()

    def WatchCapture(self, request: Any, context: Any) -> Iterator[Any]:
        yield capture_pb2.WatchCaptureResponse(
            progress=capture_pb2.CaptureProgress(run=request.run, state=capture_pb2.CAPTURE_STATE_RUNNING)
        )
        self._wait(context)

    def _wait(self, context: Any) -> None:
        over = threading.Event()
        context.add_callback(over.set)
        self.begun.release()
        over.wait(PATIENCE_SECONDS)
        self.ended.release()

    async def until_begun(self, count: int = 1) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE_SECONDS)

    async def until_ended(self, count: int = 1) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self.ended.acquire, timeout=PATIENCE_SECONDS)


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def slow_address(slow: Slow) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_CatalogServiceServicer_to_server(slow, server)
    service_pb2_grpc.add_CaptureServiceServicer_to_server(slow, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def connected(service: Service) -> AsyncLab:
    return actstore.connect_async(service.address, token=SERVICE_TOKEN)


def test_a_hundred_questions_in_one_event_loop(service: Service, remote: actstore.Lab) -> None:
    async def ask() -> list[Any]:
        async with connected(service) as lab:
            run = await lab.run("planted")
            asked = [run.feature(SAE, index % len(run.features(SAE))).statistics() for index in range(100)]
            return await asyncio.gather(*asked)

    expected = [remote.run("planted").feature(SAE, index).statistics() for index in range(3)]
    found = asyncio.run(ask())
    assert len(found) == 100
    assert found[:3] == expected


def test_more_questions_than_threads_wait_for_their_turn(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "QUESTIONS_AT_ONCE", 2)

    async def ask() -> None:
        async with connected(service) as lab:
            await asyncio.gather(*(lab.runs() for _ in range(10)))
            names = {thread.name for thread in threading.enumerate()}
            assert len([name for name in names if name.startswith("actstore-question")]) == 2

    asyncio.run(ask())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("actstore-")]


def test_a_bucket_is_asked_too(store: Path, direct: actstore.Lab) -> None:
    async def ask() -> Any:
        async with actstore.connect_async(store) as lab:
            assert (await lab.runs()).to_dict() == direct.runs().to_dict()
            run = await lab.run("planted")
            assert (await lab.check("planted")).sound
            return await asyncio.gather(*(run.feature(SAE, FIRING).top() for _ in range(40)))

    expected = direct.run("planted").feature(SAE, FIRING).top()
    assert all(found == expected for found in asyncio.run(ask()))


@pytest.mark.parametrize("door", ["service", "store"])
def test_an_error_reaches_who_awaits(door: str, request: pytest.FixtureRequest) -> None:
    place = request.getfixturevalue(door)

    async def ask() -> None:
        async with connected(place) if isinstance(place, Service) else actstore.connect_async(place) as lab:
            with pytest.raises(NotFound, match="nothing-there") as caught:
                await lab.run("nothing-there")
            assert caught.value.reason == "RUN_NOT_FOUND"
            with pytest.raises(BadRequest):
                await (await lab.run("planted")).norms("mlp_out")

    asyncio.run(ask())


def test_a_cancelled_question_ends_at_the_service(slow: Slow, slow_address: str) -> None:
    async def ask() -> None:
        async with actstore.connect_async(slow_address) as lab:
            asked = asyncio.create_task(lab.runs())
            await slow.until_begun()
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await slow.until_ended()

    asyncio.run(ask())


def test_a_question_that_takes_too_long_ends_at_the_service(slow: Slow, slow_address: str) -> None:
    async def ask() -> None:
        async with actstore.connect_async(slow_address) as lab:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(lab.runs(), 0.2)
            await slow.until_ended()

    asyncio.run(ask())


def test_a_cancelled_question_that_waits_for_its_turn_is_never_sent(
    slow: Slow, slow_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "QUESTIONS_AT_ONCE", 1)

    async def ask() -> None:
        async with actstore.connect_async(slow_address) as lab:
            first, second = (asyncio.create_task(lab.runs()) for _ in range(2))
            await slow.until_begun()
            second.cancel()
            first.cancel()
            await slow.until_ended()
            for task in (first, second):
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert not slow.begun.acquire(blocking=False)

    asyncio.run(ask())


def test_a_stream_that_its_reader_leaves_ends_at_the_service(slow: Slow, slow_address: str) -> None:
    async def ask() -> None:
        async with actstore.connect_async(slow_address) as lab:
            async for news in lab.attach("r").progress():
                assert news.state == "running"
                break
            await slow.until_ended()
            waiting = asyncio.create_task(lab.attach("r").wait())
            await slow.until_begun(2)
            waiting.cancel()
            await slow.until_ended()

    asyncio.run(ask())


def test_closing_ends_the_questions_that_are_under_way(slow: Slow, slow_address: str) -> None:
    async def ask() -> None:
        lab = actstore.connect_async(slow_address)
        asked = [asyncio.create_task(lab.runs()) for _ in range(3)]
        asked.append(asyncio.create_task(lab.attach("r").wait()))
        await slow.until_begun(4)
        await lab.close()
        assert lab.closed
        for task in asked:
            with pytest.raises(Cancelled, match="was closed while this question was under way"):
                await task
        await slow.until_ended(4)
        with pytest.raises(BadRequest, match="is closed"):
            await lab.runs()
        await lab.close()

    asyncio.run(ask())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("actstore-")]


def test_a_capture_is_awaited_and_watched(service: Service, workers: StandInWorkers) -> None:
    async def ask() -> None:
        async with connected(service) as lab:
            capture = await lab.capture("m", dataset="d")
            news = [each.tokens_committed async for each in capture.progress()]
            assert news == sorted(news)
            run = await capture.wait(progress=False, check_saes=False)
            assert (await run.norms()).run == run.name == "planted"
            odd = await lab.capture("m", dataset="d", run="float16")
            with pytest.warns(SaeWarning):
                await odd.wait(progress=False)

    asyncio.run(ask())


def test_watches_do_not_hold_up_questions(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "QUESTIONS_AT_ONCE", 1)

    async def ask() -> None:
        async with connected(service) as lab:
            slow = lab.attach("slow")
            watched = [asyncio.create_task(slow.wait(progress=False)) for _ in range(2)]
            assert len(await lab.runs()) > 0
            assert (await slow.cancel()).state == "cancelled"
            for task in watched:
                with pytest.raises(Cancelled):
                    await task

    asyncio.run(ask())


def test_callbacks_run_in_the_event_loop(service: Service) -> None:
    seen: list[tuple[int, threading.Thread]] = []

    async def told(cells: SweptCells) -> None:
        await asyncio.sleep(0)
        seen.append((len(cells), threading.current_thread()))

    def plain(cells: SweptCells) -> None:
        seen.append((len(cells), threading.current_thread()))

    async def ask() -> Any:
        async with connected(service) as lab:
            prompts = {"clean": "When Mary gave to", "corrupt": "When John gave to", "answers": (" Mary", " John")}
            found = [await lab.patch("m", **prompts, on_cells=each, progress=False) for each in (told, plain)]
            with pytest.raises(ZeroDivisionError):
                await lab.patch("m", **prompts, on_cells=lambda _: 1 // 0, progress=False)
            return found

    sweeps = asyncio.run(ask())
    assert sum(rows for rows, _ in seen) == sum(map(len, sweeps))
    assert {thread for _, thread in seen} == {threading.main_thread()}
