"""Label-free adaptation: the teacher, its pseudo-labels, and everything the student learns from them."""
