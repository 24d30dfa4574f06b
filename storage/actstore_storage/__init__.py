"""What lies in the bucket, how to read and write it, and the answers read off it. Knows neither gRPC, Ray nor torch."""
