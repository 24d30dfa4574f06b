"""Dashboards, alerts and runbooks. `python -m deploy.monitoring` writes all files that are made of them."""
