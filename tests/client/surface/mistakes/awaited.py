"""Plausible mistakes in a script for asyncio. Nothing here is run.

A line that ends in the mark is a mistake, which mypy finds; every other line is right, which it finds too.
"""

import actstore
from actstore import AsyncLab, CaptureProgress, Examples, Sweep


async def right(lab: AsyncLab) -> None:
    """What is awaited has the types of the blocking client, and what asks nobody is not awaited."""
    run = await lab.run("r")
    capture = await lab.capture("m", dataset="d", max_tokens=1_000)
    news: list[CaptureProgress] = [each async for each in capture.progress()]
    print(news, (await capture.wait()).name, capture.run)
    found: Examples = await run.feature("s", 3).top(5)
    several: list[Examples] = [await feature.top() for feature in run.features("s")]
    print(found, several, len(run.features("s")), run.features("s")[2].index, 3 in run.features("s"))
    sweep: Sweep = await lab.patch("m", clean="a", corrupt="b", answers=(1, 2), source="mean", stored=run)
    print(sweep, await lab.ablate("m", ["t"], ablation="mean", stored=run), lab.attach("r").run)
    async with actstore.connect_async("host:1", token="t") as other:
        await (await other.checkpoints(["a", "b"])).norms()


async def wrong(lab: AsyncLab) -> None:
    """What is not awaited, words, names and kinds of arguments."""
    print(lab.run("r").name)  # wrong
    for _ in lab.attach("r").progress():  # wrong
        pass
    await lab.attach("r")  # wrong
    await lab.capture("m", dataset="d", maks_tokens=3)  # wrong
    await lab.patch("m", clean="a", corrupt="b", answers=(1, 2), source="median")  # wrong
    await lab.estimate_patch("m", claen="x")  # wrong
    await (await lab.run("r")).norms(by="layers")  # wrong
    await (await lab.run("r")).feature("s", "3").top()  # wrong
    with lab:  # wrong
        pass
    with actstore.connect_async("host:1") as other:  # wrong
        print(other)
    await lab.rnu("r")  # wrong
