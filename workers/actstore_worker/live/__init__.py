"""Questions to an SAE, answered now: what it says of a text, and of the directions in its weights.

`answering.py` takes any of `questions.py`; each answer is computed in a module of its own, and `passes.py` runs the
model.
"""
