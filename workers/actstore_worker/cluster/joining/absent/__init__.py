"""Libraries that processes of Ray are to find absent, whatever is installed: this folder is first on their path."""
