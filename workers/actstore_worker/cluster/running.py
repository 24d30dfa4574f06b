"""The workers, from the store's probe to a gateway that answers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from actstore_storage.bucket.opening import open_bucket
from actstore_storage.bucket.probe import probe
from actstore_worker.cluster.captures import coordinator_running
from actstore_worker.cluster.claim import only_deployment
from actstore_worker.cluster.serving import APPLICATION, LOOPBACK, deploy, port_of_running, serve_running
from actstore_worker.cluster.session import ray_session
from actstore_worker.cluster.sockets import wait_until_answering
from actstore_worker.settings import WorkerSettings


@contextmanager
def running(
    settings: WorkerSettings, connected: Callable[[], None], waits: Callable[[str], None] = lambda _: None
) -> Iterator[str]:
    """The workers, up and answering at the yielded address, down again when the block ends.

    `connected` is called once Ray is there, and has replaced this process's signal handlers. `waits` hears what is
    waited for next.

    Errors: StoreError for a bucket that cannot be trusted; SettingsError for what the cluster cannot hold.
    """
    waits("the store")
    probe(open_bucket(settings.store, settings.s3))
    waits("Ray")
    with ray_session(settings.ray_address, settings.ray.object_store_bytes):
        connected()
        with only_deployment(settings):
            running_port = port_of_running(settings)
            waits("the coordinator")
            with coordinator_running(settings), serve_running(settings, running_port, waits) as port:
                waits("the gateway")
                deploy(settings)
                wait_until_answering(f"{LOOPBACK}:{port}", APPLICATION, settings)
                yield f"{LOOPBACK}:{port}"
