"""Clients that behave badly, in a process of their own: `python -m tests.service.calls.attacker ADDRESS TOKEN STALLED
HALF_OPEN`.

STALLED streams take one message and no more; HALF_OPEN calls send headers and no message. It prints one line once all
are open. After a line on its standard input it reads again, and prints how all calls ended. It ends by itself when its
standard input closes.
"""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

import grpc
from grpc_status import rpc_status

from actstore_api.reasons import from_status
from actstore_api.v1 import activation_pb2
from actstore_api.verbs import VERBS
from tests.service.calls.wide_run import WIDE, WIDE_SITE

CALLS_PER_CONNECTION = 200
# The smallest window, which does not grow: what a client does not read stays in the service.
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]


async def main(address: str, token: str, stalled: int, half_open: int) -> None:
    metadata = (("authorization", f"Bearer {token}"),)
    n_channels = -(-(stalled + half_open) // CALLS_PER_CONNECTION)
    channels = [grpc.aio.insecure_channel(address, OPTIONS) for _ in range(n_channels)]
    begin = [_stalled] * stalled + [_half_open] * half_open
    calls = [one(channels[number // CALLS_PER_CONNECTION], metadata) for number, one in enumerate(begin)]
    for call in calls[:stalled]:
        with suppress(grpc.aio.AioRpcError):  # refused: it is told at the end
            await call.read()
    print(json.dumps({"open": len(calls)}), flush=True)
    if not await asyncio.to_thread(sys.stdin.readline):
        os._exit(0)  # at once, as a laptop that is closed
    print(json.dumps(Counter([await _end(call) for call in calls])), flush=True)


def _stalled(channel: grpc.aio.Channel, metadata: Iterable[tuple[str, str]]) -> grpc.aio.UnaryStreamCall:
    request = activation_pb2.ReadActivationsRequest(run=WIDE, sites=[WIDE_SITE]).SerializeToString()
    return channel.unary_stream(VERBS["ReadActivations"].path)(request, metadata=metadata)


def _half_open(channel: grpc.aio.Channel, metadata: Iterable[tuple[str, str]]) -> grpc.aio.StreamUnaryCall:
    return channel.stream_unary(VERBS["ListRuns"].path)(metadata=metadata)


async def _end(call: grpc.aio.Call) -> str:
    """The call's reason, or its code if it has none."""
    if isinstance(call, grpc.aio.UnaryStreamCall):
        with suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
    code = await call.code()
    status = await rpc_status.aio.from_call(call)
    failure = status and from_status(status)
    return failure.reason if failure else code.name


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
