"""What lies in a bucket: keys, records, the schemas of objects, and the numbers that records carry."""
