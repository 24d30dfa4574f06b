"""Ray: every actor, deployment and task of the workers. No other package imports it.

    gRPC -- proxy -- gateway (Serve, ingress) --+-- coordinator (named, detached actor) -+- capture workers (actors)
                                                |                                        +- parts of indexes (tasks)
                                                +-- models (Serve, multiplexed, autoscaled)
    a sweep of trainings -- tasks, side by side

What they do is in classes that know nothing of Ray; here they are only placed, named and called.
"""
