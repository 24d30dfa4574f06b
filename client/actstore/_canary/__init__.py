"""A canary: questions whose answers are known, asked as a researcher asks them."""
