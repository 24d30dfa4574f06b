"""Datasets: a name becomes files (`places.py`, `hub.py`), files become rows, rows become documents, and documents
become sequences of tokens. Each step refuses input that it would have to guess about.
"""
