"""Questions answered now: to an SAE, what it says of a text and of the directions in its weights; to a model, where it
attends, what its layers would predict, how it goes on when steered, and what it loses without a part.

`answering` takes any question and hands it on; each answer is computed in a module of its own, in `saes` what SAEs say
and in `texts` what models do. `passes` runs the model, and reads what it is run on.
"""
