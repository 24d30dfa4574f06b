"""Trains SAEs on a run's stored rows with SAELens's own trainer: `python -m actstore_worker.training`.

The bucket is opened directly; no service and no workers are needed. Only this package imports SAELens, which the extra
`train` installs. It does not use Ray; `cluster/tasks.py` runs several trainings in parallel on it.
"""
