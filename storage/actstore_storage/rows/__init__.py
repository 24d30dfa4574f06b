"""Dense rows and tokens of a snapshot, for reading, training and export."""
