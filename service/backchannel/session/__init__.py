"""The conversation itself: pure, without I/O, tasks or a clock."""
