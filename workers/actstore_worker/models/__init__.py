"""Language models: `families/` says what each family is, `files/` and `tokens/` look at a model's files, `loading.py`
makes a model of them, and the rest looks into it and changes it.
"""
