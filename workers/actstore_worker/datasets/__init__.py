"""Datasets: a name becomes files (`places.py`, `hub.py`), files rows, rows documents, and documents sequences of
tokens. Each step refuses what it could only guess.
"""
