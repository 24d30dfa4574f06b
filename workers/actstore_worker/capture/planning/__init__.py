"""What a plan is made of: the options of a request, and estimates of its bytes and its work."""
