"""Log lines and traces: what processes say of their calls."""
