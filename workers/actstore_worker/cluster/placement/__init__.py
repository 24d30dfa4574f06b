"""What the cluster has and may get, and what is placed where: capture workers, model replicas, and the rest."""
