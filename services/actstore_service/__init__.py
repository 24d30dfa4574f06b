"""The gRPC service: turns wire into calls and answers into wire, and forwards live work to the workers.

Stateless: what it answers from lies in the bucket, so any number of replicas may run beside each other.
"""
