"""Reads and writes Parquet objects as streams of bytes, with checksums and a cache."""
