"""Training SAEs on a run's stored rows with SAELens's own trainer: `python -m actstore_worker.training`.

The bucket is opened directly; no service and no workers take part. Only this package imports SAELens, which the extra
`train` brings. It knows nothing of Ray, on which `cluster/tasks.py` places several trainings side by side.
"""
