"""What keeps a store whole: folding commits, merging indexes, removing runs, checking every byte."""
