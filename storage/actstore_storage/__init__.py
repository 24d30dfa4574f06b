"""The layout of a bucket, reading and writing it, and answers to questions about it. It uses neither gRPC, Ray nor
torch.
"""
