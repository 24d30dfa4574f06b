"""Features of a snapshot's SAEs: statistics, examples, and the indexes that they are read from."""
