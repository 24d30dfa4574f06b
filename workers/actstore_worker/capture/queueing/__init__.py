"""The queue of captures: who is next, how workers are shared, what a principal may use, and what it has used.

Its modules know nothing of Ray and of the bucket. All but the state of a capture are plain computations.
"""
