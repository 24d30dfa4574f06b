"""Language models: loads them from their files, hooks their sites, and changes activations.

`families/` describes each model family, `files/` and `tokens/` check a model's files, and `loading.py` loads it.
"""
