"""Sweeps for many callers: side by side on one process's models, estimated, cached, taken over from a dead one."""
