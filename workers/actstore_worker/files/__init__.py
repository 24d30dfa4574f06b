"""Files on this machine: their location, whether they are complete, and whether they have changed."""
