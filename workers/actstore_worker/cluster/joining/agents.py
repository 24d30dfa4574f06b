"""Ports for the agents of a Ray node, so that its start does not depend on how fast they are.

A raylet whose agents choose their ports themselves waits 15 seconds for each, whatever is set, and then aborts. On a
busy machine the agents take longer, only to import their libraries. `ray start` has options for these ports, `ray.init`
has none, and neither tells the raylet all of them. So this replaces two functions of Ray while a node starts.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import parameter, services

from actstore_worker.cluster.joining.sockets import free_port

_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
# In the command of an agent, which is a part of the raylet's command.
_LISTEN_PORT = re.compile(r"--listen-port=([1-9]\d*)")


@contextmanager
def raylets_told() -> Iterator[None]:
    """Within this context, each raylet that this process starts is told the port that its agent has for HTTP."""
    start = services.start_ray_process

    def told_the_port(command: list[str], *args: Any, **options: Any) -> Any:
        found = _LISTEN_PORT.search(" ".join(command))
        told = [f"--dashboard_agent_listen_port={found[1]}"] if found else []
        return start([*command, *told], *args, **options)

    services.start_ray_process = told_the_port
    try:
        yield
    finally:
        services.start_ray_process = start


@contextmanager
def agent_ports_chosen() -> Iterator[None]:
    """Within this context, each node that this process starts has ports for its agents that were free just before."""
    parameters = parameter.RayParams

    def with_ports(*args: Any, **options: Any) -> Any:
        ports: dict[str, int] = {}
        for name in _PORTS:
            ports[name] = free_port(*ports.values())
        made = parameters(*args, **options)
        made.update(**ports)
        return made

    parameter.RayParams = with_ports
    try:
        with raylets_told():
            yield
    finally:
        parameter.RayParams = parameters
