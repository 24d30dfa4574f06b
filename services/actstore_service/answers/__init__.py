"""What answers calls: the bucket, the workers, and gRPC's standard services. Blocking work runs on threads by class."""
