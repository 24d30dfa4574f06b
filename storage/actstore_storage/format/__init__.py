"""The format of a bucket: keys, records, the schemas of objects, and the statistics in records."""
