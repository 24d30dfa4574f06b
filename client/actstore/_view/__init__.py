"""What answers look like, in a terminal, in a notebook and as pictures, made of plain values."""
