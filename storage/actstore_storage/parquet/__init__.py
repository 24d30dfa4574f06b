"""Parquet objects as streams of bytes: written with a digest, read and checked, cached."""
