"""What models, SAEs and datasets there are to name, in folders, in the bucket and on the hub."""
