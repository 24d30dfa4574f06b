"""The command: each verb takes its words from a shell, makes one call of the lab, and prints or draws the answer."""
