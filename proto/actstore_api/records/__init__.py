"""The questions, answers and things that the contract speaks of, by noun, as frozen dataclasses without protobuf."""
