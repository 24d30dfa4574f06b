"""Questions answered now: to an SAE, what it says of a text and of the directions in its weights; to a model, where it
attends, what its layers would predict, how it goes on when steered, and what it loses without a part.

`answering.py` takes any of `questions.py` and `model_questions.py`; each answer is computed in a module of its own, and
`passes.py` runs the model.
"""
