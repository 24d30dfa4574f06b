"""Files on this machine, whatever they are of: where they lie, whether they are whole, and whether they changed."""
