"""What a lab tells about the service that it asks."""

import asyncio

import pytest

import actstore
from actstore import BadRequest, Lab, WorkersInfo
from actstore_api.levels import API_LEVEL, own_version
from actstore_service.server import Service
from tests.client.conftest import SERVICE_TOKEN


def test_a_service_and_its_workers(remote: Lab) -> None:
    info = remote.service_info()
    assert (info.version, info.api_level) == (own_version(), API_LEVEL)
    assert info.workers == WorkersInfo("9.9.9", 2, (1, 2, 3, 4), 4)
    assert info.capabilities.workers
    assert info.limits.request_bytes == 1 << 20
    assert {"reader", "writer"} <= set(info.roles)


def test_the_same_without_blocking(service: Service, remote: Lab) -> None:
    async def ask() -> actstore.ServiceInfo:
        async with actstore.connect_async(service.address, token=SERVICE_TOKEN) as lab:
            return await lab.service_info()

    assert asyncio.run(ask()) == remote.service_info()


def test_a_bucket_has_none(direct: Lab) -> None:
    with pytest.raises(BadRequest) as refused:
        direct.service_info()
    assert refused.value.reason == "NEEDS_SERVICE"
