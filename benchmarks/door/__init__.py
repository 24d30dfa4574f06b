"""What a question costs at the door of a service."""
