"""What the files of a model say, checked before a library is let near them."""
