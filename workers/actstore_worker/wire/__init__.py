"""The gateway: offers the workers' answers as gRPC services behind Ray Serve's proxy."""
