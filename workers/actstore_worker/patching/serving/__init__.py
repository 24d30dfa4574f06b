"""Serves sweeps of many callers: runs them side by side on one process's models, estimates and caches them, and
continues them if a process dies.
"""
