"""Live questions, which are answered by running a model or an SAE: on a text, or on their weights.

`answering` dispatches each question to the module that answers it: in `saes` for SAEs, in `texts` for models. `passes`
runs the model, and prepares its input.
"""
