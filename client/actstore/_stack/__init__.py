"""A lab's processes on one machine, none of which outlives whoever started them."""
