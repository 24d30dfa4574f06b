"""The contract between client, service and workers: protobuf messages and the table of error reasons."""
