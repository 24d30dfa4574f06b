"""The gRPC service: answers stored questions from the bucket, and forwards live questions to the workers.

It is stateless: all data is in the bucket, so any number of replicas can run side by side.
"""
