"""Log lines of the processes that run for long."""
