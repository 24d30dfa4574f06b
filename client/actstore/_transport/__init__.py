"""Who answers the client's questions: a service over gRPC, or a bucket without one."""
